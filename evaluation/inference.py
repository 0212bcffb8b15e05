"""Verdicts: whether ours is better than a rival, also for other songs and training seeds.

This file is long, because verdicts and the metrics of one meter rest on the same scores of points.

Letters in shapes: `B` pairs of a source, `C` clusters of them (songs, or blocks of pairs), `P` real
pairs, `S` their songs, `n` training seeds, `R` replicates, `K` bins, `I` intervals across the seam,
`N` any number of comparisons.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64, Integer
from scipy import special

from evaluation.frontier import CHOSEN_BY, CHOSEN_ON, DISTANCES, FUSIONS, OURS, REAL
from evaluation.jackknife import Jackknife, has_enough_songs, satterthwaite
from evaluation.likeness import SEAMS
from evaluation.metrics import AXES, OF_PAIRS, REACH
from evaluation.samples import Interval, take_bins
from evaluation.statistics import (
    STATISTICS,
    correlation,
    count_bins_by_cluster,
    count_pairs,
    count_pairs_by_cluster,
    row_stochastic,
    shared_share,
)

SIGNIFICANCE = 0.05
"""A win or a loss has a Holm-corrected p-value below this."""

_Point = tuple[str, float | None, int]
"""Trial, λ and iteration."""
_KEYS: dict[str, type[pl.DataType]] = {
    "trial": pl.String,
    "lambda": pl.Float64,
    "iteration": pl.Int32,
}
"""The columns of a point."""
_ESTIMATE: dict[str, type[pl.DataType]] = {
    **dict.fromkeys(("value", "low", "high"), pl.Float64),
    **dict.fromkeys(("n", "excluded"), pl.Int64),
}
"""The columns of what is measured of it."""
_TOLD = (*STATISTICS, "seam", *OF_PAIRS, *AXES)
"""Metrics that outcomes tell."""
_SETTING = ["configuration", "lambda", "iteration"]
_PANEL = ["rival", "axis", "source", "metric"]
_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(_PANEL, pl.String),
        **dict.fromkeys(("difference", "low", "high", "p", "p_holm"), pl.Float64),
        "verdict": pl.String,
        **dict.fromkeys(("songs", "seeds", "excluded", "candidates"), pl.Int64),
    }
)
_EQUAL = 1e-12
_LIMITS = {**dict.fromkeys(STATISTICS, (-1.0, 1.0)), "seam": (0.0, 1.0)}
"""The lowest and the highest value of some metrics."""


def decide_verdicts(
    metrics: pl.DataFrame,
    matched: pl.DataFrame,
    outcomes: pl.LazyFrame,
    influences: pl.LazyFrame,
    bins: Mapping[str, int],
) -> pl.DataFrame:
    """Compare ours with every rival, in every panel and on every axis.

    `matched` holds what `evaluation.frontier.matched_similarity` chose from `metrics`. `difference`
    is ours less the rival's, averaged over the matched distances; ours is the mean over training
    seeds. It is computed from `outcomes`, which has one row per pair of every point (only the rows
    of the compared points are read). The values are means over pairs, the correlations with the
    transition matrices of the real pairs of test songs, and `seam`; `bins` holds the number of bins
    of each statistic. Pairs without a value are left out and counted in `excluded`, summed over all
    points that a row compares.

    `low`, `high` (95 %) and `p` (two-sided) come from `crossed_interval`, for other songs and seeds
    together; `songs` is the number of clusters that are left out in turn. Real pairs are left out
    with their songs: for `indistinguishable` by `influences`, with the classifiers held fixed.
    `p_holm` is
    corrected over the panels of one rival, axis and source, for test songs and prior samples are
    different questions. `verdict` is "win" or "loss" where `p_holm` is below
    `SIGNIFICANCE`, else "tie". All five are null with one seed or one song, which say nothing about
    others, where the difference is not finite, and where ours or the rival has no candidate.
    `candidates` is the number of our candidates.

    The verdict generalises to other songs and seeds only. Held fixed are the core, the judges, the
    choice of configurations, the inputs drawn from each song, and the single run of each rival.

    Raises `ValueError` where `outcomes` lacks a point of `metrics`, and where the points of one
    source differ in their pairs.
    """
    trials = _trials(metrics)
    real = outcomes.filter(pl.col("method") == REAL, pl.col("source") == "test").collect()
    rows = []
    for source in CHOSEN_ON:
        panels = matched.filter(pl.col("source") == source).partition_by(
            "rival", "axis", "metric", maintain_order=True
        )
        if not panels:
            continue
        contrasts = [_contrast(panel, trials) for panel in panels]
        needed = {point for contrast in contrasts for point in contrast}
        pairs = _Pairs.of(outcomes, influences, real, source, needed)
        for metric in dict.fromkeys(panel["metric"][0] for panel in panels):
            scores = _Scores(pairs, metric, bins)
            rows += [
                panel.select(*_PANEL, "candidates").row(0, named=True)
                | _compared(contrast, scores, is_met=bool((panel["candidates"] > 0).all()))
                for panel, contrast in zip(panels, contrasts, strict=True)
                if panel["metric"][0] == metric
            ]
    families = pl.DataFrame(rows, _SCHEMA).partition_by(
        "rival", "axis", "source", maintain_order=True
    )
    return pl.concat(map(_decided, families)).sort("rival", "axis", maintain_order=True)


def measure_again(
    metrics: pl.DataFrame,
    outcomes: pl.LazyFrame,
    influences: pl.LazyFrame,
    bins: Mapping[str, int],
) -> pl.DataFrame:
    """Measure the points of `metrics` on those of their pairs that are in `outcomes`.

    With the outcomes of one meter, these are the metrics of that meter, beside the real pairs in
    it. Sources without pairs are left out, and so is what outcomes do not tell: the floor, the
    ceiling, and measures of how two sets overlap. `indistinguishable` stays what it was of each
    pair, a rank among all real pairs. Intervals are for other songs; these ranks are held fixed
    unless `influences` knows all the real pairs.
    """
    real = outcomes.filter(pl.col("method") == REAL).collect()
    measured = [metrics.clear()]
    for (source,), rows in metrics.group_by("source", maintain_order=True):
        own = outcomes.filter(pl.col("source") == source, pl.col("method") != REAL)
        points = set(own.select([*_KEYS]).unique().collect().iter_rows())
        if not points:
            continue
        split = "test" if source in CHOSEN_ON else "validation"
        neighbours = real.filter(pl.col("source") == split)
        pairs = _Pairs.of(own, influences, neighbours, str(source), points)
        for (name,), group in rows.group_by("metric", maintain_order=True):
            if name in _TOLD:
                found = _Scores(pairs, str(name), bins).tabulate()
                kept = group.drop(_ESTIMATE)
                joined = kept.join(found, on=[*_KEYS], nulls_equal=True, maintain_order="left")
                measured.append(joined.select(metrics.columns))
    return pl.concat(measured)


def crossed_interval(
    by_seed: Float64[np.ndarray, "*N n"],
    replicates: Float64[np.ndarray, "*N n R"],
    jackknife: Jackknife,
) -> tuple[Float64[np.ndarray, "*N"], Float64[np.ndarray, "*N"], Float64[np.ndarray, "*N"]]:
    """95 % interval (low, high) and two-sided p of a mean over seeds, for other songs and seeds.

    `by_seed` holds the estimate of each of at least two seeds on the same pairs. `replicates`
    holds the estimates in each replicate of the jackknife, which all seeds share.

    Songs and seeds are crossed: every seed is tested on the same songs. The variance of the mean is
    then the variance due to songs, plus that due to seeds, plus that due to their interaction (with
    the noise of single pairs). Three mean squares estimate it:

    - A, over replicates (`Jackknife.variance`), of the mean of all seeds: songs + interaction;
    - S, s²/n over the seeds' own estimates: seeds + interaction;
    - I, over replicates, of the seeds' deviations from their mean, over n (n - 1): interaction.

    A + S would count the interaction twice. A + S - I is the variance for two-way clusters of
    Cameron, Gelbach & Miller (2011), and Owen's (2007) for crossed effects. It is noisy, so it is
    kept from falling below A or S, each of which is part of what it estimates. Degrees of freedom
    are Satterthwaite's (1946), from those of A, n - 1, and the product of both.

    If the variance is 0, the interval is the mean itself, and p is 1 where the mean is 0, else 0.
    """
    mean = by_seed.mean(axis=-1)
    variance, freedom = crossed_variance(by_seed, replicates, jackknife)
    known = variance == 0
    error = np.sqrt(variance)
    reach = special.stdtrit(freedom, 1 - SIGNIFICANCE / 2) * error
    p = 2 * special.stdtr(freedom, -np.abs(mean) / np.where(known, 1, error))
    p = np.where(known, mean == 0, p)
    return np.asarray(mean - reach), np.asarray(mean + reach), np.asarray(p, np.float64)


def crossed_variance(
    by_seed: Float64[np.ndarray, "*N n"],
    replicates: Float64[np.ndarray, "*N n R"],
    jackknife: Jackknife,
) -> tuple[Float64[np.ndarray, "*N"], Float64[np.ndarray, "*N"]]:
    """The variance behind `crossed_interval`, and its degrees of freedom (1 where it is 0)."""
    n = by_seed.shape[-1]
    shared = np.isfinite(replicates).all(axis=-2, keepdims=True)
    replicates = np.where(shared, replicates, np.nan)
    songs, freedom_of_songs = jackknife.variance(replicates.mean(axis=-2))
    each = jackknife.variance(replicates)[0].mean(axis=-1)
    seeds = by_seed.var(axis=-1, ddof=1) / n
    interaction = (each - songs) / (n - 1)
    variance = np.asarray(np.maximum(songs + seeds - interaction, np.maximum(songs, seeds)))
    parts = (
        (songs, freedom_of_songs),
        (seeds, n - 1.0),
        (interaction, freedom_of_songs * (n - 1)),
    )
    return variance, satterthwaite(variance, *parts)


def holm(p: Float64[np.ndarray, "N"]) -> Float64[np.ndarray, "N"]:
    """Correct p-values over all of them (Holm, 1979). NaN stays NaN, and counts as 1."""
    order = np.argsort(np.nan_to_num(p, nan=1.0), kind="stable")
    steps = np.nan_to_num(p[order], nan=1.0) * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return np.where(np.isnan(p), np.nan, corrected)


def probability_of_improvement(
    ours: Float64[np.ndarray, "n"], rival: Float64[np.ndarray, "m"]
) -> float:
    """Chance that a random value of `ours` is above a random one of `rival`; ties count half.

    Agarwal et al., "Deep RL at the edge of the statistical precipice" (2021). NaN where either is
    empty.
    """
    if not (ours.size and rival.size):
        return np.nan
    above, equal = ours[:, None] > rival, ours[:, None] == rival
    return float((above + 0.5 * equal).mean())


_NONE = np.zeros(0)
"""Replicates of a score where there are too few songs."""


@dataclass(frozen=True)
class _Score:
    """A metric of one point: its value, its value in each replicate, and the pairs without one."""

    value: float
    replicates: Float64[np.ndarray, "R"]
    excluded: int


@dataclass(frozen=True)
class _Pairs:
    """The outcomes of some points of one source, the real pairs, and the jackknife of both.

    There is no jackknife if there are too few songs.
    """

    points: Mapping[_Point, pl.DataFrame]
    influences: Mapping[_Point, Float64[np.ndarray, "S"]]
    """How each song of the real pairs bears on `indistinguishable`, where it was measured."""
    real: pl.DataFrame
    song_of_real: Int64[np.ndarray, "P"]
    """The place of each real pair's song among their songs."""
    jackknife: Jackknife | None

    @classmethod
    def of(
        cls,
        outcomes: pl.LazyFrame,
        influences: pl.LazyFrame,
        real: pl.DataFrame,
        source: str,
        points: set[_Point],
    ) -> "_Pairs":
        found = _take_points(outcomes, "pair", source, points)
        if missing := points - found.keys():
            raise ValueError(f"outcomes: point {min(missing, key=str)} of {source} is missing")
        inputs = ["pair", "left_song", "right_song"]
        one = next(iter(found.values())).select(inputs)
        if not all(own.select(inputs).equals(one) for own in found.values()):
            raise ValueError(f"outcomes: the points of {source} differ in their pairs")
        names = real["left_song"].unique().drop_nulls().sort()
        songs, numbers = _numbered(one, names)
        of_real = names.search_sorted(real["left_song"]).to_numpy().astype(np.int64)
        by_song = _take_points(influences, "song", source, points)
        jackknife = Jackknife.of(songs, numbers) if has_enough_songs(songs) else None
        known = {
            point: own["influence"].to_numpy().astype(np.float64)
            for point, own in by_song.items()
            if own["song"].equals(names)
        }
        return cls(found, known, real, of_real, jackknife)


