"""Real neighbours of the training songs."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from cf_core.losses import Pair, distance
from evaluation.rivals.base import Batch, Look, Rival, Tools
from evaluation.rivals.climbing import split_halves
from evaluation.transforms import Step

DIFFERENCES = 2**23
"""Most numbers in a temporary tensor (unless a single pair needs more): 32 MiB."""


@dataclass(frozen=True)
class Retrieval(Rival):
    """A real adjacent pair of the training songs near the input.

    Of the k real pairs that are nearest by equation 7, with bars of the same kind, the one that the
    search classifier rates highest is taken. An iteration adds one to k, up to the number of real
    pairs.
    """

    name = "retrieval"
    look = Look("retrieval", "#E69F00", "p", (0.0, (2.0, 1.0)))
    limits = "real pairs of other songs are never very near"

    iterations: tuple[int, ...] = (*range(1, 21), *range(25, 125, 5))
    """Numbers of nearest pairs, of which the best by the search classifier is taken."""

    def steps(self, batch: Batch, /) -> Iterator[Step]:
        """As `Rival.steps` says."""
        tools = batch.tools
        bank = torch.cat(tools.neighbours, 1)
        count = min(batch.counts[-1], len(bank))
        kinds = torch.from_numpy(batch.kinds).to(bank.device)
        nearest, known = _find_nearest(batch.pair, kinds, count, tools)
        ratings = tools.classifier(tools.neighbours)[nearest].where(known, -torch.inf)
        for count in batch.counts:
            best = ratings[:, :count].argmax(1, keepdim=True)
            chosen = nearest.gather(1, best).squeeze(1)
            yield Step(count, split_halves(bank[chosen]), min(count, len(bank)))


def _find_nearest(
    pair: Pair, kinds: Int64[Tensor, "B"], count: int, tools: Tools
) -> tuple[Int64[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """Find the rows of the bank that are nearest to each pair, the nearest first.

    Also returned is which of them have bars of the pair's kind; there may be too few.
    """
    own = torch.from_numpy(tools.kinds).to(kinds.device)
    bank = tools.neighbours
    rows = max(1, DIFFERENCES // bank[0].numel())
    nearest, known = [], []
    for left, right, kind in zip(*(half.split(rows) for half in (*pair, kinds)), strict=True):
        shape = len(left), *bank[0].shape
        before = left[:, None].expand(shape), right[:, None].expand(shape)
        after = bank[0].expand(shape), bank[1].expand(shape)
        distances = distance(before, after, tools.sigma_bar)
        distances = distances.where(own == kind[:, None], torch.inf)
        found = distances.topk(count, largest=False)
        nearest.append(found.indices)
        known.append(found.values < torch.inf)
    return torch.cat(nearest), torch.cat(known)
