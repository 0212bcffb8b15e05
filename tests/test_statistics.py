"""It is long, since every estimator is re-derived literally."""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat, to_notes
from evaluation.bootstrap import draw_pigeonhole_weights
from evaluation.statistics import (
    CELLS,
    NEIGHBOURS,
    PITCH_CLASSES,
    STATISTICS,
    Bins,
    Neighbourhoods,
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
from tests.arrays import find_statistics, lift

FORM = MelodyFormat(meters=("2/4",), bars_per_segment=1, lowest=55, highest=80)
"""Segments of 8 sixteenths."""
SWUNG = MelodyFormat(
    meters=("2/4",), bars_per_segment=1, lowest=55, highest=80, steps_per_beat=12,
    subdivisions=(4, 3),
)  # fmt: skip
"""Segments of 12 steps, of 3, 1, 2, 2, 1 and 3 twelfths of each quarter note."""


def onset(pitch: int) -> int:
    return FIRST_PITCH + pitch - FORM.lowest


def statistics_of(*tokens: int) -> dict[str, float]:
    values = find_statistics(np.array([tokens], dtype=np.uint8), FORM)
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


def test_what_sounds_longest_need_not_sound_for_most_steps() -> None:
    # D for 3 twelfths of a quarter note, C twice for 1: of unequal steps, C has the most.
    tokens = np.array([[onset(62), onset(60), REST, REST, onset(60), *[REST] * 7]])
    worked = {name: value.item() for name, value in find_statistics(tokens, SWUNG).items()}
    assert worked["pitch_class"] == 2
    assert worked["mean_duration"] == pytest.approx(5 / 12 / 3)


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


@pytest.mark.parametrize("form", [FORM, SWUNG])
@given(data=st.data())
def test_statistics_are_those_of_the_notes(form: MelodyFormat, data: st.DataObject) -> None:
    elements = st.integers(0, form.vocabulary - 1)
    tokens = data.draw(arrays(np.int64, (5, form.steps), elements=elements))
    fast = find_statistics(tokens, form)
    assert tuple(fast) == STATISTICS
    for row, segment in enumerate(tokens):
        notes = to_notes(segment, form)
        assert fast["note_count"][row] == len(notes)
        if not notes:
            continue
        pitches = [note.pitch for note in notes]
        by_class: Counter[int] = Counter()
        for note in notes:
            by_class[note.pitch % 12] += int(note.duration * 12)
        longest = max(by_class.values())
        assert fast["mean_pitch"][row] == pytest.approx(sum(pitches) / len(notes))
        assert fast["pitch_range"][row] == max(pitches) - min(pitches)
        # To the last bit, so that equal durations fall into one bin.
        whole = sum((note.duration for note in notes), Fraction())
        assert fast["mean_duration"][row] == float(whole / len(notes))
        assert fast["pitch_class"][row] == min(c for c in by_class if by_class[c] == longest)


def fitted(kinds: Sequence[int] | None = None, count: int = 1, **values: list[float]) -> Bins:
    """Bins of the given training values; 0 to 15 for the statistics not given.

    By default all segments are of the only kind of bars.
    """
    size = len(kinds) if kinds is not None else max(map(len, values.values()), default=16)
    columns = {name: np.arange(float(size)) for name in STATISTICS}
    columns |= {name: np.array(column, float) for name, column in values.items()}
    return Bins.fit(columns, np.zeros(size, np.int64) if kinds is None else np.array(kinds), count)


def edges_of(bins: Bins, statistic: str, kind: int = 0) -> list[float]:
    return list(bins.edges[kind][statistic])


def assigned(bins: Bins, statistic: str, values: list[float], kind: int = 0) -> list[int]:
    of = bins.assign(statistic, np.array(values, float), np.full(len(values), kind))
    found: list[int] = of.tolist()
    return found


def test_bins_are_training_quantiles() -> None:
    bins = fitted()
    assert edges_of(bins, "mean_pitch") == [1, 3, 5, 7, 9, 11, 13]
    values = [-9.0, 0, 1, 2.9, 3, 13, 99, np.nan]
    assert assigned(bins, "mean_pitch", values) == [0, 0, 1, 1, 2, 7, 7, -1]
    assert bins.count("mean_pitch") == 8


def test_coinciding_quantiles_make_one_edge() -> None:
    bins = fitted(note_count=[1, 1, 1, 1, 1, 2, 2, 9], pitch_range=[3] * 8)
    assert edges_of(bins, "note_count") == [2]  # 1 is the minimum: nothing would lie below it
    assert assigned(bins, "note_count", [0.0, 1, 2, 9]) == [0, 0, 1, 1]
    assert bins.count("pitch_range") == 1


def test_pitch_classes_have_a_bin_each() -> None:
    bins = fitted(kinds=[0, 1] * 20, count=2)
    assert bins.count("pitch_class") == PITCH_CLASSES
    for kind in (0, 1):
        assert assigned(bins, "pitch_class", [*range(12)], kind) == list(range(12))


@pytest.mark.slow
@given(st.lists(st.integers(-3, 9) | st.floats(-3, 9), min_size=1, max_size=60))
def test_no_bin_is_empty_on_the_training_segments(values: list[float]) -> None:
    bins = fitted(mean_duration=[*values, math.nan])
    assert set(assigned(bins, "mean_duration", values)) == set(range(bins.count("mean_duration")))
    assert bins.count("mean_duration") <= 8


def test_bins_need_notes() -> None:
    with pytest.raises(ValueError, match="mean_pitch: no training segment"):
        fitted(mean_pitch=[math.nan, math.nan])


def test_each_kind_of_bars_has_its_own_quantiles() -> None:
    # The short kind has 1 to 8 notes, each once; the long kind 11 and 12, and 30 in one of eight.
    counts = [*range(1, 9), 11, 11, 11, 11, 12, 12, 12, 30]
    bins = fitted(kinds=[0] * 8 + [1] * 8, count=2, note_count=[*map(float, counts)])
    assert edges_of(bins, "note_count", 0) == [2, 3, 4, 5, 6, 7]
    assert edges_of(bins, "note_count", 1) == [12]
    assert bins.count("note_count") == 7  # that of the kind with more
    values = np.array([1.0, 8, 11, 12, 11, 12, 8, math.nan])
    kinds = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert bins.assign("note_count", values, kinds).tolist() == [0, 6, 6, 6, 0, 1, 0, -1]


@pytest.mark.parametrize(
    ("sounding", "own", "every"),
    [(8, [21, 22, 23, 24, 25, 26], [3, 6, 20, 22, 25]), (7, [3, 6, 22, 24], [3, 6, 22, 24])],
)
def test_a_kind_of_few_segments_with_notes_takes_the_quantiles_of_all(
    sounding: int, own: list[float], every: list[float]
) -> None:
    """Fewer than eight segments with notes cannot fill eight bins; the third kind has none."""
    pitch = [*[0.0] * 4, *[3.0] * 4, *[6.0] * 4, *(20.0 + n for n in range(sounding))]
    kinds = [0] * 12 + [1] * (sounding + 2)
    bins = fitted(kinds, 3, mean_pitch=[*pitch, math.nan, math.nan])
    edges = [edges_of(bins, "mean_pitch", kind) for kind in range(3)]
    assert edges == [[3, 6], own, every]


@given(st.lists(st.integers(-3, 9) | st.floats(-3, 9), min_size=1, max_size=60))
def test_a_fit_of_one_kind_is_that_of_all_segments(values: list[float]) -> None:
    """Whatever the kind is called, and however many segments it has."""
    alone = fitted(mean_duration=values)
    for kind in (0, 1):
        bins = fitted(kinds=[kind] * len(values), count=2, mean_duration=values)
        for name in STATISTICS[:-1]:
            levels = sorted(values if name == "mean_duration" else map(float, range(len(values))))
            # Of `n` eighths, the least value with that share at it or below it.
            quantiles = {levels[-(-n * len(levels) // 8) - 1] for n in range(1, 8)}
            assert edges_of(bins, name, kind) == sorted(quantiles - {levels[0]})
        assert bins.edges == alone.edges * 2
        assert assigned(bins, "mean_duration", values, kind) == assigned(
            alone, "mean_duration", values
        )


def test_meters_alone_do_not_make_unrelated_halves_follow_one_another() -> None:
    """Notes of one meter last 0 to 1, those of the other 1 to 2.

    Half of the real neighbours are equal. Unrelated halves share the meter, and nothing else.
    """
    random = np.random.default_rng(0)
    pairs = 8000
    kinds = random.integers(0, 2, pairs)
    left, unrelated, other = kinds + random.random((3, pairs))
    real = np.where(random.random(pairs) < 0.5, left, other)

    def floor(known: np.ndarray, count: int) -> float:
        bins = Bins.fit(dict.fromkeys(STATISTICS, left), known, count)
        first, *after = (
            bins.assign("mean_duration", each, known) for each in (left, unrelated, real)
        )
        k = bins.count("mean_duration")
        return float(correlation(*(transition_matrix(first, each, k) for each in after)))

    assert floor(np.zeros(pairs, np.int64), 1) > 0.5
    assert abs(floor(kinds, 2)) < 0.3  # by chance, 64 cells correlate by 1/8 or so


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
    assert sounding_pitch(torch.tensor([row]), FORM)[0].tolist() == expected


def songs_of(left: list[int], right: list[int]) -> np.ndarray:
    return np.array([left, right]).T


def test_pigeonhole_weights_are_products_over_different_songs() -> None:
    songs = songs_of([4, 4, 9], [4, 9, 6])
    weights = draw_pigeonhole_weights(songs, 30, np.random.default_rng(2))
    draws = np.random.default_rng(2).multinomial(3, np.full(3, 1 / 3), size=30)
    assert weights.tolist() == [[four, four * nine, nine * six] for four, six, nine in draws]
    with pytest.raises(ValueError, match="too few"):
        draw_pigeonhole_weights(np.zeros((5, 2), np.int64), 10, np.random.default_rng(0))


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
    leaps, intervals = count_leaps(lift(left.astype(np.uint8), right.astype(np.uint8)))
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
