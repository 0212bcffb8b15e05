"""Connects to Ray, and checks that all nodes have the same code and share the results."""

import inspect
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cf_core.errors import ClusterError, ConfigError
from cf_core.files import AnyPath, replacing
from evaluation.rivals import find_rival, hash_source
from study.config import Execution, StageResources, StudyConfig

PACKAGES = ("cf_core", "evaluation", "study")
"""The project's own code."""

_ALIKE = ("torch", "numpy", "polars", "pyarrow")
"""Libraries that must have the same version on all nodes."""

_PATIENCE = 120.0
"""Seconds within which a node must answer."""

_PROBED = 30.0
"""Seconds within which Ray must answer at all."""

_LOOKED_FOR = (
    "Ray reads it from RAY_AUTH_TOKEN, else from the file that RAY_AUTH_TOKEN_PATH names, else from"
    " ~/.ray/auth_token"
)


_FOR_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Only the older of Tune's two outputs is silent at verbose=0.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Tune would write the state of all jobs each time, but nothing is ever restored from it.
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",
    # We handle Ctrl-C: Tune's own handler would wait for the running steps.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
"""Variables that the environment gets while connected, unless it has them already."""

_PROBE = """
import sys
from ray._private.authentication import authentication_token_setup as tokens
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient
if sys.argv[1] == "auto":
    tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
tokens.ensure_token_if_auth_enabled(create_token_if_missing=False)
GcsClient(address=canonicalize_bootstrap_address(sys.argv[1]))
"""
"""The first step of `ray.init`, which would try it twenty times and print an error each time."""


@contextmanager
def connected(execution: Execution, rivals: Sequence[str] = ()) -> Iterator[None]:
    """Connect to the Ray cluster at the address, or to one started on this machine.

    `rivals` names rivals of the user's own. If the project's code is shipped to the cluster, their
    code is shipped too.

    If this process is connected to Ray already, that connection is used, whatever the address, and
    stays open. Raises `ClusterError` where no Ray answers, and where it refuses the token.
    """
    with _environment(), _handlers(signal.SIGTERM, signal.SIGUSR1):
        if ray.is_initialized():
            yield
            return
        with _handlers(signal.SIGTERM):  # Ray's handler prints a stack and ends the process
            _connect(execution, rivals)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def reached(config: StudyConfig, root: AnyPath) -> Iterator[int]:
    """Connect to the cluster of a study, after `prove` has checked its nodes.

    Gives the number of nodes. Without an address nothing is done, and the number is 0. Raises
    `ClusterError` as `connected` and `prove` do.
    """
    if config.execution.address is None:
        yield 0
        return
    own = tuple(config.evaluation.hash_own())
    with connected(config.execution, own):
        yield prove(root.resolve(), own)


def _connect(execution: Execution, rivals: Sequence[str]) -> None:
    address = execution.address
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=execution.workers,
                include_dashboard=False,
                object_store_memory=512 * 1024**2,
                **options,
            )
        else:
            _probe(address)
            modules = [str(folder) for folder in (*folders(), *map(_find_module, rivals))]
            shipped = {"py_modules": modules} if execution.ship_code else None
            ray.init(address=address, runtime_env=shipped, **options)
    except ClusterError:
        raise
    except Exception as error:  # Ray raises `Exception` itself where its processes don't start
        raise unusable(address, str(error)) from error


def _probe(address: str) -> None:
    """Find out quickly and quietly whether no Ray answers, or whether it requires a token."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.scheme == "ray":
        raise unusable(
            address,
            "Ray Client can't run studies; run this on a node of the cluster, with address auto",
        )
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=10).close()
    # A separate process is used, since Ray's C++ code writes to the terminal and may end it.
    command = [sys.executable, "-c", _PROBE, address]
    try:
        done = subprocess.run(  # noqa: S603   (no shell)
            command, capture_output=True, text=True, timeout=_PROBED, check=False
        )
    except subprocess.TimeoutExpired:
        raise unusable(address, f"no Ray answers in {_PROBED:.0f} s") from None
    if "AuthenticationError" in done.stderr:
        shown = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
        why = "wants another token" if shown else "wants a token; set RAY_AUTH_MODE=token"
        raise ClusterError(f"Ray at {address}: {why}; {_LOOKED_FOR}")


def unusable(address: str | None, reason: str) -> ClusterError:
    """Make the error for a Ray that can't be reached or fails, with the first line of `reason`."""
    first = (reason.strip() or "no reason given").splitlines()[0]
    if address is None:
        return ClusterError(f"Ray on this machine: {first}")
    return ClusterError(f"Ray at {address}: {first}; check the address (execution.address)")


@contextmanager
def _environment() -> Iterator[None]:
    added = {name: value for name, value in _FOR_RAY.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _handlers(*signals: signal.Signals) -> Iterator[None]:
    """Restore the handlers of these signals afterwards."""
    before = {sign: signal.getsignal(sign) for sign in signals}
    try:
        yield
    finally:
        if current_thread() is main_thread():
            for sign, handler in before.items():
                signal.signal(sign, handler or signal.SIG_DFL)


def lacking(stages: StageResources) -> str | None:
    """Say which resources of a job no node of this cluster has; None where all can run."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, stage in (("trials", stages.trials), ("rivals", stages.rivals)):
        needed = {"CPU": stage.cpu, "GPU": stage.gpu}
        if not any(all(node.get(x, 0.0) >= n for x, n in needed.items()) for node in nodes):
            return f"execution.resources.{name}: no node has {stage.cpu:g} CPU, {stage.gpu:g} GPU"
    return None


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
    try:
        return hash_source(find_rival(name))[:12]
    except ConfigError:
        return "none"


def _find_module(rival: str) -> Path:
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
