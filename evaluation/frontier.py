"""Coherency against similarity: the points of a panel, their frontier, and matched similarity.

Similarity is measured as a distance to the inputs: a smaller distance is better, and so is a higher
coherency.

The metrics frame that some functions take holds one row per point and metric, with at least the
columns `method`, `trial`, `configuration`, `lambda`, `seed`, `source`, `iteration`, `metric` and
`value`.

Choices are made on validation songs and scored on test songs, in one of two ways. The poster's way
chooses the best point for each metric, at the poster's distances. The other way chooses one point
for each distance, by how hard it is to tell from real neighbours, and all metrics are those of this
one point, as a user would deploy it. Its distances are those that one half, or a few pairs, cannot
pay for.

A candidate is a configuration (a trial without its seed) at one λ and iteration, with its means
over training seeds.
A configuration is not a candidate if it is not finished for all seeds for which any of our trials
is finished, or if its validation value or distance is not finite in every seed. At matched
similarity, a configuration beyond the largest distance is not a candidate either.

More candidates can only help, so methods that are compared have equal numbers of them: each is
thinned to the smaller number, evenly by rank of validation distance. The nearest and the farthest
are kept; if only one is kept, it is the nearest.

This file is long, because matched similarity, hypervolumes and attainment rest on the same few
steps.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import lcm
from typing import NamedTuple

import moocore
import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int64

from evaluation.controls import CONTROLS
from evaluation.metrics import COHERENCY, LIKENESS

CHOSEN_ON: dict[str, str] = {"test": "validation", "prior": "validation_prior"}
"""The sources that are scored, each with the source on which choices for it are made."""
PANELS: tuple[tuple[str, str], ...] = tuple(product(CHOSEN_ON, COHERENCY))
"""The poster's 12 panels, as (source, metric)."""
POSTER_AXES: tuple[str, ...] = ("z_distance", "edit_distance")
"""The axes on which the best point is chosen for each panel."""
DEPLOYED_AXES: tuple[str, ...] = ("larger_z_distance_q90", "larger_edit_distance_q90")
"""The axes on which one point is chosen for all panels."""
CHOSEN_BY = "indistinguishable"
"""The metric by which that point is chosen."""
FUSIONS: tuple[str, ...] = ("fusion", "conditional")
"""Methods that are trained trials: with one λ each, and with λ as an input."""
POSTER = "poster"
"""Method of a trained trial of the scheme `heard` as the scheme `poster` has it."""
BY_EDITS = "by_edits"
"""Method of a trained trial of the scheme `heard` with a λ for each pair. Its `iteration` is the
number of edits that was asked for."""
OURS = "ours"
"""Name of all `FUSIONS` together where methods are compared."""
LEVELS: tuple[str, ...] = ("floor", "ceiling")
"""Methods that are not points: reference values without a distance."""
REAL = "real"
"""Method of the real adjacent pairs, which is not a point either."""
DISTANCES = 10
"""Number of distances at which methods are compared at matched similarity."""


@dataclass(frozen=True)
class Comparison:
    """What is compared: a metric of a source by a distance, and what the choice is made by."""

    axis: str
    source: str
    metric: str
    chosen_source: str
    chosen_metric: str

    @property
    def choice(self) -> tuple[str, str, str]:
        """The axis, source and metric of the choice: where they are equal, the choice is, too."""
        return self.axis, self.chosen_source, self.chosen_metric

    @property
    def columns(self) -> dict[str, pl.Expr]:
        """The columns of tables that name it."""
        return {name: pl.lit(getattr(self, name)) for name in ("axis", "source", "metric")}


