"""One trial as one would first write it in plain PyTorch: what packs are measured against."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cf_core import losses
from cf_core.fusion import FusionSettings, Latents
from cf_core.losses import Pair
from cf_core.pack import COMPARED, NO_MOVEMENT


class Batch(NamedTuple):
    """What one update sees: `B` pairs of each kind, both halves side by side."""

    inputs: Tensor
    """Unpaired latents, then as many of the prior: `[2B, 2Z]`."""
    paired: Tensor
    style: Tensor
    other_style: Tensor


class EagerTrial:
    """A gated G and its D with one λ, trained with `torch.optim.Adam` and no tricks."""

    def __init__(
        self, latents: Latents, settings: FusionSettings, lambda_: float, style_dim: int, seed: int
    ) -> None:
        device, latent_dim = latents.mean.device, latents.mean.shape[1]
        self.latents, self.settings = latents, settings
        self.lambda_, self.style_dim = lambda_, style_dim
        hidden = [settings.hidden] * settings.depth
        self.g = _mlp([2 * latent_dim + style_dim, *hidden, 4 * latent_dim]).to(device)
        self.d = _mlp([2 * latent_dim, *hidden, 1]).to(device)
        self.average = deepcopy(self.g)
        self.random = torch.Generator(device).manual_seed(seed)
        self.adam_g, self.adam_d = (
            torch.optim.Adam(network.parameters(), settings.learning_rate, betas=(0.0, 0.9))
            for network in (self.g, self.d)
        )

    def update(self) -> dict[str, Tensor]:
        """One step on fresh draws."""
        return self.step([self._draw() for _ in range(self.settings.d_steps + 1)])

    def step(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """`d_steps` updates of D, one of G and one of G's average, on given draws."""
        report: dict[str, Tensor] = {}
        for batch in batches[:-1]:
            report = self._update_discriminator(batch)
        report |= self._update_generator(batches[-1])
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.g.parameters(), strict=True):
                kept.lerp_(new, 1.0 - self.settings.ema)
        return {name: loss.detach() for name, loss in report.items()}

    def _draw(self) -> Batch:
        like, random, count = self.latents.mean, self.random, self.settings.batch
        chance = like.new_empty(3, count).uniform_(generator=random)
        noise = like.new_empty(3, count, 2 * like.shape[1]).normal_(generator=random)
        (unpaired, paired, prior), _ = self.latents.sample(chance, noise)
        styles = like.new_empty(2, 2 * count, self.style_dim).uniform_(generator=random)
        return Batch(torch.cat((unpaired, prior)), paired, styles[0], styles[1])

    def _fuse(self, inputs: Tensor, style: Tensor) -> Tensor:
        gate, delta = self.g(torch.cat((inputs, style), -1)).chunk(2, -1)
        return torch.lerp(inputs, delta, torch.sigmoid(gate))

    def _distance(self, before: Tensor, after: Tensor) -> Tensor:
        return losses.distance(_halves(before), _halves(after), self.latents.sigma_bar)

    def _update_discriminator(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            fused = self._fuse(batch.inputs, batch.style)
        real = batch.paired.clone().requires_grad_()
        real_logits = self.d(real).squeeze(-1)
        logits = self.d(torch.cat((batch.inputs, fused))).squeeze(-1)
        eq2 = losses.discriminator_positive(real_logits)
        eq3 = losses.discriminator_negative(*logits.chunk(4))
        eq1 = losses.discriminator_loss(eq2, eq3)
        (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
        penalty = gradient.square().sum(-1).mean()
        self.adam_d.zero_grad()
        (eq1 + self.settings.gradient_penalty * penalty).backward()
        self.adam_d.step()
        return {"eq1": eq1, "eq2": eq2, "eq3": eq3, "gradient_penalty": penalty}

    def _update_generator(self, batch: Batch) -> dict[str, Tensor]:
        fused = self._fuse(batch.inputs, batch.style)
        self.d.requires_grad_(requires_grad=False)
        logits = self.d(fused).squeeze(-1)
        self.d.requires_grad_(requires_grad=True)
        moved = self._distance(batch.inputs, fused)
        eq5 = losses.generator_adversarial(*logits.chunk(2))
        eq6 = losses.similarity_loss(*moved.chunk(2))
        eq4 = losses.generator_loss(eq5, self.lambda_ * eq6)
        other = self._fuse(batch.inputs[::COMPARED], batch.other_style[::COMPARED])
        apart = self._distance(fused[::COMPARED], other)
        share = apart / (moved[::COMPARED].detach() + NO_MOVEMENT)
        style = (self.settings.style_share - share).relu().mean()
        self.adam_g.zero_grad()
        (eq4 + self.settings.style_weight * style).backward()
        self.adam_g.step()
        return {"eq4": eq4, "eq5": eq5, "eq6": eq6, "style": style}


def _mlp(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def _halves(joined: Tensor) -> Pair:
    left, right = joined.chunk(2, -1)
    return left, right
