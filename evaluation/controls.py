"""Controls: tricks that raise measures of coherency and fuse nothing.

A study scores each of them as it scores a method. A measure that rates a trick above real
neighbours is one that the trick pleases: whoever maximises it may end at the trick. Each control is
declared once, with its name, what it does, and the letter by which figures show it. To add one,
write a function below and decorate it with `_control`; no other code has to change.

Letters in shapes: `B` pairs, `T` steps, `K` samples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch

from cf_core.distance import count_edits
from cf_core.losses import Pair
from cf_core.seeding import derive, make_random
from evaluation.metrics import METRICS, Better
from evaluation.rivals import Tools
from evaluation.rivals.lp import LP
from evaluation.sources import Source
from evaluation.statistics import NotePairs

if TYPE_CHECKING:
    from evaluation.evaluator import Evaluator

_SEARCHED = 200
"""Iterations of the longest search. LP itself takes up to 1,000, but at its largest step size it
already pleases a judge after these, and five times as many would cost more than all else that
controls need."""
_CONTINUATIONS = 8
"""Continuations of a left half, of which the one nearest to the right half is taken."""


@dataclass(frozen=True)
class Control:
    """The name of a trick, and what it does."""

    name: str
    """Its name in the tables, as a method."""
    about: str
    letter: str
    """Its mark in figures."""

    @property
    def label(self) -> str:
        """Its name in words."""
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class Inputs:
    """The inputs of a source, with what tricks are made of."""

    evaluator: "Evaluator"
    source: Source

    @property
    def count(self) -> int:
        """Number of pairs."""
        return len(self.source.songs)

    @cached_property
    def tokens(self) -> NotePairs:
        """The inputs as notes."""
        core, kinds, (left, right) = self.evaluator.core, self.source.kinds, self.source.inputs
        return core.decode_notes(left, kinds), core.decode_notes(right, kinds)

    @cached_property
    def continued(self) -> Pair:
        """The left halves, each with that of several likely continuations nearest to the right."""
        left, right = self.tokens
        random = self.random("continuation")
        drawn = self.evaluator.continuation.sample(left, _CONTINUATIONS, random)
        nearest = torch.stack([count_edits(right, each) for each in drawn]).argmin(0)
        chosen = drawn[nearest, torch.arange(self.count, device=nearest.device)]
        return self.source.inputs[0], self.evaluator.core.encode_mean(chosen)

    def random(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Make the generator of one control for this source."""
        return make_random(self.evaluator.seed, "control", name, self.source.name, device=device)


Trick = Callable[[Inputs], Pair | None]

CONTROLS: dict[str, Control] = {}
"""All controls by name."""
_TRICKS: dict[str, Trick] = {}
"""The function of each control, which returns None for sources on which it makes no sense."""


def _control(name: str, letter: str, about: str) -> Callable[[Trick], Trick]:
    def declare(trick: Trick) -> Trick:
        CONTROLS[name], _TRICKS[name] = Control(name, about, letter), trick
        return trick

    return declare


@_control("left_twice", "L", "The right half becomes the left one.")
def _left_twice(inputs: Inputs) -> Pair:
    left, _ = inputs.source.inputs
    return left, left


@_control("equal_halves", "E", "Both halves become the mean of their latents.")
def _equal_halves(inputs: Inputs) -> Pair:
    left, right = inputs.source.inputs
    mean = (left + right) / 2
    return mean, mean


@_control(
    "longest_search", "X", f"LP at its largest step size by default, after {_SEARCHED} iterations."
)
def _longest_search(inputs: Inputs) -> Pair:
    left, right = inputs.source.inputs
    search, evaluator = LP(), inputs.evaluator
    core, none = evaluator.core, (left[:0], right[:0])  # LP uses no real neighbours
    kinds = inputs.source.kinds
    tools = Tools(evaluator.classifier, core.sigma_bar, none, core, kinds[:0])
    transform = search.transform([search.settings()[-1]], kinds, tools)
    random = inputs.random("longest_search", left.device)
    (step,) = transform((left, right), [_SEARCHED], random)
    return step.outputs


@_control(
    "same_song",
    "S",
    "The right half becomes another segment of the left one's song, with bars of the same kind,"
    " neither adjacent to it nor overlapping; where the song has none, the pair is left as it is.",
)
def _same_song(inputs: Inputs) -> Pair | None:
    if inputs.source.rows is None:
        return None
    corpus, (left, right) = inputs.evaluator.corpus, inputs.source.rows.T
    random = np.random.default_rng(
        derive(inputs.evaluator.seed, "control", "same_song", inputs.source.name)
    )
    chosen = right.copy()
    for pair, row in enumerate(left):
        apart = abs(corpus.bar - corpus.bar[row]) > corpus.form.bars_per_segment
        alike = (corpus.song == corpus.song[row]) & (corpus.kinds == corpus.kinds[row])
        others = np.flatnonzero(alike & apart)
        if len(others):
            chosen[pair] = random.choice(others)
    return inputs.source.inputs[0], inputs.evaluator.core.encode_mean(corpus.tokens[chosen])


@_control(
    "continuation",
    "C",
    f"The right half becomes a likely continuation of the left one: of {_CONTINUATIONS} samples of"
    " an autoregressive model, the one with the smallest edit distance to the right half.",
)
def _continuation(inputs: Inputs) -> Pair:
    return inputs.continued


@_control(
    "gamble", "G", "Such a continuation for half of the pairs; the others are left as they are."
)
def _gamble(inputs: Inputs) -> Pair:
    # Drawn, since some measures divide pairs by their places.
    order = torch.randperm(inputs.count, generator=inputs.random("gamble"))
    changed = (order < inputs.count // 2)[:, None].to(inputs.source.inputs[0].device)
    left, right = (
        torch.where(changed, after, before)
        for before, after in zip(inputs.source.inputs, inputs.continued, strict=True)
    )
    return left, right


def make_controls(evaluator: "Evaluator", source: Source) -> Iterator[tuple[str, Pair]]:
    """Yield the name and the latents of each control that makes sense on a source.

    What a trick writes as notes is encoded to posterior means, as all inputs are. The draws depend
    on the evaluator's seed and the name of the source alone.
    """
    inputs = Inputs(evaluator, source)
    for name, trick in _TRICKS.items():
        if (pair := trick(inputs)) is not None:
            yield name, pair


def rate_controls(metrics: pl.DataFrame) -> pl.DataFrame:
    """Compare all controls with real neighbours, by every metric on every source.

    `metrics` is the study's table. Columns: `source`, `metric`, `control`, its `value` with the
    interval from `low` to `high`, the value of `real` neighbours (the ceiling; null where they have
    none), and whether the control `pleases` the metric: whether it is rated above real neighbours.
    That is null for metrics of which higher values are not better, and where a value is missing.
    """
    on = ["source", "metric"]
    real = metrics.filter(pl.col("method") == "ceiling").select(*on, real="value")
    higher = [name for name, metric in METRICS.items() if metric.better is Better.HIGHER]
    known = pl.col("metric").is_in(higher) & pl.all_horizontal(
        pl.col("value", "real").is_not_nan().fill_null(value=False)
    )
    return (
        metrics.filter(pl.col("method").is_in([*CONTROLS]))
        .join(real, on=on, how="left", maintain_order="left")
        .select(
            *on,
            "value",
            "low",
            "high",
            "real",
            control="method",
            pleases=pl.when(known).then(pl.col("value") > pl.col("real")),
        )
        .select(*on, "control", "value", "low", "high", "real", "pleases")
    )
