"""It is long, since every estimator is re-derived literally."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cf_core.errors import RecordsError
from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat, to_notes
from evaluation.bootstrap import BLOCKS, Resamples, correct_few_clusters, draw_pigeonhole_weights
from evaluation.statistics import (
    CELLS,
    NEIGHBOURS,
    PITCH_CLASSES,
    STATISTICS,
    Bins,
    Neighbourhoods,
    compute_statistics,
    correlation,
    count_leaps,
    count_pairs,
    joint,
    overlap_area,
    pair_features,
    row_stochastic,
    shared_share,
    sounding_pitch,
    transition_matrix,
    wasserstein,
)

FORM = MelodyFormat(meters=("2/4",), bars_per_segment=1, lowest=55, highest=80)
"""Segments of 8 sixteenths."""


def onset(pitch: int) -> int:
    return FIRST_PITCH + pitch - FORM.lowest


def statistics_of(*tokens: int) -> dict[str, float]:
    values = compute_statistics(np.array([tokens], dtype=np.uint8), FORM)
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


def test_one_note_that_fills_its_segment() -> None:
    assert statistics_of(onset(59 + 12), *[HOLD] * 7) == {
        "mean_pitch": 71,
        "pitch_range": 0,
        "note_count": 1,
        "mean_duration": 2,
        "pitch_class": 11,
    }


def test_notes_of_the_whole_range_at_every_step() -> None:
    # The lowest and the highest pitch in turns: G3 and A flat 5, of which G is lower as a class.
    assert statistics_of(*[onset(55), onset(80)] * 4) == {
        "mean_pitch": 67.5,
        "pitch_range": 25,
        "note_count": 8,
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
    fast = compute_statistics(tokens, FORM)
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


@pytest.mark.slow
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
    with pytest.raises(RecordsError, match="ascending edges"):
        Bins.from_dict(record | {"mean_pitch": [3.0, 1.0]})
    with pytest.raises(RecordsError, match="pitch_class"):
        Bins.from_dict({"mean_pitch": [1.0]})


def test_bins_need_notes() -> None:
    with pytest.raises(ValueError, match="mean_pitch: no training segment"):
        fitted(mean_pitch=[math.nan, math.nan])


LEFT = np.array([0, 0, 0, 1, -1, 0])
RIGHT = np.array([0, 1, 1, 0, 1, -1])


def test_matrices_worked_by_hand() -> None:
    # Counts 0->0: 1, 0->1: 2, 1->0: 1, and half a pair is added to each cell; the two pairs with a
    # silent half count nowhere; the third bin is never seen on the left.
    counts = count_pairs(LEFT, RIGHT, 2)
    assert counts.tolist() == [[1, 2], [1, 0]]
    stochastic = [[1.5 / 4, 2.5 / 4], [1.5 / 2, 0.5 / 2]]
    np.testing.assert_allclose(row_stochastic(counts), stochastic)
    np.testing.assert_allclose(transition_matrix(LEFT, RIGHT, 2), stochastic)
    np.testing.assert_allclose(transition_matrix(LEFT, RIGHT, 3)[2], [1 / 3] * 3)
    np.testing.assert_allclose(joint(counts), [[1 / 4, 2 / 4], [1 / 4, 0]])


def test_joint_matrix_of_no_pairs_is_zero() -> None:
    nobody = np.array([-1])
    assert joint(count_pairs(nobody, nobody, 2)).tolist() == [[0, 0], [0, 0]]


def test_bins_of_8_bits_are_counted_in_full() -> None:
    counts = count_pairs(np.array([11, 11], np.int8), np.array([11, 10], np.int8), 12)
    assert counts[11, 11] == counts[11, 10] == 1
    assert counts.sum() == 2


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


@given(st.lists(st.integers(0, 5), min_size=1, max_size=10))
def test_the_sounding_pitch_is_that_of_the_last_onset(row: list[int]) -> None:
    expected, last = [], REST
    for token in row:
        last = last if token == HOLD else token
        expected.append(last - FIRST_PITCH + FORM.lowest if last >= FIRST_PITCH else -1)
    assert sounding_pitch(np.array([row]), FORM)[0].tolist() == expected


def songs_of(left: list[int], right: list[int]) -> np.ndarray:
    return np.array([left, right]).T


def test_of_pairs_of_two_songs_songs_are_drawn_and_then_pairs() -> None:
    songs = songs_of([7, 7, 2, 9, 2], [2, 9, 9, 7, 7])  # the second and the fourth are alike
    resamples = Resamples.draw(songs, 400, np.random.default_rng(0))
    assert resamples.draws.shape == (800, 6)
    assert resamples.songs == 3
    expected = [[1, 0, 3], [1, 2, 5], [0, 2, 4], [2, 1, 5], [0, 1, 3]]
    np.testing.assert_array_equal(resamples.clusters, expected)
    of_songs, of_pairs = resamples.draws[:400, :3], resamples.draws[400:, 3:]
    assert not resamples.draws[:400, 3:].any()
    assert not resamples.draws[400:, :3].any()
    for drawn in (of_songs, of_pairs):
        np.testing.assert_array_equal(drawn.sum(axis=1), 3)
        # Three draws, each a given one with 1/3: mean 1, variance 3 * 1/3 * 2/3.
        assert drawn[:, 1].mean() == pytest.approx(1, abs=0.15)
        assert drawn[:, 1].var() == pytest.approx(2 / 3, abs=0.15)


def test_pairs_of_one_song_are_drawn_with_it() -> None:
    resamples = Resamples.draw(songs_of([7, 7, 2], [7, 7, 2]), 9, np.random.default_rng(0))
    assert resamples.draws.shape == (9, 2)
    np.testing.assert_array_equal(resamples.clusters, [[1], [1], [0]])


def test_pairs_without_songs_are_drawn_in_blocks() -> None:
    none = np.full((600, 2), -1)
    resamples = Resamples.draw(none, 10, np.random.default_rng(0))
    assert resamples.songs == BLOCKS == resamples.draws.shape[1]
    sizes = np.bincount(resamples.clusters[:, 0])
    assert set(sizes.tolist()) == {600 // BLOCKS, 600 // BLOCKS + 1}
    assert Resamples.draw(none[:9], 10, np.random.default_rng(0)).songs == 9


def test_too_few_songs_give_no_interval() -> None:
    random = np.random.default_rng(0)
    for draw in (Resamples.draw, draw_pigeonhole_weights):
        with pytest.raises(ValueError, match="too few"):
            draw(np.zeros((5, 2), np.int64), 10, random)
    with pytest.raises(ValueError, match="too few"):
        Resamples.draw(songs_of([0, 1, 0], [1, 0, 1]), 10, random)


def test_few_equal_clusters_are_corrected_as_usual_and_unequal_ones_more() -> None:
    assert correct_few_clusters(np.full(8, 3.0)) == pytest.approx((8 / 7, 7))
    # Worked by hand: shares 1/2, 1/4, 1/4; squares sum to 3/8, cubes to 5/32.
    assert correct_few_clusters(np.array([2.0, 1.0, 1.0])) == pytest.approx(
        (1 / (1 + 3 / 8 - 5 / 6), 5 / 3)
    )


def test_the_correction_makes_the_variance_of_a_mean_unbiased() -> None:
    """Of unequal songs, to first order, on average over values that differ between songs alone."""
    random, sizes = np.random.default_rng(8), np.array([1.0, 1, 1, 2, 2, 3, 5, 9])
    share, counts = sizes / sizes.sum(), random.multinomial(8, np.full(8, 1 / 8), 200_000)
    # Quadratic in the values: the sum over unit vectors is the expectation for white noise.
    linear = [((counts * share) @ (unit - unit @ share)).var() for unit in np.eye(8)]
    expected = np.square(share).sum()
    assert correct_few_clusters(sizes)[0] * sum(linear) == pytest.approx(expected, rel=0.02)


def test_a_resample_counts_pairs_as_often_as_it_draws_them() -> None:
    """Against pairs weighed one by one: as their songs on average, then as their own block."""
    generator = np.random.default_rng(6)
    songs, values = generator.integers(0, 5, (60, 2)), generator.normal(size=60)
    left, right = generator.integers(-1, 4, (2, 60)).astype(np.int8)
    resamples = Resamples.draw(songs, 25, np.random.default_rng(1))
    means, counts = resamples.means(values), resamples.count_pairs(left, right, 4)
    for row, (drawn, mean, counted) in enumerate(zip(resamples.draws, means, counts, strict=True)):
        weights = [
            (drawn[a] + drawn[b]) / 2 if row < 25 else drawn[own]
            for a, b, own in resamples.clusters
        ]
        assert mean == pytest.approx(np.dot(weights, values) / sum(weights))
        expected = np.zeros((4, 4))
        for weight, i, j in zip(weights, left, right, strict=True):
            if i >= 0 and j >= 0:
                expected[i, j] += weight
        np.testing.assert_allclose(counted, expected)


def test_pigeonhole_weights_are_products_over_different_songs() -> None:
    songs = songs_of([4, 4, 9], [4, 9, 6])
    weights = draw_pigeonhole_weights(songs, 30, np.random.default_rng(2))
    draws = Resamples.draw(songs, 30, np.random.default_rng(2)).draws[:30, :3]
    assert weights.tolist() == [[four, four * nine, nine * six] for four, six, nine in draws]


@pytest.mark.parametrize("own", [1.0, 9.0])
def test_the_variance_is_that_of_dyadic_clusters(own: float) -> None:
    """Over all pairs of pairs that share a song, what both are off the mean; or over themselves."""
    generator = np.random.default_rng(3)
    songs = np.array([generator.choice(12, 2, replace=False) for _ in range(150)])
    values = generator.normal(size=12)[songs].sum(axis=1) + generator.normal(0, own, 150)
    resamples = Resamples.draw(songs, 100_000, generator)
    off, names = values - values.mean(), [set(pair) for pair in songs.tolist()]
    of_songs = [sum(off[i] for i in range(150) if song in names[i]) ** 2 for song in range(12)]
    dyads = [sum(off[i] for i in range(150) if names[i] == one) ** 2 for one in _each(names)]
    song, pair = sum(of_songs) * 12 / 11, sum(dyads) * len(dyads) / (len(dyads) - 1)
    expected = max(song - pair, pair) / 150**2
    assert resamples.variance(resamples.means(values))[0] == pytest.approx(expected, rel=0.05)


def _each(names: list[set[int]]) -> list[set[int]]:
    return [one for i, one in enumerate(names) if one not in names[:i]]


def test_the_variance_of_single_songs_is_that_of_clusters() -> None:
    generator = np.random.default_rng(4)
    song = np.repeat(np.arange(9), 4)
    values = generator.normal(size=9)[song]
    resamples = Resamples.draw(np.stack((song, song), 1), 100_000, generator)
    expected = values[::4].var(ddof=1) / 9
    assert resamples.variance(resamples.means(values))[0] == pytest.approx(expected, rel=0.05)


def test_real_pairs_are_drawn_with_the_songs_that_pairs_share() -> None:
    songs, real = songs_of([7, 7, 2, 9, 2], [2, 9, 9, 7, 7]), np.array([2, 9, 11, 12, 13])
    resamples = Resamples.draw(songs, 4000, np.random.default_rng(0), real)
    of_songs, of_pairs = resamples.reference[:4000], resamples.reference[4000:]
    # Half as much as their songs, as pairs do; and not at all where pairs are drawn.
    np.testing.assert_array_equal(of_songs[:, :2], (1 + resamples.draws[:4000, [0, 2]]) / 2)
    assert (of_pairs == 1).all()
    # Other songs by themselves: 5 draws of 1/5 each, varied by 5/4, less a little that is cut at 0.
    assert of_songs[:, 2].var() == pytest.approx(5 / 4 * (1 - 1 / 5) / 4, rel=0.15)
    assert abs(np.corrcoef(of_songs[:, 2], of_songs[:, 0])[0, 1]) < 0.05
    none = Resamples.draw(np.full((60, 2), -1), 4000, np.random.default_rng(0), real)
    assert none.reference.shape == (4000, 5)
    assert none.reference[:, 0].var() == pytest.approx(5 / 4 * (1 - 1 / 5), rel=0.15)
    one = Resamples.draw(songs_of([7, 2, 9], [7, 2, 9]), 40, np.random.default_rng(0), real)
    np.testing.assert_array_equal(one.reference[:, :2], one.draws[:, [0, 2]])


def test_counts_of_real_pairs_and_bins_are_those_of_each_draw() -> None:
    generator = np.random.default_rng(6)
    songs, bins = generator.integers(0, 5, (60, 2)), generator.integers(-1, 4, 60)
    resamples = Resamples.draw(songs, 25, generator, np.array([1, 4, 8]))
    by_song, counts = generator.integers(0, 9, (3, 4)).astype(float), resamples.count_bins(bins, 4)
    real = resamples.count_real(by_song)
    values, influence = generator.normal(size=60), generator.normal(size=3)
    means = resamples.means(values, influence)
    for row, weight in enumerate(resamples.reference):
        np.testing.assert_allclose(
            real[row], sum(w * own for w, own in zip(weight, by_song, strict=True))
        )
        expected = np.zeros(4)
        for pair, (a, b, own) in enumerate(resamples.clusters):
            drawn = resamples.draws[row]
            if bins[pair] >= 0:
                expected[bins[pair]] += (drawn[a] + drawn[b]) / 2 if row < 25 else drawn[own]
        np.testing.assert_allclose(counts[row], expected)
        more = means[row] - resamples.means(values)[row]
        assert more == pytest.approx(np.dot(weight - 1, influence), abs=1e-6)


def test_same_seed_same_resamples() -> None:
    values, songs = np.random.default_rng(0).random(50), np.full((50, 2), -1)

    def interval(seed: int) -> tuple[float, float]:
        resamples = Resamples.draw(songs, 100, np.random.default_rng(seed))
        return resamples.interval(0.5, resamples.means(values))

    assert interval(1) == interval(1)
    assert interval(1) != interval(2)


def test_intervals_leave_out_what_is_not_finite() -> None:
    resamples = Resamples.draw(songs_of([0, 1, 2], [0, 1, 2]), 4, np.random.default_rng(0))
    low, high = resamples.interval(2.0, np.array([1.0, 3.0, np.nan, np.inf]))
    # Variance 1, times 3/2; two degrees of freedom.
    assert (low, high) == pytest.approx((2 - 4.3027 * 1.5**0.5, 2 + 4.3027 * 1.5**0.5), rel=1e-4)
    assert np.isnan(resamples.interval(2.0, np.full(4, np.nan))).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("song", "pair", "count"),
    [(1.0, 0.5, 300), (1.0, 3.0, 300), (0.3, 1.0, 2000), (1.0, 1.0, 40), (0.0, 1.0, 1000)],
)
def test_intervals_of_means_cover_the_truth_of_pairs_that_share_songs(
    song: float, pair: float, count: int
) -> None:
    """A law with an effect of either half's song, different on the left and on the right."""
    generator, covered, simulations = np.random.default_rng(5), 0, 400
    for _ in range(simulations):
        left, right = (generator.integers(0, 40, count) for _ in range(2))
        right = np.where(left == right, (right + 1) % 40, right)
        effects = generator.normal(0, song, (2, 40))
        values = effects[0][left] + effects[1][right] + generator.normal(0, pair, count)
        resamples = Resamples.draw(np.stack((left, right), 1), 200, generator)
        low, high = resamples.interval(values.mean(), resamples.means(values))
        covered += low <= 0 <= high
    assert covered / simulations >= 0.93


