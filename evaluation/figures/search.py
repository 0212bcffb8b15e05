"""The figure of a search: which parameters matter, and how the objectives depend on each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from cf_core.errors import FigureError
from evaluation.figures.canvas import GREY, STYLE, WIDTH, drawable, heading, key
from evaluation.frontier import non_dominated

_SHADES = "cividis_r"
_FEW = 100.0
"""A logarithmic axis whose ends have a smaller ratio than this has few powers of ten to name."""


@dataclass(frozen=True)
class Axis:
    """How a searched parameter is drawn."""

    name: str
    """Its column."""
    label: str
    log: bool
    """Whether its axis is logarithmic."""


_OBJECTIVES = ("maximised", "minimised")
"""Columns of the objectives, by row of the figure."""


def search_figure(
    points: pl.DataFrame,
    importances: pl.DataFrame,
    parameters: Sequence[Axis],
    objectives: tuple[str, str],
) -> Figure:
    """Draw a row for each objective: the importances of the parameters, then a slice by each.

    `points` has a row per complete configuration: `batch`, `maximised` and `minimised` (its values
    of the two metrics `objectives`), `feasible` (whether it meets the constraints), and the
    `parameters`, null where one does not apply (for `lambda`: where λ is an input). `importances`
    is the study's table. Colour shows the batch. A ring marks a feasible configuration that no
    other betters in both objectives. Raises `FigureError` if no configuration has finite
    objectives.
    """
    finite = points.filter(pl.all_horizontal(pl.col(_OBJECTIVES).is_finite()))
    if finite.is_empty():
        raise FigureError("objectives: no configuration is complete; evaluate some first")
    finite = finite.sort("batch", *(axis.name for axis in parameters), *_OBJECTIVES)
    feasible = finite["feasible"].to_numpy()
    front = feasible.copy()
    value, distance = (finite[column].to_numpy()[feasible] for column in _OBJECTIVES)
    front[feasible] = non_dominated(distance, value)
    names = {axis.name: axis.label for axis in parameters}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        bars = int(not importances.is_empty())
        grid = figure.subplots(2, len(parameters) + bars, sharey=False, squeeze=False)
        for row, column, objective in zip(grid, _OBJECTIVES, objectives, strict=True):
            if bars:
                of_objective = importances.filter(pl.col("objective") == objective)
                _draw_bars(row[0], of_objective, objective, names)
            for panel, parameter in zip(row[bars:], parameters, strict=True):
                _draw_slice(panel, finite, front, parameter, column)
            row[bars].set_ylabel(heading(objective))
            for panel in row[bars + 1 :]:
                panel.sharey(row[bars])
                panel.tick_params(labelleft=False)
        for panel, parameter in zip(grid[1][bars:], parameters, strict=True):
            panel.set_xlabel(parameter.label)
        batches = finite["batch"].to_numpy() + 1
        scale = Normalize(batches.min(), max(batches.max(), batches.min() + 1))
        shades = mpl.cm.ScalarMappable(scale, _SHADES)
        if len(np.unique(batches)) > 1:
            ticks = MaxNLocator(6, integer=True)
            figure.colorbar(shades, ax=grid, label="batch", ticks=ticks, aspect=40, pad=0.01)
        ring = key("black", marker="o", size=5.0)
        ring.set_markerfacecolor("none")
        legend = {"no other is better in both objectives": ring}
        if not feasible.all():
            legend["misses a constraint"] = key("black", marker="x", size=3.0)
        figure.legend(
            list(legend.values()), list(legend), loc="outside lower center", frameon=False, ncols=2
        )
    return figure


def _draw_bars(panel: Axes, rows: pl.DataFrame, objective: str, labels: Mapping[str, str]) -> None:
    ranked = rows.sort("importance", "parameter")
    names = [labels.get(name, drawable(name)) for name in ranked["parameter"]]
    panel.barh(range(len(names)), ranked["importance"].to_numpy(), color="0.6", height=0.6)
    panel.set_yticks(range(len(names)), names)
    panel.set_xlim(0, 1)
    panel.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    panel.set_title(f"importance for\n{heading(objective).splitlines()[0]}")


def _draw_slice(
    panel: Axes, points: pl.DataFrame, front: np.ndarray, parameter: Axis, column: str
) -> None:
    numeric = points[parameter.name].cast(pl.Float64).to_numpy()
    known = np.isfinite(numeric)
    place = numeric.copy()
    _scale(panel, numeric[known], parameter.log)
    kept = known
    if parameter.name == "lambda" and not known.all():
        # λ as an input has a place of its own, to the right of all numbers.
        kept, place[~known] = np.ones_like(known), 10 * np.max(numeric[known], initial=1.0)
        panel.axvline(place[~known][0] / 3, color=GREY, lw=0.5, ls=":")
        panel.annotate(
            "λ as\ninput", (place[~known][0], 1.0), xycoords=("data", "axes fraction"),
            ha="center", va="bottom", fontsize=6,
        )  # fmt: skip
    value, batch = points[column].to_numpy(), points["batch"].to_numpy() + 1
    feasible = points["feasible"].to_numpy()
    for drawn, marker, width in ((kept & feasible, "o", 0.0), (kept & ~feasible, "x", 0.8)):
        panel.scatter(
            place[drawn], value[drawn], c=batch[drawn], cmap=_SHADES, s=9, lw=width, marker=marker,
            vmin=batch.min(), vmax=max(batch.max(), batch.min() + 1), clip_on=False,
        )  # fmt: skip
    ringed = kept & front
    panel.scatter(
        place[ringed], value[ringed], s=26, facecolors="none", edgecolors="black", lw=0.7,
        clip_on=False,
    )  # fmt: skip
    panel.yaxis.set_major_locator(MaxNLocator(5))


def _scale(panel: Axes, numbers: np.ndarray, logarithmic: bool) -> None:
    levels = np.unique(numbers)
    if logarithmic and levels.size and levels[0] > 0:
        panel.set_xscale("log")
        few = levels[-1] / levels[0] < _FEW
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if few else (1.0,), numticks=4))
        panel.xaxis.set_minor_formatter(NullFormatter())
        # λ as an input may lie beyond the numbers; its place has no number.
        highest = levels[-1] * 1.001
        panel.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _: f"{x:g}" if x <= highest else "")
        )
    elif 0 < levels.size <= 4:
        panel.set_xticks(levels, [f"{level:g}" for level in levels])
        margin = 0.2 * (np.ptp(levels) or 1.0)
        panel.set_xlim(levels[0] - margin, levels[-1] + margin)
    else:
        panel.xaxis.set_major_locator(MaxNLocator(3))
