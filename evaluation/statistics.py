"""Musical statistics of segments, and transition matrices of these statistics.

The coherency of a set of pairs by one statistic takes three steps: bin the statistic of both
halves, count which bin follows which, and correlate this matrix with that of real adjacent pairs.

A segment without notes has a note count of 0, and NaN for the other statistics. NaN falls into bin
-1, and a pair with a half in bin -1 enters no matrix. Silence can therefore neither help nor hurt
such a correlation, so callers must count and show the pairs left out.

Letters in shapes: `B` segments, `T` steps, `n` pairs, `K` bins, `C` clusters, `R` matrices.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Integer
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn import functional

from cf_core.kinds import find_kinds, look_up
from cf_core.melody import FIRST_PITCH, HOLD, MelodyFormat

STATISTICS: tuple[str, ...] = (
    "mean_pitch",
    "pitch_range",
    "note_count",
    "mean_duration",
    "pitch_class",
)

TokenPairs = tuple[Integer[np.ndarray, "B T"], Integer[np.ndarray, "B T"]]
"""The left and the right halves of pairs, as tokens."""
NotePairs = tuple[Integer[Tensor, "B T"], Integer[Tensor, "B T"]]
"""The same as tensors."""

_QUANTILED = STATISTICS[:-1]
"""The statistics that are binned by quantiles."""
QUANTILE_BINS = 8
PITCH_CLASSES = 12
DIATONIC = np.stack([np.roll([1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1], k) for k in range(12)], 1)
"""The twelve diatonic scales, one a column; rows are pitch classes."""

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


def compute_statistics(
    tokens: Integer[Tensor, "B T"], form: MelodyFormat
) -> dict[str, Float64[Tensor, "B"]]:
    """Compute the five statistics of every segment, by the names in `STATISTICS`.

    - `mean_pitch`: mean MIDI number of the notes, each counted once however long;
    - `pitch_range`: highest minus lowest note, in semitones;
    - `note_count`: number of onsets;
    - `mean_duration`: mean length of the notes, in quarter notes;
    - `pitch_class`: the class that sounds longest, 0 (C) to 11 (B); the lowest of equals.

    Notes are those of `cf_core.melody.to_notes`: a hold with no note before it is silent. Without
    notes `note_count` is 0 and the others are NaN.
    """
    struck, pitch = tokens >= FIRST_PITCH, sounding_pitch(tokens, form)
    # Whole numbers, so that equal durations are equal numbers and fall into one bin.
    lengths = _count_lines(tokens, form)
    lines = torch.where(pitch >= 0, lengths, 0).sum(1)

    count = struck.sum(1).double()
    notes = torch.where(count > 0, count, torch.nan)
    highest = torch.where(struck, pitch, form.lowest).amax(1)
    lowest = torch.where(struck, pitch, form.highest).amin(1)
    longest = count_classes(pitch, lengths).argmax(1)
    return {
        "mean_pitch": torch.where(struck, pitch, 0).sum(1) / notes,
        "pitch_range": torch.where(count > 0, (highest - lowest).double(), torch.nan),
        "note_count": count,
        "mean_duration": lines / (notes * form.steps_per_beat),
        "pitch_class": torch.where(count > 0, longest.double(), torch.nan),
    }


def time_classes(tokens: Integer[Tensor, "B T"], form: MelodyFormat) -> Int64[Tensor, "B 12"]:
    """How long each pitch class sounds, in lines of the grid."""
    return count_classes(sounding_pitch(tokens, form), _count_lines(tokens, form))


def _count_lines(tokens: Integer[Tensor, "B T"], form: MelodyFormat) -> Int64[Tensor, "B T"]:
    """How many lines of the grid each step spans; 0 for marks."""
    return look_up(form.step_lines, find_kinds(tokens, form))


def count_classes(
    pitch: Int64[Tensor, "B T"], lengths: Int64[Tensor, "B T"]
) -> Int64[Tensor, "B 12"]:
    """Count how long each pitch class sounds, from `sounding_pitch` and the steps' lengths."""
    counts = pitch.new_zeros(len(pitch), PITCH_CLASSES)
    own = torch.where(pitch >= 0, lengths, 0)
    return counts.scatter_add_(1, pitch.clamp(min=0) % PITCH_CLASSES, own)


