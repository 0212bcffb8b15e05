"""Musical statistics of segments, how they follow one another, and how sure one may be of it.

Coherency of a set of pairs, by one statistic: bin the statistic of both halves, count which bin
follows which, and correlate that matrix with the matrix of real adjacent pairs.

A segment without notes has a note count of 0 and NaN for the rest. NaN falls in bin -1, and a pair
with a half in bin -1 enters no matrix: silence can neither help nor hurt such a correlation, so the
pairs left out are to be counted and shown.

Letters in shapes: `B` segments, `T` steps, `n` pairs, `K` bins, `R` resamples, `C` clusters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, Integer
from scipy import linalg, special
from scipy.spatial.distance import cdist

from cf_core.errors import UserError
from cf_core.melody import FIRST_PITCH, HOLD, MelodyFormat

STATISTICS: tuple[str, ...] = (
    "mean_pitch",
    "pitch_range",
    "note_count",
    "mean_duration",
    "pitch_class",
)

QUANTILE_BINS = 8
PITCH_CLASSES = 12

CELLS: dict[str, float] = {
    "mean_pitch": 1.0,
    "pitch_range": 1.0,
    "note_count": 1.0,
    "mean_duration": 1 / 8,
    "pitch_class": 1.0,
}
"""Width of the cells of a statistic's density, in its own units: semitones, notes, quarter notes.
"""

NEIGHBOURS = 5
"""`k` of density and coverage."""


def segment_statistics(
    tokens: Integer[np.ndarray, "B T"], form: MelodyFormat
) -> dict[str, Float64[np.ndarray, "B"]]:
    """Compute the five statistics of every segment, by the names in `STATISTICS`.

    - `mean_pitch`: mean MIDI number of the notes, each counted once however long;
    - `pitch_range`: highest minus lowest note, in semitones;
    - `note_count`: number of onsets;
    - `mean_duration`: mean length of the notes, in quarter notes;
    - `pitch_class`: the class that sounds for the most steps, 0 (C) to 11 (B), lowest of equals.

    Notes are those of `cf_core.melody.to_notes`: a hold with no note before it sounds nothing.
    Without notes `note_count` is 0 and the others are NaN.
    """
    struck, pitch = tokens >= FIRST_PITCH, sounding_pitch(tokens, form)
    sounding = pitch >= 0

    count = struck.sum(axis=1).astype(np.float64)
    notes = np.where(count > 0, count, np.nan)
    highest = np.where(struck, pitch, form.lowest).max(axis=1)
    lowest = np.where(struck, pitch, form.highest).min(axis=1)
    segment, step = np.nonzero(sounding)
    class_steps = np.bincount(
        segment * PITCH_CLASSES + pitch[segment, step] % PITCH_CLASSES,
        minlength=len(tokens) * PITCH_CLASSES,
    ).reshape(-1, PITCH_CLASSES)
    return {
        "mean_pitch": np.where(struck, pitch, 0).sum(axis=1) / notes,
        "pitch_range": np.where(count > 0, highest - lowest, np.nan),
        "note_count": count,
        "mean_duration": sounding.sum(axis=1) / notes / form.steps_per_beat,
        "pitch_class": np.where(count > 0, class_steps.argmax(axis=1), np.nan),
    }


def sounding_pitch(
    tokens: Integer[np.ndarray, "B T"], form: MelodyFormat
) -> Int64[np.ndarray, "B T"]:
    """The MIDI number that sounds at each step; -1 where none does."""
    tokens = tokens.astype(np.int64)
    steps = np.arange(tokens.shape[1])
    last_not_hold = np.maximum.accumulate(np.where(tokens == HOLD, 0, steps), axis=1)
    last = np.take_along_axis(tokens, last_not_hold, axis=1)
    return np.where(last >= FIRST_PITCH, last - FIRST_PITCH + form.lowest, -1)


@dataclass(frozen=True)
class Bins:
    """Where the bins of each statistic meet: bin `i` holds `edges[i - 1] <= value < edges[i]`.

    The first and the last bin are open to that side.
    """

    edges: Mapping[str, tuple[float, ...]]

    @classmethod
    def fit(cls, statistics: Mapping[str, Float64[np.ndarray, "B"]]) -> "Bins":
        """Bins of training segments: quantiles for the four scalars, the 12 classes for the fifth.

        Each edge is a value that occurs, and no bin is empty on the training segments. Quantiles of
        a discrete statistic can coincide; equal ones make one edge, so there may be fewer than
        `QUANTILE_BINS` bins (`count` says how many). ValueError if no segment has a note.
        """
        edges = {"pitch_class": tuple(float(edge) for edge in range(1, PITCH_CLASSES))}
        for statistic in STATISTICS[:-1]:
            values = statistics[statistic][np.isfinite(statistics[statistic])]
            if values.size == 0:
                raise ValueError(f"{statistic}: no training segment has a note")
            levels = np.arange(1, QUANTILE_BINS) / QUANTILE_BINS
            quantiles = np.unique(np.quantile(values, levels, method="inverted_cdf"))
            edges[statistic] = tuple(quantiles[quantiles > values.min()].tolist())
        return cls(edges)

    @classmethod
    def from_dict(cls, record: Mapping[str, list[float]]) -> "Bins":
        """Read what `to_dict` wrote; UserError if it can't have written that."""
        ascending = all(np.all(np.diff(edges) > 0) for edges in record.values())
        if set(record) != set(STATISTICS) or not ascending:
            raise UserError(
                f"bins: ascending edges are needed for {', '.join(STATISTICS)} and nothing else;"
                " fit them again on the training segments"
            )
        return cls({statistic: tuple(edges) for statistic, edges in record.items()})

    def to_dict(self) -> dict[str, list[float]]:
        """Give the edges by statistic, for JSON; they come back bit for bit."""
        return {statistic: list(edges) for statistic, edges in self.edges.items()}

    def count(self, statistic: str) -> int:
        """`K`, the number of bins of `statistic`."""
        return len(self.edges[statistic]) + 1

    def assign(self, statistic: str, values: Float64[np.ndarray, "B"]) -> Int64[np.ndarray, "B"]:
        """Give the bin of each value, 0 to K - 1; -1 for NaN."""
        bins = np.searchsorted(self.edges[statistic], values, side="right")
        return np.where(np.isnan(values), -1, bins)


