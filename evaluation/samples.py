"""What metrics are computed from: pairs of segments, and the real pairs to compare with.

Letters in shapes: `B` pairs, `T` steps, `K` bins, `P` real pairs, `S` their songs, `R` replicates,
`F` features, `I` intervals across the seam.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64, Integer
from torch import Tensor

from cf_core.distance import count_edits
from cf_core.kinds import find_kinds
from cf_core.losses import Pair
from cf_core.melody import FIRST_PITCH, MelodyFormat
from evaluation.frechet import RealGaussian
from evaluation.jackknife import Jackknife
from evaluation.judge import Judge
from evaluation.likeness import Ranks, RealNeighbours, describe_pairs, find_seams
from evaluation.statistics import (
    STATISTICS,
    Neighbourhoods,
    NotePairs,
    compute_statistics,
    count_leaps,
    count_pairs,
    pair_features,
)

if TYPE_CHECKING:
    from evaluation.evaluator import Evaluator

NOVELTY_PAIRS = 128
"""Only this many pairs, the first ones, are looked up among the training segments. Looking up all
512 pairs of a usual source would take longer than all other metrics together."""

Statistics = Mapping[str, Float64[np.ndarray, "B"]]
Interval = tuple[float | None, float | None]


class Notes(NamedTuple):
    """Pairs as notes, with what is measured of each pair by itself; all of it on one device."""

    left: Int64[Tensor, "B T"]
    """The tokens of the left halves."""
    right: Int64[Tensor, "B T"]
    features: Float64[Tensor, "B F"]
    """Musical features (`describe_pairs`)."""
    information: Float64[Tensor, "B T"]
    """Log-probability of each token of the right half after the left one, less that by itself."""
    measured: Float64[Tensor, "B M"]
    """A column for each of `MEASURED`."""

    @property
    def tokens(self) -> NotePairs:
        """Both halves."""
        return self.left, self.right

    def take(self, rows: Int64[Tensor, "b"]) -> "Notes":
        """Some of the pairs."""
        return Notes(*(own[rows] for own in self))

    def join(self, others: "Notes") -> "Notes":
        """These pairs, then the others."""
        return Notes(*map(torch.cat, zip(self, others, strict=True)))


HALVES = ("left", "right")
MEASURED: tuple[str, ...] = (
    "judge",
    "halves_distance",
    "seam_bin",
    "leaps",
    "intervals",
    *(f"{name}_{half}" for name in STATISTICS for half in HALVES),
)
"""What is measured of pairs as notes: the probability of being real neighbours, by the judge of
their split; the edit distance between the halves; the interval across the seam (`find_seams`); how
many intervals exceed an octave, of how many; and the statistics of both halves."""


def measure_notes(tokens: NotePairs, form: MelodyFormat, judge: Judge) -> Notes:
    """Measure pairs by themselves, where they are."""
    likelihoods = judge.continuation.compare(*tokens)
    features, _ = describe_pairs(tokens, form)
    leaps, intervals = count_leaps(tokens)
    measured = {
        "judge": judge.probability(*tokens, likelihoods),
        "halves_distance": count_edits(*tokens),
        "seam_bin": find_seams(tokens, form),
        "leaps": leaps,
        "intervals": intervals,
    }
    for half, own in zip(HALVES, tokens, strict=True):
        values = compute_statistics(own, form).items()
        measured |= {f"{name}_{half}": value for name, value in values}
    columns = torch.stack([measured[name].double() for name in MEASURED], 1)
    information = likelihoods.after.double() - likelihoods.alone.double()
    return Notes(*tokens, features, information, columns)


class Decoded(NamedTuple):
    """Pairs of latents, and what they are as notes."""

    latents: Pair
    tokens: NotePairs


@dataclass(frozen=True)
class Pairs:
    """Pairs of segments as notes, with the latents and inputs that they come from."""

    notes: Notes
    songs: Integer[np.ndarray, "B 2"]
    """The song of each half, or -1 for none."""
    form: MelodyFormat
    reference: "Reference | None" = None
    """The real pairs to compare with; None for these themselves."""
    latents: Pair | None = None
    inputs: Decoded | None = None
    """The original inputs of a transform; None for pairs that no transform made."""
    finite: Bool[np.ndarray, "B"] | None = None
    """Which pairs are to be measured; None for all."""

    @cached_property
    def measured(self) -> Mapping[str, Float64[np.ndarray, "B"]]:
        """What is measured of the notes of each pair, by its name in `MEASURED`."""
        columns = self.notes.measured.T.contiguous().cpu().numpy()
        return dict(zip(MEASURED, columns, strict=True))

    @cached_property
    def statistics(self) -> tuple[Statistics, Statistics]:
        """Those of the left and of the right halves."""
        left, right = (
            {name: self.measured[f"{name}_{half}"] for name in STATISTICS} for half in HALVES
        )
        return left, right

    @cached_property
    def kinds(self) -> Int64[np.ndarray, "B"]:
        """The kind of the bars of each pair, as an index into the format's."""
        kinds: np.ndarray = find_kinds(self.notes.left, self.form).cpu().numpy()
        return kinds

    @cached_property
    def new_onsets(self) -> Float64[np.ndarray, "2 B"]:
        """Pointwise mutual information of the right half's new onsets, summed; and their number.

        An onset is new if the input has another token at its step. Without inputs all are new.
        """
        right = self.notes.right
        is_new = right >= FIRST_PITCH
        if self.inputs is not None:
            is_new = is_new & (right != self.inputs.tokens[1])
        information = torch.where(is_new, self.notes.information, 0.0).sum(1)
        found: np.ndarray = torch.stack((information, is_new.sum(1))).cpu().numpy()
        return found

    @cached_property
    def ranks(self) -> Ranks | None:
        """How the finite pairs rank among real neighbours; None where not all have a rank."""
        if self.reference is None:
            return None
        kept = self if self.finite is None else self[self.finite]
        found = self.reference.rank(kept.notes.features, kept.songs)
        is_known = np.isfinite(found.whole)
        return found if is_known.size and is_known.all() else None

    @cached_property
    def sounding(self) -> Bool[np.ndarray, "B"]:
        """Which pairs have notes in both halves."""
        left, right = (half["mean_pitch"] for half in self.statistics)
        return np.asarray(np.isfinite(left + right))

    @cached_property
    def edits(self) -> Int[np.ndarray, "2 B"] | None:
        """Edit distance of both halves to those of the inputs, if there are inputs."""
        if self.inputs is None:
            return None
        both = count_edits(torch.cat(self.inputs.tokens), torch.cat(self.notes.tokens))
        edits: np.ndarray = both.view(2, -1).cpu().numpy()
        return edits

    def __getitem__(self, kept: Bool[np.ndarray, "B"]) -> "Pairs":
        """Select pairs by a mask, as notes alone."""
        if kept.all():
            return self
        rows = torch.from_numpy(np.flatnonzero(kept)).to(self.notes.left.device)
        return Pairs(self.notes.take(rows), self.songs[kept], self.form, self.reference)


