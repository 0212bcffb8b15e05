"""Coherency against similarity: the points of a panel, their frontier, and matched similarity.

Similarity is a distance to the inputs, so less of it is better; more coherency is better.

The metrics frame that some functions take holds one row per point and metric, with at least the
columns `method`, `trial`, `lambda`, `source`, `iteration`, `metric` and `value`.
"""

from collections.abc import Sequence
from itertools import product

import moocore
import numpy as np
import polars as pl
from jaxtyping import Bool, Float64

from evaluation.statistics import STATISTICS

COHERENCY: tuple[str, ...] = ("judge", *STATISTICS)
"""The six coherency metrics."""
CHOSEN_ON: dict[str, str] = {"test": "validation", "prior": "validation_prior"}
"""The sources that are scored, each with the source on which choices for it are made."""
PANELS: tuple[tuple[str, str], ...] = tuple(product(CHOSEN_ON, COHERENCY))
"""The 12 panels, as (source, metric)."""
FUSIONS: tuple[str, ...] = ("fusion", "conditional")
"""Methods that are trained trials: with one λ each, and with λ as an input."""
LEVELS: tuple[str, ...] = ("floor", "ceiling")
"""Methods that are no points: a value to hold the others against, at no distance."""

_POINT = ["method", "trial", "lambda", "iteration"]


def non_dominated(
    distance: Float64[np.ndarray, "n"], coherency: Float64[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """Mark the points that no other dominates: as good in both coordinates and better in one.

    Of equal points all are kept. ValueError for NaN or infinity: filter and count those first.
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

    Points that do not better the reference in both add nothing. ValueError as `non_dominated`.
    """
    points = _finite_points(distance, coherency)
    return float(moocore.hypervolume(points, ref=reference, maximise=[False, True]))


def panel_points(metrics: pl.DataFrame, source: str, metric: str, axis: str) -> pl.DataFrame:
    """Take the rows of one panel, with each point's value of metric `axis` as column `distance`.

    `distance` is null where none was taken, as for the `LEVELS`.
    """
    panel = metrics.filter(pl.col("source") == source)
    distances = panel.filter(pl.col("metric") == axis)
    return panel.filter(pl.col("metric") == metric).join(
        distances.select(*_POINT, distance="value"),
        on=_POINT,
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )


def matched_points(metrics: pl.DataFrame, source: str, metric: str, axis: str) -> pl.DataFrame:
    """Take the points of one scored panel, without `LEVELS`, in the form of `matched_similarity`.

    `validation_distance` and `validation_value` are those of the source's twin in `CHOSEN_ON`.
    """
    chosen = panel_points(metrics, CHOSEN_ON[source], metric, axis).filter(
        ~pl.col("method").is_in(LEVELS)
    )
    scored = panel_points(metrics, source, metric, axis)
    return chosen.select(*_POINT, validation_distance="distance", validation_value="value").join(
        scored.select(*_POINT, "value"),
        on=_POINT,
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )


def matched_similarity(points: pl.DataFrame, distances: Sequence[float]) -> pl.DataFrame:
    """Score each method at each distance, by points chosen on validation songs.

    Among a method's points with a validation distance of at most `distance`, the one with the best
    validation value is chosen (of equals the nearest, then the first by name, λ and iteration), and
    its `value` reported, even if not finite. A method with no such point gets the identity's.

    `points` has the columns `method`, `trial`, `lambda`, `iteration`, `validation_distance`,
    `validation_value` and `value`, and one row of method "identity"; points whose validation
    distance or value is missing or not finite are never chosen. Returned is one row per method and
    distance: `method`, `distance`, `trial`, `lambda`, `iteration`, `validation_value`, `value`.
    ValueError without exactly one identity.
    """
    identity = points.filter(pl.col("method") == "identity")
    if identity.height != 1:
        raise ValueError(f"points: one row of method identity is needed, not {identity.height}")
    methods = points.select("method").unique(maintain_order=True)
    fallback = methods.join(identity.drop("method"), how="cross").select(points.columns)
    finite = pl.all_horizontal(pl.col("validation_distance", "validation_value").is_finite())
    candidates = pl.concat(
        [
            points.filter(finite).with_columns(is_fallback=pl.lit(False)),
            fallback.with_columns(is_fallback=pl.lit(True), validation_distance=0.0),
        ]
    )
    best_first = candidates.sort(
        "is_fallback", "validation_value", "validation_distance", "trial", "lambda", "iteration",
        descending=[False, True, False, False, False, False],
    )  # fmt: skip
    chosen = [
        best_first.filter(pl.col("validation_distance") <= distance)
        .group_by("method", maintain_order=True)
        .first()
        .with_columns(distance=pl.lit(float(distance)))
        for distance in distances
    ]
    columns = ["method", "distance", *_POINT[1:], "validation_value", "value"]
    return pl.concat(chosen).select(columns).sort("method", "distance")


def mean_difference(matched: pl.DataFrame, method: str, baseline: str) -> float:
    """Mean over distances of `method`'s value less `baseline`'s, in rows of `matched_similarity`.

    NaN if a value is. KeyError for a method that has no rows.
    """
    means = dict(matched.group_by("method").agg(pl.col("value").mean()).iter_rows())
    return float(means[method] - means[baseline])


def log_spaced(smallest: float, largest: float, count: int) -> list[float]:
    """`count` distances from `smallest` to `largest`, both included, at equal ratios.

    ValueError unless 0 < smallest < largest.
    """
    if not 0 < smallest < largest:
        raise ValueError(f"distances: 0 < smallest < largest, not {smallest} and {largest}")
    distances: list[float] = np.geomspace(smallest, largest, count).tolist()
    return distances


def _finite_points(
    distance: Float64[np.ndarray, "n"], coherency: Float64[np.ndarray, "n"]
) -> Float64[np.ndarray, "n 2"]:
    points = np.column_stack([distance, coherency])
    if not np.isfinite(points).all():
        raise ValueError("points: all must be finite; filter and count the others first")
    return points
