"""Bars of a melody on a grid, and segments made of neighbouring bars.

Letters in shapes: `B` segments, `T` steps of a segment.
"""

from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import lcm
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int16, Integer, UInt8

from cf_core.errors import MelodyError
from cf_core.gates import Sounding, move_ends
from cf_core.melody import FIRST_PITCH, FREE, HOLD, REST, Melody, MelodyFormat, bar_length

TOLERANCE = Fraction(1, 96)
"""How far from a grid line, in quarter notes, an onset or end may lie and still count as on it.

Five ticks of 480: wider than any rounding of ticks, far narrower than the gap of 1/12 between a
triplet and the nearest 16th.
"""

BarReason = Literal["free meter", "short bar", "long bar", "chord", "off grid"]
"""Why a bar has no tokens: no meter says how long it should be, its length is not its meter's,
notes sound together, or an onset or an end is farther from the grid than the tolerance."""


class GridBar(NamedTuple):
    """One true bar on the grid: its tokens, or the reason why it has none.

    Tokens are absolute: `FIRST_PITCH + p` is the onset of MIDI pitch `p`.
    """

    meter: str
    tokens: tuple[int, ...] | None
    """`None` exactly where there is a `reason`."""
    held: int | None
    """MIDI pitch of the note that began earlier and sounds over the bar's start, if any."""
    onsets: int
    """Notes that begin in the bar."""
    reason: BarReason | None
    moved: int = 0
    """How many of the notes that begin in the bar had their ends moved by `cf_core.gates`."""


def to_grid(
    melody: Melody, steps_per_beat: int = 4, tolerance: Fraction = TOLERANCE
) -> list[GridBar]:
    """Put every bar of `melody` on a grid of `steps_per_beat` steps per quarter note.

    Positions count from the bar's own start. Onsets and ends within `tolerance` (quarter notes,
    less than a third of a step) of a grid line snap to it. A note that would get no step is off
    grid. If the melody was `played`, `cf_core.gates` moves the ends of its notes first. Raises
    `ValueError` for a `tolerance` of a third of a step or more.
    """
    if 3 * tolerance * steps_per_beat >= 1:
        raise ValueError(
            f"tolerance: {tolerance} must be less than a third of a step (1/{steps_per_beat})"
        )
    unit = _unit(melody, steps_per_beat, tolerance)
    step, near = _in(unit, Fraction(1, steps_per_beat)), _in(unit, tolerance)
    written = [
        (onset, onset + _in(unit, note.duration), note.pitch)
        for note in melody.notes
        for onset in [_in(unit, note.onset)]
    ]
    measures = [(_in(unit, bar.start), _in(unit, bar.length)) for bar in melody.bars]
    notes = written
    if melody.played:
        notes = move_ends(written, measures, step, near)
        # A last bar is dropped if only an end that has been moved back had reached it.
        last, reached = (max((n[1] for n in ns), default=0) for ns in (notes, written))
        while measures and last - near <= measures[-1][0] < reached:
            measures.pop()
    moved = deque(note != before for note, before in zip(notes, written, strict=True))
    waiting = deque(notes)
    bars: list[GridBar] = []
    sounding: list[Sounding] = []
    for bar, (start, length) in zip(melody.bars, measures, strict=False):
        sounding = [note for note in sounding if note[1] > start + near]
        ends_moved = 0
        while waiting and waiting[0][0] < start + length - near:
            sounding.append(waiting.popleft())
            ends_moved += moved.popleft()
        held = [pitch for onset, _, pitch in sounding if onset < start - near]
        tokens: list[int] = []
        reason: BarReason | None = None
        if bar.meter == FREE:
            reason = "free meter"
        elif bar.length != bar_length(bar.meter):
            reason = "short bar" if bar.length < bar_length(bar.meter) else "long bar"
        elif any(first[1] > second[0] + near for first, second in pairwise(sounding)):
            reason = "chord"
        else:
            tokens = _tokens(start, length, sounding, step, near)
            reason = None if tokens else "off grid"
        bars.append(
            GridBar(
                meter=bar.meter,
                tokens=tuple(tokens) if reason is None else None,
                held=held[-1] if held else None,
                onsets=len(sounding) - len(held),
                reason=reason,
                moved=ends_moved,
            )
        )
    return bars


def _unit(melody: Melody, steps_per_beat: int, tolerance: Fraction) -> int:
    """Units in a quarter note such that all times are whole numbers of units."""
    denominators = {steps_per_beat, tolerance.denominator}
    for note in melody.notes:
        denominators |= {note.onset.denominator, note.duration.denominator}
    for bar in melody.bars:
        denominators |= {bar.start.denominator, bar.length.denominator}
    return lcm(*denominators)


