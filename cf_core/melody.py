"""Melodies as notes, and as tokens on a grid.

A grid step holds one token: `REST`, `HOLD` (the sounding note goes on), or the onset of a pitch.
Positions and durations of notes are in quarter notes, as exact fractions.

Letters in shapes: `B` segments, `T` steps of a segment, `V` tokens of the vocabulary.
"""

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import lcm
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from cf_core.errors import UserError
from cf_core.settings import Settings

REST = 0
HOLD = 1
FIRST_PITCH = 2
"""Token of the lowest pitch; the token of MIDI pitch `p` is `FIRST_PITCH + p - lowest`."""


class Note(NamedTuple):
    """One note: `onset` and `duration` in quarter notes, `pitch` as a MIDI number (0-127)."""

    onset: Fraction
    duration: Fraction
    pitch: int


class Bar(NamedTuple):
    """One true bar: `start` and `length` in quarter notes, `meter` as written, such as "6/8"."""

    start: Fraction
    length: Fraction
    meter: str


def bar_length(meter: str) -> Fraction:
    """Length in quarter notes of a full bar of `meter` ("3/4" gives 3, "6/8" gives 3)."""
    beats, unit = meter.split("/")
    return Fraction(4 * int(beats), int(unit))


class Tempo(NamedTuple):
    """From `start` (quarter notes) on, music goes at `speed` quarter notes per minute."""

    start: Fraction
    speed: float


DEFAULT_TEMPO = 120.0
"""Quarter notes per minute where a source says nothing."""


@dataclass(frozen=True)
class Melody:
    """One monophonic song: notes by onset, and the true bars that cover them."""

    id: str
    title: str
    notes: tuple[Note, ...]
    bars: tuple[Bar, ...]
    tempos: tuple[Tempo, ...] = ()
    """By start, as the source gives them."""
    played: bool = False
    """Ends of notes are those of keys: see `grid`."""

    @property
    def tempo(self) -> float:
        """Quarter notes per minute at the start."""
        return self.tempo_at(Fraction(0))

    def tempo_at(self, position: Fraction) -> float:
        """Quarter notes per minute at a position; 120 before the first tempo of the source."""
        speeds = [tempo.speed for tempo in self.tempos if tempo.start <= position]
        return speeds[-1] if speeds else DEFAULT_TEMPO


TOLERANCE = Fraction(1, 96)
"""How far from a grid line, in quarter notes, an onset or end may lie and still count as on it.

Five ticks of 480: wider than any rounding of ticks, far narrower than the gap of 1/12 between a
triplet and the nearest 16th.
"""

MAX_STEPS_PER_BEAT = 24
"""Finest grid: three times the tolerance is still less than a step."""

BarReason = Literal["short bar", "long bar", "chord", "off grid"]
"""Why a bar has no tokens: its length is not its meter's, notes sound together, or an onset or an
end is farther from the grid than the tolerance."""


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
    """Of those notes, how many had their ends moved to the next onset, or to the grid."""


