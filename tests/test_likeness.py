"""Outputs are told from real neighbours by features of their notes, on songs not fitted to."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat
from evaluation import likeness
from evaluation.bootstrap import auc
from evaluation.likeness import FOLDS, RealNeighbours, describe_pairs, find_seams
from tests.arrays import lift

FORM = MelodyFormat(bars_per_segment=1, lowest=60, highest=83)
STEPS = FORM.steps
TOKENS = arrays.arrays(np.uint8, (3, STEPS), elements=st.integers(REST, FORM.vocabulary - 1))


def heard(row: np.ndarray) -> tuple[list[int], list[tuple[int, int]]]:
    """The pitch at each step (-1 for none), and the notes as (step, pitch), one by one."""
    pitch, now, notes = [], -1, []
    for step, token in enumerate(row.tolist()):
        if token >= FIRST_PITCH:
            now = token - FIRST_PITCH + FORM.lowest
            notes.append((step, now))
        elif token == REST:
            now = -1
        pitch.append(now)
    return pitch, notes


def slowly(row: np.ndarray) -> list[float]:
    """The features of one half, written out."""
    pitch, notes = heard(row)
    count = max(1, len(notes))
    mean = sum(p for _, p in notes) / count
    follow = list(itertools.pairwise(notes))
    steps = [b[1] - a[1] for a, b in follow]
    intervals = [steps.count(k) / count for k in range(-12, 13)]
    intervals.append(sum(abs(k) > 12 for k in steps) / count)
    waits = [b[0] - a[0] for a, b in follow]
    classes = [sum(p >= 0 and p % 12 == k for p in pitch) / STEPS for k in range(12)]
    major = (0, 2, 4, 5, 7, 9, 11)
    scales = [sum(classes[(k + m) % 12] for m in major) for k in range(12)]
    struck = [token >= FIRST_PITCH for token in row.tolist()]
    half = STEPS // 2
    single = [
        max(scales),
        sum(p >= 0 for p in pitch) / STEPS,
        mean,
        count,
        max(p for _, p in notes) - min(p for _, p in notes) if notes else 0,
        STEPS - 1 - (notes[-1][0] if notes else 0),
        sum(a == b for a, b in zip(struck[:half], struck[half:], strict=True)) / half,
    ]
    return [
        *map(float, struck),
        *(p - mean if p >= 0 else 0.0 for p in pitch),
        *intervals,
        *(waits.count(n) / count for n in (1, 2, 3, 4, 6, 8, 12)),
        *sorted(classes),
        *single,
    ]


@settings(max_examples=40)
@given(TOKENS, TOKENS)
def test_features_of_halves_written_out(left: np.ndarray, right: np.ndarray) -> None:
    features, halves = describe_pairs(lift(left, right), FORM)
    expected = [slowly(a) + slowly(b) for a, b in zip(left, right, strict=True)]
    assert halves == len(expected[0])
    np.testing.assert_allclose(features[:, :halves], expected, atol=1e-9)
    assert features.isfinite().all()


@settings(max_examples=40)
@given(TOKENS, TOKENS)
def test_seams_written_out(left: np.ndarray, right: np.ndarray) -> None:
    expected = []
    for a, b in zip(left, right, strict=True):
        before, after = heard(a)[1], heard(b)[1]
        interval = after[0][1] - before[-1][1] if before and after else -14
        expected.append(max(-13, min(13, interval)) + 13 if before and after else -1)
    assert find_seams(lift(left, right), FORM).tolist() == expected


def tunes(
    random: np.random.Generator, rows: int, base: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Segments in a register of their own, and the register."""
    base = random.integers(4, 16, rows) if base is None else base
    tokens = np.full((rows, STEPS), HOLD)
    for step in range(0, STEPS, 2):
        tokens[:, step] = FIRST_PITCH + base + random.integers(0, 5, rows)
    return tokens, base


