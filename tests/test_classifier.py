"""Search classifier and judges."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cf_core.melody import FIRST_PITCH, MelodyFormat
from cf_core.nets import dropout, initialise
from cf_core.seeding import make_random
from cf_core.training import train
from evaluation.bootstrap import auc
from evaluation.judge import Judge, JudgeData, JudgeSettings, JudgeTrainer, ReaderSettings

FORM = MelodyFormat(bars_per_segment=1, lowest=60, highest=71)


def test_units_are_dropped_only_where_a_generator_is_given() -> None:
    x = torch.ones(200, 50)
    assert torch.equal(dropout(x, 0.3, None), x)
    dropped = dropout(x, 0.3, make_random(0, "drop"))
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert dropped[dropped > 0].unique().tolist() == pytest.approx([1 / 0.7])


def tokens(count: int, seed: int) -> torch.Tensor:
    drawn = np.random.default_rng(seed).integers(FIRST_PITCH, FORM.vocabulary, (count, FORM.steps))
    return torch.as_tensor(drawn)


SETTINGS = JudgeSettings(
    reader=ReaderSettings(latent_dim=16, hidden=64, embedding=16, steps=150, batch=64),
    members=2,
    hidden=64,
    steps=200,
    batch=48,
    dropout=0.1,
)


@pytest.mark.slow
def test_each_kind_of_pair_takes_its_part_of_a_batch() -> None:
    real = torch.full((8, FORM.steps), 2)
    data = JudgeData(real, real + 1, real[:5] + 2, torch.tensor([[0, 1], [6, 7]]))
    trainer = JudgeTrainer(data, FORM, replace(SETTINGS, batch=6), 0, "judge")
    rows = trainer._rows(make_random(0, "batch"))
    kinds = np.digitize(rows.numpy(), [8, 16])  # real, reconstructed, prior
    assert (kinds[:, 0] == kinds[:, 1]).all()
    assert kinds[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 2, 2]
    assert {tuple(row) for row in (rows[:6] % 8).tolist()} <= {(0, 1), (6, 7)}
    assert rows.max() < 21


@pytest.mark.slow
def test_a_judge_learns_what_is_adjacent_and_says_so_in_probabilities() -> None:
    # Real neighbours repeat each other; all else is unrelated.
    half = tokens(300, 0)
    real = torch.cat((half, half))
    rows = torch.arange(300)
    data = JudgeData(real, real, tokens(300, 1), torch.stack((rows, rows + 300), 1))
    trainer = JudgeTrainer(data, FORM, SETTINGS, 0, "judge")
    list(train(trainer, 350))
    unseen, other = tokens(200, 2).numpy(), tokens(200, 3).numpy()
    same = trainer.judge.probability(unseen, unseen)
    different = trainer.judge.probability(unseen, other)
    assert auc(same, different) > 0.9
    assert 0 <= different.min() <= same.max() <= 1


def test_the_reader_is_left_alone_once_the_committee_learns() -> None:
    real = tokens(60, 0)
    data = JudgeData(real, real, real, torch.tensor([[0, 1], [2, 3]]))
    settings = replace(SETTINGS, reader=replace(SETTINGS.reader, steps=3), steps=3)
    trainer = JudgeTrainer(data, FORM, settings, 0, "judge")
    steps = train(trainer, 3)
    next(steps)
    reader = {name: value.clone() for name, value in trainer.judge.reader.state_dict().items()}
    members = [weight.clone() for weight in trainer.judge.members.parameters()]
    next(steps)
    for name, value in trainer.judge.reader.state_dict().items():
        assert torch.equal(value, reader[name])
    assert not torch.equal(members[0], next(trainer.judge.members.parameters()))


def test_calibration_finds_the_scale_and_shift_that_were_hidden() -> None:
    random = np.random.default_rng(0)
    true = random.normal(0, 2, 200_000)
    adjacent = random.random(200_000) < 1 / (1 + np.exp(-true))
    shown = ((true - 1.5) / 0.5).astype(np.float32)  # true = 0.5 shown + 1.5
    judge = Judge(FORM, SETTINGS)
    judge.calibrate(shown[adjacent], shown[~adjacent])
    scale, shift = judge.get_buffer("calibration").tolist()
    assert (scale, shift) == pytest.approx((0.5, 1.5), rel=0.02)
    # A second calibration starts from what the first one made of the logits.
    judge.calibrate(true[adjacent].astype(np.float32), true[~adjacent].astype(np.float32))
    assert judge.get_buffer("calibration").tolist() == pytest.approx([0.5, 1.5], rel=0.03)


def test_calibration_of_separable_pairs_is_finite() -> None:
    judge = Judge(FORM, SETTINGS)
    judge.calibrate(np.full(20, 3.0, np.float32), np.full(20, -3.0, np.float32))
    scale, shift = judge.get_buffer("calibration").tolist()
    # By hand: both targets are met where σ(3 a + b) = 21/22 and σ(b - 3 a) = 1/22.
    assert (scale, shift) == pytest.approx((np.log(21) / 3, 0.0), abs=1e-3)


def test_chunks_change_nothing() -> None:
    judge = Judge(FORM, SETTINGS)
    initialise(judge, make_random(0, "judge"))
    left, right = tokens(2100, 0).numpy(), tokens(2100, 1).numpy()
    whole = judge.probability(left, right)
    np.testing.assert_allclose(
        whole[2040:2060], judge.probability(left[2040:2060], right[2040:2060]), rtol=1e-5
    )