def sounding_pitch(tokens: Integer[Tensor, "B T"], form: MelodyFormat) -> Int64[Tensor, "B T"]:
    """Return the MIDI number that sounds at each step; -1 where none does."""
    tokens = tokens.long()
    steps = torch.arange(tokens.shape[1], device=tokens.device)
    last_not_hold = torch.where(tokens == HOLD, 0, steps).cummax(1).values
    last = tokens.gather(1, last_not_hold)
    return torch.where(last >= FIRST_PITCH, last - FIRST_PITCH + form.lowest, -1)


@dataclass(frozen=True)
class Bins:
    """Edges of the bins of each statistic: bin `i` holds `edges[i - 1] <= value < edges[i]`.

    The first bin has no lower edge, and the last bin no upper edge.

    Each kind of bars has bins of its own, so the number of a bin is a rank among segments of that
    kind. Both halves of a pair are of one kind. Bars of 2/4 hold fewer notes than bars of 4/4, so
    with common bins the meter alone would put both halves into a low or a high bin, and unrelated
    halves would seem to follow one another as neighbours do.
    """

    edges: tuple[Mapping[str, tuple[float, ...]], ...]
    """Of each kind of bars, by statistic."""

    @classmethod
    def fit(
        cls,
        statistics: Mapping[str, Float64[np.ndarray, "B"]],
        kinds: Int64[np.ndarray, "B"],
        count: int,
    ) -> "Bins":
        """Fit bins to training segments: quantiles for four statistics, 12 classes for the fifth.

        `kinds` says which of `count` kinds of bars each segment has. Quantiles are those of the
        kind. A kind of fewer than `QUANTILE_BINS` segments with notes has too few to be divided,
        and takes the quantiles of all segments.

        Each edge is a value that occurs, and no bin is empty on the segments it was fitted to.
        Quantiles of a discrete statistic can coincide and then make one edge, so there may be fewer
        than `QUANTILE_BINS` bins (`count` says how many). Raises `ValueError` if no segment has a
        note.
        """
        classes = {"pitch_class": tuple(float(edge) for edge in range(1, PITCH_CLASSES))}
        return cls(
            tuple(
                classes
                | {name: _fit_edges(name, statistics[name], kinds == kind) for name in _QUANTILED}
                for kind in range(count)
            )
        )

    def count(self, statistic: str) -> int:
        """`K`, the number of bins of `statistic` in the kind that has most of them."""
        return max(len(own[statistic]) for own in self.edges) + 1

    def assign(
        self,
        statistic: str,
        values: Float64[np.ndarray, "B"],
        kinds: Int64[np.ndarray, "B"],
    ) -> Int64[np.ndarray, "B"]:
        """Return the bin of each value among segments of its kind, 0 to K - 1; -1 for NaN."""
        bins = np.full(len(values), -1)
        for kind, own in enumerate(self.edges):
            those = (kinds == kind) & ~np.isnan(values)
            bins[those] = np.searchsorted(own[statistic], values[those], side="right")
        return bins


def _fit_edges(
    statistic: str, values: Float64[np.ndarray, "B"], is_own: Bool[np.ndarray, "B"]
) -> tuple[float, ...]:
    """Quantiles of the values of one kind, or of all values where the kind has too few."""
    sounding = np.isfinite(values)
    own = sounding & is_own
    fitted = values[own if own.sum() >= QUANTILE_BINS else sounding]
    if fitted.size == 0:
        raise ValueError(f"{statistic}: no training segment has a note")
    levels = np.arange(1, QUANTILE_BINS) / QUANTILE_BINS
    quantiles = np.unique(np.quantile(fitted, levels, method="inverted_cdf"))
    return tuple(quantiles[quantiles > fitted.min()].tolist())


