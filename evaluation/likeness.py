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

from cf_core.melody import FIRST_PITCH, REST, MelodyFormat
from cf_core.training import limit_threads
from evaluation.statistics import DIATONIC, TokenPairs, count_classes, sounding_pitch

FOLDS = 4
"""Groups of songs. A classifier of three of them scores the fourth."""
_FEWEST = 2
"""Fewer pairs than this fit no classifier."""
_RIDGE = 1.0
"""Added to the covariance of the standardised features."""
_OCTAVE = 12
_LENGTHS = (1, 2, 3, 4, 6, 8, 12)
"""Steps from a note to the next that are counted."""
_SEAM = _OCTAVE + 1
"""Largest interval across the seam that is told from larger ones, in semitones."""


@dataclass(frozen=True)
class _Half:
    """One half of each pair, and what its features are made of; without notes, pitches are 0."""

    tokens: Integer[np.ndarray, "B T"]
    form: MelodyFormat

    @cached_property
    def sounding(self) -> Int64[np.ndarray, "B T"]:
        """The pitch that sounds at each step; -1 for none."""
        return np.asarray(sounding_pitch(self.tokens, self.form))

    @cached_property
    def onsets(self) -> Bool[np.ndarray, "B T"]:
        """The steps at which a note begins."""
        return np.asarray(self.tokens >= FIRST_PITCH)

    @cached_property
    def steps(self) -> Int64[np.ndarray, "B"]:
        """Number of steps."""
        return np.asarray((self.tokens >= REST).sum(axis=1))

    @cached_property
    def _slots(self) -> Int64[np.ndarray, "B W"]:
        """The step in each slot; -1 for none."""
        return np.asarray(self.form.slots[self.form.find_kinds(self.tokens)])

    @cached_property
    def pitch(self) -> Int64[np.ndarray, "B W"]:
        """The pitch that sounds at each slot; -1 for none."""
        return np.where(self._slots < 0, -1, self._place(self.sounding))

    @cached_property
    def struck(self) -> Bool[np.ndarray, "B W"]:
        """The slots at which a note begins."""
        return np.asarray((self._slots >= 0) & self._place(self.onsets))

    def _place(self, values: Shaped[np.ndarray, "B T"]) -> Shaped[np.ndarray, "B W"]:
        """Lay values of steps out in slots; a slot without a step has that of the first one."""
        return np.asarray(np.take_along_axis(values, self._slots.clip(0), axis=1))

    @cached_property
    def count(self) -> Float64[np.ndarray, "B"]:
        """Number of notes, at least 1."""
        return np.asarray(self.struck.sum(axis=1).clip(1), np.float64)

    @cached_property
    def mean(self) -> Float64[np.ndarray, "B"]:
        """Mean pitch of the notes."""
        return np.asarray(np.where(self.struck, self.pitch, 0).sum(axis=1) / self.count)

    @cached_property
    def contour(self) -> Float64[np.ndarray, "B W"]:
        """Pitch at each slot above the mean; 0 where none sounds."""
        return np.where(self.pitch >= 0, self.pitch - self.mean[:, None], 0.0)

    @cached_property
    def classes(self) -> Float64[np.ndarray, "B 12"]:
        """Share of the steps at which each pitch class sounds."""
        return np.asarray(count_classes(self.sounding) / self.steps[:, None])

    @cached_property
    def diatonic(self) -> Float64[np.ndarray, "B 12"]:
        """Share of the steps at which a note of each diatonic collection sounds."""
        return np.asarray(np.einsum("bk,ks->bs", self.classes, DIATONIC))

    @cached_property
    def ends(self) -> tuple[Int64[np.ndarray, "B"], Int64[np.ndarray, "B"]]:
        """The first and the last step at which a note begins; 0 without notes."""
        last = self.tokens.shape[1] - 1 - self.onsets[:, ::-1].argmax(axis=1)
        return self.onsets.argmax(axis=1), np.where(self.onsets.any(axis=1), last, 0)

    @cached_property
    def moves(self) -> tuple[Float64[np.ndarray, "B 26"], Float64[np.ndarray, "B L"]]:
        """Shares of each interval (-12 to 12, larger) and length from a note to the next."""
        rows, steps = np.nonzero(self.onsets)
        follows = np.flatnonzero(rows[1:] == rows[:-1])
        interval = np.diff(self.sounding[rows, steps])[follows]
        length = np.diff(steps)[follows]
        kind = np.where(abs(interval) <= _OCTAVE, interval + _OCTAVE, 2 * _OCTAVE + 1)
        sizes = len(self.tokens), 2 * _OCTAVE + 2
        intervals = np.bincount(rows[follows] * sizes[1] + kind, minlength=sizes[0] * sizes[1])
        lengths = [np.bincount(rows[follows][length == n], minlength=sizes[0]) for n in _LENGTHS]
        return (
            intervals.reshape(sizes) / self.count[:, None],
            np.stack(lengths, axis=1) / self.count[:, None],
        )

    @cached_property
    def range(self) -> Float64[np.ndarray, "B"]:
        """Highest less lowest note."""
        highest = np.where(self.struck, self.pitch, 0).max(axis=1)
        lowest = np.where(self.struck, self.pitch, 127).min(axis=1)
        return np.asarray(np.maximum(highest - lowest, 0), np.float64)

    def parts(self) -> tuple[slice, slice]:
        """The first and the second half of the slots."""
        slots = self.pitch.shape[1]
        return slice(0, slots // 2), slice(slots - slots // 2, slots)

    def features(self) -> Float64[np.ndarray, "B H"]:
        """What a half is like by itself."""
        first, second = self.parts()
        single = (
            self.diatonic.max(axis=1),
            (self.sounding >= 0).sum(axis=1) / self.steps,
            self.mean,
            self.count,
            self.range,
            self.steps - 1.0 - self.ends[1],
            (self.struck[:, first] == self.struck[:, second]).mean(axis=1),
        )
        shares = np.sort(self.classes, axis=1)
        return np.concatenate(
            (self.struck, self.contour, *self.moves, shares, np.stack(single, axis=1)), axis=1
        )


def describe_pairs(
    tokens: TokenPairs, form: MelodyFormat
) -> tuple[Float64[np.ndarray, "B F"], int]:
    """Describe pairs by musical features; those of single halves come first, and are counted.

    A half is described by its onsets, contour, intervals, lengths, pitch classes without their
    names, register and range. A pair is also described by how its halves relate: their pitch
    classes at all twelve transpositions, a shared scale, shared rhythms, pitches and contours of
    their parts, differences of register and density, and the step across the seam.
    """
    left, right = (_Half(half, form) for half in tokens)
    alone = np.concatenate((left.features(), right.features()), axis=1)
    return np.concatenate((alone, _relations(left, right)), axis=1), alone.shape[1]


def _relations(left: _Half, right: _Half) -> Float64[np.ndarray, "B R"]:
    scales = left.diatonic, right.diatonic
    union = (scales[0] + scales[1]).max(axis=1) / 2
    gain = union - (scales[0].max(axis=1) + scales[1].max(axis=1)) / 2
    columns = [_cosine(left.classes, np.roll(right.classes, k, axis=1)) for k in range(12)]
    columns += [(scales[0] * scales[1]).max(axis=1), _cosine(*scales), gain]
    for one in left.parts():
        for other in right.parts():
            equal = left.pitch[:, one] == right.pitch[:, other]
            columns += [
                (left.struck[:, one] == right.struck[:, other]).mean(axis=1),
                equal.mean(axis=1),
                equal.all(axis=1),
                _cosine(left.contour[:, one], right.contour[:, other]),
            ]
    apart = right.mean - left.mean
    columns += [apart, abs(apart), abs(left.count - right.count), abs(left.range - right.range)]
    columns += [_cosine(a, b) for a, b in zip(left.moves, right.moves, strict=True)]
    interval = _seams(left, right)
    gap = left.steps - left.ends[1] + right.ends[0]
    columns += [interval == step for step in range(-_SEAM, _SEAM + 1)]
    columns += [interval, abs(interval), gap, gap * abs(interval)]
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def _cosine(
    one: Float64[np.ndarray, "B n"], other: Float64[np.ndarray, "B n"]
) -> Float64[np.ndarray, "B"]:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / np.where(norms > 0, norms, 1))


