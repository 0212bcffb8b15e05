"""From transformed latents to rows of the metrics table.

Letters in shapes: `B` pairs, `Z` latent dimensions, `T` steps, `P` adjacent pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Integer

from cf_core.corpus import TEST, TRAIN, VALIDATION, Corpus
from cf_core.fusion import Generator
from cf_core.losses import Pair
from cf_core.seeding import derive
from cf_core.seeding import generator as random_generator
from cf_core.vae import MelodyVAE
from evaluation.classifier import SearchClassifier
from evaluation.distance import edit_distance, z_distance, z_weighted
from evaluation.judge import Judge
from evaluation.statistics import (
    STATISTICS,
    Bins,
    bootstrap_correlations,
    bootstrap_mean,
    correlation,
    joint_matrix,
    resampling_weights,
    segment_statistics,
    transition_matrix,
)
from evaluation.transforms import Step, fusion

DIVERSITY_INPUTS = 64
"""Input pairs of a source that style diversity is measured on, at most."""

TokenPairs = tuple[Integer[np.ndarray, "B T"], Integer[np.ndarray, "B T"]]


@dataclass(frozen=True)
class Source:
    """Input pairs of one kind, the same for every trial and baseline of a study.

    `songs` holds the song of either half as indices into the corpus's song ids, or -1 for the
    prior. `split` says which songs' statistics and which judge the outputs are held against.
    """

    name: str
    split: int
    inputs: Pair
    songs: Integer[np.ndarray, "B 2"]

    @property
    def clusters(self) -> Int[np.ndarray, "B"]:
        """What is resampled as one: pairs of one left song; each pair of the prior by itself."""
        left = self.songs[:, 0]
        return np.where(left < 0, np.arange(len(left)), left).astype(np.int64)


def unpaired(
    corpus: Corpus, split: int, count: int, random: np.random.Generator
) -> Int[np.ndarray, "B 2"]:
    """Rows of `count` random pairs of segments of one split whose songs differ."""
    rows = corpus.segments(split)
    left = random.choice(rows, count)
    right = random.choice(rows, count)
    while (same := corpus.song[left] == corpus.song[right]).any():
        right[same] = random.choice(rows, int(same.sum()))
    return np.stack((left, right), 1)


def make_sources(corpus: Corpus, core: MelodyVAE, count: int, seed: int) -> tuple[Source, ...]:
    """The four sources: unpaired test songs and prior samples, and their validation twins."""
    sources = []
    for name, prior_name, split in (
        ("test", "prior", TEST),
        ("validation", "validation_prior", VALIDATION),
    ):
        random = np.random.default_rng(derive(seed, "inputs", name))
        rows = unpaired(corpus, split, count, random)
        left, right = (core.encode_mean(corpus.tokens[rows[:, half]]) for half in (0, 1))
        sources.append(Source(name, split, (left, right), corpus.song[rows]))
        z_left, z_right = torch.randn(
            (2, *left.shape), generator=random_generator(seed, "inputs", prior_name)
        )
        none = np.full((count, 2), -1)
        sources.append(Source(prior_name, split, (z_left, z_right), none))
    return tuple(sources)


@dataclass(frozen=True)
class Evaluator:
    """Scores outputs. Holds the core, the classifiers and the songs' own statistics."""

    corpus: Corpus
    core: MelodyVAE
    classifier: SearchClassifier
    judges: Mapping[int, Judge]
    """By split: the selection judge for validation songs, the reporting judge for test songs."""
    pairs: int
    resamples: int
    seed: int

    @cached_property
    def bins(self) -> Bins:
        """Bins of the five statistics, by quantiles of the training segments."""
        tokens = self.corpus.tokens[self.corpus.segments(TRAIN)]
        return Bins.fit(segment_statistics(tokens, self.corpus.form))

    @cached_property
    def references(self) -> dict[int, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """By split and statistic: bins of both halves of all real adjacent pairs."""
        return {
            split: self._bins(*self._tokens(self.corpus.pairs_of(split)))
            for split in (VALIDATION, TEST)
        }

    def rows(
        self, label: Mapping[str, Any], source: Source, step: Step
    ) -> Iterator[dict[str, Any]]:
        """Metric rows of a transform's outputs for one source.

        `label` holds the columns that say what was evaluated. Pairs with a latent that is not
        finite are excluded, and counted in `excluded`; so are, from the correlations, pairs with a
        half that has no notes.
        """
        finite = torch.isfinite(torch.cat(step.outputs, 1)).all(1).numpy()
        shared = {**label, "source": source.name, "iteration": step.iteration}
        shared |= {"n": int(finite.sum()), "excluded": int((~finite).sum())}
        calls = {"metric": "classifier_calls", "value": float(step.classifier_calls)}
        for metric in (calls, *self._metrics(source, step.outputs, finite)):
            yield _row(shared, metric)

    def references_rows(self, source: Source) -> Iterator[dict[str, Any]]:
        """Rows of the floor and the ceiling of the six coherency metrics for one source.

        The floor is a fresh draw of untransformed inputs of the source's kind. The ceiling is one
        half of the real adjacent pairs, at most as many as there are inputs, against the other
        half. Both are encoded and decoded, as all outputs are. The halves of the ceiling share
        songs, and even bars: it is a generous one.
        """
        random = np.random.default_rng(derive(self.seed, "references", source.name))
        if source.songs[0, 0] < 0:
            noise = random_generator(self.seed, "floor", source.name)
            z_left, z_right = torch.randn(2, *source.inputs[0].shape, generator=noise)
            floor = self._decode((z_left, z_right))
            clusters = np.arange(len(z_left))
        else:
            rows = unpaired(self.corpus, source.split, self.pairs, random)
            floor, clusters = self._reconstructed(rows), self.corpus.song[rows[:, 0]]
        yield from self._reference("floor", source, floor, clusters, self.references[source.split])
        real = self.corpus.pairs_of(source.split)
        shuffled = random.permutation(real)
        half = len(shuffled) // 2
        chosen = shuffled[:half][: self.pairs]
        others = self._bins(*self._tokens(shuffled[half:]))
        clusters = self.corpus.song[chosen[:, 0]]
        ceiling = self._reconstructed(chosen)
        yield from self._reference("ceiling", source, ceiling, clusters, others)

    def style_diversity(
        self,
        generator: Generator,
        source: Source,
        styles: int,
        counts: Sequence[int],
        weight: float | None = None,
    ) -> dict[int, float]:
        """Mean decoded edit distance between outputs of one input in different styles.

        In tokens per segment, after each of `counts` applications, over pairs of `styles` (at least
        2) styles and the first `DIVERSITY_INPUTS` pairs of the source. 0 without style.
        """
        if generator.style_dim == 0:
            return dict.fromkeys(counts, 0.0)
        pair = source.inputs[0][:DIVERSITY_INPUTS], source.inputs[1][:DIVERSITY_INPUTS]
        random = random_generator(self.seed, "diversity")
        drawn = torch.rand(styles, generator.style_dim, generator=random)
        outputs = [
            {
                step.iteration: self._decode(step.outputs)
                for step in fusion(generator, pair, style.expand(len(pair[0]), -1), counts, weight)
            }
            for style in drawn
        ]
        return {
            count: float(
                np.mean(
                    [
                        edit_distance(one[count][half], other[count][half]).mean()
                        for one, other in combinations(outputs, 2)
                        for half in (0, 1)
                    ]
                )
            )
            for count in counts
        }

    def _reference(
        self,
        name: str,
        source: Source,
        tokens: TokenPairs,
        clusters: Int[np.ndarray, "B"],
        reference: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ) -> Iterator[dict[str, Any]]:
        shared = {"trial": name, "method": name, "source": source.name, "iteration": 0}
        shared |= {"n": len(clusters), "excluded": 0}
        weights = self._weights(clusters)
        for metric in self._coherency(source.split, tokens, reference, weights):
            yield _row(shared, metric)

    def _metrics(
        self, source: Source, after: Pair, finite: Bool[np.ndarray, "B"]
    ) -> Iterator[dict[str, Any]]:
        if not finite.any():
            return
        kept = torch.as_tensor(finite)
        inputs: Pair = (source.inputs[0][kept], source.inputs[1][kept])
        outputs: Pair = (after[0][kept], after[1][kept])
        before, tokens = self._decode(inputs), self._decode(outputs)
        clusters = source.clusters[finite]
        weights = self._weights(clusters)
        yield from self._coherency(source.split, tokens, self.references[source.split], weights)
        edits = [edit_distance(before[half], tokens[half]) for half in (0, 1)]
        with torch.no_grad():
            means = {
                "search_classifier": torch.sigmoid(self.classifier(outputs)).numpy(),
                "z_distance": z_distance(inputs, outputs, self.core.sigma_bar).numpy(),
                "z_weighted": z_weighted(inputs, outputs, self.core.sigma_bar).numpy(),
                "edit_distance": edits[0] + edits[1],
            }
        for metric, values in means.items():
            yield _mean_row(metric, values, weights)

    def _coherency(
        self,
        split: int,
        tokens: TokenPairs,
        reference: Mapping[str, tuple[np.ndarray, np.ndarray]],
        weights: Float64[np.ndarray, "R B"] | None,
    ) -> Iterator[dict[str, Any]]:
        yield _mean_row("judge", self.judges[split].probability(*tokens), weights)
        bins = self._bins(*tokens)
        for statistic in STATISTICS:
            count = self.bins.count(statistic)
            left, right = bins[statistic]
            silent = int(((left < 0) | (right < 0)).sum())
            for metric, matrix in (
                (statistic, transition_matrix),
                (f"{statistic}_joint", joint_matrix),
            ):
                real = matrix(*reference[statistic], count)
                value = float(correlation(matrix(*bins[statistic], count), real))
                low, high = (
                    bootstrap_correlations(*bins[statistic], real, weights, matrix)
                    if weights is not None
                    else (None, None)
                )
                yield {
                    "metric": metric, "value": value, "low": low, "high": high, "silent": silent
                }  # fmt: skip

    def _weights(self, clusters: Int[np.ndarray, "B"]) -> Float64[np.ndarray, "R B"] | None:
        if len(np.unique(clusters)) < 2:
            return None
        random = np.random.default_rng(derive(self.seed, "bootstrap"))
        return resampling_weights(clusters, self.resamples, random)

    def _bins(
        self, left: Integer[np.ndarray, "B T"], right: Integer[np.ndarray, "B T"]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        values = [segment_statistics(half, self.corpus.form) for half in (left, right)]
        return {
            name: (self.bins.assign(name, values[0][name]), self.bins.assign(name, values[1][name]))
            for name in STATISTICS
        }

    def _decode(self, pair: Pair) -> TokenPairs:
        return self.core.decode_tokens(pair[0]), self.core.decode_tokens(pair[1])

    def _reconstructed(self, rows: Integer[np.ndarray, "P 2"]) -> TokenPairs:
        """The pairs encoded and decoded, as all inputs are."""
        left, right = (self.core.encode_mean(half) for half in self._tokens(rows))
        return self._decode((left, right))

    def _tokens(self, rows: Integer[np.ndarray, "P 2"]) -> TokenPairs:
        return self.corpus.tokens[rows[:, 0]], self.corpus.tokens[rows[:, 1]]


def _row(shared: Mapping[str, Any], metric: dict[str, Any]) -> dict[str, Any]:
    """One row; pairs with a silent half, which enter no matrix, count as excluded."""
    silent = metric.pop("silent", 0)
    row = {**shared, **metric}
    return row | {"n": row["n"] - silent, "excluded": row["excluded"] + silent}


def _mean_row(
    metric: str, values: Float[np.ndarray, "B"] | Int[np.ndarray, "B"], weights: np.ndarray | None
) -> dict[str, Any]:
    exact = values.astype(np.float64)
    low, high = bootstrap_mean(exact, weights) if weights is not None else (None, None)
    return {"metric": metric, "value": float(exact.mean()), "low": low, "high": high}