def list_comparisons(axes: Collection[str]) -> Iterator[Comparison]:
    """List what is compared on some axes, in the poster's way and in the other."""
    for (source, metric), axis in product(PANELS, POSTER_AXES):
        if axis in axes:
            yield Comparison(axis, source, metric, CHOSEN_ON[source], metric)
    panels = product(CHOSEN_ON, (*LIKENESS, *COHERENCY))
    for (source, metric), axis in product(panels, DEPLOYED_AXES):
        if axis in axes:
            yield Comparison(axis, source, metric, CHOSEN_ON["test"], CHOSEN_BY)


def _measured(metrics: pl.DataFrame, axes: Collection[str]) -> Iterator[Comparison]:
    """Those that were measured: few songs have no likeness, and a meter may lack pairs."""
    known = set(metrics.select("source", "metric").unique().iter_rows())
    for one in list_comparisons(axes):
        if known.issuperset(((one.chosen_source, one.chosen_metric), (one.source, one.metric))):
            yield one


def space_distances(axis: str, limits: tuple[float, float]) -> Float64[np.ndarray, "d"]:
    """The matched distances between two limits: at equal ratios the poster's, else evenly."""
    spaced: np.ndarray = (np.geomspace if axis in POSTER_AXES else np.linspace)(*limits, DISTANCES)
    return spaced


_ROW = ["method", "trial", "lambda", "iteration"]
"""Columns that identify a point of one seed."""
_SEEDED = [*_ROW, "configuration", "seed"]
_POINT = ["method", "configuration", "lambda", "iteration"]
"""Columns that identify a point of all seeds."""
_POOLED = (
    pl.when(pl.col("method").is_in(FUSIONS)).then(pl.lit(OURS)).otherwise("method").alias("method")
)
"""The column `method`, with one name for all of ours."""
_SCORES = ["validation_value", "value", "candidates", "excluded"]
_FEWEST = 5
"""A method with fewer candidates than this does not cause the others to be thinned."""
_ATTAINED = {"best": 0, "median": 50, "worst": 100}
"""Levels of attainment, as the smallest share of seeds in percent (at least one seed)."""


