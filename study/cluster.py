"""Connects to Ray: to a cluster, or to one that is started on this machine."""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any
from urllib.parse import urlsplit

import ray
import torch

from cf_core.errors import ClusterError
from cf_core.files import AnyPath
from study.config import Execution, StageResources, StudyConfig
from study.nodes import find_module, folders, prove
from study.progress import Reporter

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
            modules = [str(folder) for folder in (*folders(), *map(find_module, rivals))]
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


def require(execution: Execution, reporter: Reporter) -> None:
    """Look whether some node has what each job needs; on a cluster, say so and wait for one.

    Raises `ClusterError` on this machine, where no node will come.
    """
    if lack := lacking(execution.resources):
        if execution.address is None:
            raise ClusterError(f"{lack}; ask for less, or give a cluster that has it")
        reporter.say(f"{lack}; waiting for one")


def lacking(stages: StageResources) -> str | None:
    """Say which resources of a job no node of this cluster has; None where all can run."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, stage in stages:
        needed = {"CPU": stage.cpu, "GPU": stage.gpu}
        if not any(all(node.get(x, 0.0) >= n for x, n in needed.items()) for node in nodes):
            return f"execution.resources.{name}: no node has {stage.cpu:g} CPU, {stage.gpu:g} GPU"
    return None


def take_device(execution: Execution) -> torch.device:
    """The GPU that Ray gave to this worker, else the CPU; called in workers alone.

    It also sets how GPUs multiply (`execution.tf32`), for the whole process.
    """
    if not (ray.get_gpu_ids() and torch.cuda.is_available()):
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high" if execution.tf32 else "highest")
    return torch.device("cuda", torch.cuda.current_device())
