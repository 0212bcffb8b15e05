"""The figure of wins, ties and losses."""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from math import isfinite, nan

import matplotlib as mpl
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cf_core.errors import FigureError
from evaluation.figures.canvas import STYLE, WIDTH, heading, in_order, look
from evaluation.frontier import CHOSEN_ON
from evaluation.metrics import COHERENCY, LIKENESS

_LOOKS: dict[str | None, tuple[str, str]] = {
    "win": ("▲", "#9ECAE9"),
    "tie": ("=", "white"),
    "loss": ("▼", "#F0A868"),
    None: ("?", "0.9"),
}
"""Symbol and colour of a verdict; None stands for no verdict, as with one seed."""
_PLURALS = {"win": "wins", "tie": "ties", "loss": "losses", None: "open"}
_LEFT, _RIGHT = 1.9, 2.8
"""Room beside the cells for names and counts, in cells; a cell is 1 wide and 1 high."""
_FITTING = 12
"""Number of columns that fit at the usual size of letters."""


def verdict_figure(verdicts: pl.DataFrame) -> Figure:
    """Draw rows of the study's table `verdicts`: a row per axis and rival, a column per panel.

    A cell holds the mean difference, ours less the rival. Symbol and colour say whether it is a win
    (▲), a tie (=), a loss (▼) or open (?), as all are with one seed, and where a side has no point
    near enough. Their counts stand at the right. "NaN" is a difference that is not finite; a panel
    that was not compared has no cell. The text below gives the numbers of seeds, of songs and of
    blocks of prior pairs, and the range of what was left out of a comparison. Raises `FigureError`
    if no panel has a finite difference.
    """
    known = verdicts.filter(
        pl.col("source").is_in(CHOSEN_ON), pl.col("metric").is_in((*LIKENESS, *COHERENCY))
    ).with_columns(pl.col("difference").fill_null(nan))
    metrics = [name for name in (*LIKENESS, *COHERENCY) if name in known["metric"]]
    columns = {panel: column for column, panel in enumerate(product(CHOSEN_ON, metrics))}
    if not known["difference"].is_finite().any():
        raise FigureError("verdicts: no panel has a finite difference; evaluate first")
    lines: list[tuple[str, str | None]] = []
    for axis in sorted(known["axis"].unique(), reverse=True):  # z-distance comes first
        rivals = known.filter(pl.col("axis") == axis)["rival"].unique().to_list()
        lines += [(axis, None), *((axis, rival) for rival in in_order(rivals))]
    size = STYLE["font.size"] * min(1.0, (_FITTING + _LEFT) / (len(columns) + _LEFT))
    with mpl.rc_context({**STYLE, "font.size": size}):
        figure = Figure(figsize=(WIDTH, 0.19 * (len(lines) + 4)), layout="constrained")
        panel = figure.subplots()
        panel.set_axis_off()
        panel.set_xlim(-_LEFT, len(columns) + _RIGHT)
        panel.set_ylim(len(lines) + 1.6, -2.4)
        _draw_head(panel, metrics)
        for top, (axis, rival) in enumerate(lines):
            if rival is None:
                name = heading(axis).replace("\n", " ")
                panel.text(
                    -_LEFT, top + 0.6, f"at matched {name}, ours less", va="center", weight="bold"
                )
                continue
            rows = known.filter(pl.col("axis") == axis, pl.col("rival") == rival)
            rows = rows.sort("source", "metric")
            panel.text(-_LEFT, top + 0.5, look(rival).label, va="center")
            for row in rows.iter_rows(named=True):
                left = columns[row["source"], row["metric"]]
                _draw_cell(panel, left, top, row["difference"], row["verdict"])
            panel.text(len(columns) + 0.15, top + 0.5, _counts(rows), va="center")
        panel.text(-_LEFT, len(lines) + 0.3, _foot(known), va="top", linespacing=1.4)
    return figure


def _draw_head(panel: Axes, metrics: Sequence[str]) -> None:
    many = len(metrics)
    for source, first in zip(CHOSEN_ON, (0, many), strict=True):
        middle = first + many / 2
        panel.text(middle, -1.75, f"{source} inputs", ha="center", va="center", weight="bold")
        panel.plot([first + 0.05, first + many - 0.05], [-1.35] * 2, "k-", lw=0.6)
    for column, metric in enumerate((*metrics, *metrics)):
        name = metric.replace("_", "\n").replace("indistinguishable", "indistin-\nguishable")
        # Line by line, for a line with descenders would lift the one above it.
        for line, word in enumerate(reversed(name.split("\n"))):
            panel.text(column + 0.5, -0.3 - 0.5 * line, word, ha="center", va="baseline")


def _draw_cell(panel: Axes, left: int, top: int, difference: float, verdict: str | None) -> None:
    symbol, colour = _LOOKS[verdict]
    panel.add_patch(Rectangle((left, top), 1, 1, facecolor=colour, edgecolor="0.5", lw=0.5))
    # Adding 0 to the rounded number makes a negative zero positive.
    text = (
        f"{symbol} {round(difference, 2) + 0:+.2f}".replace("-", "−")
        if isfinite(difference)
        else "NaN"
    )
    panel.text(left + 0.5, top + 0.5, text, ha="center", va="center")


def _counts(rows: pl.DataFrame) -> str:
    found = Counter(rows["verdict"])
    kinds = [kind for kind in _LOOKS if found[kind]]
    return ", ".join(
        f"{found[kind]} {_PLURALS[kind] if found[kind] > 1 else kind or 'open'}" for kind in kinds
    )


def _foot(known: pl.DataFrame) -> str:
    """Explain the symbols, and give the numbers of seeds, songs and omissions of the table."""
    ranges = {
        name: " to ".join(str(count) for count in dict.fromkeys((numbers.min(), numbers.max())))
        for name, numbers in known.select("seeds", "songs", "excluded").to_dict().items()
    }
    excluded = (
        f"; left out of a comparison: {ranges['excluded']}" if known["excluded"].sum() else ""
    )
    return (
        "▲ win   = tie   ▼ loss: Holm-corrected over the panels of a source at 5 %.   ? open: one"
        " seed, or no point near enough.\n"
        f"Training seeds: {ranges['seeds']}; songs, or blocks of prior pairs:"
        f" {ranges['songs']}{excluded}."
    )