Statistics = dict[str, np.ndarray]


def random_statistics(count: int, seed: int) -> Statistics:
    """Values as they occur: whole numbers, but for means of pitch and duration."""
    generator = np.random.default_rng(seed)
    notes = generator.integers(2, 16, count)
    return {
        "mean_pitch": 60 + generator.integers(0, 200, count) / notes,
        "pitch_range": generator.integers(0, 20, count).astype(float),
        "note_count": notes.astype(float),
        "mean_duration": generator.integers(8, 33, count) / notes / 4,
        "pitch_class": generator.integers(0, 12, count).astype(float),
    }


def test_overlap_worked_by_hand() -> None:
    plain = {name: np.zeros(4) for name in STATISTICS}
    # Shares by cell of a quarter's eighth, 0 to 4: (1/4, 1/4, 2/4, 0, 0), (0, 1/2, 0, 0, 1/2).
    one = plain | {"mean_duration": np.array([0.1, 0.125, 0.25, 0.3])}
    other = plain | {"mean_duration": np.array([0.2, 0.6, 0.24, 0.5])}
    assert overlap_area(one, other) == pytest.approx((4 + 1 / 4) / 5)


def test_overlap_counted_cell_by_cell() -> None:
    one, other = random_statistics(70, 0), random_statistics(45, 1)
    areas = []
    for name, width in CELLS.items():
        ours, theirs = (
            Counter(math.floor(value / width) for value in values[name]) for values in (one, other)
        )
        areas.append(sum(min(ours[c] / 70, theirs[c] / 45) for c in ours))
    assert overlap_area(one, other) == pytest.approx(np.mean(areas))
    assert overlap_area(other, one) == overlap_area(one, other)


