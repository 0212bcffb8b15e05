"""Figures, drawn from data frames and tokens alone, without global plotting state.

Names that come from users' files are drawn as they are: never read as markup or mathematics.
"""

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from jaxtyping import Integer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.typing import ColorType, LineStyleType

from cf_core.errors import UserError
from cf_core.files import replacing
from cf_core.melody import MelodyFormat, to_notes
from evaluation.frontier import CHOSEN_ON, COHERENCY, FUSIONS, LEVELS, PANELS, panel_points

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "text.parse_math": False,
    "svg.hashsalt": "connective-fusion",
}
_DISTANCES = {
    "z_distance": "z-distance",
    "z_weighted": "weighted z-distance",
    "edit_distance": "edit distance",
}
_DASHES: dict[str, LineStyleType] = {"lp": "--", "conditional": (0.0, (1.0, 1.0))}
_GREY = "0.35"
_LEGEND_ROWS = 8
"""Levels of one scale that the legend names; of more it names so many, evenly thinned."""

_WHITE_KEYS = dict(zip((0, 2, 4, 5, 7, 9, 11), "CDEFGAB", strict=True))
_HALF_COLOURS = ("#56B4E9", "#E69F00")
_LONGEST_NAME = 40


@dataclass(frozen=True)
class _Scales:
    """What each level of the drawn variables looks like, the same in every panel."""

    lambda_colour: dict[float, ColorType]
    style_marker: dict[int, str]
    iteration_size: dict[int, float]
    step_marker: dict[float, str]
    lp_colour: dict[int, ColorType]
    conditional: bool

    @classmethod
    def of(cls, points: pl.DataFrame) -> "_Scales":
        fusion = points.filter(pl.col("method").is_in(FUSIONS))
        lp = points.filter(pl.col("method") == "lp")
        iterations = _levels(fusion, "iteration")
        sizes = np.linspace(1.8, 4, len(iterations)).tolist()
        return cls(
            lambda_colour=_colours(_levels(fusion, "lambda"), "viridis", 0.0, 0.85),
            style_marker=dict(zip(_levels(fusion, "style_dim"), cycle("os^Dvph"), strict=False)),
            iteration_size=dict(zip(iterations, sizes, strict=True)),
            step_marker=dict(zip(_levels(lp, "step_size"), cycle("x+1234"), strict=False)),
            lp_colour=_colours(_levels(lp, "iteration"), "YlOrBr", 0.4, 1.0),
            conditional="conditional" in points["method"],
        )

    def trial(self, rows: pl.DataFrame) -> tuple[list[ColorType], list[float], str]:
        """Colour and size of each of a trial's points, and their marker."""
        first, counts = rows.row(0, named=True), rows["iteration"]
        if first["method"] in FUSIONS:
            colours = [self.lambda_colour[first["lambda"]]] * rows.height
            sizes = [self.iteration_size[count] for count in counts]
            return colours, sizes, self.style_marker[first["style_dim"]]
        if first["method"] == "lp":
            colours = [self.lp_colour[count] for count in counts]
            return colours, [3.2] * rows.height, self.step_marker[first["step_size"]]
        return ["black"] * rows.height, [6.0] * rows.height, "*"


def frontier_figure(metrics: pl.DataFrame, axis: str = "z_distance") -> Figure:
    """Draw coherency against distance: a row per source (test, prior), a column per metric.

    `metrics` is the study's metrics table and `axis` the metric that is the distance. A fusion
    trial is a line through its iteration counts: its colour is λ, its marker the style dimension, a
    marker's size the iteration count. A conditional trial is as many dotted lines as there are λ
    that it was read at. An LP step size is a dashed line with a marker of its own,
    coloured by iteration count. Whiskers and bands are the table's intervals. Points that are not
    finite are not drawn; each panel says how many. UserError if the table holds nothing to draw.
    """
    panels = {panel: panel_points(metrics, *panel, axis) for panel in PANELS}
    points = pl.concat(panels.values())
    if points["distance"].drop_nulls().is_empty():
        raise UserError(
            f"{axis}: the metrics hold no coherency at such a distance for the sources"
            f" {' and '.join(CHOSEN_ON)}; evaluate first, or choose one of {', '.join(_DISTANCES)}"
        )
    sources = [source for source in CHOSEN_ON if source in points["source"]]
    names = [metric for metric in COHERENCY if metric in points["metric"]]
    scales = _Scales.of(points)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.5, 1.5 + 1.7 * len(sources)), layout="constrained")
        grid = figure.subplots(len(sources), len(names), sharex=True, sharey="col", squeeze=False)
        for row, source in zip(grid, sources, strict=True):
            row[0].set_ylabel(f"coherency, {source} inputs")
            for panel, metric in zip(row, names, strict=True):
                _draw_panel(panel, panels[source, metric], scales)
        for bottom in grid[-1]:
            bottom.set_xlabel(_DISTANCES.get(axis, axis))
        for panel, metric in zip(grid[0], names, strict=True):
            kind = "probability" if metric == "judge" else "correlation"
            panel.set_title(f"{metric.replace('_', ' ')}\n{kind}")
        _scale_distance(grid[0, 0], points["distance"].drop_nulls().to_numpy())
        _draw_legend(figure, scales)
    return figure


