"""Intervals by the jackknife, against songs and pairs that are left out one by one."""

from collections.abc import Callable

import numpy as np
import pytest

from evaluation.jackknife import BLOCKS, Jackknife, count_freedom


def songs_of(left: list[int], right: list[int]) -> np.ndarray:
    return np.array([left, right]).T


def slowly(
    songs: np.ndarray, values: np.ndarray, statistic: Callable[[np.ndarray], float]
) -> tuple[list[float], list[float]]:
    """A statistic without each song, and without each two songs' pairs."""
    kept = [(songs != song).all(axis=1) for song in np.unique(songs)]
    dyads = [frozenset(pair) for pair in songs.tolist()]
    rest = [np.array([own != dyad for own in dyads]) for dyad in sorted(set(dyads), key=sorted)]
    return [statistic(values[k]) for k in kept], [statistic(values[k]) for k in rest]


def variance(replicates: list[float]) -> float:
    """The textbook formula."""
    mean = sum(replicates) / len(replicates)
    n = len(replicates)
    return (n - 1) / n * sum((x - mean) ** 2 for x in replicates)


def dyads(count: int, songs: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.array([generator.choice(songs, 2, replace=False) for _ in range(count)])


def test_a_song_is_left_out_with_all_its_pairs_and_pairs_with_their_like() -> None:
    songs, generator = dyads(60, 6, 0), np.random.default_rng(1)
    values = generator.normal(size=60)
    one, other = slowly(songs, values, lambda kept: float(np.mean(kept)))
    found = Jackknife.of(songs).means(values)
    assert found.tolist() == pytest.approx([*one, *other])
    assert Jackknife.of(songs).songs == len(one) == 6


def test_counts_without_a_song_are_those_of_all_other_pairs() -> None:
    songs, generator = dyads(60, 6, 0), np.random.default_rng(1)
    left, right = generator.integers(-1, 4, (2, 60)).astype(np.int8)
    jackknife = Jackknife.of(songs, np.array([2, 4, 8]))
    pairs, bins = jackknife.count_pairs(left, right, 4), jackknife.count_bins(left, 4)
    for song in range(6):
        expected = np.zeros((4, 4))
        alone = np.zeros(4)
        for own, i, j in zip(songs, left, right, strict=True):
            if song not in own:
                alone[i] += i >= 0
                expected[i, j] += i >= 0 and j >= 0
        np.testing.assert_allclose(pairs[song], expected, atol=1e-9)
        np.testing.assert_allclose(bins[song], alone, atol=1e-9)


def test_real_pairs_are_left_out_with_their_songs() -> None:
    songs, by_song = dyads(60, 6, 0), np.array([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]])
    jackknife = Jackknife.of(songs, np.array([2, 4, 8]))  # song 8 has no pairs
    real = jackknife.count_real(by_song)
    without = {2: [20.0, 40.0], 4: [17.0, 34.0], 6: [5.0, 10.0]}
    for row, found in enumerate(real.tolist()):
        # Rows 0 to 5 are the pairs' songs, row 6 is the other one; pairs come after that.
        assert found == without.get(row, [21.0, 42.0])
    values = np.random.default_rng(1).normal(size=60)
    influence = np.array([0.5, -0.2, -0.3])
    moved = jackknife.means(values, influence) - jackknife.means(values)
    assert moved[:7].tolist() == pytest.approx([0, 0, -0.5, 0, 0.2, 0, 0.3])
    assert (moved[7:] == 0).all()


def test_pairs_of_one_song_are_left_out_with_it() -> None:
    songs, values = songs_of([7, 7, 2, 5], [7, 7, 2, 5]), np.array([1.0, 2.0, 4.0, 8.0])
    jackknife = Jackknife.of(songs, np.array([7, 9]))
    assert jackknife.means(values).tolist() == pytest.approx([11 / 3, 7 / 3, 6, 15 / 4])
    assert jackknife.reference.tolist() == [[1, 1], [1, 1], [0, 1], [1, 0]]