def _in(unit: int, value: Fraction) -> int:
    """Convert quarter notes to a number of units."""
    return value.numerator * (unit // value.denominator)


def _tokens(start: int, length: int, notes: list[Sounding], step: int, tolerance: int) -> list[int]:
    """Return the bar's tokens, or an empty list where something is off the grid."""
    if length % step:
        return []
    tokens = [REST] * (length // step)
    for onset, end, pitch in notes:
        begins, ends = max(onset - start, 0), min(end - start, length)
        first, last = (2 * begins + step) // (2 * step), (2 * ends + step) // (2 * step)
        if (
            abs(begins - first * step) > tolerance
            or abs(ends - last * step) > tolerance
            or first == last
        ):
            return []
        tokens[first:last] = [HOLD] * (last - first)
        if onset >= start - tolerance:
            tokens[first] = FIRST_PITCH + pitch
    return tokens


def join_bars(
    bars: UInt8[np.ndarray, "B bars lines"],
    held: Integer[np.ndarray, "B"],
    kind: int,
    form: MelodyFormat,
) -> "Joined":
    """Join consecutive bars of one kind, of absolute tokens, into segments of `form`'s tokens.

    `held` is the MIDI pitch of the note that sounds over each segment's start, if any. Such a note
    is struck again there.
    """
    count, many, lines = bars.shape
    absolute = bars.reshape(count, many * lines).copy()
    struck_again = absolute[:, 0] == HOLD
    absolute[struck_again, 0] = FIRST_PITCH + held[struck_again]
    onset = absolute >= FIRST_PITCH
    pitch = absolute.astype(np.int64) - FIRST_PITCH
    in_range = (~onset | ((pitch >= form.lowest) & (pitch <= form.highest))).all(axis=1)
    starts = (np.arange(many)[:, None] * lines + np.array(form.bars[kind])).ravel()
    between = np.delete(np.arange(many * lines), starts)
    # Between two steps, what sounds goes on.
    goes_on = np.where(absolute[:, between - 1] == REST, REST, HOLD)
    on_grid = (absolute[:, between] == goes_on).all(axis=1)
    tokens = np.full((count, form.steps), REST, np.int16)
    tokens[:, : len(starts)] = np.where(onset, absolute - form.lowest, absolute)[:, starts]
    marked = form.put_marks(tokens, np.full(count, kind))
    return Joined(marked, *map(np.asarray, (struck_again, in_range, on_grid)))


class Joined(NamedTuple):
    """Segments made of bars; the tokens of those that are not in range or on the grid are void."""

    tokens: Int16[np.ndarray, "B T"]
    struck_again: Bool[np.ndarray, "B"]
    """Which begin within a note, which is struck again there."""
    in_range: Bool[np.ndarray, "B"]
    """Which are within the pitch range of the format."""
    on_grid: Bool[np.ndarray, "B"]
    """Which have onsets and ends only where the format has steps."""


def make_segment(bars: Sequence[GridBar], form: MelodyFormat) -> Int16[np.ndarray, "T"]:
    """Make one segment's tokens from `form.bars_per_segment` consecutive bars.

    A note held over the segment's start is struck again there. Raises `MelodyError` where a bar is
    missing or rejected, where `form` does not have its meter or grid, where the bars are of
    different kinds, and where a pitch is out of range.
    """
    if len(bars) != form.bars_per_segment:
        raise MelodyError(f"a segment has {form.bars_per_segment} bars, but {len(bars)} were given")
    for number, bar in enumerate(bars, start=1):
        if bar.tokens is None:
            raise MelodyError(f"bar {number} of the segment can't be used: {bar.reason}")
        if bar.meter not in form.meters or len(bar.tokens) != form.count_lines(bar.meter):
            raise MelodyError(
                f"bar {number} of the segment has {len(bar.tokens)} grid steps of {bar.meter}; the"
                f" model takes bars of {' or '.join(form.meters)} with {form.steps_per_beat} steps"
                " for each quarter note"
            )
    kinds = {form.find_kind(bar.meter) for bar in bars}
    if len(kinds) > 1:
        raise MelodyError(
            f"the segment has bars of {' and '.join(dict.fromkeys(bar.meter for bar in bars))}; the"
            " model takes one meter at a time"
        )
    joined = join_bars(
        np.array([[bar.tokens for bar in bars]], dtype=np.uint8),
        np.array([bars[0].held or 0]),
        kinds.pop(),
        form,
    )
    if not joined.in_range[0]:
        raise MelodyError(
            f"the segment has a note outside the model's pitches {form.lowest} to {form.highest}"
            " (MIDI numbers): transpose it"
        )
    if not joined.on_grid[0]:
        raise MelodyError("the segment has a note between two steps of the model")
    return np.asarray(joined.tokens[0])
