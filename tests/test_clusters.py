"""The files for clusters: as their schemas want them, of one Ray, with commands that work."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml
from jsonschema import Draft7Validator, Draft202012Validator, ValidationError
from typer.testing import CliRunner

from study.cli import app

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "configs" / "cluster"
KUBERNETES = ("1.30", "1.37")
"""The oldest and the newest release whose pod schema is held against."""

Manifest = dict[str, Any]


def load(path: Path) -> Manifest:
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict)
    return found


def check_ray_up(manifest: Manifest) -> None:
    """By the schema that Ray's own launcher reads."""
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    Draft7Validator(json.loads(schema.read_text())).validate(manifest)


def check_rayjob(manifest: Manifest) -> None:
    """By that of KubeRay, and the pods by that of Kubernetes, where unknown keys are errors."""
    Draft202012Validator(load(ROOT / "tests" / "schemas" / "rayjob.yaml")).validate(manifest)
    for template in templates(manifest):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}}
        for release in KUBERNETES:
            kubernetes_validate.validate(pod | {"template": template}, release, strict=True)


def templates(manifest: Manifest) -> Iterator[Manifest]:
    cluster = manifest["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]


CHECKS: dict[str, Callable[[Manifest], None]] = {
    "ray-up.yaml": check_ray_up,
    "rayjob.yaml": check_rayjob,
}
BROKEN: list[tuple[str, list[str | int], object]] = [
    ("ray-up.yaml", ["docker", "imgae"], "ray"),
    ("ray-up.yaml", ["max_workers"], "four"),
    ("ray-up.yaml", ["available_node_types", "worker", "resources", "GPU"], 0.5),
    ("rayjob.yaml", ["spec", "backofLimit"], 3),
    ("rayjob.yaml", ["spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"], "4"),
    ("rayjob.yaml", ["spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"], 0),
    ("rayjob.yaml", ["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "image"], "x"),
]


def test_each_file_is_as_its_schema_wants_it() -> None:
    assert {path.name for path in FOLDER.glob("*.yaml")} == set(CHECKS)
    for name, check in CHECKS.items():
        check(load(FOLDER / name))


@pytest.mark.parametrize(("name", "keys", "value"), BROKEN)
def test_a_slip_would_be_seen(name: str, keys: list[str | int], value: object) -> None:
    broken = deepcopy(load(FOLDER / name))
    place: Any = broken
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises((ValidationError, kubernetes_validate.ValidationError)):
        CHECKS[name](broken)


def test_all_machines_have_the_ray_of_the_constraints() -> None:
    (pinned,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    image = f"rayproject/ray:{pinned}-py311-gpu"
    assert load(FOLDER / "ray-up.yaml")["docker"]["image"] == image
    assert f"FROM {image}\n" in (FOLDER / "Dockerfile").read_text()
    job = load(FOLDER / "rayjob.yaml")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned
    own = {pod["image"] for template in templates(job) for pod in template["spec"]["containers"]}
    assert len(own) == 1


def test_all_machines_have_what_workers_import() -> None:
    (setup,) = load(FOLDER / "ray-up.yaml")["setup_commands"]
    for installs in (setup, (FOLDER / "Dockerfile").read_text()):
        (extras,) = re.findall(r"connective-fusion\[([a-z,]+)\]'", installs)
        assert {"builtin", "study"} <= set(extras.split(","))


def test_every_machine_is_there_from_the_start() -> None:
    types = load(FOLDER / "ray-up.yaml")["available_node_types"]
    assert types["worker"]["min_workers"] == types["worker"]["max_workers"]
    assert load(FOLDER / "ray-up.yaml")["max_workers"] == types["worker"]["max_workers"]
    (group,) = load(FOLDER / "rayjob.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_every_machine_is_told_alike_about_tokens() -> None:
    """A head that finds a token would turn away those that were told nothing."""
    assert "--env RAY_AUTH_MODE=disabled" in load(FOLDER / "ray-up.yaml")["docker"]["run_options"]
    for template in templates(load(FOLDER / "rayjob.yaml")):
        for container in template["spec"]["containers"]:
            assert {"name": "RAY_AUTH_MODE", "value": "disabled"} in container["env"]


def commands() -> Iterator[str]:
    """What is to be typed or run to start a study on a cluster."""
    yield load(FOLDER / "rayjob.yaml")["spec"]["entrypoint"]
    page = (ROOT / "docs" / "clusters.md").read_text()
    yield from re.findall(r"'(cf-study run [^']*)'", page)


def test_the_commands_are_plans_that_work(bucket: str) -> None:
    found = list(commands())
    assert len(found) >= 2
    for command in found:
        called, *arguments = shlex.split(command.replace("s3://YOUR-BUCKET/studies", bucket))
        assert called == "cf-study"
        result = CliRunner().invoke(app, [*arguments, "--dry-run"])
        assert result.exit_code == 0, result.output
        assert f"kept in {bucket}" in result.output
        assert "on auto" in result.output
