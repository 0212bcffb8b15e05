import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cf_core.errors import UserError
from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat, to_notes
from evaluation.statistics import (
    PITCH_CLASSES,
    STATISTICS,
    Bins,
    bootstrap_correlations,
    bootstrap_mean,
    correlation,
    joint_matrix,
    resampling_weights,
    segment_statistics,
    transition_matrix,
)

FORM = MelodyFormat(meters=("2/4",), bars_per_segment=1, lowest=55, highest=80)
"""Segments of 8 sixteenths."""


def onset(pitch: int) -> int:
    return FIRST_PITCH + pitch - FORM.lowest


def statistics_of(*tokens: int) -> dict[str, float]:
    values = segment_statistics(np.array([tokens], dtype=np.uint8), FORM)
    return {name: value.item() for name, value in values.items()}


def test_statistics_worked_by_hand() -> None:
    # C4 for three steps, a rest, G4 for one, E4 for three.
    worked = statistics_of(onset(60), HOLD, HOLD, REST, onset(67), onset(64), HOLD, HOLD)
    assert worked == {
        "mean_pitch": pytest.approx((60 + 67 + 64) / 3),
        "pitch_range": 7,
        "note_count": 3,
        "mean_duration": pytest.approx(7 / 3 / 4),
        "pitch_class": 0,  # C and E sound equally long
    }


def test_holds_after_a_rest_or_at_the_start_sound_nothing() -> None:
    worked = statistics_of(HOLD, HOLD, REST, HOLD, onset(67), REST, HOLD, HOLD)
    assert worked == {
        "mean_pitch": 67,
        "pitch_range": 0,
        "note_count": 1,
        "mean_duration": 0.25,
        "pitch_class": 7,
    }


@pytest.mark.parametrize("token", [REST, HOLD])
def test_a_segment_without_notes_counts_none_and_has_no_other_statistic(token: int) -> None:
    worked = statistics_of(*[token] * 8)
    assert worked.pop("note_count") == 0
    assert all(math.isnan(value) for value in worked.values())


@given(arrays(np.int64, (5, 8), elements=st.integers(0, FORM.vocabulary - 1)))
def test_statistics_are_those_of_the_notes(tokens: np.ndarray) -> None:
    fast = segment_statistics(tokens, FORM)
    assert tuple(fast) == STATISTICS
    for row, segment in enumerate(tokens):
        notes = to_notes(segment, FORM)
        assert fast["note_count"][row] == len(notes)
        if not notes:
            continue
        pitches = [note.pitch for note in notes]
        by_class: Counter[int] = Counter()
        for note in notes:
            by_class[note.pitch % 12] += int(note.duration * 4)
        longest = max(by_class.values())
        assert fast["mean_pitch"][row] == pytest.approx(sum(pitches) / len(notes))
        assert fast["pitch_range"][row] == max(pitches) - min(pitches)
        assert fast["mean_duration"][row] == pytest.approx(
            float(sum(note.duration for note in notes)) / len(notes)
        )
        assert fast["pitch_class"][row] == min(c for c in by_class if by_class[c] == longest)


def fitted(**values: list[float]) -> Bins:
    """Bins of the given training values; 0 to 15 for the statistics not given."""
    plain = {name: np.arange(16.0) for name in STATISTICS}
    return Bins.fit(plain | {name: np.array(column, float) for name, column in values.items()})


def test_bins_are_training_quantiles() -> None:
    bins = fitted()
    assert bins.to_dict()["mean_pitch"] == [1, 3, 5, 7, 9, 11, 13]
    values = np.array([-9.0, 0, 1, 2.9, 3, 13, 99, np.nan])
    assert bins.assign("mean_pitch", values).tolist() == [0, 0, 1, 1, 2, 7, 7, -1]
    assert bins.count("mean_pitch") == 8


def test_coinciding_quantiles_make_one_edge() -> None:
    bins = fitted(note_count=[1, 1, 1, 1, 1, 2, 2, 9], pitch_range=[3, 3, 3])
    assert bins.to_dict()["note_count"] == [2]  # 1 is the minimum: nothing would lie below it
    assert bins.assign("note_count", np.array([0.0, 1, 2, 9])).tolist() == [0, 0, 1, 1]
    assert bins.count("pitch_range") == 1


def test_pitch_classes_have_a_bin_each() -> None:
    bins = fitted()
    assert bins.count("pitch_class") == PITCH_CLASSES
    assert bins.assign("pitch_class", np.arange(12.0)).tolist() == list(range(12))


@given(st.lists(st.integers(-3, 9) | st.floats(-3, 9), min_size=1, max_size=60))
def test_no_bin_is_empty_on_the_training_segments(values: list[float]) -> None:
    bins = fitted(mean_duration=[*values, math.nan])
    assigned = set(bins.assign("mean_duration", np.array(values, float)).tolist())
    assert assigned == set(range(bins.count("mean_duration")))
    assert bins.count("mean_duration") <= 8


def test_bins_survive_json_bit_for_bit() -> None:
    bins = fitted(mean_pitch=np.random.default_rng(0).normal(size=99).tolist())
    assert Bins.from_dict(json.loads(json.dumps(bins.to_dict()))) == bins


def test_bins_are_not_read_from_anything_else() -> None:
    record = fitted().to_dict()
    with pytest.raises(UserError, match="ascending edges"):
        Bins.from_dict(record | {"mean_pitch": [3.0, 1.0]})
    with pytest.raises(UserError, match="pitch_class"):
        Bins.from_dict({"mean_pitch": [1.0]})


def test_bins_need_notes() -> None:
    with pytest.raises(ValueError, match="mean_pitch: no training segment"):
        fitted(mean_pitch=[math.nan, math.nan])


