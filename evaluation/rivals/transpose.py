"""Transposition: the right half is moved to the left one's key."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64

from cf_core.melody import FIRST_PITCH, MelodyFormat
from evaluation.rivals.base import Batch, Look, Rival
from evaluation.statistics import DIATONIC, TokenPairs, time_classes
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
        left, right = (core.decode_tokens(half, batch.kinds) for half in pair)
        shifts = find_shifts((left, right), core.form)[:, None]
        moved = np.where(right >= FIRST_PITCH, right + shifts, right)
        encoded = core.encode_mean(moved).to(pair[1])
        is_moved = torch.from_numpy(shifts != 0).to(encoded.device)
        outputs = pair[0].clone(), torch.where(is_moved, encoded, pair[1])
        for count in batch.counts:
            yield Step(count, outputs, decoder_calls=2)


def find_shifts(tokens: TokenPairs, form: MelodyFormat) -> Int64[np.ndarray, "B"]:
    """Find how many semitones upwards the right half of each pair is moved; 0 without notes."""
    left, right = (time_classes(half, form) @ DIATONIC for half in tokens)
    fits = [(left + np.roll(right, shift, axis=1)).max(axis=1) for shift in _SHIFTS]
    notes = tokens[1].astype(np.int64)
    highest = notes.max(axis=1, keepdims=True) + _SHIFTS
    lowest = np.where(notes >= FIRST_PITCH, notes, form.vocabulary).min(axis=1, keepdims=True)
    within = (lowest + _SHIFTS >= FIRST_PITCH) & (highest < form.vocabulary)
    return np.asarray(_SHIFTS[np.where(within, np.stack(fits, axis=1), -1).argmax(axis=1)])
