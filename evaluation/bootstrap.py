"""How sure one may be of a figure of pairs: bootstraps of songs and pairs.

Letters in shapes: `n` pairs, `K` bins, `R` resamples, `C` clusters, `M` clusters of a pair.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, Integer
from scipy import linalg, special

from evaluation.statistics import count_pairs_by_cluster

BLOCKS = 256
"""Pairs that share no song are dealt into at most so many blocks, and blocks are resampled: no
worse an estimate of a variance, and cheaper."""
_FEWEST_SONGS = 3


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of `n` pairs, for how a figure of theirs varies with songs and pairs.

    Pairs of two songs each (dyads) are drawn twice over. First songs are drawn, with replacement: a
    pair counts as often as its two songs are drawn on average. Then pairs are drawn, those of the
    same two songs together. `variance` puts the two together: what a song adds to all its pairs,
    plus what is a pair's own (Aronow, Samii & Assenova 2015, by a weighted bootstrap). Of pairs
    that are each of one song, songs are drawn; of those that are of none, pairs. One set of
    resamples serves every metric of the same pairs.
    """

    clusters: Int64[np.ndarray, "n M"]
    """Number of each pair's clusters, 0 to C - 1: its two songs and its block, or its only one."""
    draws: Float32[np.ndarray, "R C"]
    """How often each cluster is in each resample."""
    songs: int
    """Clusters that are songs, or the blocks of pairs without: the first so many."""

    @classmethod
    def draw(
        cls, songs: Integer[np.ndarray, "n 2"], resamples: int, random: np.random.Generator
    ) -> "Resamples":
        """Draw so many resamples of each kind; `songs` names those of each pair, -1 for none.

        ValueError with fewer than two clusters, or three songs of which each pair has two: no
        spread can be learned from so few.
        """
        n = len(songs)
        names, numbers = np.unique(
            np.where(songs < 0, -1 - np.arange(n)[:, None] % BLOCKS, songs), return_inverse=True
        )
        numbers, count = numbers.reshape(songs.shape), names.size
        alone = (numbers[:, 0] == numbers[:, 1]).all()
        if count < (2 if alone else 3):
            raise ValueError("songs: there are too few for an interval")
        drawn = _drawn(count, resamples, random)
        if alone:
            return cls(numbers[:, :1], drawn, count)
        low, high = np.sort(numbers, axis=1).T
        blocks = np.unique(low * count + high, return_inverse=True)[1] % BLOCKS
        drawn_blocks = _drawn(int(blocks.max()) + 1, resamples, random)
        draws = linalg.block_diag(drawn, drawn_blocks)
        return cls(np.column_stack((numbers, count + blocks)), draws, count)

    def means(self, values: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "R"]:
        """Mean of `values` in each resample."""
        sums, sizes = (self.draws @ self.sums_by_cluster(v) for v in (values, np.ones(len(values))))
        means: np.ndarray = sums / sizes
        return means

    def sums_by_cluster(self, values: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "C"]:
        """What each cluster adds to the sum of `values`; of two songs, half a pair each."""
        return self._sums(lambda own, size: np.bincount(own, values, size))

    def count_pairs(
        self, left: Integer[np.ndarray, "n"], right: Integer[np.ndarray, "n"], k: int
    ) -> Float64[np.ndarray, "R K K"]:
        """`count_pairs` of each resample."""
        return np.tensordot(self.draws, self.count_pairs_by_cluster(left, right, k), 1)

    def count_pairs_by_cluster(
        self, left: Integer[np.ndarray, "n"], right: Integer[np.ndarray, "n"], k: int
    ) -> Float64[np.ndarray, "C K K"]:
        """What each cluster adds to `count_pairs`; of two songs, half a pair each."""
        return self._sums(lambda own, size: count_pairs_by_cluster(left, right, k, own, size))

    def _sums(self, sums: Callable[[Int64[np.ndarray, "n"], int], np.ndarray]) -> np.ndarray:
        size = self.draws.shape[1]
        first, *others = (sums(own, size) for own in self.clusters.T)
        return (first + others[0]) / 2 + others[1] if others else first

    def variance(
        self, samples: Float[np.ndarray, "*N R"]
    ) -> tuple[Float64[np.ndarray, "*N"], Float64[np.ndarray, "*N"]]:
        """Variance, for other songs and pairs, of what has these values in the resamples.

        And its degrees of freedom. Where each pair has two songs, half of it stays while one song
        varies, so that resamples of songs deviate half as much as songs do; and what is a pair's
        own comes with either song, once too often. Hence four times the one variance less the
        other, and no less than the other, with degrees of freedom by Satterthwaite (1946). Each is
        corrected by `correct_few_clusters`. NaN without a finite value; others are left out.
        """
        sizes = self.sums_by_cluster(np.ones(len(self.clusters)))
        songs_factor, songs_freedom = correct_few_clusters(sizes[: self.songs])
        if len(sizes) == self.songs:
            variance = np.asarray(songs_factor * _variance(samples))
            return variance, np.full(variance.shape, songs_freedom)
        pairs_factor, pairs_freedom = correct_few_clusters(sizes[self.songs :])
        half = len(self.draws) // 2
        songs = 4 * songs_factor * _variance(samples[..., :half])
        pairs = pairs_factor * _variance(samples[..., half:])
        variance = np.asarray(np.maximum(songs - pairs, pairs))
        return variance, satterthwaite(variance, (songs, songs_freedom), (pairs, pairs_freedom))

    def interval(self, value: float, samples: Float[np.ndarray, "R"]) -> tuple[float, float]:
        """95 % interval of what is `value` on all pairs: Student's t."""
        variance, freedom = self.variance(samples)
        # As `scipy.stats` has it, which is slow to import: every worker would wait for it.
        reach = special.stdtrit(freedom, 0.975) * np.sqrt(variance)
        return float(value - reach), float(value + reach)


