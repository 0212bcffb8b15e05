PYTHON ?= python3
BIN := .venv/bin
# Threads that wait for each other let go of the core: several processes of tests share two. What
# these import is compiled once, even where the environment says that nothing is to be kept.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_WAIT_POLICY=passive $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=15

.PHONY: quickstart test test-fast docs reference bundle fuzz chaos bench-core bench-evaluation bench-ingest bench-serve bench-study clean

# The whole study on the built-in tunes: sets itself up, then runs one command.
quickstart: .venv/ready
	$(BIN)/cf-study run quickstart

# Lint, strict types and all tests.
test: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST)

# The tests that need no Ray and are short, for while you write: a minute or so.
test-fast: .venv/ready
	$(PYTEST) -m "not slow"

# The pages that are written from the code.
docs: .venv/ready
	$(BIN)/python -m study.config > docs/configuration.md
	$(BIN)/python -m study.tables > docs/tables.md

# The figures and findings of the comparison in README, from published tables alone.
reference: .venv/ready
	$(MAKE) --jobs=2 reference-nottingham reference-cre

reference-%:
	$(BIN)/cf-study frontier results/reference/$*

# The ready-made bundle that comes with the package, made anew. Commit what it writes.
bundle: .venv/ready
	rm -rf results/bundle
	$(BIN)/cf-study run bundle
	$(BIN)/cf-study select bundle --output cf_core/bundles/default

# How fast the model trains, decodes and loads; DEVICE=cuda adds what a GPU is for.
bench-core: .venv/ready
	$(BIN)/python -m benchmarks.core

# How fast rivals are searched, outputs measured and verdicts reached; trains a trial for it (ten minutes).
bench-evaluation: .venv/ready
	$(BIN)/python -m benchmarks.evaluation

# What sweeps, queries and ingests cost.
bench-study: .venv/ready
	$(BIN)/python -m benchmarks.study

# What a server of fusions bears: its rate, and four times that with hostile files among them.
bench-serve: .venv/ready
	$(BIN)/python -m benchmarks.serve

# Processes killed, nodes lost, disks filled: nothing may be lost, repeated or different after it.
chaos: .venv/ready
	$(BIN)/python -m tests.chaos

# How fast melody files become a corpus; CF_DATA may name a folder of corpora.
bench-ingest: .venv/ready
	$(BIN)/python -m benchmarks.ingest

# Hostile melody files, 5,000 or COUNT of them: none may hang, crash or fill its reader.
fuzz: .venv/ready
	$(BIN)/python -m tests.fuzz

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