@dataclass(frozen=True)
class MelodyFormat(Settings):
    """Which segments a model knows: their meters, grid, length and pitch range."""

    may_be_zero = ("lowest",)

    meters: tuple[str, ...] = ("4/4", "2/2")
    """Meters of the segments; their bars must have the same number of steps."""
    steps_per_beat: int = 4
    """Grid steps per quarter note: 4 is the 16th grid, 12 also holds triplets."""
    bars_per_segment: int = 2
    """Whole bars in one segment (one half of a pair)."""
    lowest: int = 36
    """Lowest MIDI pitch of the vocabulary."""
    highest: int = 96
    """Highest MIDI pitch of the vocabulary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.meters:
            raise ValueError("meters: at least one is needed, such as 4/4")
        for meter in self.meters:
            if not re.fullmatch(r"[1-9]\d?/(1|2|4|8|16|32)", meter):
                raise ValueError(f"meters: {meter} is none; write it as 4/4 or 6/8")
        if self.steps_per_beat > MAX_STEPS_PER_BEAT:
            raise ValueError(f"steps_per_beat: {self.steps_per_beat} is above {MAX_STEPS_PER_BEAT}")
        steps = {bar_length(meter) * self.steps_per_beat for meter in self.meters}
        if len(steps) != 1 or any(count.denominator != 1 for count in steps):
            raise ValueError(
                f"meters: {', '.join(self.meters)} must have bars of one whole number of steps"
                f" at steps_per_beat {self.steps_per_beat}"
            )
        if not 0 <= self.lowest < self.highest <= 127:
            raise ValueError("lowest, highest: must satisfy 0 <= lowest < highest <= 127")

    @property
    def steps_per_bar(self) -> int:
        """Grid steps of one bar."""
        return int(bar_length(self.meters[0]) * self.steps_per_beat)

    @property
    def steps(self) -> int:
        """`T`, the grid steps of one segment."""
        return self.steps_per_bar * self.bars_per_segment

    @property
    def vocabulary(self) -> int:
        """`V`, the number of tokens: rest, hold, and one onset per pitch."""
        return FIRST_PITCH + self.highest - self.lowest + 1


def is_melody(tokens: Integer[np.ndarray, "B T"]) -> Bool[np.ndarray, "B"]:
    """Which segments are valid melodies: at least two onsets, and no hold that has nothing to hold.

    A hold at the start, or after a rest, has none. All pitches of a vocabulary are in range.
    """
    before = np.concatenate((np.full_like(tokens[:, :1], REST), tokens[:, :-1]), axis=1)
    hangs = ((tokens == HOLD) & (before == REST)).any(axis=1)
    valid: np.ndarray = ~hangs & ((tokens >= FIRST_PITCH).sum(axis=1) >= 2)
    return valid


def to_notes(tokens: Integer[np.ndarray, "T"], form: MelodyFormat) -> list[Note]:
    """Return the notes that one segment's tokens write down, counted from the segment's start.

    A hold with no note before it sounds nothing, as a rest does.
    """
    notes: list[Note] = []
    step = Fraction(1, form.steps_per_beat)
    sounding = False
    for position, token in enumerate(tokens.tolist()):
        if token >= FIRST_PITCH:
            notes.append(Note(position * step, step, token - FIRST_PITCH + form.lowest))
            sounding = True
        elif token == HOLD and sounding:
            last = notes[-1]
            notes[-1] = Note(last.onset, last.duration + step, last.pitch)
        else:
            sounding = False
    return notes


Sounding = tuple[int, int, int]
"""Onset, end and pitch of a note, in units that divide all there is: exact, and fast."""


def grid(melody: Melody, steps_per_beat: int = 4, tolerance: Fraction = TOLERANCE) -> list[GridBar]:
    """Put every bar of `melody` on a grid of `steps_per_beat` steps per quarter note.

    Positions count from the bar's own start. Onsets and ends within `tolerance` (quarter notes,
    less than a third of a step) of a grid line snap to it; a note that would vanish is off grid.
    Where the melody was `played`, ends of notes are moved before, as `_legato` says.
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
        notes = _legato(written, measures, step, near)
        # A last bar that nothing but the end of a note had reached is none.
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
        if bar.length != bar_length(bar.meter):
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


def _legato(
    notes: list[Sounding], bars: list[tuple[int, int]], step: int, near: int
) -> list[Sounding]:
    """Move ends of played notes to where they were meant to be: keys are not released so exactly.

    An end that lies before the next onset by less than a step, or beyond it by less than half a
    step, means "until the next onset"; after the last onset, until the bar line. Where half of the
    notes or more end off the grid and too soon for the next onset, or too late, the middle one of
    them tells how much this file takes off or adds (its gate). Then an end means the place, of the
    next onset and the grid lines, that it misses most nearly by that, of its length or in ticks;
    the next onset, if both fit.
    `bars` are their starts and lengths.
    """
    onsets = sorted({onset for onset, _, _ in notes})
    following = [_above(onsets, onset + near) for onset, _, _ in notes]
    starts = [start for start, _ in bars] or [0]
    beyond = [(end - starts[max(bisect_right(starts, end) - 1, 0)]) % step for _, end, _ in notes]
    missed = [
        (stop - end, stop - onset)
        for (onset, end, _), stop, off in zip(notes, following, beyond, strict=True)
        if stop is not None and -step < 2 * (stop - end) < max(2 * step, (stop - onset) / 4)
        # What lies on the grid, but for rounding, may be meant so.
        if 4 * min(off, step - off) > near or abs(stop - end) <= near
    ]
    gates = [gate for sign in (1, -1) if (gate := _gate(missed, len(notes), sign))]
    late = max((gate.ticks for gate in gates if gate.sign < 0), default=0)
    lines = [*starts, sum(bars[-1])] if bars else starts
    moved: list[Sounding] = []
    for (onset, end, pitch), stop, off in zip(notes, following, beyond, strict=True):
        meant = _nearest(lines, end) if stop is None else stop
        gap = meant - end
        close = -step < 2 * gap and gap + late < step - near and abs(gap) > near
        place = meant if close and meant > onset else end
        for gate in gates if place == end else []:
            place = _meant(onset, end, stop, end - off, step, near, gate)
        moved.append((onset, place, pitch))
    return moved


def _nearest(lines: list[int], place: int) -> int:
    """The one of sorted lines that is nearest to a place."""
    after = bisect_right(lines, place)
    return min(lines[max(after - 1, 0) : after + 1], key=lambda line: abs(line - place))


