"""Melodies read as tasks on a Ray cluster."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from cf_core.errors import UserError
from cf_core.isolation import Mapper
from study.config import Execution
from study.nodes import connect

R = TypeVar("R")


@contextmanager
def ray_tasks(address: str) -> Iterator[Mapper]:
    """A mapper whose calls are tasks on the cluster at `address`, one for each of its CPUs.

    The process connects for the length of the context, unless it is connected already. Raises
    `UserError` where it can't, or where the cluster fails later on.
    """
    connects = not ray.is_initialized()
    if connects:
        connect(Execution(address=address))
    try:
        yield _tasks
    except RayTaskError:
        raise
    except RayError as error:
        raise _unusable(address, error) from error
    finally:
        if connects:
            ray.shutdown()


def _unusable(address: str, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"Ray at {address}: {reason}; check --address or execution.address")


def _tasks(function: Callable[[Any], R], items: Iterable[Any], /) -> Iterator[R]:
    call: Any = ray.remote(_call)
    ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending: list[Any] = []
    try:
        for item in items:
            pending.append(call.remote(function, item))
            if len(pending) > ahead:
                (done,), pending = ray.wait(pending)
                yield ray.get(done)
        while pending:
            (done,), pending = ray.wait(pending)
            yield ray.get(done)
    finally:
        for task in pending:
            ray.cancel(task)


def _call(function: Callable[[Any], R], item: Any) -> R:
    return function(item)
