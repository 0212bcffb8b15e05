"""Transposition: the right half is moved to the left one's key."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cf_core.kinds import on_device
from cf_core.melody import FIRST_PITCH, MelodyFormat
from evaluation.rivals.base import Batch, Look, Rival
from evaluation.statistics import DIATONIC, NotePairs, time_classes
from evaluation.transforms import Step

_SHIFTS = np.array(sorted(range(-6, 6), key=abs))
"""Transpositions in semitones, the smallest first."""


@dataclass(frozen=True)
class Transpose(Rival):
    """The right half is transposed so that one scale fits both halves.

    Of the transpositions from -6 to 5 semitones that stay within the pitch range, it takes the one
    after which a single diatonic scale holds the decoded notes of both halves for the longest time;
    of equals, the smallest. The moved notes are encoded to their posterior mean. The left half, and
    a right half that already fits, stay as they are. More iterations than one change nothing.
    """

    name = "transpose"
    look = Look("transposition", "#999933", "h", (0.0, (1.0, 1.0)))
    limits = "it has one setting, so one distance"

    def steps(self, batch: Batch, /) -> Iterator[Step]:
        """As `Rival.steps` says."""
        core, pair = batch.tools.core, batch.pair
        left, right = (core.decode_notes(half, batch.kinds) for half in pair)
        shifts = find_shifts((left, right), core.form)[:, None]
        moved = torch.where(right >= FIRST_PITCH, right + shifts, right)
        outputs = pair[0].clone(), torch.where(shifts != 0, core.encode_mean(moved), pair[1])
        for count in batch.counts:
            yield Step(count, outputs, decoder_calls=2)


def find_shifts(tokens: NotePairs, form: MelodyFormat) -> Int64[Tensor, "B"]:
    """Find how many semitones upwards the right half of each pair is moved; 0 without notes."""
    scales, shifts = (on_device(table, tokens[0].device) for table in (DIATONIC, _SHIFTS))
    # As whole numbers, so that equal fits are ties.
    left, right = ((time_classes(half, form)[:, :, None] * scales).sum(1) for half in tokens)
    fits = [(left + right.roll(shift, 1)).amax(1) for shift in _SHIFTS.tolist()]
    notes = tokens[1].long()
    highest = notes.amax(1, keepdim=True) + shifts
    lowest = torch.where(notes >= FIRST_PITCH, notes, form.vocabulary).amin(1, keepdim=True)
    within = (lowest + shifts >= FIRST_PITCH) & (highest < form.vocabulary)
    return shifts[torch.where(within, torch.stack(fits, 1), -1).argmax(1)]
