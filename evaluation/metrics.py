"""All metrics. Each is declared once, with its name, its meaning and its computation.

A metric of pairs is a number for every pair: a column of the table `outcomes`, whose mean is a row
of the table `metrics`. A metric of sets is one number for many pairs together. Columns, reference
pages, labels of figures, and the names that a rule may use follow from the declarations. To add a
metric, write a function below and decorate it with `_of_pairs` or `_of_sets`; no other code has to
change. That is why this file is long.

Letters in shapes: `B` pairs, `T` steps, `K` bins, `P` real pairs, `S` their songs, `I` intervals.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float64, Num
from torch import Tensor

from cf_core.distance import larger_z_distance, z_distance, z_weighted
from cf_core.losses import Pair
from evaluation.likeness import SEAMS
from evaluation.samples import NOVELTY_PAIRS, Estimate, Interval, Pairs, Sample
from evaluation.statistics import (
    STATISTICS,
    correlation,
    joint,
    overlap_area,
    row_stochastic,
    shared_share,
    wasserstein,
)

if TYPE_CHECKING:
    from evaluation.evaluator import Evaluator


class Better(StrEnum):
    """Which values of a metric are better."""

    HIGHER = "higher"
    LOWER = "lower"
    LIKE_REAL = "like real neighbours"


@dataclass(frozen=True)
class Metric:
    """The name of a metric, its meaning, and how to read it."""

    name: str
    """Its name in tables, conditions and rules."""
    about: str
    label: str
    """Its name in figures."""
    better: Better
    real: str
    """The value of real neighbours, in words."""
    is_panel: bool = False
    """Whether it is one of the poster's coherency metrics, each of which has its own panel."""
    is_likeness: bool = False
    """Whether its column stands beside those panels."""
    is_axis: bool = False
    """Whether it can be the similarity axis of a frontier."""


ComputePairs = Callable[[Pairs, "Evaluator"], Num[np.ndarray, "B"] | None]
ComputeSet = Callable[[Sample], Estimate | None]

METRICS: dict[str, Metric] = {}
"""All metrics by name."""
REACH = "_q90"
"""End of the names of the quantiles of a distance, after the name of that distance."""
OF_PAIRS: dict[str, ComputePairs] = {}
"""The function of each metric of pairs, which returns None where pairs lack what it needs."""
OF_SETS: dict[str, ComputeSet] = {}
"""The function of each metric of sets, which returns None where no pair can be measured."""


def _of_pairs(metric: Metric) -> Callable[[ComputePairs], ComputePairs]:
    def declare(compute: ComputePairs) -> ComputePairs:
        METRICS[metric.name], OF_PAIRS[metric.name] = metric, compute
        return compute

    return declare


def _of_sets(metric: Metric) -> Callable[[ComputeSet], ComputeSet]:
    def declare(compute: ComputeSet) -> ComputeSet:
        METRICS[metric.name], OF_SETS[metric.name] = metric, compute
        return compute

    return declare


_MEASURED, _NOWHERE = "at the ceiling of each panel", "nowhere: they have no inputs"


@_of_pairs(
    Metric(
        "judge",
        "Probability of being real neighbours, by a judge that no method sees.",
        "judge\nprobability",
        Better.HIGHER,
        _MEASURED,
        is_panel=True,
    )
)
def _judge(pairs: Pairs, _: "Evaluator") -> Num[np.ndarray, "B"]:
    return pairs.measured["judge"]


@_of_pairs(
    Metric(
        "search_classifier",
        "Probability of being real neighbours, by the classifier that searches climb.",
        "search\nclassifier\n(LP climbs it)",
        Better.HIGHER,
        _MEASURED,
    )
)
def _search_classifier(pairs: Pairs, evaluator: "Evaluator") -> Num[np.ndarray, "B"] | None:
    if pairs.latents is None:
        return None
    with torch.no_grad():
        probability: np.ndarray = torch.sigmoid(evaluator.classifier(pairs.latents)).cpu().numpy()
    return probability


@_of_pairs(
    Metric(
        "halves_distance",
        "Edit distance between the two halves, in tokens.",
        "distance of the halves",
        Better.LIKE_REAL,
        _MEASURED,
    )
)
def _halves_distance(pairs: Pairs, _: "Evaluator") -> Num[np.ndarray, "B"]:
    return pairs.measured["halves_distance"]


