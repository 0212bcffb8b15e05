"""Which trials are trained together."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import study.packs as module
from cf_core.errors import UserError
from cf_core.fusion import FusionSettings, Latents
from study.config import Execution, StudyConfig, TrialSpec
from study.packs import planned_packs
from study.progress import Reporter
from study.store import Store
from tests.conftest import folder

TRIALS = [TrialSpec(weight, 0, 0) for weight in (0.1, 0.2, 0.3, 0.4, 0.5)]
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
    latents = Latents(mean, mean.abs(), torch.stack((rows, rows + 1), 1), torch.ones(4))
    return SimpleNamespace(latents=latents, fusion=FusionSettings(hidden=8, batch=4))


@pytest.fixture
def reporter() -> Iterator[Reporter]:
    with Reporter(Console(quiet=True)) as reporter:
        yield reporter


def names(packs: Sequence[Any]) -> list[list[str]]:
    return [[trial.id for trial in pack.trials] for pack in packs]


def test_packs_are_written_down_and_kept(store: Store, bench: Any, reporter: Reporter) -> None:
    first = planned_packs(TRIALS, bench, store, Execution(pack=2), reporter)
    assert names(first) == [NAMES[:2], NAMES[2:4], NAMES[4:]]
    record = json.loads((store.root / "packs.json").read_text())
    assert record["packs"] == names(first)
    assert planned_packs(TRIALS, bench, store, Execution(pack=5), reporter) == first
    assert planned_packs(TRIALS, bench, store, Execution(), reporter) == first


@pytest.mark.parametrize(
    ("rates", "workers", "size"),
    [
        ([10, 10.5, 11], 1, 1),  # no size is worth it
        ([10, 30, 60], 1, 4),
        ([10, 30, 31, 99], 1, 2),  # what comes after a size that is not worth it is not tried
        ([10, 30, 60], 2, 2),  # five trials for two workers: never more than three in one
        ([10, 30, 60], 5, 1),
    ],
)
def test_as_many_trials_as_are_faster_together(
    rates: list[float],
    workers: int,
    size: int,
    store: Store,
    bench: Any,
    reporter: Reporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = {2**power: rate for power, rate in enumerate(rates)}
    monkeypatch.setattr(module, "_rate", lambda trials, _bench: measured[len(trials)])
    packs = planned_packs(TRIALS, bench, store, Execution(workers=workers), reporter)
    assert len(packs[0].trials) == size
    record = json.loads((store.root / "packs.json").read_text())
    assert record["size"] == size
    assert record["trial_steps_per_second"][str(size)] == measured[size]


def test_a_pack_fits_into_memory(
    store: Store, bench: Any, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(module, "_rate", lambda trials, _bench: len(trials) ** 2)
    monkeypatch.setattr("study.packs.os.sysconf", lambda name: pages[name])
    packs = planned_packs(TRIALS, bench, store, Execution(workers=1), reporter)
    assert [len(pack.trials) for pack in packs] == [1] * 5


def test_a_rate_is_trial_steps_over_the_median_without_the_first(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    durations = [100.0, 1.0, 2.0, 3.0, 4.0, 50.0]
    clock = iter([time for seconds in durations for time in (0.0, seconds)])
    monkeypatch.setattr("study.packs.time.perf_counter", lambda: next(clock))
    assert module._rate(TRIALS[:4], bench) == 4 / 3


def test_what_failed_in_a_pack_is_tried_by_itself(
    store: Store, bench: Any, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned_packs(TRIALS, bench, store, Execution(pack=3), reporter)
    over = {NAMES[0]: "done", NAMES[1]: "failed", NAMES[2]: "diverged", NAMES[4]: "failed"}
    monkeypatch.setattr(Store, "done_trials", lambda _self: over)
    packs = planned_packs(TRIALS, bench, store, Execution(pack=3), reporter)
    assert names(packs) == [[NAMES[0], NAMES[2]], [NAMES[3]], [NAMES[1]], [NAMES[4]]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"packs": [["lambda0.1-style0-seed0"]]}',
        '{"packs": [["other"]], "size": 1}',
    ],
)
def test_a_record_of_other_trials_is_refused(
    text: str, store: Store, bench: Any, reporter: Reporter
) -> None:
    (folder(store) / "packs.json").write_text(text)
    with pytest.raises(UserError, match=r"packs\.json: does not hold this study's trials"):
        planned_packs(TRIALS, bench, store, Execution(), reporter)