def _gate(missed: list[tuple[int, int]], count: int, sign: int) -> "_Gate | None":
    """What a file of so many notes takes off them or adds to them, if most show it."""
    alike = sorted((sign * gap / full, sign * gap) for gap, full in missed if sign * gap > 0)
    return None if 2 * len(alike) < count else _Gate(sign, *alike[len(alike) // 2])


class _Gate(NamedTuple):
    """What a file takes off its notes (`sign` 1) or adds to them (-1)."""

    sign: int
    share: float
    """Of a note's length."""
    ticks: int


def _meant(
    onset: int, end: int, stop: int | None, line: int, step: int, near: int, gate: _Gate
) -> int:
    """Where a note was meant to end: at the next onset, `stop`, at a grid line, or as played.

    `line` is the last grid line before its end.
    """
    most = near + max(gate.ticks, gate.share * (end - onset) / (1 - gate.sign * gate.share))
    reach = int(most) // step + 2
    places = [*(line + step * number for number in range(-reach, reach + 1)), stop]
    found = {
        place: min(abs(gap - gate.ticks), abs(gap - gate.share * (place - onset)))
        for place in places
        if place is not None and onset < place and (stop is None or place <= stop)
        for gap in [gate.sign * (place - end)]
        if -near <= gap <= most
    }
    meant = min(found, key=lambda place: found[place], default=end)
    if stop in found and found[stop] <= found[meant] + near:
        meant = stop
    return meant if abs(meant - end) > near else end


def _above(values: list[int], bound: int) -> int | None:
    """Return the first of sorted values above a bound."""
    place = bisect_right(values, bound)
    return values[place] if place < len(values) else None


def _unit(melody: Melody, steps_per_beat: int, tolerance: Fraction) -> int:
    """Parts of a quarter note in which all is whole."""
    denominators = {steps_per_beat, tolerance.denominator}
    for note in melody.notes:
        denominators |= {note.onset.denominator, note.duration.denominator}
    for bar in melody.bars:
        denominators |= {bar.start.denominator, bar.length.denominator}
    return lcm(*denominators)


def _in(unit: int, value: Fraction) -> int:
    """Return quarter notes as a number of units."""
    return value.numerator * (unit // value.denominator)


def _tokens(start: int, length: int, notes: list[Sounding], step: int, tolerance: int) -> list[int]:
    """Return the bar's tokens, empty where something is off the grid."""
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


def join(
    bars: UInt8[np.ndarray, "B bars steps"],
    held: Integer[np.ndarray, "B"],
    form: MelodyFormat,
) -> tuple[UInt8[np.ndarray, "B T"], Bool[np.ndarray, "B"], Bool[np.ndarray, "B"]]:
    """Join consecutive bars of absolute tokens to segments of `form`'s tokens.

    `held` is the MIDI pitch sounding over each segment's start, where one does. Such a note is
    struck again there. Returns the tokens, which segments were struck again, and which lie within
    the pitch range of `form` (the tokens of the others mean nothing).
    """
    absolute = bars.reshape(len(bars), bars.shape[1] * bars.shape[2]).copy()
    struck_again = absolute[:, 0] == HOLD
    absolute[struck_again, 0] = FIRST_PITCH + held[struck_again]
    onset = absolute >= FIRST_PITCH
    pitch = absolute.astype(np.int64) - FIRST_PITCH
    in_range = (~onset | ((pitch >= form.lowest) & (pitch <= form.highest))).all(axis=1)
    tokens = np.where(onset, absolute - form.lowest, absolute)
    return tokens.astype(np.uint8), np.asarray(struck_again), np.asarray(in_range)


def segment(bars: Sequence[GridBar], form: MelodyFormat) -> UInt8[np.ndarray, "T"]:
    """Make one segment's tokens from `form.bars_per_segment` consecutive bars.

    A note held over the segment's start is struck again there. Raises `UserError` where a bar is
    missing, rejected, of a meter or on a grid that `form` does not have, or out of its range.
    """
    if len(bars) != form.bars_per_segment:
        raise UserError(f"a segment has {form.bars_per_segment} bars, but {len(bars)} were given")
    for number, bar in enumerate(bars, start=1):
        if bar.tokens is None:
            raise UserError(f"bar {number} of the segment can't be used: {bar.reason}")
        if bar.meter not in form.meters or len(bar.tokens) != form.steps_per_bar:
            raise UserError(
                f"bar {number} of the segment has {len(bar.tokens)} steps of {bar.meter}; the model"
                f" takes {form.steps_per_bar} steps of {' or '.join(form.meters)}"
            )
    tokens, _, in_range = join(
        np.array([[bar.tokens for bar in bars]], dtype=np.uint8),
        np.array([bars[0].held or 0]),
        form,
    )
    if not in_range[0]:
        raise UserError(
            f"the segment has a note outside the model's pitches {form.lowest} to {form.highest}"
            " (MIDI numbers): transpose it"
        )
    return np.asarray(tokens[0])