def _measure_latents(
    pairs: Pairs, evaluator: "Evaluator", measure: Callable[[Pair, Pair, Tensor], Tensor]
) -> Num[np.ndarray, "B"] | None:
    if pairs.inputs is None or pairs.latents is None:
        return None
    measured = measure(pairs.inputs.latents, pairs.latents, evaluator.core.sigma_bar)
    found: np.ndarray = measured.cpu().numpy()
    return found


@_of_pairs(
    Metric(
        "z_distance",
        "Equation 7 between outputs and inputs, both halves.",
        "z-distance",
        Better.LOWER,
        _NOWHERE,
        is_axis=True,
    )
)
def _z_distance(pairs: Pairs, evaluator: "Evaluator") -> Num[np.ndarray, "B"] | None:
    return _measure_latents(pairs, evaluator, z_distance)


@_of_pairs(
    Metric(
        "z_weighted",
        "Mean square of the latents' changes, in units of σ̄, both halves.",
        "weighted z-distance",
        Better.LOWER,
        _NOWHERE,
        is_axis=True,
    )
)
def _z_weighted(pairs: Pairs, evaluator: "Evaluator") -> Num[np.ndarray, "B"] | None:
    return _measure_latents(pairs, evaluator, z_weighted)


@_of_pairs(
    Metric(
        "edit_distance",
        "Edit distance between outputs and inputs as notes, in tokens of both halves.",
        "edit distance",
        Better.LOWER,
        _NOWHERE,
        is_axis=True,
    )
)
def _edit_distance(pairs: Pairs, _: "Evaluator") -> Num[np.ndarray, "B"] | None:
    return None if pairs.edits is None else np.asarray(pairs.edits.sum(axis=0))


@_of_pairs(
    Metric(
        "larger_z_distance",
        "Twice the larger of the two halves' distances by equation 7, so that one half cannot pay"
        " for both.",
        "z-distance\n(twice the larger half)",
        Better.LOWER,
        _NOWHERE,
    )
)
def _larger_z_distance(pairs: Pairs, evaluator: "Evaluator") -> Num[np.ndarray, "B"] | None:
    return _measure_latents(pairs, evaluator, larger_z_distance)


@_of_pairs(
    Metric(
        "larger_edit_distance",
        "Twice the larger of the two halves' edit distances, in tokens.",
        "edit distance\n(twice the larger half)",
        Better.LOWER,
        _NOWHERE,
    )
)
def _larger_edit_distance(pairs: Pairs, _: "Evaluator") -> Num[np.ndarray, "B"] | None:
    return None if pairs.edits is None else np.asarray(2 * pairs.edits.max(axis=0))


def _declare_reach(name: str, label: str) -> None:
    @_of_sets(
        Metric(
            f"{name}{REACH}",
            f"90 % quantile over the pairs of `{name}`, so that a few pairs cannot pay for the"
            " others.",
            label,
            Better.LOWER,
            _NOWHERE,
            is_axis=True,
        )
    )
    def _reach(sample: Sample) -> Estimate | None:
        if sample.records[name].null_count():
            return None
        values = sample.records[name].to_numpy().astype(np.float64)
        return Estimate(float(np.quantile(values, 0.9)), len(values), len(sample.finite))


_declare_reach("larger_edit_distance", "edit distance,\nlarger half, 90 %")
_declare_reach("larger_z_distance", "z-distance,\nlarger half, 90 %")


@_of_sets(
    Metric(
        "balance",
        "Share of the edits that fall on the half of each pair that is changed less; 0.5 where both"
        " halves are changed alike, 0 where one half pays for both.",
        "share of the edits\nin the smaller half",
        Better.HIGHER,
        _NOWHERE,
    )
)
def _balance(sample: Sample) -> Estimate | None:
    records = sample.records
    if records["edit_distance"].null_count():
        return None
    both, larger = (
        records[name].to_numpy().astype(np.float64)
        for name in ("edit_distance", "larger_edit_distance")
    )
    return _of_ratio(sample, both - larger / 2, both, limits=(0.0, 0.5))


def _of_ratio(
    sample: Sample,
    part: Float64[np.ndarray, "B"],
    whole: Float64[np.ndarray, "B"],
    limits: tuple[float, float],
) -> Estimate | None:
    """Estimate the sum of `part` over that of `whole`, which can't be outside some limits."""
    if not whole.any():
        return None
    value = float(part.sum() / whole.sum())
    shares = sample.jackknife.ratios(part, whole) if sample.jackknife and part.any() else None
    interval = _limit(sample, value, shares, *limits)
    return Estimate(value, len(whole), len(sample.finite), interval)


