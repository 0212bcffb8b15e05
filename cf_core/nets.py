"""The building blocks that every network here is made of."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """`x + W gelu(norm(x))`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "*B H"]) -> Float[Tensor, "*B H"]:
        """Map `x` to the same shape."""
        inner: Tensor = self.linear(nn.functional.gelu(self.norm(x)))
        return x + inner


def mlp(inputs: int, hidden: int, outputs: int, depth: int) -> nn.Sequential:
    """`depth` hidden layers of leaky rectifiers and a linear output.

    Leaky rectifiers, because the gradient penalty differentiates twice and their second
    derivative costs nothing.
    """
    layers: list[nn.Module] = []
    for width in [inputs] + [hidden] * (depth - 1):
        layers += [nn.Linear(width, hidden), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


def initialise(network: nn.Module, random: torch.Generator) -> None:
    """Draw all weights of linear maps and embeddings anew from `random`; biases become zero."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, module.in_features**-0.5, generator=random)
                module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                # Half a unit, whatever the width: smaller ones were measured to learn more slowly.
                module.weight.normal_(0.0, 0.5, generator=random)


def dropout(
    x: Float[Tensor, "*B H"], rate: float, random: torch.Generator | None
) -> Float[Tensor, "*B H"]:
    """Drop each unit with probability `rate`; nothing without a generator (in evaluation).

    PyTorch's own dropout draws from the global generator, which would tie one trainer's draws to
    whatever else the process did before.
    """
    if random is None or rate == 0.0:
        return x
    kept = torch.rand(x.shape, generator=random) >= rate
    return x * kept / (1.0 - rate)
