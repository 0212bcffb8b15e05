"""Musical statistics of segments, how they follow one another, and how sure one may be of it.

Coherency of a set of pairs, by one statistic: bin the statistic of both halves, count which bin
follows which, and correlate that matrix with the matrix of real adjacent pairs.

A segment without notes has a note count of 0 and NaN for the rest. NaN falls in bin -1, and a pair
with a half in bin -1 enters no matrix: silence can neither help nor hurt such a correlation, so the
pairs left out are to be counted and shown.

Letters in shapes: `B` segments, `T` steps, `n` pairs, `K` bins, `R` resamples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Integer

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
    tokens = tokens.astype(np.int64)
    struck = tokens >= FIRST_PITCH
    steps = np.arange(tokens.shape[1])
    last_not_hold = np.maximum.accumulate(np.where(tokens == HOLD, 0, steps), axis=1)
    pitch = np.take_along_axis(tokens, last_not_hold, axis=1) - FIRST_PITCH + form.lowest
    sounding = pitch >= form.lowest

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


def transition_matrix(
    left: Int64[np.ndarray, "n"],
    right: Int64[np.ndarray, "n"],
    k: int,
    weights: Float64[np.ndarray, "*R n"] | None = None,
) -> Float64[np.ndarray, "*R K K"]:
    """How often bin `j` follows bin `i`, among the pairs whose left half is in bin `i`.

    Rows sum to 1: every cell starts with a count of 1/K, so a row never seen is uniform. Pairs with
    a bin of -1 are left out. `weights` count each pair that many times, one matrix per leading row.
    """
    counts = _pair_counts(left, right, k, weights) + 1 / k
    matrix: np.ndarray = counts / counts.sum(axis=-1, keepdims=True)
    return matrix


def joint_matrix(
    left: Int64[np.ndarray, "n"],
    right: Int64[np.ndarray, "n"],
    k: int,
    weights: Float64[np.ndarray, "*R n"] | None = None,
) -> Float64[np.ndarray, "*R K K"]:
    """Share of all pairs that go from bin `i` to bin `j`, not smoothed; all 0 without pairs.

    Arguments as for `transition_matrix`.
    """
    counts = _pair_counts(left, right, k, weights)
    total = counts.sum(axis=(-2, -1), keepdims=True)
    return counts / np.where(total > 0, total, 1)


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


def resampling_weights(
    clusters: Int64[np.ndarray, "n"], resamples: int, generator: np.random.Generator
) -> Float64[np.ndarray, "R n"]:
    """How often each of `n` items occurs when whole clusters are drawn with replacement.

    `clusters` names the cluster (the song) of each item; items of one cluster come and go together.
    One call serves every metric of the same items. ValueError with fewer than two clusters, from
    which no spread can be learned.
    """
    names, cluster = np.unique(clusters, return_inverse=True)
    if names.size < 2:
        raise ValueError("clusters: at least two are needed for an interval")
    draws = generator.multinomial(names.size, np.full(names.size, 1 / names.size), size=resamples)
    return draws[:, cluster].astype(np.float64)


def bootstrap_mean(
    values: Float64[np.ndarray, "n"], weights: Float64[np.ndarray, "R n"]
) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values`, by weights of `resampling_weights`."""
    return _percentile_interval(weights @ values / weights.sum(axis=1))


def bootstrap_correlations(
    left: Int64[np.ndarray, "n"],
    right: Int64[np.ndarray, "n"],
    reference: Float64[np.ndarray, "K K"],
    weights: Float64[np.ndarray, "R n"],
    matrix: Callable[..., Float64[np.ndarray, "R K K"]] = transition_matrix,
) -> tuple[float, float]:
    """95 % percentile interval of the correlation with `reference`, which is held fixed.

    `matrix` is what `reference` was made by: `transition_matrix` or `joint_matrix`. Resamples whose
    matrix is constant are left out; NaN bounds if all are.
    """
    resampled = matrix(left, right, len(reference), weights)
    return _percentile_interval(correlation(resampled, reference))


def _pair_counts(
    left: Int64[np.ndarray, "n"],
    right: Int64[np.ndarray, "n"],
    k: int,
    weights: Float64[np.ndarray, "*R n"] | None,
) -> Float64[np.ndarray, "*R K K"]:
    if weights is None:
        weights = np.ones(len(left))
    present = (left >= 0) & (right >= 0)
    cells = left[present] * k + right[present]
    counts: np.ndarray = weights[..., present] @ np.eye(k * k)[cells]
    return counts.reshape(*weights.shape[:-1], k, k)


def _percentile_interval(samples: Float64[np.ndarray, "R"]) -> tuple[float, float]:
    samples = samples[np.isfinite(samples)]
    if samples.size == 0:
        return np.nan, np.nan
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)
