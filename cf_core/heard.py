"""The scheme `heard`: what G proposes and what the decoder writes are kept only where halves fit.

G moves latents. Not every application helps what is heard, and what the decoder makes of moved
latents is not always a melody. Here a model of notes decides what is kept, by the pointwise mutual
information of two halves x and y as they are heard (Church & Hanks 1990), less a charge for edits
that one half bears alone:

    J(x, y) = log p(y | x) - log p(y) - κ |a_R e_L - a_L e_R|

with e the edit distances of the halves from the inputs, in tokens, and a the shares of G's step
that they take (`share_step`). At a lead of 0.5 both shares are 1.

- *Applications.* What G proposes for a pair is kept unless J falls. If it falls, the proposal is
  undone. G would propose the same again, so the pair has come to a fixed point, and more
  applications cannot spoil it.
- *Drafts.* The writer (`cf_core.writer`) draws several drafts of the notes. Of these and of the
  notes as decoded, those with the highest J are kept.

Letters in shapes: `B` pairs, `Z2` twice the latent dimensions, `T` steps of a half, `S` style
dimensions, `D` drafts, `L` values of λ.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, Integer
from torch import Tensor

from cf_core.distance import count_edits
from cf_core.fusion import FusionSettings, Generator, share_step
from cf_core.kinds import take_kinds
from cf_core.losses import Pair
from cf_core.seeding import make_random
from cf_core.vae import MelodyVAE
from cf_core.writer import Writer

FREE = 1e-3
"""The λ up to which changes by the writer cost nothing."""
NEAR = 4.0
"""By how much the price rises with every factor of ten in λ above λ = 1, in nats. Near the inputs
little may be written, or no fusion would be near."""
_NEAR_ENOUGH = 0.15
"""By what share of the edits asked for those made may differ, where the choice among λ is free."""
_UNPAYABLE = 1e4
"""A price at which no token changes, in nats."""


@dataclass(frozen=True)
class Heard:
    """How outputs of G become notes in this scheme.

    Raises `ValueError` for a lead outside 0…1.

    >>> import numpy as np
    >>> import torch
    >>> from cf_core.bundle import load_bundle
    >>> bundle = load_bundle()
    >>> how = bundle.heard
    >>> pair = tuple(torch.randn(2, 5, bundle.core.settings.latent_dim))
    >>> style, lambda_ = torch.rand(5, bundle.generator.style_dim), torch.full((5,), 0.1)
    >>> chance = how.draw_chance(5, torch.Generator())
    >>> kinds = np.zeros(5, dtype=int)  # all pairs are in 4/4
    >>> outputs = how.fuse(bundle.generator, pair, style, [1, 16], lambda_, chance, kinds)
    >>> [count for count, _ in outputs]
    [1, 16]
    """

    core: MelodyVAE
    writer: Writer
    price: float
    """What each token that the writer changes costs at λ = 1, in nats."""
    drafts: int
    """How many drafts the writer makes of each pair."""
    imbalance: float
    """κ: what each token by which the edits of the halves differ costs, in nats."""
    lead: float
    """Which half gives way, as `share_step` says."""

    def __post_init__(self) -> None:
        share_step(self.lead)  # raises for what is no lead

    @classmethod
    def of(cls, core: MelodyVAE, writer: Writer, settings: FusionSettings) -> "Heard":
        """As settings say, with their price at λ = 1."""
        return cls(core, writer, settings.price, settings.drafts, settings.imbalance, settings.lead)

    def draw_chance(self, pairs: int, random: torch.Generator) -> Float[Tensor, "D B 2 T"]:
        """Draw the numbers that decide what the writer draws, for `fuse`."""
        shape, device = (self.drafts, pairs, 2, self.core.form.steps), self.core.sigma_bar.device
        return torch.rand(shape, generator=random, device=device)

    def fix_chance(self, seed: int) -> Float[Tensor, "D 1 2 T"]:
        """The numbers of a deployed model: the same for equal seeds, whatever the inputs are."""
        return self.draw_chance(1, make_random(seed, "fuse", "writing"))

    @torch.no_grad()
    def fuse(
        self,
        generator: Generator,
        pair: Pair,
        style: Float[Tensor, "B S"],
        counts: Sequence[int],
        lambda_: Float[Tensor, "B"],
        chance: Float[Tensor, "D B 2 T"],
        kinds: Integer[np.ndarray, "B"] | None = None,
    ) -> Iterator[tuple[int, Pair]]:
        """Yield the outputs after each of the ascending `counts` of applications.

        Each row has its own λ. It sets the price (`find_price`), and is G's λ where G takes one.
        All counts are written with the same `chance`. What is written is not fed back in. Rows are
        independent of each other. `kinds` are those of the pairs' bars, as
        `MelodyVAE.decode_tokens` takes them.
        """
        shares = share_step(self.lead)
        price = lambda_.new_tensor([find_price(self.price, each) for each in lambda_.tolist()])
        price = _price_halves(price, shares)
        device = style.device
        own = take_kinds(kinds, len(style), self.core.form).to(device)
        now = self._listen_first(pair, own)
        z, heard = now.z, now.tokens - 1  # nothing was heard yet
        rewritten = torch.zeros(len(style), 2, 1, dtype=torch.bool, device=device)
        going, done = torch.arange(len(style), device=device), 0
        for count in counts:
            for _ in range(done, count):
                if not len(going):  # all pairs have come to rest
                    break
                old = now.take(going)
                moved = _apply(generator, old, style[going], lambda_[going], shares)
                new = self._listen(moved, old)
                kept = new.score >= old.score
                going = going[kept]
                now = now.put(going, new.take(kept))
            # Pairs that sound as when they were last written would be written alike. Their halves
            # that were left as decoded follow the latents.
            halves, moved_on = (each.unflatten(1, (2, -1)) for each in (z, now.z))
            z = torch.where(rewritten, halves, moved_on).flatten(1)
            rows = (now.tokens != heard).flatten(1).any(1).nonzero().squeeze(1)
            decoded = now.take(rows)
            best = self._write(decoded, price[rows], chance[:, rows])
            differs = (best.z != decoded.z).unflatten(1, (2, -1)).any(2, keepdim=True)
            z, rewritten = z.index_copy(0, rows, best.z), rewritten.index_copy(0, rows, differs)
            heard, done = now.tokens, count
            yield count, _halves(z)

    @torch.no_grad()
    def rate(
        self, tokens: Int64[Tensor, "B 2 T"], inputs: Int64[Tensor, "B 2 T"]
    ) -> Float[Tensor, "B"]:
        """J of each pair of tokens, in nats, with edits counted from `inputs`."""
        fit = self.writer.rate((tokens[:, 0], tokens[:, 1]))
        edits = count_edits(inputs.flatten(0, 1), tokens.flatten(0, 1)).view(-1, 2).double()
        left_share, right_share = share_step(self.lead)
        uneven = (right_share * edits[:, 0] - left_share * edits[:, 1]).abs()
        return fit - self.imbalance * uneven.to(fit)

    def _write(
        self,
        decoded: "_Pairs",
        price: Float[Tensor, "B 2"],
        chance: Float[Tensor, "D B 2 T"],
    ) -> "_Pairs":
        """The pairs as decoded or the best draft of each, whichever has the highest J."""
        count, pairs = chance.shape[:2]
        every = torch.arange(pairs, device=price.device)
        given = decoded.take(every.repeat(count))
        left, right = given.tokens.unbind(1)
        written = torch.cat(
            self.writer.write(
                self.core,
                _halves(given.z),
                (left, right),
                price.repeat(count, 1),
                chance.flatten(0, 1),
            ),
            1,
        )
        changed = (written != given.z).any(1).nonzero().squeeze(1)  # all others are as decoded
        drafts = given.put(changed, self._listen(written[changed], given.take(changed)))
        versions = decoded.join(drafts)
        best = versions.score.view(1 + count, pairs).argmax(0)  # of equal ones as decoded
        return versions.take(best * pairs + every)

    def _listen_first(self, pair: Pair, kinds: Int64[Tensor, "B"]) -> "_Pairs":
        """Decode and rate pairs that are inputs."""
        tokens = self.decode(pair, kinds)
        return _Pairs(torch.cat(pair, 1), kinds, tokens, tokens, self.rate(tokens, tokens))

    def _listen(self, z: Float[Tensor, "B Z2"], before: "_Pairs") -> "_Pairs":
        """Decode and rate what came of pairs. Those that sound as before keep their score."""
        tokens = self.decode(_halves(z), before.kinds)
        other = (tokens != before.tokens).flatten(1).any(1)
        score = before.score.clone()
        score[other] = self.rate(tokens[other], before.inputs[other])
        return _Pairs(z, before.kinds, before.inputs, tokens, score)

    def decode(self, pair: Pair, kinds: Int64[Tensor, "B"]) -> Int64[Tensor, "B 2 T"]:
        """What is heard of pairs, whose bars are of these kinds."""
        # Both halves at once: for a single pair, each call costs more than its arithmetic.
        heard = self.core.decode_notes(torch.cat(pair), kinds.repeat(2))
        return torch.stack(heard.chunk(2), 1)


@dataclass(frozen=True)
class _Pairs:
    """Pairs of latents, what is heard of them, and how good that is."""

    z: Float[Tensor, "B Z2"]
    kinds: Int64[Tensor, "B"]
    """The kind of the pairs' bars."""
    inputs: Int64[Tensor, "B 2 T"]
    """The inputs as they are heard, from which edits are counted."""
    tokens: Int64[Tensor, "B 2 T"]
    score: Float[Tensor, "B"]
    """J of each pair, in nats."""

    def take(self, rows: Int64[Tensor, "b"] | Bool[Tensor, "B"]) -> "_Pairs":
        return _Pairs(*(own[rows] for own in self._all()))

    def join(self, other: "_Pairs") -> "_Pairs":
        """These pairs, then the others."""
        return _Pairs(*map(torch.cat, zip(self._all(), other._all(), strict=True)))

    def put(self, rows: Int64[Tensor, "b"], new: "_Pairs") -> "_Pairs":
        """With other pairs in these rows."""
        both = zip(self._all(), new._all(), strict=True)
        return _Pairs(*(own.index_copy(0, rows, others) for own, others in both))

    def _all(self) -> tuple[Tensor, ...]:
        return self.z, self.kinds, self.inputs, self.tokens, self.score


