"""Coherency against similarity, against iteration and against cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter
from matplotlib.typing import ColorType, LineStyleType

from cf_core.errors import UserError
from evaluation.figures.canvas import (
    COLUMN,
    GREY,
    STYLE,
    colours,
    drawable,
    in_order,
    key,
    legend_below,
    look,
    panel_grid,
    thinned,
)
from evaluation.frontier import (
    CHOSEN_ON,
    FUSIONS,
    LEVELS,
    OURS,
    PANELS,
    non_dominated,
    panel_points,
)
from evaluation.metrics import AXES, COHERENCY

_POINT = ["method", "configuration", "lambda", "iteration"]
_LEVEL_DASHES: dict[str, LineStyleType] = {"floor": ":", "ceiling": (0.0, (6.0, 2.0))}
_LEVEL_KEYS = [
    ("floor: other inputs", key(GREY, _LEVEL_DASHES["floor"])),
    ("ceiling: real pairs", key(GREY, _LEVEL_DASHES["ceiling"])),
]
_RECTANGLE = ["distance_low", "distance_high", "coherency_low", "coherency_high", "difference"]
_OURS_KEY = ("frontier", key("black", "-"))
_MOST_LINES = 32
"""Configurations at one λ whose iterations are drawn; of more, so many, evenly by λ."""
_MANY_POINTS = 1000
"""More points than this are pixels in an SVG file too."""


@dataclass(frozen=True)
class _Panel:
    """What one panel shows: configurations (seeds taken together), levels, what is left out."""

    configurations: pl.DataFrame
    """`_POINT`, and the means `distance` and `value`, the range `low` to `high`, `seeds`."""
    levels: pl.DataFrame
    missing: int
    """Points whose value or distance is not finite."""
    excluded: int
    """Pairs left out of one point, at most."""
    pairs: int
    """Pairs of one point, with those left out."""

    @classmethod
    def of(cls, points: pl.DataFrame) -> "_Panel":
        is_level = pl.col("method").is_in(LEVELS)
        placed = points.filter(~is_level)
        finite = placed.filter(pl.all_horizontal(pl.col("distance", "value").is_finite()))
        configurations = (
            finite.sort("trial")  # sums depend on the order of what is summed
            .group_by(_POINT, maintain_order=True)
            .agg(
                pl.col("distance", "value").mean(),
                low=pl.col("value").min(),
                high=pl.col("value").max(),
                seeds=pl.len(),
            )
            .sort(_POINT)
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
        return self.configurations.filter(pl.col("method").is_in(FUSIONS))

    def method(self, method: str) -> pl.DataFrame:
        return self.configurations.filter(pl.col("method") == method)


class _Panels(dict[tuple[str, str], _Panel]):
    """The panels that have something to show, by source and metric."""

    @classmethod
    def of(cls, metrics: pl.DataFrame, names: tuple[str, ...], axis: str) -> "_Panels":
        """Take the panels of `names` from the table `metrics`; UserError if none holds a point."""
        candidates = {
            (source, metric): _Panel.of(panel_points(metrics, source, metric, axis))
            for source in CHOSEN_ON
            for metric in names
        }
        sources = {s for (s, _), panel in candidates.items() if panel.configurations.height}
        metric_names = {m for (_, m), panel in candidates.items() if panel.configurations.height}
        if not sources:
            raise UserError(
                f"{drawable(axis)}: the metrics hold no coherency at such a distance for the"
                f" sources {' and '.join(CHOSEN_ON)}; evaluate first, or choose one of"
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

    def draw(self, axis: str) -> tuple[Figure, dict[tuple[str, str], Axes]]:
        """Make the figure and its axes, with levels and with counts of what is left out."""
        figure, axes = panel_grid(list(self), self.configurations["distance"].to_numpy(), axis)
        for at, panel in self.items():
            _draw_levels(axes[at], panel.levels)
            axes[at].margins(y=0.08)
            if panel.missing or panel.excluded:
                axes[at].annotate(
                    f"left out {panel.missing} | {panel.excluded}", (1, 1), (0, 1), fontsize=6,
                    xycoords="axes fraction", textcoords="offset points", ha="right", va="bottom",
                )  # fmt: skip
        return figure, axes

    @property
    def note(self) -> str:
        """State the numbers of seeds and pairs, and what "left out" counts."""
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
        return note


def frontier_figure(metrics: pl.DataFrame, axis: str = "z_distance") -> Figure:
    """Draw coherency against distance, ours and all rivals: figure 4 of the poster.

    A row per source (test, prior) and a column per metric; the last one is the classifier that the
    searches climb. `metrics` is the study's table and `axis` the metric that is the distance.
    Every configuration of ours (mean over its seeds) is a dot coloured by λ, and every point of LP
    a faint cross coloured by iterations. Lines join the points of a method that no other point of
    it dominates; ours has whiskers there, from the lowest to the highest seed. Such a front is
    picked from what it shows, so it flatters whoever has the most points: for a comparison that
    does not, see the table `verdicts`. UserError if the table holds nothing to draw.
    """
    panels = _Panels.of(metrics, (*COHERENCY, "search_classifier"), axis)
    shade = colours(panels.levels("lambda", FUSIONS), "viridis", 0.0, 0.9)
    lp_shade = colours(panels.levels("iteration", ("lp",)), "YlOrBr", 0.3, 0.9)
    methods = in_order(panels.configurations["method"].unique().to_list())
    rivals = [method for method in methods if method not in FUSIONS]
    with mpl.rc_context(STYLE):
        figure, axes = panels.draw(axis)
        for at, panel in panels.items():
            _draw_points(axes[at], panel.method("lp"), "iteration", lp_shade, 0.45)
            for method in rivals:
                _draw_front(axes[at], panel.method(method), method)
            front = _draw_front(axes[at], panel.ours, OURS)
            _draw_whiskers(axes[at], front, "black")
            _draw_points(axes[at], panel.ours, "lambda", shade, 1.0)
        columns = {
            "ours: λ": [(f"{x:.3g}", key(c, "", "o")) for x, c in shade.items()],
            "ours": [_OURS_KEY, *_method_markers(methods)],
            "frontier of": [(look(m).label, _method_key(m)) for m in rivals],
            "LP: iterations": [(f"{x:,}", key(c, "", "x")) for x, c in lp_shade.items()],
            "references": _LEVEL_KEYS,
        }
        legend_below(figure, columns, panels.note)
    return figure


def iteration_figure(metrics: pl.DataFrame, axis: str = "z_distance") -> Figure:
    """Draw how coherency and distance grow with iteration: figure 5 of the poster.

    Panels and arguments as for `frontier_figure`. A line is one configuration of ours (mean over
    its seeds, whiskers from the lowest to the highest) through its iteration counts: its colour is
    λ, and the larger a marker, the more iterations. Of more than 32 lines so many are drawn, evenly
    by λ. UserError if the table holds nothing of ours.
    """
    ours = metrics.filter(pl.col("method").is_in((*FUSIONS, *LEVELS, "identity")))
    panels = _Panels.of(ours, COHERENCY, axis)
    shade = colours(panels.levels("lambda", FUSIONS), "viridis", 0.0, 0.9)
    counts = panels.levels("iteration", FUSIONS)
    if not counts:
        raise UserError("metrics: no trial of ours is among them; train and evaluate one first")
    trained = panels.configurations.filter(pl.col("method").is_in(FUSIONS))
    lines = trained.select(_POINT[1:-1]).unique().sort("lambda", "configuration")
    drawn = thinned(lines.rows(), _MOST_LINES)
    some = f"; {len(drawn)} of {lines.height} lines, evenly by λ" * (len(drawn) < lines.height)
    sizes = dict(zip(counts, np.linspace(1.6, 4.6, len(counts)).tolist(), strict=True))
    methods = in_order(panels.configurations["method"].unique().to_list())
    with mpl.rc_context(STYLE):
        figure, axes = panels.draw(axis)
        for at, panel in panels.items():
            by_line = panel.ours.partition_by(_POINT[1:-1], maintain_order=True, as_dict=True)
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
            _draw_front(axes[at], panel.method("identity"), "identity")
        columns = {
            "λ": [(f"{x:.3g}", key(c, "-")) for x, c in shade.items()],
            "iterations": [(f"{x}", key(GREY, "", "o", size)) for x, size in sizes.items()],
            "method": [(look(m).label, _method_key(m)) for m in methods],
            "references": _LEVEL_KEYS,
        }
        legend_below(figure, columns, panels.note + some)
    return figure


def attainment_figure(surfaces: pl.DataFrame, axis: str = "z_distance") -> Figure:
    """Draw which coherency each method attains within each distance, over seeds.

    `surfaces` has the columns source, metric, method, level ("best", "median" or "worst" seed),
    distance and coherency; a row is where a step of that level's surface begins. Drawn are the
    medians, and for ours a band from worst to best. UserError if there is nothing to draw.
    """
    finite = surfaces.filter(pl.all_horizontal(pl.col("distance", "coherency").is_finite()))
    panels = [panel for panel in PANELS if finite.filter(source=panel[0], metric=panel[1]).height]
    if not panels:
        raise UserError("attainment surfaces: none has a finite step; evaluate first")
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
    """Draw where ours attains more often than a rival, over seeds, and where less often.

    `differences` has the columns source, metric, and those of
    `evaluation.frontier.attainment_difference`. Ours is blue; the rival is orange and hatched; the
    darker, the larger the difference. UserError if there is nothing to draw.
    """
    differences = differences.filter(pl.col("difference").is_finite()).sort(_RECTANGLE)
    panels = [at for at in PANELS if differences.filter(source=at[0], metric=at[1]).height]
    if not panels:
        raise UserError(f"attainment: ours and {look(rival).label} differ nowhere; evaluate first")
    sides = differences.select("distance_low", "distance_high").to_numpy().ravel()
    finite = sides[np.isfinite(sides)]
    with mpl.rc_context(STYLE):
        figure, axes = panel_grid(panels, finite, axis)
        for (source, metric), panel in ((at, axes[at]) for at in panels):
            rows = differences.filter(source=source, metric=metric)
            right = 1.5 * float(finite.max())
            for left, end, bottom, top, difference in rows.select(*_RECTANGLE).iter_rows():
                # Open sides end with the axis, and where a probability or a correlation does.
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


def cost_figure(metrics: pl.DataFrame, costs: pl.DataFrame, training_seconds: float) -> Figure:
    """Draw what a method's best coherency costs: the judge on test inputs against seconds per pair.

    `metrics` and `costs` are the study's tables, and `training_seconds` what the training of one
    trial took. A line joins the points of a method that are the best for their cost (mean over
    seeds). Ours is drawn twice: its use alone, and with its training shared out among the pairs
    that were evaluated. What costs nothing, as the identity does, is a line across the panel.
    UserError if no point has a cost.
    """
    point = ["method", "trial", "lambda", "iteration"]
    per_pair = costs.select(
        *point, "device", inference=pl.col("seconds") / pl.col("pairs"),
        trained=(pl.col("seconds") + training_seconds) / pl.col("pairs"),
    )  # fmt: skip
    judged = panel_points(metrics, "test", "judge", "z_distance")
    timed = judged.join(per_pair, on=point, how="inner", nulls_equal=True)
    curves = {
        method: _Panel.of(timed.with_columns(distance="inference")).method(method)
        for method in in_order(timed["method"].unique().to_list())
    }
    curves = {m: rows for m, rows in curves.items() if (rows["distance"] > 0).any()}
    if not curves:
        raise UserError("costs: no judged point of the test inputs has a cost; evaluate first")
    trained = _Panel.of(timed.with_columns(distance="trained"))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 3.4), layout="constrained")
        panel = figure.subplots()
        panel.set(xscale="log", xlabel="time per pair", ylabel="judge, test inputs")
        panel.xaxis.set_major_formatter(EngFormatter("s"))
        for method, rows in curves.items():
            _draw_front(panel, rows.filter(pl.col("distance") > 0), method)
        for method in (method for method in curves if method in FUSIONS):
            _draw_front(panel, trained.method(method), method, filled=False)
        free = judged.filter(pl.col("method").is_in((*LEVELS, "identity"))).sort("method")
        _draw_levels(panel, free.filter(pl.col("value").is_finite()))
        entries = [(look(m).label, _method_key(m)) for m in curves]
        amortised = [
            (f"{look(m).label}, with training", _method_key(m, filled=False))
            for m in curves
            if m in FUSIONS
        ]
        devices = ", ".join(sorted(timed["device"].drop_nulls().unique()))
        kinds = [*amortised, ("identity", key(GREY, (0.0, (1.0, 3.0)))), *_LEVEL_KEYS]
        legend_below(
            figure, {"frontier of": entries, "": kinds}, f"measured on {drawable(devices)}"
        )
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


def _draw_front(
    panel: Axes, rows: pl.DataFrame, method: str, *, filled: bool = True
) -> pl.DataFrame:
    """Join the points that no other dominates, and return them."""
    if rows.is_empty():
        return rows
    mask = non_dominated(rows["distance"].to_numpy(), rows["value"].to_numpy())
    front = rows.filter(mask).sort("distance", "value", *_POINT)
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


def _draw_whiskers(panel: Axes, rows: pl.DataFrame, colour: ColorType) -> None:
    """Draw the range of the seeds; where there is one seed there is none."""
    several = rows.filter(pl.col("seeds") > 1)
    if several.height:
        panel.vlines(
            several["distance"], several["low"], several["high"], colour, lw=0.7, alpha=0.6
        )


def _draw_levels(panel: Axes, levels: pl.DataFrame) -> None:
    """Draw lines across the panel, with their intervals, where there are, as bands."""
    for method, value, low, high in levels.select("method", "value", "low", "high").iter_rows():
        dashes = _LEVEL_DASHES.get(method, (0.0, (1.0, 3.0)))
        panel.axhline(value, color=GREY, lw=0.8, ls=dashes, label=method, zorder=1.5)
        if low is not None and method in LEVELS:
            panel.axhspan(low, high, color=GREY, alpha=0.1, lw=0)


def _steps(rows: pl.DataFrame, end: float) -> tuple[list[float], list[float]]:
    """Corners of one attainment surface, carried on to `end`."""
    ordered = rows.sort("distance", "coherency")
    distance, coherency = ordered["distance"].to_list(), ordered["coherency"].to_list()
    return [*distance, end], [*coherency, *coherency[-1:]] if coherency else [np.nan]


def _draw_band(
    panel: Axes,
    worst: tuple[list[float], list[float]],
    best: tuple[list[float], list[float]],
    label: str,
) -> None:
    """Fill between two step curves, from where both have begun."""
    grid = np.unique([*worst[0], *best[0]])
    grid = grid[grid >= max(worst[0][0], best[0][0])]
    low, high = (
        np.asarray(heights)[np.searchsorted(corners, grid, side="right") - 1]
        for corners, heights in (worst, best)
    )
    panel.fill_between(grid, low, high, step="post", color="black", alpha=0.2, lw=0, label=label)


def _shade(corner: tuple[float, float], width: float, height: float, share: float) -> Rectangle:
    """A rectangle where ours (or, below 0, the rival) is ahead in that share of the seeds."""
    colour, hatch = ("#0072B2", "") if share > 0 else ("#D55E00", "/////")
    return Rectangle(
        corner, width, height, lw=0, facecolor=colour, alpha=abs(share), hatch=hatch,
        edgecolor="white",
    )  # fmt: skip


def _method_key(method: str, *, filled: bool = True) -> Line2D:
    drawn = look(method)
    line = key(drawn.colour, drawn.dashes, drawn.marker, 6.0 if method == "identity" else 3.5)
    line.set_markerfacecolor(drawn.colour if filled else "white")
    return line


def _method_markers(methods: list[str]) -> list[tuple[str, Line2D]]:
    """What tells the kinds of ours apart, where both are there."""
    kinds = [method for method in methods if method in FUSIONS]
    labels = {"fusion": "one λ per trial", "conditional": "λ as input"}
    return [(labels[kind], key(GREY, "", look(kind).marker)) for kind in kinds]
