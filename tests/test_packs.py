"""Which trials are trained together."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import study.packs as module
from cf_core.errors import UserError
from cf_core.fusion import FusionSettings, Latents
from cf_core.graphs import WARM_UP
from study.config import Execution, StudyConfig
from study.execution import make_trainer
from study.packs import PackPlan, Rates, measure_packs, plan_packs
from study.progress import Reporter
from study.ray_executor import RayExecutor
from study.specs import Configuration, PackSpec, TrialSpec, group_packs
from study.store import Store
from tests.conftest import folder

TRIALS = [TrialSpec(Configuration(weight, 0), 0) for weight in (0.1, 0.2, 0.3, 0.4, 0.5)]
NAMES = [trial.id for trial in TRIALS]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    config = StudyConfig(name="s")
    store = Store(tmp_path / "s")
    store.claim(config.identity("abc"), config.fingerprint("abc"), "s")
    return store


@pytest.fixture
def bench() -> Any:
    """What choosing packs reads of a workbench."""
    random = torch.Generator().manual_seed(0)
    mean = torch.randn(20, 4, generator=random)
    rows = torch.arange(19)
    latents = Latents(
        mean, mean.abs(), torch.stack((rows, rows + 1), 1), torch.ones(4), mean[:, :0]
    )
    device = torch.device("cpu")
    made = SimpleNamespace(latents=latents, fusion=FusionSettings(hidden=8, batch=4), device=device)
    made.to = lambda _device: made
    return made


@pytest.fixture
def reporter() -> Iterator[Reporter]:
    with Reporter(Console(quiet=True)) as reporter:
        yield reporter


def names(packs: Sequence[PackSpec]) -> list[list[str]]:
    return [[trial.id for trial in pack.trials] for pack in packs]


def never(trials: Sequence[TrialSpec]) -> Rates:
    raise AssertionError(trials)


def test_the_size_is_written_down_and_kept(store: Store, bench: Any, reporter: Reporter) -> None:
    for pack in (2, 5, "auto"):
        execution = Execution(pack=pack)
        plan = plan_packs(TRIALS, bench.fusion, store, execution, never, reporter)
        assert plan == PackPlan(2, 1)
        assert json.loads((store.root / "packs.json").read_text())["size"] == 2


def test_the_fastest_is_taken_of_the_most_that_are_alike(
    store: Store, bench: Any, reporter: Reporter
) -> None:
    wide = [TrialSpec(Configuration(0.1, 0, (("hidden", 16),)), seed) for seed in range(6)]
    measured: list[Sequence[TrialSpec]] = []

    def measure(trials: Sequence[TrialSpec]) -> Rates:
        measured.append(trials)
        return {1: 10.0, 2: 30.0, 4: 20.0}

    trials = [*TRIALS, *wide]
    plan = plan_packs(trials, bench.fusion, store, Execution(workers=3), measure, reporter)
    assert plan == PackPlan(2, 3)
    assert [list(trials) for trials in measured] == [wide]
    record = json.loads((store.root / "packs.json").read_text())
    assert (record["size"], record["workers"]) == (2, 3)
    assert record["trial_steps_per_second"] == {"1": 10.0, "2": 30.0, "4": 20.0}


def test_nothing_is_measured_where_larger_packs_would_leave_workers_idle(
    store: Store, bench: Any, reporter: Reporter
) -> None:
    execution = Execution(workers=3)
    assert plan_packs(TRIALS, bench.fusion, store, execution, never, reporter) == PackPlan(1, 3)
    assert json.loads((store.root / "packs.json").read_text())["trial_steps_per_second"] == {}


def test_packs_hold_trials_of_one_shape_and_budget_in_their_order(bench: Any) -> None:
    changes: list[tuple[tuple[str, float], ...]] = [
        (),
        (("hidden", 16),),
        (("learning_rate", 1e-3),),
        (("steps", 9),),
        (("hidden", 8),),  # as the settings have it
        (("hidden", 16), ("learning_rate", 1e-3)),
        (),
    ]
    made = [TrialSpec(Configuration(0.1, 0, change), at) for at, change in enumerate(changes)]
    packs = group_packs(made, 2, bench.fusion, batch=3, start=5, until=7)
    places = [[trial.seed for trial in pack.trials] for pack in packs]
    assert places == [[0, 2], [4, 6], [1, 5], [3]]
    assert all(pack.wanted == pack.trials for pack in packs)
    assert {(pack.batch, pack.start, pack.until) for pack in packs} == {(3, 5, 7)}


def test_no_worker_idles_that_could_train(bench: Any) -> None:
    made = [TrialSpec(Configuration(0.1, 0), seed) for seed in range(4)]
    wide = [TrialSpec(Configuration(0.1, 0, (("hidden", 16),)), seed) for seed in range(2)]

    def sizes(trials: list[TrialSpec], size: int, workers: int) -> list[int]:
        packs = group_packs(trials, size, bench.fusion, workers)
        assert [trial for pack in packs for trial in pack.trials] == trials
        return [len(pack.trials) for pack in packs]

    assert sizes(made, 2, 2) == [2, 2]
    assert sizes(made, 2, 3) == [1, 1, 1, 1]
    assert sizes(made, 4, 2) == [3, 1]
    assert sizes(made, 4, 9) == [1, 1, 1, 1]
    # The wide ones make a pack of their own, which keeps a worker busy too.
    assert sizes(made + wide, 4, 2) == [4, 2]
    assert sizes(made + wide, 4, 3) == [3, 1, 2]
    assert sizes(made + wide, 8, 1) == [4, 2]


def test_a_pack_trains_each_trial_by_its_own_settings(bench: Any) -> None:
    one, other = (
        TrialSpec(Configuration(0.1, 0, (("hidden", 4), ("learning_rate", rate))), 0)
        for rate in (1e-3, 2e-3)
    )
    trainer = make_trainer([one, other], bench)
    assert [trial.learning_rate for trial in trainer.trials] == [1e-3, 2e-3]
    assert trainer.settings.hidden == 4
    assert trainer.steps == bench.fusion.steps
    assert make_trainer([one], bench, until=7).steps == 7


@pytest.mark.parametrize(
    ("rates", "workers", "tried"),
    [
        ([10, 10.5, 11], 1, 1),  # no size is worth it
        ([10, 30, 60], 1, 4),
        ([10, 30, 31, 99], 1, 2),  # what comes after a size that is not worth it is not tried
        ([10, 30, 60], 2, 2),  # five trials for two workers: four in one would leave one for two
        ([10, 30, 60], 5, 1),
    ],
)
def test_packs_grow_while_that_is_faster(
    rates: list[float],
    workers: int,
    tried: int,
    bench: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = {2**power: rate for power, rate in enumerate(rates)}
    monkeypatch.setattr(module, "_rate", lambda trials, *_: measured[len(trials)])
    found = measure_packs(TRIALS, bench, workers)
    assert found == {size: rate for size, rate in measured.items() if size <= tried}


def test_a_gpu_is_filled(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rates of an H100, in trial-steps per second; the last one is assumed."""
    rates = (623, 1082, 1955, 3496, 5370, 7710, 9185, 10399, 11182, 11647, 11700)
    measured = {2**power: float(rate) for power, rate in enumerate(rates)}
    trials = [TrialSpec(Configuration(0.1 + seed, 0), 0) for seed in range(1024)]
    monkeypatch.setattr(module, "_rate", lambda trials, *_: measured[len(trials)])
    bench.device = torch.device("cuda")
    found = measure_packs(trials, bench, 1)
    assert max(found) == 512
    assert found[512] > 0.95 * max(rates)