LEFT = np.array([0, 0, 0, 1, -1, 0])
RIGHT = np.array([0, 1, 1, 0, 1, -1])


def test_matrices_worked_by_hand() -> None:
    # Counts 0->0: 1, 0->1: 2, 1->0: 1, and half a pair is added to each cell; the two pairs with a
    # silent half count nowhere; the third bin is never seen on the left.
    np.testing.assert_allclose(
        transition_matrix(LEFT, RIGHT, 2), [[1.5 / 4, 2.5 / 4], [1.5 / 2, 0.5 / 2]]
    )
    np.testing.assert_allclose(transition_matrix(LEFT, RIGHT, 3)[2], [1 / 3] * 3)
    np.testing.assert_allclose(joint_matrix(LEFT, RIGHT, 2), [[1 / 4, 2 / 4], [1 / 4, 0]])


def test_joint_matrix_of_no_pairs_is_zero() -> None:
    nobody = np.array([-1])
    assert joint_matrix(nobody, nobody, 2).tolist() == [[0, 0], [0, 0]]


def test_a_weight_counts_a_pair_that_many_times() -> None:
    generator = np.random.default_rng(3)
    left, right = generator.integers(-1, 4, (2, 30))
    weights = generator.integers(0, 3, (5, 30))
    for matrix in (transition_matrix, joint_matrix):
        batched = matrix(left, right, 4, weights.astype(float))
        for row, times in zip(batched, weights, strict=True):
            repeated = matrix(np.repeat(left, times), np.repeat(right, times), 4)
            np.testing.assert_allclose(row, repeated)


def test_correlation_is_pearsons() -> None:
    generator = np.random.default_rng(4)
    matrices, reference = generator.random((6, 5, 5)), generator.random((5, 5))
    expected = [np.corrcoef(matrix.ravel(), reference.ravel())[0, 1] for matrix in matrices]
    np.testing.assert_allclose(correlation(matrices, reference), expected)
    assert float(correlation(reference, 3 * reference + 1)) == pytest.approx(1)


def test_correlation_with_a_constant_is_nan() -> None:
    # (1 + 1/7) / 8 and 1/7 are one number in two roundings.
    nearly = np.full((7, 7), 1 / 7)
    nearly[0] = (1 + 1 / 7) / 8
    varied = np.random.default_rng(0).random((7, 7))
    assert np.isnan(correlation(nearly, varied))
    assert np.isnan(correlation(varied, nearly))
    assert np.isnan(correlation(transition_matrix(LEFT[:2] * 0, RIGHT[:2] * 0, 1), np.ones((1, 1))))


def test_whole_clusters_are_drawn() -> None:
    clusters = np.array([7, 7, 2, 9, 2, 7])
    weights = resampling_weights(clusters, 400, np.random.default_rng(0))
    assert weights.shape == (400, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
    np.testing.assert_array_equal(weights[:, 2], weights[:, 4])
    np.testing.assert_array_equal(weights[:, [0, 2, 3]].sum(axis=1), 3)
    # Three draws, each a given song with 1/3: mean 1, variance 3 * 1/3 * 2/3.
    assert weights[:, 3].mean() == pytest.approx(1, abs=0.15)
    assert weights[:, 3].var() == pytest.approx(2 / 3, abs=0.15)


def test_one_cluster_gives_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two"):
        resampling_weights(np.zeros(5, np.int64), 10, np.random.default_rng(0))


def test_same_seed_same_interval() -> None:
    values, clusters = np.random.default_rng(0).random(50), np.arange(50)

    def interval(seed: int) -> tuple[float, float]:
        return bootstrap_mean(
            values, resampling_weights(clusters, 100, np.random.default_rng(seed))
        )

    assert interval(1) == interval(1)
    assert interval(1) != interval(2)


def test_intervals_of_means_cover_the_truth_when_songs_agree_within() -> None:
    """Ten pairs of a song share its value: over pairs, an interval would be far too short."""
    generator = np.random.default_rng(5)
    clusters = np.repeat(np.arange(40), 10)
    covered = 0
    for _ in range(300):
        values = np.repeat(generator.normal(size=40), 10) + 0.1 * generator.normal(size=400)
        low, high = bootstrap_mean(values, resampling_weights(clusters, 200, generator))
        covered += low <= 0 <= high
    assert 0.89 <= covered / 300 <= 0.98


def test_intervals_of_correlations_are_those_of_resampled_songs() -> None:
    """Against the literal bootstrap: songs drawn, their pairs gathered, one matrix at a time."""
    generator = np.random.default_rng(6)
    left = generator.integers(0, 3, 60)
    right = np.where(generator.random(60) < 0.6, left, generator.integers(0, 3, 60))
    clusters = np.repeat(np.arange(20), 3)
    weights = resampling_weights(clusters, 200, np.random.default_rng(1))
    for matrix in (transition_matrix, joint_matrix):
        reference = matrix(left[::-1].copy(), right, 3)
        literal = []
        for times in weights.astype(int):
            drawn = np.repeat(np.arange(60), times)
            resampled = matrix(left[drawn], right[drawn], 3)
            literal.append(np.corrcoef(resampled.ravel(), reference.ravel())[0, 1])
        expected = tuple(np.percentile(literal, [2.5, 97.5]))
        assert bootstrap_correlations(left, right, reference, weights, matrix) == pytest.approx(
            expected
        )


def test_interval_without_any_correlation_is_nan() -> None:
    same = np.zeros(4, np.int64)
    weights = resampling_weights(np.arange(4), 10, np.random.default_rng(0))
    assert np.isnan(bootstrap_correlations(same, same, np.ones((1, 1)), weights)).all()
