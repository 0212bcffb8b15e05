"""Search classifier and judges."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cf_core.continuation import Continuation, ContinuationSettings
from cf_core.melody import FIRST_PITCH, MelodyFormat
from cf_core.nets import dropout, initialise
from cf_core.seeding import make_random
from cf_core.training import train
from evaluation.bootstrap import auc
from evaluation.judge import (
    Judge,
    JudgeData,
    JudgeSettings,
    JudgeTrainer,
    ReaderSettings,
    fit_logistic,
)
from tests.arrays import lift

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


def second_opinion() -> Continuation:
    made = Continuation(FORM, ContinuationSettings(hidden=16))
    initialise(made, make_random(0, "continuation"))
    return made


def make_trainer(data: JudgeData, settings: JudgeSettings = SETTINGS) -> JudgeTrainer:
    return JudgeTrainer(data, second_opinion(), FORM, settings, 0, "judge")


@pytest.mark.slow
def test_each_kind_of_pair_takes_its_part_of_a_batch() -> None:
    real = torch.full((8, FORM.steps), 2)
    hard = torch.full((3, 2, FORM.steps), 5)
    data = JudgeData(real, real + 1, real[:5] + 2, torch.tensor([[0, 1], [6, 7]]), hard)
    rows = make_trainer(data, replace(SETTINGS, batch=12)).draw_rows(make_random(0, "batch"))
    kinds = np.digitize(rows.numpy(), [8, 16, 21])  # real, reconstructed, prior, hard
    assert (kinds[:, 0] == kinds[:, 1]).all()
    assert kinds[:, 0].tolist() == [0] * 4 + [1] * 8 + [0] + [1] * 3 + [2] * 2 + [3] * 6
    assert {tuple(row) for row in (rows[:12] % 8).tolist()} <= {(0, 1), (6, 7)}
    assert {tuple(row) for row in rows[-6:].tolist()} <= {(21, 22), (23, 24), (25, 26)}


@pytest.mark.slow
def test_a_judge_learns_what_is_adjacent_and_says_so_in_probabilities() -> None:
    # Real neighbours repeat each other, unless they are moved; all else is unrelated.
    half = tokens(300, 0)
    real = torch.cat((half, half))
    rows = torch.arange(300)
    hard = torch.stack((half, half.roll(1, 0)), 1)
    data = JudgeData(real, real, tokens(300, 1), torch.stack((rows, rows + 300), 1), hard)
    trainer = make_trainer(data)
    list(train(trainer, 350))
    unseen, other = tokens(200, 2), tokens(200, 3)
    same = trainer.judge.probability(unseen, unseen)
    different = trainer.judge.probability(unseen, other)
    assert auc(same.numpy(), different.numpy()) > 0.9
    assert 0 <= different.min() <= same.max() <= 1


@pytest.mark.slow
def test_the_committee_tells_unrelated_pairs_and_hard_negatives_apart() -> None:
    # Real neighbours repeat each other, and hard negatives do so backwards.
    half = tokens(300, 0)
    rows = torch.arange(300)
    real = torch.cat((half, half))
    hard = torch.stack((half, half.flip(1)), 1)
    data = JudgeData(real, real, tokens(300, 1), torch.stack((rows, rows + 300), 1), hard)
    trainer = make_trainer(data)
    list(train(trainer, 350))
    unseen, other = tokens(200, 2), tokens(200, 3)
    same, apart, turned = (
        trainer.judge.opinions(unseen, right)[:, :2] for right in (unseen, other, unseen.flip(1))
    )
    # Odds against unrelated pairs, then against hard negatives.
    assert auc(same[:, 0].numpy(), apart[:, 0].numpy()) > 0.9
    assert auc(same[:, 1].numpy(), turned[:, 1].numpy()) > 0.9
    assert auc(turned[:, 0].numpy(), apart[:, 0].numpy()) > auc(
        turned[:, 1].numpy(), apart[:, 1].numpy()
    )


def test_the_reader_is_left_alone_once_the_committee_learns() -> None:
    real = tokens(60, 0)
    hard = torch.stack((real, real), 1)
    data = JudgeData(real, real, real, torch.tensor([[0, 1], [2, 3]]), hard)
    trainer = make_trainer(
        data, replace(SETTINGS, reader=replace(SETTINGS.reader, steps=3), steps=3)
    )
    steps = train(trainer, 3)
    next(steps)
    reader = {name: value.clone() for name, value in trainer.judge.reader.state_dict().items()}
    members = [weight.clone() for weight in trainer.judge.members.parameters()]
    next(steps)
    for name, value in trainer.judge.reader.state_dict().items():
        assert torch.equal(value, reader[name])
    assert not torch.equal(members[0], next(trainer.judge.members.parameters()))


def test_neither_stage_changes_the_model_of_notes() -> None:
    real = tokens(60, 0)
    hard = torch.stack((real, real), 1)
    data = JudgeData(real, real, real, torch.tensor([[0, 1], [2, 3]]), hard)
    trainer = make_trainer(
        data, replace(SETTINGS, reader=replace(SETTINGS.reader, steps=2), steps=2)
    )
    list(train(trainer, 4))
    for name, value in second_opinion().state_dict().items():
        assert torch.equal(value, trainer.judge.continuation.state_dict()[name])


def test_logistic_regression_finds_the_weights_that_were_hidden() -> None:
    random = np.random.default_rng(0)
    features = random.normal((1, -20, 3), (2, 5, 0.1), (300_000, 3))
    logit = features @ (0.5, 0.1, -2.0) + 8.0
    is_positive = random.random(len(logit)) < 1 / (1 + np.exp(-logit))
    positive, negative = (torch.as_tensor(features[of]) for of in (is_positive, ~is_positive))
    # As many of each: the odds that the shift tells of are those of equal numbers.
    shift = 8.0 - np.log(len(positive) / len(negative))
    found = fit_logistic(positive, [(negative, 1.0)])
    assert found.tolist() == pytest.approx([0.5, 0.1, -2.0, shift], rel=0.05)
    # A kind in two parts whose shares are as their sizes is one kind.
    parts = [(part, float(len(part))) for part in negative.split(len(negative) // 4 + 1)]
    assert fit_logistic(positive, parts).tolist() == pytest.approx(found.tolist(), rel=1e-4)


def test_logistic_regression_of_separable_pairs_is_finite() -> None:
    positive, negative = (torch.full((20, 1), x, dtype=torch.float64) for x in (3.0, -3.0))
    # By hand: both targets are met where σ(3 a + b) = 21/22 and σ(b - 3 a) = 1/22.
    assert fit_logistic(positive, [(negative, 1.0)]).tolist() == pytest.approx(
        (np.log(21) / 3, 0.0), abs=1e-3
    )


def make_judge() -> Judge:
    judge = Judge(FORM, SETTINGS, second_opinion())
    initialise(judge.members, make_random(0, "judge"))
    return judge


def test_the_logit_is_a_weighted_sum() -> None:
    judge, left, right = make_judge(), tokens(30, 0), tokens(30, 1)
    weights = torch.tensor([0.7, 0.6, 0.2, -0.3, 0.05, 0.4])
    judge.get_buffer("calibration").copy_(weights)
    judge.get_buffer("usual").copy_(torch.tensor([1.0, 2.0]))
    mean = [
        judge.reader.encode_mean(half.numpy()).expand(SETTINGS.members, -1, -1)
        for half in (left, right)
    ]
    rated = judge.rate(mean[0], mean[1]).detach()
    adjacent, unrelated, hard = rated.log_softmax(2).mean(0).unbind(1)
    rate = judge.continuation.log_probability
    alone = rate(right, None)
    ratio = rate(right, left) - alone
    assert (ratio < 1).any()
    assert (ratio > 2).any()
    below, above = (ratio - 1).clamp(max=0), (ratio - 2).clamp(min=0)  # of what is usual
    committee = 0.7 * (adjacent - unrelated) + 0.6 * (adjacent - hard)
    expected = committee + 0.2 * below - 0.3 * above + 0.05 * alone + 0.4
    found = judge.logits(left, right)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)


def test_calibration_makes_probabilities_of_adjacent_among_unpaired() -> None:
    """Hard negatives say how opinions are weighed, but not how likely a pair is to be adjacent."""
    judge = make_judge()
    half, others, more = (tokens(600, seed).numpy() for seed in range(3))
    adjacent = (half, np.concatenate((half[:300], others[300:])))
    unpaired, hard = (others, more), (half, half[::-1].copy())
    judge.calibrate(adjacent, unpaired, {"repeat": hard})
    found = [float(judge.probability(*lift(*pairs)).mean()) for pairs in (adjacent, unpaired)]
    # The shift of a logistic regression makes mean probabilities equal to shares.
    assert sum(found) == pytest.approx(1, abs=0.01)
    assert found[0] > found[1]


def test_chunks_change_nothing() -> None:
    judge = make_judge()
    left, right = tokens(2100, 0), tokens(2100, 1)
    whole = judge.probability(left, right)
    np.testing.assert_allclose(
        whole[2040:2060], judge.probability(left[2040:2060], right[2040:2060]), rtol=1e-5
    )
