"""How likely is a right half, after a left one and by itself? An autoregressive model of notes.

It learns from the training songs alone and knows no latents. One such model is a second opinion for
the judges, of another class: a density, not a classifier. Others write notes (`cf_core.writer`).
The log-likelihood ratio log p(right | left) - log p(right) is the pointwise mutual information of
two halves.

One network gives both. It reads a melody token by token, and two adjacent halves are one melody of
2T steps: p(right | left) is the probability of its second half, and p(right) that of a melody
which begins with the right half. It predicts each token from a window of earlier ones: the last
few, and those around the same place one bar and one segment before, where music repeats itself.
Pitches are given and predicted as intervals from the last pitch struck. Melodies of different kinds
of bars are read by one network, one kind at a time.

Letters in shapes: `B` pairs, `T` steps of a half, `N` steps of a melody of one or two halves, `n`
some of its steps, `K` places of the window, `M` kinds of bars, `V` tokens, `S` segments, `P`
adjacent pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor, nn
from torch.nn import functional

from cf_core.kinds import find_kinds, look_up, split_kinds
from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat
from cf_core.nets import ResidualBlock, count_at_once, dropout, initialise
from cf_core.seeding import make_random
from cf_core.settings import Settings
from cf_core.training import Trainer, adamw, limit_threads, warmup_cosine
from cf_core.vae import transpose

_NEAR = 8
"""How many of the last steps are in the window."""
_AROUND = range(-2, 3)
"""Steps around the same place one bar and one segment before that are in the window."""
WIDEST = 24
"""Widest interval that the network tells from wider ones, in semitones."""
_INTERVALS = 2 * WIDEST + 1
_SILENT, _ABSENT = 2 * _INTERVALS, 2 * _INTERVALS + 1
"""Codes of a rest and of a place before the start. Onsets of each interval and holds of each
interval come first."""
_CODES = 2 * _INTERVALS + 2
_PLACES = _NEAR + 2 * len(_AROUND)
"""How many places the window has."""
ONSET_SHARE = 0.5
"""By what share of the price an onset is favoured where there is one, whatever its pitch."""
_CHUNK = 256
"""Pairs that are rated at one time."""

_AHEAD = 512
"""Tokens that are guessed and drawn at one time. So few cost hardly more than one."""


@dataclass(frozen=True)
class ContinuationSettings(Settings):
    """Shape and training of the autoregressive model of notes."""

    may_be_zero = ("transpose_down", "transpose_up")
    shares = ("dropout",)

    hidden: int = 128
    """Width."""
    dropout: float = 0.1
    """Share of units, and of places of the window, dropped in training."""
    steps: int = 400
    """Training steps."""
    batch: int = 64
    """Adjacent pairs per step."""
    learning_rate: float = 1e-2
    """Peak learning rate of AdamW."""
    transpose_down: int = 5
    """Largest transposition downwards in augmentation, in semitones."""
    transpose_up: int = 6
    """Largest transposition upwards in augmentation, in semitones."""


class Likelihoods(NamedTuple):
    """Log-probability, in nats, of each token of right halves, given all before it."""

    after: Float[Tensor, "B T"]
    """After the left half: the sum over the steps is log p(right | left)."""
    alone: Float[Tensor, "B T"]
    """By itself: the sum over the steps is log p(right)."""


class Continuation(nn.Module):
    """Gives the probability of each token of a melody, given those before it.

    A hold at the start of a half or after a rest has no note to hold: such a token counts as a
    rest, and has no probability of its own. The probabilities of all right halves without such
    holds sum to 1.
    """

    def __init__(self, form: MelodyFormat, settings: ContinuationSettings) -> None:
        super().__init__()
        self.form, self.share, self.lags = form, settings.dropout, _find_lags(form)
        # Here, too, since an exporter can't follow what a format computes when it is asked.
        self.lengths, self.slot_of = np.array(form.lengths), form.slot_of
        width = settings.hidden
        # One table for all places: a sum of its rows is a linear map of what is in the window.
        self.window = nn.Embedding(_PLACES * _CODES, width)
        # A row for each slot, then one for each kind of bars but the first.
        self.place = nn.Embedding(form.slots.shape[1] + len(form.kinds) - 1, width)
        self.pitch = nn.Embedding(form.vocabulary, width)
        self.body = nn.Sequential(ResidualBlock(width), nn.LayerNorm(width), nn.GELU())
        self.output = nn.Linear(width, FIRST_PITCH + _INTERVALS)

    def forward(
        self,
        tokens: Int64[Tensor, "B N"],
        kind: int,
        count: int,
        random: torch.Generator | None = None,
    ) -> Float[Tensor, "B n V"]:
        """Log-probabilities of all tokens at each of the last `count` steps.

        The melodies are of one `kind` of bars, and without marks. The tokens of a step are read
        only for the steps after it. Units are dropped only if a generator is given (in training).
        """
        asked = torch.arange(tokens.shape[1] - count, tokens.shape[1], device=tokens.device)
        kinds = asked.new_full((1,), kind)
        return self.predict(tokens, follow_pitch(tokens), kinds, asked[None], random)

    def predict(
        self,
        tokens: Int64[Tensor, "B N"],
        pitch: Int64[Tensor, "B N"],
        kinds: Int64[Tensor, "#B"],
        asked: Int64[Tensor, "#B n"],
        random: torch.Generator | None = None,
    ) -> Float[Tensor, "B n V"]:
        """As `forward`, at the steps `asked` of melodies of these kinds of bars.

        `pitch` is what `follow_pitch` finds before these steps. One kind and one row of
        steps, together, may stand for all melodies.
        """
        steps = asked % look_up(self.lengths, kinds)[:, None]
        window, struck, hangs = self._read(tokens, pitch, kinds, asked, steps)
        place = self.place(look_up(self.slot_of, kinds).gather(1, steps))
        if len(self.lengths) > 1:
            own = self.place.weight[self.place.num_embeddings - len(self.lengths) + 1 :]
            place = place + functional.pad(own, (0, 0, 1, 0))[kinds, None]
        if random is not None:
            chance = torch.rand(window.shape, generator=random, device=window.device)
            dropped = chance < self.share
            window = torch.where(dropped, _ABSENT, window)
        rows = (window + torch.arange(_PLACES, device=window.device) * _CODES).flatten(0, 1)
        if torch.compiler.is_exporting():  # a graph would go over the bags one by one
            seen = functional.embedding(rows, self.window.weight).sum(1)
        else:
            seen = functional.embedding_bag(rows, self.window.weight, mode="sum")
        inner = seen.unflatten(0, struck.shape) + (place + self.pitch(struck))
        relative = self.output(dropout(self.body(inner), self.share, random))
        pitches = torch.arange(FIRST_PITCH, self.form.vocabulary, device=struck.device)
        column = (pitches - struck[..., None]).clamp(-WIDEST, WIDEST) + WIDEST + FIRST_PITCH
        hold = relative[..., HOLD].masked_fill(hangs, -torch.inf)
        logits = torch.cat(
            (relative[..., REST, None], hold[..., None], relative.gather(2, column)), dim=2
        )
        return logits.log_softmax(-1)

    def _read(
        self,
        tokens: Int64[Tensor, "B N"],
        pitch: Int64[Tensor, "B N"],
        kinds: Int64[Tensor, "#B"],
        asked: Int64[Tensor, "#B n"],
        steps: Int64[Tensor, "#B n"],
    ) -> tuple[Int64[Tensor, "B n K"], Int64[Tensor, "B n"], Bool[Tensor, "B n"]]:
        """What is known before each of the steps `asked`, which are these steps of their halves.

        That is the window, the token of the last pitch struck (the middle of the vocabulary before
        the first one), and whether a hold would have no note.
        """
        before = (asked - 1).clamp(min=0)
        struck = torch.where(asked == 0, -1, _take(pitch, before))
        struck = torch.where(struck < 0, self.form.vocabulary // 2, struck)
        hangs = (steps == 0) | (_take(tokens, before) == REST)
        places = asked[..., None] - look_up(self.lags, kinds)[:, None]
        at, shape = places.clamp(min=0).flatten(1), (-1, *places.shape[1:])
        interval = _take(pitch, at).reshape(shape) - struck[..., None]
        interval = interval.clamp(-WIDEST, WIDEST) + WIDEST
        seen = _take(tokens, at).reshape(shape)
        window = torch.where(seen == HOLD, interval + _INTERVALS, interval)
        window = torch.where(seen == REST, _SILENT, window)
        return torch.where(places < 0, _ABSENT, window), struck, hangs

    @torch.no_grad()
    def per_step(
        self, right: Integer[Tensor, "B T"], left: Integer[Tensor, "B T"] | None
    ) -> Float[Tensor, "B T"]:
        """Log-probability, in nats, of each token of the right half given all before it.

        `left` is before it too, unless it is None. Marks have a log-probability of 0: they are
        certain.
        """
        device, given = self.window.weight.device, [h for h in (left, right) if h is not None]
        halves = [drop_hanging_holds(half.to(device).long()) for half in given]
        rated = torch.zeros(right.shape, device=device)
        with limit_threads(1):  # sums are to add up alike in workers and elsewhere
            for kind, rows in self._split(right):
                steps = self.form.lengths[kind]
                joined = torch.cat([half[rows, :steps] for half in halves], dim=1)
                parts = joined.split(count_at_once(_CHUNK, device))
                own = torch.cat([self._rate(part, kind, steps) for part in parts])
                rated[rows, :steps] = own
        return rated

    def _split(self, tokens: Integer[Tensor, "B T"]) -> Iterator[tuple[int, Int64[Tensor, "b"]]]:
        """Yield each kind of bars that occurs, and which rows have it."""
        return split_kinds(find_kinds(tokens, self.form).to(self.window.weight.device), self.form)

    def _rate(self, tokens: Int64[Tensor, "B N"], kind: int, count: int) -> Float[Tensor, "B n"]:
        rated = self(tokens, kind, count)
        found: Tensor = rated.gather(2, tokens[:, -count:, None]).squeeze(2)
        return found

    def compare(self, left: Integer[Tensor, "B T"], right: Integer[Tensor, "B T"]) -> Likelihoods:
        """How likely right halves are after left ones, and by themselves, token by token."""
        return Likelihoods(self.per_step(right, left), self.per_step(right, None))

    def log_probability(
        self, right: Integer[Tensor, "B T"], left: Integer[Tensor, "B T"] | None
    ) -> Float[Tensor, "B"]:
        """Log p(right | left) in nats; log p(right) where `left` is None."""
        return self.per_step(right, left).sum(1)

    @torch.no_grad()
    def sample(
        self, left: Integer[Tensor, "B T"], count: int, random: torch.Generator
    ) -> Int64[Tensor, "count B T"]:
        """Draw right halves, `count` for each left one. None has a hold without a note."""
        lefts = left.repeat(count, 1).to(self.window.weight.device)
        chance = torch.rand(lefts.shape, generator=random, device=random.device).to(lefts.device)
        nothing = torch.zeros(len(lefts), device=lefts.device)  # no token is favoured
        drawn = self.rewrite(lefts, lefts, nothing, chance)
        return drawn.reshape(count, *left.shape)

    @torch.no_grad()
    def rewrite(
        self,
        left: Integer[Tensor, "B T"],
        right: Integer[Tensor, "B T"],
        price: Float[Tensor, "B"],
        chance: Float[Tensor, "B T"],
    ) -> Int64[Tensor, "B T"]:
        """Draw right halves after the left ones, which stay near given right halves.

        Both halves of a pair have bars of one kind. At each step, the token of `right` is e^price
        times as likely, against every other token, as by the model, and where it is an onset, all
        onsets together at least e^(price / 2) times (H4). The higher the price, in nats, the fewer
        tokens change. None has a hold without a note.

        `chance`, uniform in 0…1, decides each draw: the token is the first with which the
        probability of it and all before it in the vocabulary exceeds `chance`. What is drawn for a
        row thus depends on no other row.
        """
        start, favoured = (drop_hanging_holds(half.long()) for half in (left, right))
        drawn = favoured.clone()
        with limit_threads(1):
            for kind, rows in self._split(right):
                steps = self.form.lengths[kind]
                given = start[rows, :steps], favoured[rows, :steps], price[rows], chance[rows]
                drawn[rows, :steps] = self._draw(kind, *given)
        return drawn

    def _draw(
        self,
        kind: int,
        start: Int64[Tensor, "B n"],
        favoured: Int64[Tensor, "B n"],
        price: Float[Tensor, "B"],
        chance: Float[Tensor, "B T"],
    ) -> Int64[Tensor, "B n"]:
        """Draw halves of one kind of bars, as `rewrite` says.

        Few pairs are drawn many steps at one time, after guesses of the tokens before each step:
        those of `favoured` first, later those of the last round. Draws are right up to the first
        one that differs from its guess, and the next round begins after it. The more pairs, the
        fewer steps at one time, since then the arithmetic counts and a wrong guess is dear.
        """
        device = start.device
        steps = start.shape[1]
        tokens = torch.cat((start, favoured), dim=1)
        pitch = follow_pitch(tokens)
        ahead, done = max(1, _AHEAD // len(start)), steps
        kinds = tokens.new_full((1,), kind)
        while done < 2 * steps:
            end = min(done + ahead, 2 * steps)
            asked = torch.arange(done, end, device=device)
            held = pitch[:, done - 2, None]
            pitch[:, done - 1 : end] = follow_pitch(tokens[:, done - 1 : end], held)
            logits = self.predict(tokens, pitch, kinds, asked[None])
            logits = favour(logits, favoured[:, asked - steps], price)
            up_to = logits.softmax(2).cumsum(2)
            bound = chance[:, asked - steps, None] * up_to[..., -1:]
            drawn = torch.searchsorted(up_to, bound, right=True).squeeze(2)
            drawn = drawn.clamp(max=logits.shape[2] - 1)
            is_wrong = (drawn != tokens[:, asked]).any(0)
            tokens[:, asked] = drawn
            # A single step is right whatever was guessed, and a device need not be asked.
            wrong = is_wrong.nonzero() if len(asked) > 1 else asked[:0]
            done = done + int(wrong[0]) + 1 if len(wrong) else end
        return tokens[:, steps:]


def _find_lags(form: MelodyFormat) -> Int64[np.ndarray, "M K"]:
    """How many steps before a step each place of its window is, in each kind of bars."""
    lags = np.array(
        [
            [*range(1, _NEAR + 1), *(lag + offset for lag in own for offset in _AROUND)]
            for own in zip(map(len, form.bars), form.lengths, strict=True)
        ]
    )
    # A place that is not before the step is none.
    return np.where(lags > 0, lags, 2 * np.array(form.lengths)[:, None])


def favour(
    rated: Float[Tensor, "B n V"], favoured: Int64[Tensor, "B n"], price: Float[Tensor, "B"]
) -> Float[Tensor, "B n V"]:
    """Weigh tokens, in nats, so that changes of the favoured ones cost a price (H4).

    Were an onset favoured by its pitch alone, one whose pitch fits badly would mostly become a
    hold, which is one token where pitches are many, and notes would be lost.
    """
    cost = price[:, None].expand(favoured.shape)
    weighed = rated.scatter_add(2, favoured[..., None], cost[..., None])
    gained = weighed[..., FIRST_PITCH:].logsumexp(2) - rated[..., FIRST_PITCH:].logsumexp(2)
    lacking = (ONSET_SHARE * cost - gained).clamp(min=0)
    lacking = torch.where(favoured >= FIRST_PITCH, lacking, torch.zeros_like(cost))
    weighed[..., FIRST_PITCH:] += lacking[..., None]
    return weighed


def follow_pitch(
    tokens: Int64[Tensor, "B N"], before: Int64[Tensor, "B 1"] | int = -1
) -> Int64[Tensor, "B N"]:
    """The token of the last pitch struck up to each step; `before` until the first one."""
    last = _find_last(tokens >= FIRST_PITCH)
    return torch.where(last >= 0, tokens.gather(1, last.clamp(min=0)), before)


def drop_hanging_holds(tokens: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
    """Replace each hold that has no note, at the start or after a rest, by a rest."""
    start = _find_last(tokens != HOLD)
    begun = tokens.gather(1, start.clamp(min=0))
    hangs = (tokens == HOLD) & ((start < 0) | (begun == REST))
    return torch.where(hangs, REST, tokens)


def _take(values: Int64[Tensor, "B N"], steps: Int64[Tensor, "#B m"]) -> Int64[Tensor, "B m"]:
    """The values at these steps; one row of steps may stand for all."""
    return values.gather(1, steps.expand(values.shape[0], -1))


def _find_last(chosen: Bool[Tensor, "B N"]) -> Int64[Tensor, "B N"]:
    """The last chosen step up to each step; -1 until the first one.

    It does without a running maximum, which ONNX does not have.
    """
    steps = torch.arange(chosen.shape[1], device=chosen.device).expand(chosen.shape)
    number = chosen.long().cumsum(1)  # how many were chosen so far
    places = steps.new_full((chosen.shape[0], chosen.shape[1] + 1), -1)
    # What was not chosen is put behind all numbers, where nothing is looked up.
    places = places.scatter(1, torch.where(chosen, number - 1, chosen.shape[1]), steps)
    found = places.gather(1, (number - 1).clamp(min=0))
    return torch.where(number > 0, found, -1)


def reverse(tokens: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
    """Play melodies backwards: each note begins where it ended. Twice gives the melody back.

    No hold may be without a note (`drop_hanging_holds`). Marks stay behind the notes.
    """
    steps = torch.arange(tokens.shape[1], device=tokens.device)
    last = (tokens >= REST).sum(1, keepdim=True) - 1
    goes_on = functional.pad(tokens[:, 1:] == HOLD, (0, 1))
    sounding = torch.where(goes_on, HOLD, follow_pitch(tokens))
    turned = torch.where(tokens > REST, sounding, tokens)
    return turned.gather(1, torch.where(steps <= last, last - steps, steps))


class ContinuationTrainer(Trainer):
    """Maximises the likelihood of adjacent pairs as melodies of two halves.

    Each pair is transposed as a whole, at random. The first halves teach the probability of a half
    by itself, the second ones that of a half after another. All draws come from `seed` and
    `purpose`.
    """

    def __init__(
        self,
        tokens: Integer[Tensor, "S T"],
        pairs: Integer[Tensor, "P 2"],
        form: MelodyFormat,
        settings: ContinuationSettings,
        seed: int,
        purpose: str = "continuation",
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(settings.steps)
        self.settings, self.seed, self.form, self.purpose = settings, seed, form, purpose
        self.tokens, self.pairs = drop_hanging_holds(tokens.long()).to(device), pairs.to(device)
        self._kinds = find_kinds(self.tokens, form)[self.pairs[:, 0]]
        self.continuation = Continuation(form, settings)
        initialise(self.continuation, make_random(seed, purpose, "weights"))
        with torch.no_grad():  # what is summed over the window is to be as large as one embedding
            self.continuation.window.weight.mul_(_PLACES**-0.5)
        self.continuation.to(device)
        self.optimiser = adamw(self.continuation, settings.learning_rate)
        self.networks = {"continuation": self.continuation}
        self.optimisers = {"continuation": self.optimiser}

    def update(self) -> dict[str, Tensor]:
        """Take one step on a fresh batch, in which kinds of bars are as frequent as among pairs."""
        device, size = self.pairs.device, self.settings.batch
        random = make_random(self.seed, self.purpose, self.step, device=device)
        rows = torch.randint(len(self.pairs), (size,), generator=random, device=device)
        with limit_threads(1):
            kinds = split_kinds(self._kinds[rows], self.form)
            parts = [self._rate(kind, rows[own], random) for kind, own in kinds]
            loss, nats = torch.stack(parts).sum(0) / size
            for group in self.optimiser.param_groups:
                rise = warmup_cosine(self.step, self.steps)
                group["lr"] = self.settings.learning_rate * rise
            self.optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.continuation.parameters(), 1.0)
            self.optimiser.step()
        return {"loss": nats.detach()}

    def _rate(
        self, kind: int, rows: Int64[Tensor, "b"], random: torch.Generator
    ) -> Float[Tensor, "2"]:
        """Mean loss of a token, and of a half in nats, of pairs of one kind, times their number."""
        length = self.form.lengths[kind]
        joined = self.tokens[self.pairs[rows], :length].flatten(1)
        down, up = self.settings.transpose_down, self.settings.transpose_up
        melodies = transpose(joined, self.form, down, up, random)
        rated = self.continuation(melodies, kind, melodies.shape[1], random)
        loss = functional.nll_loss(rated.flatten(0, 1), melodies.flatten())
        return len(rows) * torch.stack((loss, loss * length))