def _take_points(
    table: pl.LazyFrame, order: str, source: str, points: set[_Point]
) -> dict[_Point, pl.DataFrame]:
    """Read the rows of some points of a source, by point, and in the order of a column."""
    keys = pl.DataFrame(list(points), _KEYS, orient="row")
    # The join alone would give the same rows; the names tell which files need not be read.
    named = pl.col("trial").is_in(keys["trial"].unique().to_list())
    found: dict[Any, pl.DataFrame] = (
        table.filter(pl.col("source") == source, named)
        .join(keys.lazy(), on=keys.columns, how="semi", nulls_equal=True)
        .sort(order, maintain_order=True)
        .collect()
        .partition_by(keys.columns, as_dict=True, maintain_order=True)
    )
    return found


class _Scores(dict[_Point, _Score]):
    """One metric of the points of a source, each computed when it is first needed."""

    def __init__(self, pairs: _Pairs, metric: str, bins: Mapping[str, int]) -> None:
        self.pairs, self.metric = pairs, metric
        self.real: Float64[np.ndarray, "S *K"] = np.zeros((0,))
        songs = int(pairs.song_of_real.max()) + 1
        if metric in STATISTICS:
            real = take_bins(pairs.real, metric)
            self.real = count_pairs_by_cluster(*real, bins[metric], pairs.song_of_real, songs)
        elif metric == "seam":
            real_bins = _take_seams(pairs.real)
            self.real = count_bins_by_cluster(real_bins, SEAMS, pairs.song_of_real, songs)
        if pairs.jackknife is not None and self.real.size:
            self.replicates = pairs.jackknife.count_real(self.real)

    def __missing__(self, point: _Point) -> _Score:
        outcomes = self.pairs.points[point]
        if self.metric in STATISTICS:
            self[point] = self._correlation(*take_bins(outcomes, self.metric))
        elif self.metric == "seam":
            self[point] = self._seam(outcomes)
        elif self.metric.endswith(REACH):
            values = outcomes[self.metric.removesuffix(REACH)].to_numpy().astype(np.float64)
            excluded = int((~np.isfinite(values)).sum())
            self[point] = _Score(float(np.nanquantile(values, 0.9)), _NONE, excluded)
        else:
            values = outcomes[self.metric].to_numpy().astype(np.float64)
            known = self.pairs.influences if self.metric == CHOSEN_BY else {}
            self[point] = self._mean(values, known.get(point))
        return self[point]

    def tabulate(self) -> pl.DataFrame:
        """The metric of all points, with intervals, as columns of the table `metrics`."""
        rows = []
        for point, outcomes in self.pairs.points.items():
            score, jackknife = self[point], self.pairs.jackknife
            interval: Interval = (None, None)
            # Replicates that are equal, but for rounding, give no estimate of a spread.
            if jackknife is not None and (abs(score.replicates - score.value) > _EQUAL).any():
                low, high = jackknife.interval(score.value, score.replicates)
                least, most = _LIMITS.get(self.metric, (-np.inf, np.inf))
                interval = max(low, least), min(high, most)
            counts = outcomes.height - score.excluded, score.excluded
            rows.append((*point, score.value, *interval, *counts))
        return pl.DataFrame(rows, _KEYS | _ESTIMATE, orient="row")

    def _mean(
        self, values: Float64[np.ndarray, "B"], influence: Float64[np.ndarray, "S"] | None
    ) -> _Score:
        present, jackknife = np.isfinite(values), self.pairs.jackknife
        excluded = int((~present).sum())
        mean = float(values[present].mean()) if present.any() else np.nan
        if jackknife is None:
            return _Score(mean, _NONE, excluded)
        replicates = jackknife.ratios(np.where(present, values, 0), present.astype(np.float64))
        if influence is not None:
            replicates += (jackknife.reference - 1) @ influence
        return _Score(mean, replicates, excluded)

    def _correlation(
        self, left: Integer[np.ndarray, "B"], right: Integer[np.ndarray, "B"]
    ) -> _Score:
        k, jackknife = self.real.shape[-1], self.pairs.jackknife
        both = count_pairs(left, right, k), self.real.sum(axis=0)
        value = float(correlation(*map(row_stochastic, both)))
        excluded = int(((left < 0) | (right < 0)).sum())
        if jackknife is None:
            return _Score(value, _NONE, excluded)
        counts = jackknife.count_pairs(left, right, k), self.replicates
        return _Score(value, correlation(*map(row_stochastic, counts)), excluded)

    def _seam(self, outcomes: pl.DataFrame) -> _Score:
        bins, jackknife = _take_seams(outcomes), self.pairs.jackknife
        whole = np.bincount(bins[bins >= 0], minlength=SEAMS).astype(np.float64)
        value = float(shared_share(whole, self.real.sum(axis=0)))
        excluded = int((bins < 0).sum())
        if jackknife is None:
            return _Score(value, _NONE, excluded)
        counts = jackknife.count_bins(bins, SEAMS), self.replicates
        return _Score(value, shared_share(*counts), excluded)