def pair_counts(
    left: Integer[np.ndarray, "n"], right: Integer[np.ndarray, "n"], k: int
) -> Float64[np.ndarray, "K K"]:
    """How many pairs go from bin `i` to bin `j`; those with a bin of -1 are left out."""
    one_cluster = np.zeros(len(left), np.int64)
    counts: np.ndarray = _clustered_counts(left, right, k, one_cluster, 1)[0]
    return counts


def row_stochastic(counts: Float64[np.ndarray, "*R K K"]) -> Float64[np.ndarray, "*R K K"]:
    """How often bin `j` follows bin `i`, among the pairs whose left half is in bin `i`.

    Rows sum to 1: every cell starts with a count of 1/K, so a row never seen is uniform.
    """
    smoothed = counts + 1 / counts.shape[-1]
    matrix: np.ndarray = smoothed / smoothed.sum(axis=-1, keepdims=True)
    return matrix


def joint(counts: Float64[np.ndarray, "*R K K"]) -> Float64[np.ndarray, "*R K K"]:
    """Share of all pairs that go from bin `i` to bin `j`, not smoothed; all 0 without pairs."""
    total = counts.sum(axis=(-2, -1), keepdims=True)
    return counts / np.where(total > 0, total, 1)


def transition_matrix(
    left: Integer[np.ndarray, "n"], right: Integer[np.ndarray, "n"], k: int
) -> Float64[np.ndarray, "K K"]:
    """The `row_stochastic` matrix of pairs by their bins, of which there are `k`."""
    return row_stochastic(pair_counts(left, right, k))


