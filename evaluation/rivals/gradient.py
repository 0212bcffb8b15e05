"""Gradient search, after Latent Constraints."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from evaluation.rivals.base import Batch, Look, Rival, Setting
from evaluation.rivals.climbing import measure_objective, split_halves
from evaluation.transforms import Step


@dataclass(frozen=True)
class Gradient(Rival):
    """Gradient search on the search classifier, with λ times equation 7 as penalty.

    Adam starts from the input, as in Latent Constraints (Engel et al. 2018). Outputs are its
    current position, not the best position so far.
    """

    name = "gradient"
    look = Look("gradient search", "#0072B2", "v", (0.0, (5.0, 1.0, 1.0, 1.0)))

    lambda_: tuple[float, ...] = (1e-5, 1e-3, 0.01, 0.03, 0.1, 1.0)
    """λ of the penalty."""
    learning_rate: float = 0.15
    """Learning rate of Adam on the latents. With a small one the classifier is certain, and its
    gradient gone, before a pair has moved far."""
    iterations: tuple[int, ...] = (1, 2, 4, 8, 16, 30, 100, 300)
    """Numbers of steps after which outputs are kept."""

    def settings(self) -> list[Setting]:
        """List one setting for each λ."""
        return [Setting(self.name, (("lambda", x),)) for x in self.lambda_]

    def steps(self, batch: Batch, /) -> Iterator[Step]:
        """As `Rival.steps` says."""
        z, lambda_ = torch.cat(batch.pair, 1).requires_grad_(), batch.own["lambda"]
        optimiser = torch.optim.Adam([z], self.learning_rate)  # elementwise: rows are independent
        for count in range(1, batch.counts[-1] + 1):
            with torch.enable_grad():
                objective = measure_objective(batch.pair, split_halves(z), lambda_, batch.tools)
                (z.grad,) = torch.autograd.grad(objective.sum(), z)
            optimiser.step()
            if count in batch.counts:
                yield Step(count, split_halves(z.detach().clone()), 3 * count)
