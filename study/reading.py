"""Reads melodies as tasks on a Ray cluster."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from cf_core.isolation import Mapper
from study.cluster import connected, unusable
from study.config import Execution

R = TypeVar("R")


@contextmanager
def ray_tasks(address: str) -> Iterator[Mapper]:
    """Give a mapper whose calls are tasks on the cluster at `address`, one for each of its CPUs.

    The process is connected within the context, by `study.cluster.connected`. Raises `ClusterError`
    where it can't connect, or where the cluster fails later.
    """
    with connected(Execution(address=address)):
        try:
            yield _tasks
        except RayTaskError:
            raise
        except RayError as error:
            raise unusable(address, str(error) or type(error).__name__) from error


def _tasks(function: Callable[[Any], R], items: Iterable[Any], /) -> Iterator[R]:
    # A function without a name that workers could import: they need not know this module.
    call: Any = ray.remote(lambda function, item: function(item))
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
