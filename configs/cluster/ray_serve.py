"""The server of fusions as an application of Ray Serve, for those who already run a cluster.

serve run --app-dir configs/cluster ray_serve:app bundle=s3://YOUR-BUCKET/studies/search/bundle

It is the application that `cf-study serve` runs: docs/serving.md.
"""

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from cf_core.files import place
from study.serve import Limits, load_app


def app(arguments: dict[str, str]) -> Application:
    """Two replicas of a core each; `bundle` is a folder or URI, the ready-made one if not given."""
    bundle = arguments.get("bundle")

    def build() -> FastAPI:
        return load_app(None if bundle is None else place(bundle))

    deployment = serve.deployment(
        num_replicas=2,
        ray_actor_options={"num_cpus": 1},
        # More than the application takes, so that it refuses with its own problem documents.
        max_ongoing_requests=2 * Limits().requests,
    )
    return deployment(serve.ingress(build)()).options(name="fuse").bind()
