"""Two melody files fused into one melody.

Bars are numbered as in the piece: the first whole bar is bar 1, a pickup before it is bar 0, and
repeats are played out.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from cf_core.bundle import Bundle
from cf_core.distance import edit_distance
from cf_core.errors import BundleError, MelodyError
from cf_core.grid import GridBar, make_segment, to_grid
from cf_core.melody import FIRST_PITCH, Melody, MelodyFormat, Note, bar_length, to_notes
from cf_core.readers import read_file

BarRange = tuple[int, int]
"""Number of the first and of the last bar, both included."""

SLOWEST, FASTEST = 10.0, 500.0
"""Slowest and fastest tempo that can be written, in quarter notes per minute."""


@dataclass(frozen=True, eq=False)
class Fused:
    """Two segments, the fused segments, and the settings used. `T` is a segment's grid steps."""

    form: MelodyFormat
    inputs: Integer[np.ndarray, "2 T"]
    outputs: Integer[np.ndarray, "2 T"]
    bars: tuple[BarRange, BarRange]
    """Bars taken from the left and from the right piece."""
    meter: str
    """Time signature of the left segment as written, such as "4/4"."""
    tempo: float
    """Quarter notes per minute."""
    style: tuple[float, ...]
    lambda_: float | None
    """λ; None where it is not an input of the bundle's generator."""
    iterations: int
    lead: float | None
    """Which half gave way: 0 the right one, 1 the left one; None in a bundle that knows none."""

    @property
    def edits(self) -> tuple[int, int]:
        """How many grid steps of the left and of the right segment were edited."""
        left, right = edit_distance(self.inputs, self.outputs).tolist()
        return left, right

    @property
    def input_notes(self) -> list[Note]:
        """The two input segments, one after the other."""
        return self._joined(self.inputs)

    @property
    def output_notes(self) -> list[Note]:
        """The fused melody."""
        return self._joined(self.outputs)

    def _joined(self, halves: Integer[np.ndarray, "2 T"]) -> list[Note]:
        length = bar_length(self.meter) * self.form.bars_per_segment
        left, right = (to_notes(half, self.form) for half in halves)
        return left + [Note(note.onset + length, note.duration, note.pitch) for note in right]


def fuse_files(
    left: Path,
    right: Path,
    bundle: Bundle,
    *,
    left_bars: BarRange | None = None,
    right_bars: BarRange | None = None,
    left_part: str | None = None,
    right_part: str | None = None,
    style: Sequence[float] | None = None,
    lambda_: float | None = None,
    edits: int | None = None,
    lead: float | None = None,
    iterations: int | None = None,
    seed: int = 0,
    tempo: float | None = None,
) -> Fused:
    """Fuse the last whole segment of one melody file with the first of another.

    Files are MIDI, MusicXML or ABC. Where a piece has several meters, these are the last and the
    first segment that have bars of one kind. `left_bars` and `right_bars` choose other segments.
    `left_part` and `right_part` choose a part of a file that has several, by name or by number from
    1. `style` holds one number in 0…1 per style dimension; without it, a style is drawn from
    `seed`. `lambda_` (a small one goes far from the inputs, a large one stays near), `lead` (0: the
    left segment stays, 1: the right one stays) and `iterations` default to the bundle's. `edits`,
    in place of `lambda_`, is the number of grid steps to edit, about (`Bundle.find_lambda`).
    `tempo` (quarter notes per minute, 10…500) defaults to the tempo at the left segment.

    Raises `MelodyError` where a file can't be read, where it has no segment that the bundle can
    take, where the chosen bars are not such a segment, where there are no two of one meter, and for
    a tempo out of range. Raises
    `BundleError` for a style, a λ, a lead, an iteration count or a number of edits that the bundle
    can't take, and where both `lambda_` and `edits` are given.

    >>> from pathlib import Path
    >>> from cf_core.bundle import load_bundle
    >>> from cf_core.fuse import fuse_files
    >>> from cf_core.render import write_midi
    >>> fused = fuse_files(Path("left.mid"), Path("right.mid"), load_bundle(), lambda_=0.3)
    >>> fused.bars  # first and last bar taken from each file
    ((3, 4), (1, 2))
    >>> write_midi(fused.output_notes, Path("fused.mid"), fused.tempo, fused.meter)
    """
    before = _Piece.read(left, left_part, bundle.form)
    after = _Piece.read(right, right_part, bundle.form)
    last, first = _choose(before, after, left_bars, right_bars)
    speed = last.tempo if tempo is None else tempo
    if not SLOWEST <= speed <= FASTEST:
        raise MelodyError(
            f"{left if tempo is None else 'tempo'}: {speed:g} quarter notes per minute can't be"
            f" written; give a tempo of {SLOWEST:g} to {FASTEST:g}"
        )
    chosen = bundle.draw_style(seed) if style is None else tuple(style)
    count = bundle.iterations if iterations is None else iterations
    if edits is not None:
        if lambda_ is not None:
            raise BundleError("edits: λ is given, too, and each says how far to go; give one")
        lambda_ = bundle.find_lambda(last.tokens, first.tokens, chosen, count, edits, lead)
    outputs = bundle.fuse(last.tokens, first.tokens, chosen, count, lambda_, lead)
    return Fused(
        form=bundle.form,
        inputs=np.stack((last.tokens, first.tokens)),
        outputs=np.stack(outputs),
        bars=(last.bars, first.bars),
        meter=last.meter,
        tempo=speed,
        style=chosen,
        lambda_=bundle.lambda_ if lambda_ is None else lambda_,
        iterations=count,
        lead=bundle.lead if lead is None else lead,
    )