def neighbours(random: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that share a register."""
    left, base = tunes(random, rows)
    return left, tunes(random, rows, base)[0]


SONGS = 60


@pytest.fixture(scope="module")
def real() -> RealNeighbours:
    random = np.random.default_rng(0)
    pairs = neighbours(random, SONGS * 20)
    return RealNeighbours.describe(lift(*pairs), np.repeat(np.arange(SONGS), 20) % FOLDS, FORM)


def judge(real: RealNeighbours, pairs: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """The AUC of all features and of single halves."""
    features, _ = describe_pairs(lift(*pairs), FORM)
    found = real.rank(features, np.random.default_rng(3).integers(0, FOLDS, len(features)))
    return 1 - float(found.whole.mean()), 1 - float(found.halves.mean())


def test_what_is_like_real_neighbours_is_not_told_apart(real: RealNeighbours) -> None:
    whole, halves = judge(real, neighbours(np.random.default_rng(1), 1500))
    assert whole == pytest.approx(0.5, abs=0.04)
    assert halves == pytest.approx(0.5, abs=0.04)


def test_halves_that_do_not_belong_together_are_told_apart_together_only(
    real: RealNeighbours,
) -> None:
    left, right = neighbours(np.random.default_rng(1), 1500)
    whole, halves = judge(real, (left, np.roll(right, 1, axis=0)))
    assert whole > 0.8
    assert halves == pytest.approx(0.5, abs=0.04)


def test_a_repeated_half_is_told_apart(real: RealNeighbours) -> None:
    left, _ = neighbours(np.random.default_rng(1), 1500)
    whole, halves = judge(real, (left, left))
    assert whole > 0.99
    assert halves == pytest.approx(0.5, abs=0.04)


def test_halves_that_are_no_music_are_told_apart_alone(real: RealNeighbours) -> None:
    left, right = neighbours(np.random.default_rng(1), 1500)
    left[:, 1::2] = left[:, ::2]
    whole, halves = judge(real, (left, right))
    assert min(whole, halves) > 0.99


def test_ranks_by_classifiers_of_the_other_folds_pair_by_pair(real: RealNeighbours) -> None:
    left, right = neighbours(np.random.default_rng(1), 120)
    left, right = np.vstack((left, left[:40])), np.vstack((np.roll(right, 3, axis=0), left[:40]))
    folds = np.random.default_rng(5).integers(0, FOLDS, len(left))
    folds[::7] = -1
    features, halves = describe_pairs(lift(left, right), FORM)
    found = real.rank(features, folds)
    assert np.isnan(found.whole[folds < 0]).all()
    areas, shares = [], []
    for fold in range(FOLDS):
        outputs = features[(folds >= 0) & (folds != fold)]
        others = real.features[real.folds != fold]
        for kept, ranks in ((slice(None), found.whole), (slice(halves), found.halves)):
            weights = likeness._discriminant(
                likeness._Moments.of(outputs), likeness._Moments.of(others), kept
            )
            own = np.round((features[folds == fold][:, kept] @ weights).numpy(), 9)
            true = np.round((real.features[real.folds == fold][:, kept] @ weights).numpy(), 9)
            expected = [((true < x).sum() + (true == x).sum() / 2) / len(true) for x in own]
            np.testing.assert_allclose(ranks[folds == fold], expected, atol=2 / len(true))
            if kept == slice(None):
                areas.append(auc(true, own))
                shares.append(len(own))
    area = np.average(areas, weights=shares)
    assert 1 - found.whole[folds >= 0].mean() == pytest.approx(area, abs=1e-3)


def test_influence_is_what_the_weight_of_a_real_pair_changes(real: RealNeighbours) -> None:
    """A real pair that counts twice in its fold's scores, with the classifier held fixed."""
    left, right = neighbours(np.random.default_rng(1), 200)
    pairs, folds = (left, np.roll(right, 1, axis=0)), np.arange(200) % FOLDS
    features, _ = describe_pairs(lift(*pairs), FORM)
    found = real.rank(features, folds)
    assert found.whole_influence.sum() == pytest.approx(0, abs=1e-12)
    for which in (0, 17, 301):
        fold = real.folds[which]
        weights = likeness._discriminant(
            likeness._Moments.of(features[folds != fold]),
            likeness._Moments.of(real.features[real.folds != fold]),
            slice(None),
        )
        own, true, one = (
            (rows @ weights).numpy()
            for rows in (
                features[folds == fold], real.features[real.folds == fold], real.features[which],
            )
        )  # fmt: skip
        below = (true[None] < own[:, None]).mean(axis=1).mean()
        again = np.append(true, one)
        twice = (again[None] < own[:, None]).mean(axis=1).mean()
        # The weights still sum to the same in the derivative: hence the factor.
        change = (twice - below) * (len(true) + 1) / len(true) * (folds == fold).mean()
        assert found.whole_influence[which] == pytest.approx(change, abs=1e-5)


def test_the_discriminant_is_fishers_on_standardised_features() -> None:
    random = np.random.default_rng(0)
    outputs = random.normal(size=(40, 3)) * [1, 5, 0.1]
    real = random.normal(size=(60, 3)) * [1, 5, 0.1] + [0.5, 1, 0]
    within = (np.cov(outputs.T, ddof=0) + np.cov(real.T, ddof=0)) / 2
    apart = real.mean(0) - outputs.mean(0)
    # Deviation of both kinds together, if they are equally many.
    deviation = np.sqrt(np.diag(within) + (apart / 2) ** 2)
    scaled = np.diag(1 / deviation) @ within @ np.diag(1 / deviation)
    expected = np.linalg.inv(scaled + np.eye(3)) @ (apart / deviation) / deviation
    one, other = (likeness._Moments.of(torch.from_numpy(rows)) for rows in (outputs, real))
    found = likeness._discriminant(one, other, slice(None))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_feature_that_never_varies_tells_nothing() -> None:
    """Rounding errors of its covariances would otherwise count, for a pair that differs in it."""
    random = np.random.default_rng(0)
    outputs, real = random.normal(size=(2, 400, 3)) * [1, 5, 0.1] + [65, 1, 0]
    moments = []
    for rows in (outputs, np.add(real, (0.5, 1, 0))):
        constant = np.full((len(rows), 1), 1 / 3)
        moments.append(likeness._Moments.of(torch.from_numpy(np.hstack((rows, constant)))))
    weights = likeness._discriminant(moments[0], moments[1], slice(None))
    without = likeness._discriminant(moments[0], moments[1], slice(3))
    assert weights[3] == 0
    torch.testing.assert_close(weights[:3], without, rtol=1e-9, atol=0)


def test_too_few_pairs_tell_nothing(real: RealNeighbours) -> None:
    pairs = neighbours(np.random.default_rng(1), 1)
    features, _ = describe_pairs(lift(*pairs), FORM)
    assert np.isnan(real.rank(features, np.array([0])).whole).all()
