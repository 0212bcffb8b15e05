"""Figures of the coherency that is attained within a distance, over training seeds."""

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from cf_core.errors import FigureError
from evaluation.figures.canvas import (
    STYLE,
    in_order,
    key,
    legend_below,
    look,
    panel_grid,
)
from evaluation.frontier import (
    FUSIONS,
    OURS,
    PANELS,
)

_RECTANGLE = ["distance_low", "distance_high", "coherency_low", "coherency_high", "difference"]


def attainment_figure(surfaces: pl.DataFrame, axis: str = "z_distance") -> Figure:
    """Draw the coherency that each method attains within each distance, over seeds.

    `surfaces` has the columns source, metric, method, level ("best", "median" or "worst" seed),
    distance and coherency. A row is the place where a step of that level's surface begins. The
    figure shows the medians, and for ours a band from worst to best. Raises `FigureError` if there
    is nothing to draw.
    """
    finite = surfaces.filter(pl.all_horizontal(pl.col("distance", "coherency").is_finite()))
    panels = [panel for panel in PANELS if finite.filter(source=panel[0], metric=panel[1]).height]
    if not panels:
        raise FigureError("attainment surfaces: none has a finite step; evaluate some trials first")
    methods = in_order(finite["method"].unique().to_list())
    end = 2.0 * float(finite["distance"].max())  # type: ignore[arg-type]
    with mpl.rc_context(STYLE):
        figure, axes = panel_grid(panels, finite["distance"].to_numpy(), axis)
        for panel, (source, metric) in ((axes[at], at) for at in panels):
            for method in methods:
                rows = finite.filter(source=source, metric=metric, method=method)
                steps = {
                    level: _steps(rows.filter(level=level), end)
                    for level in ("worst", "median", "best")
                }
                if method in (OURS, *FUSIONS):
                    _draw_band(panel, steps["worst"], steps["best"], f"{method} band")
                panel.plot(
                    *steps["median"], drawstyle="steps-post", color=look(method).colour,
                    ls=look(method).dashes, lw=1.0, label=method,
                )  # fmt: skip
        kinds = [(look(m).label, key(look(m).colour, look(m).dashes)) for m in methods]
        band = Line2D([], [], color="black", alpha=0.2, lw=5)
        legend_below(
            figure,
            {"median over seeds": kinds, "ours": [("worst to best seed", band)]},
            "coherency attained within each distance",
        )
    return figure


def attainment_difference_figure(
    differences: pl.DataFrame, rival: str, axis: str = "z_distance"
) -> Figure:
    """Draw where ours attains a coherency more often than a rival, over seeds, or less often.

    `differences` has the columns source, metric, and those of
    `evaluation.frontier.attainment_difference`. Ours is blue; the rival is orange and hatched. A
    darker shade is a larger difference. Raises `FigureError` if there is nothing to draw.
    """
    differences = differences.filter(pl.col("difference").is_finite()).sort(_RECTANGLE)
    panels = [at for at in PANELS if differences.filter(source=at[0], metric=at[1]).height]
    if not panels:
        raise FigureError(
            f"attainment: ours and {look(rival).label} differ nowhere; evaluate first"
        )
    sides = differences.select("distance_low", "distance_high").to_numpy().ravel()
    finite = sides[np.isfinite(sides)]
    with mpl.rc_context(STYLE):
        figure, axes = panel_grid(panels, finite, axis)
        for (source, metric), panel in ((at, axes[at]) for at in panels):
            rows = differences.filter(source=source, metric=metric)
            right = 1.5 * float(finite.max())
            for left, end, bottom, top, difference in rows.select(*_RECTANGLE).iter_rows():
                # An open side ends with the axis, or at 1, the most of probability and correlation.
                width, height = min(end, right) - left, min(top, 1.0) - bottom
                panel.add_patch(_shade((left, bottom), width, height, difference))
            panel.autoscale_view(scalex=False)
        columns = {
            f"{name} more often": [
                (f"by {share:.0%} of the seeds", _shade((0.0, 0.0), 1.0, 1.0, sign * share))
                for share in (0.2, 0.6, 1.0)
            ]
            for name, sign in (("ours", 1), (look(rival).label, -1))
        }
        legend_below(figure, columns, "where a coherency is attained within a distance")
    return figure


def _steps(rows: pl.DataFrame, end: float) -> tuple[list[float], list[float]]:
    """Return the corners of one attainment surface, extended to `end`."""
    ordered = rows.sort("distance", "coherency")
    distance, coherency = ordered["distance"].to_list(), ordered["coherency"].to_list()
    return [*distance, end], [*coherency, *coherency[-1:]] if coherency else [np.nan]


def _draw_band(
    panel: Axes,
    worst: tuple[list[float], list[float]],
    best: tuple[list[float], list[float]],
    label: str,
) -> None:
    """Fill the area between two step curves, from where both have begun."""
    grid = np.unique([*worst[0], *best[0]])
    grid = grid[grid >= max(worst[0][0], best[0][0])]
    low, high = (
        np.asarray(heights)[np.searchsorted(corners, grid, side="right") - 1]
        for corners, heights in (worst, best)
    )
    panel.fill_between(grid, low, high, step="post", color="black", alpha=0.2, lw=0, label=label)


def _shade(corner: tuple[float, float], width: float, height: float, share: float) -> Rectangle:
    """Make a rectangle where ours (if `share` < 0, the rival) is ahead in that share of seeds."""
    colour, hatch = ("#0072B2", "") if share > 0 else ("#D55E00", "/////")
    return Rectangle(
        corner, width, height, lw=0, facecolor=colour, alpha=abs(share), hatch=hatch,
        edgecolor="white",
    )  # fmt: skip
