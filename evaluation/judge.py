"""The judges decide from decoded notes whether a pair is adjacent. No transform may import them.

Two judges are trained in the same way, but with draws and a shape of their own. The *selection
judge* scores validation songs, and choices may depend on it. The *reporting judge* scores test
songs, and only reports depend on it.

Letters in shapes: `B` pairs, `N` segments, `P` adjacent pairs, `Q` unpaired ones, `T` steps, `Z`
dimensions of the judge's own latents, `M` members of its committee, `C` classes of pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float, Float64, Integer
from torch import Tensor, nn
from torch.nn import functional

from cf_core.continuation import Continuation, Likelihoods
from cf_core.kinds import Groups, find_kinds
from cf_core.melody import MelodyFormat
from cf_core.nets import ResidualBlock, dropout, initialise
from cf_core.seeding import derive, make_random
from cf_core.settings import Settings
from cf_core.training import Trainer, adamw, warmup_cosine
from cf_core.vae import MelodyVAE, VAESettings, VAETrainer
from evaluation.classifier import take_step
from evaluation.statistics import TokenPairs

_USUAL = torch.tensor([0.25, 0.5], dtype=torch.float64)
"""Quantiles of real neighbours between which their likelihood ratio is usual."""

_SHARES = {"unpaired": 6.0, "continued": 6.0}
"""How much a kind of negatives counts in the weights of opinions; every other kind has 1."""


@dataclass(frozen=True)
class ReaderSettings(VAESettings):
    """The judge's own VAE, of which only the encoder is used."""

    latent_dim: int = 48
    """Dimensions of a segment's latent."""
    hidden: int = 384
    """Width of the encoder and the decoder."""
    steps: int = 800
    """Training steps."""


