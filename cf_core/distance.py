"""Distances of a transformed pair from its input, and of its notes from the training segments.

Letters in shapes: `B` segments or pairs, `N` segments of a bank, `Z` latent dimensions, `T` steps.
Tokens are below 256, as all vocabularies are.
"""

import numpy as np
from jaxtyping import Float, Int, Integer
from rapidfuzz.distance.Levenshtein import distance as levenshtein
from rapidfuzz.process import cdist, cpdist
from torch import Tensor

from cf_core.losses import Pair, distance

z_distance = distance
"""Equation 7 between outputs and the original inputs, `[B]`: the study's similarity axis."""


def z_weighted(before: Pair, after: Pair, sigma_bar: Float[Tensor, "Z"]) -> Float[Tensor, "B"]:
    """Mean of `((z' - z) / σ̄)²` over the dimensions of both halves.

    The "weighted z distance" of Latent Constraints (Engel et al. 2018).
    """
    halves = [
        (((z_after - z) / sigma_bar) ** 2).mean(-1)
        for z, z_after in zip(before, after, strict=True)
    ]
    return (halves[0] + halves[1]) / 2


def larger_z_distance(
    before: Pair, after: Pair, sigma_bar: Float[Tensor, "Z"]
) -> Float[Tensor, "B"]:
    """Twice the larger of the two halves' distances by equation 7."""
    left = distance(before, (after[0], before[1]), sigma_bar)
    right = distance(before, (before[0], after[1]), sigma_bar)
    return 2 * left.maximum(right)


def edit_distance(
    before: Integer[np.ndarray, "B T"], after: Integer[np.ndarray, "B T"]
) -> Int[np.ndarray, "B"]:
    """Levenshtein distance between the token sequences of each row, in tokens (0…T)."""
    return np.asarray(cpdist(_texts(before), _texts(after), scorer=levenshtein, dtype=np.int32))


class SegmentBank:
    """Segments in which the nearest segment to a given one is looked up."""

    def __init__(self, segments: Integer[np.ndarray, "N T"]) -> None:
        self._texts = _texts(np.unique(segments, axis=0))

    def nearest(self, segments: Integer[np.ndarray, "B T"]) -> Int[np.ndarray, "B"]:
        """Edit distance of each segment to the nearest in the bank; 0 where it is in the bank."""
        distances = cdist(_texts(segments), self._texts, scorer=levenshtein, dtype=np.int32)
        return np.asarray(distances.min(axis=1))


def _texts(segments: Integer[np.ndarray, "B T"]) -> list[bytes]:
    """Each segment as a string of one character per token."""
    return [row.tobytes() for row in segments.astype(np.uint8)]
