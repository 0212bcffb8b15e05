"""Everything that maps pairs to pairs: fusion, and what it is compared with.

A transform takes input latents and yields a `Step` at each requested iteration count: the outputs
so far and what they cost. None of them sees a judge.

Letters in shapes: `B` pairs, `Z` latent dimensions, `S` style dimensions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cf_core.fusion import Generator
from cf_core.losses import Pair
from evaluation.classifier import SearchClassifier


@dataclass(frozen=True)
class Step:
    """Outputs after `iteration` iterations, and the calls of the search classifier per pair."""

    iteration: int
    outputs: Pair
    classifier_calls: int = 0


def identity(pair: Pair) -> Iterator[Step]:
    """The inputs themselves, as iteration 0."""
    yield Step(0, pair)


def fusion(
    generator: Generator,
    pair: Pair,
    style: Float[Tensor, "B S"],
    counts: Sequence[int],
    weight: float | None = None,
) -> Iterator[Step]:
    """Iterated fusion: outputs fed back in with the same style.

    A conditional generator is read at λ = `weight`.
    """
    with torch.no_grad():
        outputs = generator.iterate(pair, style, counts, weight)
    for count in counts:
        yield Step(count, outputs[count])


def latent_search(
    classifier: SearchClassifier,
    pair: Pair,
    step_size: float,
    counts: Sequence[int],
    random: torch.Generator,
) -> Iterator[Step]:
    """LP: iterated random search for a higher output of the search classifier.

    Each iteration proposes `z + η ε`, with η the step size and `ε ~ N(0, 1)` over both halves, and
    keeps the proposal where the classifier rises.
    """
    latent_dim = pair[0].shape[1]
    z = torch.cat(pair, -1)
    with torch.no_grad():
        logits = classifier(pair)
    for count in range(1, max(counts) + 1):
        with torch.no_grad():
            noise = torch.randn(z.shape, generator=random)
            proposal = torch.add(z, noise, alpha=step_size)
            proposed = classifier((proposal[:, :latent_dim], proposal[:, latent_dim:]))
        rises = proposed > logits
        z = torch.where(rises[:, None], proposal, z)
        logits = torch.where(rises, proposed, logits)
        if count in counts:
            yield Step(count, (z[:, :latent_dim], z[:, latent_dim:]), count + 1)