@dataclass(frozen=True)
class JudgeSettings(Settings):
    """Shape and training of one judge."""

    shares = ("dropout",)

    reader: ReaderSettings = ReaderSettings()
    """The judge's own VAE, of which only the encoder is used. With few songs, an encoder trained
    on the judge's task alone memorises the songs."""
    members: int = 4
    """Number of networks on top of the encoder, whose log-odds are averaged."""
    hidden: int = 256
    """Width of these networks."""
    depth: int = 2
    """Residual blocks of each of these networks."""
    dropout: float = 0.3
    """Share of units dropped in training these networks."""
    steps: int = 1000
    """Training steps of these networks, after those of the reader."""
    batch: int = 192
    """Adjacent pairs per step, and as many negatives."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""


_CLASSES = ("adjacent", "unrelated", "hard")
"""What members tell apart. Told as one, unrelated pairs and hard negatives, which differ from
adjacent ones in opposite ways, would blur each other."""


class _Member(nn.Module):
    """Gives a logit for each of `_CLASSES`, from the latents of both halves and their product."""

    def __init__(self, latent_dim: int, settings: JudgeSettings) -> None:
        super().__init__()
        width = settings.hidden
        self.share = settings.dropout
        self.reader = nn.Sequential(nn.Linear(latent_dim, width), ResidualBlock(width))
        self.both = nn.Sequential(
            nn.Linear(3 * width, width),
            *(ResidualBlock(width) for _ in range(settings.depth)),
            nn.LayerNorm(width),
            nn.GELU(),
        )
        self.output = nn.Linear(width, len(_CLASSES))

    def forward(
        self,
        left: Float[Tensor, "B Z"],
        right: Float[Tensor, "B Z"],
        random: torch.Generator | None,
    ) -> Float[Tensor, "B C"]:
        left, right = (dropout(self.reader(z), self.share, random) for z in (left, right))
        features = self.both(torch.cat((left, right, left * right), -1))
        logits: Tensor = self.output(dropout(features, self.share, random))
        return logits


class Judge(nn.Module):
    """Gives the logit that two segments are adjacent in one song, from their tokens.

    It joins two opinions. The first is that of a committee of networks, which read the posterior
    means of both halves by the encoder of the judge's own VAE: is a pair rather adjacent than
    unrelated, and rather adjacent than a hard negative? The second is that of a model of notes: how
    much likelier the right half is after the left one than by itself, and how likely it is at all.
    Hard negatives are drawn by another model of notes, since none can tell what it drew itself from
    what was composed.
    """

    def __init__(
        self, form: MelodyFormat, settings: JudgeSettings, continuation: Continuation
    ) -> None:
        super().__init__()
        self.reader = MelodyVAE(form, settings.reader)
        latent_dim = settings.reader.latent_dim
        self.members = nn.ModuleList(_Member(latent_dim, settings) for _ in range(settings.members))
        self.continuation = continuation
        # A weight of each of `_terms`, and a shift.
        weights = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
        self.register_buffer("calibration", weights.double())
        # Between these, in nats, the likelihood ratio says nothing.
        self.register_buffer("usual", torch.zeros(2).double())

    def rate(
        self,
        left: Float[Tensor, "M B Z"],
        right: Float[Tensor, "M B Z"],
        random: torch.Generator | None = None,
    ) -> Float[Tensor, "M B C"]:
        """Logits of each member for each class, each for its own draw of the latents.

        Units are dropped only if a generator is given (in training).
        """
        members = zip(self.members, left, right, strict=True)
        return torch.stack([member(*pair, random) for member, *pair in members])

    @torch.no_grad()
    def probability(
        self,
        left: Integer[Tensor, "B T"],
        right: Integer[Tensor, "B T"],
        likelihoods: Likelihoods | None = None,
    ) -> Float[Tensor, "B"]:
        """Probability of adjacency if half of all pairs are adjacent and half are unpaired.

        It is such a probability only after `calibrate`. `likelihoods` are those of the pairs by
        `continuation`, which are computed where they are not given.
        """
        return torch.sigmoid(self.logits(left, right, likelihoods))

    @torch.no_grad()
    def logits(
        self,
        left: Integer[Tensor, "B T"],
        right: Integer[Tensor, "B T"],
        likelihoods: Likelihoods | None = None,
    ) -> Float[Tensor, "B"]:
        """Logit of `probability`."""
        weights = self.get_buffer("calibration")
        terms = self._terms(self.opinions(left, right, likelihoods))
        return (terms @ weights[:-1] + weights[-1]).float()

    @torch.no_grad()
    def opinions(
        self,
        left: Integer[Tensor, "B T"],
        right: Integer[Tensor, "B T"],
        likelihoods: Likelihoods | None = None,
    ) -> Float64[Tensor, "B 4"]:
        """What the committee and the model of notes say, in nats.

        These are the committee's mean log-odds of an adjacent pair against an unrelated one and
        against a hard negative, log p(right | left) - log p(right), and log p(right).
        """
        halves = [
            self.reader.encode_mean(half).expand(len(self.members), -1, -1)
            for half in (left, right)
        ]
        rated = self.rate(halves[0], halves[1]).mean(0)
        committee = rated[:, :1] - rated[:, 1:]
        if likelihoods is None:
            likelihoods = self.continuation.compare(left, right)
        after, alone = (each.sum(1) for each in likelihoods)
        ratio = after - alone
        return torch.cat((committee, torch.stack((ratio, alone), dim=1)), dim=1).double()

    def _read(self, pairs: TokenPairs) -> Float64[Tensor, "B 4"]:
        left, right = map(torch.as_tensor, pairs)
        return self.opinions(left, right)

    def _terms(self, opinions: Float64[Tensor, "B 4"]) -> Float64[Tensor, "B 5"]:
        """Split the ratio in two: how far it is below what is usual, and how far above.

        A ratio can be too high. That of a repeat is far above that of most real neighbours.
        """
        unrelated, hard, ratio, alone = opinions.unbind(1)
        low, high = self.get_buffer("usual")
        below, above = ratio.clamp(max=low) - low, ratio.clamp(min=high) - high
        return torch.stack((unrelated, hard, below, above, alone), dim=1)

    def calibrate(
        self, adjacent: TokenPairs, unpaired: TokenPairs, hard: Mapping[str, TokenPairs]
    ) -> None:
        """Fit the weights of the opinions to pairs of songs not used in training.

        Logistic regression of adjacent pairs against unpaired ones and all kinds of hard negatives,
        by `_SHARES`, finds how much each opinion counts. The many continuations limit the weight
        of the model of notes, since what such a model draws is likely to another. A scale and a
        shift are then fitted to adjacent and unpaired pairs alone (Platt 1999). Prior samples are
        negatives in training, but not here: a transformed pair should be told from real neighbours
        by how its halves fit, not by whether it was sampled.
        """
        real = self._read(adjacent)
        self.get_buffer("usual").copy_(real[:, 2].quantile(_USUAL))
        neighbours, unrelated = self._terms(real), self._terms(self._read(unpaired))
        negatives = {"unpaired": unrelated}
        negatives |= {kind: self._terms(self._read(pairs)) for kind, pairs in hard.items()}
        weights = fit_logistic(
            neighbours, [(own, _SHARES.get(kind, 1.0)) for kind, own in negatives.items()]
        )
        joined = [(kind @ weights[:-1] + weights[-1])[:, None] for kind in (neighbours, unrelated)]
        scale, shift = fit_logistic(joined[0], [(joined[1], 1.0)])
        self.get_buffer("calibration").copy_(scale * weights)
        self.get_buffer("calibration")[-1] += shift


def fit_logistic(
    positive: Float64[Tensor, "P F"], negatives: Sequence[tuple[Float64[Tensor, "_ F"], float]]
) -> Float64[Tensor, "_"]:
    """Fit a weight for each feature, and a shift, by logistic regression.

    Negatives of all kinds together count as much as the positives, and each kind in proportion to
    its share, however many pairs there are of it.
    """
    features = torch.cat((positive, *(kind for kind, _ in negatives)))
    mean, deviation = features.mean(0), features.std(0).clamp(min=1e-9)
    inputs = functional.pad((features - mean) / deviation, (0, 1), value=1.0)
    # Platt's targets lie inside 0 to 1, so that separable pairs have a finite fit.
    other = len(features) - len(positive)
    targets = torch.full((len(features),), 1 / (other + 2), dtype=torch.float64)
    targets[: len(positive)] = (len(positive) + 1) / (len(positive) + 2)
    sizes = torch.tensor([len(positive), *(len(kind) for kind, _ in negatives)])
    shares = torch.tensor([share for _, share in negatives], dtype=torch.float64)
    halves = torch.cat((torch.ones(1), shares / shares.sum())) / 2
    weight = (halves / sizes).repeat_interleave(sizes)
    fit = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [fit],
        max_iter=200,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        own = functional.binary_cross_entropy_with_logits(
            inputs @ fit, targets, weight=weight, reduction="sum"
        )
        own.backward()
        return own

    optimiser.step(loss)
    weights = fit.detach()[:-1] / deviation
    return torch.cat((weights, (fit.detach()[-1] - weights @ mean)[None]))


@dataclass(frozen=True)
class JudgeData:
    """Training data of a judge: the segments of the training songs, as notes."""

    real: Integer[Tensor, "N T"]
    reconstructed: Integer[Tensor, "N T"]
    """The same segments, encoded to the posterior mean and decoded."""
    prior: Integer[Tensor, "M T"]
    """Decoded samples of the prior."""
    pairs: Integer[Tensor, "P 2"]
    hard: Integer[Tensor, "H 2 T"]
    """Hard negatives (`evaluation.negatives`)."""


class JudgeTrainer(Trainer):
    """Trains the reader as a VAE of the training segments, then the members on its latents.

    The members learn, by logistic regression, to tell the classes of pairs apart. A half of each
    batch are adjacent pairs, a quarter are unrelated ones, of which a third are decoded prior
    samples, and a quarter are hard negatives.
    Two thirds of the adjacent, of the hard and of the unpaired ones are encoded and decoded, so
    that a decoded segment is no sign of adjacency. Each member sees its own draws of the
    posteriors.
    """

    def __init__(
        self,
        data: JudgeData,
        continuation: Continuation,
        form: MelodyFormat,
        settings: JudgeSettings,
        seed: int,
        name: str,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(settings.reader.steps + settings.steps)
        self.data, self.settings, self.device = data, settings, torch.device(device)
        self.seed, self.name = seed, name
        self.judge = Judge(form, settings, continuation)
        initialise(self.judge.members, make_random(seed, name, "weights"))
        tokens, own = data.real.numpy(), derive(seed, name, "reader")
        self.reading = VAETrainer(tokens, form, settings.reader, own, device)
        self.judge.reader = self.reading.vae
        self.judge.to(device)
        self.optimiser = adamw(self.judge.members, settings.learning_rate)
        self.networks = {"judge": self.judge}
        self.optimisers = {"reader": self.reading.optimiser, "members": self.optimiser}

    def update(self) -> dict[str, Tensor]:
        """Take one step on fresh draws."""
        read = self.settings.reader.steps
        if self.step < read:
            self.reading.step = self.step
            return {"loss": self.reading.update()["reconstruction"]}
        random = make_random(self.seed, self.name, self.step, device=self.device)
        left, right = self._draw(random)
        logits = self.judge.rate(left, right, random)
        batch, half = self.settings.batch, self.settings.batch // 2
        sizes = torch.tensor((batch, half, batch - half))
        classes = torch.arange(len(_CLASSES)).repeat_interleave(sizes).to(self.device)
        loss = functional.cross_entropy(logits.flatten(0, 1), classes.repeat(len(logits)))
        rate = self.settings.learning_rate * warmup_cosine(self.step - read, self.settings.steps)
        return take_step(loss, self.optimiser, rate)

    @cached_property
    def _posteriors(self) -> tuple[Float[Tensor, "N Z"], Float[Tensor, "N Z"]]:
        """Posteriors of real, reconstructed and prior segments, in order, by the trained reader."""
        data = self.data
        segments = (data.real, data.reconstructed, data.prior, data.hard.flatten(0, 1))
        tokens = torch.cat(segments).numpy()
        return self.judge.reader.posteriors(tokens)

    @staticmethod
    def _draw_unpaired(
        groups: Groups, count: int, random: torch.Generator
    ) -> Integer[Tensor, "B 2"]:
        device = groups.kinds.device
        left = torch.randint(len(groups.kinds), (count,), generator=random, device=device)
        chance = torch.rand(count, generator=random, device=device)
        return torch.stack((left, groups.match(chance, left)), 1)

    @cached_property
    def _groups(self) -> tuple[Groups, Groups]:
        """Real and prior segments by the kinds of their bars."""
        prior = find_kinds(self.data.prior, self.judge.reader.form).to(self.device)
        return Groups.of(self.reading.kinds), Groups.of(prior)

    @cached_property
    def _pairs(self) -> Integer[Tensor, "P 2"]:
        return self.data.pairs.to(self.device)

    def _draw(
        self, random: torch.Generator
    ) -> tuple[Float[Tensor, "M B Z"], Float[Tensor, "M B Z"]]:
        rows = self.draw_rows(random)
        mean, deviation = (posterior[rows] for posterior in self._posteriors)
        shape = self.settings.members, *mean.shape
        noise = torch.randn(shape, generator=random, device=self.device)
        left, right = (mean + deviation * noise).unbind(2)
        return left, right

    def draw_rows(self, random: torch.Generator) -> Integer[Tensor, "B 2"]:
        """Draw the segments of a batch, as rows of `_posteriors`; adjacent pairs come first."""
        data, batch = self.data, self.settings.batch
        reconstructed, prior = len(data.real), 2 * len(data.real)
        hard = prior + len(data.prior)
        third, half, sixth = batch // 3, batch // 2, batch // 6
        draw = partial(torch.randint, generator=random, device=self.device)
        adjacent = self._pairs[draw(len(data.pairs), (batch,))]
        unpaired, drawn = (
            self._draw_unpaired(groups, count, random)
            for groups, count in zip(self._groups, (half - sixth, sixth), strict=True)
        )
        chosen = draw(len(data.hard), (batch - half, 1))
        own = (half - sixth) // 3
        parts = (
            adjacent[:third],
            adjacent[third:] + reconstructed,
            unpaired[:own],
            unpaired[own:] + reconstructed,
            drawn + prior,
            hard + 2 * chosen + torch.arange(2, device=self.device),
        )
        return torch.cat(parts)