def test_overlap_sees_a_shift_and_nothing_between_equal_sets() -> None:
    """A set and itself ten units on have one shape: densities on grids of their own would agree."""
    generator = np.random.default_rng(0)
    one = {name: generator.normal(5, 1, 400) for name in STATISTICS}
    shifted = {name: values + 10 for name, values in one.items()}
    assert overlap_area(one, shifted) == 0
    assert overlap_area(one, {name: values[::-1] for name, values in one.items()}) == 1
    half = {name: np.tile(values, 2) for name, values in one.items()}
    assert overlap_area(one, half) == pytest.approx(1)


def test_shares_of_joint_matrices_worked_by_hand() -> None:
    one = np.array([3.0, 1, 0, 0])
    others = np.array([[1.0, 0, 0, 1], 5 * one, [0, 0, 1, 1], [0, 0, 0, 0]])
    assert shared_share(others, one).tolist() == pytest.approx([1 / 2, 1, 0, 0])
    assert shared_share(one, others[0]) == pytest.approx(1 / 2)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8),
    st.lists(st.integers(0, 9), min_size=1, max_size=8),
)
def test_wasserstein_distance_is_that_of_matched_numbers(one: list[int], other: list[int]) -> None:
    # Each sample as many times as the other has numbers, both sorted: the cheapest match.
    matched = zip(sorted(one * len(other)), sorted(other * len(one)), strict=True)
    expected = np.mean([abs(a - b) for a, b in matched])
    assert wasserstein(np.array(one), np.array(other)) == pytest.approx(expected)


