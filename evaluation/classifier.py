"""The search classifier: it decides from latents whether a pair is adjacent. Rivals may climb it.

Letters in shapes: `B` pairs, `Z` latent dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import softplus

from cf_core.fusion import Latents
from cf_core.losses import Pair
from cf_core.nets import ResidualBlock, dropout, initialise
from cf_core.seeding import make_random
from cf_core.settings import Settings
from cf_core.training import Trainer, adamw, warmup_cosine

gelu_ = torch.ops.aten.gelu_
"""GELU in place, for which PyTorch has no public name."""


@dataclass(frozen=True)
class ClassifierSettings(Settings):
    """Shape and training of the search classifier."""

    shares = ("dropout",)

    hidden: int = 256
    """Width."""
    depth: int = 2
    """Residual blocks."""
    dropout: float = 0.2
    """Share of units dropped in training."""
    steps: int = 1500
    """Training steps."""
    batch: int = 256
    """Adjacent pairs per step, and as many negatives."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""


class SearchClassifier(nn.Module):
    """Gives the logit that two latents belong to adjacent segments."""

    def __init__(self, latent_dim: int, settings: ClassifierSettings) -> None:
        super().__init__()
        width = settings.hidden
        self.dropout = settings.dropout
        self.net = nn.Sequential(
            nn.Linear(2 * latent_dim, width),
            *(ResidualBlock(width) for _ in range(settings.depth)),
            nn.LayerNorm(width),
            nn.GELU(),
        )
        self.output = nn.Linear(width, 1)

    def forward(self, pair: Pair, random: torch.Generator | None = None) -> Float[Tensor, "B"]:
        """Logits of the pairs; drops units only where a generator is given (in training)."""
        features = dropout(self.net(torch.cat(pair, -1)), self.dropout, random)
        logits: Tensor = self.output(features)
        return logits.squeeze(-1)

    def scorer(self, rows: int) -> Callable[[Float[Tensor, "B Z2"]], Float[Tensor, "B"]]:
        """Make a function that gives the logits of `rows` pairs with concatenated halves.

        It needs no gradients, so it works in place and reuses its memory. A search calls little
        else, and page faults in newly allocated memory took longer than all operations except
        matrix products.
        """
        weight, bias, *rest, last_gain, last_shift = self.net.parameters()
        blocks = [rest[i : i + 4] for i in range(0, len(rest), 4)]
        x = weight.new_empty(rows, len(bias))

        def inner(gain: Tensor, shift: Tensor) -> Tensor:
            normed = functional.layer_norm(x, bias.shape, gain, shift)
            gelu_(normed)
            return normed

        @torch.no_grad()
        def score(joined: Float[Tensor, "B Z2"]) -> Float[Tensor, "B"]:
            torch.addmm(bias, joined, weight.T, out=x)
            for gain, shift, block_weight, block_bias in blocks:
                x.addmm_(inner(gain, shift), block_weight.T).add_(block_bias)
            return torch.addmv(
                self.output.bias, inner(last_gain, last_shift), self.output.weight[0]
            )

        return score


class ClassifierTrainer(Trainer):
    """Logistic regression of adjacent pairs against negatives: half unpaired, half prior pairs."""

    def __init__(
        self,
        latents: Latents,
        settings: ClassifierSettings,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(settings.steps)
        self.latents, self.settings, self.seed = latents.to(torch.device(device)), settings, seed
        self.classifier = SearchClassifier(latents.mean.shape[1], settings)
        initialise(self.classifier, make_random(seed, "search classifier", "weights"))
        self.classifier.to(device)
        self.optimiser = adamw(self.classifier, settings.learning_rate)
        self.networks, self.optimisers = (
            {"classifier": self.classifier},
            {"classifier": self.optimiser},
        )

    def update(self) -> dict[str, Tensor]:
        """Take one step on fresh draws."""
        device = self.latents.mean.device
        random = make_random(self.seed, "search classifier", self.step, device=device)
        batch, half = self.settings.batch, self.settings.batch // 2
        parts = [
            self.latents.paired(batch, random),
            self.latents.unpaired(half, random),
            self.latents.prior(batch - half, random),
        ]
        pair = torch.cat([left for left, _ in parts]), torch.cat([right for _, right in parts])
        logits = self.classifier(pair, random)
        rate = self.settings.learning_rate * warmup_cosine(self.step, self.steps)
        loss = softplus(-logits[:batch]).mean() + softplus(logits[batch:]).mean()
        return take_step(loss, self.optimiser, rate)


def take_step(
    loss: Float[Tensor, ""], optimiser: torch.optim.Optimizer, rate: float
) -> dict[str, Tensor]:
    """Take one optimiser step at a learning rate, and return the loss for reports."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return {"loss": loss.detach()}