def _limit(
    sample: Sample,
    value: float,
    replicates: Float64[np.ndarray, "R"] | None,
    lowest: float,
    highest: float,
) -> Interval:
    """The interval of a value that can't be below or above some; none without replicates."""
    if sample.jackknife is None or replicates is None:
        return None, None
    low, high = sample.jackknife.interval(value, replicates)
    return max(low, lowest), min(high, highest)


def _of_nearest(sample: Sample, values: Float64[np.ndarray, "B"]) -> Estimate | None:
    first = sample.first
    if not first.any():
        return None
    drawn = sample.evaluator.leave_out(sample.pairs.songs[: first.sum()], sample.reference)
    return Estimate.of_mean(values, None if drawn is None else drawn.pairs, len(first))


@_of_sets(
    Metric(
        "novelty",
        f"Edit distance of a segment to the nearest training segment, over the first"
        f" {NOVELTY_PAIRS} pairs, in tokens.",
        "distance to the nearest training segment",
        Better.LIKE_REAL,
        _MEASURED,
    )
)
def _novelty(sample: Sample) -> Estimate | None:
    return _of_nearest(sample, sample.nearest.mean(axis=0))


@_of_sets(
    Metric(
        "copied",
        "Share of the segments that equal a training segment, over the same pairs.",
        "share copied",
        Better.LIKE_REAL,
        _MEASURED,
    )
)
def _copied(sample: Sample) -> Estimate | None:
    return _of_nearest(sample, (sample.nearest == 0).mean(axis=0))


Matrix = Callable[[Float64[np.ndarray, "*R K K"]], Float64[np.ndarray, "*R K K"]]


def _correlate(sample: Sample, statistic: str, matrix: Matrix) -> Estimate:
    counts, real = sample.counts[statistic], sample.reference.counts[statistic].sum(axis=0)
    value = float(correlation(matrix(counts), matrix(real)))
    drawn = None
    if sample.drawn is not None:
        drawn = correlation(*map(matrix, sample.drawn[statistic]))
    interval = _limit(sample, value, drawn, -1.0, 1.0)
    return Estimate(value, int(counts.sum()), len(sample.finite), interval)


def _estimate_share(
    sample: Sample,
    counts: Float64[np.ndarray, "I"],
    real: Float64[np.ndarray, "I"],
    drawn: Sequence[Float64[np.ndarray, "R I"]] | None,
) -> Estimate | None:
    """Estimate the share that counts of pairs and real pairs have in common, and in replicates."""
    if not (n := int(counts.sum())):
        return None
    value = float(shared_share(counts, real))
    interval = _limit(sample, value, None if drawn is None else shared_share(*drawn), 0.0, 1.0)
    return Estimate(value, n, len(sample.finite), interval)


def _declare_correlation(statistic: str) -> None:
    words = statistic.replace("_", " ")

    @_of_sets(
        Metric(
            statistic,
            f"Correlation of the transition matrix of {words} with that of real neighbours.",
            f"{words}\ncorrelation",
            Better.HIGHER,
            _MEASURED,
            is_panel=True,
        )
    )
    def _conditional(sample: Sample) -> Estimate:
        return _correlate(sample, statistic, row_stochastic)

    @_of_sets(
        Metric(
            f"{statistic}_joint",
            f"The same for the joint matrix of {words}, which is not normalised by rows.",
            f"{words}, joint\ncorrelation",
            Better.HIGHER,
            _MEASURED,
        )
    )
    def _joint(sample: Sample) -> Estimate:
        return _correlate(sample, statistic, joint)

    @_of_sets(
        Metric(
            f"{statistic}_shared",
            f"Share that the joint matrix of {words} has in common with that of real neighbours"
            " (1 - total variation).",
            f"{words}, joint\nshared with real neighbours",
            Better.HIGHER,
            _MEASURED,
        )
    )
    def _shared(sample: Sample) -> Estimate | None:
        counts, real = sample.counts[statistic], sample.reference.counts[statistic].sum(axis=0)
        drawn = None
        if sample.drawn is not None:
            drawn = [each.reshape(len(each), -1) for each in sample.drawn[statistic]]
        return _estimate_share(sample, counts.ravel(), real.ravel(), drawn)


