"""What all figures share: style, the look of each method, panels, legends, and saving."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import ColorType, LineStyleType

from cf_core.errors import FigureError
from cf_core.files import AnyPath, replacing
from evaluation.frontier import BY_EDITS, CHOSEN_ON, POSTER, POSTER_AXES
from evaluation.metrics import METRICS
from evaluation.rivals import Look, list_rivals

T = TypeVar("T")

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 6.5,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "axes.titlepad": 4,
    "axes.labelpad": 2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "legend.fontsize": 6.5,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,
    "svg.hashsalt": "connective-fusion",
}
WIDTH = 7.0
"""Width of both columns of a paper, in inches; figures are meant to be printed at this size."""
COLUMN = 3.4
"""Width of one column, in inches."""
_COLUMNS = 7
"""Most panels side by side in this width; figures of more are wider."""
GREY = "0.35"

_DPI = 200
"""Pixels of an inch."""
_RECT = (0.0, 0.0, 0.99, 1.0)
"""Where panels may be: layouts leave no room for labels that are wider than their panel."""
LEGEND_ROWS = 8
"""Most rows of a legend. Longer columns are continued in another, and scales are thinned evenly."""


_LOOKS = {
    "ours": Look("ours", "black", "o"),
    "fusion": Look("ours", "black", "o"),
    "conditional": Look("ours, λ as input", "black", "D", (0.0, (1.0, 1.0))),
    **{name: rival.look for name, rival in list_rivals().items()},
    BY_EDITS: Look("ours, by edits", "#661100", "<", (0.0, (2.0, 1.0))),
    POSTER: Look("as on the poster", "#555555", "X", (0.0, (4.0, 1.0, 1.0, 1.0))),
    "identity": Look("identity", "black", "*", ""),
}


def look(method: str) -> Look:
    """Return the look of a method; an unknown method is grey, under its own name."""
    return _LOOKS.get(method) or Look(drawable(method))


def in_order(methods: Collection[str]) -> list[str]:
    """Sort methods as legends and tables list them: known ones first, others by name."""
    known = list(_LOOKS)
    return sorted(methods, key=lambda method: (method not in known, *_rank(known, method)))


def _rank(known: list[str], method: str) -> tuple[int, str]:
    return (known.index(method) if method in known else 0, method)


def heading(metric: str) -> str:
    """Return the heading of a metric's panel: its label, or the name of an unknown metric."""
    return METRICS[metric].label if metric in METRICS else drawable(metric.replace("_", " "))


def panel_grid(
    panels: Collection[tuple[str, str]],
    distances: Float[np.ndarray, "n"],
    axis: str,
    small_print: int = 1,
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """Make a row of panels per source and a column per metric, over one distance axis.

    `panels` are pairs of source and metric; metrics keep their order. The axis covers the finite
    ones of `distances`. There is room for so many lines of `small_print` above each panel.
    """
    sources = [source for source in CHOSEN_ON if source in {source for source, _ in panels}]
    metrics = list(dict.fromkeys(metric for _, metric in panels))
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03, wspace=0, rect=_RECT)
    width = WIDTH * max(1.0, len(metrics) / _COLUMNS)
    figure = Figure(figsize=(width, 1.4 + 1.55 * len(sources)), layout=layout)
    grid = figure.subplots(len(sources), len(metrics), sharex=True, sharey="col", squeeze=False)
    for row, source in zip(grid, sources, strict=True):
        row[0].set_ylabel(f"coherency, {source} inputs")
    for column, metric in zip(grid.T, metrics, strict=True):
        column[0].set_title(heading(metric), pad=2.5 + 6.5 * small_print)
        column[0].yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        column[-1].set_xlabel(heading(axis))
    if axis in POSTER_AXES:
        _scale_distance(grid[0, 0], distances)
    else:
        _start_at_zero(grid[0, 0], distances)
    places = [(source, metric) for source in sources for metric in metrics]
    return figure, dict(zip(places, grid.flat, strict=True))


def _scale_distance(panel: Axes, distances: Float[np.ndarray, "n"]) -> None:
    """Make the shared axis logarithmic over at most three decades, and linear from there to 0."""
    positive = distances[(distances > 0) & np.isfinite(distances)]
    if positive.size == 0:
        return
    largest = positive.max()
    lowest_decade = np.round(np.log10(max(positive.min(), largest / 300)))
    decades = 10.0 ** np.arange(lowest_decade, np.log10(largest) + 1e-9)
    panel.set_xscale("symlog", linthresh=10**lowest_decade, linscale=0.8)
    panel.set_xticks([0, *decades], ["0", *(_short(decade) for decade in decades)])
    panel.set_xticks([], minor=True)
    panel.set_xlim(-0.4 * 10**lowest_decade, 1.5 * largest)


