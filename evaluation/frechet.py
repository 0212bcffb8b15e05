"""The Fréchet distance of a set of pairs from real neighbours, as the FID of images measures it.

Both sets are described by the musical features of `evaluation.likeness`, and each is taken for a
Gaussian. The distance is small where outputs are like real neighbours on average and vary in the
same ways. Features are standardised by the real pairs and projected on the leading principal
components of these, so that a few hundred outputs suffice for a covariance.

Letters in shapes: `B` pairs, `P` real pairs, `F` features, `D` components.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from cf_core.training import limit_threads

COMPONENTS = 32
"""Most principal components that are kept."""
_SMALLEST = 1e-9
"""Smallest variance of a component, as a share of the largest; what varies less is left out."""


@dataclass(frozen=True)
class Gaussian:
    """A mean and a covariance."""

    mean: Float64[Tensor, "D"]
    covariance: Float64[Tensor, "D D"]

    @classmethod
    def fit(cls, points: Float64[Tensor, "B D"]) -> "Gaussian":
        """Fit to points; the covariance is shrunk towards a multiple of the identity.

        It is shrunk as far as its error, estimated from the points, asks for (Ledoit & Wolf 2004).
        """
        mean = points.mean(0)
        centred = points - mean
        sample = centred.T @ centred / len(points)
        identity = torch.eye(len(mean), dtype=sample.dtype, device=sample.device)
        target = sample.trace() / len(mean) * identity
        error = (centred.square().sum(1).square().mean() - sample.square().sum()) / len(points)
        apart = (sample - target).square().sum()
        share = torch.where(apart > 0, error / apart, 0.0).clamp(0, 1)
        return cls(mean, torch.lerp(sample, target, share))

    def distance(self, other: "Gaussian") -> float:
        """Squared Fréchet distance (Dowson & Landau 1982; Heusel et al. 2017), 0 and up."""
        values, vectors = torch.linalg.eigh(self.covariance)
        root = vectors * values.clamp_min(0).sqrt()
        # root is no symmetric root, but the eigenvalues are those of the product of both.
        shared = torch.linalg.eigvalsh(root.T @ other.covariance @ root).clamp_min(0).sqrt().sum()
        apart = (self.mean - other.mean).square().sum()
        total = apart + self.covariance.trace() + other.covariance.trace() - 2 * shared
        return max(0.0, float(total))


@dataclass(frozen=True)
class RealGaussian:
    """Real neighbours as a Gaussian of the principal components of their features."""

    mean: Float64[Tensor, "F"]
    directions: Float64[Tensor, "F D"]
    """Turn features less their mean into components, each feature in units of its deviation."""
    gaussian: Gaussian

    @classmethod
    def fit(cls, real: Float64[Tensor, "P F"]) -> "RealGaussian":
        """Fit the components and the Gaussian to the features of real pairs."""
        with limit_threads(1):  # sums are to add up alike in workers and elsewhere
            mean, deviation = real.mean(0), real.std(0, correction=0)
            scale = torch.where(deviation > 0, deviation, 1.0)
            standard = (real - mean) / scale
            values, vectors = torch.linalg.eigh(standard.T @ standard)
            kept = values[-COMPONENTS:] > _SMALLEST * values[-1]
            leading = vectors[:, -COMPONENTS:][:, kept]
            return cls(mean, leading / scale[:, None], Gaussian.fit(standard @ leading))

    def distance(self, features: Float64[Tensor, "B F"]) -> float:
        """Squared Fréchet distance of pairs with these features from the real pairs."""
        with limit_threads(1):
            return Gaussian.fit((features - self.mean) @ self.directions).distance(self.gaussian)