SEAMS = 2 * _SEAM + 1
"""Number of intervals across the seam that are told apart."""


def find_seams(tokens: TokenPairs, form: MelodyFormat) -> Int64[np.ndarray, "B"]:
    """Return the interval from the last note of the left half to the first of the right, upwards.

    As a bin: 13 stands for a unison, 0 and 26 for more than an octave. -1 where a half has no
    notes.
    """
    left, right = (_Half(half, form) for half in tokens)
    return np.where(_both_sound(left, right), _seams(left, right) + _SEAM, -1)


def _both_sound(left: _Half, right: _Half) -> Bool[np.ndarray, "B"]:
    return np.asarray(left.struck.any(axis=1) & right.struck.any(axis=1))


def _seams(left: _Half, right: _Half) -> Int64[np.ndarray, "B"]:
    """The interval in semitones, at most an octave and one; 0 where a half has no notes."""
    rows = np.arange(len(left.tokens))
    interval = right.sounding[rows, right.ends[0]] - left.sounding[rows, left.ends[1]]
    return np.where(_both_sound(left, right), interval.clip(-_SEAM, _SEAM), 0)


@dataclass(frozen=True)
class _Moments:
    """Number, sum and products of some rows of features."""

    count: int
    total: Float64[np.ndarray, "F"]
    products: Float64[np.ndarray, "F F"]

    @classmethod
    def of(cls, features: Float64[np.ndarray, "B F"]) -> "_Moments":
        return cls(len(features), features.sum(axis=0), _product(features.T, features))

    @cached_property
    def mean(self) -> Float64[np.ndarray, "F"]:
        return self.total / self.count

    @cached_property
    def covariance(self) -> Float64[np.ndarray, "F F"]:
        return self.products / self.count - np.outer(self.mean, self.mean)

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

    features: Float64[np.ndarray, "P F"]
    halves: int
    """Number of features that describe single halves; they come first."""
    folds: Int64[np.ndarray, "P"]

    @classmethod
    def describe(
        cls, tokens: TokenPairs, folds: Int64[np.ndarray, "P"], form: MelodyFormat
    ) -> "RealNeighbours":
        """Describe real pairs, which are in these folds."""
        return cls(*describe_pairs(tokens, form), folds)

    @cached_property
    def _by_fold(self) -> list[tuple[Float64[np.ndarray, "_ F"], _Moments]]:
        """The real pairs of each fold, and the moments of those of all other folds."""
        whole = _Moments.of(self.features)
        rows = [self.features[self.folds == fold] for fold in range(FOLDS)]
        return [(own, whole - _Moments.of(own)) for own in rows]

    def rank(self, features: Float64[np.ndarray, "B F"], folds: Int64[np.ndarray, "B"]) -> Ranks:
        """Rank pairs, described and in these folds (-1 for none), among the real ones."""
        known = folds >= 0
        ranks = np.full((2, len(features)), np.nan)
        influence = np.zeros((2, len(self.features)))
        with limit_threads(1):  # sums are to add up alike in workers and elsewhere
            whole = _Moments.of(features[known])
            for fold, (real, others) in enumerate(self._by_fold):
                own = folds == fold
                outputs = whole - _Moments.of(features[own])
                if min(own.sum(), len(real), outputs.count, others.count) < _FEWEST:
                    continue
                share = own.sum() / known.sum()
                for place, kept in enumerate((slice(None), slice(self.halves))):
                    weights = _discriminant(outputs, others, kept)
                    # Equal pairs are to be ties, whatever the last bits of a sum.
                    scores, reals = (
                        np.round(_product(rows[:, kept], weights), 9)
                        for rows in (features[own], real)
                    )
                    ranks[place, own] = _share_below(scores, reals)
                    above = 1 - _share_below(reals, scores)
                    centred = share * (above - above.mean()) / len(real)
                    influence[place, self.folds == fold] = centred
        return Ranks(*ranks, *influence)


