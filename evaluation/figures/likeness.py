"""The figure of likeness by distance: how far each method can go before it overshoots."""

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from cf_core.errors import FigureError
from evaluation.controls import CONTROLS
from evaluation.figures.canvas import (
    GREY,
    STYLE,
    WIDTH,
    heading,
    in_order,
    key,
    legend_below,
    letter,
    look,
)
from evaluation.figures.panels import Panel, draw_levels, level_keys, method_key
from evaluation.frontier import CHOSEN_BY, FUSIONS, OURS, panel_points

_METRICS = {CHOSEN_BY: "whole pairs", "indistinguishable_halves": "halves alone"}
_STRETCHES = 14
"""Stretches of the distance axis, in each of which a line passes through a method's best point."""
_LETTER = 5.0
"""Size of the letter of a trick, in points."""


def likeness_figure(metrics: pl.DataFrame, axis: str) -> Figure:
    """Draw how hard outputs of test songs are to tell from real neighbours, by distance.

    The left panel shows whole pairs, the right one halves alone. Every point of a method (mean over
    its seeds) is a faint mark. The axis is divided into stretches, and a line joins the best point
    of each by the left panel. A ring marks the best point of all: beyond it the method overshoots.
    Grey letters are tricks. `metrics` is the study's table, and `axis` the metric used as distance.
    Raises `FigureError` if the table holds nothing to draw.
    """
    panels = [Panel.of(panel_points(metrics, "test", metric, axis)) for metric in _METRICS]
    points = _join(*(panel.configurations for panel in panels))
    if points.is_empty():
        raise FigureError("metrics: there is no likeness of test songs; evaluate some trials first")
    methods = in_order(points["method"].unique().to_list())
    tricks = [control for name, control in CONTROLS.items() if name in methods]
    drawn = [method for method in methods if method not in (*CONTROLS, "identity")]
    edges = np.linspace(0, float(points["distance"].max()), _STRETCHES + 1)  # type: ignore[arg-type]
    with mpl.rc_context({**STYLE, "font.size": 8, "axes.labelsize": 8, "legend.fontsize": 8}):
        figure = Figure(figsize=(WIDTH, 3.6), layout=ConstrainedLayoutEngine(w_pad=0.05))
        both = figure.subplots(1, 2, sharex=True, sharey=True)
        drawings = zip(("value", "halves"), panels, _METRICS.values(), strict=True)
        for place, (column, panel, title) in enumerate(drawings):
            draw_levels(both[place], panel.levels)
            both[place].set_title(title)
            both[place].set_xlabel(heading(axis).replace("\n", " "))
            for method in drawn:
                _draw_method(both[place], points, method, column, edges)
            for name, mark, size in (
                ("identity", look("identity").marker, 7.0),
                *((trick.name, letter(trick.letter), _LETTER) for trick in tricks),
            ):
                own = points.filter(method=name)
                both[place].plot(
                    own["distance"], own[column], ls="", marker=mark, markersize=size,
                    color="black" if name == "identity" else GREY, markeredgewidth=0,
                    label=f"{name} point", zorder=3.5,
                )  # fmt: skip
        both[0].set_ylabel("indistinguishable")
        # With few pairs, an AUC can be below one half, and likeness above 1.
        both[0].set_ylim(-0.03, max(1.12, both[0].get_ylim()[1]))
        both[0].set_xlim(left=-0.02 * edges[-1])
        legend_below(
            figure,
            {
                "methods": [(look(m).label, method_key(m)) for m in (*drawn, "identity")],
                "tricks": [(x.label, key(GREY, "", letter(x.letter), _LETTER)) for x in tricks],
                "references": level_keys(metrics),
            },
            "lines join the best point of each stretch of distance by these test songs, which"
            " favours methods with many points;\nrings: the best of all, beyond which a method"
            " overshoots",
        )
    return figure


def _join(whole: pl.DataFrame, halves: pl.DataFrame) -> pl.DataFrame:
    """The points of both panels, ours under one name."""
    keys = ["method", "configuration", "lambda", "iteration"]
    return whole.join(
        halves.select(*keys, halves="value"), on=keys, nulls_equal=True, maintain_order="left"
    ).with_columns(
        method=pl.when(pl.col("method").is_in(FUSIONS)).then(pl.lit(OURS)).otherwise("method")
    )


def _draw_method(
    panel: Axes, points: pl.DataFrame, method: str, column: str, edges: np.ndarray
) -> None:
    drawn = look(method)
    own = points.filter(method=method)
    ours = method == OURS
    panel.plot(
        own["distance"], own[column], ls="", marker=".", markersize=2.5, alpha=0.35,
        color=drawn.colour, markeredgewidth=0, label=f"{method} points",
        rasterized=own.height > 1000,
    )  # fmt: skip
    stretch = np.digitize(own["distance"].to_numpy(), edges)
    best = (
        own.with_columns(stretch=stretch)
        .sort("value", "configuration", "lambda", "iteration", descending=[True, *[False] * 3])
        .group_by("stretch", maintain_order=True)
        .first()
        .sort("distance")
    )
    panel.plot(
        best["distance"], best[column], color=drawn.colour, ls=drawn.dashes or "-",
        marker="" if best.height > 1 else drawn.marker, markersize=4,
        lw=1.8 if ours else 1.0, zorder=3.2 if ours else 3, label=method,
    )  # fmt: skip
    top = best.sort("value", descending=True)[:1]
    panel.plot(
        top["distance"], top[column], ls="", marker="o", markersize=7, markerfacecolor="none",
        markeredgecolor=drawn.colour, zorder=3.3, label=f"best of {method}",
    )  # fmt: skip
