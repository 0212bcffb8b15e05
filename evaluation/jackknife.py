"""The jackknife over songs: the uncertainty of a statistic of pairs, for other songs.

Letters in shapes: `n` pairs, `K` bins, `R` replicates, `C` clusters, `M` clusters of a pair, `S`
songs of the real pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer, Num
from scipy import linalg, sparse, special

from evaluation.statistics import count_bins_by_cluster, count_pairs_by_cluster

BLOCKS = 256
"""Pairs that share no song are dealt into at most this many blocks, and blocks are left out. This
estimates a variance no worse, and is cheaper."""
_FEWEST_SONGS = 3
_NO_SONGS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Jackknife:
    """Replicates of a statistic of `n` pairs, each with one song left out.

    Where pairs are of two songs each (dyads), there are two kinds of replicates. In the first, all
    pairs of a song are left out. In the second, blocks of pairs are, those of the same two songs
    together. `variance` combines both: the effect of a song on all its pairs, and the variation of
    single pairs (Aronow, Samii & Assenova 2015). If each pair is of one song, only songs are left
    out; if pairs have no song, only blocks.

    A statistic may also compare the pairs with real pairs of a set of songs. These are left out
    with their songs, for other songs would have brought other real pairs, too.

    The jackknife tends to overestimate the variance of what is not linear in the pairs (Efron &
    Stein 1981), where a bootstrap underestimates it: a song that stands alone in a row of a
    transition matrix is missed wherever it is left out.
    """

    clusters: Int64[np.ndarray, "n M"]
    """Clusters of each pair, numbered 0 to C - 1: two songs and a block, or a single cluster."""
    weights: Float64[np.ndarray, "R C"]
    """Weight of each cluster in each replicate; a pair has the mean weight of its two songs."""
    songs: int
    """The first this many clusters are songs, or blocks of pairs without songs."""
    reference: Float64[np.ndarray, "R S"]
    """Weight of the real pairs of each song in each replicate."""
    first: int
    """The first this many replicates leave out songs (blocks of pairs without songs)."""
    is_dyadic: bool
    """Whether pairs are of two songs each."""

    @classmethod
    def of(
        cls, songs: Integer[np.ndarray, "n 2"], reference: Integer[np.ndarray, "S"] = _NO_SONGS
    ) -> "Jackknife":
        """Make the replicates; `songs` gives the songs of each pair, or -1 for none.

        `reference` holds the songs of the real pairs, each once. Raises `ValueError` with fewer
        than two clusters, or fewer than three songs where a pair has two: so few give no estimate
        of a spread.
        """
        own = np.where(songs < 0, -1 - np.arange(len(songs))[:, None] % BLOCKS, songs)
        names, numbers = np.unique(own, return_inverse=True)
        numbers, count = numbers.reshape(songs.shape), names.size
        is_dyadic = not (numbers[:, 0] == numbers[:, 1]).all()
        if count < (3 if is_dyadic else 2):
            raise ValueError(f"songs: {count} are too few for an interval")
        known, apart = _leave_out(names, reference)
        if songs.min() < 0:
            weights = np.concatenate((known[:count], np.ones((len(reference), count))))
            real = np.concatenate((np.ones((count, len(reference))), 1 - np.eye(len(reference))))
            return cls(numbers[:, :1], weights, count, real, count, is_dyadic=False)
        if not is_dyadic:
            return cls(numbers[:, :1], known, count, apart, len(known), is_dyadic=False)
        low, high = np.sort(numbers, axis=1).T
        blocks = np.unique(low * count + high, return_inverse=True)[1] % BLOCKS
        number = int(blocks.max()) + 1
        # A pair counts as the mean of its songs, so that a weight of -1 for one takes it out.
        weights = linalg.block_diag(2 * known - 1, 1 - np.eye(number))
        real = np.concatenate((apart, np.ones((number, len(reference)))))
        clusters = np.column_stack((numbers, count + blocks))
        return cls(clusters, weights, count, real, len(known), is_dyadic=True)

    def means(
        self,
        values: Float64[np.ndarray, "n"],
        influence: Float64[np.ndarray, "S"] | None = None,
    ) -> Float64[np.ndarray, "R"]:
        """Mean of `values` in each replicate; NaN where all pairs are left out.

        `influence` says by how much the mean rises with the weight of each song of the reference.
        """
        means = self.ratios(values, np.ones(len(values)))
        return means if influence is None else means + (self.reference - 1) @ influence

    def ratios(
        self, part: Float64[np.ndarray, "n"], whole: Float64[np.ndarray, "n"]
    ) -> Float64[np.ndarray, "R"]:
        """Sum of `part` over that of `whole`, which is never below 0, in each replicate.

        NaN where the sum of `whole` is 0.
        """
        less, all_ = (self._sum(each) for each in (part, whole))
        least = 1e-9 * whole.sum()  # 0, but for rounding
        ratios = np.divide(less, all_, out=np.full(len(all_), np.nan), where=all_ > least)
        return np.asarray(ratios)

    def _sum(self, values: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "R"]:
        sums = self._by_cluster(lambda own, size: np.bincount(own, values, size))
        return np.asarray(self.weights @ sums)

    def count_pairs(
        self, left: Integer[np.ndarray, "n"], right: Integer[np.ndarray, "n"], k: int
    ) -> Float64[np.ndarray, "R K K"]:
        """`count_pairs` of each replicate."""
        counts = self._by_cluster(
            lambda own, size: count_pairs_by_cluster(left, right, k, own, size)
        )
        return self._leave_out(counts)

    def count_bins(self, bins: Integer[np.ndarray, "n"], k: int) -> Float64[np.ndarray, "R K"]:
        """How many pairs are in each of `k` bins in each replicate, without those in bin -1."""
        counts = self._by_cluster(lambda own, size: count_bins_by_cluster(bins, k, own, size))
        return self._leave_out(counts)

    def count_real(self, by_song: Float64[np.ndarray, "S *K"]) -> Float64[np.ndarray, "R *K"]:
        """Sum the counts of each song of the reference in each replicate."""
        return np.tensordot(self.reference, by_song, 1)

    def _leave_out(self, counts: Float64[np.ndarray, "C *K"]) -> Float64[np.ndarray, "R *K"]:
        """`weights` times counts: all of them less what is left out, which is far quicker.

        Sums of counts, and of halves of them, are exact in whatever order.
        """
        flat = counts.reshape(len(counts), -1)
        kept: np.ndarray = self._keep_all(flat) - self._left_out @ flat
        return kept.reshape(-1, *counts.shape[1:])

    def _keep_all(self, counts: Float64[np.ndarray, "C K"]) -> Float64[np.ndarray, "R K"]:
        """What each replicate would count if it left nothing out: the songs, or the blocks."""
        songs, blocks = counts[: self.songs], counts[self.songs :]
        rest = blocks if self.is_dyadic else songs
        times = self.first, len(self.weights) - self.first
        return np.repeat([songs.sum(axis=0), rest.sum(axis=0)], times, axis=0)

    @cached_property
    def _left_out(self) -> sparse.csr_array:
        """The weight that each replicate takes from each cluster, mostly 0."""
        every = np.eye(self.weights.shape[1])
        return sparse.csr_array(self._keep_all(every) - self.weights)

    def _by_cluster(self, sums: Callable[[Int64[np.ndarray, "n"], int], np.ndarray]) -> np.ndarray:
        """Share of each cluster in a sum over the pairs; of a pair, each of two songs has half."""
        size = self.weights.shape[1]
        first, *others = (sums(own, size) for own in self.clusters.T)
        return (first + others[0]) / 2 + others[1] if others else first

    def variance(
        self, replicates: Float64[np.ndarray, "*N R"]
    ) -> tuple[Float64[np.ndarray, "*N"], Float64[np.ndarray, "*N"]]:
        """Variance, over other songs and pairs, of a statistic with these replicates.

        Returned with its degrees of freedom (Satterthwaite's, from those of the parts, which are
        few where few songs make up most of the variance). The variation of single pairs comes
        with each of their two songs, so it is counted once too often where songs are left out. The
        variance is therefore that over songs less that over pairs, but at least the latter. Pairs
        without songs and the songs of real pairs vary independently, so both variances add up.
        Replicates that are not finite are left out; the result is NaN if none is finite.
        """
        sizes = self._by_cluster(lambda own, size: np.bincount(own, minlength=size))
        songs = _variance(replicates[..., : self.first], count_freedom(sizes[: self.songs]))
        if replicates.shape[-1] == self.first:
            return songs
        most = count_freedom(sizes[self.songs :]) if self.is_dyadic else np.inf
        others = _variance(replicates[..., self.first :], most)
        both = songs[0] - others[0] if self.is_dyadic else songs[0] + others[0]
        variance = np.asarray(np.maximum(both, others[0]))
        return variance, satterthwaite(variance, songs, others)

    def interval(self, value: float, replicates: Float64[np.ndarray, "R"]) -> tuple[float, float]:
        """95 % interval, by Student's t, of a statistic that is `value` on all pairs."""
        variance, freedom = self.variance(replicates)
        # `scipy.stats` has this too, but it is slow to import, and every worker would wait for it.
        reach = special.stdtrit(freedom, 0.975) * np.sqrt(variance)
        return float(value - reach), float(value + reach)