def test_leaps_worked_by_hand() -> None:
    c = FIRST_PITCH + 12
    left = np.array([[c, HOLD, c + 13, REST], [REST, REST, REST, REST], [c, c, HOLD, c - 12]])
    right = np.array([[c, REST, c + 12, c + 13], [c, HOLD, HOLD, HOLD], [c + 48, c, c, c]])
    leaps, intervals = count_leaps((left.astype(np.uint8), right.astype(np.uint8)))
    assert leaps.tolist() == [2, 0, 2]
    assert intervals.tolist() == [4, 0, 6]


def test_features_scale_statistics_and_close_the_circle_of_pitch_classes() -> None:
    left, right = random_statistics(3, 0), random_statistics(3, 1)
    left["pitch_class"], right["pitch_class"] = np.array([0.0, 3, 6]), np.array([11.0, 0, 1])
    deviations = dict.fromkeys(STATISTICS, 2.0) | {"pitch_range": 0.0}
    features = pair_features(left, right, deviations)
    assert features.shape == (3, 12)
    np.testing.assert_allclose(features[:, 0], left["mean_pitch"] / 2)
    np.testing.assert_allclose(features[:, 7], right["pitch_range"])  # constant: in its own units
    np.testing.assert_allclose(features[:, 4:6], [[1, 0], [0, 1], [-1, 0]], atol=1e-12)
    steps = np.linalg.norm(np.diff(features[:, 10:], axis=0), axis=1)
    assert steps[0] == pytest.approx(steps[1])  # B to C is as far as C to C sharp


