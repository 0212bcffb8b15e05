"""Tasks on Ray Tune: the one module through which trials and rivals run on Ray.

Tune schedules; nothing is ever restored from its own state.
"""

import faulthandler
import resource
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.tune.logger import TBXLoggerCallback
from ray.tune.schedulers import FIFOScheduler

from cf_core.errors import ClusterError
from cf_core.training import use_huge_pages
from study.cluster import connected, require, take_device
from study.config import Execution, StageResources
from study.dispatch import Task, Watch
from study.execution import Report, run_job
from study.ledger import Failure
from study.packs import Rates, measure_packs
from study.progress import Reporter
from study.recording import record_references
from study.specs import Job, PackSpec, TrialSpec
from study.store import Store
from study.workbench import Workbench


class RayExecutor:
    """Runs tasks on the Ray cluster at an address, or on one of this machine.

    To be closed. A local Ray is started when there is a first task.
    """

    def __init__(
        self, bench: Workbench, store: Store, execution: Execution, reporter: Reporter
    ) -> None:
        self._bench, self._store, self._execution = bench, store, execution
        self._reporter = reporter
        self._stack = ExitStack()
        self._shared: ray.ObjectRef | None = None
        self._is_lent = ray.is_initialized()
        """Whether Ray was there before: `close` leaves it running, so Ctrl-C has to free it."""

    def close(self) -> None:
        """Stop Ray, or leave its cluster."""
        self._stack.close()

    def measure_packs(self, trials: Sequence[TrialSpec]) -> Rates:
        """Measure packs of these trials on one worker, as `study.packs.measure_packs` does.

        Raises `ClusterError` where that can't be done.
        """
        stage = self._execution.resources.trials
        task = ray.remote(num_cpus=stage.cpu, num_gpus=stage.gpu)(_measure_packs)
        try:
            rates: Rates = ray.get(task.remote([self._start()], trials))
        except RayError as error:
            raise ClusterError(
                f"how many trials make a pack can't be measured: {_last_line(error)}; give a number"
                " in execution.pack"
            ) from error
        return rates

    def record_references(self) -> None:
        """Record the references on a worker, as `study.recording.record_references` does.

        Raises `ClusterError` where the worker dies.
        """
        stage = self._execution.resources.rivals
        needs: Any = {"num_cpus": stage.cpu, "num_gpus": stage.gpu, "max_retries": 0}
        recorded = ray.remote(**needs)(_record_references).remote([self._start()])
        try:
            with self._reporter.job("references", None):
                ray.get(recorded)
        except RayTaskError:
            raise
        except RayError as error:
            raise ClusterError(
                f"references: the worker died: {_last_line(error)}; give the same command again"
            ) from error
        finally:
            ray.cancel(recorded)

    def run(self, tasks: Sequence[Task], watch: Watch) -> list[Failure | None]:
        """As `study.dispatch.Executor` says. Raises `ClusterError` where Tune stops."""
        with ExitStack() as stack:
            # Beside the records where that is a folder: there is more room than in /tmp.
            root = self._store.root.resolve()
            beside = root if isinstance(root, Path) else None
            folder = tempfile.TemporaryDirectory(prefix=".tune-", dir=beside)
            scratch = stack.enter_context(folder)
            told, order = _Told(tasks, watch), _InOrder()  # type: ignore[no-untyped-call]
            tuner = tune.Tuner(
                self._trainable(tasks),
                param_space={"task": tune.grid_search(list(range(len(tasks))))},
                tune_config=tune.TuneConfig(
                    reuse_actors=True,
                    max_concurrent_trials=self._execution.workers,
                    scheduler=order,
                ),
                run_config=tune.RunConfig(
                    storage_path=scratch,
                    verbose=0,
                    callbacks=[told, *self._curves(tasks, stack)],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            try:
                results = tuner.fit()
            except tune.TuneError as stopped:
                raise ClusterError(
                    f"Ray Tune stopped: {_last_line(stopped)}; give the same command again"
                ) from stopped
            except KeyboardInterrupt:
                if self._is_lent:
                    order.free()
                raise
        errors = [results[at].error if at < len(results) else None for at in range(len(tasks))]
        return [
            self._failure(at, task, error, told)
            for at, (task, error) in enumerate(zip(tasks, errors, strict=True))
        ]

    def _trainable(self, tasks: Sequence[Task]) -> Any:
        """What Tune runs: a task, known by its place among all, packs before rivals.

        Tune copies all that its trials are known by, and all that tells their needs, for each.
        """
        packs = sum(isinstance(task.job, PackSpec) for task in tasks)
        return tune.with_resources(
            tune.with_parameters(_Trainable, shared=[self._start()], tasks=tasks),
            partial(_needs, self._execution.resources, packs),
        )

    def _failure(
        self, place: int, task: Task, error: BaseException | None, told: "_Told"
    ) -> Failure | None:
        """Why a task did not come to its end; None if it did."""
        if place in told.failures:
            return told.failures[place]
        if error is None and place in told.over:
            return None
        limit = _limit(self._execution, task.job)
        if limit is not None and told.lasted.get(place, 0.0) >= limit:
            return Failure(f"it took longer than {limit:g} s")
        return Failure(f"the worker died: {_last_line(error)}", died=True)

    def _curves(self, tasks: Sequence[Task], stack: ExitStack) -> list[tune.Callback]:
        """TensorBoard's files, where the results are in a local folder."""
        root = self._store.root.resolve()
        if not isinstance(root, Path):
            return []
        curves = _Curves(root / "tensorboard", tasks)
        stack.callback(curves.close)
        return [curves]

    def _start(self) -> ray.ObjectRef:
        """Start Ray if that is not done yet, and put there once what all jobs share."""
        if self._shared is None:
            self._stack.enter_context(connected(self._execution))
            require(self._execution, self._reporter)
            self._shared = ray.put((self._bench, self._store.root.resolve(), self._execution))
        return self._shared


def _needs(
    stages: StageResources, packs: int, config: Mapping[str, Any]
) -> tune.PlacementGroupFactory:
    stage = stages.trials if config["task"] < packs else stages.rivals
    return tune.PlacementGroupFactory([{"CPU": stage.cpu, "GPU": stage.gpu}])


def _limit(execution: Execution, job: Job) -> float | None:
    """Seconds that a job may take."""
    each = execution.trial_seconds
    return None if each is None else each * len(job.parts)


def _measure_packs(shared: list[ray.ObjectRef], trials: Sequence[TrialSpec]) -> Rates:
    bench, _, execution = ray.get(shared[0])
    torch.set_num_threads(1)  # of a process of Ray's, which does nothing else
    device = take_device(execution)
    if device.type == "cuda":  # other workers are to have their shares of the memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, execution.resources.trials.gpu))
    return measure_packs(trials, bench.to(device), execution.workers)


def _record_references(shared: list[ray.ObjectRef]) -> None:
    bench, root, execution = ray.get(shared[0])
    torch.set_num_threads(1)
    record_references(bench.to(take_device(execution)), Store(root))


class _Trainable(tune.Trainable):
    """One task after another in one process."""

    def setup(  # type: ignore[override]  # how Tune hands over what with_parameters holds
        self, config: dict[str, Any], shared: list[ray.ObjectRef], tasks: Sequence[Task]
    ) -> None:
        use_huge_pages()
        torch.set_num_threads(1)
        self._tasks = tasks
        bench, root, self._execution = ray.get(shared[0])
        self._bench, self._store = bench.to(take_device(self._execution)), Store(root)
        if self._execution.memory_gb is not None:
            most = int(self._execution.memory_gb * 1e9)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._work = self._guarded(self._tasks[new_config["task"]])
        return True

    def step(self) -> dict[str, Any]:
        try:
            report = next(self._work, None)
        except Exception as error:  # noqa: BLE001  told, and recorded by the driver
            failure = Failure.of(error)
            return {"done": True, "failure": (failure.reason, failure.traceback)}
        if report is None:
            return {"done": True}
        losses = {
            f"{name}/{place}": value
            for name, values in report.losses.items()
            for place, value in enumerate(values)
        }
        return {
            "done": False,
            "at": report.done,
            "total": report.total,
            "timesteps_total": report.step,
            **losses,
        }

    def _guarded(self, task: Task) -> Iterator[Report]:
        """Do a task; end the process if that takes too long, whatever it is doing then."""
        limit = _limit(self._execution, task.job)
        if limit is not None:
            faulthandler.dump_traceback_later(limit, exit=True)
        try:
            yield from run_job(task.job, self._bench, self._store, task.attempts)
        finally:
            faulthandler.cancel_dump_traceback_later()


class _InOrder(FIFOScheduler):
    """Tune's own looks each time through all jobs there ever were."""

    _controller: Any = None

    def __reduce__(self) -> tuple[type[FIFOScheduler], tuple[()]]:
        return FIFOScheduler, ()  # as in _Told

    def free(self) -> None:
        """Give back the workers and their resources, which Tune does for an `Exception` alone."""
        if self._controller is not None:
            self._controller.cleanup()

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        self._controller = tune_controller
        live = tune_controller.get_live_trials()
        waiting = [trial for trial in live if trial.status == trial.PENDING]
        return min(waiting, key=attrgetter("trial_id"), default=None)


class _Curves(TBXLoggerCallback):
    """Ray's own logger, into a folder that is kept."""

    def __init__(self, folder: Path, tasks: Sequence[Task]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._folder, self._tasks = folder, tasks

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        return tune.Callback, ()  # as in _Told

    def close(self) -> None:
        """Close the files of trials that never ended."""
        for writer in self._trial_writer.values():
            writer.close()

    def log_trial_start(self, trial: Any) -> None:
        folder = self._folder / self._tasks[trial.config["task"]].job.id.replace(" ", "-")
        self._trial_writer[trial] = self._summary_writer_cls(str(folder), flush_secs=30)
        self._trial_result[trial] = {}


class _Told(tune.Callback):
    """Hands on to the watch what Tune tells, and keeps what went wrong; tasks by their places."""

    def __init__(self, tasks: Sequence[Task], watch: Watch) -> None:
        self._jobs, self._watch = [task.job for task in tasks], watch
        self.over: set[int] = set()
        self.lasted: dict[int, float] = {}
        """Seconds after which workers died."""
        self.failures: dict[int, Failure] = {}

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        # Tune writes its arguments to disk, to restore from. Nothing is restored from there.
        return tune.Callback, ()

    def on_step_begin(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        **_info: Any,
    ) -> None:
        self._watch.check()

    def on_trial_start(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        **_info: Any,
    ) -> None:
        self._watch.start(self._jobs[trial.config["task"]])

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **_info: Any,
    ) -> None:
        place = trial.config["task"]
        if "failure" in result:
            self.failures[place] = Failure(*result["failure"])
        if result["done"]:
            self.over.add(place)
            self._watch.end(self._jobs[place], failed=place in self.failures)
        elif "at" in result:
            self._watch.show(self._jobs[place], Report(result["at"], result["total"]))

    def on_trial_error(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        **_info: Any,
    ) -> None:
        place = trial.config["task"]
        self.lasted[place] = self._watch.seconds(self._jobs[place])
        self._watch.end(self._jobs[place], failed=True)


def _last_line(error: BaseException | None) -> str:
    lines = str(error or "no reason given").strip().splitlines()
    return lines[-1] if lines else "no reason given"