def _share_below(
    values: Float64[np.ndarray, "n"], others: Float64[np.ndarray, "m"]
) -> Float64[np.ndarray, "n"]:
    """Share of the others that are below each value; ties count half."""
    ordered = np.sort(others)
    sides = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return np.asarray(sum(sides) / (2 * len(others)), np.float64)


def _discriminant(outputs: _Moments, real: _Moments, kept: slice) -> Float64[np.ndarray, "F"]:
    """Weights of Fisher's discriminant between outputs and real pairs, with a ridge."""
    within = (outputs.covariance[kept, kept] + real.covariance[kept, kept]) / 2
    apart = real.mean[kept] - outputs.mean[kept]
    deviation = np.sqrt(np.maximum(within.diagonal(), 0) + apart**2 / 4) + 1e-6
    scaled = within / np.outer(deviation, deviation) + _RIDGE * np.eye(len(within))
    solved = torch.linalg.solve(torch.from_numpy(scaled), torch.from_numpy(apart / deviation))
    return np.asarray(solved.numpy() / deviation)


def _product(
    one: Float64[np.ndarray, "n m"], other: Float64[np.ndarray, "m *k"]
) -> Float64[np.ndarray, "n *k"]:
    """Matrix product by torch, whose sums depend on a number of threads that can be set."""
    product: np.ndarray = (torch.from_numpy(one) @ torch.from_numpy(other)).numpy()
    return product
