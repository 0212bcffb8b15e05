"""Measures how reliable a classifier of pairs is on songs that it has never seen.

Letters in shapes: `P` adjacent pairs, `N` negatives, `B` pairs of both kinds, `S` songs, `R`
resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Integer

from cf_core.continuation import Continuation
from cf_core.corpus import Corpus, Split
from cf_core.seeding import derive
from evaluation.bootstrap import auc, draw_pigeonhole_weights, resample_auc
from evaluation.negatives import LabelledTokens, draw_hard_pairs
from evaluation.sources import unpaired
from evaluation.statistics import PITCH_CLASSES, TokenPairs, sounding_pitch

Scorer = Callable[[TokenPairs], Float[np.ndarray, "B"]]
"""Gives the logits of pairs of notes."""

MOST = 2048
"""Most adjacent pairs, and others of each kind, that a classifier is tried on. More would take
longer than the training of a judge, and it is the number of songs that sets intervals."""

CALIBRATION_BINS = 10
"""Number of bins of equal width in the calibration error."""

# Krumhansl & Kessler (1982): how well each pitch class, from the tonic up, fits a key.
_PROFILES = (
    (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class LabelledPairs:
    """Pairs of unseen songs on which a classifier is tested, by kind."""

    adjacent: LabelledTokens
    unpaired: LabelledTokens
    """Pairs of segments of different songs."""
    hard: Mapping[str, LabelledTokens]
    """Other negatives. `same_key` has left halves of adjacent pairs, each with a segment of another
    song in the same key; a song that is alone in its key gives none. The other kinds are those of
    `evaluation.negatives`. Kinds without any pair are left out."""

    @classmethod
    def draw(
        cls, corpus: Corpus, split: Split, continuation: Continuation, seed: int
    ) -> "LabelledPairs":
        """Draw the pairs of a split, at most `MOST` of a kind; equal seeds give equal pairs."""
        random = np.random.default_rng(derive(seed, "reliability", split))
        adjacent = draw_adjacent(corpus, split, random)
        negatives = unpaired(corpus, split, len(adjacent), random)
        same_key = _same_key_pairs(corpus, split, adjacent, random)
        hard = {"same_key": LabelledTokens.of(corpus, same_key)}
        hard |= draw_hard_pairs(corpus, split, len(adjacent), continuation, random)
        return cls(
            LabelledTokens.of(corpus, adjacent),
            LabelledTokens.of(corpus, negatives),
            {kind: pairs for kind, pairs in hard.items() if len(pairs.songs)},
        )

    def report(
        self,
        logits: Scorer,
        resamples: int,
        seed: int,
    ) -> dict[str, dict[str, float] | int]:
        """Measure `auc`, `calibration_error`, and an AUC for each kind of `hard`, for JSON.

        Intervals resample songs by `evaluation.bootstrap.draw_pigeonhole_weights`, with the
        classifier held fixed. The number of adjacent pairs is given as well.
        """
        kinds = {"auc": self.unpaired} | {f"{name}_auc": own for name, own in self.hard.items()}
        scores = [logits(own.tokens) for own in (self.adjacent, *kinds.values())]
        positive, weights = (
            scores[0],
            self._weights((self.adjacent, *kinds.values()), resamples, seed),
        )
        both = np.concatenate(scores[:2])
        is_adjacent = np.arange(len(both)) < len(positive)
        probability = 1 / (1 + np.exp(-both.astype(np.float64)))
        figures = {
            "calibration_error": _centred(
                float(calibration_error(probability, is_adjacent, np.ones((1, len(both))))[0]),
                calibration_error(probability, is_adjacent, np.hstack(weights[:2])),
            )
        } | {
            name: _estimate(auc(positive, own), resample_auc(positive, own, weights[0], drawn))
            for name, own, drawn in zip(kinds, scores[1:], weights[1:], strict=True)
        }
        return {"pairs": len(positive)} | {name: asdict(own) for name, own in figures.items()}

    def measure_agreement(
        self,
        logits: Scorer,
        others: Scorer,
        resamples: int,
        seed: int,
    ) -> Estimate:
        """Measure Spearman's rank correlation of two classifiers over adjacent and unpaired pairs.

        The interval is as in `report`, with the rank of each pair held fixed.
        """
        from scipy.stats import rankdata  # noqa: PLC0415  (slow, and judges are made once)

        kinds = self.adjacent, self.unpaired
        a, b = (
            rankdata(np.concatenate([score(own.tokens) for own in kinds]))
            for score in (logits, others)
        )
        weights = np.hstack(self._weights(kinds, resamples, seed))
        return _estimate(
            float(_correlation(a, b, np.ones((1, len(a))))[0]), _correlation(a, b, weights)
        )

    @staticmethod
    def _weights(
        kinds: Sequence[LabelledTokens], resamples: int, seed: int
    ) -> list[Float64[np.ndarray, "R B"]]:
        """Draw how often each pair of each kind occurs in each resample."""
        random = np.random.default_rng(derive(seed, "reliability", "resamples"))
        songs = [own.songs for own in kinds]
        drawn = draw_pigeonhole_weights(np.concatenate(songs), resamples, random)
        return np.split(drawn, np.cumsum([len(own) for own in songs])[:-1], axis=1)


def draw_adjacent(
    corpus: Corpus, split: Split, random: np.random.Generator
) -> Integer[np.ndarray, "P 2"]:
    """All adjacent pairs of a split, or `MOST` drawn among them."""
    pairs = corpus.pairs_of(split)
    return pairs if len(pairs) <= MOST else random.permutation(pairs)[:MOST]


def calibration_error(
    probability: Float64[np.ndarray, "B"],
    is_adjacent: Bool[np.ndarray, "B"],
    weights: Float64[np.ndarray, "R B"],
) -> Float64[np.ndarray, "R"]:
    """Expected calibration error (Guo et al. 2017), 0 to 1, for each row of weights.

    It is the difference between the mean probability and the share of adjacent pairs, averaged over
    `CALIBRATION_BINS` bins of equal width, each weighted by the pairs in it.
    """
    place = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins = np.eye(CALIBRATION_BINS)[place]
    gaps = np.abs(weights @ (bins * (probability - is_adjacent)[:, None]))
    return np.asarray(gaps.sum(1) / weights.sum(1))


def find_keys(corpus: Corpus) -> Int[np.ndarray, "S"]:
    """Estimate the key of each song: 0 (C) to 11 (B) major, 12 to 23 minor.

    The key is the one whose profile (Krumhansl & Kessler) correlates best with how long each pitch
    class sounds (Krumhansl 1990). A song without notes counts as C major.
    """
    sounding = sounding_pitch(torch.as_tensor(corpus.tokens), corpus.form).numpy()
    segment, step = np.nonzero(sounding >= 0)
    pitch = sounding[segment, step]
    songs = len(corpus.song_ids)
    cells = corpus.song[segment].astype(np.int64) * PITCH_CLASSES + pitch % PITCH_CLASSES
    lengths = corpus.form.step_lengths[corpus.kinds[segment], step]
    durations = np.bincount(cells, lengths, songs * PITCH_CLASSES).reshape(songs, PITCH_CLASSES)
    profiles = np.stack([np.roll(mode, tonic) for mode in _PROFILES for tonic in range(12)])
    centred = [x - x.mean(1, keepdims=True) for x in (durations, profiles)]
    scale = np.linalg.norm(centred[1], axis=1)
    return np.asarray((centred[0] @ centred[1].T / scale).argmax(1))


def _correlation(
    a: Float64[np.ndarray, "B"], b: Float64[np.ndarray, "B"], weights: Float64[np.ndarray, "R B"]
) -> Float64[np.ndarray, "R"]:
    """Pearson's correlation with weighted pairs, for each row of weights."""
    share = weights / weights.sum(1, keepdims=True)
    x, y = (values - share @ values[:, None] for values in (a, b))
    variances = (share * x**2).sum(1) * (share * y**2).sum(1)
    return np.asarray((share * x * y).sum(1) / np.sqrt(variances))


def _same_key_pairs(
    corpus: Corpus, split: Split, adjacent: Integer[np.ndarray, "P 2"], random: np.random.Generator
) -> Int[np.ndarray, "N 2"]:
    keys, rows = find_keys(corpus), corpus.segments(split)
    songs = corpus.song[rows]
    pairs = []
    for left in adjacent[:, 0]:
        song = corpus.song[left]
        alike = (keys[songs] == keys[song]) & (corpus.kinds[rows] == corpus.kinds[left])
        others = rows[alike & (songs != song)]
        if len(others):
            pairs.append((left, random.choice(others)))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _centred(value: float, resampled: Float64[np.ndarray, "R"]) -> Estimate:
    """Estimate a quantity of 0 or more, with the resamples shifted so that their mean is the value.

    Resampling adds noise to an already noisy sample, and a mean of absolute gaps grows with noise.
    """
    around = _estimate(value, resampled - resampled.mean() + value)
    return Estimate(value, max(0.0, around.low), around.high)


def _estimate(value: float, resampled: Float64[np.ndarray, "R"]) -> Estimate:
    # NaN comes from resamples without any pair of one kind.
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Estimate(value, float(low), float(high))
