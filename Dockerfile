# A server of fusions: docker build -t cf-serve . && docker run -p 127.0.0.1:8000:8000 cf-serve
FROM python:3.11-slim
ARG INDEX
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cf_core cf_core
COPY evaluation evaluation
COPY study study
COPY configs configs
# Give --build-arg INDEX=URL, the index that pytorch.org names for "CPU": CUDA takes gigabytes.
RUN pip install --no-cache-dir -c constraints.txt ${INDEX:+--extra-index-url "$INDEX"} '.[serve]'
USER nobody
EXPOSE 8000
# Inside a container, 0.0.0.0 is what -p publishes.
CMD ["cf-study", "serve", "--host", "0.0.0.0"]
