"""Functions shared by the rivals that climb the search classifier."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from cf_core.losses import Pair, distance, positive
from evaluation.rivals.base import Batch, Tools
from evaluation.transforms import Step


def search_randomly(
    batch: Batch,
    best: Float[Tensor, "B Z2"],
    centre: Float[Tensor, "B Z2"],
    spread: Float[Tensor, "B Z2"],
    proposals: int = 1,
) -> Iterator[Step]:
    """Draw proposals around `centre`, and keep the best in `best`, which may be the same tensor."""
    classifier, counts = batch.tools.classifier, batch.counts
    score, rate = classifier(split_halves(best)), classifier.scorer(proposals * len(best))
    proposed = best.new_empty(proposals, *best.shape)
    for count in range(1, counts[-1] + 1):
        proposed.normal_(generator=batch.random)
        torch.addcmul(centre, proposed, spread, out=proposed)
        keep_best(best, score, proposed, rate(proposed.flatten(0, 1)).view(proposals, -1))
        if count in counts:
            yield Step(count, split_halves(best.clone()), 1 + proposals * count)


def keep_best(
    best: Float[Tensor, "B Z2"],
    score: Float[Tensor, "B"],
    proposed: Float[Tensor, "K B Z2"],
    scores: Float[Tensor, "K B"],
) -> None:
    """Replace each row of `best` by its best proposal if that has a higher score."""
    top, which = scores.max(0)
    rises = top > score  # never where a score is NaN
    if best.device.type != "cpu":  # without waiting for how many rise
        chosen = proposed[0]
        if len(proposed) > 1:
            chosen = proposed.gather(0, which[None, :, None].expand(1, *best.shape))[0]
        torch.where(rises[:, None], chosen, best, out=best)
        torch.where(rises, top, score, out=score)
        return
    rises = rises.nonzero().squeeze(1)
    best[rises] = proposed[which[rises], rises]
    score[rises] = top[rises]


def split_halves(z: Float[Tensor, "B Z2"]) -> Pair:
    """Split joined rows into left and right halves."""
    left, right = z.chunk(2, 1)
    return left, right


def measure_objective(
    before: Pair, after: Pair, lambda_: Float[Tensor, "B"], tools: Tools
) -> Float[Tensor, "B"]:
    """`-log C(z') + λ L_dist(z, z')` of each row, to be minimised.

    C is the search classifier, λ is the row's own, and L_dist is equation 7 to the input.
    """
    realism = positive(tools.classifier(after))
    return realism + lambda_ * distance(before, after, tools.sigma_bar)
