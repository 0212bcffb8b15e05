"""Melodies as notes, and as the tokens of segments.

A grid step holds one token: `REST`, `HOLD` (the sounding note goes on), or the onset of a pitch.
Positions and durations of notes are in quarter notes, as exact fractions.

Letters in shapes: `B` segments, `T` steps of a segment, `V` tokens of the vocabulary.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

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


MAX_STEPS_PER_BEAT = 24
"""Finest grid: three times the tolerance of `cf_core.grid` is still less than a step."""


@dataclass(frozen=True)
class MelodyFormat(Settings):
    """Which segments a model knows: their meters, grid, length and pitch range.

    Raises `ValueError`, naming the setting, for a value out of range, and for meters whose bars do
    not all have the same whole number of steps.

    >>> from cf_core.melody import MelodyFormat
    >>> form = MelodyFormat(meters=("6/8",), bars_per_segment=4)
    >>> form.steps, form.vocabulary
    (48, 63)
    """

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
                raise ValueError(f"meters: {meter} is not a meter; write it as 4/4 or 6/8")
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
