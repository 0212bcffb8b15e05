"""LP, the latent search with which the poster compares fusion."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from evaluation.rivals.base import Batch, Look, Rival, Setting
from evaluation.rivals.climbing import search_randomly
from evaluation.transforms import Step


@dataclass(frozen=True)
class LP(Rival):
    """Latent search: a proposal `z + η ε` is kept where the search classifier rises.

    `ε ~ N(0, 1)` over both halves. Of an iteration's proposals, only the best counts.
    """

    name = "lp"
    look = Look("LP", "#D55E00", "x", "--")

    step_sizes: tuple[float, ...] = (0.1, 0.2, 0.4)
    """η, the standard deviation of a proposal."""
    proposals: int = 1
    """Proposals per iteration, of which the best counts."""
    scaled: bool = False
    """Whether proposals are scaled by σ̄ in each dimension."""
    iterations: tuple[int, ...] = (1, 3, 10, 30, 100, 300, 600, 1000)
    """Numbers of iterations after which outputs are kept."""

    def settings(self) -> list[Setting]:
        """List one setting for each η."""
        return [Setting(self.name, (("step_size", size),)) for size in self.step_sizes]

    def steps(self, batch: Batch, /) -> Iterator[Step]:
        """As `Rival.steps` says."""
        start = torch.cat(batch.pair, 1)
        scale = batch.tools.sigma_bar.repeat(2) if self.scaled else start.new_ones(start.shape[1])
        spread = torch.outer(batch.own["step_size"], scale)
        best = start.clone()
        return search_randomly(batch, best, best, spread, self.proposals)
