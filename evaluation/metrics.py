"""From transformed latents to the records of every pair, and from those to the metrics of all.

Letters in shapes: `B` pairs, `Z` latent dimensions, `T` steps, `P` adjacent pairs, `K` bins.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Float64, Int, Integer

from cf_core.corpus import TEST, TRAIN, VALIDATION, Corpus
from cf_core.fusion import Generator
from cf_core.losses import Pair
from cf_core.seeding import derive, make_random
from cf_core.vae import MelodyVAE
from evaluation.bootstrap import Resamples, has_enough_songs
from evaluation.classifier import SearchClassifier
from evaluation.distance import SegmentBank, edit_distance, z_distance, z_weighted
from evaluation.inference import take_bins
from evaluation.judge import Judge
from evaluation.statistics import (
    STATISTICS,
    Bins,
    Neighbourhoods,
    compute_statistics,
    correlation,
    count_pairs,
    joint,
    overlap_area,
    pair_features,
    row_stochastic,
)
from evaluation.transforms import Fusion, Step

DIVERSITY_INPUTS = 64
"""Input pairs of a source that style diversity is measured on, at most."""
NOVELTY_PAIRS = 128
"""Pairs that are looked up among the training segments: the first so many. Looking up all 512 of a
usual source would take longer than all other metrics together."""
REAL_PAIRS = 512
"""Real adjacent pairs that density and coverage are held against, at most."""

TokenPairs = tuple[Integer[np.ndarray, "B T"], Integer[np.ndarray, "B T"]]
Statistics = Mapping[str, Float64[np.ndarray, "B"]]
_Interval = tuple[float | None, float | None]

MEANS = (
    "judge", "search_classifier", "halves_distance", "z_distance", "z_weighted", "edit_distance"
)  # fmt: skip
"""Columns of `OUTCOMES` that are numbers of a pair, and metrics by their mean."""
METRICS = (
    *MEANS, *STATISTICS, *(f"{name}_joint" for name in STATISTICS),
    "novelty", "copied", "overlap_area", "density", "coverage", "style_diversity",
)  # fmt: skip
"""All metrics, by name."""
OUTCOMES: dict[str, type[pl.DataType]] = {
    "trial": pl.String,
    "method": pl.String,
    "lambda": pl.Float64,
    "seed": pl.Int64,
    "source": pl.String,
    "iteration": pl.Int32,
    "pair": pl.Int32,
    "left_song": pl.String,
    "right_song": pl.String,
    **dict.fromkeys(MEANS, pl.Float32),
    **{f"{name}_{half}": pl.Int8 for name in STATISTICS for half in ("left", "right")},
}
"""Columns of the records of pairs: NaN, and bin -1, where a latent was not finite."""


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


def unpaired(
    corpus: Corpus, split: int, count: int, random: np.random.Generator
) -> Int[np.ndarray, "B 2"]:
    """Rows of `count` random pairs of segments of different songs of one split.

    Both halves are drawn among all segments, independently but for the songs' being different.
    """
    rows = corpus.segments(split)
    pairs = random.choice(rows, (count, 2))
    while (same := np.equal(*corpus.song[pairs].T)).any():
        pairs[same] = random.choice(rows, (int(same.sum()), 2))
    return pairs


def song_names(
    corpus: Corpus, songs: Integer[np.ndarray, "B 2"]
) -> tuple[list[str | None], list[str | None]]:
    """The song ids of the left and of the right halves; None of a prior."""
    left, right = (
        [None if song < 0 else corpus.song_ids[song] for song in half] for half in songs.T
    )
    return left, right


def make_sources(
    corpus: Corpus, core: MelodyVAE, counts: Mapping[int, int], seed: int
) -> tuple[Source, ...]:
    """The four sources: unpaired test songs and prior samples, and their validation twins.

    `counts` holds how many pairs the two sources of each split have.
    """
    sources = []
    for name, prior_name, split in (
        ("test", "prior", TEST),
        ("validation", "validation_prior", VALIDATION),
    ):
        random, count = np.random.default_rng(derive(seed, "inputs", name)), counts[split]
        rows = unpaired(corpus, split, count, random)
        left, right = (core.encode_mean(corpus.tokens[rows[:, half]]) for half in (0, 1))
        sources.append(Source(name, split, (left, right), corpus.song[rows]))
        z_left, z_right = torch.randn(
            (2, *left.shape), generator=make_random(seed, "inputs", prior_name)
        )
        sources.append(Source(prior_name, split, (z_left, z_right), np.full((count, 2), -1)))
    return tuple(sources)


@dataclass(frozen=True)
class _Notes:
    """Pairs as notes, and the statistics of either half."""

    tokens: TokenPairs
    statistics: tuple[Statistics, Statistics]

    @cached_property
    def sounding(self) -> Bool[np.ndarray, "B"]:
        """Which pairs have notes in both halves."""
        left, right = (half["mean_pitch"] for half in self.statistics)
        return np.asarray(np.isfinite(left + right))

    def __getitem__(self, kept: Bool[np.ndarray, "B"]) -> "_Notes":
        left, right = ({n: v[kept] for n, v in half.items()} for half in self.statistics)
        return _Notes((self.tokens[0][kept], self.tokens[1][kept]), (left, right))


@dataclass(frozen=True)
class _Reference:
    """What a set of real adjacent pairs is like."""

    counts: Mapping[str, Float64[np.ndarray, "K K"]]
    statistics: tuple[Statistics, Statistics]
    neighbourhoods: Neighbourhoods


@dataclass(frozen=True)
class Evaluator:
    """Scores outputs. Holds the core, the classifiers and the songs' own statistics."""

    corpus: Corpus
    core: MelodyVAE
    classifier: SearchClassifier
    judges: Mapping[int, Judge]
    """By split: the selection judge for validation songs, the reporting judge for test songs."""
    resamples: int
    seed: int

    @cached_property
    def bins(self) -> Bins:
        """Bins of the five statistics, by quantiles of the training segments."""
        return Bins.fit(self._training)

    @cached_property
    def training_segments(self) -> SegmentBank:
        """The training segments, to look outputs up in."""
        return SegmentBank(self.corpus.tokens[self.corpus.segments(TRAIN)])

    def evaluate(
        self, label: Mapping[str, Any], source: Source, steps: Iterable[Step]
    ) -> tuple[list[dict[str, Any]], pl.DataFrame]:
        """Metric rows and records of all pairs (`OUTCOMES`) of a transform's outputs for a source.

        `label` holds the columns that say what was evaluated. The metrics are:

        - means over pairs: those of `MEANS`; `novelty`, edit distance of an output segment to the
          nearest training segment (0…T), and `copied`, the share of segments that are one, both
          over the first `NOVELTY_PAIRS` pairs;
        - correlations with the real adjacent pairs of the source's split, by each statistic's name,
          and with `_joint` added for the joint matrix;
        - `overlap_area`, `density` and `coverage` against the same pairs (`evaluation.statistics`).

        Intervals resample songs (of a prior, pairs). The last three have none: a resample repeats
        pairs, and so is less diverse than the set it is drawn from. A pair with a distance that is
        not finite, as where a latent is not, is excluded, and counted in `excluded`; so are, from
        the correlations and the last three, pairs with a half that has no notes.
        """
        before = self._decode(source.inputs)
        reference = self._references[source.split]
        rows, records = [], []
        for step in steps:
            shared = {**label, "source": source.name, "iteration": step.iteration}
            notes, columns = self._outcomes(source, before, step)
            frame = _frame({name: shared.get(name) for name in OUTCOMES} | columns)
            measured = self._metrics(frame, source.songs, notes, reference)
            rows += [{**shared, **metric} for metric in measured]
            records.append(frame)
        return rows, pl.concat(records)

    def real_outcomes(self, split: int) -> pl.DataFrame:
        """Records of all real adjacent pairs of a split, as notes that were never encoded.

        Their method is "real". There are no distances to inputs.
        """
        rows = self.corpus.pairs_of(split)
        notes = self._notes(self._tokens(rows))
        left, right = (self.core.encode_mean(half) for half in notes.tokens)
        name = {TEST: "test", VALIDATION: "validation"}[split]
        shared = {"trial": "real", "method": "real", "source": name, "iteration": 0}
        columns = self._coherency(notes, split, self.corpus.song[rows])
        columns["search_classifier"] = self._searched((left, right))
        return _frame(shared | columns)

    def song_distances(self, split: int, count: int) -> pl.DataFrame:
        """z-distances of `count` random pairs of segments of one song, and as many of two.

        Equation 7 of one half. Columns: `kind` ("same song", "different songs"), `z_distance`.
        Segments of one song may overlap in time, but are never the same.
        """
        random = np.random.default_rng(derive(self.seed, "song distances", split))
        rows = self.corpus.segments(split)
        songs = self.corpus.song[rows]
        _, which, sizes = np.unique(songs, return_inverse=True, return_counts=True)
        order, first = np.argsort(songs, kind="stable"), np.cumsum(sizes) - sizes
        one = random.choice(np.flatnonzero(sizes[which] > 1), count)
        place = np.argsort(order)[one] - first[which[one]]
        other = (place + 1 + random.integers(0, sizes[which[one]] - 1)) % sizes[which[one]]
        same = np.stack((rows[one], rows[order[first[which[one]] + other]]), 1)
        different = unpaired(self.corpus, split, count, random)
        return pl.concat(
            [
                pl.DataFrame({"kind": [kind] * count, "z_distance": self._apart(pairs)})
                for kind, pairs in (("same song", same), ("different songs", different))
            ]
        )

    def _apart(self, rows: Integer[np.ndarray, "P 2"]) -> Float64[np.ndarray, "P"]:
        """Equation 7 between the two segments of each row."""
        one, other = (self.core.encode_mean(half) for half in self._tokens(rows))
        distances: np.ndarray = z_distance((one, one), (other, one), self.core.sigma_bar).numpy()
        return distances.astype(np.float64)

    def references_rows(self, source: Source) -> Iterator[dict[str, Any]]:
        """Rows of the floor and the ceiling of the metrics that are no distance, for one source.

        The floor is a fresh draw of untransformed inputs of the source's kind. The ceiling is one
        half of the real adjacent pairs, at most as many as there are inputs, against the other
        half. Both are encoded and decoded, as all outputs are. It is no bound: the halves share
        songs, and even bars, which makes it higher; fewer pairs against a noisier reference than
        methods have make the correlations lower.
        """
        random = np.random.default_rng(derive(self.seed, "references", source.name))
        count = len(source.songs)
        if source.songs[0, 0] < 0:
            noise = make_random(self.seed, "floor", source.name)
            z_left, z_right = torch.randn(2, *source.inputs[0].shape, generator=noise)
            floor, songs = self._decode((z_left, z_right)), source.songs
        else:
            rows = unpaired(self.corpus, source.split, count, random)
            floor, songs = self._reconstructed(rows), self.corpus.song[rows]
        shuffled = random.permutation(self.corpus.pairs_of(source.split))
        half = len(shuffled) // 2
        chosen, others = shuffled[:half][:count], shuffled[half:]
        ceiling, own_songs = self._reconstructed(chosen), self.corpus.song[chosen]
        for name, tokens, owners, reference in (
            ("floor", floor, songs, self._references[source.split]),
            ("ceiling", ceiling, own_songs, self._reference(others, random)),
        ):
            shared = {"trial": name, "method": name, "source": source.name, "iteration": 0}
            notes = self._notes(tokens)
            frame = _frame(self._coherency(notes, source.split, owners))
            for metric in self._metrics(frame, owners, notes, reference):
                yield {**shared, **metric}

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
        random = make_random(self.seed, "diversity")
        drawn = torch.rand(styles, generator.style_dim, generator=random)
        outputs = []
        for style in drawn:
            fusion = Fusion(generator, style.expand(len(pair[0]), -1), weight)
            steps = fusion(pair, counts, random)
            outputs.append({step.iteration: self._decode(step.outputs) for step in steps})
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

    @cached_property
    def _training(self) -> Statistics:
        tokens = self.corpus.tokens[self.corpus.segments(TRAIN)]
        return compute_statistics(tokens, self.corpus.form)

    @cached_property
    def _deviations(self) -> dict[str, float]:
        return {name: float(np.nanstd(values)) for name, values in self._training.items()}

    @cached_property
    def _references(self) -> dict[int, _Reference]:
        """By split, what its real adjacent pairs are like."""
        return {
            split: self._reference(
                self.corpus.pairs_of(split),
                np.random.default_rng(derive(self.seed, "real pairs", split)),
            )
            for split in (VALIDATION, TEST)
        }

    def _reference(
        self, rows: Integer[np.ndarray, "P 2"], random: np.random.Generator
    ) -> _Reference:
        notes = self._notes(self._tokens(rows))
        bins = self._bins(notes)
        counts = {name: count_pairs(*bins[name], self.bins.count(name)) for name in STATISTICS}
        features = pair_features(*notes.statistics, self._deviations)
        drawn = random.permutation(len(rows))[:REAL_PAIRS]
        return _Reference(counts, notes.statistics, Neighbourhoods.fit(features[drawn]))

    def _outcomes(
        self, source: Source, before: TokenPairs, step: Step
    ) -> tuple[_Notes, dict[str, Any]]:
        """The outputs as notes, and the columns of their records that follow from them."""
        inputs, outputs, sigma_bar = source.inputs, step.outputs, self.core.sigma_bar
        weighted = z_weighted(inputs, outputs, sigma_bar)
        finite = torch.isfinite(weighted)
        # A row that is not finite is measured as if it were its input, and then struck out.
        left, right = (
            torch.where(finite[:, None], after, z) for z, after in zip(inputs, outputs, strict=True)
        )
        notes = self._notes(self._decode((left, right)))
        edits = [edit_distance(*halves) for halves in zip(before, notes.tokens, strict=True)]
        columns = self._coherency(notes, source.split, source.songs) | {
            "search_classifier": self._searched((left, right)),
            "z_distance": z_distance(inputs, outputs, sigma_bar).numpy(),
            "z_weighted": weighted.numpy(),
            "edit_distance": edits[0] + edits[1],
        }
        kept = finite.numpy()
        for name in columns.keys() - {"pair", "left_song", "right_song"}:
            columns[name] = np.where(kept, columns[name], np.nan if name in MEANS else -1)
        return notes, columns

    def _coherency(
        self, notes: _Notes, split: int, songs: Integer[np.ndarray, "B 2"]
    ) -> dict[str, Any]:
        """The columns of the records that are known of any pairs of notes."""
        left, right = song_names(self.corpus, songs)
        columns = {
            "pair": np.arange(len(songs)),
            "left_song": left,
            "right_song": right,
            "judge": self.judges[split].probability(*notes.tokens),
            "halves_distance": edit_distance(*notes.tokens),
        }
        for name, bins in self._bins(notes).items():
            columns |= {f"{name}_left": bins[0], f"{name}_right": bins[1]}
        return columns

    def _metrics(
        self,
        records: pl.DataFrame,
        songs: Integer[np.ndarray, "B 2"],
        notes: _Notes,
        reference: _Reference,
    ) -> Iterator[dict[str, Any]]:
        """Metrics of pairs, from their records; those of sets, from their notes."""
        finite = records["judge"].is_finite().to_numpy()
        kept, notes = records.filter(finite), notes[finite]
        if kept.is_empty():
            return
        resamples = self._resamples(songs[finite])
        for name in MEANS:
            if kept[name].null_count() == 0:
                yield _mean(name, kept[name].to_numpy(), resamples, records.height)
        yield from self._novelty(songs, finite, notes)
        yield from self._correlations(kept, reference, resamples, records.height)
        yield from self._of_sets(notes, reference, records.height)

    def _novelty(
        self, songs: Integer[np.ndarray, "B 2"], finite: Bool[np.ndarray, "B"], notes: _Notes
    ) -> Iterator[dict[str, Any]]:
        """Of the first pairs; `notes` holds those that are finite."""
        first = finite[:NOVELTY_PAIRS]
        count = int(first.sum())
        if count == 0:
            return
        resamples = self._resamples(songs[:NOVELTY_PAIRS][first])
        nearest = np.stack([self.training_segments.nearest(half[:count]) for half in notes.tokens])
        yield _mean("novelty", nearest.mean(axis=0), resamples, len(first))
        yield _mean("copied", (nearest == 0).mean(axis=0), resamples, len(first))

    def _correlations(
        self,
        kept: pl.DataFrame,
        reference: _Reference,
        resamples: Resamples | None,
        pairs: int,
    ) -> Iterator[dict[str, Any]]:
        for name in STATISTICS:
            left, right = take_bins(kept, name)
            k = self.bins.count(name)
            counts = count_pairs(left, right, k)
            resampled = None if resamples is None else resamples.count_pairs(left, right, k)
            for metric, matrix in ((name, row_stochastic), (f"{name}_joint", joint)):
                real = matrix(reference.counts[name])
                value = float(correlation(matrix(counts), real))
                interval: _Interval = (None, None)
                if resamples is not None and resampled is not None:
                    samples = correlation(matrix(resampled), real)
                    low, high = resamples.interval(value, samples)
                    interval = max(low, -1.0), min(high, 1.0)
                yield _row(metric, value, interval, int(counts.sum()), pairs)

    def _of_sets(
        self, notes: _Notes, reference: _Reference, pairs: int
    ) -> Iterator[dict[str, Any]]:
        sounding = notes[notes.sounding]
        n = len(sounding.tokens[0])
        if n == 0:
            return
        halves = zip(sounding.statistics, reference.statistics, strict=True)
        areas = [overlap_area(ours, theirs) for ours, theirs in halves]
        features = pair_features(*sounding.statistics, self._deviations)
        density, coverage = reference.neighbourhoods.density_and_coverage(features)
        for metric, value in (
            ("overlap_area", float(np.mean(areas))),
            ("density", density),
            ("coverage", coverage),
        ):
            yield _row(metric, value, (None, None), n, pairs)

    def _resamples(self, songs: Integer[np.ndarray, "B 2"]) -> Resamples | None:
        """None where there are too few to draw from."""
        if not has_enough_songs(songs):
            return None
        random = np.random.default_rng(derive(self.seed, "bootstrap"))
        return Resamples.draw(songs, self.resamples, random)

    def _notes(self, tokens: TokenPairs) -> _Notes:
        left, right = (compute_statistics(half, self.corpus.form) for half in tokens)
        return _Notes(tokens, (left, right))

    def _bins(self, notes: _Notes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        left, right = notes.statistics
        return {
            name: (self.bins.assign(name, left[name]), self.bins.assign(name, right[name]))
            for name in STATISTICS
        }

    def _searched(self, pair: Pair) -> Float[np.ndarray, "B"]:
        with torch.no_grad():
            return torch.sigmoid(self.classifier(pair)).numpy()

    def _decode(self, pair: Pair) -> TokenPairs:
        return self.core.decode_tokens(pair[0]), self.core.decode_tokens(pair[1])

    def _reconstructed(self, rows: Integer[np.ndarray, "P 2"]) -> TokenPairs:
        """The pairs encoded and decoded, as all inputs are."""
        left, right = (self.core.encode_mean(half) for half in self._tokens(rows))
        return self._decode((left, right))

    def _tokens(self, rows: Integer[np.ndarray, "P 2"]) -> TokenPairs:
        return self.corpus.tokens[rows[:, 0]], self.corpus.tokens[rows[:, 1]]


def _frame(columns: Mapping[str, Any]) -> pl.DataFrame:
    """Records of pairs; what is not given is null."""
    return pl.DataFrame(
        {name: columns.get(name) for name in OUTCOMES}, schema=OUTCOMES, strict=False
    )


def _mean(
    metric: str,
    values: Float[np.ndarray, "B"],
    resamples: Resamples | None,
    pairs: int,
) -> dict[str, Any]:
    exact = values.astype(np.float64)
    mean = float(exact.mean())
    interval: _Interval = (None, None)
    if resamples is not None and np.ptp(exact) > 0:  # equal values say nothing of their spread
        interval = resamples.interval(mean, resamples.means(exact))
    return _row(metric, mean, interval, len(exact), pairs)


def _row(metric: str, value: float, interval: _Interval, n: int, pairs: int) -> dict[str, Any]:
    """One metric of `n` of so many pairs."""
    low, high = interval
    return {
        "metric": metric, "value": value, "low": low, "high": high, "n": n, "excluded": pairs - n
    }  # fmt: skip