@dataclass(frozen=True)
class Reference:
    """Counts, statistics and neighbourhoods of a set of real adjacent pairs."""

    songs: Int64[np.ndarray, "S"]
    """The songs that the pairs are of."""
    of_pair: Int64[np.ndarray, "P"]
    """The place in `songs` of the song of each pair."""
    folds: Int64[np.ndarray, "_"]
    """The fold of every song of the corpus; -1 for songs of other splits."""
    counts: Mapping[str, Float64[np.ndarray, "S K K"]]
    """Of each song, how many pairs go from one bin to another."""
    seams: Float64[np.ndarray, "S I"]
    """Of each song, how many pairs have each interval across the seam."""
    statistics: tuple[Statistics, Statistics]
    neighbourhoods: Neighbourhoods
    neighbours: RealNeighbours
    judged: Float64[np.ndarray, "P"]
    """Probability of each pair by the judge of its split; here pairs are encoded and decoded."""
    halves_distance: Int64[np.ndarray, "P"]
    """Edit distance between the halves of each pair, encoded and decoded."""

    @cached_property
    def gaussian(self) -> RealGaussian:
        """The pairs' features as a Gaussian."""
        return RealGaussian.fit(self.neighbours.features)

    def rank(self, features: Float64[Tensor, "B F"], songs: Integer[np.ndarray, "B 2"]) -> Ranks:
        """Rank pairs among the real ones; pairs without songs are dealt into the folds."""
        if len(songs) and songs.min() < 0:
            folds = np.arange(len(songs)) % (self.folds.max() + 1)
        else:
            left, right = self.folds[songs].T
            folds = np.where(left == right, left, -1)
        return self.neighbours.rank(features, folds)

    def sum_by_song(self, influence: Float64[np.ndarray, "P"]) -> Float64[np.ndarray, "S"]:
        """Sum what the pairs of each song add to a statistic."""
        return np.bincount(self.of_pair, influence, len(self.songs))


@dataclass(frozen=True)
class Replicates:
    """The jackknife of pairs and real pairs together; all points of one source share it."""

    pairs: Jackknife
    reference: Reference

    @cached_property
    def counts(self) -> Mapping[str, Float64[np.ndarray, "R K K"]]:
        """The real pairs' counts from bin to bin, by statistic."""
        counts = self.reference.counts.items()
        return {name: self.pairs.count_real(by_song) for name, by_song in counts}

    @cached_property
    def seams(self) -> Float64[np.ndarray, "R I"]:
        """The real pairs' counts of the intervals across the seam."""
        return self.pairs.count_real(self.reference.seams)


