"""Bootstraps of songs and pairs, for the uncertainty of a statistic of pairs.

Letters in shapes: `n` pairs, `K` bins, `R` resamples, `C` clusters, `M` clusters of a pair,
`S` songs of the real pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, Integer
from scipy import linalg, special

from evaluation.statistics import count_pairs_by_cluster

BLOCKS = 256
"""Pairs that share no song are dealt into at most this many blocks, and blocks are resampled. This
estimates a variance no worse, and is cheaper."""
_FEWEST_SONGS = 3
_NO_SONGS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of `n` pairs: how a statistic of pairs varies with songs and pairs.

    Pairs of two songs each (dyads) are resampled in two ways. First, songs are drawn with
    replacement; a pair counts as often as its two songs are drawn on average. Second, pairs are
    drawn, those of the same two songs together. `variance` combines both: the effect of a song on
    all its pairs, and the variation of single pairs (Aronow, Samii & Assenova 2015, by a weighted
    bootstrap). If each pair is of one song, only songs are drawn; if pairs have no song, only
    pairs. One set of resamples serves every metric of the same pairs.

    A statistic may also compare the pairs with real pairs of a set of songs. Then both are
    resampled together, for other songs would have brought other real pairs too.
    """

    clusters: Int64[np.ndarray, "n M"]
    """Clusters of each pair, numbered 0 to C - 1: two songs and a block, or a single cluster."""
    draws: Float32[np.ndarray, "R C"]
    """How often each cluster is in each resample."""
    songs: int
    """The first this many clusters are songs, or blocks of pairs without songs."""
    reference: Float32[np.ndarray, "R S"]
    """How often the real pairs of each song of the reference count in each resample."""

    @classmethod
    def draw(
        cls,
        songs: Integer[np.ndarray, "n 2"],
        resamples: int,
        random: np.random.Generator,
        reference: Integer[np.ndarray, "S"] = _NO_SONGS,
    ) -> "Resamples":
        """Draw `resamples` resamples of each kind; `songs` gives the songs of each pair, or -1.

        `reference` holds the songs of the real pairs. Raises `ValueError` with fewer than two
        clusters, or fewer than three songs where a pair has two: so few give no estimate of a
        spread.
        """
        own = np.where(songs < 0, -1 - np.arange(len(songs))[:, None] % BLOCKS, songs)
        names, numbers = np.unique(own, return_inverse=True)
        numbers, count = numbers.reshape(songs.shape), names.size
        alone = (numbers[:, 0] == numbers[:, 1]).all()
        if count < (2 if alone else 3):
            raise ValueError(f"songs: {count} are too few for an interval")
        drawn = _drawn(count, resamples, random)
        shared = np.isin(reference, names)
        real = _draw_apart(len(reference), resamples, random)
        real[:, shared] = drawn[:, np.searchsorted(names, reference[shared])]
        if alone:
            return cls(numbers[:, :1], drawn, count, real)
        low, high = np.sort(numbers, axis=1).T
        blocks = np.unique(low * count + high, return_inverse=True)[1] % BLOCKS
        drawn_blocks = _drawn(int(blocks.max()) + 1, resamples, random)
        draws = linalg.block_diag(drawn, drawn_blocks)
        # A pair deviates by half as much as one of its songs does, so the real pairs have to, too.
        real = np.concatenate(((1 + real) / 2, np.ones_like(real)))
        return cls(np.column_stack((numbers, count + blocks)), draws, count, real)

    def means(
        self,
        values: Float64[np.ndarray, "n"],
        influence: Float64[np.ndarray, "S"] | None = None,
    ) -> Float64[np.ndarray, "R"]:
        """Mean of `values` in each resample.

        `influence` says by how much the mean rises with the weight of each song of the reference.
        """
        sums, sizes = (self.draws @ self.sums_by_cluster(v) for v in (values, np.ones(len(values))))
        means: np.ndarray = sums / sizes
        return means if influence is None else means + (self.reference - 1) @ influence

    def sums_by_cluster(self, values: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "C"]:
        """Share of each cluster in the sum of `values`; of a pair, each of two songs has half."""
        return self._sums(lambda own, size: np.bincount(own, values, size))

    def count_pairs(
        self, left: Integer[np.ndarray, "n"], right: Integer[np.ndarray, "n"], k: int
    ) -> Float64[np.ndarray, "R K K"]:
        """`count_pairs` of each resample."""
        return np.tensordot(self.draws, self.count_pairs_by_cluster(left, right, k), 1)

    def count_pairs_by_cluster(
        self, left: Integer[np.ndarray, "n"], right: Integer[np.ndarray, "n"], k: int
    ) -> Float64[np.ndarray, "C K K"]:
        """Share of each cluster in `count_pairs`; of a pair, each of two songs has half."""
        return self._sums(lambda own, size: count_pairs_by_cluster(left, right, k, own, size))

    def count_bins(self, bins: Integer[np.ndarray, "n"], k: int) -> Float64[np.ndarray, "R K"]:
        """How many pairs are in each of `k` bins in each resample, without those in bin -1."""
        present = bins >= 0

        def count(own: Int64[np.ndarray, "n"], size: int) -> Int64[np.ndarray, "C K"]:
            cells = own[present] * k + bins[present]
            return np.bincount(cells, minlength=size * k).reshape(size, k)

        return np.asarray(self.draws @ self._sums(count).astype(np.float32), np.float64)

    def count_real(self, by_song: Float[np.ndarray, "S *K"]) -> Float[np.ndarray, "R *K"]:
        """Sum the counts of each song of the reference in each resample."""
        return np.tensordot(self.reference, by_song, 1)

    def _sums(self, sums: Callable[[Int64[np.ndarray, "n"], int], np.ndarray]) -> np.ndarray:
        size = self.draws.shape[1]
        first, *others = (sums(own, size) for own in self.clusters.T)
        return (first + others[0]) / 2 + others[1] if others else first

    def variance(
        self, samples: Float[np.ndarray, "*N R"]
    ) -> tuple[Float64[np.ndarray, "*N"], Float64[np.ndarray, "*N"]]:
        """Variance, over other songs and pairs, of a statistic with these values in the resamples.

        Returned with its degrees of freedom. Where each pair has two songs, one half of the pair
        stays the same while the song of the other varies, so resamples of songs deviate half as
        much as songs do. The variation of single pairs comes with each of the two songs, so it is
        counted once too often. The variance is therefore four times the variance over songs less
        the variance over pairs, but at least the latter, with Satterthwaite's (1946) degrees of
        freedom. Both are corrected by `correct_few_clusters`. Samples that are not finite are left
        out; the result is NaN if none is finite.
        """
        sizes = self.sums_by_cluster(np.ones(len(self.clusters)))
        songs_factor, songs_freedom = correct_few_clusters(sizes[: self.songs])
        if self.reference.shape[1] > 1:
            songs_freedom = min(songs_freedom, self.reference.shape[1] - 1.0)
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
        """95 % interval, by Student's t, of a statistic that is `value` on all pairs."""
        variance, freedom = self.variance(samples)
        # `scipy.stats` has this too, but it is slow to import, and every worker would wait for it.
        reach = special.stdtrit(freedom, 0.975) * np.sqrt(variance)
        return float(value - reach), float(value + reach)


