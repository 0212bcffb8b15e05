"""Points, fronts and levels, which several figures of coherency by distance or cost draw."""

from dataclasses import dataclass

import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType

from evaluation.figures.canvas import (
    GREY,
    key,
    look,
)
from evaluation.frontier import (
    FUSIONS,
    LEVELS,
    OURS,
    non_dominated,
)

POINT = ["method", "configuration", "lambda", "iteration"]
"""Columns that identify a point, with its seeds taken together."""
_LEVEL_DASHES: dict[str, LineStyleType] = {"floor": ":", "ceiling": (0.0, (6.0, 2.0))}
_LEVEL_NAMES = {"floor": "floor: other inputs", "ceiling": "ceiling: real pairs"}


@dataclass(frozen=True)
class Panel:
    """Content of one panel: configurations (seeds taken together), levels, what is left out."""

    configurations: pl.DataFrame
    """Columns `POINT`, the means `distance` and `value`, the range `low` to `high`, `seeds`."""
    levels: pl.DataFrame
    missing: int
    """Number of points whose value or distance is not finite."""
    excluded: int
    """Largest number of pairs left out of a point."""
    pairs: int
    """Number of pairs of a point, those left out included."""

    @classmethod
    def of(cls, points: pl.DataFrame) -> "Panel":
        """Take the points of one panel, as `evaluation.frontier.panel_points` gives them."""
        is_level = pl.col("method").is_in(LEVELS)
        placed = points.filter(~is_level)
        finite = placed.filter(pl.all_horizontal(pl.col("distance", "value").is_finite()))
        configurations = (
            finite.sort("trial")  # the order of the terms changes the rounding of sums
            .group_by(POINT, maintain_order=True)
            .agg(
                pl.col("distance", "value").mean(),
                low=pl.col("value").min(),
                high=pl.col("value").max(),
                seeds=pl.len(),
            )
            .sort(POINT)
        )
        return cls(
            configurations,
            points.filter(is_level, pl.col("value").is_finite()).sort("method"),
            placed.height - finite.height,
            placed["excluded"].max() or 0,  # type: ignore[arg-type]
            (placed["n"] + placed["excluded"]).max() or 0,  # type: ignore[arg-type]
        )

    @property
    def ours(self) -> pl.DataFrame:
        """Configurations of fusion."""
        return self.configurations.filter(pl.col("method").is_in(FUSIONS))

    def method(self, method: str) -> pl.DataFrame:
        """Configurations of one method."""
        return self.configurations.filter(pl.col("method") == method)


def draw_front(
    panel: Axes, rows: pl.DataFrame, method: str, *, filled: bool = True
) -> pl.DataFrame:
    """Draw a line through the points that no other dominates, and return these points."""
    if rows.is_empty():
        return rows
    mask = non_dominated(rows["distance"].to_numpy(), rows["value"].to_numpy())
    front = rows.filter(mask).sort("distance", "value", *POINT)
    drawn = look(method)
    ours = method in (OURS, *FUSIONS)
    panel.plot(
        front["distance"], front["value"], color=drawn.colour, ls=drawn.dashes,
        marker="" if method == OURS else drawn.marker,
        markersize=6 if method == "identity" else 2.8,
        lw=1.1 if ours else 0.8, markeredgewidth=0.7, zorder=3.2 if ours else 3,
        markerfacecolor=drawn.colour if filled else "white",
        label=method if filled else f"{method} with training",
    )  # fmt: skip
    return front


def draw_levels(panel: Axes, levels: pl.DataFrame) -> None:
    """Draw lines across the panel, with their intervals (if any) as bands."""
    for method, value, low, high in levels.select("method", "value", "low", "high").iter_rows():
        dashes = _LEVEL_DASHES.get(method, (0.0, (1.0, 3.0)))
        panel.axhline(value, color=GREY, lw=0.8, ls=dashes, label=method, zorder=1.5)
        if low is not None and method in LEVELS:
            panel.axhspan(low, high, color=GREY, alpha=0.1, lw=0)


def level_keys(metrics: pl.DataFrame) -> list[tuple[str, Line2D]]:
    """Make the entries of a legend for the levels that the table `metrics` has."""
    known = metrics["method"].unique().to_list()
    return [
        (_LEVEL_NAMES[name], key(GREY, dashes))
        for name, dashes in _LEVEL_DASHES.items()
        if name in known
    ]


def method_key(method: str, *, filled: bool = True) -> Line2D:
    """Make the symbol of a method in a legend."""
    drawn = look(method)
    line = key(drawn.colour, drawn.dashes, drawn.marker, 6.0 if method == "identity" else 3.5)
    line.set_markerfacecolor(drawn.colour if filled else "white")
    return line