def test_a_pack_fits_into_memory(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(module, "_rate", lambda trials, *_: len(trials) ** 2)
    monkeypatch.setattr("study.packs.os.sysconf", lambda name: pages[name])
    assert max(measure_packs(TRIALS, bench, 1)) == 1
    # The memory of a GPU is another; what doesn't fit there is not tried twice.
    bench.device = torch.device("cuda")
    assert max(measure_packs(TRIALS, bench, 1)) == 4

    def full(trials: Sequence[TrialSpec], *_: Any) -> float:
        if len(trials) > 2:
            raise torch.OutOfMemoryError
        return len(trials) ** 2

    monkeypatch.setattr(module, "_rate", full)
    assert max(measure_packs(TRIALS, bench, 1)) == 2


def test_a_rate_is_trial_steps_over_the_median_without_the_first_ones(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    durations = [*[100.0] * WARM_UP, 1.0, 2.0, 3.0, 4.0, 50.0]
    clock = iter([time for seconds in durations for time in (0.0, seconds)])
    monkeypatch.setattr("study.packs.time.perf_counter", lambda: next(clock))
    assert module._rate(TRIALS[:4], bench) == 4 / 3


@pytest.mark.slow
def test_packs_are_measured_by_a_worker(store: Store, bench: Any, reporter: Reporter) -> None:
    none = TrialSpec(Configuration(0.1, 0, (("hidden", -1),)), 0)
    with closing(RayExecutor(bench, store, Execution(workers=1), reporter)) as executor:
        rates = executor.measure_packs(TRIALS[:2])
        with pytest.raises(
            UserError, match=r"can't be measured: .*above 0, got -1.*execution\.pack"
        ):
            executor.measure_packs([none])
    assert rates.keys() <= {1, 2}
    assert rates[1] > 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"size": "two"}'])
def test_a_damaged_record_is_refused(
    text: str, store: Store, bench: Any, reporter: Reporter
) -> None:
    (folder(store) / "packs.json").write_text(text)
    with pytest.raises(UserError, match=r"packs\.json: is damaged"):
        plan_packs(TRIALS, bench.fusion, store, Execution(), never, reporter)
