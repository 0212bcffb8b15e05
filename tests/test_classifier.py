"""Search classifier and judges."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat
from cf_core.nets import dropout, initialise
from cf_core.seeding import generator
from cf_core.training import train
from evaluation.classifier import auc
from evaluation.judge import Judge, JudgeData, JudgeSettings, JudgeTrainer, sounding_pitch

FORM = MelodyFormat(bars_per_segment=1, lowest=60, highest=71)
scores = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@given(scores, scores)
def test_auc_is_the_share_of_pairs_in_order(positive: list[int], negative: list[int]) -> None:
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in product(positive, negative)]
    expected = sum(wins) / len(wins)
    assert auc(np.array(positive, float), np.array(negative, float)) == pytest.approx(expected)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=10))
def test_the_sounding_pitch_is_that_of_the_last_onset(row: list[int]) -> None:
    expected, last = [], REST
    for token in row:
        last = last if token == HOLD else token
        expected.append(last if last >= FIRST_PITCH else 0)
    assert sounding_pitch(torch.tensor([row]))[0].tolist() == expected


def test_units_are_dropped_only_where_a_generator_is_given() -> None:
    x = torch.ones(200, 50)
    assert torch.equal(dropout(x, 0.3, None), x)
    dropped = dropout(x, 0.3, generator(0, "drop"))
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert dropped[dropped > 0].unique().tolist() == pytest.approx([1 / 0.7])


def tokens(count: int, seed: int) -> torch.Tensor:
    drawn = np.random.default_rng(seed).integers(FIRST_PITCH, FORM.vocabulary, (count, FORM.steps))
    return torch.as_tensor(drawn)


def test_each_kind_of_pair_takes_its_part_of_a_batch() -> None:
    real = torch.full((8, FORM.steps), 2)
    data = JudgeData(real, real + 1, real + 2, torch.tensor([[0, 1]]))
    trainer = JudgeTrainer(data, FORM, JudgeSettings(hidden=8, batch=6), 0, "judge")
    left, right = trainer._draw(generator(0, "batch"))
    kinds = left[:, 0].tolist()
    assert kinds == [2, 2, 3, 3, 3, 3, 2, 2, 3, 3, 4, 4]
    assert torch.equal(left, right)


def test_a_judge_learns_what_is_adjacent_and_says_so_in_probabilities() -> None:
    # Real neighbours repeat each other; all else is unrelated.
    half = tokens(300, 0)
    real = torch.cat((half, half))
    rows = torch.arange(300)
    data = JudgeData(real, real, tokens(300, 1), torch.stack((rows, rows + 300), 1))
    settings = JudgeSettings(hidden=64, steps=250, batch=48, dropout=0.1)
    trainer = JudgeTrainer(data, FORM, settings, 0, "judge")
    list(train(trainer, 250))
    unseen, other = tokens(200, 2).numpy(), tokens(200, 3).numpy()
    same = trainer.judge.probability(unseen, unseen)
    different = trainer.judge.probability(unseen, other)
    assert auc(same, different) > 0.9
    assert 0 <= different.min() <= same.max() <= 1


def test_chunks_change_nothing() -> None:
    judge = Judge(FORM, JudgeSettings(hidden=8))
    initialise(judge, generator(0, "judge"))
    left, right = tokens(2100, 0).numpy(), tokens(2100, 1).numpy()
    whole = judge.probability(left, right)
    np.testing.assert_allclose(
        whole[2040:2060], judge.probability(left[2040:2060], right[2040:2060]), rtol=1e-5
    )
