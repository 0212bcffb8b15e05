"""Jobs on Ray Tune: which are still to do, who does them, and what is tried again."""

import faulthandler
import resource
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import polars as pl
import ray
import torch
from ray import tune
from ray.exceptions import RayError
from ray.tune.logger import TBXLoggerCallback
from ray.tune.schedulers import FIFOScheduler

from cf_core.errors import ClusterError, UserError
from cf_core.training import Progress
from study.cluster import connected, lacking
from study.config import Execution, StageResources, TrialSpec
from study.jobs import (
    FINAL,
    PackSpec,
    Spec,
    Workbench,
    described,
    job_steps,
    record_over,
    run_job,
)
from study.lease import Lease
from study.packs import Rates, pack_rates
from study.progress import Job, Reporter
from study.store import Store


@dataclass(frozen=True)
class _Failure:
    """Why a job did not come to its end."""

    reason: str
    died: bool
    """Whether its worker went away without a word, so that the machine may be at fault."""


_Job = tuple[Spec, Mapping[str, int]]
"""What is to be done, and the number of this attempt at each of its parts."""


class Workers:
    """Those who do a study's jobs, on the Ray cluster at an address or on one of this machine.

    To be closed. A local Ray is started when there is a first job to do.
    """

    def __init__(
        self,
        bench: Workbench,
        store: Store,
        execution: Execution,
        reporter: Reporter,
        lease: Lease,
    ) -> None:
        self._bench, self._store, self._execution = bench, store, execution
        self._reporter, self._lease = reporter, lease
        self.note = ""
        """What is told beside the progress of all jobs, such as how good they are so far."""
        self._stack = ExitStack()
        self._shared: ray.ObjectRef | None = None

    def close(self) -> None:
        """Stop Ray, or leave its cluster."""
        self._stack.close()

    def pack_rates(self, trials: Sequence[TrialSpec]) -> Rates:
        """Measure packs of these trials on one worker, as `study.packs.pack_rates` does.

        Raises `UserError` where that can't be done.
        """
        stage = self._execution.resources.trials
        task = ray.remote(num_cpus=stage.cpu, num_gpus=stage.gpu)(_pack_rates)
        try:
            rates: Rates = ray.get(task.remote([self._start()], trials))
        except RayError as error:
            raise UserError(
                f"how many trials make a pack can't be measured: {_last_line(error)}; give a number"
                " in execution.pack"
            ) from error
        return rates

    def do(self, specs: Sequence[Spec]) -> None:
        """Do those jobs that the study's records do not hold yet.

        The records are the only truth about what is done. Tune schedules; nothing is ever restored
        from its own state. A job whose worker dies is handed out once more as it is. Where that
        does not help, and where a pack fails or takes too long, each of its trials is tried by
        itself; what fails then is recorded as failed, and tried again by the next run.
        """
        todo, again = self._to_begin_with(specs), set[Spec]()
        while todo:
            attempts = self._hand_out(todo)
            failures = self._wave(todo, attempts)
            over, todo = self._over(attempts), []
            for spec, failure in failures.items():
                left = [part for part in spec.parts if not _is_over(spec, part.id, over)]
                if not left:
                    continue
                rest = spec.only([part.id for part in left])
                if failure.died and spec not in again:
                    todo.append(rest)
                elif len(rest.alone) > 1:
                    todo += rest.alone
                else:
                    self._record(left, failure, attempts)
                    continue
                self._reporter.say(f"{spec.id}: {failure.reason}; tried again")
            again = set(todo)
        self._tidy(specs)

    def _to_begin_with(self, specs: Sequence[Spec]) -> list[Spec]:
        """What is left to do of these; what failed before, each by itself."""
        statuses, over = self._store.done_trials(), self._over({})
        failed = {name for name, status in statuses.items() if status not in FINAL}
        todo: dict[Spec, None] = {}
        for spec in specs:
            left = {part.id for part in spec.parts if not _is_over(spec, part.id, over)}
            if fresh := left - failed:
                todo[spec.only(fresh)] = None
            if retried := left & failed:
                todo |= dict.fromkeys(spec.only(retried).alone)
        parts = sum(len(spec.parts) for spec in specs)
        if done := parts - sum(len(spec.parts) for spec in todo):
            self._reporter.say(f"{done} of {parts} are already done")
        return list(todo)

    def _hand_out(self, specs: Sequence[Spec]) -> dict[str, int]:
        """Write down what is about to be tried: how often, with this time."""
        earlier = self._store.tried()
        ids = [part.id for spec in specs for part in spec.parts]
        attempts = {name: earlier.get(name, 0) + 1 for name in ids}
        last = self._store.attempts.select(pl.col("wave").max()).collect().item()
        wave, now = (last or 0) + 1, datetime.now(UTC)
        rows = [
            {"wave": wave, "trial": name, "attempt": attempt, "started_at": now}
            for name, attempt in attempts.items()
        ]
        self._store.write("attempts", f"wave{wave:05d}", rows)
        return attempts

    def _over(self, attempts: Mapping[str, int]) -> set[tuple[str, int | None]]:
        """What came to its end: trials and settings, and trials at rungs.

        What failed counts only if that was in one of `attempts`.
        """
        rows = self._store.ledger().select("trial", "status", "attempt")
        over: set[tuple[str, int | None]] = {
            (name, None)
            for name, status, attempt in rows.iter_rows()
            if status in FINAL or attempts.get(name) == attempt
        }
        rungs = self._store.rungs.select("trial", "rung").unique().collect()
        return over | {(name, rung) for name, rung in rungs.iter_rows()}

    def _record(self, parts: Sequence[Any], failure: _Failure, attempts: Mapping[str, int]) -> None:
        for part in parts:
            outcome = {"status": "failed", "reason": failure.reason}
            record_over(part, outcome, self._bench, self._store, attempts[part.id])
            self._reporter.say(f"{part.id} failed: {failure.reason}")

    def _tidy(self, specs: Sequence[Spec]) -> None:
        """Remove the checkpoints of packs that nothing can need any more."""
        over = self._over({})
        for spec in specs:
            if isinstance(spec, PackSpec) and all(
                _is_over(spec, trial.id, over) for trial in spec.trials
            ):
                spec.checkpoint(self._store).unlink(missing_ok=True)

    def _wave(self, specs: Sequence[Spec], attempts: Mapping[str, int]) -> dict[Spec, _Failure]:
        """Hand jobs to workers until each is over; what did not come to its end, and why."""
        specs = sorted(specs, key=lambda spec: not isinstance(spec, PackSpec))
        with ExitStack() as stack:
            # Beside the records where that is a folder: there is more room than in /tmp.
            root = self._store.root.resolve()
            beside = root if isinstance(root, Path) else None
            folder = tempfile.TemporaryDirectory(prefix=".tune-", dir=beside)
            scratch = stack.enter_context(folder)
            task = self._task(specs, attempts)
            steps = {spec.id: job_steps(spec, self._bench) for spec in specs}
            watch = _Watch(self._reporter, steps, stack, self._lease, self.note)
            tuner = tune.Tuner(
                task,
                param_space={"job": tune.grid_search(list(range(len(specs))))},
                tune_config=tune.TuneConfig(
                    reuse_actors=True,
                    max_concurrent_trials=self._execution.workers,
                    scheduler=_InOrder(),  # type: ignore[no-untyped-call]
                ),
                run_config=tune.RunConfig(
                    storage_path=scratch,
                    verbose=0,
                    callbacks=[watch, *self._curves(specs, stack)],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            try:
                results = tuner.fit()
            except tune.TuneError as stopped:
                raise UserError(
                    f"Ray Tune stopped: {_last_line(stopped)}; give the same command again"
                ) from stopped
        errors = [results[at].error if at < len(results) else None for at in range(len(specs))]
        failures = {
            spec: self._failure(spec, error, watch)
            for spec, error in zip(specs, errors, strict=True)
        }
        return {spec: failure for spec, failure in failures.items() if failure is not None}

    def _task(self, specs: Sequence[Spec], attempts: Mapping[str, int]) -> Any:
        """What Tune runs: a job, known by its place among `specs`, packs before rivals.

        Tune copies all that its jobs are known by, and all that tells their needs, for each job.
        """
        packs = sum(isinstance(spec, PackSpec) for spec in specs)
        jobs = [(spec, {part.id: attempts[part.id] for part in spec.parts}) for spec in specs]
        return tune.with_resources(
            tune.with_parameters(_Task, shared=[self._start()], jobs=jobs),
            partial(_needs, self._execution.resources, packs),
        )

    def _failure(self, spec: Spec, error: BaseException | None, watch: "_Watch") -> _Failure | None:
        """Why a job did not come to its end; None if it did."""
        if spec.id in watch.failures:
            return _Failure(watch.failures[spec.id], died=False)
        if error is None and spec.id in watch.over:
            return None
        limit = _limit(self._execution, spec)
        if limit is not None and watch.lasted.get(spec.id, 0.0) >= limit:
            return _Failure(f"it took longer than {limit:g} s", died=False)
        return _Failure(f"the worker died: {_last_line(error)}", died=True)

    def _curves(self, specs: Sequence[Spec], stack: ExitStack) -> list[tune.Callback]:
        """TensorBoard's files, where the results are in a local folder."""
        root = self._store.root.resolve()
        if not isinstance(root, Path):
            return []
        curves = _Curves(root / "tensorboard", specs)
        stack.callback(curves.close)
        return [curves]

    def _start(self) -> ray.ObjectRef:
        """Start Ray if that is not done yet, and put there once what all jobs share."""
        if self._shared is None:
            self._stack.enter_context(connected(self._execution))
            if lack := lacking(self._execution.resources):
                if self._execution.address is None:
                    raise ClusterError(
                        f"{lack}; ask for less, or give execution.address a Ray that has it"
                    )
                self._reporter.say(f"{lack}; waiting for one")
            self._shared = ray.put((self._bench, self._store.root.resolve(), self._execution))
        return self._shared


def _needs(
    stages: StageResources, packs: int, config: Mapping[str, Any]
) -> tune.PlacementGroupFactory:
    stage = stages.trials if config["job"] < packs else stages.rivals
    return tune.PlacementGroupFactory([{"CPU": stage.cpu, "GPU": stage.gpu}])


def _limit(execution: Execution, spec: Spec) -> float | None:
    """Seconds that a job may take."""
    each = execution.trial_seconds
    return None if each is None else each * len(spec.parts)


def _is_over(spec: Spec, part: str, over: Collection[tuple[str, int | None]]) -> bool:
    """Whether a part came to its end, or to that of a job that ends at a rung."""
    return (part, None) in over or (isinstance(spec, PackSpec) and (part, spec.until) in over)


def _device() -> str:
    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


def _pack_rates(shared: list[ray.ObjectRef], trials: Sequence[TrialSpec]) -> Rates:
    torch.set_num_threads(1)
    bench, _, execution = ray.get(shared[0])
    return pack_rates(trials, bench, execution.workers, _device())


class _Task(tune.Trainable):
    """One job after another in one process."""

    def setup(  # type: ignore[override]  # how Tune hands over what with_parameters holds
        self, config: dict[str, Any], shared: list[ray.ObjectRef], jobs: Sequence[_Job]
    ) -> None:
        torch.set_num_threads(1)
        self._jobs = jobs
        self._bench, root, self._execution = ray.get(shared[0])
        self._store = Store(root)
        self._device = _device()
        if self._execution.memory_gb is not None:
            most = int(self._execution.memory_gb * 1e9)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._work = self._guarded(*self._jobs[new_config["job"]])
        return True

    def step(self) -> dict[str, Any]:
        try:
            progress = next(self._work, None)
        except Exception as error:  # noqa: BLE001  told, and recorded by the driver
            return {"done": True, "failure": described(error)}
        if progress is None:
            return {"done": True}
        losses = {
            f"{name}/{place}": value
            for name, values in progress.losses.items()
            for place, value in enumerate(values)
        }
        return {
            "done": False,
            "at": progress.step,
            "total": progress.total,
            "timesteps_total": progress.step,
            **losses,
        }

    def _guarded(self, spec: Spec, attempts: Mapping[str, int]) -> Iterator[Progress]:
        """Do a job; end the process if that takes too long, whatever it is doing then."""
        limit = _limit(self._execution, spec)
        if limit is not None:
            faulthandler.dump_traceback_later(limit, exit=True)
        try:
            yield from run_job(spec, self._bench, self._store, attempts, self._device)
        finally:
            faulthandler.cancel_dump_traceback_later()


class _InOrder(FIFOScheduler):
    """Tune's own looks each time through all jobs there ever were."""

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        live = tune_controller.get_live_trials()
        waiting = [trial for trial in live if trial.status == trial.PENDING]
        return min(waiting, key=attrgetter("trial_id"), default=None)


class _Curves(TBXLoggerCallback):
    """Ray's own logger, into a folder that is kept."""

    def __init__(self, folder: Path, specs: Sequence[Spec]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._folder, self._specs = folder, specs

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        return tune.Callback, ()  # as in _Watch

    def close(self) -> None:
        """Close the files of trials that never ended."""
        for writer in self._trial_writer.values():
            writer.close()

    def log_trial_start(self, trial: Any) -> None:
        folder = self._folder / self._specs[trial.config["job"]].id.replace(" ", "-")
        self._trial_writer[trial] = self._summary_writer_cls(str(folder), flush_secs=30)
        self._trial_result[trial] = {}


class _Watch(tune.Callback):
    """Shows each job's progress to the person at the keyboard, and keeps what went wrong."""

    def __init__(
        self,
        reporter: Reporter,
        steps: Mapping[str, int],
        stack: ExitStack,
        lease: Lease,
        note: str,
    ) -> None:
        self._reporter, self._steps, self._stack, self._lease = reporter, steps, stack, lease
        self._note = note
        self._all = stack.enter_context(reporter.job("all jobs", sum(steps.values())))
        self._jobs: dict[str, Job] = {}
        self._names = list(steps)
        self._at = dict.fromkeys(steps, 0)
        self._ended = 0
        self._started: dict[str, float] = {}
        self.over: set[str] = set()
        self.lasted: dict[str, float] = {}
        """Seconds after which workers died, by job."""
        self.failures: dict[str, str] = {}

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        # Tune writes its arguments to disk, to restore from. Nothing is restored from there.
        return tune.Callback, ()

    def on_step_begin(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        **_info: Any,
    ) -> None:
        self._lease.check()

    def on_trial_start(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        **_info: Any,
    ) -> None:
        self._started[self._names[trial.config["job"]]] = time.monotonic()

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **_info: Any,
    ) -> None:
        name = self._names[trial.config["job"]]
        if name not in self._jobs:
            self._jobs[name] = self._stack.enter_context(self._reporter.job(name, None))
        if "failure" in result:
            self.failures[name] = result["failure"]
        if result["done"]:
            self.over.add(name)
            self._end(name)
        elif "at" in result:
            self._at[name] = result["at"]
            self._jobs[name].update(result["at"], result["total"])
            self._tell()

    def on_trial_error(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        **_info: Any,
    ) -> None:
        name = self._names[trial.config["job"]]
        now = time.monotonic()
        self.lasted[name] = now - self._started.get(name, now)
        self._end(name)

    def _end(self, name: str) -> None:
        if name in self._jobs:
            self._jobs.pop(name).close()
        self._ended += 1
        self._at[name] = self._steps[name]
        self._tell()
        self._reporter.say(f"{name}: over ({self._ended} of {len(self._steps)})")

    def _tell(self) -> None:
        states = f"{self._ended} over, {len(self._jobs)} running, of {len(self._steps)}"
        failed = f", {len(self.failures)} failed" if self.failures else ""
        note = f"; {self._note}" if self._note else ""
        self._all.update(sum(self._at.values()), note=f"{states}{failed}{note}")


def _last_line(error: BaseException | None) -> str:
    lines = str(error or "no reason given").strip().splitlines()
    return lines[-1] if lines else "no reason given"
