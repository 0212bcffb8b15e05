"""Resuming equals not having stopped, bit for bit, for everything that is trained."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cf_core.batches import Member
from cf_core.continuation import Continuation, ContinuationSettings, ContinuationTrainer
from cf_core.fusion import FusionSettings, Latents
from cf_core.melody import FIRST_PITCH, HOLD, MelodyFormat
from cf_core.nets import initialise
from cf_core.pack import PackTrainer
from cf_core.seeding import derive, make_random
from cf_core.training import (
    Progress,
    Trainer,
    load_tensors,
    save_tensors,
    train,
    use_huge_pages,
    warmup_cosine,
)
from cf_core.vae import VAESettings, VAETrainer
from evaluation.classifier import ClassifierSettings, ClassifierTrainer
from evaluation.judge import JudgeData, JudgeSettings, JudgeTrainer, ReaderSettings

FORM = MelodyFormat(bars_per_segment=1, lowest=60, highest=72)
STEPS = 7


def tokens(count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    drawn = random.integers(FIRST_PITCH, FORM.vocabulary, (count, FORM.steps))
    drawn[:, 1::2] = HOLD
    return drawn.astype(np.uint8)


def latents() -> Latents:
    random = make_random(0, "latents")
    return Latents(
        torch.randn(12, 4, generator=random),
        torch.rand(12, 4, generator=random),
        torch.stack((torch.arange(11), torch.arange(11) + 1), 1),
        torch.full((4,), 0.5),
        torch.zeros(12, 0),
    )


def vae(device: str = "cpu") -> Trainer:
    settings = VAESettings(latent_dim=3, hidden=8, embedding=4, steps=STEPS, batch=4)
    return VAETrainer(tokens(10), FORM, settings, 1, device)


def fusion() -> Trainer:
    trials = [
        Member(0.1, 2, seed=1, learning_rate=1e-3),
        Member(None, 0, seed=2, learning_rate=1e-3),
    ]
    return PackTrainer(latents(), FusionSettings(hidden=8, steps=STEPS, batch=4), trials)


def classifier(device: str = "cpu") -> Trainer:
    settings = ClassifierSettings(hidden=8, steps=STEPS, batch=4)
    return ClassifierTrainer(latents(), settings, 1, device)


def judge(device: str = "cpu") -> Trainer:
    real = torch.as_tensor(tokens(10))
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3]])
    hard = torch.stack((real, real), 1)
    data = JudgeData(real, real.roll(1, 0), real.roll(2, 0), pairs, hard)
    reader = ReaderSettings(latent_dim=4, hidden=8, embedding=4, steps=STEPS // 2, batch=6)
    settings = JudgeSettings(reader=reader, members=2, hidden=8, steps=STEPS - STEPS // 2, batch=6)
    second = Continuation(FORM, ContinuationSettings(hidden=4))
    initialise(second, make_random(0, "continuation"))
    return JudgeTrainer(data, second, FORM, settings, 1, "judge", device)


def continuation(device: str = "cpu") -> Trainer:
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3]])
    settings = ContinuationSettings(hidden=8, steps=STEPS, batch=4)
    given = torch.as_tensor(tokens(10))
    return ContinuationTrainer(given, pairs, FORM, settings, 1, device=device)


TRAINERS = [vae, fusion, classifier, judge, continuation]


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("make", TRAINERS)
@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(
    make: Callable[[], Trainer], stop: int, tmp_path: Path
) -> None:
    whole = make()
    reports = list(train(whole, 2))
    file = tmp_path / "checkpoint.safetensors"
    for progress in train(make(), 2, file):
        if progress.step == stop:
            break
    resumed = make()
    later = list(train(resumed, 2, file))
    assert [report.step for report in later] == [s for s in (2, 4, 6, 7) if s > stop]
    assert_equal(resumed.state(), whole.state())
    assert resumed.history == whole.history == reports


@pytest.mark.parametrize("make", TRAINERS)
def test_nothing_depends_on_draws_made_elsewhere(make: Callable[[], Trainer]) -> None:
    quiet, disturbed = make(), None
    list(train(quiet, STEPS))
    torch.manual_seed(99)
    disturbed = make()
    for _ in train(disturbed, 1):
        torch.rand(5)
        _ = disturbed.state()
    quiet.history, disturbed.history = [], []
    assert_equal(quiet.state(), disturbed.state())


def test_reports_are_means_over_the_steps_since_the_last() -> None:
    single = [report.losses for report in train(fusion(), 1)]
    grouped = next(train(fusion(), 4)).losses
    for name, values in grouped.items():
        means = [sum(each) / 4 for each in zip(*(one[name] for one in single[:4]), strict=True)]
        assert values == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize("make", TRAINERS)
def test_reports_have_one_number_for_each_trial(make: Callable[[], Trainer]) -> None:
    trials = 2 if make is fusion else 1
    report = next(train(make(), 2))
    assert {len(values) for values in report.losses.values()} == {trials}


def test_reports_know_the_most_memory_so_far_and_are_equal_without_it() -> None:
    # What the kernel itself says, in kB of 1024 bytes.
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    (peak,) = (line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line)
    report = next(train(fusion(), 2))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0.98 * int(peak) * 1024 <= report.peak_memory_mb * 1e6 <= physical
    assert report == Progress(report.step, report.total, report.losses)


def test_a_checkpoint_that_is_not_whole_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    trainer = fusion()
    next(train(trainer, 2, file))
    file.write_bytes(file.read_bytes()[:-10])
    assert load_tensors(file) is None
    fresh = fusion()
    assert next(train(fresh, 2, file)).step == 2


def test_an_interrupted_save_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.safetensors"
    save_tensors({"a": torch.ones(2)}, file)

    def fail(_tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("cf_core.training.save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        save_tensors({"a": torch.zeros(2)}, file)
    state = load_tensors(file)
    assert state is not None
    assert state["a"].tolist() == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_weights_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        save_tensors({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    finally:
        os.umask(umask)
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == 0o640


def test_seeds_differ_by_every_word_of_their_purpose() -> None:
    seeds = {
        derive(0, "a", 1),
        derive(1, "a", 1),
        derive(0, "b", 1),
        derive(0, "a", 2),
        derive(0, "a1"),
        derive(0, "a", 1, 0),
    }
    assert len(seeds) == 6
    assert derive(0, "a", 1) == derive(0, "a", 1)


def test_the_learning_rate_rises_then_falls() -> None:
    factors = [warmup_cosine(step, 1000, warmup=10) for step in range(1000)]
    assert factors[0] == pytest.approx(0.1, rel=1e-3)
    assert factors.index(max(factors)) in range(9, 12)
    assert factors[500] == pytest.approx(0.51)
    assert factors[-1] == pytest.approx(0.02, rel=1e-3)


def test_huge_pages_are_used_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"


@pytest.mark.slow
def test_imports_change_nothing_of_the_process() -> None:
    code = """
import os, torch
def state():
    return dict(os.environ), torch.get_num_threads()
before = state()
import cf_core; assert state() == before
import cf_core.pack; assert state() == before
import cf_core.fuse; assert state() == before
import evaluation.judge; assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)
