"""What is tried again, and what is recorded of it: without Ray, by an executor of the test."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cf_core.errors import StudyBusyError
from cf_core.fusion import FusionSettings
from evaluation.rivals import Setting
from study.config import StudyConfig
from study.dispatch import Dispatcher, Task, Watch
from study.execution import Report, estimate_work
from study.lease import Lease
from study.ledger import Failure, Ledger, Status, list_failures
from study.packs import Rates
from study.progress import Reporter
from study.recording import record_over
from study.specs import Configuration, Job, PackSpec, TrialSpec, group_packs, plan_rivals
from study.store import Store

CONFIG = StudyConfig.model_validate(
    {"name": "s", "evaluation": {"lp": {"step_sizes": [0.1, 0.2], "iterations": [1, 5]}}}
)
TRIALS = [TrialSpec(Configuration(0.1, 0), seed) for seed in range(4)]
A, B, C, D = (trial.id for trial in TRIALS)
DIED, RAISED = Failure("the worker died: gone", died=True), Failure("ValueError: no", "Traceback x")

Behaviour = Callable[[Task], Failure | None]
"""What becomes of a task; parts that are to end well are recorded by the executor."""


class Scripted:
    """An executor that records all parts of a task as done, unless its script says otherwise."""

    def __init__(self, store: Store, bench: Any, script: Behaviour) -> None:
        self.store, self.bench, self.script = store, bench, script
        self.waves: list[list[list[str]]] = []

    def run(self, tasks: Sequence[Task], watch: Watch) -> list[Failure | None]:
        self.waves.append([[part.id for part in task.job.parts] for task in tasks])
        failures = []
        for task in tasks:
            watch.check()
            watch.start(task.job)
            failure = self.script(task)
            if failure is None:
                for part in task.job.parts:
                    self.finish(part, task)
            watch.end(task.job, failed=failure is not None)
            failures.append(failure)
        return failures

    def finish(self, part: TrialSpec | Setting, task: Task) -> None:
        attempt = task.attempts[part.id]
        record_over(part, Status.DONE, self.bench, self.store, attempt, steps=1)

    def measure_packs(self, trials: Sequence[TrialSpec]) -> Rates:
        raise AssertionError(trials)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "s")
    store.claim(CONFIG.identity("abc"), CONFIG.fingerprint("abc"), "s")
    return store


@pytest.fixture
def bench() -> Any:
    """What dispatching reads of a workbench."""
    sources = [
        SimpleNamespace(name=name, songs=np.zeros((100, 2), np.int64))
        for name in ("test", "validation")
    ]
    fusion = FusionSettings(scheme="poster", steps=50)
    return SimpleNamespace(
        fusion=fusion,
        plan=CONFIG.evaluation,
        sources=sources,
        fingerprint="f",
        compared_seed=None,
    )


def do(
    store: Store, bench: Any, script: Behaviour, jobs: Sequence[Job]
) -> tuple[Scripted, list[str]]:
    said: list[str] = []
    reporter = Reporter(Console(quiet=True))
    pytest.MonkeyPatch().setattr(reporter, "say", said.append)
    executor = Scripted(store, bench, script)
    with Lease(store.root) as lease, reporter:
        Dispatcher(executor, bench, store, reporter, lease).do(jobs)
    return executor, said


def packs(size: int, trials: Sequence[TrialSpec] = TRIALS) -> list[PackSpec]:
    return group_packs(trials, size, FusionSettings(steps=50))


def well(_: Task) -> None:
    return None


def statuses(store: Store) -> dict[str, Status]:
    return Ledger(store).list_statuses()


def test_all_is_done_once_and_nothing_twice(store: Store, bench: Any) -> None:
    rivals = plan_rivals(CONFIG.evaluation)
    executor, _ = do(store, bench, well, [*rivals, *packs(2)])
    # Packs come first: they take longest.
    assert executor.waves == [[[A, B], [C, D], ["lp-eta0.1", "lp-eta0.2"]]]
    assert set(statuses(store).values()) == {Status.DONE}
    executor, said = do(store, bench, well, [*packs(2), *rivals])
    assert executor.waves == []
    assert "6 of 6 are already done" in said


def test_a_job_whose_worker_dies_is_handed_out_once_more_as_it_is(store: Store, bench: Any) -> None:
    executor, _ = do(
        store, bench, lambda task: DIED if max(task.attempts.values()) == 1 else None, packs(4)
    )
    assert executor.waves == [[[A, B, C, D]], [[A, B, C, D]]]
    assert set(statuses(store).values()) == {Status.DONE}
    assert Ledger(store).count_attempts() == dict.fromkeys((A, B, C, D), 2)
    # What was made good is kept all the same.
    assert [f["reason"] for f in list_failures(store, A).to_dicts()] == [DIED.reason]


def test_a_pack_that_dies_twice_is_tried_trial_by_trial(store: Store, bench: Any) -> None:
    def script(task: Task) -> Failure | None:
        return DIED if B in task.attempts else None

    executor, said = do(store, bench, script, packs(4))
    alone = [[A], [B], [C], [D]]
    # Alone, B's worker dies once more and once again; then it is given up.
    assert executor.waves == [[[A, B, C, D]], [[A, B, C, D]], alone]
    assert statuses(store) == {
        A: Status.DONE, B: Status.FAILED, C: Status.DONE, D: Status.DONE
    }  # fmt: skip
    assert f"{B} failed: {DIED.reason}" in said
    assert len(list_failures(store, B)) == 3


def test_a_pack_that_raises_is_not_handed_out_again_as_it_is(store: Store, bench: Any) -> None:
    def script(task: Task) -> Failure | None:
        return RAISED if B in task.attempts else None

    executor, _ = do(store, bench, script, packs(2))
    assert executor.waves == [[[A, B], [C, D]], [[A], [B]]]
    assert statuses(store)[B] == Status.FAILED
    failures = list_failures(store, B).to_dicts()
    assert [(f["attempt"], f["traceback"]) for f in failures] == [
        (1, RAISED.traceback), (2, RAISED.traceback)
    ]  # fmt: skip


def test_what_came_to_its_end_before_a_pack_failed_is_not_repeated(
    store: Store, bench: Any
) -> None:
    executor: Scripted

    def script(task: Task) -> Failure | None:
        if task.attempts == dict.fromkeys((A, B), 1):
            record_over(TRIALS[0], Status.DONE, bench, store, 1, steps=1)
            return RAISED
        return None

    executor, _ = do(store, bench, script, packs(2, TRIALS[:2]))
    assert executor.waves == [[[A, B]], [[B]]]
    assert Ledger(store).count_attempts() == {A: 1, B: 2}
    assert list_failures(store, A).is_empty()


def test_what_failed_is_tried_again_by_the_next_run_by_itself(store: Store, bench: Any) -> None:
    do(store, bench, lambda task: RAISED if B in task.attempts else None, packs(4))
    assert statuses(store)[B] == Status.FAILED
    executor, said = do(store, bench, well, packs(4))
    assert executor.waves == [[[B]]]
    assert "3 of 4 are already done" in said
    assert set(statuses(store).values()) == {Status.DONE}


def test_all_settings_of_a_rival_are_tried_again_together(store: Store, bench: Any) -> None:
    def script(task: Task) -> Failure | None:
        if max(task.attempts.values()) == 1:
            (first, _) = task.job.parts
            record_over(first, Status.DONE, bench, store, 1, steps=1)
            return DIED
        return None

    executor, _ = do(store, bench, script, plan_rivals(CONFIG.evaluation))
    both = ["lp-eta0.1", "lp-eta0.2"]  # their random draws are one stream
    assert executor.waves == [[both], [both]]
    assert set(statuses(store).values()) == {Status.DONE}


def test_a_trial_that_lost_its_rows_is_made_again(store: Store, bench: Any) -> None:
    do(store, bench, well, packs(1))
    store.write("metrics", C, [], 1)
    row = store.trials.filter(trial=C).collect().to_dicts()[0]
    store.write("trials", C, [row | {"parts": "metrics"}], 1)
    (store.root / "metrics" / f"{C}.1.parquet").unlink()
    assert statuses(store)[C] == Status.FAILED
    executor, _ = do(store, bench, well, packs(1))
    assert executor.waves == [[[C]]]


def test_nothing_goes_on_once_another_run_has_the_study(store: Store, bench: Any) -> None:
    class Lost:
        def check(self) -> None:
            raise StudyBusyError("another run has it")

    executor = Scripted(store, bench, well)
    reporter = Reporter(Console(quiet=True))
    lost: Any = Lost()
    with reporter, pytest.raises(StudyBusyError):
        Dispatcher(executor, bench, store, reporter, lost).do(packs(1))
    assert statuses(store) == {}


def test_the_progress_of_all_counts_evaluation_too(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, rung = packs(2)[0], group_packs(TRIALS[:2], 2, bench.fusion, until=20)[0]
    # 50 steps of two trials, and two trials of 2 sources with 100 pairs at 5 iteration counts.
    assert estimate_work(pack, bench) == 2 * 50 + 2 * 2 * 15
    # Up to a rung, and there one source.
    assert estimate_work(rung, bench) == 2 * 20 + 2 * 15
    told: list[tuple[int, str]] = []
    reporter = Reporter(Console(quiet=True))
    lease: Any = SimpleNamespace(check=lambda: None)
    with ExitStack() as stack, reporter:
        watch = Watch(reporter, {pack.id: 160}, stack, lease)
        monkeypatch.setattr(watch._all, "update", lambda done, note="": told.append((done, note)))
        watch.show(pack, Report(100, 160, 50))
        watch.show(pack, Report(115, 160, 50))
        watch.end(pack, failed=False)
    assert [done for done, _ in told] == [100, 115, 160]
    assert told[0][1] == "0 finished, 1 running, of 1"
    assert told[-1][1] == "1 finished, 0 running, of 1"