@dataclass(frozen=True, eq=False)
class _Taken:
    """A segment of a piece."""

    tokens: Integer[np.ndarray, "T"]
    start: int
    """Index of its first bar."""
    bars: BarRange
    meter: str
    tempo: float
    kind: int


@dataclass(frozen=True, eq=False)
class _Piece:
    """A melody on the grid of a format, to take segments of."""

    path: Path
    melody: Melody
    bars: Sequence[GridBar]
    form: MelodyFormat

    @classmethod
    def read(cls, path: Path, part: str | None, form: MelodyFormat) -> "_Piece":
        melody = read_file(path, part)
        return cls(path, melody, to_grid(melody, form.steps_per_beat), form)

    @property
    def pickup(self) -> int:
        """Number of bars before bar 1."""
        return int(self.bars[0].reason == "short bar")

    def take(self, start: int) -> _Taken:
        """Take the segment that starts at a bar; raises `MelodyError` if the format can't."""
        form = self.form
        tokens = make_segment(self.bars[start : start + form.bars_per_segment], form)
        if not (tokens >= FIRST_PITCH).any():
            raise MelodyError("there are no notes")
        number, meter = start + 1 - self.pickup, self.bars[start].meter
        return _Taken(
            tokens,
            start,
            (number, number + form.bars_per_segment - 1),
            meter,
            self.melody.tempo_at(self.melody.bars[start].start),
            form.find_kind(meter),
        )

    def take_chosen(self, chosen: BarRange) -> _Taken:
        """Take the segment of bars with these numbers; raises `MelodyError` where there is none."""
        (first, last), pickup, many = chosen, self.pickup, self.form.bars_per_segment
        if last - first + 1 != many:
            example = f"{max(first, 1)}-{max(first, 1) + many - 1}"
            raise MelodyError(
                f"{self.path}: bars {first}-{last}: a segment of this bundle has {many} bars; give"
                f" as many bars, such as {example}"
            )
        start, count = first - 1 + pickup, len(self.bars)
        if start < 0 or start + many > count:
            raise MelodyError(
                f"{self.path}: bars {first}-{last}: the piece has bars {1 - pickup} to"
                f" {count - pickup}; choose among them"
            )
        try:
            return self.take(start)
        except MelodyError as error:
            raise MelodyError(
                f"{self.path}: bars {first}-{last}: {error}; choose other bars"
                f" ({_described(self.bars)})"
            ) from None

    def list_segments(self) -> list[_Taken]:
        """All segments that the format can hold, in order; raises `MelodyError` without any."""
        found, form = [], self.form
        for start in range(len(self.bars) - form.bars_per_segment + 1):
            with suppress(MelodyError):
                found.append(self.take(start))
        if not found:
            raise MelodyError(
                f"{self.path}: no {form.bars_per_segment} neighbouring bars with notes that the"
                f" bundle can take: it knows {' and '.join(form.meters)} on a grid of"
                f" {form.steps_per_beat} steps per quarter note and MIDI pitches {form.lowest} to"
                f" {form.highest} ({_described(self.bars)}); choose another file, or a bundle that"
                " knows its bars"
            )
        return found


def _choose(
    left: _Piece, right: _Piece, left_bars: BarRange | None, right_bars: BarRange | None
) -> tuple[_Taken, _Taken]:
    """Choose the segments to fuse: as given, or the nearest to the seam that are of one kind."""
    lasts = left.list_segments() if left_bars is None else [left.take_chosen(left_bars)]
    firsts = right.list_segments() if right_bars is None else [right.take_chosen(right_bars)]
    last = {each.kind: each for each in lasts}  # of each kind the last one
    first = {each.kind: each for each in reversed(firsts)}  # and the first one
    if not last.keys() & first.keys():
        meters = [
            " and ".join(dict.fromkeys(each.meter for each in some)) for some in (lasts, firsts)
        ]
        raise MelodyError(
            f"{left.path} can be taken in {meters[0]}, {right.path} in {meters[1]}: a bundle fuses"
            " two segments of one meter; choose another file or other bars"
        )
    kind = min(last.keys() & first.keys(), key=lambda k: (first[k].start - last[k].start, k))
    return last[kind], first[kind]


def _described(bars: Sequence[GridBar]) -> str:
    """Describe the bars of a piece, such as "its bars: 30 of 4/4, 2 off grid"."""
    kinds = Counter(bar.reason or f"of {bar.meter}" for bar in bars)
    return "its bars: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