def _start_at_zero(panel: Axes, distances: Float[np.ndarray, "n"]) -> None:
    """Make the shared axis linear, since methods are compared at even steps of it."""
    finite = distances[np.isfinite(distances)]
    if finite.size == 0 or finite.max() <= 0:
        return
    panel.set_xlim(-0.04 * finite.max(), 1.04 * finite.max())
    panel.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))


def _short(number: float) -> str:
    """Write a number between 0 and 1 without its leading zero, since panels are narrow."""
    text = f"{number:g}"
    return text.removeprefix("0") if "." in text else text


def key(
    colour: ColorType, dashes: LineStyleType = "", marker: str | Path = "", size: float = 4.0
) -> Line2D:
    """Make the symbol of one legend entry; without dashes it is a marker alone."""
    symbol = Line2D([], [], color=colour, linestyle=dashes, marker=marker, markersize=size, lw=1.2)
    if isinstance(marker, Path):
        symbol.set_markeredgewidth(0)
    return symbol


def letter(text: str) -> Path:
    """Make a marker of a letter."""
    drawn = TextPath((0, 0), text, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    middle = np.mean(drawn.get_extents().get_points(), axis=0)
    return Path(np.asarray(drawn.vertices) - middle, drawn.codes)


def legend_below(
    figure: Figure, columns: Mapping[str, Sequence[tuple[str, Artist]]], note: str
) -> None:
    """Draw one legend below the panels, under `note`, with a headed column for each scale."""
    filled = [
        (heading if first == 0 else "", entries[first : first + LEGEND_ROWS])
        for heading, entries in columns.items()
        for first in range(0, len(entries), LEGEND_ROWS)
    ]
    height = max(len(entries) for _, entries in filled)
    blank: Artist = key(GREY)
    padded = [
        [(heading, blank), *entries, *[("", blank)] * (height - len(entries))]
        for heading, entries in filled
    ]
    labels, keys = zip(*(entry for column in padded for entry in column), strict=True)
    figure.legend(
        keys, labels, loc="outside lower center", ncols=len(filled), frameon=False,
        handlelength=2.4, columnspacing=1.6, labelspacing=0.25, title=note, title_fontsize=6.5,
    )  # fmt: skip


def thinned(entries: Sequence[T], most: int) -> list[T]:
    """Keep at most `most` of the entries, evenly spaced, with the first and the last."""
    kept = np.linspace(0, len(entries) - 1, min(len(entries), most)).round().astype(int)
    return [entries[index] for index in kept]


def colours(levels: Sequence[Any], name: str, low: float, high: float) -> dict[Any, ColorType]:
    """Give each level a shade of the colour map `name`, between its places `low` and `high`."""
    shades = mpl.colormaps[name](np.linspace(low, high, len(levels)))
    return {level: tuple(shade) for level, shade in zip(levels, shades, strict=True)}


def drawable(name: str, longest: int = 40) -> str:
    """Make a name fit on one line of a figure, and into an XML file."""
    line = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name
    )
    return line if len(line) <= longest else line[: longest - 1] + "…"


def save(figure: Figure, stem: AnyPath) -> list[AnyPath]:
    """Write a figure to `stem` plus .svg and to `stem` plus .png, and return both paths.

    Equal figures give equal bytes. Each file appears whole or not at all. Raises `FigureError` if a
    file can't be written.
    """
    paths = [stem.with_name(stem.name + suffix) for suffix in (".svg", ".png")]
    _lay_out(figure)
    for path, metadata in zip(paths, ({"Date": None}, {"Software": None}), strict=True):
        with replacing(path, FigureError) as temporary, mpl.rc_context(STYLE):
            figure.savefig(temporary, format=path.suffix[1:], dpi=_DPI, metadata=metadata)
    return paths


def _lay_out(figure: Figure) -> None:
    """Place all parts for good: Matplotlib would do so again, and draw twice, for every file."""
    if (engine := figure.get_layout_engine()) is not None:
        figure.set_dpi(_DPI)
        with mpl.rc_context(STYLE):
            engine.execute(figure)
        figure.set_layout_engine(None)