@dataclass(frozen=True)
class Sample:
    """Input of the metrics of sets: the finite pairs, and the reference to compare with."""

    evaluator: "Evaluator"
    records: pl.DataFrame
    """The finite pairs' rows of `outcomes`."""
    pairs: Pairs
    finite: Bool[np.ndarray, "_"]
    """Which of all pairs are finite."""
    reference: Reference
    ranks: Ranks | None
    """Those of the finite pairs."""
    new_onsets: Float64[np.ndarray, "2 B"]
    """Those of the finite pairs (`Pairs.new_onsets`)."""

    @cached_property
    def replicates(self) -> Replicates | None:
        """Replicates with one song left out each; None where there are too few songs."""
        return self.evaluator.leave_out(self.pairs.songs, self.reference)

    @property
    def jackknife(self) -> Jackknife | None:
        """Those of the pairs alone."""
        return None if self.replicates is None else self.replicates.pairs

    @cached_property
    def counts(self) -> Mapping[str, Float64[np.ndarray, "K K"]]:
        """How many pairs go from one bin to another, by statistic."""
        return {name: count_pairs(*bins, k) for name, bins, k in self._bins()}

    @cached_property
    def drawn(self) -> Mapping[str, tuple[Float64[np.ndarray, "R K K"], ...]] | None:
        """The same in each replicate, of these and of the real pairs; None where there are none."""
        if (known := self.replicates) is None:
            return None
        return {
            name: (known.pairs.count_pairs(*bins, k), known.counts[name])
            for name, bins, k in self._bins()
        }

    def _bins(self) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray], int]]:
        for name in STATISTICS:
            yield name, take_bins(self.records, name), self.evaluator.bins.count(name)

    @property
    def influences(self) -> Mapping[str, Float64[np.ndarray, "S"]]:
        """By how much some metrics of pairs rise with the weight of a song of the real pairs."""
        if (ranks := self.ranks) is None:
            return {}
        by_pair = {
            "indistinguishable": ranks.whole_influence,
            "indistinguishable_halves": ranks.halves_influence,
        }
        return {name: 2 * self.reference.sum_by_song(own) for name, own in by_pair.items()}

    @property
    def first(self) -> Bool[np.ndarray, "_"]:
        """Which of the first pairs, those that are looked up, are finite."""
        return self.finite[:NOVELTY_PAIRS]

    @cached_property
    def nearest(self) -> Int[np.ndarray, "2 B"]:
        """Edit distance to the nearest training segment, for both halves of the first pairs."""
        count = int(self.first.sum())
        segments = self.evaluator.training_segments
        halves = (half[:count].cpu().numpy() for half in self.pairs.notes.tokens)
        return np.stack([segments.nearest(half) for half in halves])

    @cached_property
    def sounding(self) -> Pairs:
        """The pairs that have notes in both halves."""
        return self.pairs[self.pairs.sounding]

    @cached_property
    def density_and_coverage(self) -> tuple[float, float]:
        """Density and coverage of the pairs with notes in both halves (`Neighbourhoods`)."""
        features = pair_features(*self.sounding.statistics, self.evaluator.deviations)
        return self.reference.neighbourhoods.density_and_coverage(features)


@dataclass(frozen=True)
class Estimate:
    """A metric of `n` out of `pairs` pairs, with its 95 % interval if it has one."""

    value: float
    n: int
    pairs: int
    interval: Interval = (None, None)

    @classmethod
    def of_mean(
        cls,
        values: Float[np.ndarray, "B"],
        jackknife: Jackknife | None,
        pairs: int,
        influence: Float64[np.ndarray, "S"] | None = None,
    ) -> "Estimate":
        """Estimate a mean from the values of the finite pairs, out of `pairs` pairs in all.

        `influence` says how the songs of the real pairs bear on it, if they do.
        """
        exact = values.astype(np.float64)
        mean = float(exact.mean())
        interval: Interval = (None, None)
        if jackknife is not None and np.ptp(exact) > 0:  # equal values give no estimate of a spread
            interval = jackknife.interval(mean, jackknife.means(exact, influence))
        return cls(mean, len(exact), pairs, interval)

    def row(self, metric: str) -> dict[str, str | float | int | None]:
        """Return its columns in the table `metrics`."""
        low, high = self.interval
        excluded = self.pairs - self.n
        return {
            "metric": metric, "value": self.value, "low": low, "high": high, "n": self.n,
            "excluded": excluded,
        }  # fmt: skip


def take_bins(
    outcomes: pl.DataFrame, statistic: str
) -> tuple[Integer[np.ndarray, "B"], Integer[np.ndarray, "B"]]:
    """Return the bins of the left and of the right half of each pair; -1 for no value."""
    left, right = (
        outcomes[f"{statistic}_{half}"].to_numpy().astype(np.int64) for half in ("left", "right")
    )
    return left, right