def density_and_coverage(real: np.ndarray, points: np.ndarray) -> tuple[float, float]:
    """Literally as Naeem et al. (2020) define them, with closed balls."""
    inside = 0
    covered = 0
    for centre in real:
        others = sorted(math.dist(centre, other) for other in real)[1:]
        radius = others[NEIGHBOURS - 1]
        near = sum(math.dist(centre, point) <= radius for point in points)
        inside += near
        covered += near > 0
    return inside / (NEIGHBOURS * len(points)), covered / len(real)


def test_density_and_coverage_ball_by_ball() -> None:
    generator = np.random.default_rng(2)
    for shift in (0.0, 1.5):
        real, points = generator.normal(size=(40, 3)), generator.normal(shift, 1, (25, 3))
        expected = density_and_coverage(real, points)
        assert 0 < expected[1] < 1
        assert Neighbourhoods.fit(real).density_and_coverage(points) == pytest.approx(expected)


def test_density_and_coverage_of_equal_and_of_distant_sets() -> None:
    real = np.random.default_rng(3).normal(size=(64, 4))
    density, coverage = Neighbourhoods.fit(real).density_and_coverage(real)
    assert (density, coverage) == (1 + 1 / NEIGHBOURS, 1)  # each ball holds its centre, and k more
    assert Neighbourhoods.fit(real).density_and_coverage(real + 99) == (0, 0)
    collapsed = np.repeat(real[:1], 64, axis=0)
    density, coverage = Neighbourhoods.fit(real).density_and_coverage(collapsed)
    assert coverage < 0.5
    repeated = np.repeat(real[:4], 16, axis=0)
    assert Neighbourhoods.fit(repeated).density_and_coverage(real[:4])[1] == 1


def test_neighbourhoods_of_few_points_reach_the_farthest() -> None:
    few = Neighbourhoods.fit(np.array([[0.0], [1.0], [4.0]]))
    assert few.radii.tolist() == [4, 3, 4]
    assert Neighbourhoods.fit(np.zeros((1, 2))).radii.tolist() == [0]
