"""Melodies as notes, and as tokens on a grid.

A grid step holds one token: `REST`, `HOLD` (the sounding note goes on), or the onset of a pitch.
Positions and durations of notes are in quarter notes, as exact fractions.

Letters in shapes: `B` segments, `T` steps of a segment, `V` tokens of the vocabulary.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Integer

REST = 0
HOLD = 1
FIRST_PITCH = 2
"""Token of the lowest pitch; the token of MIDI pitch `p` is `FIRST_PITCH + p - lowest`."""


@dataclass(frozen=True)
class Note:
    """One note: `onset` and `duration` in quarter notes, `pitch` as a MIDI number (0-127)."""

    onset: Fraction
    duration: Fraction
    pitch: int


@dataclass(frozen=True)
class Bar:
    """One true bar: `start` and `length` in quarter notes, `meter` as written, such as "6/8"."""

    start: Fraction
    length: Fraction
    meter: str


def bar_length(meter: str) -> Fraction:
    """Length in quarter notes of a full bar of `meter` ("3/4" gives 3, "6/8" gives 3)."""
    beats, unit = meter.split("/")
    return Fraction(4 * int(beats), int(unit))


@dataclass(frozen=True)
class MelodyFormat:
    """Which segments a model knows: their meters, grid, length and pitch range."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

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
        if not self.meters:
            raise ValueError("meters: at least one is needed, such as 4/4")
        steps = {bar_length(meter) * self.steps_per_beat for meter in self.meters}
        if len(steps) != 1 or any(count.denominator != 1 for count in steps):
            raise ValueError(
                f"meters: {', '.join(self.meters)} must have bars of one whole number of steps"
                f" at steps_per_beat {self.steps_per_beat}"
            )
        if self.bars_per_segment < 1:
            raise ValueError("bars_per_segment: must be at least 1")
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


def to_notes(tokens: Integer[np.ndarray, "T"], form: MelodyFormat) -> list[Note]:
    """The notes that one segment's tokens write down, counted from the segment's start.

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
