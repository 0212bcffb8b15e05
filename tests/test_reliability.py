"""AUC, calibration and keys against slow definitions, and what a report holds."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cf_core.continuation import Continuation, ContinuationSettings
from cf_core.corpus import Corpus, Split
from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat
from cf_core.nets import initialise
from cf_core.seeding import make_random
from evaluation.bootstrap import auc, resample_auc
from evaluation.reliability import LabelledPairs, calibration_error, find_keys
from evaluation.statistics import TokenPairs

FORM = MelodyFormat(bars_per_segment=1, lowest=48, highest=84)
scores = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@given(scores, scores)
def test_auc_is_the_share_of_pairs_in_order(positive: list[int], negative: list[int]) -> None:
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in product(positive, negative)]
    expected = sum(wins) / len(wins)
    assert auc(np.array(positive, float), np.array(negative, float)) == pytest.approx(expected)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=8),
)
def test_weights_count_a_score_as_often_as_they_say(
    positive: list[tuple[int, int]], negative: list[tuple[int, int]]
) -> None:
    repeated = [
        [score for score, times in own for _ in range(times)] for own in (positive, negative)
    ]
    if not all(repeated):
        return
    (a, wa), (b, wb) = (np.array(own, float).T for own in (positive, negative))
    found = resample_auc(a, b, wa[None], wb[None])[0]
    assert found == pytest.approx(auc(*(np.array(own, float) for own in repeated)))


def test_calibration_error_worked_by_hand() -> None:
    # Bin 0.1-0.2: two of 0.15, one adjacent: gap 0.35. Bin 0.9-1: 0.9 and 1.0, both adjacent: 0.05.
    probability = np.array([0.15, 0.15, 0.9, 1.0])
    adjacent = np.array([True, False, True, True])
    once = np.ones((1, 4))
    assert calibration_error(probability, adjacent, once)[0] == pytest.approx(
        0.5 * 0.35 + 0.5 * 0.05
    )
    # The last pair thrice: the upper bin's gap is (0.1 + 3 * 0) / 4, and it holds 4 of 6.
    thrice = np.array([[1.0, 1, 1, 3]])
    expected = 2 / 6 * 0.35 + 4 / 6 * (0.1 / 4)
    assert calibration_error(probability, adjacent, thrice)[0] == pytest.approx(expected)


def scale(tonic: int, steps: tuple[int, ...], longest: int) -> list[int]:
    """A bar that plays a scale from C4 up, its tonic longest."""
    row = [FIRST_PITCH - FORM.lowest + 60 + tonic] + [HOLD] * longest
    row += [FIRST_PITCH - FORM.lowest + 60 + tonic + step for step in steps]
    return row + [REST] * (FORM.steps - len(row))


def corpus(rows: list[list[int]], songs: list[int], pairs: list[tuple[int, int]]) -> Corpus:
    count = max(songs) + 1
    return Corpus(
        form=FORM,
        tokens=np.array(rows, np.uint8),
        song=np.array(songs),
        bar=np.arange(len(rows)),
        song_ids=tuple(map(str, range(count))),
        split=np.full(count, Split.TEST),
        pairs=np.array(pairs, dtype=np.int64).reshape(-1, 2),
        struck_again=0,
        content_hash="0",
    )


def second_opinion() -> Continuation:
    made = Continuation(FORM, ContinuationSettings(hidden=4))
    initialise(made, make_random(0, "continuation"))
    return made


MAJOR, MINOR = (2, 4, 5, 7, 9, 11, 7, 4, 0), (2, 3, 5, 7, 8, 11, 7, 3, 0)


@pytest.mark.parametrize("tonic", range(12))
def test_scales_have_their_keys(tonic: int) -> None:
    rows = [scale(tonic, MAJOR, 3), scale(tonic, MINOR, 3)]
    assert find_keys(corpus(rows, [0, 1], [])).tolist() == [tonic, 12 + tonic]


def test_the_key_is_that_of_what_sounds_longest() -> None:
    form = MelodyFormat(meters=("2/4",), bars_per_segment=1, steps_per_beat=12, subdivisions=(4, 3))
    # C, B, D, A, B, C, for 3, 1, 2, 2, 1 and 3 twelfths of a quarter note: C sounds longest, though
    # B has as many steps.
    beat = [FIRST_PITCH - form.lowest + pitch for pitch in (60, 71, 62, 69, 71, 60)]
    tune = replace(corpus([scale(0, MAJOR, 3)], [0], []), form=form, tokens=np.array([beat * 2]))
    assert find_keys(tune).tolist() == [0]


def test_negatives_of_the_same_key_are_of_another_song_in_that_key() -> None:
    # Songs 0 and 1 in C, 2 and 3 in D, 4 alone in F sharp minor.
    keys = [(0, MAJOR), (0, MAJOR), (2, MAJOR), (2, MAJOR), (6, MINOR)]
    rows = [scale(tonic, steps, 3) for tonic, steps in keys for _ in range(2)]
    songs = [song for song in range(5) for _ in range(2)]
    trial = LabelledPairs.draw(
        corpus(rows, songs, [(2 * s, 2 * s + 1) for s in range(5)]),
        Split.TEST,
        second_opinion(),
        0,
    )
    pairs = {tuple(pair) for pair in trial.hard["same_key"].songs.tolist()}
    assert pairs == {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert (trial.unpaired.songs[:, 0] != trial.unpaired.songs[:, 1]).all()


def test_the_error_of_calibration_lies_in_its_interval() -> None:
    """Resampling adds noise to it, so that percentiles as they are would lie above it."""
    rows = [scale(0, MAJOR, 3)] * 60
    songs = [song for song in range(20) for _ in range(3)]
    pairs = [(3 * s + i, 3 * s + i + 1) for s in range(20) for i in range(2)]
    trial, random = (
        LabelledPairs.draw(corpus(rows, songs, pairs), Split.TEST, second_opinion(), 0),
        np.random.default_rng(1),
    )

    def guesses(pairs: TokenPairs) -> np.ndarray:
        return random.normal(size=len(pairs[0])).astype(np.float32) / 4

    error = trial.report(guesses, 400, 0)["calibration_error"]
    assert isinstance(error, dict)
    assert 0 <= error["low"] < error["value"] < error["high"] < 0.3


def test_a_report_of_a_classifier_that_knows_and_of_one_that_guesses() -> None:
    # All songs are in C, and each has a bar of its own.
    bars = [scale(12 * (song // 6), MAJOR, 1 + song % 6) for song in range(12)]
    rows = [bar for bar in bars for _ in range(4)]
    songs = [song for song in range(12) for _ in range(4)]
    pairs = [(4 * s + i, 4 * s + i + 1) for s in range(12) for i in range(3)]
    trial = LabelledPairs.draw(corpus(rows, songs, pairs), Split.TEST, second_opinion(), 0)

    def knows(pairs: TokenPairs) -> np.ndarray:
        return np.where((pairs[0] == pairs[1]).all(1), 9.0, -9.0).astype(np.float32)

    def guesses(pairs: TokenPairs) -> np.ndarray:
        return np.zeros(len(pairs[0]), np.float32)

    sure, unsure = (trial.report(scores, 200, 0) for scores in (knows, guesses))
    assert sure["pairs"] == 36
    assert sure["auc"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    # It takes every repeat for neighbours, and no pair of which one half was moved.
    assert sure["repeat_auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert sure["transposed_auc"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert unsure["auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert unsure["same_key_auc"]["value"] == 0.5  # type: ignore[index]
    error = unsure["calibration_error"]
    assert error["value"] == pytest.approx(0.0)  # type: ignore[index]
    assert trial.measure_agreement(knows, knows, 50, 0).low == pytest.approx(1.0)
    against = trial.measure_agreement(knows, lambda pairs: -knows(pairs), 50, 0)
    assert against.value == pytest.approx(-1.0)
    assert trial.report(knows, 200, 0) == sure