for _statistic in STATISTICS:
    _declare_correlation(_statistic)


def _of_sounding(sample: Sample, value: Callable[[], float]) -> Estimate | None:
    n = len(sample.sounding.songs)
    return Estimate(value(), n, len(sample.finite)) if n else None


@_of_sets(
    Metric(
        "overlap_area",
        "Area that the densities of the musical statistics share with those of real neighbours"
        " (Yang & Lerch 2020).",
        "overlapped area",
        Better.HIGHER,
        _MEASURED,
    )
)
def _overlap_area(sample: Sample) -> Estimate | None:
    halves = zip(sample.sounding.statistics, sample.reference.statistics, strict=True)
    return _of_sounding(
        sample, lambda: float(np.mean([overlap_area(ours, theirs) for ours, theirs in halves]))
    )


@_of_sets(
    Metric(
        "density",
        "Mean number of neighbourhoods of real pairs that a pair lies in, divided by `k`"
        " (Naeem et al. 2020).",
        "density",
        Better.LIKE_REAL,
        "near 1",
    )
)
def _density(sample: Sample) -> Estimate | None:
    return _of_sounding(sample, lambda: sample.density_and_coverage[0])


@_of_sets(
    Metric(
        "coverage",
        "Share of real neighbours that have a pair near them (Naeem et al. 2020).",
        "coverage",
        Better.HIGHER,
        _MEASURED,
    )
)
def _coverage(sample: Sample) -> Estimate | None:
    return _of_sounding(sample, lambda: sample.density_and_coverage[1])


def _spread(pairs: Pairs, ranks: Float64[np.ndarray, "_"]) -> Float64[np.ndarray, "B"]:
    """Give ranks of the finite pairs their places among all pairs."""
    if pairs.finite is None:
        return 2 * ranks
    values = np.full(len(pairs.songs), np.nan)
    values[pairs.finite] = 2 * ranks
    return values


@_of_pairs(
    Metric(
        "indistinguishable",
        "2 (1 - AUC) of a classifier that is fitted to tell the pairs from real neighbours by their"
        " notes, and scored on other songs. 1 where nothing tells them apart (Lopez-Paz & Oquab"
        " 2017). Of one pair, twice the share of the real pairs that it is rated above.",
        "indistinguish-\nable",
        Better.HIGHER,
        "near 1",
        is_likeness=True,
    )
)
def _indistinguishable(pairs: Pairs, _: "Evaluator") -> Num[np.ndarray, "B"] | None:
    return None if pairs.ranks is None else _spread(pairs, pairs.ranks.whole)


@_of_pairs(
    Metric(
        "indistinguishable_halves",
        "The same for a classifier that does not see how the halves relate: whether each half"
        " alone is still music.",
        "halves alone\nindistinguishable",
        Better.HIGHER,
        "near 1",
    )
)
def _indistinguishable_halves(pairs: Pairs, _: "Evaluator") -> Num[np.ndarray, "B"] | None:
    return None if pairs.ranks is None else _spread(pairs, pairs.ranks.halves)


def _declare_stratum(name: str, words: str, fewest: int, most: float) -> None:
    @_of_sets(
        Metric(
            f"indistinguishable_{name}",
            f"`indistinguishable` of the pairs with {words} edited tokens, without an interval: a"
            " mean over all pairs can hide that much edited ones are no music.",
            f"indistinguishable,\n{words} edits",
            Better.HIGHER,
            "near 1",
        )
    )
    def _stratum(sample: Sample) -> Estimate | None:
        inside = sample.records["edit_distance"].is_between(fewest, most)
        kept = sample.records["indistinguishable"].filter(inside)
        if not kept.len() or kept.null_count():
            return None
        # Pairs with other numbers of edits are not in question, so they are not left out.
        return Estimate.of_mean(kept.to_numpy(), None, len(kept) + int((~sample.finite).sum()))


_declare_stratum("1_to_4", "1 to 4", 1, 4.0)
_declare_stratum("5_to_8", "5 to 8", 5, 8.0)
_declare_stratum("9_to_16", "9 to 16", 9, 16.0)
_declare_stratum("17_up", "17 or more", 17, np.inf)