def test_pairs_without_songs_are_left_out_in_blocks_and_real_songs_apart() -> None:
    none = np.full((600, 2), -1)
    jackknife = Jackknife.of(none, np.array([3, 5]))
    assert jackknife.songs == BLOCKS
    sizes = np.bincount(jackknife.clusters[:, 0])
    assert set(sizes.tolist()) == {600 // BLOCKS, 600 // BLOCKS + 1}
    values = np.random.default_rng(0).normal(size=600)
    means = jackknife.means(values, np.array([0.25, -0.25]))
    assert means[-2:].tolist() == pytest.approx([values.mean() - 0.25, values.mean() + 0.25])
    # What is independent adds up.
    alone = Jackknife.of(none)
    expected = alone.variance(alone.means(values))[0] + variance([-0.25, 0.25])
    assert jackknife.variance(means)[0] == pytest.approx(expected)


def test_too_few_songs_give_no_interval() -> None:
    with pytest.raises(ValueError, match="too few"):
        Jackknife.of(np.zeros((5, 2), np.int64))
    with pytest.raises(ValueError, match="too few"):
        Jackknife.of(songs_of([0, 1, 0], [1, 0, 1]))


@pytest.mark.parametrize("own", [1.0, 9.0])
def test_the_variance_counts_single_pairs_once(own: float) -> None:
    generator, songs = np.random.default_rng(3), dyads(150, 12, 3)
    values = generator.normal(size=12)[songs].sum(axis=1) + generator.normal(0, own, 150)
    one, other = slowly(songs, values, lambda kept: float(np.mean(kept)))
    over_songs, over_pairs = variance(one), variance(other)
    expected = max(over_songs - over_pairs, over_pairs)
    jackknife = Jackknife.of(songs)
    assert jackknife.variance(jackknife.means(values))[0] == pytest.approx(expected)


def test_of_single_songs_it_is_the_variance_of_a_mean() -> None:
    values = np.random.default_rng(4).normal(size=9)
    song = np.arange(9)
    jackknife = Jackknife.of(np.stack((song, song), 1))
    found, _ = jackknife.variance(jackknife.means(values))
    assert found == pytest.approx(values.var(ddof=1) / 9)


def test_freedom_is_small_where_few_songs_matter() -> None:
    song = np.arange(200)
    jackknife = Jackknife.of(np.stack((song, song), 1))
    alike = np.where(song % 2, 1.0, -1.0)
    assert jackknife.variance(jackknife.means(alike))[1] == pytest.approx(199)
    few = np.where(song < 4, 10 * alike, 0.0)
    # Parts of 4 of 200: their variance is that of a share of 4 / 200.
    expected = 2 * 4 / (1 - 4 / 200) * (199 / 200)
    assert jackknife.variance(jackknife.means(few))[1] == pytest.approx(expected, rel=1e-6)
    normal = np.random.default_rng(0).normal(size=200)
    assert 120 < jackknife.variance(jackknife.means(normal))[1] <= 199


def test_freedom_is_that_of_as_many_equal_clusters() -> None:
    assert count_freedom(np.full(8, 3.0)) == pytest.approx(7)
    # Shares 1/2, 1/4, 1/4, whose squares sum to 3/8.
    assert count_freedom(np.array([2.0, 1.0, 1.0])) == pytest.approx(8 / 3 - 1)


def test_intervals_leave_out_what_is_not_finite() -> None:
    jackknife = Jackknife.of(songs_of([0, 1, 2, 3], [0, 1, 2, 3]))
    low, high = jackknife.interval(2.0, np.array([1.0, 3.0, np.nan, np.inf]))
    # Half of a sum of squares of 2, from two replicates: one degree of freedom.
    assert (low, high) == pytest.approx((2 - 12.7062, 2 + 12.7062), rel=1e-4)
    assert np.isnan(jackknife.interval(2.0, np.full(4, np.nan))).all()


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
        jackknife = Jackknife.of(np.stack((left, right), 1))
        low, high = jackknife.interval(values.mean(), jackknife.means(values))
        covered += low <= 0 <= high
    assert covered / simulations >= 0.93


@pytest.mark.parametrize("kind", ["two songs", "one song", "no songs"])
def test_counts_of_replicates_are_their_weights_times_the_counts_of_clusters(kind: str) -> None:
    generator = np.random.default_rng(3)
    songs = generator.integers(0, 30, (400, 2))
    songs = {"two songs": songs, "one song": songs[:, [0, 0]], "no songs": 0 * songs - 1}[kind]
    jackknife = Jackknife.of(songs, np.arange(20, 40))
    bins = generator.integers(-1, 5, 400)
    each = [jackknife.ratios((bins == one).astype(np.float64), np.ones(400)) for one in range(5)]
    whole = jackknife._sum(np.ones(400))
    counts = jackknife.count_bins(bins, 5)
    np.testing.assert_allclose(counts, np.stack(each, axis=1) * whole[:, None], atol=1e-9)


def test_replicates_that_are_not_finite_are_left_out_of_a_variance() -> None:
    jackknife = Jackknife.of(np.repeat(np.arange(6), 2).reshape(6, 2))
    replicates = np.array([1.0, np.nan, 2.0, 4.0, np.inf, 3.0])
    variance, _ = jackknife.variance(np.stack([replicates, np.full(6, np.nan)]))
    kept = replicates[np.isfinite(replicates)]
    assert variance[0] == pytest.approx(kept.var() * 3)
    assert np.isnan(variance[1])
