"""The fusion map G, its discriminator D, and their training data.

Letters in shapes: `N` trials side by side (absent for one), `B` pairs, `Z` latent dimensions, `S`
style dimensions, `C` conditions (1 where λ is an input, and one for each kind of bars but the
first), `P` adjacent pairs, `M` segments, `K` kinds of bars.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor, nn

from cf_core.kinds import Groups, decode_kinds, encode_kinds
from cf_core.losses import Pair
from cf_core.nets import MLP
from cf_core.settings import Settings


@dataclass(frozen=True)
class FusionSettings(Settings):
    """Shape and training of G and D: the settings that the trials of a study share."""

    may_be_zero = ("gradient_penalty", "style_weight", "imbalance", "lead")
    shares = ("ema", "style_share")

    scheme: Literal["poster", "heard"] = "heard"
    """Whether every application is kept and its outputs are decoded as they are, as on the poster,
    or a model of notes decides what is kept and writes the notes (`cf_core.heard`)."""
    price: float = 7.0
    """In the scheme `heard`, what each token that the writer changes costs at λ = 1, in nats."""
    drafts: int = 4
    """In the scheme `heard`, how many drafts the writer makes of each pair."""
    imbalance: float = 1.5
    """In the scheme `heard`, what each token by which the edits of the two halves differ costs, in
    nats. The more it costs, the more evenly both halves change, and the fewer tokens do."""
    lead: float = 0.5
    """In the scheme `heard`, which half gives way: from 0, where the left half stays, over 0.5,
    where both may change, to 1, where the right half stays."""
    hidden: int = 384
    """Width of G and D."""
    depth: int = 2
    """Hidden layers of G and D."""
    gated: bool = True
    """Whether G replaces a share of each latent dimension, set by a gate. Without gates, it adds
    to each."""
    steps: int = 8000
    """Updates of G."""
    batch: int = 64
    """Pairs of each kind per update."""
    learning_rate: float = 2e-3
    """Learning rate of Adam for G and D, with β = (0, 0.9)."""
    d_steps: int = 2
    """Updates of D per update of G."""
    gradient_penalty: float = 0.3
    """Weight of the zero-centred gradient penalty of D on real pairs (R1, Mescheder et al. 2018).
    """
    ema: float = 0.995
    """Decay per step of the averaged weights of G, which evaluation and bundles use."""
    style_weight: float = 1.0
    """Weight of the style loss, which keeps G from ignoring the style (0 leaves it out)."""
    style_share: float = 0.05
    """Least distance that the style loss asks for between the outputs of two styles for one input,
    as a share of the outputs' distance to the input."""
    lambda_range: tuple[float, float] = (1e-3, 10.0)
    """Smallest and largest λ that a conditional generator is trained for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        share_step(self.lead)  # raises for what is no lead
        low, high = self.lambda_range
        if not 0 < low < high < math.inf:
            raise ValueError(
                f"lambda_range: must be two ascending numbers above 0, got {self.lambda_range}"
            )

    def make_generator(
        self,
        latent_dim: int,
        style_dim: int,
        *,
        conditional: bool,
        trials: int | None = None,
        kinds: int = 1,
    ) -> "Generator":
        """Make a G of this shape, for latents of segments of so many kinds of bars."""
        return Generator(
            latent_dim,
            style_dim,
            self.hidden,
            self.depth,
            gated=self.gated,
            conditional=conditional,
            trials=trials,
            kinds=kinds,
        )

    def make_discriminator(
        self, latent_dim: int, *, conditional: bool, trials: int | None = None, kinds: int = 1
    ) -> "Discriminator":
        """Make a D of this shape, for latents of segments of so many kinds of bars."""
        return Discriminator(
            latent_dim,
            self.hidden,
            self.depth,
            conditional=conditional,
            trials=trials,
            kinds=kinds,
        )


def share_step(lead: float) -> tuple[float, float]:
    """Which share of G's step the left and the right half take.

    At a lead of 0 the left half stays, at 1 the right one; at 0.5 both take the whole step. The
    share of one half falls from 1 to 0, `min(1, 2 lead)` of the left and `min(1, 2 (1 - lead))` of
    the right one. Raises `ValueError` for a lead outside 0…1.
    """
    if not 0 <= lead <= 1:
        raise ValueError(f"lead: must be in 0…1, got {lead}")
    return min(1.0, 2 * lead), min(1.0, 2 * (1 - lead))


class Generator(nn.Module):
    """`(z_L', z_R') = G(z_L, z_R, s)`: the gated residual map `z' = (1 - g) z + g Δ` on both.

    Without gates it is `z' = z + Δ`. A conditional map also takes λ and so holds a whole frontier
    (loss-conditional training, Dosovitskiy & Djolonga 2020). With `trials`, the module holds that
    many maps of one shape side by side.
    """

    def __init__(
        self,
        latent_dim: int,
        style_dim: int,
        hidden: int,
        depth: int,
        *,
        gated: bool = True,
        conditional: bool = False,
        trials: int | None = None,
        kinds: int = 1,
    ) -> None:
        super().__init__()
        self.gated, self.kinds = gated, kinds
        self.latent_dim, self.style_dim, self.conditional = latent_dim, style_dim, conditional
        inputs = 2 * latent_dim + conditional + kinds - 1 + style_dim
        self.net = MLP(inputs, hidden, (4 if gated else 2) * latent_dim, depth, trials)

    def forward(
        self, pair: Pair, style: Float[Tensor, "*N B S"], condition: Float[Tensor, "*N B C"]
    ) -> Pair:
        """Transform both halves once.

        `condition` is what `condition_on` returns for λ where it is an input, then the kinds of the
        pairs' bars as `encode_kinds` returns them (`join_conditions`).
        """
        inputs = torch.cat(pair, -1)
        outputs = self.net(torch.cat((inputs, condition, style), -1))
        if self.gated:
            gate, delta = outputs.chunk(2, -1)
            outputs = torch.lerp(inputs, delta, torch.sigmoid(gate))
        else:
            outputs = inputs + outputs
        left, right = outputs.chunk(2, -1)
        return left, right

    def join_conditions(
        self, lambdas: Float[Tensor, "*B"], kinds: Int64[Tensor, "*B"]
    ) -> Float[Tensor, "*B C"]:
        """The `condition` of pairs. A map that is not conditional takes nothing from `lambdas`."""
        coded = encode_kinds(kinds, self.kinds).to(lambdas)
        return torch.cat((condition_on(lambdas), coded), -1) if self.conditional else coded

    def iterate(
        self,
        pair: Pair,
        style: Float[Tensor, "B S"],
        counts: Sequence[int],
        lambda_: float | Float[Tensor, "B"] | None = None,
        kinds: Int64[Tensor, "B"] | None = None,
    ) -> dict[int, Pair]:
        """Apply the map repeatedly with one style; return the outputs after each of `counts`.

        A conditional map needs `lambda_`, one for all pairs or one for each; others ignore it. A
        map for several kinds of bars needs the `kinds` of the pairs'. Raises `ValueError` where
        what is needed is not given, and for a λ that is not above 0.
        """
        if kinds is None and self.kinds > 1:
            raise ValueError("kinds: must say which kind of bars each pair has")
        own = torch.zeros(len(style), dtype=torch.int64) if kinds is None else kinds
        lambdas = torch.as_tensor(0.0 if lambda_ is None else lambda_).to(style)
        if self.conditional and not bool((lambdas > 0).all()):
            raise ValueError("lambda_: a conditional generator needs a λ above 0")
        condition = self.join_conditions(lambdas.expand(style.shape[:-1]), own.to(style.device))
        kept: dict[int, Pair] = {}
        for count in range(1, max(counts) + 1):
            pair = self(pair, style, condition)
            if count in counts:
                kept[count] = pair
        return kept


class Discriminator(nn.Module):
    """Gives the logit of the probability that a pair is two adjacent segments of one song."""

    def __init__(
        self,
        latent_dim: int,
        hidden: int,
        depth: int,
        *,
        conditional: bool = False,
        trials: int | None = None,
        kinds: int = 1,
    ) -> None:
        super().__init__()
        self.net = MLP(2 * latent_dim + conditional + kinds - 1, hidden, 1, depth, trials)

    def forward(self, pair: Pair, condition: Float[Tensor, "*N B C"]) -> Float[Tensor, "*N B"]:
        """Logits of the pairs."""
        logits: Tensor = self.net(torch.cat((*pair, condition), -1))
        return logits.squeeze(-1)


def condition_on(lambda_: Float[Tensor, "*B"]) -> Float[Tensor, "*B 1"]:
    """λ as the input of conditional networks: `(1 + log10 λ) / 2`, so that 1e-3…10 becomes -1…1."""
    return (1.0 + lambda_.log10()).div(2.0).unsqueeze(-1)


@dataclass(frozen=True)
class Latents:
    """Training data of fusion: the posteriors of the training segments, and the adjacent pairs."""

    mean: Float[Tensor, "M Z"]
    deviation: Float[Tensor, "M Z"]
    pairs: Integer[Tensor, "P 2"]
    sigma_bar: Float[Tensor, "Z"]
    code: Float[Tensor, "M K"]
    """The kind of the bars of each segment, as `encode_kinds` returns it."""

    def to(self, device: torch.device) -> "Latents":
        """Copy the tensors to another device."""
        return Latents(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def paired(self, count: int, random: torch.Generator) -> Pair:
        """`count` draws of `D_z`: adjacent segments, with latents sampled from their posteriors."""
        return self._draw(1, count, random)

    def unpaired(self, count: int, random: torch.Generator) -> Pair:
        """`count` draws of `D'_z`: halves of one kind of bars, otherwise independent."""
        return self._draw(0, count, random)

    def prior(self, count: int, random: torch.Generator) -> Pair:
        """`count` pairs of independent draws from the prior."""
        return self._draw(2, count, random)

    def sample(
        self, chance: Float[Tensor, "*N 3 B"], noise: Float[Tensor, "*N 3 B Z2"]
    ) -> tuple[Float[Tensor, "*N 3 B Z2"], Float[Tensor, "*N 2 B K"]]:
        """Pairs of each kind, halves concatenated: unpaired (`D'_z`), paired (`D_z`), prior.

        `chance`, uniform in 0…1, chooses the segments. It has one number for the left and one for
        the right half of an unpaired pair, and one for a paired pair. `noise` is standard normal; a
        prior pair is noise alone. `Z2` is twice `Z`. Also returned are the codes of the bars of
        unpaired and of paired ones; prior pairs have those of the unpaired ones.
        """
        count, pairs = len(self.mean), len(self.pairs)
        left = (chance[..., 0, :] * count).long().clamp_(max=count - 1)
        segments = torch.stack((left, self._groups.match(chance[..., 1, :], left)), -1)
        adjacent = self.pairs[(chance[..., 2, :] * pairs).long().clamp_(max=pairs - 1)]
        rows = torch.stack((segments, adjacent), -3)
        mean, deviation = self.mean[rows].flatten(-2), self.deviation[rows].flatten(-2)
        real = torch.addcmul(mean, deviation, noise[..., :2, :, :])
        return torch.cat((real, noise[..., 2:, :, :]), -3), self.code[rows[..., 0]]

    @cached_property
    def _groups(self) -> Groups:
        return Groups.of(decode_kinds(self.code))

    def _draw(self, kind: int, count: int, random: torch.Generator) -> Pair:
        chance = self.mean.new_empty(3, count).uniform_(generator=random)
        noise = self.mean.new_empty(3, count, 2 * self.mean.shape[1]).normal_(generator=random)
        drawn, _ = self.sample(chance, noise)
        left, right = drawn[kind].chunk(2, -1)
        return left, right
