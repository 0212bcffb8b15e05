"""Gradient search, after Latent Constraints."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cf_core.losses import Pair
from evaluation.rivals.base import Look, Rival, Setting, Tools
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

    def steps(
        self,
        pair: Pair,
        counts: Sequence[int],
        _random: torch.Generator,
        own: Mapping[str, Float[Tensor, "B"]],
        tools: Tools,
        /,
    ) -> Iterator[Step]:
        """As `Rival.steps` says."""
        z = torch.cat(pair, 1).requires_grad_()
        optimiser = torch.optim.Adam([z], self.learning_rate)  # elementwise: rows are independent
        for count in range(1, counts[-1] + 1):
            with torch.enable_grad():
                total = measure_objective(pair, split_halves(z), own["lambda"], tools).sum()
            (z.grad,) = torch.autograd.grad(total, z)
            optimiser.step()
            if count in counts:
                yield Step(count, split_halves(z.detach().clone()), 3 * count)