def non_dominated(
    distance: Float64[np.ndarray, "n"], coherency: Float64[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """Mark the points that no other point dominates (as good in both coordinates, better in one).

    Equal points are all kept. Raises `ValueError` for NaN or infinity: filter and count those
    first.
    """
    points = _finite_points(distance, coherency)
    mask: np.ndarray = moocore.is_nondominated(points, maximise=[False, True], keep_weakly=True)
    return mask


def hypervolume(
    distance: Float64[np.ndarray, "n"],
    coherency: Float64[np.ndarray, "n"],
    reference: tuple[float, float],
) -> float:
    """Area that the points dominate, up to the `reference` (distance, coherency), at least 0.

    Points that are not better than the reference in both coordinates add nothing. Raises
    `ValueError` as `non_dominated` does.
    """
    points = _finite_points(distance, coherency)
    return float(moocore.hypervolume(points, ref=reference, maximise=[False, True]))


def shortfall(
    points: tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n"]],
    others: tuple[Float64[np.ndarray, "m"], Float64[np.ndarray, "m"]],
    scale: tuple[float, float],
) -> float:
    """How far the best of `points` falls short of the front of `others`.

    Points are (distance, coherency), and `scale` holds a unit for each coordinate. The result is
    the smallest number of units by which one of `points` must improve in both coordinates so that
    none of `others` is better in both: the additive ε-indicator of Zitzler et al. (2003), point by
    point. It is negative for a point beyond the front, and minus infinity without others.
    """
    ahead = [
        (own[:, None] - other[None, :]) * sign / unit
        for own, other, sign, unit in zip(points, others, (1.0, -1.0), scale, strict=True)
    ]
    short = np.minimum(*ahead).max(axis=1, initial=-np.inf)
    return float(short.min())


def panel_points(metrics: pl.DataFrame, source: str, metric: str, axis: str) -> pl.DataFrame:
    """Take the rows of one panel, with each point's value of metric `axis` as column `distance`.

    `distance` is null where it was not measured, as for the `LEVELS`.
    """
    panel = metrics.filter(pl.col("source") == source, pl.col("metric").is_in([metric, axis]))
    distances = panel.filter(pl.col("metric") == axis)
    return panel.filter(pl.col("metric") == metric).join(
        distances.select(*_ROW, distance="value"),
        on=_ROW,
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )


def rivals(metrics: pl.DataFrame) -> list[str]:
    """List all methods that ours is compared with, sorted by name; controls are none."""
    apart = (*FUSIONS, *LEVELS, *CONTROLS, REAL)
    return metrics.filter(~pl.col("method").is_in(apart))["method"].unique().sort().to_list()


def matched_similarity(
    metrics: pl.DataFrame, bounds: Mapping[str, tuple[float, float]]
) -> pl.DataFrame:
    """Compare ours with each rival at `DISTANCES` matched distances, in every comparison.

    `bounds` holds the smallest and the largest distance of each axis; `space_distances` puts the
    others between them. Among the candidates with a validation distance of at most `distance`, the
    one with the best validation value is chosen (of equal ones the nearest, then the first by name,
    λ and iteration). The `value` of the metric on test songs is reported, or NaN where it is
    missing. If there is no such candidate, the identity takes its place.

    Both sides of a comparison have equal numbers of candidates. Only a method with a single point,
    such as the identity, does not thin the other side.

    Returns two rows per `rival`, `axis`, `source`, `metric` and `distance`, one with `method`
    "ours" and one with the rival's. They hold what was chosen (`configuration`, `lambda`,
    `iteration`), the `validation_value` by which it was, the `value`, the number of `candidates`
    after thinning, and how many were `excluded` as unfinished or not finite. Raises `ValueError`
    unless each panel has exactly one identity.
    """
    chosen: dict[tuple[str, str, str], tuple[pl.DataFrame, pl.DataFrame]] = {}
    compared = []
    for one in _measured(metrics, bounds):
        if one.choice not in chosen:
            points = _seeded_points(metrics, *one.choice)
            configurations = _configurations(points)
            distances = space_distances(one.axis, bounds[one.axis])
            chosen[one.choice] = points, _compare(configurations, rivals(metrics), distances)
        points, rows = chosen[one.choice]
        scores = _scores(points, metrics, one.source, one.metric, one.axis)
        value = _values(points, scores)[rows["place"]]
        compared.append(rows.with_columns(value, **one.columns))
    return pl.concat(compared).select(
        "rival", "axis", "source", "metric", "distance", *_POINT, *_SCORES
    )


def hypervolumes(metrics: pl.DataFrame, bounds: Mapping[str, tuple[float, float]]) -> pl.DataFrame:
    """Hypervolume of each method (ours pooled) in every comparison, for each training seed.

    The points are those that no other point of the method and seed, nor the identity from which all
    start, dominates on validation songs, by what choices are made by. Their area is that of their
    distances and values on test songs; points that are not finite there add nothing. The reference
    point is the axis's largest distance in `bounds` and a value of 0.

    All methods are thinned to the smallest number of candidates; methods with fewer than 5, such as
    the identity, do not count for this number. Columns: `source`, `metric`, `axis`, `method`,
    `seed` (null for a method that is not trained), `hypervolume`, `candidates`.
    """
    methods = [OURS, *rivals(metrics)]
    chosen: dict[tuple[str, str, str], tuple[pl.DataFrame, list[_Front]]] = {}
    rows = []
    for one in _measured(metrics, bounds):
        if one.choice not in chosen:
            points = _seeded_points(metrics, *one.choice)
            chosen[one.choice] = points, list(_fronts(points, methods))
        points, fronts = chosen[one.choice]
        panel = one.source, one.metric, one.axis
        scores = _scores(points, metrics, *panel)
        for front in fronts:
            distance, coherency = _reached(front, scores).T
            area = hypervolume(distance, coherency, (bounds[one.axis][1], 0.0))
            rows.append((*panel, front.method, front.seed, area, front.candidates))
    names = dict.fromkeys(("source", "metric", "axis", "method"), pl.String)
    numbers = {"seed": pl.Int64, "hypervolume": pl.Float64, "candidates": pl.Int64}
    return pl.DataFrame(rows, pl.Schema({**names, **numbers}), orient="row")


def attainment(
    metrics: pl.DataFrame, source: str, metric: str, axis: str, methods: Sequence[str]
) -> pl.DataFrame:
    """Attainment surfaces of `methods` in one panel: what the fronts of their seeds reach.

    The fronts are as in `hypervolumes`, with equal numbers of candidates among `methods`. The
    levels are what at least one seed attains ("best"), what half of the seeds attain ("median"),
    and what all attain ("worst"). Columns: `method`, `level`, `distance` and `coherency`. The last
    two are the corners of a step curve with ascending distance: from each corner on, its coherency
    is attained.
    """
    rows = []
    for method, sets in _sets(metrics, source, metric, axis, methods).items():
        losses = np.column_stack([sets[:, 0], -sets[:, 1]])
        corners = moocore.eaf(losses, sets[:, 2], percentiles=list(_ATTAINED.values()))
        for level, percentile in _ATTAINED.items():
            surface = corners[corners[:, 2] == percentile]
            rows += [(method, level, d, -loss) for d, loss, _ in sorted(surface.tolist())]
    names = dict.fromkeys(("method", "level"), pl.String)
    numbers = dict.fromkeys(("distance", "coherency"), pl.Float64)
    return pl.DataFrame(rows, pl.Schema({**names, **numbers}), orient="row")


def attainment_difference(
    metrics: pl.DataFrame, source: str, metric: str, axis: str, method: str, rival: str
) -> pl.DataFrame:
    """Where the seeds of one method attain more often than those of the other, in one panel.

    Columns: `distance_low`, `distance_high`, `coherency_low` and `coherency_high` of rectangles
    that don't overlap (open sides are infinite), and the `difference` in each: the share of
    `method`'s seeds that attain it less the share of `rival`'s, -1 to 1 and never 0. The fronts are
    as in `attainment`.
    """
    sets = _sets(metrics, source, metric, axis, [method, rival])
    columns = ("distance_low", "coherency_high", "distance_high", "coherency_low", "difference")
    if len(sets) < 2:
        return pl.DataFrame(schema=dict.fromkeys(columns, pl.Float64))
    # moocore counts sets, so the sets of each method are repeated until their numbers are equal.
    shared = lcm(*(len(np.unique(own[:, 2])) for own in sets.values()))
    own, other = (_repeated(sets[name], shared) for name in (method, rival))
    try:
        found = moocore.eafdiff(own, other, maximise=[False, True], rectangles=True)
    except ValueError:  # moocore 0.3 raises this where there is no difference
        found = np.empty((0, 5))
    frame = pl.DataFrame(found, list(columns), orient="row")
    return frame.filter(pl.col("difference") != 0).with_columns(pl.col("difference") / shared)


def _seeded_points(metrics: pl.DataFrame, axis: str, source: str, metric: str) -> pl.DataFrame:
    """The points among which is chosen, one row per seed, with their `place` in this frame.

    `method` is "ours" for our own; missing numbers are NaN.
    """
    ours = metrics.filter(pl.col("method").is_in(FUSIONS))
    return (
        panel_points(metrics, source, metric, axis)
        .filter(~pl.col("method").is_in((*LEVELS, REAL)))
        .select(
            *_SEEDED,
            validation_distance=pl.col("distance").fill_null(np.nan),
            validation_value=pl.col("value").fill_null(np.nan),
            seeds=pl.lit(ours["seed"].n_unique()),
        )
        .with_columns(_POOLED)
        .with_row_index("place")
    )


def _scores(
    points: pl.DataFrame, metrics: pl.DataFrame, source: str, metric: str, axis: str
) -> pl.DataFrame:
    """The `distance` and `value` of each of `_seeded_points` in a panel; missing ones are NaN."""
    scored = panel_points(metrics, source, metric, axis).with_columns(_POOLED)
    return (
        points.select(_SEEDED)
        .join(
            scored.select(*_SEEDED, "distance", "value"),
            on=_SEEDED,
            how="left",
            nulls_equal=True,
            maintain_order="left",
        )
        .select(pl.col("distance", "value").fill_null(np.nan))
    )


def _configurations(points: pl.DataFrame) -> pl.DataFrame:
    """The means over seeds of `_seeded_points`, their `place`, and whether each `is_candidate`."""
    numbers = pl.col("validation_distance", "validation_value")
    finished = (pl.col("method") != OURS) | (pl.col("seed").n_unique() == pl.col("seeds"))
    return (
        points.group_by(_POINT, maintain_order=True)
        .agg(numbers.mean(), finished=finished.all())
        .with_columns(is_candidate=pl.all_horizontal(numbers.is_finite(), "finished"))
        .with_row_index("place")
    )


def _values(points: pl.DataFrame, scores: pl.DataFrame) -> pl.Series:
    """The mean value over seeds of each of `_configurations(points)`; NaN if any is missing."""
    by_seed = points.select(_POINT).with_columns(scores["value"])
    return by_seed.group_by(_POINT, maintain_order=True).agg(pl.col("value").mean())["value"]


def _thin(places: Int64[np.ndarray, "n"], count: int) -> Int64[np.ndarray, "k"]:
    """Thin candidates, the nearest first, to at most `count`, as the module's docstring says."""
    kept = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
    thinned: np.ndarray = places[kept]
    return thinned


class _Pool(NamedTuple):
    """The points of one method, as places in `_configurations`."""

    points: int
    candidates: Int64[np.ndarray, "n"]
    """The nearest first."""
    excluded: int
    """How many points are not finished or not finite."""


def _pools(configurations: pl.DataFrame, methods: Collection[str], most: float) -> dict[str, _Pool]:
    """The pools of some methods; candidates are not farther than `most`."""
    nearest = configurations.sort("validation_distance", *_POINT)
    within = nearest["is_candidate"] & (nearest["validation_distance"] <= most)
    pools = {}
    for method in methods:
        own = nearest["method"] == method
        candidates = nearest["place"].filter(own & within).to_numpy().astype(np.int64)
        excluded = int((own & ~nearest["is_candidate"]).sum())
        pools[method] = _Pool(int(own.sum()), candidates, excluded)
    return pools


def _compare(
    configurations: pl.DataFrame, against: Sequence[str], distances: Float64[np.ndarray, "d"]
) -> pl.DataFrame:
    """What is chosen for ours and each rival: their rows in every panel, but for their `value`."""
    identity = configurations.filter(pl.col("method") == "identity")["place"].to_list()
    if len(identity) != 1:
        raise ValueError(f"metrics: a panel needs one point of identity, got {len(identity)}")
    pools = _pools(configurations, (OURS, *against), distances[-1])
    best_first = configurations.sort(
        "validation_value", "validation_distance", "configuration", "lambda", "iteration",
        descending=[True, *[False] * 4],
    )["place"].to_numpy()  # fmt: skip
    rank = np.argsort(best_first)
    distance = configurations["validation_distance"].to_numpy()
    sides = []
    for rival in against:
        pair = {name: pools[name] for name in (OURS, rival)}
        # The identity and transposition have one point by nature.
        several = [len(own.candidates) for own in pair.values() if own.points > 1]
        for name, own in pair.items():
            kept = _thin(own.candidates, min(several, default=1))
            kept = kept[np.argsort(rank[kept])]
            # Last comes the identity, which takes the place of candidates that are too far.
            chosen = np.append(kept, identity)
            near = np.append(distance[kept], 0.0) <= distances[:, None]
            places: np.ndarray = chosen[near.argmax(1)]
            side = configurations[places].with_columns(
                rival=pl.lit(rival),
                method=pl.lit(name),
                distance=pl.Series(distances),
                candidates=pl.lit(len(kept), pl.Int64),
                excluded=pl.lit(own.excluded, pl.Int64),
            )
            sides.append(side)
    return pl.concat(sides)


class _Front(NamedTuple):
    """The points of one method and seed that no other dominates."""

    method: str
    seed: int | None
    candidates: int
    """Number of points that it was chosen from."""
    places: Int64[np.ndarray, "n"]
    """In `_seeded_points`."""


def _fronts(points: pl.DataFrame, methods: Sequence[str]) -> Iterator[_Front]:
    """Give, by method and seed, those of `_seeded_points` that no other dominates.

    All methods are thinned equally. The identity, from which all methods start, is a candidate for
    every front. Methods without a candidate have no front.
    """
    configurations = _configurations(points)
    pools = _pools(configurations, methods, np.inf)
    sizes = [len(pool.candidates) for pool in pools.values()]
    count = min((size for size in sizes if size >= _FEWEST), default=_FEWEST)
    named = points.join(
        configurations.select(*_POINT, point="place"), on=_POINT, nulls_equal=True, how="left",
        maintain_order="left",
    )  # fmt: skip
    point, start = named["point"].to_numpy(), (named["method"] == "identity").to_numpy()
    validation = points.select("validation_distance", "validation_value").to_numpy()
    seeds = np.array(points["seed"].to_list(), object)  # None for what is not trained
    for method, pool in pools.items():
        kept = _thin(pool.candidates, count)
        own = np.isin(point, kept)
        for seed in dict.fromkeys(seeds[own]):
            places = np.flatnonzero(own & (seeds == seed) | start)
            front = places[non_dominated(*validation[places].T)]
            yield _Front(method, seed, len(kept), front)


def _sets(
    metrics: pl.DataFrame, source: str, metric: str, axis: str, methods: Sequence[str]
) -> dict[str, Float64[np.ndarray, "n 3"]]:
    """The fronts of each method in moocore's form: distance, coherency, number of the seed."""
    sets: dict[str, list[Float64[np.ndarray, "n 3"]]] = {}
    points = _seeded_points(metrics, axis, CHOSEN_ON[source], metric)
    scores = _scores(points, metrics, source, metric, axis)
    for front in _fronts(points, methods):
        own = sets.setdefault(front.method, [])
        reached = _reached(front, scores)
        own.append(np.column_stack([reached, np.full(len(reached), len(own) + 1.0)]))
    found = {method: np.concatenate(own) for method, own in sets.items()}
    return {method: reached for method, reached in found.items() if len(reached)}


def _repeated(points: Float64[np.ndarray, "n 3"], sets: int) -> Float64[np.ndarray, "m 3"]:
    """Repeat the sets of `points` until there are `sets` of them."""
    turns = sets // len(np.unique(points[:, 2]))
    shift = np.array([0.0, 0.0, points[:, 2].max()])
    return np.concatenate([points + turn * shift for turn in range(turns)])


def _reached(front: _Front, scores: pl.DataFrame) -> Float64[np.ndarray, "n 2"]:
    """The finite distances and values that a front has among the `_scores` of its points."""
    reached = scores.to_numpy()[front.places]
    finite: np.ndarray = reached[np.isfinite(reached).all(1)]
    return finite


def _finite_points(
    distance: Float64[np.ndarray, "n"], coherency: Float64[np.ndarray, "n"]
) -> Float64[np.ndarray, "n 2"]:
    points = np.column_stack([distance, coherency])
    if not np.isfinite(points).all():
        raise ValueError("points: all must be finite; filter and count the others first")
    return points
