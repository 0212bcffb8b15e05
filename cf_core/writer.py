"""Writes both halves of a pair down anew, as notes that are likely beside each other.

A decoder gives each step its likeliest token, whatever stands around it. What it makes of latents
that no melody has is therefore often no melody: outlines without a motif, notes that lead nowhere.
The writer draws each token from a model of notes instead, which knows what came before and what the
other half has, and which pays a price for every token that it changes.

Two models of notes do that (`cf_core.continuation`): one reads forwards and writes the right half
after the left one, one reads backwards and writes the left half before the right one.

Letters in shapes: `B` pairs, `T` steps of a half, `S` segments, `P` adjacent pairs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor, nn

from cf_core.continuation import (
    Continuation,
    ContinuationSettings,
    ContinuationTrainer,
    drop_hanging_holds,
    reverse,
)
from cf_core.losses import Pair
from cf_core.melody import MelodyFormat
from cf_core.vae import MelodyVAE


@dataclass(frozen=True)
class WriterSettings(ContinuationSettings):
    """Shape and training of the two models of notes that write."""

    steps: int = 800
    """Training steps of each model."""
    dropout: float = 0.4
    """Share of units, and of places of the window, dropped in training. 0.4 suits corpora of some
    thousand adjacent pairs, 0.1 those of fifty thousand."""


Tokens = tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]
"""A left and a right half."""


class Writer(nn.Module):
    """Draws pairs near given ones from two models of notes.

    >>> import torch
    >>> from cf_core.melody import MelodyFormat
    >>> from cf_core.writer import Writer, WriterSettings
    >>> writer = Writer(MelodyFormat(), WriterSettings(hidden=8))  # not trained
    >>> halves = torch.full((3, 32), 26), torch.full((3, 32), 28)
    >>> price, chance = torch.full((3, 2), 100.0), torch.rand(3, 2, 32)
    >>> left, right = writer.rewrite(halves, price, chance)
    >>> torch.equal(left, halves[0]), torch.equal(right, halves[1])
    (True, True)
    """

    def __init__(self, form: MelodyFormat, settings: WriterSettings) -> None:
        super().__init__()
        self.forwards = Continuation(form, settings)
        self.backwards = Continuation(form, settings)

    def rewrite(
        self,
        halves: tuple[Integer[Tensor, "B T"], Integer[Tensor, "B T"]],
        price: Float[Tensor, "B 2"],
        chance: Float[Tensor, "B 2 T"],
    ) -> Tokens:
        """Draw the right half after the left one, then the left half before the new right one.

        `price`, in nats, is what each changed token of the left and of the right half costs. Each
        half is drawn as `Continuation.rewrite` says, by its own `chance`.
        """
        left, right = (drop_hanging_holds(half.long()) for half in halves)
        right = self.forwards.rewrite(left, right, price[:, 1], chance[:, 1])
        turned = reverse(right), reverse(left)
        left = reverse(self.backwards.rewrite(*turned, price[:, 0], chance[:, 0]))
        return left, right

    def rate(
        self, halves: tuple[Integer[Tensor, "B T"], Integer[Tensor, "B T"]]
    ) -> Float[Tensor, "B"]:
        """How much two halves tell of each other: log p(right | left) - log p(right), in nats."""
        rated = self.forwards.compare(*halves)
        return rated.after.sum(1) - rated.alone.sum(1)

    def write(
        self,
        core: MelodyVAE,
        pair: Pair,
        tokens: tuple[Integer[Tensor, "B T"], Integer[Tensor, "B T"]],
        price: Float[Tensor, "B 2"],
        chance: Float[Tensor, "B 2 T"],
    ) -> Pair:
        """Rewrite pairs of latents, which `core` decodes to `tokens`, and encode them again.

        A half of which no token changes keeps its latent; any other gets its posterior mean.
        """
        outputs = []
        for z, old, new in zip(pair, tokens, self.rewrite(tokens, price, chance), strict=True):
            rows = (new != old).any(1).nonzero().squeeze(1)
            encoded = core.encode_mean(new[rows])
            outputs.append(z.index_copy(0, rows, encoded.to(z)))
        return outputs[0], outputs[1]


def make_trainer(
    direction: str,
    tokens: Integer[Tensor, "S T"],
    pairs: Integer[Tensor, "P 2"],
    form: MelodyFormat,
    settings: WriterSettings,
    seed: int,
    device: torch.device | str = "cpu",
) -> ContinuationTrainer:
    """Make the trainer of one of a writer's models: `forwards` or `backwards`.

    `tokens` are the training segments, `pairs` the rows of adjacent ones.
    """
    if direction == "backwards":
        tokens, pairs = reverse(drop_hanging_holds(tokens.long())), pairs.flip(1)
    purpose = f"writer {direction}"
    return ContinuationTrainer(tokens, pairs, form, settings, seed, purpose, device)
