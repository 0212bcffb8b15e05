"""How far a transformed pair is from its input: in latents, and in decoded notes.

Letters in shapes: `B` pairs, `Z` latent dimensions, `T` steps.
"""

import numpy as np
from jaxtyping import Float, Int, Integer
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


def edit_distance(
    before: Integer[np.ndarray, "B T"], after: Integer[np.ndarray, "B T"]
) -> Int[np.ndarray, "B"]:
    """Levenshtein distance between the token sequences of each row, in tokens (0…T)."""
    rows, steps = before.shape
    previous = np.tile(np.arange(steps + 1), (rows, 1))
    for i in range(1, steps + 1):
        current = np.empty_like(previous)
        current[:, 0] = i
        substituted = previous[:, :-1] + (before[:, i - 1 : i] != after)
        best = np.minimum(substituted, previous[:, 1:] + 1)
        for j in range(1, steps + 1):
            np.minimum(best[:, j - 1], current[:, j - 1] + 1, out=current[:, j])
        previous = current
    return previous[:, -1]
