"""Melodies as notes, and as the tokens of segments.

A grid step holds one token: `REST`, `HOLD` (the sounding note goes on), or the onset of a pitch.
Positions and durations of notes are in quarter notes, as exact fractions.

Segments of several meters have different numbers of steps. Each is a row of `T` tokens: those of
its steps, then as many *marks* as are left, which say what its meter is. Marks are below 0, so
that nothing takes them for an onset, a hold or a rest.

Letters in shapes: `B` segments, `T` tokens of a segment, `V` tokens of the vocabulary, `K` kinds of
bars, `W` slots of a segment.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer

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
    """One true bar: `start` and `length` in quarter notes, `meter` such as "6/8", or `FREE`."""

    start: Fraction
    length: Fraction
    meter: str


FREE = "none"
"""The meter of music without one: its bars are of any length, so that none can be complete."""


def bar_length(meter: str) -> Fraction:
    """Length in quarter notes of a full bar of `meter` ("3/4" and "6/8" give 3, `FREE` 0)."""
    if meter == FREE:
        return Fraction(0)
    beats, unit = meter.split("/")
    return Fraction(4 * int(beats), int(unit))


class Tempo(NamedTuple):
    """From `start` (quarter notes) on, music goes at `speed` quarter notes per minute."""

    start: Fraction
    speed: float


DEFAULT_TEMPO = 120.0
"""Quarter notes per minute where a source gives no tempo."""


@dataclass(frozen=True)
class Melody:
    """One monophonic song: notes by onset, and the true bars that cover them."""

    id: str
    title: str
    notes: tuple[Note, ...]
    bars: tuple[Bar, ...]
    tempos: tuple[Tempo, ...] = ()
    """Sorted by start, as the source gives them."""
    played: bool = False
    """Whether notes end where a player released the keys: see `cf_core.gates`."""

    @property
    def tempo(self) -> float:
        """Quarter notes per minute at the start."""
        return self.tempo_at(Fraction(0))

    def tempo_at(self, position: Fraction) -> float:
        """Quarter notes per minute at a position; 120 before the first tempo of the source."""
        speeds = [tempo.speed for tempo in self.tempos if tempo.start <= position]
        return speeds[-1] if speeds else DEFAULT_TEMPO


_MOST_STEPS = 4096
"""Most steps of a segment: what describes the steps must fit into the memory."""
MAX_STEPS_PER_BEAT = 24
"""Finest grid: three times the tolerance of `cf_core.grid` is still less than a step."""

COMMON_METERS = ("4/4", "2/2", "2/4", "3/4", "3/8", "6/8", "9/8", "12/8")
"""What `common` stands for in `MelodyFormat.meters`."""


@dataclass(frozen=True)
class MelodyFormat(Settings):
    """Which segments a model knows: their meters, grid, length and pitch range.

    Meters whose bars have the same steps are of one *kind*, as 4/4 and 2/2 are. A meter that counts
    eighths is of another kind than one that counts quarters or halves: 6/8 is not 3/4.

    Raises `ValueError`, naming the setting, for a value out of range, and for a meter whose bars do
    not have a whole number of steps.

    >>> from cf_core.melody import MelodyFormat
    >>> form = MelodyFormat(meters=("6/8",), bars_per_segment=4)
    >>> form.steps, form.vocabulary
    (48, 63)
    >>> every = MelodyFormat(meters=("common",), steps_per_beat=12, subdivisions=(4, 3))
    >>> every.kinds
    ('4/4', '2/4', '3/4', '3/8', '6/8', '9/8', '12/8')
    >>> every.lengths  # steps of a segment of each kind
    (48, 24, 36, 12, 24, 36, 48)
    """

    may_be_zero = ("lowest",)

    meters: tuple[str, ...] = ("4/4", "2/2")
    """Meters of the segments; `common` stands for 4/4, 2/2, 2/4, 3/4, 3/8, 6/8, 9/8 and 12/8."""
    steps_per_beat: int = 4
    """Grid lines per quarter note: 4 is the 16th grid, 12 also holds triplets."""
    subdivisions: tuple[int, ...] = ()
    """Into how many equal parts a quarter note is divided where steps begin; by default at every
    grid line. `[4, 3]` has 16ths and triplets in six steps. Meters that count eighths have the
    first division alone, as their triplets are written out."""
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
        named = [COMMON_METERS if meter == "common" else (meter,) for meter in self.meters]
        every = dict.fromkeys(meter for some in named for meter in some)
        object.__setattr__(self, "meters", tuple(every))
        self._check_grid()
        if not 0 <= self.lowest < self.highest <= 127:
            raise ValueError("lowest, highest: must satisfy 0 <= lowest < highest <= 127")
        if self.steps > _MOST_STEPS:
            raise ValueError(
                f"bars_per_segment: {self.bars_per_segment} bars have more than {_MOST_STEPS} steps"
            )

    def _check_grid(self) -> None:
        for meter in self.meters:
            if not re.fullmatch(r"[1-9]\d?/(1|2|4|8|16|32)", meter):
                raise ValueError(f"meters: {meter} is not a meter; write it as 4/4 or 6/8")
        if self.steps_per_beat > MAX_STEPS_PER_BEAT:
            raise ValueError(f"steps_per_beat: {self.steps_per_beat} is above {MAX_STEPS_PER_BEAT}")
        for parts in self.subdivisions:
            if type(parts) is not int or parts < 1 or self.steps_per_beat % parts:
                raise ValueError(
                    f"subdivisions: {parts} parts of a quarter note are not on a grid of"
                    f" {self.steps_per_beat} lines; set steps_per_beat to a multiple of {parts}"
                )
        for meter in self.meters:
            if any((bar_length(meter) * parts).denominator > 1 for parts in self._divisions(meter)):
                raise ValueError(
                    f"meters: {meter} must have bars of a whole number of steps at steps_per_beat"
                    f" {self.steps_per_beat}"
                )

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The first meter of each kind, in the order of `meters`."""
        first: dict[tuple[Fraction, bool], str] = {}
        for meter in self.meters:
            first.setdefault(_kind(meter), meter)
        return tuple(first.values())

    def find_kind(self, meter: str) -> int:
        """Index into `kinds` of the kind of a meter. Raises `KeyError` for one that is unknown."""
        if meter not in self.meters:
            raise KeyError(meter)
        return [_kind(each) for each in self.kinds].index(_kind(meter))

    @cached_property
    def bars(self) -> tuple[tuple[int, ...], ...]:
        """Of each kind, the grid lines of its bar at which steps begin."""
        return tuple(
            tuple(
                sorted(
                    {
                        place * self.steps_per_beat // parts
                        for parts in self._divisions(meter)
                        for place in range(ceil(bar_length(meter) * parts))
                    }
                )
            )
            for meter in self.kinds
        )

    def count_lines(self, meter: str) -> int:
        """Count the grid lines of a bar of `meter`, one of `meters`."""
        return int(bar_length(meter) * self.steps_per_beat)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Steps of a segment of each kind."""
        return tuple(len(bar) * self.bars_per_segment for bar in self.bars)

    @property
    def steps(self) -> int:
        """`T`: steps of the longest segment, and a mark if there are several kinds."""
        return max(self.lengths) + (len(self.kinds) > 1)

    @property
    def vocabulary(self) -> int:
        """`V`, the number of tokens: rest, hold, and one onset per pitch. Marks are not counted."""
        return FIRST_PITCH + self.highest - self.lowest + 1

    def find_kinds(self, tokens: Integer[np.ndarray, "B T"]) -> Int64[np.ndarray, "B"]:
        """Index into `kinds` of the kind of each segment, which its last mark says."""
        if len(self.kinds) == 1:
            return np.zeros(len(tokens), np.int64)
        return -1 - tokens[:, -1].astype(np.int64)

    def put_marks(
        self, tokens: Integer[np.ndarray, "B T"], kinds: Integer[np.ndarray, "B"]
    ) -> Integer[np.ndarray, "B T"]:
        """Replace what follows the last step of each segment by marks of its kind."""
        return np.where(self.marks[kinds], -1 - kinds[:, None], tokens).astype(np.int16)

    @cached_property
    def marks(self) -> Bool[np.ndarray, "K T"]:
        """Of each kind, where marks stand: behind the last step."""
        return np.arange(self.steps) >= np.array(self.lengths)[:, None]

    @cached_property
    def step_lengths(self) -> Float64[np.ndarray, "K T"]:
        """Of each kind, how long its steps are in quarter notes; 0 for marks."""
        lengths = np.zeros((len(self.kinds), self.steps))
        for kind, (meter, bar) in enumerate(zip(self.kinds, self.bars, strict=True)):
            own = np.diff((*bar, self.count_lines(meter))) / self.steps_per_beat
            lengths[kind, : self.lengths[kind]] = np.tile(own, self.bars_per_segment)
        return lengths

    @cached_property
    def step_lines(self) -> Int64[np.ndarray, "K T"]:
        """Of each kind, how many lines of the grid its steps span; 0 for marks."""
        lines: np.ndarray = np.rint(self.step_lengths * self.steps_per_beat).astype(np.int64)
        return lines

    @cached_property
    def slots(self) -> Int64[np.ndarray, "K W"]:
        """Of each kind, the step in each slot; -1 for none.

        Bars start at the same slots in all kinds: what is learned of a slot is of one place of a
        bar, whatever its meter.
        """
        widest = max(map(len, self.bars))
        slots = np.full((len(self.kinds), self.bars_per_segment, widest), -1)
        for kind, bar in enumerate(self.bars):
            steps = np.arange(self.lengths[kind]).reshape(self.bars_per_segment, -1)
            slots[kind, :, : len(bar)] = steps
        return slots.reshape(len(self.kinds), -1)

    @cached_property
    def slot_of(self) -> Int64[np.ndarray, "K T"]:
        """Of each kind, the slot of each step; 0 for marks."""
        found = np.zeros((len(self.kinds), self.steps), np.int64)
        for kind, slots in enumerate(self.slots):
            found[kind, slots[slots >= 0]] = np.flatnonzero(slots >= 0)
        return found

    @property
    def divisions(self) -> tuple[int, ...]:
        """Into how many equal parts a quarter note is divided where steps begin."""
        return self.subdivisions or (self.steps_per_beat,)

    def _divisions(self, meter: str) -> tuple[int, ...]:
        return self.divisions[:1] if counts_eighths(meter) else self.divisions


def counts_eighths(meter: str) -> bool:
    """Whether a meter counts eighths (or shorter notes), not quarters or halves."""
    return int(meter.split("/")[1]) >= 8


def _kind(meter: str) -> tuple[Fraction, bool]:
    return bar_length(meter), counts_eighths(meter)


def is_melody(tokens: Integer[np.ndarray, "B T"]) -> Bool[np.ndarray, "B"]:
    """Whether each segment is a valid melody: it has two onsets or more, and every hold has a note.

    A hold at the start or after a rest has no note. All pitches of a vocabulary are in range.
    """
    before = np.concatenate((np.full_like(tokens[:, :1], REST), tokens[:, :-1]), axis=1)
    hangs = ((tokens == HOLD) & (before == REST)).any(axis=1)
    valid: np.ndarray = ~hangs & ((tokens >= FIRST_PITCH).sum(axis=1) >= 2)
    return valid


def to_notes(tokens: Integer[np.ndarray, "T"], form: MelodyFormat) -> list[Note]:
    """Return the notes of one segment's tokens, with positions from the segment's start.

    A hold with no note before it is silent, as a rest is.
    """
    notes: list[Note] = []
    kind = int(form.find_kinds(tokens[None])[0])
    bar, length = form.bars[kind], bar_length(form.kinds[kind])
    starts = [
        number * length + Fraction(line, form.steps_per_beat)
        for number in range(form.bars_per_segment)
        for line in bar
    ]
    ends = [*starts[1:], length * form.bars_per_segment]
    sounding = False
    for token, start, end in zip(tokens.tolist(), starts, ends, strict=False):
        if token >= FIRST_PITCH:
            notes.append(Note(start, end - start, token - FIRST_PITCH + form.lowest))
            sounding = True
        elif token == HOLD and sounding:
            last = notes[-1]
            notes[-1] = Note(last.onset, last.duration + end - start, last.pitch)
        else:
            sounding = False
    return notes