def has_enough_songs(songs: Integer[np.ndarray, "n 2"]) -> bool:
    """Whether there are enough songs (or pairs, if they have no songs) to estimate a spread."""
    return len(np.unique(songs if songs.min() >= 0 else np.arange(len(songs)))) >= _FEWEST_SONGS


def auc(positive: Float[np.ndarray, "P"], negative: Float[np.ndarray, "N"]) -> float:
    """Area under the ROC curve: the chance of a positive above a negative; ties count half."""
    once = np.ones((1, len(positive))), np.ones((1, len(negative)))
    return float(resample_auc(positive, negative, *once)[0])


def resample_auc(
    positive: Float[np.ndarray, "P"],
    negative: Float[np.ndarray, "N"],
    positive_weights: Float64[np.ndarray, "R P"],
    negative_weights: Float64[np.ndarray, "R N"],
) -> Float64[np.ndarray, "R"]:
    """AUC with weighted scores, for each row of weights. NaN where all weights of a kind are 0."""
    order = np.argsort(negative)
    ordered = negative[order]
    total = np.cumsum(negative_weights[:, order], axis=1)
    total = np.hstack((np.zeros((len(total), 1)), total))
    below = total[:, np.searchsorted(ordered, positive, side="left")]
    not_above = total[:, np.searchsorted(ordered, positive, side="right")]
    wins = (positive_weights * (below + not_above) / 2).sum(1)
    pairs = positive_weights.sum(1) * total[:, -1]
    return np.asarray(np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0))


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
    """Return a factor that corrects a bootstrap variance over clusters, and degrees of freedom.

    Resamples of few clusters vary too little: with C equal clusters by a factor of (C - 1)/C. For
    unequal clusters, the factor makes the variance of a mean unbiased if only clusters differ. The
    degrees of freedom are those of the number of equal clusters with the same sum of squared
    shares.
    """
    share = sizes / sizes.sum()
    square = float((share**2).sum())
    return 1 / (1 + square - 2 * float((share**3).sum()) / square), 1 / square - 1


def draw_pigeonhole_weights(
    songs: Integer[np.ndarray, "n 2"], resamples: int, random: np.random.Generator
) -> Float64[np.ndarray, "R n"]:
    """Draw how often each of `n` pairs is in each resample.

    This is for statistics that are not sums over songs. A pair of one song counts as often as the
    song is drawn. A pair of two songs counts as often as the product of both draws: the pigeonhole
    bootstrap (Owen 2007). It gets the variance due to songs right, and the variance of single pairs
    up to three times too large. Raises `ValueError` with fewer than two songs.
    """
    names, numbers = np.unique(songs, return_inverse=True)
    if names.size < 2:
        raise ValueError(f"songs: {names.size} are too few for an interval")
    draws = _drawn(names.size, resamples, random)
    left, right = numbers.reshape(songs.shape).T
    weights = np.where(left == right, draws[:, left], draws[:, left] * draws[:, right])
    return weights.astype(np.float64)


def _drawn(count: int, resamples: int, random: np.random.Generator) -> Float32[np.ndarray, "R C"]:
    """Draw `count` items with replacement, and count how often each is drawn."""
    equal = np.full(count, 1 / count)
    draws: np.ndarray = random.multinomial(count, equal, size=resamples).astype(np.float32)
    return draws


def _draw_apart(
    count: int, resamples: int, random: np.random.Generator
) -> Float32[np.ndarray, "R S"]:
    """Draw songs that no pair has, varied as much as other songs would be."""
    if count < _FEWEST_SONGS:
        return np.ones((resamples, count), np.float32)
    factor, _ = correct_few_clusters(np.ones(count))
    drawn = _drawn(count, resamples, random)
    return np.maximum(1 + (drawn - 1) * np.float32(np.sqrt(factor)), 0)


def _variance(samples: Float[np.ndarray, "*N R"]) -> Float64[np.ndarray, "*N"]:
    """Variance of the finite samples; NaN where there are none."""
    finite = np.ma.masked_invalid(samples.astype(np.float64))
    return np.asarray(np.ma.filled(finite.var(axis=-1), np.nan))