def has_enough_songs(songs: Integer[np.ndarray, "n 2"]) -> bool:
    """Whether there are songs enough (or pairs, of those without songs) to learn a spread from."""
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


def correct_few_clusters(sizes: Float64[np.ndarray, "C"]) -> tuple[float, float]:
    """What to multiply the variance of a bootstrap of such clusters by, and degrees of freedom.

    Resamples of few clusters vary too little: with C equal ones by (C - 1)/C. Of unequal ones, the
    factor is what makes the variance of a mean unbiased where clusters alone differ; and they count
    as so many equal ones as have their sum of squares.
    """
    share = sizes / sizes.sum()
    square = float((share**2).sum())
    return 1 / (1 + square - 2 * float((share**3).sum()) / square), 1 / square - 1


def draw_pigeonhole_weights(
    songs: Integer[np.ndarray, "n 2"], resamples: int, random: np.random.Generator
) -> Float64[np.ndarray, "R n"]:
    """How often each of `n` pairs is in each resample, for what is no sum over songs.

    A pair of one song is there as often as that is drawn, a pair of two as often as the product of
    both says: the pigeonhole bootstrap (Owen 2007). What songs do to their pairs varies as it
    should, what is a pair's own up to three times too much. ValueError with fewer than two songs.
    """
    names, numbers = np.unique(songs, return_inverse=True)
    if names.size < 2:
        raise ValueError("songs: there are too few for an interval")
    draws = _drawn(names.size, resamples, random)
    left, right = numbers.reshape(songs.shape).T
    weights = np.where(left == right, draws[:, left], draws[:, left] * draws[:, right])
    return weights.astype(np.float64)


def _drawn(count: int, resamples: int, random: np.random.Generator) -> Float32[np.ndarray, "R C"]:
    """How often each of `count` is drawn when as many are drawn with replacement."""
    equal = np.full(count, 1 / count)
    draws: np.ndarray = random.multinomial(count, equal, size=resamples).astype(np.float32)
    return draws


def _variance(samples: Float[np.ndarray, "*N R"]) -> Float64[np.ndarray, "*N"]:
    """Variance of the finite samples; NaN where there are none."""
    finite = np.ma.masked_invalid(samples.astype(np.float64))
    return np.asarray(np.ma.filled(finite.var(axis=-1), np.nan))
