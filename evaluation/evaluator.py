"""Turns transformed latents into records of single pairs, and these into metrics of all pairs.

It is long, because what all points of a study share is made here once, and kept.

Letters in shapes: `B` pairs, `Z` latent dimensions, `T` steps, `P` adjacent pairs.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float64, Int64, Integer
from torch import Tensor

from cf_core.continuation import Continuation
from cf_core.corpus import Corpus, Split
from cf_core.distance import SegmentBank, count_edits, z_distance, z_weighted
from cf_core.losses import Pair
from cf_core.seeding import derive, make_random
from cf_core.training import limit_threads
from cf_core.vae import MelodyVAE
from evaluation.classifier import SearchClassifier
from evaluation.jackknife import Jackknife, has_enough_songs
from evaluation.judge import Judge
from evaluation.likeness import SEAMS, RealNeighbours, find_seams
from evaluation.metrics import OF_PAIRS, OF_SETS
from evaluation.samples import (
    Decoded,
    Estimate,
    Notes,
    Pairs,
    Reference,
    Replicates,
    Sample,
    Statistics,
    measure_notes,
)
from evaluation.sources import Source, deal_songs, name_pairs, unpaired
from evaluation.statistics import (
    STATISTICS,
    Bins,
    Neighbourhoods,
    NotePairs,
    compute_statistics,
    count_bins_by_cluster,
    count_pairs_by_cluster,
    pair_features,
)
from evaluation.transforms import Fusion, Given, Step, fuse_all

LABELS = ("trial", "configuration", "method")
"""Columns that say what a row describes."""
DIVERSITY_INPUTS = 64
"""Most input pairs of a source on which style diversity is measured."""
_KEPT_REPLICATES = 8
"""Most replicates that are kept: of all sources, and of the first pairs of each."""
_KEPT_SOURCES = 4
"""Most sources whose inputs are kept as notes: those of a study."""
REAL_PAIRS = 512
"""Most real adjacent pairs with which density and coverage compare."""

OUTCOMES: dict[str, type[pl.DataType]] = {
    "trial": pl.String,
    "configuration": pl.String,
    "method": pl.String,
    "lambda": pl.Float64,
    "seed": pl.Int64,
    "source": pl.String,
    "iteration": pl.Int32,
    "pair": pl.Int32,
    "left_song": pl.String,
    "right_song": pl.String,
    "meter": pl.String,
    **dict.fromkeys(OF_PAIRS, pl.Float32),
    **{f"{name}_{half}": pl.Int8 for name in STATISTICS for half in ("left", "right")},
    "seam_bin": pl.Int8,
}
"""Columns of the records of pairs. Where a latent was not finite, numbers are NaN and bins -1."""

INFLUENCES: dict[str, type[pl.DataType]] = {
    **{name: OUTCOMES[name] for name in (*LABELS, "lambda", "seed", "source", "iteration")},
    "song": pl.String,
    "influence": pl.Float32,
}
"""Columns of the influences of songs of real pairs on `indistinguishable`."""


class Measured(NamedTuple):
    """What is measured of a transform's outputs for a source."""

    metrics: list[dict[str, Any]]
    """Rows of the table of metrics."""
    outcomes: pl.DataFrame
    """A row for each pair (`OUTCOMES`)."""
    influences: pl.DataFrame
    """A row for each song of the real pairs (`INFLUENCES`)."""


