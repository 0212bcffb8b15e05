"""The building blocks that every network here is made of."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """`x + W gelu(norm(x))`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "*B H"]) -> Float[Tensor, "*B H"]:
        """Map `x` to the same shape."""
        inner: Tensor = self.linear(functional.gelu(self.norm(x)))
        return x + inner


class MLP(nn.Module):
    """`depth` hidden layers of leaky rectifiers and a linear output.

    With `trials`, the module is that many networks of one shape side by side: weights are stacked
    on a leading axis, and inputs have this axis too. Leaky rectifiers are used because the gradient
    penalty differentiates twice, and their second derivative costs nothing.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, depth: int, trials: int | None = None
    ) -> None:
        super().__init__()
        stack = () if trials is None else (trials,)
        sizes = list(pairwise([inputs, *[hidden] * depth, outputs]))
        self.weights = nn.ParameterList([torch.zeros(*stack, i, o) for i, o in sizes])
        self.biases = nn.ParameterList([torch.zeros(*stack, 1, o) for _, o in sizes])

    def forward(self, x: Float[Tensor, "*N B I"]) -> Float[Tensor, "*N B O"]:
        """Map rows of inputs to rows of outputs."""
        # A slice of a ParameterList is a module made anew, which costs more than the products.
        *inner, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in inner:
            x = functional.leaky_relu(_affine(x, weight, bias), 0.2, inplace=True)
        return _affine(x, *last)


def initialise(network: nn.Module, random: torch.Generator) -> None:
    """Draw all weights of linear maps and embeddings anew from `random`; biases become zero."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, module.in_features**-0.5, generator=random)
                module.bias.zero_()
            elif isinstance(module, MLP):
                for weight, bias in zip(module.weights, module.biases, strict=True):
                    weight.normal_(0.0, weight.shape[-2] ** -0.5, generator=random)
                    bias.zero_()
            elif isinstance(module, nn.Embedding):
                # 0.5 for any width: embeddings that start smaller were measured to learn slower.
                module.weight.normal_(0.0, 0.5, generator=random)


def count_at_once(on_cpu: int, device: torch.device) -> int:
    """How many rows are to go through a network at one time, where a CPU takes so many.

    What a CPU computes of few rows stays in its cache. On a GPU each kernel costs its launch, so
    few large ones are better.
    """
    return on_cpu if device.type == "cpu" else 8 * on_cpu


def dropout(
    x: Float[Tensor, "*B H"], rate: float, random: torch.Generator | None
) -> Float[Tensor, "*B H"]:
    """Drop each unit with probability `rate`. Without a generator (in evaluation), drop nothing.

    PyTorch's own dropout draws from the global generator, which would tie one trainer's draws to
    whatever else the process did before.
    """
    if random is None or rate == 0.0:
        return x
    kept = torch.rand(x.shape, generator=random, device=x.device) >= rate
    return x * kept / (1.0 - rate)


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (torch.addmm if weight.ndim == 2 else torch.baddbmm)(bias, x, weight)
