"""Equations 1-7 of the Connective Fusion poster (Akama, 2020), one function each.

A discriminator's output is given as its logit, `D = sigmoid(logit)`, so that logarithms are exact
(`softplus`). The poster prints the negative loss as `-(1 - log D)`. It is read here as the
standard `-log(1 - D)`: the printed form is unbounded below, and its gradient vanishes exactly
where D is fooled.

Letters in shapes: `N` trials side by side (absent for one), `B` (or `B1`, `B2`, … where they may
differ) pairs, `Z` latent dimensions.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

Pair = tuple[Float[Tensor, "*B Z"], Float[Tensor, "*B Z"]]
"""A left and a right latent."""


def positive(logits: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """`L_p = -log D`, before equation 1."""
    return softplus(-logits)


def negative(logits: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """`L_n = -log(1 - D)`, before equation 1; see the module's note on the printed form."""
    return softplus(logits)


def discriminator_loss(
    positive_part: Float[Tensor, "*N"], negative_part: Float[Tensor, "*N"]
) -> Float[Tensor, "*N"]:
    """Equation 1: `L_dis = L_dis^p + L_dis^n`."""
    return positive_part + negative_part


def discriminator_positive(paired: Float[Tensor, "*N B"]) -> Float[Tensor, "*N"]:
    """Equation 2: latents of adjacent segments count as real. Takes D's logits on them."""
    return positive(paired).mean(-1)


def discriminator_negative(
    unpaired: Float[Tensor, "*N B1"],
    prior: Float[Tensor, "*N B2"],
    fused_unpaired: Float[Tensor, "*N B3"],
    fused_prior: Float[Tensor, "*N B4"],
) -> Float[Tensor, "*N"]:
    """Equation 3: four kinds of negatives, equally weighted as printed. Takes D's logits."""
    terms = (unpaired, prior, fused_unpaired, fused_prior)
    return torch.stack([negative(term).mean(-1) for term in terms]).sum(0)


def generator_loss(
    adversarial: Float[Tensor, "*N"], weighted_similarity: Float[Tensor, "*N"]
) -> Float[Tensor, "*N"]:
    """Equation 4: `L_gen = L_gen^p + λ L_sim`.

    `weighted_similarity` is equation 6 with each distance multiplied by its λ. For a single λ this
    is λ times equation 6; a conditional generator has another λ for every pair.
    """
    return adversarial + weighted_similarity


def generator_adversarial(
    fused_unpaired: Float[Tensor, "*N B1"], fused_prior: Float[Tensor, "*N B2"]
) -> Float[Tensor, "*N"]:
    """Equation 5: fused pairs should look real to D. Takes D's logits (non-saturating form)."""
    return positive(fused_unpaired).mean(-1) + positive(fused_prior).mean(-1)


def similarity_loss(
    distance_unpaired: Float[Tensor, "*N B1"], distance_prior: Float[Tensor, "*N B2"]
) -> Float[Tensor, "*N"]:
    """Equation 6: the mean distance of equation 7 over both kinds of inputs."""
    return distance_unpaired.mean(-1) + distance_prior.mean(-1)


def distance(before: Pair, after: Pair, sigma_bar: Float[Tensor, "Z"]) -> Float[Tensor, "*B"]:
    """Equation 7: `(1/Z) ‖σ̄⁻² log(1 + (z' - z)²)‖₁`, summed over the two halves."""
    halves = [
        (torch.log1p((z_after - z) ** 2) / sigma_bar**2).mean(-1)
        for z, z_after in zip(before, after, strict=True)
    ]
    return halves[0] + halves[1]