def count_pairs(
    left: Integer[np.ndarray, "n"], right: Integer[np.ndarray, "n"], k: int
) -> Float64[np.ndarray, "K K"]:
    """Count the pairs that go from bin `i` to bin `j`, without those that have a bin of -1."""
    one_cluster = np.zeros(len(left), np.int64)
    counts: np.ndarray = count_pairs_by_cluster(left, right, k, one_cluster, 1)[0]
    return counts


def count_pairs_by_cluster(
    left: Integer[np.ndarray, "n"],
    right: Integer[np.ndarray, "n"],
    k: int,
    cluster: Int64[np.ndarray, "n"],
    clusters: int,
) -> Float64[np.ndarray, "C K K"]:
    """`count_pairs` for each of `clusters` clusters; `cluster` is the cluster of each pair."""
    # Bins may be 8-bit numbers, in which the number of a cell would overflow.
    cells = np.where((left < 0) | (right < 0), -1, left.astype(np.int64) * k + right)
    return count_bins_by_cluster(cells, k * k, cluster, clusters).reshape(clusters, k, k)


def count_bins_by_cluster(
    bins: Integer[np.ndarray, "n"], k: int, cluster: Int64[np.ndarray, "n"], clusters: int
) -> Float64[np.ndarray, "C K"]:
    """Count what is in each of `k` bins, for each of `clusters` clusters, without bin -1."""
    present = bins >= 0
    counts = np.bincount((cluster * k + bins)[present], minlength=clusters * k)
    return counts.reshape(clusters, k).astype(np.float64)


def row_stochastic(counts: Float64[np.ndarray, "*R K K"]) -> Float64[np.ndarray, "*R K K"]:
    """Share of bin `j` after bin `i`, among the pairs whose left half is in bin `i`.

    Rows sum to 1. Every cell starts with a count of 1/K, so a row without pairs is uniform.
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
    """The `row_stochastic` matrix of pairs, from their bins; `k` is the number of bins."""
    return row_stochastic(count_pairs(left, right, k))


def correlation(
    matrices: Float64[np.ndarray, "*R K K"], others: Float64[np.ndarray, "*#R K K"]
) -> Float64[np.ndarray, "*R"]:
    """Pearson correlation over the K² entries of each matrix and the other one, -1 to 1.

    It is NaN where either is constant, as every matrix of one bin is.
    """
    a, b = (each.reshape(*each.shape[:-2], -1) for each in (matrices, others))
    # Equal shares can differ in their last bits; the correlation would then measure that noise.
    constant = (np.ptp(a, axis=-1) < 1e-12) | (np.ptp(b, axis=-1) < 1e-12)
    a, b = (each - each.mean(axis=-1, keepdims=True) for each in (a, b))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray(np.clip((a * b).sum(axis=-1) / np.where(constant, np.nan, norms), -1, 1))


def overlap_area(
    one: Mapping[str, Float64[np.ndarray, "n"]], other: Mapping[str, Float64[np.ndarray, "m"]]
) -> float:
    """Area that the densities of two sets of segments share, 0 to 1; the mean over the statistics.

    This is the "overlapped area" of Yang & Lerch (2020). Densities are histograms on one grid for
    both sets, with cells of the widths in `CELLS`, so sets that lie apart share nothing, whatever
    their shapes. Two finite samples of one distribution stay below 1, and smaller samples further
    below. All values must be finite.
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


