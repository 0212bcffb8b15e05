"""The fusion map G, its discriminator D, and their adversarial training.

Letters in shapes: `B` pairs, `Z` latent dimensions, `S` style dimensions, `P` adjacent pairs,
`N` segments.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from cf_core import losses
from cf_core.losses import Pair
from cf_core.nets import initialise, mlp
from cf_core.seeding import generator
from cf_core.settings import Settings
from cf_core.training import Trainer


@dataclass(frozen=True)
class FusionSettings(Settings):
    """Shape and training of G and D, as far as all trials of a study share them."""

    may_be_zero = ("gradient_penalty",)
    shares = ("ema",)

    hidden: int = 384
    """Width of G and D."""
    depth: int = 2
    """Hidden layers of G and D."""
    steps: int = 4000
    """Updates of G."""
    batch: int = 64
    """Pairs of each kind per update."""
    learning_rate: float = 3e-4
    """Learning rate of Adam for G and D, whose moments decay by β = (0, 0.9)."""
    d_steps: int = 2
    """Updates of D per update of G."""
    gradient_penalty: float = 1.0
    """Weight of the zero-centred gradient penalty of D on real pairs (R1, Mescheder et al. 2018).
    """
    ema: float = 0.995
    """Decay per step of the averaged weights of G, which evaluation and bundles use."""


class Generator(nn.Module):
    """`(z_L', z_R') = G(z_L, z_R, s)`: the gated residual map `z' = (1 - g) z + g Δ` on both."""

    def __init__(self, latent_dim: int, style_dim: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.latent_dim, self.style_dim = latent_dim, style_dim
        self.net = mlp(2 * latent_dim + style_dim, hidden, 4 * latent_dim, depth)

    def forward(self, pair: Pair, style: Float[Tensor, "*B S"]) -> Pair:
        """Transform both halves once."""
        inputs = torch.cat(pair, -1)
        gate, delta = self.net(torch.cat((inputs, style), -1)).chunk(2, -1)
        left, right = torch.lerp(inputs, delta, torch.sigmoid(gate)).chunk(2, -1)
        return left, right

    def iterate(
        self, pair: Pair, style: Float[Tensor, "*B S"], counts: Sequence[int]
    ) -> dict[int, Pair]:
        """Feed outputs back in with the same style; keep the outputs after each of `counts`."""
        kept: dict[int, Pair] = {}
        for count in range(1, max(counts) + 1):
            pair = self(pair, style)
            if count in counts:
                kept[count] = pair
        return kept


class Discriminator(nn.Module):
    """The logit of a pair being two adjacent segments of one song."""

    def __init__(self, latent_dim: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.net = mlp(2 * latent_dim, hidden, 1, depth)

    def forward(self, pair: Pair) -> Float[Tensor, "*B"]:
        """Logits of the pairs."""
        logits: Tensor = self.net(torch.cat(pair, -1))
        return logits.squeeze(-1)


@dataclass(frozen=True)
class Latents:
    """What fusion trains on: the posteriors of the training segments, and which are adjacent."""

    mean: Float[Tensor, "N Z"]
    deviation: Float[Tensor, "N Z"]
    pairs: Integer[Tensor, "P 2"]
    sigma_bar: Float[Tensor, "Z"]

    def paired(self, count: int, random: torch.Generator) -> Pair:
        """`count` draws of `D_z`: latents of adjacent segments, sampled anew."""
        rows = self.pairs[torch.randint(len(self.pairs), (count,), generator=random)]
        return self._sample(rows[:, 0], random), self._sample(rows[:, 1], random)

    def unpaired(self, count: int, random: torch.Generator) -> Pair:
        """`count` draws of `D'_z` for each half, independent of each other."""
        rows = torch.randint(len(self.mean), (2, count), generator=random)
        return self._sample(rows[0], random), self._sample(rows[1], random)

    def prior(self, count: int, random: torch.Generator) -> Pair:
        """`count` pairs of independent draws of the prior."""
        left, right = torch.randn(2, count, self.mean.shape[1], generator=random)
        return left, right

    def _sample(self, rows: Tensor, random: torch.Generator) -> Tensor:
        noise = torch.randn(len(rows), self.mean.shape[1], generator=random)
        return self.mean[rows] + self.deviation[rows] * noise


class FusionTrainer(Trainer):
    """Trains one G against one D by equations 1-7.

    Trials of one `seed` see the same batches, whatever their λ and style dimension.
    """

    def __init__(
        self,
        latents: Latents,
        settings: FusionSettings,
        weight: float,
        style_dim: int,
        seed: int,
    ) -> None:
        super().__init__(settings.steps)
        self.latents, self.settings, self.seed = latents, settings, seed
        self.weight, self.style_dim = weight, style_dim
        latent_dim = latents.mean.shape[1]
        self.generator = Generator(latent_dim, style_dim, settings.hidden, settings.depth)
        self.discriminator = Discriminator(latent_dim, settings.hidden, settings.depth)
        initialise(self.generator, generator(seed, "fusion", "generator"))
        initialise(self.discriminator, generator(seed, "fusion", "discriminator"))
        # An untrained G starts near the identity, so that λ decides how far it leaves it.
        nn.init.constant_(self.generator.net[-1].bias[: 2 * latent_dim], -2.0)  # type: ignore[index]
        self.averaged = copy.deepcopy(self.generator).requires_grad_(requires_grad=False)
        self.networks = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "averaged": self.averaged,
        }
        self.optimisers = {
            name: torch.optim.Adam(
                self.networks[name].parameters(), settings.learning_rate, (0.0, 0.9), fused=True
            )
            for name in ("generator", "discriminator")
        }

    def update(self) -> dict[str, Tensor]:
        """`d_steps` updates of D, one of G, and one of G's average."""
        report: dict[str, Tensor] = {}
        for turn in range(self.settings.d_steps):
            report = self._update_discriminator(turn)
        report |= self._update_generator()
        with torch.no_grad():
            for average, now in zip(
                self.averaged.parameters(), self.generator.parameters(), strict=True
            ):
                average.lerp_(now, 1.0 - self.settings.ema)
        return report

    def _draw(self, turn: int | str) -> tuple[Pair, Pair, Tensor]:
        """Unpaired and prior latents, and styles for both."""
        count = self.settings.batch
        random = generator(self.seed, "fusion", "inputs", self.step, turn)
        unpaired, prior = self.latents.unpaired(count, random), self.latents.prior(count, random)
        random = generator(self.seed, "fusion", "style", self.step, turn)
        return unpaired, prior, torch.rand(2 * count, self.style_dim, generator=random)

    def _draw_paired(self, turn: int) -> Pair:
        random = generator(self.seed, "fusion", "paired", self.step, turn)
        return self.latents.paired(self.settings.batch, random)

    def _update_discriminator(self, turn: int) -> dict[str, Tensor]:
        unpaired, prior, style = self._draw(turn)
        with torch.no_grad():
            fused = self.generator(_join(unpaired, prior), style)
        real = torch.cat(self._draw_paired(turn), -1).requires_grad_()
        real_logits = self.discriminator(_halves(real))
        logits = self.discriminator(_join(unpaired, prior, fused)).chunk(4)
        eq2 = losses.discriminator_positive(real_logits)
        eq3 = losses.discriminator_negative(*logits)
        penalty = gradient_penalty(real_logits, real)
        loss = losses.discriminator_loss(eq2, eq3)
        self._step("discriminator", loss + self.settings.gradient_penalty * penalty)
        report = {"eq1": loss, "eq2": eq2, "eq3": eq3, "gradient_penalty": penalty}
        return {name: value.detach() for name, value in report.items()}

    def _update_generator(self) -> dict[str, Tensor]:
        unpaired, prior, style = self._draw("generator")
        inputs = _join(unpaired, prior)
        fused = self.generator(inputs, style)
        eq5 = losses.generator_adversarial(*self.discriminator(fused).chunk(2))
        eq6 = losses.similarity_loss(
            *losses.distance(inputs, fused, self.latents.sigma_bar).chunk(2)
        )
        eq4 = losses.generator_loss(eq5, eq6, self.weight)
        self._step("generator", eq4)
        report = {"eq4": eq4, "eq5": eq5, "eq6": eq6}
        return {name: value.detach() for name, value in report.items()}

    def _step(self, name: str, loss: Tensor) -> None:
        # Only this network's gradients: D's are not wanted when G learns.
        parameters = list(self.networks[name].parameters())
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter.grad = gradient
        self.optimisers[name].step()


def gradient_penalty(logits: Float[Tensor, "B"], inputs: Float[Tensor, "B I"]) -> Float[Tensor, ""]:
    """Mean squared norm of the logits' gradient by their inputs (R1, Mescheder et al. 2018)."""
    (gradient,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return gradient.square().sum(-1).mean()


def _join(*pairs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([left for left, _ in pairs]), torch.cat([right for _, right in pairs])


def _halves(joined: Tensor) -> Pair:
    left, right = joined.chunk(2, -1)
    return left, right
