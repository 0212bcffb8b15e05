"""Likeness: how well pairs of segments can be told from real neighbours by their notes.

A classifier is fitted to tell outputs from real neighbours, and scored on songs that it was not
fitted to: a classifier two-sample test (Lopez-Paz & Oquab 2017). Its area under the ROC curve is
0.5 where nothing tells them apart, and 1 where everything does. In contrast to a judge it was never
trained before, so no method can have learnt to please it, and it finds whatever is unlike music.

The classifier is a linear discriminant of musical features that are written down here. They need no
training, so they hold nothing that a method might have seen.

Letters in shapes: `B` pairs, `P` real pairs, `T` steps, `W` slots (`MelodyFormat.slots`), `H`
features of a half, `F` of a pair.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Integer, Shaped
from torch import Tensor

from cf_core.kinds import find_kinds, look_up, on_device
from cf_core.melody import FIRST_PITCH, REST, MelodyFormat
from cf_core.training import limit_threads
from evaluation.statistics import (
    DIATONIC,
    NotePairs,
    count_classes,
    find_note_before,
    sounding_pitch,
)

FOLDS = 4
"""Groups of songs. A classifier of three of them scores the fourth."""
_FEWEST = 2
"""Fewer pairs than this fit no classifier."""
_RIDGE = 1.0
"""Added to the covariance of the standardised features."""
_SMALLEST = 1e-9
"""A feature that varies by less, as a variance, is left out."""
_OCTAVE = 12
_LENGTHS = (1, 2, 3, 4, 6, 8, 12)
"""Steps from a note to the next that are counted."""
_SEAM = _OCTAVE + 1
"""Largest interval across the seam that is told from larger ones, in semitones."""


@dataclass(frozen=True)
class _Half:
    """One half of each pair, and what its features are made of; without notes, pitches are 0."""

    tokens: Integer[Tensor, "B T"]
    form: MelodyFormat

    @cached_property
    def sounding(self) -> Int64[Tensor, "B T"]:
        """The pitch that sounds at each step; -1 for none."""
        return sounding_pitch(self.tokens, self.form)

    @cached_property
    def onsets(self) -> Bool[Tensor, "B T"]:
        """The steps at which a note begins."""
        return self.tokens >= FIRST_PITCH

    @cached_property
    def steps(self) -> Int64[Tensor, "B"]:
        """Number of steps."""
        return (self.tokens >= REST).sum(1)

    @cached_property
    def _slots(self) -> Int64[Tensor, "B W"]:
        """The step in each slot; -1 for none."""
        return look_up(self.form.slots, find_kinds(self.tokens, self.form))

    @cached_property
    def pitch(self) -> Int64[Tensor, "B W"]:
        """The pitch that sounds at each slot; -1 for none."""
        return torch.where(self._slots < 0, -1, self._place(self.sounding))

    @cached_property
    def struck(self) -> Bool[Tensor, "B W"]:
        """The slots at which a note begins."""
        return (self._slots >= 0) & self._place(self.onsets)

    def _place(self, values: Shaped[Tensor, "B T"]) -> Shaped[Tensor, "B W"]:
        """Lay values of steps out in slots; a slot without a step has that of the first one."""
        return values.gather(1, self._slots.clamp(min=0))

    @cached_property
    def count(self) -> Float64[Tensor, "B"]:
        """Number of notes, at least 1."""
        return self.struck.sum(1).clamp(min=1).double()

    @cached_property
    def mean(self) -> Float64[Tensor, "B"]:
        """Mean pitch of the notes."""
        return torch.where(self.struck, self.pitch, 0).sum(1) / self.count

    @cached_property
    def contour(self) -> Float64[Tensor, "B W"]:
        """Pitch at each slot above the mean; 0 where none sounds."""
        return torch.where(self.pitch >= 0, self.pitch - self.mean[:, None], 0.0)

    @cached_property
    def classes(self) -> Float64[Tensor, "B 12"]:
        """Share of the steps at which each pitch class sounds."""
        counts = count_classes(self.sounding, torch.ones_like(self.sounding))
        return counts.double() / self.steps[:, None]

    @cached_property
    def diatonic(self) -> Float64[Tensor, "B 12"]:
        """Share of the steps at which a note of each diatonic collection sounds."""
        return self.classes @ on_device(DIATONIC, self.classes.device).double()

    @cached_property
    def ends(self) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"]]:
        """The first and the last step at which a note begins; 0 without notes."""
        onsets = self.onsets.int()
        last = onsets.shape[1] - 1 - onsets.flip(1).argmax(1)
        return onsets.argmax(1), torch.where(self.onsets.any(1), last, 0)

    @cached_property
    def moves(self) -> tuple[Float64[Tensor, "B 26"], Float64[Tensor, "B L"]]:
        """Shares of each interval (-12 to 12, larger) and length from a note to the next."""
        before = find_note_before(self.onsets)
        follows, there = before >= 0, before.clamp(min=0)
        interval = self.sounding - self.sounding.gather(1, there)
        within = interval.abs() <= _OCTAVE
        kind = torch.where(within, interval + _OCTAVE, 2 * _OCTAVE + 1)
        intervals = interval.new_zeros(len(interval), 2 * _OCTAVE + 2)
        intervals.scatter_add_(1, kind, follows.long())
        steps = torch.arange(before.shape[1], device=before.device)
        length = torch.where(follows, steps - before, 0)
        lengths = torch.stack([(length == n).sum(1) for n in _LENGTHS], 1)
        return intervals / self.count[:, None], lengths / self.count[:, None]

    @cached_property
    def range(self) -> Float64[Tensor, "B"]:
        """Highest less lowest note."""
        highest = torch.where(self.struck, self.pitch, 0).amax(1)
        lowest = torch.where(self.struck, self.pitch, 127).amin(1)
        return (highest - lowest).clamp(min=0).double()

    def parts(self) -> tuple[slice, slice]:
        """The first and the second half of the slots."""
        slots = self.pitch.shape[1]
        return slice(0, slots // 2), slice(slots - slots // 2, slots)

    def features(self) -> Float64[Tensor, "B H"]:
        """What a half is like by itself."""
        first, second = self.parts()
        single = (
            self.diatonic.amax(1),
            (self.sounding >= 0).sum(1).double() / self.steps,
            self.mean,
            self.count,
            self.range,
            (self.steps - 1 - self.ends[1]).double(),
            _share(self.struck[:, first] == self.struck[:, second]),
        )
        shares = self.classes.sort(1).values
        parts = (self.struck.double(), self.contour, *self.moves, shares, torch.stack(single, 1))
        return torch.cat(parts, 1)


def describe_pairs(tokens: NotePairs, form: MelodyFormat) -> tuple[Float64[Tensor, "B F"], int]:
    """Describe pairs by musical features; those of single halves come first, and are counted.

    A half is described by its onsets, contour, intervals, lengths, pitch classes without their
    names, register and range. A pair is also described by how its halves relate: their pitch
    classes at all twelve transpositions, a shared scale, shared rhythms, pitches and contours of
    their parts, differences of register and density, and the step across the seam.
    """
    left, right = (_Half(half, form) for half in tokens)
    with limit_threads(1):  # sums are to add up alike in workers and elsewhere
        alone = torch.cat((left.features(), right.features()), 1)
        return torch.cat((alone, _relations(left, right)), 1), alone.shape[1]


def _relations(left: _Half, right: _Half) -> Float64[Tensor, "B R"]:
    scales = left.diatonic, right.diatonic
    union = (scales[0] + scales[1]).amax(1) / 2
    gain = union - (scales[0].amax(1) + scales[1].amax(1)) / 2
    columns = [_cosine(left.classes, right.classes.roll(k, 1)) for k in range(12)]
    columns += [(scales[0] * scales[1]).amax(1), _cosine(*scales), gain]
    for one in left.parts():
        for other in right.parts():
            equal = left.pitch[:, one] == right.pitch[:, other]
            columns += [
                _share(left.struck[:, one] == right.struck[:, other]),
                _share(equal),
                equal.all(1),
                _cosine(left.contour[:, one], right.contour[:, other]),
            ]
    apart = right.mean - left.mean
    columns += [apart, apart.abs()]
    columns += [(left.count - right.count).abs(), (left.range - right.range).abs()]
    columns += [_cosine(a, b) for a, b in zip(left.moves, right.moves, strict=True)]
    interval = _seams(left, right)
    gap = left.steps - left.ends[1] + right.ends[0]
    columns += [interval == step for step in range(-_SEAM, _SEAM + 1)]
    columns += [interval, interval.abs(), gap, gap * interval.abs()]
    return torch.stack([column.double() for column in columns], 1)


def _share(chosen: Bool[Tensor, "B n"]) -> Float64[Tensor, "B"]:
    """Share of each row that is chosen."""
    return chosen.double().mean(1)


def _cosine(one: Float64[Tensor, "B n"], other: Float64[Tensor, "B n"]) -> Float64[Tensor, "B"]:
    norms = torch.linalg.vector_norm(one, dim=1) * torch.linalg.vector_norm(other, dim=1)
    return (one * other).sum(1) / torch.where(norms > 0, norms, 1)


SEAMS = 2 * _SEAM + 1
"""Number of intervals across the seam that are told apart."""


def find_seams(tokens: NotePairs, form: MelodyFormat) -> Int64[Tensor, "B"]:
    """Return the interval from the last note of the left half to the first of the right, upwards.

    As a bin: 13 stands for a unison, 0 and 26 for more than an octave. -1 where a half has no
    notes.
    """
    left, right = (_Half(half, form) for half in tokens)
    return torch.where(_both_sound(left, right), _seams(left, right) + _SEAM, -1)


def _both_sound(left: _Half, right: _Half) -> Bool[Tensor, "B"]:
    return left.struck.any(1) & right.struck.any(1)


def _seams(left: _Half, right: _Half) -> Int64[Tensor, "B"]:
    """The interval in semitones, at most an octave and one; 0 where a half has no notes."""
    last, first = left.ends[1][:, None], right.ends[0][:, None]
    interval = (right.sounding.gather(1, first) - left.sounding.gather(1, last)).squeeze(1)
    return torch.where(_both_sound(left, right), interval.clamp(-_SEAM, _SEAM), 0)


@dataclass(frozen=True)
class _Moments:
    """Number, sum and products of some rows of features."""

    count: int
    total: Float64[Tensor, "F"]
    products: Float64[Tensor, "F F"]

    @classmethod
    def of(cls, features: Float64[Tensor, "B F"]) -> "_Moments":
        return cls(len(features), features.sum(0), features.T @ features)

    @cached_property
    def mean(self) -> Float64[Tensor, "F"]:
        return self.total / self.count

    @cached_property
    def covariance(self) -> Float64[Tensor, "F F"]:
        return self.products / self.count - self.mean.outer(self.mean)

    def __sub__(self, other: "_Moments") -> "_Moments":
        return _Moments(
            self.count - other.count, self.total - other.total, self.products - other.products
        )


@dataclass(frozen=True)
class Ranks:
    """How pairs rank among real neighbours of the same fold, by a classifier of the other folds.

    Each kind of features, all and those of single halves, has a classifier of its own. A pair that
    is in no fold, or in a fold that could not be scored, has the rank NaN.
    """

    whole: Float64[np.ndarray, "B"]
    """Share of the real pairs that are rated less real than the pair, 0 to 1; ties count half."""
    halves: Float64[np.ndarray, "B"]
    """The same by single halves."""
    whole_influence: Float64[np.ndarray, "P"]
    """By how much the mean of `whole` rises with the weight of a real pair, over its weight."""
    halves_influence: Float64[np.ndarray, "P"]
    """The same for `halves`."""


@dataclass(frozen=True)
class RealNeighbours:
    """Features of real adjacent pairs, with the fold of songs that each pair is in."""

    features: Float64[Tensor, "P F"]
    halves: int
    """Number of features that describe single halves; they come first."""
    folds: Int64[np.ndarray, "P"]

    @classmethod
    def describe(
        cls, tokens: NotePairs, folds: Int64[np.ndarray, "P"], form: MelodyFormat
    ) -> "RealNeighbours":
        """Describe real pairs, which are in these folds."""
        return cls(*describe_pairs(tokens, form), folds)

    @cached_property
    def _by_fold(self) -> list[tuple[Int64[Tensor, "_"], Float64[Tensor, "_ F"], _Moments]]:
        """Which real pairs are in each fold, these, and the moments of those of all others."""
        whole = _Moments.of(self.features)
        groups = [(rows, self.features[rows]) for rows in self._group(self.folds)]
        return [(rows, own, whole - _Moments.of(own)) for rows, own in groups]

    def _group(self, folds: Int64[np.ndarray, "n"]) -> list[Int64[Tensor, "_"]]:
        """The rows of each fold, in one copy to the device of the features."""
        order = torch.from_numpy(np.argsort(folds, kind="stable")).to(self.features.device)
        sizes = np.bincount(folds + 1, minlength=FOLDS + 1).tolist()
        return list(order.split(sizes))[1:]

    def rank(self, features: Float64[Tensor, "B F"], folds: Int64[np.ndarray, "B"]) -> Ranks:
        """Rank pairs, described and in these folds (-1 for none), among the real ones."""
        ranks = features.new_full((2, len(features)), torch.nan)
        influence = features.new_zeros(2, len(self.features))
        with limit_threads(1):  # sums are to add up alike in workers and elsewhere
            groups = self._group(folds)
            known = torch.cat(groups)
            whole = _Moments.of(features[known])
            for rows, (there, real, others) in zip(groups, self._by_fold, strict=True):
                own = features[rows]
                outputs = whole - _Moments.of(own)
                if min(len(own), len(real), outputs.count, others.count) < _FEWEST:
                    continue
                share = len(own) / len(known)
                for place, kept in enumerate((slice(None), slice(self.halves))):
                    weights = _discriminant(outputs, others, kept)
                    # Equal pairs are to be ties, whatever the last bits of a sum.
                    scores, reals = (
                        (each[:, kept] @ weights).round(decimals=9) for each in (own, real)
                    )
                    ranks[place, rows] = _share_below(scores, reals)
                    above = 1 - _share_below(reals, scores)
                    influence[place, there] = share * (above - above.mean()) / len(real)
        both = torch.cat((ranks, influence), 1).cpu().numpy()  # in one copy
        return Ranks(*both[:, : len(features)], *both[:, len(features) :])


def _share_below(
    values: Float64[Tensor, "n"], others: Float64[Tensor, "m"]
) -> Float64[Tensor, "n"]:
    """Share of the others that are below each value; ties count half."""
    ordered = others.sort().values
    sides = [torch.searchsorted(ordered, values, side=side) for side in ("left", "right")]
    return (sides[0] + sides[1]).double() / (2 * len(others))


def _discriminant(outputs: _Moments, real: _Moments, kept: slice) -> Float64[Tensor, "F"]:
    """Weights of Fisher's discriminant between outputs and real pairs, with a ridge."""
    within = (outputs.covariance[kept, kept] + real.covariance[kept, kept]) / 2
    apart = real.mean[kept] - outputs.mean[kept]
    variance = within.diagonal().clamp(min=0) + apart**2 / 4
    # What is the same in all these pairs tells nothing of others. All that is left of it are
    # rounding errors, which differ between devices.
    varies = (variance > _SMALLEST).to(variance)
    within, apart = within * varies.outer(varies), apart * varies
    deviation = variance.sqrt() + 1e-6
    ridge = _RIDGE * torch.eye(len(within), dtype=within.dtype, device=within.device)
    scaled = within / deviation.outer(deviation) + ridge
    solved: Tensor = torch.linalg.solve(scaled, apart / deviation)
    return solved / deviation