def _take_seams(outcomes: pl.DataFrame) -> Int64[np.ndarray, "B"]:
    """The bins of the intervals across the seam; -1 for none."""
    return outcomes["seam_bin"].to_numpy().astype(np.int64)


def _trials(metrics: pl.DataFrame) -> dict[str, list[str]]:
    """List the trials of each configuration of ours that has all seeds, in the order of seeds."""
    ours = metrics.filter(pl.col("method").is_in(FUSIONS))
    unique = ours.select("configuration", "seed", "trial").unique()
    trials = unique.sort("seed").group_by("configuration").agg("trial")
    finished = trials.filter(pl.col("trial").list.len() == unique["seed"].n_unique())
    return dict(finished.iter_rows())


def _contrast(
    panel: pl.DataFrame, trials: Mapping[str, list[str]]
) -> dict[_Point, Float64[np.ndarray, "n"]]:
    """Return the integer weight of each point's score in the difference of each seed."""
    seeds = max(map(len, trials.values()), default=1)
    contrast: dict[_Point, Float64[np.ndarray, "n"]] = defaultdict(lambda: np.zeros(seeds))
    for method, configuration, *setting in panel.select("method", *_SETTING).iter_rows():
        own = trials.get(configuration, []) if method == OURS else []
        for seed, name in enumerate(own or [configuration] * seeds):
            contrast[name, *setting][seed] += 1 if method == OURS else -1
    return contrast


