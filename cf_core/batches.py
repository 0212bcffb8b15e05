"""What the trials of a pack see in training: random numbers, and the batches made of them.

The two are apart, so that the random numbers of every step lie where those of the last one lay. A
GPU can then do all that follows from them as one graph (`cf_core.graphs`).

Letters in shapes: `N` trials in the pack, `B` pairs of each kind, `B2` twice as many, `Z2` twice
the latent dimensions, `S` style dimensions (the most of any trial; others are padded to it), `K`
codes of kinds of bars, `C` conditions (1 if any trial is conditional, else 0, and `K`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cf_core.fusion import FusionSettings, Latents, condition_on
from cf_core.seeding import make_random


@dataclass(frozen=True)
class Member:
    """One trial of a pack: the settings in which it may differ from the others."""

    lambda_: float | None
    """λ of equation 4; None trains a conditional generator over the settings' range of λ."""
    style_dim: int
    seed: int
    learning_rate: float


@dataclass(frozen=True)
class Batch:
    """What the trials see in one update, of D or of G."""

    inputs: Float[Tensor, "N B2 Z2"]
    """Unpaired latents, then as many prior ones."""
    paired: Float[Tensor, "N B Z2"]
    style: Float[Tensor, "N B2 S"]
    other_style: Float[Tensor, "N B2 S"]
    lambda_: Float[Tensor, "N B2"]
    condition: Float[Tensor, "N B2 C"]
    paired_condition: Float[Tensor, "N B C"]


class Batches:
    """Draws the batches of some trials. Trials of one seed see the same ones.

    `style_dim` is the one to which styles are padded, and `conditional` says whether the networks
    take λ.
    """

    def __init__(
        self,
        latents: Latents,
        settings: FusionSettings,
        trials: Sequence[Member],
        style_dim: int,
        *,
        conditional: bool,
    ) -> None:
        self._latents, self._settings, self._conditional = latents, settings, conditional
        self._seeds = list(dict.fromkeys(trial.seed for trial in trials))
        self._styled = list(dict.fromkeys((trial.seed, trial.style_dim) for trial in trials))
        like, batch, updates = latents.sigma_bar, settings.batch, settings.d_steps + 1
        self._rows, self._style_rows = (
            torch.tensor(rows, dtype=torch.int64).to(like.device)
            for rows in (
                [self._seeds.index(trial.seed) for trial in trials],
                [self._styled.index((trial.seed, trial.style_dim)) for trial in trials],
            )
        )
        self._lambdas = like.new_tensor([[trial.lambda_ or 0.0] for trial in trials])
        self._is_conditional = like.new_tensor([[trial.lambda_ is None] for trial in trials]) > 0
        seeds = len(self._seeds)
        self._noise = like.new_empty(seeds, updates, 3, batch, 2 * len(like))
        self._chance = like.new_empty(seeds, updates, 5, batch)
        self._styles = like.new_zeros(len(self._styled), updates + 1, 2 * batch, style_dim)

    def draw(self, step: int) -> None:
        """Draw the random numbers of a step."""
        device = self._noise.device
        for row, seed in enumerate(self._seeds):
            random = make_random(seed, "fusion", step, device=device)
            self._noise[row].normal_(generator=random)
            self._chance[row].uniform_(generator=random)
        for row, (seed, style_dim) in enumerate(self._styled):
            random = make_random(seed, "fusion", "style", step, device=device)
            self._styles[row, ..., :style_dim].uniform_(generator=random)

    def deal(self) -> list[Batch]:
        """Make the batches of a step from its random numbers: one for each update, G's last."""
        batch, chance = self._settings.batch, self._chance
        drawn, codes = self._latents.sample(chance[:, :, :3], self._noise)
        unpaired, paired, prior = drawn.unbind(2)
        inputs = torch.cat((unpaired, prior), 2)
        low, high = self._settings.lambda_range
        lambdas = low * (high / low) ** chance[:, :, 3:].flatten(2)
        if len(self._seeds) < len(self._rows):
            inputs, paired, lambdas, codes = (
                t[self._rows] for t in (inputs, paired, lambdas, codes)
            )
        styles = self._styles[self._style_rows]
        return [
            Batch(
                inputs=inputs[:, turn],
                paired=paired[:, turn],
                style=styles[:, turn],
                other_style=styles[:, -1],
                lambda_=lambdas[:, turn].where(self._is_conditional, self._lambdas),
                condition=self._condition(
                    lambdas[:, turn], torch.cat((codes[:, turn, 0], codes[:, turn, 0]), 1)
                ),
                paired_condition=self._condition(lambdas[:, turn, :batch], codes[:, turn, 1]),
            )
            for turn in range(self._settings.d_steps + 1)
        ]

    def _condition(
        self, lambdas: Float[Tensor, "N b"], codes: Float[Tensor, "N b K"]
    ) -> Float[Tensor, "N b C"]:
        """λ of conditional trials, 0 for others and nothing if none is; then the kinds of bars."""
        every = condition_on(lambdas) * self._is_conditional[..., None]
        return torch.cat((every[..., : int(self._conditional)], codes), -1)
