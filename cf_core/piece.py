"""Melody files as pieces to take segments of, and what stands around a segment.

Bars are numbered as in the piece: the first whole bar is bar 1, a pickup before it is bar 0, and
repeats are played out.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Integer

from cf_core.errors import MelodyError
from cf_core.grid import TOLERANCE, GridBar, make_segment, to_grid
from cf_core.isolation import CallError, call_isolated
from cf_core.melody import FIRST_PITCH, Bar, Melody, MelodyFormat, Note
from cf_core.readers import load_file, read_melody

BarRange = tuple[int, int]
"""Number of the first and of the last bar, both included."""

Chords = Literal["reject", "top", "bottom"]
"""What becomes of notes that sound together: a bar with any can't be taken, or the highest or the
lowest note stays."""


_PARTS = {1: "whole", 2: "half", 3: "third", 4: "fourth", 6: "sixth", 8: "eighth", 12: "twelfth"}
"""Parts of a quarter note, in words."""


class Passage(NamedTuple):
    """Notes and bars of a piece, both from the start of the passage."""

    notes: tuple[Note, ...] = ()
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment of a piece."""

    tokens: Integer[np.ndarray, "T"]
    start: int
    """Index of its first bar."""
    bars: BarRange
    meter: str
    """Time signature as written, such as "4/4"."""
    tempo: float
    kind: int


@dataclass(frozen=True, eq=False)
class Piece:
    """A melody on the grid of a format."""

    name: str
    """What errors call it: the path or the name of its file."""
    melody: Melody
    bars: Sequence[GridBar]
    form: MelodyFormat

    @classmethod
    def read(
        cls, path: Path, part: str | None, form: MelodyFormat, chords: Chords = "reject"
    ) -> "Piece":
        """Read a file. Raises `MelodyError` where it can't be read.

        If chords are not rejected, a file whose melody can't be told from its other parts gives its
        first part.
        """
        return cls.parse(str(path), load_file(path), part, form, chords)

    @classmethod
    def parse(
        cls, name: str, data: bytes, part: str | None, form: MelodyFormat, chords: Chords = "reject"
    ) -> "Piece":
        """Read the bytes of a file, as `read` does. The suffix of `name` gives the format."""
        try:
            melody = read_melody(name, data, part)
        except MelodyError as error:
            if part is not None:
                raise
            melody = read_melody(name, data, "1")
            if chords == "reject":
                raise MelodyError(
                    f"{error}; set chords to top, which takes one line of its first part"
                ) from None
        return cls.of(name, melody, form, chords)

    @classmethod
    def of(
        cls, name: str, melody: Melody, form: MelodyFormat, chords: Chords = "reject"
    ) -> "Piece":
        """Put a melody on the grid of a format."""
        if chords != "reject":
            melody = replace(melody, notes=thin_out(melody.notes, chords))
        return cls(name, melody, to_grid(melody, form.steps_per_beat), form)

    @property
    def tune(self) -> str | None:
        """Number and title of the tune that was taken of a file with several; else None."""
        number = self.melody.id.removeprefix(f"{PurePath(self.name).stem}:")
        return f'tune {number} "{self.melody.title}"' if number != self.melody.id else None

    @property
    def pickup(self) -> int:
        """Number of bars before bar 1."""
        return int(self.bars[0].reason == "short bar")

    def take(self, start: int) -> Segment:
        """Take the segment that starts at a bar. Raises `MelodyError` if the format can't."""
        form = self.form
        tokens = make_segment(self.bars[start : start + form.bars_per_segment], form)
        if not (tokens >= FIRST_PITCH).any():
            raise MelodyError("there are no notes")
        number, meter = start + 1 - self.pickup, self.bars[start].meter
        return Segment(
            tokens,
            start,
            (number, number + form.bars_per_segment - 1),
            meter,
            self.melody.tempo_at(self.melody.bars[start].start),
            form.find_kind(meter),
        )

    def take_chosen(self, chosen: BarRange) -> Segment:
        """Take the segment of bars with these numbers. Raises `MelodyError` where there is none."""
        (first, last), pickup, many = chosen, self.pickup, self.form.bars_per_segment
        if last - first + 1 != many:
            example = f"{max(first, 1)}-{max(first, 1) + many - 1}"
            raise MelodyError(
                f"{self.name}: bars {first}-{last}: a segment of this bundle has {many} bars; give"
                f" as many bars, such as {example}"
            )
        start, count = first - 1 + pickup, len(self.bars)
        if start < 0 or start + many > count:
            raise MelodyError(
                f"{self.name}: bars {first}-{last}: the piece has bars {1 - pickup} to"
                f" {count - pickup}; choose among them"
            )
        try:
            return self.take(start)
        except MelodyError as error:
            raise MelodyError(
                f"{self.name}: bars {first}-{last}: {error}; choose other bars ({self._describe()})"
            ) from None

    def list_segments(self) -> list[Segment]:
        """All segments that the format can hold, in order. Raises `MelodyError` without any."""
        found, form = [], self.form
        for start in range(len(self.bars) - form.bars_per_segment + 1):
            with suppress(MelodyError):
                found.append(self.take(start))
        if not found:
            chords = any(bar.reason == "chord" for bar in self.bars)
            advice = "set chords to top, which takes their top notes, " if chords else ""
            raise MelodyError(
                f"{self.name}: no {form.bars_per_segment} neighbouring bars with notes that the"
                f" bundle can take: it knows {_enumerate(form.meters)}, steps at each"
                f" {_enumerate([_PARTS.get(n, f'1/{n}') for n in form.divisions])} of a quarter"
                f" note, and MIDI pitches {form.lowest} to {form.highest} ({self._describe()});"
                f" {advice}choose another file, or a bundle that knows its bars"
            )
        return found

    def before(self, segment: Segment) -> Passage:
        """What stands before a segment; a note that sounds over its start ends there."""
        bars, notes = self.melody.bars, self.melody.notes
        end = bars[segment.start].start
        kept = (note for note in notes if note.onset < end - TOLERANCE)
        cut = (n._replace(duration=min(n.duration, end - n.onset)) for n in kept)
        return Passage(tuple(cut), bars[: segment.start])

    def after(self, segment: Segment) -> Passage:
        """What stands after a segment, from the next bar on; notes held over it are left out."""
        first = segment.start + self.form.bars_per_segment
        bars, last = self.melody.bars, self.melody.bars[first - 1]
        start = last.start + last.length
        notes = tuple(
            note._replace(onset=max(note.onset - start, note.onset * 0))
            for note in self.melody.notes
            if note.onset >= start - TOLERANCE
        )
        return Passage(notes, tuple(bar._replace(start=bar.start - start) for bar in bars[first:]))

    def leave_out(self, segment: Segment, *, is_left: bool) -> BarRange | None:
        """The bars behind a left segment, or ahead of a right one, if there are any."""
        (first, last), start = segment.bars, 1 - self.pickup
        left_out = (last + 1, start + len(self.bars) - 1) if is_left else (start, first - 1)
        return left_out if left_out[0] <= left_out[1] else None

    def _describe(self) -> str:
        """Describe it, such as "its bars: 30 of 4/4, 2 off grid; its pitches: 55 to 79"."""
        kinds = Counter(bar.reason or f"of {bar.meter}" for bar in self.bars)
        bars = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        pitches = [note.pitch for note in self.melody.notes]
        return f"its bars: {bars}; its pitches: {min(pitches)} to {max(pitches)}"


