"""CMA-ES, an evolution strategy."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.rivals.base import Batch, Look, Rival, Setting
from evaluation.rivals.climbing import keep_best, measure_objective, split_halves
from evaluation.transforms import Step

if TYPE_CHECKING:
    from cmaes import SepCMA


@dataclass(frozen=True)
class CMAES(Rival):
    """CMA-ES (with a diagonal covariance) on the objective of the gradient search.

    Separable CMA-ES (Ros & Hansen 2008) starts from the input; an iteration is a generation. Each
    row has its own optimiser. The output is the best of the input and all samples. An optimiser
    that has converged or diverged takes no further samples.
    """

    name = "cmaes"
    look = Look("CMA-ES", "#CC79A7", "s", (0.0, (3.0, 1.0, 1.0, 1.0, 1.0, 1.0)))
    together = False  # it is slow, so workers share the settings

    lambda_: tuple[float, ...] = (1e-4, 0.003, 0.1)
    """λ of the penalty."""
    step_size: float = 0.2
    """Standard deviation of the first generation."""
    iterations: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 20, 25, 30, 35, 40, 50)
    """Numbers of generations after which outputs are kept."""

    def settings(self) -> list[Setting]:
        """List one setting for each λ."""
        return [Setting(self.name, (("lambda", x),)) for x in self.lambda_]

    def steps(self, batch: Batch, /) -> Iterator[Step]:
        """As `Rival.steps` says."""
        pair, lambda_, tools = batch.pair, batch.own["lambda"], batch.tools
        best, score = torch.cat(pair, 1), -measure_objective(pair, pair, lambda_, tools)
        running = self._optimisers(best, batch.random)
        population = running[0].population_size
        inputs = split_halves(best.repeat_interleave(population, 0))
        lambda_ = lambda_.repeat_interleave(population)
        asked = np.repeat(best.cpu().numpy()[:, None], population, 1).astype(np.float64)
        for count in range(1, batch.counts[-1] + 1):
            running = {row: each for row, each in running.items() if not each.should_stop()}
            for row, each in running.items():
                asked[row] = [each.ask() for _ in range(population)]
            z = torch.from_numpy(asked).to(best)
            sampled = split_halves(z.flatten(0, 1))
            values = measure_objective(inputs, sampled, lambda_, tools).view(z.shape[:2])
            told = values.tolist()
            for row, each in running.items():
                each.tell(list(zip(asked[row], told[row], strict=True)))
            keep_best(best, score, z.transpose(0, 1), -values.T)
            if count in batch.counts:
                yield Step(count, split_halves(best.clone()), 1 + population * count)

    def _optimisers(self, z: Float[Tensor, "B Z2"], random: torch.Generator) -> "dict[int, SepCMA]":
        """Make one for each row. For a row that is not finite it starts at 0, and has no effect."""
        from cmaes import SepCMA  # noqa: PLC0415  (the other rivals need only PyTorch)

        means = z.nan_to_num(0.0, 0.0, 0.0).cpu().numpy().astype(np.float64)
        seeds = torch.randint(2**31, (len(z),), generator=random, device=z.device).tolist()
        return {
            row: SepCMA(mean, self.step_size, seed=seed)
            for row, (mean, seed) in enumerate(zip(means, seeds, strict=True))
        }
