"""Linear transport: the optimal map between two Gaussians, in closed form."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cf_core.losses import Pair
from evaluation.rivals.base import Batch, Look, Rival
from evaluation.rivals.climbing import split_halves
from evaluation.transforms import Step

_SMALLEST = 1e-6
"""Smallest eigenvalue that is kept, as a share of the largest."""


@dataclass(frozen=True)
class Transport(Rival):
    """The pairs move as a whole from unrelated halves towards related ones, by a linear map.

    Unrelated halves have a Gaussian whose covariance S0 lacks the blocks between the halves, real
    neighbours one with the covariance S1 of the training pairs, both with mean m. The optimal map
    from one to the other is z ↦ m + A (z - m) with A = S0^(-1/2) (S0^(1/2) S1 S0^(1/2))^(1/2)
    S0^(-1/2) (Peyré & Cuturi 2019, eq. 2.40). An output is z + w (A - I) (z - m), where w is 1 for
    the optimal map and grows by `step` with each iteration. Nothing is trained.
    """

    name = "transport"
    look = Look("linear transport", "#882255", "D", (0.0, (4.0, 1.0)))

    step: float = 0.125
    """How much w grows in each iteration."""
    iterations: tuple[int, ...] = tuple(range(4, 41))
    """Numbers of iterations after which outputs are kept."""

    def steps(self, batch: Batch, /) -> Iterator[Step]:
        """As `Rival.steps` says."""
        mean, matrix = find_transport(batch.tools.neighbours)
        joined = torch.cat(batch.pair, 1)
        moved = (joined - mean) @ (matrix.T - torch.eye(len(mean), device=mean.device))
        for count in batch.counts:
            yield Step(count, split_halves(joined + count * self.step * moved))


def find_transport(
    neighbours: Pair,
) -> tuple[Float[Tensor, "Z2"], Float[Tensor, "Z2 Z2"]]:
    """Return the mean m of the joined halves of real neighbours, and the matrix A."""
    joined = torch.cat(neighbours, 1).double()
    mean, joint = joined.mean(0), torch.cov(joined.T)
    half = len(mean) // 2
    apart = joint.clone()
    apart[:half, half:] = apart[half:, :half] = 0
    root, inverse = _power(apart, 0.5), _power(apart, -0.5)
    matrix = inverse @ _power(root @ joint @ root, 0.5) @ inverse
    return mean.to(neighbours[0].dtype), matrix.to(neighbours[0].dtype)


def _power(matrix: Float64[Tensor, "n n"], exponent: float) -> Float64[Tensor, "n n"]:
    """Raise a symmetric matrix without negative eigenvalues to a power."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    kept = values.clamp_min(_SMALLEST * values[-1])
    power: Tensor = vectors * kept**exponent @ vectors.T
    return power