def correlation(
    matrices: Float64[np.ndarray, "*R K K"], reference: Float64[np.ndarray, "K K"]
) -> Float64[np.ndarray, "*R"]:
    """Pearson correlation over the K² entries of each matrix and `reference`, -1 to 1.

    NaN where either is constant, as every matrix of one bin is.
    """
    a = matrices.reshape(*matrices.shape[:-2], -1)
    b = reference.ravel()
    # Equal shares can differ in their last bits, and the correlation would then be that noise's.
    constant = (np.ptp(a, axis=-1) < 1e-12) | (np.ptp(b) < 1e-12)
    a = a - a.mean(axis=-1, keepdims=True)
    b = b - b.mean()
    norms = np.where(constant, np.nan, np.linalg.norm(a, axis=-1) * np.linalg.norm(b))
    return np.asarray(np.clip(a @ b / norms, -1, 1))


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
        cls, songs: Integer[np.ndarray, "n 2"], resamples: int, generator: np.random.Generator
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
        drawn = _drawn(count, resamples, generator)
        if alone:
            return cls(numbers[:, :1], drawn, count)
        low, high = np.sort(numbers, axis=1).T
        blocks = np.unique(low * count + high, return_inverse=True)[1] % BLOCKS
        drawn_blocks = _drawn(int(blocks.max()) + 1, resamples, generator)
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

    def pair_counts(
        self, left: Integer[np.ndarray, "n"], right: Integer[np.ndarray, "n"], k: int
    ) -> Float64[np.ndarray, "R K K"]:
        """`pair_counts` of each resample."""
        return np.tensordot(self.draws, self.counts_by_cluster(left, right, k), 1)

    def counts_by_cluster(
        self, left: Integer[np.ndarray, "n"], right: Integer[np.ndarray, "n"], k: int
    ) -> Float64[np.ndarray, "C K K"]:
        """What each cluster adds to `pair_counts`; of two songs, half a pair each."""
        return self._sums(lambda own, size: _clustered_counts(left, right, k, own, size))

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
        corrected by `few_clusters`. NaN without a finite value; others are left out.
        """
        sizes = self.sums_by_cluster(np.ones(len(self.clusters)))
        songs_factor, songs_freedom = few_clusters(sizes[: self.songs])
        if len(sizes) == self.songs:
            variance = np.asarray(songs_factor * _variance(samples))
            return variance, np.full(variance.shape, songs_freedom)
        pairs_factor, pairs_freedom = few_clusters(sizes[self.songs :])
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


def enough_songs(songs: Integer[np.ndarray, "n 2"]) -> bool:
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


def few_clusters(sizes: Float64[np.ndarray, "C"]) -> tuple[float, float]:
    """What to multiply the variance of a bootstrap of such clusters by, and degrees of freedom.

    Resamples of few clusters vary too little: with C equal ones by (C - 1)/C. Of unequal ones, the
    factor is what makes the variance of a mean unbiased where clusters alone differ; and they count
    as so many equal ones as have their sum of squares.
    """
    share = sizes / sizes.sum()
    square = float((share**2).sum())
    return 1 / (1 + square - 2 * float((share**3).sum()) / square), 1 / square - 1


def pigeonhole_weights(
    songs: Integer[np.ndarray, "n 2"], resamples: int, generator: np.random.Generator
) -> Float64[np.ndarray, "R n"]:
    """How often each of `n` pairs is in each resample, for what is no sum over songs.

    A pair of one song is there as often as that is drawn, a pair of two as often as the product of
    both says: the pigeonhole bootstrap (Owen 2007). What songs do to their pairs varies as it
    should, what is a pair's own up to three times too much. ValueError with fewer than two songs.
    """
    names, numbers = np.unique(songs, return_inverse=True)
    if names.size < 2:
        raise ValueError("songs: there are too few for an interval")
    draws = _drawn(names.size, resamples, generator)
    left, right = numbers.reshape(songs.shape).T
    weights = np.where(left == right, draws[:, left], draws[:, left] * draws[:, right])
    return weights.astype(np.float64)


def overlap_area(
    one: Mapping[str, Float64[np.ndarray, "n"]], other: Mapping[str, Float64[np.ndarray, "m"]]
) -> float:
    """Area that the densities of two sets of segments share, mean over the statistics, 0 to 1.

    The "overlapped area" of Yang & Lerch (2020). Densities are histograms on one grid for both
    sets, with cells as wide as `CELLS` says: sets that lie apart share nothing, whatever their
    shapes. Two finite samples of one distribution stay below 1, the smaller the further. All values
    must be finite.
    """
    areas = []
    for statistic, width in CELLS.items():
        values = np.concatenate((one[statistic], other[statistic]))
        cell = np.unique(np.floor(values / width), return_inverse=True)[1]
        sizes = len(one[statistic]), len(other[statistic])
        shares = (
            np.bincount(part, minlength=cell.max() + 1) / len(part)
            for part in np.split(cell, sizes[:1])
        )
        areas.append(np.minimum(*shares).sum())
    return float(np.mean(areas))


def pair_features(
    left: Mapping[str, Float64[np.ndarray, "n"]],
    right: Mapping[str, Float64[np.ndarray, "n"]],
    deviations: Mapping[str, float],
) -> Float64[np.ndarray, "n D"]:
    """Pairs as points of 12 dimensions: the statistics of both halves, in comparable units.

    Each statistic is divided by its deviation over the training segments; the pitch class, of which
    the last is next to the first, is two dimensions, a point of the unit circle.
    """
    columns = []
    for half in (left, right):
        columns += [half[name] / (deviations[name] or 1.0) for name in STATISTICS[:-1]]
        angle = half["pitch_class"] * (2 * np.pi / PITCH_CLASSES)
        columns += [np.cos(angle), np.sin(angle)]
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Neighbourhoods:
    """Balls around real points; each reaches to the point's `NEIGHBOURS`-th nearest other one."""

    centres: Float64[np.ndarray, "N D"]
    radii: Float64[np.ndarray, "N"]

    @classmethod
    def fit(cls, real: Float64[np.ndarray, "N D"]) -> "Neighbourhoods":
        """The balls of the real points; of too few points the farthest other one is taken."""
        nearest_first = np.sort(cdist(real, real), axis=1)  # the point itself, then the others
        return cls(real, nearest_first[:, min(NEIGHBOURS, len(real) - 1)])

    def density_and_coverage(self, points: Float64[np.ndarray, "M D"]) -> tuple[float, float]:
        """Density (0 and up) and coverage (0 to 1) of generated points (Naeem et al. 2020).

        Density is the number of balls that a point lies in, mean over the points, over
        `NEIGHBOURS`: near 1 where real and generated points are alike, more where the latter crowd
        the densest places. Coverage is the share of balls with a point; it rises with the number of
        points. Balls are closed, as real music repeats itself and a radius can be 0.
        """
        inside = cdist(self.centres, points) <= self.radii[:, None]
        return float(inside.sum(axis=0).mean() / NEIGHBOURS), float(inside.any(axis=1).mean())