def read_isolated(read: Callable[..., Piece], name: str, *arguments: Any) -> Piece:
    """Call `Piece.parse` or `Piece.of` in a process with limits, for what strangers send.

    Raises `MelodyError` as they do, and where `cf_core.isolation` stops the call.
    """
    try:
        result = call_isolated(_attempt, read, name, *arguments)
    except CallError as error:
        raise MelodyError(
            f"{name}: can't be read within the limits: {error.reason} ({error.detail}); give"
            " another file"
        ) from None
    if isinstance(result, MelodyError):
        raise result
    return result


def _attempt(read: Callable[..., Piece], *arguments: Any) -> Piece | MelodyError:
    """Return what would be raised, since an exception would end the process."""
    try:
        return read(*arguments)
    except MelodyError as error:
        return error


def _enumerate(names: Sequence[str]) -> str:
    """Names as a list in words: "a", "a and b", "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def thin_out(notes: Sequence[Note], chords: Chords) -> tuple[Note, ...]:
    """Make one line of notes that sound together: the highest ("top") or the lowest ("bottom").

    Of notes that begin together one stays. A note that begins while a higher one sounds is left out
    (for "bottom", a lower one), and one that begins while a lower one sounds ends that one. An
    overlap of less than half of the earlier note is no chord: a player has let it go late.
    """
    sign = 1 if chords == "top" else -1
    line: list[Note] = []
    for note in sorted(notes, key=lambda n: (n.onset, -sign * n.pitch)):
        if line:
            last = line[-1]
            overlap = last.onset + last.duration - note.onset
            if note.onset - last.onset <= TOLERANCE:
                continue
            if overlap > 0:
                if 2 * overlap >= last.duration and sign * (note.pitch - last.pitch) <= 0:
                    continue
                line[-1] = last._replace(duration=note.onset - last.onset)
        line.append(note)
    return tuple(line)
