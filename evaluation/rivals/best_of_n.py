"""The best of many draws."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from evaluation.rivals.base import Batch, Look, Rival, Setting
from evaluation.rivals.climbing import search_randomly
from evaluation.transforms import Step


@dataclass(frozen=True)
class BestOfN(Rival):
    """The best, by the search classifier, of the input and N draws `z + η ε` around it.

    `ε ~ N(0, 1)`. An iteration is one draw.
    """

    name = "best_of_n"
    look = Look("best of N", "#56B4E9", "^", (0.0, (4.0, 2.0)))

    step_sizes: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8, 1.2)
    """η, the standard deviation of a draw."""
    iterations: tuple[int, ...] = (1, 3, 10, 30, 100, 300, 1000, 3000)
    """Numbers of draws."""

    def settings(self) -> list[Setting]:
        """List one setting for each η."""
        return [Setting(self.name, (("step_size", size),)) for size in self.step_sizes]

    def steps(self, batch: Batch, /) -> Iterator[Step]:
        """As `Rival.steps` says."""
        start = torch.cat(batch.pair, 1)
        spread = batch.own["step_size"][:, None].expand_as(start)
        return search_randomly(batch, start.clone(), start, spread)
