"""Checks that all nodes of a cluster have the same code and share the results.

Each node imports this module to answer. It names no network and no configuration, since importing
those takes seconds.
"""

import inspect
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cf_core.errors import ClusterError, ConfigError
from cf_core.files import AnyPath, replacing

PACKAGES = ("cf_core", "evaluation", "study")
"""The project's own code."""

_ALIKE = ("torch", "numpy", "polars", "pyarrow")
"""Libraries that must have the same version on all nodes."""

_PATIENCE = 120.0
"""Seconds within which a node must answer."""


def prove(root: AnyPath, rivals: tuple[str, ...] = ()) -> int:
    """Check that every node has this code and shares the results; return the number of nodes.

    The code is the project's and that of the user's own `rivals`. Each node writes a small file
    into the study's folder and reads the files of all others. Raises `ClusterError`, which names
    the node and what it lacks.
    """
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    folder = root / f".nodes-{uuid4().hex}"
    try:
        found = {node: _on(node, host, _look, folder, node, rivals) for node, host in nodes.items()}
        ours = code(rivals)
        for node, theirs in found.items():
            if differing := [name for name in ours if ours[name] != theirs.get(name)]:
                told = ", ".join(f"{x} {theirs.get(x)} (here {ours[x]})" for x in differing)
                raise ClusterError(
                    f"node {nodes[node]}: has {told}; install the same wheel and libraries on all"
                    " nodes, or set execution.ship_code for code that is not installed there"
                )
        for node, host in nodes.items():
            missing = _on(node, host, _read, folder, list(nodes))
            if missing:
                others = ", ".join(sorted({nodes[name] for name in missing}))
                raise ClusterError(
                    f"node {host}: does not see in {root} what {others} wrote there; results must"
                    " be a folder that all nodes share, or a place such as s3://bucket/folder"
                )
    finally:
        with suppress(OSError):
            for node in nodes:
                (folder / node).unlink(missing_ok=True)
            if isinstance(folder, Path):
                folder.rmdir()
    return len(nodes)


@cache
def code(rivals: tuple[str, ...] = ()) -> Mapping[str, str]:
    """Versions of Python and of the libraries that matter, and a hash of the project's own code.

    Each of `rivals` adds a hash of its source, by its name.
    """
    digest = sha256()
    for package in folders():
        for path in sorted(package.rglob("*.py")):
            digest.update(path.relative_to(package.parent).as_posix().encode())
            digest.update(path.read_bytes())
    # Builds for GPUs and for CPUs count as one version, since a cluster may have both.
    versions = {name: version(name).partition("+")[0] for name in _ALIKE}
    return {"Python": platform.python_version(), **versions, "code": digest.hexdigest()[:12]} | {
        name: _hash_rival(name) for name in rivals
    }


def _hash_rival(name: str) -> str:
    from evaluation.rivals import find_rival, hash_source  # noqa: PLC0415  (slow)

    try:
        return hash_source(find_rival(name))[:12]
    except ConfigError:
        return "none"


def find_module(rival: str) -> Path:
    """Find the folder or file of the top-level module of a user's own rival."""
    top = import_module(rival.partition(":")[0].partition(".")[0])
    path = Path(inspect.getfile(top))
    return path.parent if path.name == "__init__.py" else path


def folders() -> list[Path]:
    """List the folders of the project's packages."""
    return [Path(__file__).parent.parent / name for name in PACKAGES]


def _on(node: str, host: str, task: Any, *arguments: object) -> Any:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    try:
        return ray.get(
            task.options(scheduling_strategy=place).remote(*arguments), timeout=_PATIENCE
        )
    except (RayError, TimeoutError) as error:
        reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        raise ClusterError(f"node {host}: can't take part: {reason}") from None


@ray.remote(num_cpus=0)
def _look(folder: AnyPath, node: str, rivals: tuple[str, ...]) -> Mapping[str, str]:
    with replacing(folder / node) as temporary:
        temporary.write_text(node)
    return code(rivals)


@ray.remote(num_cpus=0)
def _read(folder: AnyPath, nodes: Sequence[str]) -> list[str]:
    return [node for node in nodes if not _holds(folder / node, node)]


def _holds(path: AnyPath, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False