def piano_roll_figure(
    inputs: Integer[np.ndarray, "2 T"],
    outputs: Integer[np.ndarray, "2 T"],
    form: MelodyFormat,
    names: tuple[str, str] = ("left", "right"),
) -> Figure:
    """Draw the tokens of a pair, left half beside right half, above those it was fused into.

    A note is a block with a black edge at its onset. Thin lines are bar lines, the thick line is
    the seam between the halves. `names` stand above the halves, cut to 40 characters.
    """
    rolls = [[to_notes(half, form) for half in pair] for pair in (inputs, outputs)]
    length = form.steps / form.steps_per_beat
    sounding = [note.pitch for pair in rolls for half in pair for note in half] or [60]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.5, 4), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True, sharey=True)
        for panel, pair, row in zip(panels, rolls, ("inputs", "outputs"), strict=True):
            panel.set_ylabel(row)
            _draw_grid(panel, form, min(sounding) - 2, max(sounding) + 2)
            for start, notes, colour in zip((0, length), pair, _HALF_COLOURS, strict=True):
                pitches = [note.pitch for note in notes]
                onsets = [start + float(note.onset) for note in notes]
                durations = [float(note.duration) for note in notes]
                panel.barh(pitches, durations, 0.8, onsets, color=colour, zorder=2)
                panel.barh(pitches, 0.07, 0.8, onsets, color="black", zorder=3)
        for start, name in zip((0, length), names, strict=True):
            panels[0].annotate(
                _drawable(name), (start + length / 2, 1), (0, 3), ha="center", va="bottom",
                xycoords=("data", "axes fraction"), textcoords="offset points",
            )  # fmt: skip
        panels[1].set_xlabel("bar")
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem` with .svg and with .png added to its name; equal figures give equal bytes.

    Each appears whole or not at all. UserError if it can't be written.
    """
    paths = [stem.with_name(stem.name + suffix) for suffix in (".svg", ".png")]
    for path, metadata in zip(paths, ({"Date": None}, {"Software": None}), strict=True):
        with replacing(path) as temporary, mpl.rc_context(_STYLE):
            figure.savefig(temporary, format=path.suffix[1:], dpi=200, metadata=metadata)
    return paths


def _draw_panel(panel: Axes, points: pl.DataFrame, scales: _Scales) -> None:
    finite = points.filter(pl.col("value").is_finite())
    is_level = pl.col("method").is_in(LEVELS)
    levels = finite.filter(is_level)
    for row in levels.iter_rows(named=True):
        _draw_level(panel, row)
    placed = finite.filter(~is_level, pl.col("distance").is_finite()).sort("trial", "iteration")
    for rows in placed.partition_by("trial", "lambda", maintain_order=True):
        colours, sizes, marker = scales.trial(rows)
        x, y, low, high = rows.select("distance", "value", "low", "high").to_numpy().T
        dashes = _DASHES.get(rows["method"][0], "-")
        panel.plot(x, y, ls=dashes, color=colours[-1], lw=0.7, label=rows["trial"][0])
        panel.vlines(x, low, high, colors=colours, lw=0.6, alpha=0.6)
        panel.scatter(x, y, np.square(sizes), colours, marker=marker, linewidths=0.8, zorder=3)
    panel.margins(y=0.14)
    missing = points.height - levels.height - placed.height
    if missing:
        panel.annotate(
            f"{missing} not finite", (1, 1), xycoords="axes fraction", ha="right", va="top"
        )


def _draw_level(panel: Axes, row: dict[str, Any]) -> None:
    """Draw a floor or a ceiling: a labelled line across the panel, with its interval as a band."""
    panel.axhline(row["value"], color=_GREY, lw=0.8, ls=":", label=row["method"])
    if row["low"] is not None:
        panel.axhspan(row["low"], row["high"], color=_GREY, alpha=0.12, lw=0)
    panel.annotate(
        row["method"], (0, row["value"]), (2, 2 if row["method"] == "ceiling" else -4),
        xycoords=("axes fraction", "data"), textcoords="offset points", color=_GREY, fontsize=6.5,
        va="bottom" if row["method"] == "ceiling" else "top",
        path_effects=[withStroke(linewidth=1.5, foreground="white")],
    )  # fmt: skip


def _scale_distance(panel: Axes, distances: np.ndarray) -> None:
    """Make the shared axis logarithmic over at most three decades, and linear from there to 0."""
    positive = distances[(distances > 0) & np.isfinite(distances)]
    if positive.size == 0:
        return
    largest = positive.max()
    lowest_decade = np.round(np.log10(max(positive.min(), largest / 300)))
    decades = 10.0 ** np.arange(lowest_decade, np.log10(largest) + 1e-9)
    panel.set_xscale("symlog", linthresh=10**lowest_decade, linscale=0.8)
    panel.set_xticks([0, *decades], ["0", *(f"{decade:g}" for decade in decades)])
    panel.set_xticks([], minor=True)
    panel.set_xlim(-0.4 * 10**lowest_decade, 1.5 * largest)


def _draw_legend(figure: Figure, scales: _Scales) -> None:
    """Draw one legend below the panels: a column for each scale, headed by its name."""
    conditional = [("dotted: one for all", _key(_GREY, _DASHES["conditional"]))]
    columns = {
        "fusion: λ": [(f"{x:.3g}", _key(c, "-")) for x, c in scales.lambda_colour.items()],
        "fusion: style dim.": [
            (f"{x}", _key(_GREY, "", m)) for x, m in scales.style_marker.items()
        ],
        "fusion: iterations": [
            (f"{x}", _key(_GREY, "", "o", size)) for x, size in scales.iteration_size.items()
        ],
        "LP: step size η": [
            (f"{x:.3g}", _key(_GREY, "--", m)) for x, m in scales.step_marker.items()
        ],
        "LP: iterations": [(f"{x}", _key(c, "", "s")) for x, c in scales.lp_colour.items()],
        "neither": [
            ("identity", _key("black", "", "*", 7.0)),
            ("floor, ceiling", _key(_GREY, ":")),
        ],
    }
    columns = {heading: _thinned(entries) for heading, entries in columns.items() if entries}
    if scales.conditional:
        columns["fusion: λ"] += conditional
    height = max(len(entries) for entries in columns.values())
    blank = _key(_GREY, "")
    padded = [
        [(heading, blank), *entries, *[("", blank)] * (height - len(entries))]
        for heading, entries in columns.items()
    ]
    labels, keys = zip(*(entry for column in padded for entry in column), strict=True)
    figure.legend(
        keys, labels, loc="outside lower center", ncols=len(columns), frameon=False,
        handlelength=2.2, columnspacing=1.2, labelspacing=0.3,
    )  # fmt: skip


def _key(colour: ColorType, dashes: LineStyleType, marker: str = "", size: float = 4.0) -> Line2D:
    return Line2D([], [], color=colour, linestyle=dashes, marker=marker, markersize=size, lw=1.2)


def _thinned(entries: list[tuple[str, Line2D]]) -> list[tuple[str, Line2D]]:
    kept = np.linspace(0, len(entries) - 1, min(len(entries), _LEGEND_ROWS)).round().astype(int)
    return [entries[index] for index in kept]


def _levels(points: pl.DataFrame, column: str) -> list[Any]:
    return points[column].drop_nulls().unique().sort().to_list()


def _colours(levels: list[Any], name: str, low: float, high: float) -> dict[Any, ColorType]:
    shades = mpl.colormaps[name](np.linspace(low, high, len(levels)))
    return {level: tuple(shade) for level, shade in zip(levels, shades, strict=True)}


def _draw_grid(panel: Axes, form: MelodyFormat, lowest: int, highest: int) -> None:
    """Draw what the notes lie on: rows of black keys, pitch names, bar lines and the seam."""
    shown = "CDEFGAB" if highest - lowest <= 20 else "CG"
    names = {}
    for pitch in range(lowest, highest + 1):
        key = _WHITE_KEYS.get(pitch % 12)
        if key is None:
            panel.axhspan(pitch - 0.5, pitch + 0.5, color="0.94", lw=0, zorder=0)
        elif key in shown:
            names[pitch] = f"{key}{pitch // 12 - 1}"
    panel.set_yticks(list(names), list(names.values()))
    panel.set_ylim(lowest - 0.5, highest + 0.5)
    bars = np.arange(2 * form.bars_per_segment + 1) * form.steps_per_bar / form.steps_per_beat
    for bar in bars:
        panel.axvline(bar, color="0.6", lw=0.7, zorder=1)
    panel.axvline(bars[form.bars_per_segment], color=_GREY, lw=2.5, zorder=1)
    panel.set_xticks(bars[:-1], [str(number) for number in range(1, len(bars))])
    panel.set_xlim(0, bars[-1])


def _drawable(name: str) -> str:
    """Make a name fit one line of a figure, and an XML file."""
    line = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name
    )
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 1] + "…"