@_of_sets(
    Metric(
        "seam",
        "Share of the pairs that the distribution of the interval across the seam has in common"
        " with that of real neighbours (1 - total variation).",
        "interval\nacross the seam",
        Better.HIGHER,
        _MEASURED,
        is_likeness=True,
    )
)
def _seam(sample: Sample) -> Estimate | None:
    bins = sample.records["seam_bin"].to_numpy().astype(np.int64)
    counts = np.bincount(bins[bins >= 0], minlength=SEAMS).astype(np.float64)
    both = None
    if (replicates := sample.replicates) is not None:
        both = replicates.pairs.count_bins(bins, SEAMS), replicates.seams
    return _estimate_share(sample, counts, sample.reference.seams.sum(axis=0), both)


def _of_all(sample: Sample, value: float) -> Estimate:
    return Estimate(value, int(sample.finite.sum()), len(sample.finite))


@_of_sets(
    Metric(
        "judge_gap",
        "Difference between the judge's means over the pairs and over real neighbours. Pairs that"
        " please the judge more than real neighbours do are as far off as pairs that please it"
        " less.",
        "judge, difference\nfrom real neighbours",
        Better.LOWER,
        "near 0",
    )
)
def _judge_gap(sample: Sample) -> Estimate | None:
    own, real = sample.records["judge"].to_numpy(), sample.reference.judged
    return _of_all(sample, float(abs(own.mean(dtype=np.float64) - real.mean(dtype=np.float64))))


@_of_sets(
    Metric(
        "halves_distance_gap",
        "Wasserstein-1 distance between the distributions of `halves_distance` over the pairs and"
        " over real neighbours, in tokens. Halves may be too alike or too different.",
        "distance of the halves,\ndifference from real neighbours",
        Better.LOWER,
        "near 0",
    )
)
def _halves_distance_gap(sample: Sample) -> Estimate | None:
    own = sample.records["halves_distance"].to_numpy().astype(np.int64)
    return _of_all(sample, wasserstein(own, sample.reference.halves_distance))


@_of_sets(
    Metric(
        "frechet",
        "Squared Fréchet distance between Gaussians of the musical features of the pairs and of"
        " real neighbours, in their leading principal components (`evaluation/frechet.py`).",
        "Fréchet distance\nfrom real neighbours",
        Better.LOWER,
        _MEASURED,
    )
)
def _frechet(sample: Sample) -> Estimate | None:
    return _of_all(sample, sample.reference.gaussian.distance(sample.pairs.notes.features))


@_of_sets(
    Metric(
        "leaps",
        "Share of the intervals from a note to the next, within the halves and across the seam,"
        " that exceed an octave.",
        "leaps of more\nthan an octave",
        Better.LIKE_REAL,
        _MEASURED,
    )
)
def _leaps(sample: Sample) -> Estimate | None:
    leaps, intervals = (sample.pairs.measured[name] for name in ("leaps", "intervals"))
    return _of_ratio(sample, leaps, intervals, limits=(0.0, 1.0))


@_of_sets(
    Metric(
        "new_onset_pmi",
        "Pointwise mutual information of each new onset of the right half and all that stands"
        " before it in the left one, in nats, by the model of notes: log p(onset | left, right so"
        " far) - log p(onset | right so far). Without inputs all onsets are new. It is near 0 where"
        " new notes have nothing to do with the left half, and too high where they repeat it.",
        "information of\nnew onsets (nats)",
        Better.LIKE_REAL,
        _MEASURED,
    )
)
def _new_onset_pmi(sample: Sample) -> Estimate | None:
    information, count = sample.new_onsets
    return _of_ratio(sample, information, count, limits=(-np.inf, np.inf))


METRICS["style_diversity"] = Metric(
    "style_diversity",
    "Edit distance between outputs of one input in different styles, in tokens of a segment."
    " Measured by applying the map itself (`Evaluator.style_diversity`) to pairs of songs.",
    "style diversity",
    Better.HIGHER,
    "nowhere: they have no style",
)

COHERENCY: tuple[str, ...] = tuple(name for name, one in METRICS.items() if one.is_panel)
"""The poster's six coherency metrics."""
LIKENESS: tuple[str, ...] = tuple(name for name, one in METRICS.items() if one.is_likeness)
"""The measures of likeness, which charge for too much of a good thing."""
AXES: tuple[str, ...] = tuple(name for name, one in METRICS.items() if one.is_axis)
"""Metrics that can be the similarity axis of a frontier."""