def choose_by_edits(
    changed: Int[np.ndarray, "L B"], score: Float[np.ndarray, "L B"], edits: int
) -> Int64[np.ndarray, "B"]:
    """Which of several outputs of each pair to take where about `edits` steps are to change.

    `changed` says how many steps each output changes, `score` how good it is. It is the best of
    those that change as many to within 15 %. Where none does, it is the nearest. Of equal ones it
    is the first.
    """
    gaps = np.abs(changed - edits)
    near = gaps <= np.maximum(gaps.min(axis=0), _NEAR_ENOUGH * edits)
    return np.asarray(np.where(near, score, -np.inf).argmax(axis=0))


def find_price(at_one: float, lambda_: float) -> float:
    """The price at λ, in nats, where it is `at_one` at λ = 1.

    It is linear in log λ: from 0 at `FREE` to `at_one` at 1, and above 1 it rises by `NEAR` with
    every factor of ten. So λ holds back both the map of latents and the writer.
    """
    rise = NEAR if lambda_ > 1 else -at_one / math.log10(FREE)
    return max(0.0, at_one + rise * math.log10(lambda_))


def _price_halves(price: Float[Tensor, "B"], shares: tuple[float, float]) -> Float[Tensor, "B 2"]:
    """The prices of both halves: the smaller the share of a half, the more its tokens cost."""
    halves = [
        price / share if share > 0 else torch.full_like(price, _UNPAYABLE) for share in shares
    ]
    return torch.stack(halves, 1)


def _apply(
    generator: Generator,
    pairs: _Pairs,
    style: Float[Tensor, "B S"],
    lambda_: Float[Tensor, "B"],
    shares: tuple[float, float],
) -> Float[Tensor, "B Z2"]:
    before = _halves(pairs.z)
    after = generator.iterate(before, style, [1], lambda_, pairs.kinds)[1]
    steps = zip(before, after, shares, strict=True)
    return torch.cat([torch.lerp(old, new, share) for old, new, share in steps], 1)


def _halves(z: Float[Tensor, "B Z2"]) -> Pair:
    left, right = z.chunk(2, 1)
    return left.contiguous(), right.contiguous()
