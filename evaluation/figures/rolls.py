"""Piano rolls of pairs of segments."""

from collections.abc import Sequence
from fractions import Fraction

import matplotlib as mpl
import numpy as np
import polars as pl
from jaxtyping import Integer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cf_core.errors import FigureError
from cf_core.melody import MelodyFormat, Note, bar_length, to_notes
from evaluation.figures.canvas import GREY, STYLE, WIDTH, drawable

_WHITE_KEYS = dict(zip((0, 2, 4, 5, 7, 9, 11), "CDEFGAB", strict=True))
_HALF_COLOURS = ("#56B4E9", "#E69F00")


def piano_roll_figure(
    inputs: Integer[np.ndarray, "2 T"],
    outputs: Integer[np.ndarray, "2 T"],
    form: MelodyFormat,
    names: tuple[str, str] = ("left", "right"),
) -> Figure:
    """Draw the tokens of a pair, left half beside right half, above those of the fused pair.

    A note is a block with a black edge at its onset. Thin lines are bar lines; the thick line is
    the seam between the halves. `names` stand above the halves, cut to 40 characters.
    """
    with mpl.rc_context(STYLE):
        return _rolls([("inputs", inputs), ("outputs", outputs)], form, names, 1.7)


def style_figure(examples: pl.DataFrame, form: MelodyFormat) -> Figure:
    """Draw one pair as several styles fuse it: figure 1 of the poster, right.

    `examples` is the study's table of that name. Each row is one piano roll, as in
    `piano_roll_figure`, in the order of the column `row`. Raises `FigureError` if the table is
    empty, or does not hold a single trial, λ, iteration count and pair of songs.
    """
    if examples.is_empty():
        raise FigureError("examples: the table is empty; run the study first")
    shared = examples.select("trial", "lambda", "iteration", "left_song", "right_song").unique()
    if shared.height > 1:
        raise FigureError(
            f"examples: rows of {shared.height} kinds are mixed; keep the rows of one trial, λ,"
            " iteration count and pair of songs"
        )
    wrong = examples.filter(pl.any_horizontal(pl.col("left", "right").list.len() != form.steps))
    if wrong.height:
        raise FigureError(
            f"examples: row {wrong['row'][0]} does not have the {form.steps} steps of the melody"
            " format; draw it with the format of its study"
        )
    rows = [
        (label, np.array([left, right], dtype=np.int64))
        for label, left, right in examples.sort("row").select("label", "left", "right").iter_rows()
    ]
    trial, lambda_, count, left_song, right_song = shared.row(0)
    named_lambda = "" if lambda_ is None else f", λ {lambda_:.3g}"
    with mpl.rc_context(STYLE):
        figure = _rolls(rows, form, (left_song, right_song), 0.8)
        figure.suptitle(
            f"{drawable(trial)}{named_lambda}, {count} iteration{'s' * (count != 1)}", fontsize=7
        )
    return figure


def _rolls(
    rows: Sequence[tuple[str, Integer[np.ndarray, "2 T"]]],
    form: MelodyFormat,
    names: tuple[str, str],
    height: float,
) -> Figure:
    """Draw labelled pairs below each other, each `height` inches high, with the same pitches."""
    kind = form.find_kinds(rows[0][1])[0]
    length = bar_length(form.kinds[kind]) * form.bars_per_segment
    pairs = [(label, [to_notes(half, form) for half in pair]) for label, pair in rows]
    pitches = [note.pitch for _, pair in pairs for half in pair for note in half] or [60]
    figure = Figure(figsize=(WIDTH, 0.6 + height * len(pairs)), layout="constrained")
    panels = figure.subplots(len(pairs), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for panel, (label, pair) in zip(panels, pairs, strict=True):
        panel.set_title(drawable(label), loc="left", fontsize=6.5)
        _draw_grid(panel, form, length, min(pitches) - 2, max(pitches) + 2, height)
        _draw_pair(panel, pair, length)
    for start, name in zip((0.0, float(length)), names, strict=True):
        panels[0].annotate(
            drawable(name), (start + float(length) / 2, 1), (0, 13), ha="center", va="bottom",
            xycoords=("data", "axes fraction"), textcoords="offset points",
        )  # fmt: skip
    panels[-1].set_xlabel("bar")
    return figure


def _draw_pair(panel: Axes, pair: Sequence[Sequence[Note]], length: Fraction) -> None:
    for start, notes, colour in zip((Fraction(0), length), pair, _HALF_COLOURS, strict=True):
        pitches = [note.pitch for note in notes]
        onsets = [float(start + note.onset) for note in notes]
        durations = [float(note.duration) for note in notes]
        panel.barh(pitches, durations, 0.8, onsets, color=colour, zorder=2)
        panel.barh(pitches, 0.07, 0.8, onsets, color="black", zorder=3)


def _draw_grid(
    panel: Axes, form: MelodyFormat, length: Fraction, lowest: int, highest: int, height: float
) -> None:
    """Draw the background of the notes: rows of black keys, pitch names, bar lines and the seam.

    The names depend on the room in `height` inches: all white keys, only C and G, or only C.
    """
    points = 72 * height / (highest - lowest + 1)  # height of a semitone
    shown = "CDEFGAB" if points > 5.5 else "CG" if points > 1.5 else "C"
    names = {}
    for pitch in range(lowest, highest + 1):
        key = _WHITE_KEYS.get(pitch % 12)
        if key is None:
            panel.axhspan(pitch - 0.5, pitch + 0.5, color="0.94", lw=0, zorder=0)
        elif key in shown:
            names[pitch] = f"{key}{pitch // 12 - 1}"
    panel.set_yticks(list(names), list(names.values()))
    panel.set_ylim(lowest - 0.5, highest + 0.5)
    bars = np.arange(2 * form.bars_per_segment + 1) * float(length / form.bars_per_segment)
    for bar in bars:
        panel.axvline(bar, color="0.6", lw=0.7, zorder=1)
    panel.axvline(bars[form.bars_per_segment], color=GREY, lw=2.5, zorder=1)
    panel.set_xticks(bars[:-1], [str(number) for number in range(1, len(bars))])
    panel.set_xlim(0, bars[-1])