def shared_share(
    counts: Float64[np.ndarray, "*R I"], others: Float64[np.ndarray, "*#R I"]
) -> Float64[np.ndarray, "*R"]:
    """Share, 0 to 1, that two distributions have in common: 1 less their total variation.

    Each is given by its counts, and shares nothing if it has none. Two finite samples of one
    distribution stay below 1, and smaller samples further below.
    """
    totals = (each.sum(axis=-1, keepdims=True) for each in (counts, others))
    shares = (
        each / np.where(total > 0, total, 1)
        for each, total in zip((counts, others), totals, strict=True)
    )
    return np.asarray(np.minimum(*shares).sum(axis=-1))


def wasserstein(one: Integer[np.ndarray, "n"], other: Integer[np.ndarray, "m"]) -> float:
    """Wasserstein-1 distance between two samples of whole numbers, none of them below 0.

    It is how far a number has to be moved, on average, to turn one sample into the other: the area
    between the two distribution functions.
    """
    size = int(max(one.max(), other.max())) + 1
    below = [np.bincount(each, minlength=size).cumsum() / len(each) for each in (one, other)]
    return float(abs(below[0] - below[1]).sum())


def count_leaps(tokens: NotePairs) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"]]:
    """Count, in each pair, the intervals beyond an octave, and all intervals.

    Intervals are those from a note to the next, within the halves and across the seam.
    """
    joined = torch.cat(tokens, 1).long()
    before = find_note_before(joined >= FIRST_PITCH)
    interval = joined - joined.gather(1, before.clamp(min=0))
    leaps = (before >= 0) & (interval.abs() > PITCH_CLASSES)
    return leaps.sum(1), (before >= 0).sum(1)


def find_note_before(onsets: Bool[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
    """The step of the note before, for each step at which a note begins; -1 where there is none."""
    steps = torch.arange(onsets.shape[1], device=onsets.device)
    last = torch.where(onsets, steps, -1).cummax(1).values
    return torch.where(onsets, functional.pad(last[:, :-1], (1, 0), value=-1), -1)


def pair_features(
    left: Mapping[str, Float64[np.ndarray, "n"]],
    right: Mapping[str, Float64[np.ndarray, "n"]],
    deviations: Mapping[str, float],
) -> Float64[np.ndarray, "n D"]:
    """Pairs as points in 12 dimensions (`D`): the statistics of both halves, in comparable units.

    Each statistic is divided by its deviation over the training segments. The pitch class is
    circular, so it takes two dimensions, as a point of the unit circle.
    """
    columns = []
    for half in (left, right):
        columns += [half[name] / (deviations[name] or 1.0) for name in STATISTICS[:-1]]
        angle = half["pitch_class"] * (2 * np.pi / PITCH_CLASSES)
        columns += [np.cos(angle), np.sin(angle)]
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Neighbourhoods:
    """Balls around real points. Each reaches to the `NEIGHBOURS`-th nearest other point."""

    centres: Float64[np.ndarray, "N D"]
    radii: Float64[np.ndarray, "N"]

    @classmethod
    def fit(cls, real: Float64[np.ndarray, "N D"]) -> "Neighbourhoods":
        """Make the balls of the real points; with too few, they reach to the farthest point."""
        farthest = min(NEIGHBOURS, len(real) - 1)  # the nearest one is the point itself
        return cls(real, np.partition(cdist(real, real), farthest, axis=1)[:, farthest])

    def density_and_coverage(self, points: Float64[np.ndarray, "M D"]) -> tuple[float, float]:
        """Density (0 and up) and coverage (0 to 1) of generated points (Naeem et al. 2020).

        Density is the mean number of balls that a point lies in, divided by `NEIGHBOURS`. It is
        near 1 where real and generated points are alike, and higher where generated points crowd
        the densest places. Coverage is the share of balls that contain a point; it rises with the
        number of points. Balls are closed, since real music repeats itself and a radius can be 0.
        """
        inside = cdist(self.centres, points) <= self.radii[:, None]
        return float(inside.sum(axis=0).mean() / NEIGHBOURS), float(inside.any(axis=1).mean())