def _compared(
    contrast: Mapping[_Point, Float64[np.ndarray, "n"]], scores: _Scores, *, is_met: bool
) -> dict[str, Any]:
    """Compute the columns of a verdict that depend on one comparison alone.

    Where it is not met, by a candidate of either side, the identity stands in for that side
    everywhere, and there is no interval.
    """
    weights = np.stack(list(contrast.values()), axis=1) / DISTANCES
    points = [scores[point] for point in contrast]
    by_seed = weights @ np.array([point.value for point in points])
    jackknife = scores.pairs.jackknife
    row: dict[str, Any] = {
        "difference": float(by_seed.mean()),
        "songs": 1 if jackknife is None else jackknife.songs,
        "seeds": len(by_seed),
        "excluded": sum(point.excluded for point in points),
    }
    is_known = is_met and bool(np.isfinite(row["difference"]))
    if is_known and len(by_seed) > 1 and jackknife is not None:
        replicates = weights @ np.stack([point.replicates for point in points])
        interval = crossed_interval(by_seed, replicates, jackknife)
        row |= dict(zip(("low", "high", "p"), map(float, interval), strict=True))
    return row


def _decided(family: pl.DataFrame) -> pl.DataFrame:
    """Decide the verdicts of one rival, axis and source, corrected over all its panels."""
    corrected = holm(family["p"].fill_null(np.nan).to_numpy())
    significant = pl.col("p_holm") < SIGNIFICANCE
    return family.with_columns(p_holm=pl.Series(corrected).fill_nan(None)).with_columns(
        verdict=pl.when(pl.col("p_holm").is_null())
        .then(None)
        .when(significant & (pl.col("difference") > 0))
        .then(pl.lit("win"))
        .when(significant)
        .then(pl.lit("loss"))
        .otherwise(pl.lit("tie"))
    )


def _numbered(
    pairs: pl.DataFrame, real: pl.Series
) -> tuple[Int64[np.ndarray, "B 2"], Int64[np.ndarray, "S"]]:
    """Number the songs of each pair, and those of the real pairs; -1 stands for no song."""
    names = pl.concat([pairs["left_song"], pairs["right_song"], real]).unique().drop_nulls().sort()
    halves = [
        names.search_sorted(half).to_numpy().astype(np.int64) if not half.null_count() else None
        for half in (pairs["left_song"], pairs["right_song"])
    ]
    numbers = [np.full(pairs.height, -1) if half is None else half for half in halves]
    return np.stack(numbers, axis=1), names.search_sorted(real).to_numpy().astype(np.int64)
