"""Jobs on Ray Tune: which are still to do, and who does them."""

import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
import torch
from ray import tune

from cf_core.errors import UserError
from cf_core.files import AnyPath
from study.config import Execution
from study.jobs import FINAL, Spec, Workbench, job_steps, record_failures, run_job
from study.progress import Job, Reporter
from study.store import Store


@contextmanager
def _cluster(execution: Execution) -> Iterator[None]:
    """The Ray cluster at the address, or one on this machine for the length of the context."""
    address = execution.address
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # Only the older of Tune's two outputs is silent at verbose=0.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Ctrl-C is ours: Tune's own handler would wait for the running steps.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
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
            ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        where = address or "this machine"
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"Ray at {where}: {reason}; check execution.address") from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str | None) -> None:
    """Raise `OSError` where nobody listens at an address; Ray itself would try for minutes."""
    place = urlsplit(address if address and "://" in address else f"//{address or ''}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=10).close()


def run_jobs(
    specs: Sequence[Spec], bench: Workbench, store: Store, execution: Execution, reporter: Reporter
) -> None:
    """Do those jobs that the study's records do not hold yet, on Ray Tune.

    The records are the only truth about what is done. Tune schedules; nothing is ever restored
    from its own state.
    """
    statuses = store.done_trials()
    over = {record for record, status in statuses.items() if status in FINAL}
    records = [part.id for spec in specs for part in spec.parts]
    todo = [spec for spec in specs if not over.issuperset(part.id for part in spec.parts)]
    if done := len(over.intersection(records)):
        reporter.say(f"{done} of {len(records)} are already done")
    if not todo:
        return
    earlier = store.attempts()
    attempts = {record: earlier.get(record, 0) + 1 for record in records}
    jobs = [
        {"spec": spec, "attempts": {part.id: attempts[part.id] for part in spec.parts}}
        for spec in todo
    ]
    with ExitStack() as stack:
        # Beside the records where that is a folder that all nodes of a cluster can write to.
        root = store.root.resolve()
        beside = root if isinstance(root, Path) else None
        folder = tempfile.TemporaryDirectory(prefix=".tune-", dir=beside)
        scratch = stack.enter_context(folder)
        stack.enter_context(_cluster(execution))
        watch = _Watch(reporter, {spec.id: job_steps(spec, bench) for spec in todo}, stack)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_Task, bench=bench, root=root), {"cpu": 1}),
            param_space={"job": tune.grid_search(jobs)},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=execution.workers),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                callbacks=[watch],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        results = tuner.fit()
    errors = [results[index].error if index < len(results) else None for index in range(len(todo))]
    died = {
        spec: f"the worker died: {_last_line(error)}"
        for spec, error in zip(todo, errors, strict=True)
    }
    record_failures(died, bench, store, attempts)


class _Task(tune.Trainable):
    """One job after another in one process."""

    def setup(  # type: ignore[override]  # how Tune hands over what with_parameters holds
        self, config: dict[str, Any], bench: Workbench, root: AnyPath
    ) -> None:
        torch.set_num_threads(1)
        self._bench, self._store = bench, Store(root)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        job = new_config["job"]
        self._work = run_job(job["spec"], self._bench, self._store, job["attempts"])
        return True

    def step(self) -> dict[str, Any]:
        try:
            progress = next(self._work, None)
        except Exception as error:  # noqa: BLE001  recorded by run_job; the worker lives on
            return {"done": True, "failure": str(error)}
        if progress is None:
            return {"done": True}
        return {"done": False, "at": progress.step, "total": progress.total}


class _Watch(tune.Callback):
    """Shows each job's progress to the person at the keyboard."""

    def __init__(self, reporter: Reporter, steps: Mapping[str, int], stack: ExitStack) -> None:
        self._reporter, self._steps, self._stack = reporter, steps, stack
        self._all = stack.enter_context(reporter.job("all jobs", sum(steps.values())))
        self._jobs: dict[str, Job] = {}
        self._at = dict.fromkeys(steps, 0)
        self._over: set[str] = set()

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        # Tune writes its arguments to disk, to restore from. Nothing is restored from there.
        return tune.Callback, ()

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **_info: Any,
    ) -> None:
        name = trial.config["job"]["spec"].id
        if name not in self._jobs:
            self._jobs[name] = self._stack.enter_context(self._reporter.job(name, None))
        if "failure" in result:
            self._reporter.say(f"{name} failed: {result['failure']}")
        if result["done"]:
            self._end(name)
        elif "at" in result:
            self._at[name] = result["at"]
            self._jobs[name].update(result["at"], result["total"])
            self._all.update(sum(self._at.values()))

    def on_trial_error(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        **_info: Any,
    ) -> None:
        self._end(trial.config["job"]["spec"].id)

    def _end(self, name: str) -> None:
        if name in self._jobs:
            self._jobs[name].close()
        self._over.add(name)
        self._at[name] = self._steps[name]
        self._all.update(sum(self._at.values()))
        self._reporter.say(f"{name}: over ({len(self._over)} of {len(self._steps)})")


def _last_line(error: BaseException | None) -> str:
    lines = str(error or "no reason given").strip().splitlines()
    return lines[-1] if lines else "no reason given"