@dataclass(frozen=True)
class Evaluator:
    """Scores outputs. Holds the core, the classifiers and the statistics of the songs."""

    corpus: Corpus
    core: MelodyVAE
    classifier: SearchClassifier
    judges: Mapping[Split, Judge]
    """By split: the selection judge for validation songs, the reporting judge for test songs."""
    seed: int
    continuation: Continuation
    """The model of notes that draws what controls are made of; judges hold another."""

    def to(self, device: torch.device) -> "Evaluator":
        """A copy whose networks are on another device, where all that is measured of notes is."""
        # Copied together, since the judges share the model of notes.
        own = (self.core, self.classifier, dict(self.judges), self.continuation)
        core, classifier, judges, continuation = deepcopy(own)
        for network in (core, classifier, continuation, *judges.values()):
            network.to(device)
        return Evaluator(self.corpus, core, classifier, judges, self.seed, continuation)

    @cached_property
    def bins(self) -> Bins:
        """Bins of the five statistics, fitted to the training segments of each kind of bars."""
        kinds = self.corpus.kinds[self.corpus.segments(Split.TRAIN)]
        return Bins.fit(self._training, kinds, len(self.corpus.form.kinds))

    @cached_property
    def training_segments(self) -> SegmentBank:
        """The training segments, in which the nearest segment to an output is looked up."""
        return SegmentBank(self.corpus.tokens[self.corpus.segments(Split.TRAIN)])

    def evaluate(self, label: Mapping[str, Any], source: Source, steps: Iterable[Step]) -> Measured:
        """Measure a transform's outputs for a source.

        `label` holds the columns that say what was evaluated. The metrics are those of
        `evaluation.metrics`; they compare with the real adjacent pairs of the source's split.

        Intervals are for other songs (pairs, for prior sources), by the jackknife. Measures of how
        two sets overlap have none: a set with a song left out is less diverse than the whole. A
        pair whose distance is not finite, for instance because a latent is not, is excluded and
        counted in `excluded`. Correlations, `seam` and measures of overlap also exclude pairs with
        a half without notes.
        """
        begun, steps = self._read_inputs(source), list(steps)
        inputs = Decoded(begun.latents, begun.notes.tokens)
        rows, records, influences = [], [], []
        for step, outputs in zip(steps, self._read_outputs(source, begun, steps), strict=True):
            shared = {**label, "source": source.name, "iteration": step.iteration}
            pairs, columns = self._outcomes(source, inputs, outputs)
            frame = _frame({name: shared.get(name) for name in OUTCOMES} | columns)
            measured = self._metrics(frame, pairs)
            rows += [{**shared, **metric} for metric in measured]
            records.append(frame)
            influences.append(self._influences(shared, pairs))
        return Measured(rows, pl.concat(records), pl.concat(influences))

    def real_outcomes(self, split: Split) -> pl.DataFrame:
        """Return the records of all real adjacent pairs of a split, as notes never encoded.

        Their method is "real", and they have no distances to inputs.
        """
        rows = self.corpus.pairs_of(split)
        tokens = self._tokens(rows)
        name = {Split.TEST: "test", Split.VALIDATION: "validation"}[split]
        shared = {"source": name, "iteration": 0}
        songs = self.corpus.song[rows]
        notes = self._read(tokens, split)
        pairs = Pairs(notes, songs, self.corpus.form, latents=self._encode(rows))
        columns = self._measure(pairs)
        return _frame(dict.fromkeys(LABELS, "real") | shared | columns)

    def song_distances(self, split: Split, count: int) -> pl.DataFrame:
        """Measure z-distances of `count` random segment pairs of one song, and as many of two.

        The distance is equation 7 of one half. Columns: `kind` ("same song", "different songs"),
        `z_distance`. Two segments of one song may overlap in time, but are never the same.
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
        one, other = self._encode(rows)
        distances: np.ndarray = (
            z_distance((one, one), (other, one), self.core.sigma_bar).cpu().numpy()
        )
        return distances.astype(np.float64)

    def references_rows(self, source: Source) -> Iterator[dict[str, Any]]:
        """Yield rows of the floor and the ceiling of all metrics except distances, for one source.

        The floor is a fresh draw of untransformed inputs of the source's kind. The ceiling compares
        one half of the real adjacent pairs (at most as many as there are inputs) with the other
        half. Both are encoded and decoded, as all outputs are. The ceiling is not a bound. It is
        higher because the two halves share songs, and even bars. Its correlations are lower because
        it compares fewer pairs with a noisier reference than methods do.
        """
        random = np.random.default_rng(derive(self.seed, "references", source.name))
        count = len(source.songs)
        if source.songs[0, 0] < 0:
            noise = make_random(self.seed, "floor", source.name)
            drawn = torch.randn(2, *source.inputs[0].shape, generator=noise)
            z_left, z_right = drawn.to(source.inputs[0])
            floor, songs, kinds = (z_left, z_right), source.songs, source.kinds
        else:
            folds = deal_songs(self.corpus, source.split, self.seed)
            rows = unpaired(self.corpus, source.split, count, random, folds)
            floor, songs = self._encode(rows), self.corpus.song[rows]
            kinds = self.corpus.kinds[rows[:, 0]]
        shuffled = random.permutation(self.corpus.pairs_of(source.split))
        half = len(shuffled) // 2
        chosen, others = shuffled[:half][:count], shuffled[half:]
        ceiling, own_songs = self._encode(chosen), self.corpus.song[chosen]
        of_chosen = self.corpus.kinds[chosen[:, 0]]
        for name, latents, owners, own, reference in (
            ("floor", floor, songs, kinds, self._references[source.split]),
            (
                "ceiling",
                ceiling,
                own_songs,
                of_chosen,
                self._reference(others, source.split, random),
            ),
        ):
            shared = {"source": source.name, "iteration": 0} | dict.fromkeys(LABELS, name)
            notes = self._read(self._decode(latents, own), source.split)
            pairs = Pairs(notes, owners, self.corpus.form, reference, latents)
            for metric in self._metrics(_frame(self._measure(pairs)), pairs):
                yield {**shared, **metric}

    def style_diversity(
        self, fusion: Fusion, source: Source, styles: int, counts: Sequence[int]
    ) -> dict[int, float]:
        """Measure the mean edit distance between decoded outputs of one input in different styles.

        It is in tokens per segment, after each of `counts` applications. The mean is over all pairs
        of `styles` styles (at least 2) and the first `DIVERSITY_INPUTS` pairs of the source. It is
        0 for a generator without style. Outputs that are written down are written with the same
        draws in every style.
        """
        generator = fusion.generator
        if generator.style_dim == 0:
            return dict.fromkeys(counts, 0.0)
        pair = source.inputs[0][:DIVERSITY_INPUTS], source.inputs[1][:DIVERSITY_INPUTS]
        kinds = source.kinds[:DIVERSITY_INPUTS]
        drawn = torch.rand(
            styles, generator.style_dim, generator=make_random(self.seed, "diversity")
        ).to(pair[0])
        given = [
            Given(
                replace(fusion, style=style.expand(len(pair[0]), -1), kinds=kinds),
                pair,
                make_random(self.seed, "diversity", "writing", device=pair[0].device),
            )
            for style in drawn
        ]
        outputs = [
            torch.stack([torch.stack(self._decode(step.outputs, kinds)) for step in steps])
            for steps in fuse_all(given, counts)
        ]
        # All pairs of styles, counts and halves at one time: each call costs a GPU its launches.
        one, other = (torch.stack(each) for each in zip(*combinations(outputs, 2), strict=True))
        apart = count_edits(one.flatten(0, 3), other.flatten(0, 3))
        means = apart.view(len(one), len(counts), -1).double().mean((0, 2)).tolist()
        return dict(zip(counts, means, strict=True))

    @cached_property
    def _training(self) -> Statistics:
        return self._describe(
            torch.as_tensor(self.corpus.tokens[self.corpus.segments(Split.TRAIN)])
        )

    def _describe(self, segments: Integer[Tensor, "B T"]) -> Statistics:
        found = compute_statistics(segments, self.corpus.form)
        return {name: values.cpu().numpy() for name, values in found.items()}

    @cached_property
    def deviations(self) -> dict[str, float]:
        """Standard deviation of each statistic over the training segments."""
        return {name: float(np.nanstd(values)) for name, values in self._training.items()}

    @cached_property
    def _references(self) -> dict[Split, Reference]:
        """The reference of each split, made of its real adjacent pairs."""
        return {
            split: self._reference(
                self.corpus.pairs_of(split),
                split,
                np.random.default_rng(derive(self.seed, "real pairs", split)),
            )
            for split in (Split.VALIDATION, Split.TEST)
        }

    def _reference(
        self, rows: Integer[np.ndarray, "P 2"], split: Split, random: np.random.Generator
    ) -> Reference:
        songs, of_pair = np.unique(self.corpus.song[rows[:, 0]], return_inverse=True)
        tokens, form = self._tokens(rows), self.corpus.form
        left, right = (self._describe(half) for half in tokens)
        bins = self._bins((left, right), self.corpus.kinds[rows[:, 0]])
        counts = {
            name: count_pairs_by_cluster(*bins[name], self.bins.count(name), of_pair, len(songs))
            for name in STATISTICS
        }
        seams = find_seams(tokens, form).cpu().numpy()
        features = pair_features(left, right, self.deviations)
        drawn = random.permutation(len(rows))[:REAL_PAIRS]
        folds, rebuilt = deal_songs(self.corpus, split, self.seed), self._reconstructed(rows)
        return Reference(
            songs.astype(np.int64),
            of_pair.astype(np.int64),
            folds,
            counts,
            count_bins_by_cluster(seams, SEAMS, of_pair, len(songs)),
            (left, right),
            Neighbourhoods.fit(features[drawn]),
            RealNeighbours.describe(rebuilt, folds[songs][of_pair], form),
            self.judges[split].probability(*rebuilt).double().cpu().numpy(),
            count_edits(*rebuilt).cpu().numpy(),
        )

    def _outcomes(
        self, source: Source, inputs: Decoded, outputs: "_Outputs"
    ) -> tuple[Pairs, dict[str, Any]]:
        """Return the outputs as pairs, and the columns of their records."""
        kept = outputs.finite
        pairs = Pairs(
            outputs.notes,
            source.songs,
            self.corpus.form,
            self._references[source.split],
            outputs.latents,
            inputs,
            kept,
        )
        columns = self._measure(pairs)
        for name in columns.keys() - {"pair", "left_song", "right_song", "meter"}:
            columns[name] = np.where(kept, columns[name], np.nan if name in OF_PAIRS else -1)
        return pairs, columns

    def _read_inputs(self, source: Source) -> "_Outputs":
        """Read the inputs of a source. They are kept, for all transforms have the same."""
        known = self._inputs.get(id(source))
        if known is None or known[0] is not source:  # a copy of this has numbers of another process
            while len(self._inputs) >= _KEPT_SOURCES:
                self._inputs.pop(next(iter(self._inputs)))
            notes = self._read(self._decode(source.inputs, source.kinds), source.split)
            known = source, _Outputs(source.inputs, np.ones(len(source.songs), bool), notes)
            self._inputs[id(source)] = known
        return known[1]

    @cached_property
    def _inputs(self) -> dict[int, tuple[Source, "_Outputs"]]:
        """The latest sources, each beside its inputs, so that no other gets its number."""
        return {}

    def _read_outputs(
        self, source: Source, begun: "_Outputs", steps: Sequence[Step]
    ) -> Iterator["_Outputs"]:
        """Read the outputs of all steps at one time. Pairs that are as before are not read again.

        The first step comes after `begun`, the inputs. Fusion comes to rest: after its first step,
        nine of ten of its pairs stay as they are.
        """
        latents, (left, right) = begun.latents, begun.notes.tokens
        kinds = torch.from_numpy(source.kinds).to(left.device)
        fresh, found = [(left[:0], right[:0])], []
        # Where the notes of each pair are among those of all inputs and of what is read.
        places, count = torch.arange(len(left), device=left.device), len(left)
        for step in steps:
            after, finite = self._keep_finite(source, step)
            moved = (after[0] != latents[0]) | (after[1] != latents[1])
            rows = moved.any(1).nonzero().squeeze(1)
            new = self._decode((after[0][rows], after[1][rows]), kinds[rows])
            other = ((new[0] != left[rows]) | (new[1] != right[rows])).any(1).nonzero().squeeze(1)
            new, rows = (new[0][other], new[1][other]), rows[other]
            left, right = left.index_copy(0, rows, new[0]), right.index_copy(0, rows, new[1])
            more = torch.arange(count, count + len(rows), device=rows.device)
            places, count = places.index_copy(0, rows, more), count + len(rows)
            fresh.append(new)
            found.append((after, finite, places))
            latents = after
        halves = (torch.cat(half) for half in zip(*fresh, strict=True))
        known = begun.notes.join(self._read((next(halves), next(halves)), source.split))
        for after, finite, places in found:
            yield _Outputs(after, finite, known.take(places))

    def _keep_finite(self, source: Source, step: Step) -> tuple[Pair, Bool[np.ndarray, "B"]]:
        """The outputs of a step, and which are finite. The others are replaced by their inputs.

        What is measured of those is removed later.
        """
        finite = torch.isfinite(z_weighted(source.inputs, step.outputs, self.core.sigma_bar))
        left, right = (
            torch.where(finite[:, None], after, z)
            for z, after in zip(source.inputs, step.outputs, strict=True)
        )
        return (left, right), finite.cpu().numpy()

    def _measure(self, pairs: Pairs) -> dict[str, Any]:
        """Return the columns of the records that can be computed for these pairs."""
        columns: dict[str, Any] = name_pairs(self.corpus, pairs.songs, pairs.kinds)
        for name, compute in OF_PAIRS.items():
            if (values := compute(pairs, self)) is not None:
                columns[name] = values
        for name, bins in self._bins(pairs.statistics, pairs.kinds).items():
            columns |= {f"{name}_left": bins[0], f"{name}_right": bins[1]}
        columns["seam_bin"] = pairs.measured["seam_bin"].astype(np.int64)
        return columns

    def _metrics(self, records: pl.DataFrame, pairs: Pairs) -> Iterator[dict[str, Any]]:
        """Yield metrics of pairs, from their records, and metrics of sets, from their notes."""
        finite = records["judge"].is_finite().to_numpy()
        kept = records.filter(finite)
        if kept.is_empty() or pairs.reference is None:
            return
        sample = Sample(
            self,
            kept,
            pairs[finite],
            finite,
            pairs.reference,
            pairs.ranks,
            pairs.new_onsets[:, finite],
        )
        for name in OF_PAIRS:
            if kept[name].null_count() == 0:
                yield Estimate.of_mean(
                    kept[name].to_numpy(),
                    sample.jackknife,
                    records.height,
                    sample.influences.get(name),
                ).row(name)
        for name, compute in OF_SETS.items():
            if (estimate := compute(sample)) is not None:
                yield estimate.row(name)

    def _influences(self, shared: Mapping[str, Any], pairs: Pairs) -> pl.DataFrame:
        if pairs.reference is None or pairs.ranks is None:
            return pl.DataFrame(schema=INFLUENCES)
        songs = [self.corpus.song_ids[song] for song in pairs.reference.songs]
        influence = 2 * pairs.reference.sum_by_song(pairs.ranks.whole_influence)
        columns = {name: shared.get(name) for name in INFLUENCES}
        columns |= {"song": songs, "influence": influence}
        return pl.DataFrame(columns, schema=INFLUENCES, strict=False)

    def leave_out(
        self, songs: Integer[np.ndarray, "B 2"], reference: Reference
    ) -> Replicates | None:
        """Leave out each song of these pairs, and of the real ones with them; None for few songs.

        The replicates are kept, for all points of a source have the same.
        """
        if not has_enough_songs(songs):
            return None
        key = id(reference), songs.tobytes()
        if key not in self._replicates:
            while len(self._replicates) >= _KEPT_REPLICATES:
                self._replicates.pop(next(iter(self._replicates)))
            made = Replicates(Jackknife.of(songs, reference.songs), reference)
            self._replicates[key] = made
        return self._replicates[key]

    @cached_property
    def _replicates(self) -> dict[tuple[int, bytes], Replicates]:
        """The latest replicates; each holds its reference, so that no other gets its number."""
        return {}

    def _read(self, tokens: NotePairs, split: Split) -> Notes:
        # What is kept of inputs must not depend on who reads them first.
        with limit_threads(1):
            return measure_notes(tokens, self.corpus.form, self.judges[split])

    def _bins(
        self, statistics: tuple[Statistics, Statistics], kinds: Int64[np.ndarray, "B"]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        left, right = statistics
        return {
            name: (
                self.bins.assign(name, left[name], kinds),
                self.bins.assign(name, right[name], kinds),
            )
            for name in STATISTICS
        }

    def _decode(self, pair: Pair, kinds: Int64[np.ndarray, "B"] | Int64[Tensor, "B"]) -> NotePairs:
        return self.core.decode_notes(pair[0], kinds), self.core.decode_notes(pair[1], kinds)

    def _reconstructed(self, rows: Integer[np.ndarray, "P 2"]) -> NotePairs:
        """Encode and decode pairs, as all inputs are."""
        return self._decode(self._encode(rows), self.corpus.kinds[rows[:, 0]])

    def _encode(self, rows: Integer[np.ndarray, "P 2"]) -> Pair:
        left, right = (self.core.encode_mean(half) for half in self._tokens(rows))
        return left, right

    def _tokens(self, rows: Integer[np.ndarray, "P 2"]) -> NotePairs:
        left, right = (
            torch.as_tensor(self.corpus.tokens[half]).long().to(self.core.sigma_bar.device)
            for half in rows.T
        )
        return left, right


class _Outputs(NamedTuple):
    """Outputs of a transform, with the inputs in place of those that are not finite."""

    latents: Pair
    finite: Bool[np.ndarray, "B"]
    notes: Notes


def _frame(columns: Mapping[str, Any]) -> pl.DataFrame:
    """Make records of pairs; columns that are not given are null."""
    return pl.DataFrame(
        {name: columns.get(name) for name in OUTCOMES}, schema=OUTCOMES, strict=False
    )
