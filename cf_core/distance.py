"""Distances of a transformed pair from its input, and of its notes from the training segments.

Letters in shapes: `B` segments or pairs, `N` segments of a bank, `Z` latent dimensions, `T` steps.
Tokens are below 256, as all vocabularies are.
"""

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, Integer
from rapidfuzz.distance.Levenshtein import distance as levenshtein
from rapidfuzz.process import cdist, cpdist
from torch import Tensor
from torch.nn import functional

from cf_core.losses import Pair, distance
from cf_core.melody import REST

_KNOWN = 100_000
"""Most segments whose nearest one is kept, at about 200 bytes each."""

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


def count_edits(
    before: Integer[Tensor, "B T"], after: Integer[Tensor, "B T"]
) -> Int64[Tensor, "B"]:
    """`edit_distance` of tensors, where they are.

    On the CPU it is that of the library. On other devices all rows go through the table of Wagner
    & Fischer (1974) together, line by line, less the number of each place: what comes from the left
    in a line, `d[j] <= d[j - 1] + 1`, is then a running minimum.
    """
    if before.device.type == "cpu":
        return torch.from_numpy(edit_distance(before.numpy(), after.numpy())).long()
    replaced = (before[:, :, None] != after[:, None]).long() - 1
    line = before.new_zeros((len(before), before.shape[1] + 1), dtype=torch.int64)
    for number, own in enumerate(replaced.unbind(1), 1):
        least = (line[:, :-1] + own).minimum(line[:, 1:] + 1)
        line = functional.pad(least, (1, 0), value=number).cummin(1).values
    return line[:, -1] + before.shape[1]


class SegmentBank:
    """Segments in which the nearest segment to a given one is looked up.

    What was looked up is kept, since outputs that differ little share most of their halves.
    """

    def __init__(self, segments: Integer[np.ndarray, "N T"]) -> None:
        unique = np.unique(segments, axis=0)
        steps = _count_steps(unique)
        self._texts = {int(n): _texts(unique[steps == n]) for n in np.unique(steps)}
        self._known: dict[bytes, int] = {}

    def nearest(self, segments: Integer[np.ndarray, "B T"]) -> Int[np.ndarray, "B"]:
        """Edit distance of each segment to the nearest in the bank; 0 where it is in the bank."""
        texts, steps = _texts(segments), _count_steps(segments)
        fresh = {text: n for text, n in zip(texts, steps, strict=True) if text not in self._known}
        if len(self._known) + len(fresh) > _KNOWN:
            self._known.clear()
            fresh = dict(zip(texts, steps, strict=True))
        for count in set(fresh.values()):
            own = [text for text, n in fresh.items() if n == count]
            self._known |= zip(own, self._search(own, int(count)), strict=True)
        return np.array([self._known[text] for text in texts], np.int32)

    def _search(self, texts: list[bytes], steps: int) -> list[int]:
        """Find the distances of segments of so many steps.

        All segments have the same number of tokens, so the distance of two is at least the
        difference of their numbers of steps. Where one as near as that was found, the others are
        not looked at.
        """
        best = np.full(len(texts), np.iinfo(np.int32).max)
        for count in sorted(self._texts, key=lambda count: abs(count - steps)):
            rows = np.flatnonzero(best > abs(count - steps))
            if len(rows):
                own = [texts[row] for row in rows]
                found = cdist(own, self._texts[count], scorer=levenshtein, dtype=np.int32)
                best[rows] = np.minimum(best[rows], found.min(axis=1))
        distances: list[int] = best.tolist()
        return distances


def _count_steps(segments: Integer[np.ndarray, "B T"]) -> Int[np.ndarray, "B"]:
    """How many tokens of each segment stand for steps; the others mark its kind of bars."""
    return np.asarray((segments >= REST).sum(axis=1))


def _texts(segments: Integer[np.ndarray, "B T"]) -> list[bytes]:
    """Each segment as a string of one character per token."""
    return [row.tobytes() for row in segments.astype(np.uint8)]
