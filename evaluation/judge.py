"""The judges: adjacent or not, judged from decoded notes. No transform may reach this module.

Two judges are trained alike, but with draws and a shape of their own. The *selection judge* scores
validation songs and may decide what is selected; the *reporting judge* scores test songs and only
reports.

Letters in shapes: `B` pairs, `N` segments, `P` adjacent pairs, `T` steps.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional

from cf_core.melody import FIRST_PITCH, HOLD, MelodyFormat
from cf_core.nets import ResidualBlock, dropout, initialise
from cf_core.seeding import generator
from cf_core.settings import Settings
from cf_core.training import Trainer, warmup_cosine
from cf_core.vae import transpose
from evaluation.classifier import adamw, logistic_step

TokenPair = tuple[Integer[Tensor, "B T"], Integer[Tensor, "B T"]]


@dataclass(frozen=True)
class JudgeSettings(Settings):
    """Shape and training of one judge."""

    may_be_zero = ("transpose",)
    shares = ("dropout",)

    hidden: int = 384
    """Width."""
    depth: int = 2
    """Residual blocks of the part that reads one half."""
    dropout: float = 0.3
    """Share of units dropped in training."""
    steps: int = 900
    """Training steps."""
    batch: int = 192
    """Adjacent pairs per step, and as many negatives."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    transpose: int = 5
    """Largest joint transposition of a pair in augmentation, in semitones either way."""


class Judge(nn.Module):
    """The logit of two segments' tokens being adjacent in one song.

    Each half is read by an embedding of its tokens, one of the pitch sounding at each step, and a
    shared residual MLP; both halves and their product decide.
    """

    def __init__(self, form: MelodyFormat, settings: JudgeSettings) -> None:
        super().__init__()
        width = settings.hidden
        self.form, self.dropout = form, settings.dropout
        self.tokens = nn.Embedding(form.steps * form.vocabulary, width)
        self.sounding = nn.Embedding(form.steps * form.vocabulary, width)
        self.reader = nn.Sequential(*(ResidualBlock(width) for _ in range(settings.depth)))
        self.both = nn.Linear(3 * width, width)
        self.output = nn.Linear(width, 1)
        offsets = torch.arange(form.steps) * form.vocabulary
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, pair: TokenPair, random: torch.Generator | None = None) -> Float[Tensor, "B"]:
        """Logits of the pairs; drops units only where a generator is given (in training)."""
        left, right = (
            dropout(part, self.dropout, random) for part in self._read(torch.cat(pair)).chunk(2)
        )
        features = functional.gelu(self.both(torch.cat((left, right, left * right), -1)))
        logits: Tensor = self.output(dropout(features, self.dropout, random))
        return logits.squeeze(-1)

    @torch.no_grad()
    def probability(
        self, left: Integer[np.ndarray, "B T"], right: Integer[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B"]:
        """Probability of adjacency, in chunks, without gradients."""
        chunks = zip(
            torch.as_tensor(left).long().split(2048),
            torch.as_tensor(right).long().split(2048),
            strict=True,
        )
        return torch.cat([torch.sigmoid(self(chunk)) for chunk in chunks]).numpy()

    def _read(self, tokens: Tensor) -> Tensor:
        offsets = self.get_buffer("offsets")
        bags = functional.embedding_bag(tokens + offsets, self.tokens.weight, mode="sum")
        bags = bags + functional.embedding_bag(
            sounding_pitch(tokens) + offsets, self.sounding.weight, mode="sum"
        )
        read: Tensor = self.reader(bags)
        return read


def sounding_pitch(tokens: Integer[Tensor, "B T"]) -> Integer[Tensor, "B T"]:
    """The onset token of the note that sounds at each step; 0 (rest) where none does."""
    steps = torch.arange(tokens.shape[1])
    fresh = torch.where(tokens != HOLD, steps, 0).cummax(1).values
    last = tokens.gather(1, fresh)
    return torch.where(last >= FIRST_PITCH, last, 0)


@dataclass(frozen=True)
class JudgeData:
    """What a judge is trained on: the training songs' segments, as notes."""

    real: Integer[Tensor, "N T"]
    reconstructed: Integer[Tensor, "N T"]
    """The same segments, encoded to the posterior mean and decoded."""
    prior: Integer[Tensor, "M T"]
    """Decoded samples of the prior."""
    pairs: Integer[Tensor, "P 2"]


class JudgeTrainer(Trainer):
    """Logistic regression of adjacent against unpaired and prior pairs.

    A third of the negatives is unpaired real segments, a third reconstructed ones, a third decoded
    prior samples. Two thirds of the adjacent pairs are reconstructed, so that having been decoded
    says nothing about being adjacent.
    """

    def __init__(
        self, data: JudgeData, form: MelodyFormat, settings: JudgeSettings, seed: int, name: str
    ) -> None:
        super().__init__(settings.steps)
        self.data, self.form, self.settings = data, form, settings
        self.seed, self.name = seed, name
        self.judge = Judge(form, settings)
        initialise(self.judge, generator(seed, name, "weights"))
        self.optimiser = adamw(self.judge, settings.learning_rate)
        self.networks, self.optimisers = {"judge": self.judge}, {"judge": self.optimiser}

    def update(self) -> dict[str, Tensor]:
        """One step on fresh draws."""
        random = generator(self.seed, self.name, self.step)
        pair = self._draw(random)
        shift = self.settings.transpose
        joined = transpose(torch.cat(pair, 1), self.form, shift, shift, random)
        left, right = joined.chunk(2, 1)
        logits = self.judge((left, right), random)
        rate = self.settings.learning_rate * warmup_cosine(self.step, self.steps)
        return logistic_step(logits, self.settings.batch, self.optimiser, rate)

    def _draw(self, random: torch.Generator) -> TokenPair:
        batch, third, data = self.settings.batch, self.settings.batch // 3, self.data
        adjacent = data.pairs[torch.randint(len(data.pairs), (batch,), generator=random)]
        unpaired = torch.randint(len(data.real), (batch - third, 2), generator=random)
        prior = torch.randint(len(data.prior), (third, 2), generator=random)
        parts = [
            data.real[adjacent[:third]],
            data.reconstructed[adjacent[third:]],
            data.real[unpaired[:third]],
            data.reconstructed[unpaired[third:]],
            data.prior[prior],
        ]
        rows = torch.cat(parts).long()
        return rows[:, 0], rows[:, 1]
