"""Which jobs are still to do, what is tried again, and what is told meanwhile. Knows no Ray."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from study.execution import Report, estimate_work
from study.lease import Lease
from study.ledger import Failure, Ledger, Status, is_over
from study.packs import Rates
from study.progress import Bar, Reporter
from study.recording import record_over
from study.specs import Job, PackSpec, TrialSpec
from study.store import Store
from study.workbench import Workbench, find_checkpoint


@dataclass(frozen=True)
class Task:
    """A job to be done now, and the number of this attempt at each of its parts."""

    job: Job
    attempts: Mapping[str, int]


class Executor(Protocol):
    """Runs tasks somewhere. `study.ray_executor` is the one that studies use."""

    def run(self, tasks: Sequence[Task], watch: "Watch") -> list[Failure | None]:
        """Run all tasks, the first first, and tell the watch; why each failed, None if it did not.

        A worker that goes away without a word is a `Failure` that `died`.
        """

    def measure_packs(self, trials: Sequence[TrialSpec]) -> Rates:
        """Measure packs of these trials where they are to be trained."""


class Dispatcher:
    """Has a study's jobs done that its records do not hold yet."""

    def __init__(
        self,
        executor: Executor,
        bench: Workbench,
        store: Store,
        reporter: Reporter,
        lease: Lease,
    ) -> None:
        self._executor, self._bench, self._store = executor, bench, store
        self._reporter, self._lease = reporter, lease
        self._ledger = Ledger(store)
        self.note = ""
        """What is told beside the progress of all jobs, such as how good they are so far."""

    def do(self, jobs: Sequence[Job]) -> None:
        """Do those jobs that are not over.

        A job whose worker dies is handed out once more as it is. Where that does not help, and
        where a pack fails or takes too long, each of its trials is tried by itself. What fails then
        is recorded as failed, and tried again by the next run. Every failure is kept.
        """
        todo, again = self._begin_with(jobs), set[Job]()
        while todo:
            attempts = self._ledger.begin(part.id for job in todo for part in job.parts)
            failures = self._run(todo, attempts)
            over, todo = self._ledger.find_over(attempts), []
            for job, failure in failures.items():
                left = [part for part in job.parts if not is_over(job, part.id, over)]
                if not left:
                    continue
                self._ledger.note_failure((part.id for part in left), failure, attempts)
                rest = job.only([part.id for part in left])
                if failure.died and job not in again:
                    todo.append(rest)
                elif len(job.alone) > 1:
                    todo += rest.alone
                else:
                    self._give_up(rest, failure, attempts)
                    continue
                self._reporter.say(f"{job.id}: {failure.reason}; tried again")
            again = set(todo)
        self._tidy(jobs)

    def _begin_with(self, jobs: Sequence[Job]) -> list[Job]:
        """What is left to do of these; what failed before, each by itself."""
        statuses, over = self._ledger.list_statuses(), self._ledger.find_over()
        failed = {name for name, status in statuses.items() if not status.is_final}
        todo: dict[Job, None] = {}
        for job in jobs:
            left = {part.id for part in job.parts if not is_over(job, part.id, over)}
            if fresh := left - failed:
                todo[job.only(fresh)] = None
            if retried := left & failed:
                todo |= dict.fromkeys(job.only(retried).alone)
        parts = sum(len(job.parts) for job in jobs)
        if done := parts - sum(len(job.parts) for job in todo):
            self._reporter.say(f"{done} of {parts} are already done")
        return list(todo)

    def _run(self, jobs: Sequence[Job], attempts: Mapping[str, int]) -> dict[Job, Failure]:
        """Hand jobs out until each is over, packs first; those that failed, and why."""
        ordered = sorted(jobs, key=lambda job: not isinstance(job, PackSpec))
        tasks = [Task(job, {part.id: attempts[part.id] for part in job.parts}) for job in ordered]
        work = {job.id: estimate_work(job, self._bench) for job in ordered}
        with ExitStack() as stack:
            watch = Watch(self._reporter, work, stack, self._lease, self.note)
            failures = self._executor.run(tasks, watch)
        found = zip(ordered, failures, strict=True)
        return {job: failure for job, failure in found if failure is not None}

    def _give_up(self, job: Job, failure: Failure, attempts: Mapping[str, int]) -> None:
        for part in job.parts:
            record_over(
                part, Status.FAILED, self._bench, self._store, attempts[part.id],
                reason=failure.reason,
            )  # fmt: skip
            self._reporter.say(f"{part.id} failed: {failure.reason}")

    def _tidy(self, jobs: Sequence[Job]) -> None:
        """Remove the checkpoints of packs that nothing can need any more."""
        over = self._ledger.find_over()
        for job in jobs:
            if isinstance(job, PackSpec) and all(is_over(job, t.id, over) for t in job.trials):
                find_checkpoint(self._store, job.checkpoint).unlink(missing_ok=True)


class Watch:
    """Shows the progress of each job and of all to the person at the keyboard."""

    def __init__(
        self,
        reporter: Reporter,
        work: Mapping[str, int],
        stack: ExitStack,
        lease: Lease,
        note: str = "",
    ) -> None:
        self._reporter, self._work, self._stack, self._lease = reporter, work, stack, lease
        self._note = note
        self._all = stack.enter_context(reporter.job("all jobs", sum(work.values())))
        self._bars: dict[str, Bar] = {}
        self._at = dict.fromkeys(work, 0)
        self._started: dict[str, float] = {}
        self._ended = self._failed = 0

    def check(self) -> None:
        """Raise `StudyBusyError` once another run has taken the study over; called all the time."""
        self._lease.check()

    def start(self, job: Job) -> None:
        """A worker has begun with a job."""
        self._started[job.id] = time.monotonic()

    def seconds(self, job: Job) -> float:
        """Since a worker began with the job; 0 if none has."""
        now = time.monotonic()
        return now - self._started.get(job.id, now)

    def show(self, job: Job, report: Report) -> None:
        """A worker has reported."""
        if job.id not in self._bars:
            self._bars[job.id] = self._stack.enter_context(self._reporter.job(job.id, None))
        self._at[job.id] = report.done
        self._bars[job.id].update(report.done, report.total)
        self._tell()

    def end(self, job: Job, *, failed: bool) -> None:
        """A worker is done with a job, or has failed at it, or died."""
        if job.id in self._bars:
            self._bars.pop(job.id).close()
        self._ended += 1
        self._failed += failed
        self._at[job.id] = self._work[job.id]
        self._tell()
        self._reporter.say(f"{job.id}: finished ({self._ended} of {len(self._work)})")

    def _tell(self) -> None:
        states = f"{self._ended} finished, {len(self._bars)} running, of {len(self._work)}"
        failed = f", {self._failed} failed" if self._failed else ""
        note = f"; {self._note}" if self._note else ""
        self._all.update(sum(self._at.values()), note=f"{states}{failed}{note}")
