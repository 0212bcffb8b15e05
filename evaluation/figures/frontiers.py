"""Figures of coherency against similarity, and of how both change with iteration."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import ColorType

from cf_core.errors import FigureError
from evaluation.controls import CONTROLS, Control, rate_controls
from evaluation.figures.canvas import (
    GREY,
    LEGEND_ROWS,
    STYLE,
    colours,
    drawable,
    in_order,
    key,
    legend_below,
    letter,
    look,
    panel_grid,
    thinned,
)
from evaluation.figures.panels import (
    POINT,
    Panel,
    draw_front,
    draw_levels,
    level_keys,
    method_key,
)
from evaluation.frontier import (
    CHOSEN_ON,
    FUSIONS,
    LEVELS,
    OURS,
    panel_points,
)
from evaluation.metrics import AXES, COHERENCY, LIKENESS

_OURS_KEY = ("frontier", key("black", "-"))
_MOST_LINES = 32
"""Most configurations at one λ whose iterations are drawn; more are thinned evenly by λ."""
_LETTER = 4.5
"""Size of the letter of a trick, in points."""
_MANY_POINTS = 1000
"""More points than this are drawn as pixels, in an SVG file too."""


class _Panels(dict[tuple[str, str], Panel]):
    """The panels that have something to show, by source and metric."""

    @classmethod
    def of(cls, metrics: pl.DataFrame, names: tuple[str, ...], axis: str) -> "_Panels":
        """Take the panels of `names` from the table `metrics`; raise `FigureError` without any."""
        candidates = {
            (source, metric): Panel.of(panel_points(metrics, source, metric, axis))
            for source in CHOSEN_ON
            for metric in names
        }
        sources = {s for (s, _), panel in candidates.items() if panel.configurations.height}
        metric_names = {m for (_, m), panel in candidates.items() if panel.configurations.height}
        if not sources:
            raise FigureError(
                f"{drawable(axis)}: the table metrics has no coherency with this distance for the"
                f" sources {' and '.join(CHOSEN_ON)}; evaluate some trials first, or choose one of"
                f" {', '.join(AXES)}"
            )
        return cls(
            (at, panel)
            for at, panel in candidates.items()
            if at[0] in sources and at[1] in metric_names
        )

    @property
    def configurations(self) -> pl.DataFrame:
        return pl.concat(panel.configurations for panel in self.values())

    def levels(self, column: str, methods: tuple[str, ...]) -> list[Any]:
        found = self.configurations.filter(pl.col("method").is_in(methods))[column]
        return found.drop_nulls().unique().sort().to_list()

    def draw(
        self,
        axis: str,
        end: float | None,
        pleased: Mapping[tuple[str, str], str | None] | None = None,
    ) -> tuple[Figure, dict[tuple[str, str], Axes]]:
        """Make the figure and its axes, with levels and with the counts of what is left out.

        The axis ends at `end`, if that is given and there are points beyond. `pleased` holds the
        letters of the tricks that please a panel's metric.
        """
        small = {at: _small_print(panel, (pleased or {}).get(at)) for at, panel in self.items()}
        distances = self.configurations["distance"].to_numpy()
        figure, axes = panel_grid(
            list(self), distances if end is None else np.minimum(distances, end), axis,
            small_print=max(1, *map(len, small.values())),
        )  # fmt: skip
        for at, panel in self.items():
            draw_levels(axes[at], panel.levels)
            axes[at].margins(y=0.08)
            if small[at]:
                axes[at].annotate(
                    "\n".join(small[at]), (1, 1), (0, 1), fontsize=6, xycoords="axes fraction",
                    textcoords="offset points", ha="right", va="bottom", linespacing=1.1,
                )  # fmt: skip
        return figure, axes

    def note(self, end: float | None) -> str:
        """State the numbers of seeds and pairs, what the small print counts, and what is beyond."""
        seeds = self.configurations.filter(pl.col("method").is_in(FUSIONS))["seeds"]
        counts = sorted({seeds.min(), seeds.max()} - {None})  # type: ignore[type-var]
        several = f"{' to '.join(map(str, counts))} training seeds"
        pairs = max(panel.pairs for panel in self.values())
        if counts == [1]:
            note = f"one training seed, {pairs} pairs a point"
        elif counts:
            note = f"mean over {several} (whiskers: lowest and highest), {pairs} pairs a point"
        else:
            note = f"{pairs} pairs a point"
        if any(panel.missing or panel.excluded for panel in self.values()):
            note += "; left out: points not finite | pairs, at most of one point"
        drawn = self.configurations["distance"]
        if end is not None and (beyond := (drawn > end).sum()):
            note += f"; {beyond:,} of {len(drawn):,} marks are farther than {end:g}"
        return note


def _name(levels: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """List the levels of a scale that the legend names."""
    return thinned([*levels.items()], LEGEND_ROWS)


def _small_print(panel: Panel, pleased: str | None) -> list[str]:
    """Write the lines above a panel."""
    lines = [] if pleased is None else [f"pleased by {pleased or 'none'}"]
    if panel.missing or panel.excluded:
        lines.append(f"left out {panel.missing} | {panel.excluded}")
    return lines


def frontier_figure(
    metrics: pl.DataFrame, axis: str = "z_distance", end: float | None = None
) -> Figure:
    """Draw coherency against distance, ours and all rivals: figure 4 of the poster.

    There is a row per source (test, prior) and a column per metric. The measures of likeness come
    first, and the classifier that the searches climb last. `metrics` is the study's table, and
    `axis` is the metric used as distance. It is drawn up to `end`, if that is given, and the legend
    counts what is beyond. Every configuration of ours (mean over its seeds) is a dot coloured by λ,
    and every point of LP is a faint cross coloured by iterations. Lines join the points of a method
    that no other point of the method dominates; ours has whiskers there, from the lowest to the
    highest seed. Such a front is chosen by the values that it shows, so it favours the method with
    the most points. The table `verdicts` compares without this bias. A grey letter is a trick
    (`evaluation.controls`); those that the metric rates above real neighbours are named above the
    panel. Raises `FigureError` if the table holds nothing to draw.
    """
    panels = _Panels.of(metrics, (*LIKENESS, *COHERENCY, "search_classifier"), axis)
    shade = colours(panels.levels("lambda", FUSIONS), "viridis", 0.0, 0.9)
    lp_shade = colours(panels.levels("iteration", ("lp",)), "YlOrBr", 0.3, 0.9)
    methods = in_order(panels.configurations["method"].unique().to_list())
    rivals = [method for method in methods if method not in (*FUSIONS, *CONTROLS)]
    tricks = [control for name, control in CONTROLS.items() if name in methods]
    rated = rate_controls(metrics)
    with mpl.rc_context(STYLE):
        figure, axes = panels.draw(axis, end, {at: _letters(rated, *at) for at in panels})
        for at, panel in panels.items():
            _draw_points(axes[at], panel.method("lp"), "iteration", lp_shade, 0.45)
            for method in rivals:
                draw_front(axes[at], panel.method(method), method)
            for trick in tricks:
                _draw_trick(axes[at], panel.method(trick.name), trick)
            front = draw_front(axes[at], panel.ours, OURS)
            _draw_whiskers(axes[at], front, "black")
            _draw_points(axes[at], panel.ours, "lambda", shade, 1.0)
        columns = {
            "ours: λ": [(f"{x:.3g}", key(c, "", "o")) for x, c in _name(shade)],
            "ours": [_OURS_KEY, *_method_markers(methods)],
            "frontier of": [(look(m).label, method_key(m)) for m in rivals],
            "LP: iterations": [(f"{x:,}", key(c, "", "x")) for x, c in _name(lp_shade)],
            "tricks": [(x.label, key(GREY, "", letter(x.letter), _LETTER)) for x in tricks],
            "references": level_keys(metrics),
        }
        is_rated = not rated["pleases"].is_null().all()
        meant = "; pleased by: tricks that are rated above real pairs" * is_rated
        legend_below(figure, columns, panels.note(end) + meant)
    return figure


def iteration_figure(
    metrics: pl.DataFrame, axis: str = "z_distance", end: float | None = None
) -> Figure:
    """Draw how coherency and distance grow with iteration: figure 5 of the poster.

    Panels and arguments are as in `frontier_figure`. A line follows one configuration of ours (mean
    over its seeds, whiskers from the lowest to the highest) through its iteration counts. Its
    colour shows λ, and larger markers are more iterations. At most 32 lines are drawn, evenly
    chosen by λ. Raises `FigureError` if the table holds nothing of ours.
    """
    ours = metrics.filter(pl.col("method").is_in((*FUSIONS, *LEVELS, "identity")))
    panels = _Panels.of(ours, COHERENCY, axis)
    shade = colours(panels.levels("lambda", FUSIONS), "viridis", 0.0, 0.9)
    counts = panels.levels("iteration", FUSIONS)
    if not counts:
        raise FigureError("metrics: there is no trial of ours; train and evaluate one first")
    trained = panels.configurations.filter(pl.col("method").is_in(FUSIONS))
    lines = trained.select(POINT[1:-1]).unique().sort("lambda", "configuration")
    drawn = thinned(lines.rows(), _MOST_LINES)
    some = f"; {len(drawn)} of {lines.height} lines, evenly by λ" * (len(drawn) < lines.height)
    sizes = dict(zip(counts, np.linspace(1.6, 4.6, len(counts)).tolist(), strict=True))
    methods = in_order(panels.configurations["method"].unique().to_list())
    with mpl.rc_context(STYLE):
        figure, axes = panels.draw(axis, end)
        for at, panel in panels.items():
            by_line = panel.ours.partition_by(POINT[1:-1], maintain_order=True, as_dict=True)
            for line in (by_line[name] for name in drawn if name in by_line):
                method, colour = line["method"][0], shade[line["lambda"][0]]
                axes[at].plot(
                    line["distance"], line["value"], lw=0.7, color=colour,
                    ls=look(method).dashes, label=drawable(line["configuration"][0]),
                )  # fmt: skip
                _draw_whiskers(axes[at], line, colour)
                area = np.square([sizes[count] for count in line["iteration"]])
                axes[at].scatter(
                    line["distance"], line["value"], area, [colour], marker=look(method).marker,
                    linewidths=0, zorder=3,
                )  # fmt: skip
            draw_front(axes[at], panel.method("identity"), "identity")
        columns = {
            "λ": [(f"{x:.3g}", key(c, "-")) for x, c in _name(shade)],
            "iterations": [(f"{x}", key(GREY, "", "o", size)) for x, size in _name(sizes)],
            "method": [(look(m).label, method_key(m)) for m in methods],
            "references": level_keys(metrics),
        }
        legend_below(figure, columns, panels.note(end) + some)
    return figure


def _draw_points(
    panel: Axes, rows: pl.DataFrame, level: str, shade: Mapping[Any, ColorType], alpha: float
) -> None:
    for (method,), points in rows.group_by("method", maintain_order=True):
        panel.scatter(
            points["distance"], points["value"], 8, [shade[x] for x in points[level]],
            marker=look(str(method)).marker, alpha=alpha, label=f"{method} points",
            zorder=2.1 if method == "lp" else 3.4,
            linewidths=0.7 if method == "lp" else 0, rasterized=points.height > _MANY_POINTS,
        )  # fmt: skip


def _draw_trick(panel: Axes, rows: pl.DataFrame, trick: Control) -> None:
    panel.plot(
        rows["distance"], rows["value"], color=GREY, ls="", marker=letter(trick.letter),
        markersize=_LETTER, markeredgewidth=0, label=trick.name, zorder=3.1,
    )  # fmt: skip


def _letters(rated: pl.DataFrame, source: str, metric: str) -> str | None:
    """The letters of the tricks that a metric rates above real neighbours; None if unknown."""
    known = rated.filter(
        pl.col("pleases").is_not_null(), pl.col("source") == source, pl.col("metric") == metric
    )
    if known.is_empty():
        return None
    return "".join(CONTROLS[name].letter for name in known.filter("pleases")["control"])


def _draw_whiskers(panel: Axes, rows: pl.DataFrame, colour: ColorType) -> None:
    """Draw the range of the seeds, where there are several."""
    several = rows.filter(pl.col("seeds") > 1)
    if several.height:
        panel.vlines(
            several["distance"], several["low"], several["high"], colour, lw=0.7, alpha=0.6
        )


def _method_markers(methods: list[str]) -> list[tuple[str, Line2D]]:
    """Make the legend entries that tell the kinds of ours apart."""
    kinds = [method for method in methods if method in FUSIONS]
    labels = {"fusion": "one λ per trial", "conditional": "λ as input"}
    return [(labels[kind], key(GREY, "", look(kind).marker)) for kind in kinds]