def has_enough_songs(songs: Integer[np.ndarray, "n 2"]) -> bool:
    """Whether there are enough songs (or pairs, if they have no songs) to estimate a spread."""
    return len(np.unique(songs if songs.min() >= 0 else np.arange(len(songs)))) >= _FEWEST_SONGS


def satterthwaite(
    variance: Float64[np.ndarray, "*N"], *parts: tuple[np.ndarray | float, np.ndarray | float]
) -> Float64[np.ndarray, "*N"]:
    """Degrees of freedom (1946) of a variance that is a sum of parts; 1 where it is 0.

    Each of `parts` is a mean square and its own degrees of freedom.
    """
    known = variance == 0
    spread = sum(np.square(part) / freedom for part, freedom in parts)
    return np.asarray(np.where(known, 1, variance**2) / np.where(known, 1, spread))


def count_freedom(sizes: Num[np.ndarray, "C"]) -> float:
    """Degrees of freedom of a variance over clusters of these sizes.

    One less than the number of equal clusters with the same sum of squared shares.
    """
    return float(sizes.sum() ** 2 / np.square(sizes).sum() - 1)


def _leave_out(
    names: Integer[np.ndarray, "C"], reference: Integer[np.ndarray, "S"]
) -> tuple[Float64[np.ndarray, "R C"], Float64[np.ndarray, "R S"]]:
    """Weights of clusters and of real pairs' songs, where one name of either is left out."""
    every = np.concatenate((names, reference[~np.isin(reference, names)]))
    known, apart = (np.not_equal.outer(every, each) for each in (names, reference))
    return known.astype(np.float64), apart.astype(np.float64)


