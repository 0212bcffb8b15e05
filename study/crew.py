"""Networks in training on Ray, side by side: a `study.prepare.Crew`."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cf_core.errors import ClusterError
from cf_core.training import Progress, use_huge_pages
from study.cluster import connected, require, take_device
from study.config import Execution
from study.networks import Networks, spoken
from study.prepare import Crew
from study.progress import Reporter


def make_crew(execution: Execution, stack: ExitStack) -> Crew:
    """Train on the cluster at the address, or on a Ray that is started on this machine.

    Ray is connected when there is a first network to train, and stays so until `stack` is closed.
    A training whose worker dies goes on from its checkpoint in another one. The crew raises
    `ClusterError` where that does not help, and where no node has what a job needs.
    """

    def train(networks: Networks, names: Sequence[str], reporter: Reporter) -> Iterator[str]:
        stack.enter_context(connected(execution))
        require(execution, reporter)
        need = execution.resources.networks
        # Ray gives no process of this environment to later jobs, whose peak memory is to be theirs.
        options: Any = {"num_returns": "streaming", "runtime_env": {"env_vars": {"CF_CREW": "1"}}}
        task: Any = ray.remote(num_cpus=need.cpu, num_gpus=need.gpu, **options)(_train)
        shared = [ray.put(networks)]
        going = {task.remote(shared, name): name for name in names}
        try:
            yield from _follow(going, reporter)
        finally:
            for reports in going:
                ray.cancel(reports)

    return train


def _follow(going: dict[Any, str], reporter: Reporter) -> Iterator[str]:
    """Show how trainings go; each is taken out, and its name given, when it is over."""
    with ExitStack() as stack:
        bars = {
            name: stack.enter_context(reporter.job(spoken(name), None)) for name in going.values()
        }
        while going:
            (reports,), _ = ray.wait(list(going), num_returns=1)
            name = going[reports]
            try:
                progress: Progress = ray.get(next(reports))
            except StopIteration:
                bars[name].close()
                del going[reports]
                yield name
                continue
            except RayTaskError:
                raise
            except RayError as error:
                raise ClusterError(
                    f"{spoken(name)}: its worker died: {str(error).strip()}; give the"
                    " same command again"
                ) from error
            bars[name].update(progress.step, progress.total)


def _train(shared: list[ray.ObjectRef], name: str) -> Iterator[Progress]:
    use_huge_pages()
    networks: Networks = ray.get(shared[0])
    yield from networks.train(name, take_device(networks.config.execution))