def _clustered_counts(
    left: Integer[np.ndarray, "n"],
    right: Integer[np.ndarray, "n"],
    k: int,
    cluster: Int64[np.ndarray, "n"],
    clusters: int,
) -> Float64[np.ndarray, "C K K"]:
    present = (left >= 0) & (right >= 0)
    # Bins may come in 8 bits, in which the number of a cell would overflow.
    cells = (cluster * k + left) * k + right
    counts = np.bincount(cells[present], minlength=clusters * k * k)
    return counts.reshape(clusters, k, k).astype(np.float64)


def _drawn(
    count: int, resamples: int, generator: np.random.Generator
) -> Float32[np.ndarray, "R C"]:
    """How often each of `count` is drawn when as many are drawn with replacement."""
    equal = np.full(count, 1 / count)
    draws: np.ndarray = generator.multinomial(count, equal, size=resamples).astype(np.float32)
    return draws


def _variance(samples: Float[np.ndarray, "*N R"]) -> Float64[np.ndarray, "*N"]:
    finite = np.isfinite(samples)
    n = finite.sum(axis=-1)
    missing = np.where(n > 0, 1.0, np.nan)
    exact = np.where(finite, samples, 0).astype(np.float64)
    mean = exact.sum(axis=-1, keepdims=True) / np.maximum(n, 1)[..., None]
    squares = (np.where(finite, exact - mean, 0) ** 2).sum(axis=-1)
    return np.asarray(missing * squares / np.maximum(n, 1))