def _variance(
    replicates: Float64[np.ndarray, "*N R"], most: float
) -> tuple[Float64[np.ndarray, "*N"], Float64[np.ndarray, "*N"]]:
    """The jackknife's variance from the finite replicates, and its degrees of freedom.

    It is the sum of what each song adds. Its degrees of freedom are twice its square over the
    variance of this sum, which is estimated from how much the songs' parts differ: S - 1 for many
    alike, about twice as many as there are songs that matter where few do; at least 1, and at most
    `most`. NaN where no replicate is finite.
    """
    finite = np.isfinite(replicates)
    number = finite.sum(axis=-1)
    parts = np.square(_centred(replicates, finite))
    total = np.where(number > 0, parts.sum(axis=-1), np.nan)
    spread = np.square(_centred(parts, finite)).sum(axis=-1) / np.maximum(number, 1)
    spread = spread * number**2 / np.maximum(number - 1, 1)
    known = spread > 0
    freedom = np.where(known, 2 * total**2 / np.where(known, spread, 1), np.inf)
    variance = total * (number - 1) / np.maximum(number, 1)
    return np.asarray(variance), np.asarray(freedom.clip(1, np.minimum(most, number - 1).clip(1)))


def _centred(
    values: Float64[np.ndarray, "*N R"], finite: Bool[np.ndarray, "*N R"]
) -> Float64[np.ndarray, "*N R"]:
    """The finite values less their mean, and 0 for the others, which so add nothing to a sum.

    This is what a masked array would give, in a fraction of its time.
    """
    number = np.maximum(finite.sum(axis=-1, keepdims=True), 1)
    mean = np.where(finite, values, 0).sum(axis=-1, keepdims=True) / number
    return np.where(finite, values - mean, 0)
