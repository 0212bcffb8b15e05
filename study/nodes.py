"""Ray: reaching it, and whether all nodes can do their part: same code, results they share."""

import logging
import os
import platform
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cf_core.errors import UserError
from cf_core.files import AnyPath, replacing
from study.config import Execution, StageResources

PACKAGES = ("cf_core", "evaluation", "study")
"""The project's own code."""

_ALIKE = ("torch", "numpy", "polars", "pyarrow")
"""Libraries of which all nodes must have the same version."""

_PATIENCE = 120.0
"""Seconds in which a node must answer."""


def connect(execution: Execution) -> None:
    """Start Ray on this machine, or connect to the cluster at the address.

    Raises `UserError` where there is none.
    """
    address = execution.address
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # Only the older of Tune's two outputs is silent at verbose=0.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune's own state, of all jobs each time: nothing is ever restored from it.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")
    # Ctrl-C is ours: Tune's own handler would wait for the running steps.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _reach(address)
        if address is None:
            ray.init(
                address="local",
                num_cpus=execution.workers,
                include_dashboard=False,
                object_store_memory=512 * 1024**2,
                **options,
            )
        else:
            modules = [str(folder) for folder in folders()]
            shipped = {"py_modules": modules} if execution.ship_code else None
            ray.init(address=address, runtime_env=shipped, **options)
    except Exception as error:  # Ray raises that itself where its processes don't start
        where = address or "this machine"
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"Ray at {where}: {reason}; check --address or execution.address"
        ) from error
    if current_thread() is main_thread():
        # Ray's own prints a stack and ends the process there and then.
        signal.signal(signal.SIGTERM, on_sigterm or signal.SIG_DFL)


def _reach(address: str | None) -> None:
    """Raise `OSError` where nobody listens at an address; Ray itself would try for minutes."""
    place = urlsplit(address if address and "://" in address else f"//{address or ''}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=10).close()


def lacking(stages: StageResources) -> str | None:
    """What a job asks for that no node of this cluster has, in words."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, stage in (("trials", stages.trials), ("rivals", stages.rivals)):
        needed = {"CPU": stage.cpu, "GPU": stage.gpu}
        if not any(all(node.get(x, 0.0) >= n for x, n in needed.items()) for node in nodes):
            return f"execution.resources.{name}: no node has {stage.cpu:g} CPU, {stage.gpu:g} GPU"
    return None


def prove(root: AnyPath) -> int:
    """Have every node show that it has this code and shares the results; how many nodes there are.

    Each writes a small file into the study's folder and reads those of all others. Raises
    `UserError`, which names the node and what it lacks.
    """
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    folder = root / f".nodes-{uuid4().hex}"
    try:
        found = {node: _on(node, host, _look, folder, node) for node, host in nodes.items()}
        ours = code()
        for node, theirs in found.items():
            if differing := [name for name in ours if ours[name] != theirs.get(name)]:
                told = ", ".join(f"{x} {theirs.get(x)} (here {ours[x]})" for x in differing)
                raise UserError(
                    f"node {nodes[node]}: has {told}; install the same wheel and libraries on all"
                    " nodes, or set execution.ship_code for code that is not installed there"
                )
        for node, host in nodes.items():
            missing = _on(node, host, _read, folder, list(nodes))
            if missing:
                others = ", ".join(sorted({nodes[name] for name in missing}))
                raise UserError(
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
def code() -> Mapping[str, str]:
    """Version of Python and of the libraries that matter, and a hash of the project's own code."""
    digest = sha256()
    for package in folders():
        for path in sorted(package.rglob("*.py")):
            digest.update(path.relative_to(package.parent).as_posix().encode())
            digest.update(path.read_bytes())
    # Builds for GPUs and for CPUs only are of one version: clusters have both.
    versions = {name: version(name).partition("+")[0] for name in _ALIKE}
    return {"Python": platform.python_version(), **versions, "code": digest.hexdigest()[:12]}


def folders() -> list[Path]:
    """Where the project's packages lie."""
    return [Path(__file__).parent.parent / name for name in PACKAGES]


def _on(node: str, host: str, task: Any, *arguments: object) -> Any:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    try:
        return ray.get(
            task.options(scheduling_strategy=place).remote(*arguments), timeout=_PATIENCE
        )
    except (RayError, TimeoutError) as error:
        reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        raise UserError(f"node {host}: can't take part: {reason}") from None


@ray.remote(num_cpus=0)
def _look(folder: AnyPath, node: str) -> Mapping[str, str]:
    with replacing(folder / node) as temporary:
        temporary.write_text(node)
    return code()


@ray.remote(num_cpus=0)
def _read(folder: AnyPath, nodes: Sequence[str]) -> list[str]:
    return [node for node in nodes if not _holds(folder / node, node)]


def _holds(path: AnyPath, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False
