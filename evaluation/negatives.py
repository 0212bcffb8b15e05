"""Hard negatives: pairs of halves that look adjacent and are not.

A judge that learns only to tell neighbours from unrelated segments rates a pair the higher, the
more alike its halves are, or the likelier the right one is after the left one. These pairs teach it
otherwise, and show whether it has learned that. They are made of notes alone. No latent, no output
of a method and nothing that a method climbs takes part in them, so they favour no method.

Letters in shapes: `B` pairs, `T` steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Int64, Integer

from cf_core.continuation import Continuation, drop_hanging_holds
from cf_core.corpus import Corpus, Split
from cf_core.kinds import split_kinds
from cf_core.melody import FIRST_PITCH, MelodyFormat, counts_eighths
from cf_core.seeding import make_random
from evaluation.sources import match_kinds
from evaluation.statistics import TokenPairs

KINDS = ("repeat", "near_repeat", "same_song", "transposed", "mixture", "continued")
"""`repeat`: a segment and itself. `near_repeat`: a segment, and itself with one to four of its
steps taken from another segment, or with its beats in another order. `same_song`: two segments of
one song that neither overlap nor touch. `transposed`: an adjacent pair of which one half is moved
by 1 to 6 semitones. `mixture`: two unrelated segments, each with steps, beats or bars of the other;
in half of the pairs both halves are the same mixture. `continued`: a segment, and what the
autoregressive model of notes draws as its continuation."""

_MOST_EXCHANGED = 4
_FARTHEST = 6
_ATTEMPTS = 20


@dataclass(frozen=True)
class LabelledTokens:
    """Pairs of notes, and the songs that they are of."""

    tokens: TokenPairs
    songs: Integer[np.ndarray, "B 2"]

    @classmethod
    def of(cls, corpus: Corpus, rows: Integer[np.ndarray, "B 2"]) -> "LabelledTokens":
        """Take pairs of segments as they are, given as rows of the corpus."""
        left, right = corpus.tokens[rows[:, 0]], corpus.tokens[rows[:, 1]]
        return cls((left, right), corpus.song[rows])


def draw_hard_pairs(
    corpus: Corpus,
    split: Split,
    count: int,
    continuation: Continuation,
    random: np.random.Generator,
) -> dict[str, LabelledTokens]:
    """Draw pairs of each of `KINDS` from the songs of a split.

    There are `count` of each, but fewer of `same_song` where songs are too short to have such
    pairs.
    """
    rows, form = corpus.segments(split), corpus.form
    places = random.integers(len(rows), size=(6, count))
    for own, partner in ((1, 2), (3, 4)):  # what is mixed is of one kind
        places[partner] = match_kinds(corpus, rows, places[own], random)
    drawn = rows[places]
    one, other, third, fourth, fifth, last = corpus.tokens[drawn]
    adjacent = random.choice(corpus.pairs_of(split), count)
    apart = _draw_apart(corpus, rows, count, random)
    left, right = corpus.tokens[adjacent[:, 0]], corpus.tokens[adjacent[:, 1]]
    moved = _transpose_one(left, right, form, random)
    continued = _continue(last, continuation, random)
    made = (
        ((one, one), drawn[[0, 0]].T),
        ((other, _repeat_nearly(other, third, form, random)), drawn[[1, 1]].T),
        ((corpus.tokens[apart[:, 0]], corpus.tokens[apart[:, 1]]), apart),
        (moved, adjacent),
        (_mix(fourth, fifth, form, random), drawn[[3, 4]].T),
        ((last, continued), drawn[[5, 5]].T),
    )
    return {
        kind: LabelledTokens((_repair(pair[0]), _repair(pair[1])), corpus.song[of])
        for kind, (pair, of) in zip(KINDS, made, strict=True)
    }


def draw_continued(
    corpus: Corpus,
    split: Split,
    count: int,
    continuation: Continuation,
    random: np.random.Generator,
) -> LabelledTokens:
    """Draw more pairs of the kind `continued` from the songs of a split."""
    chosen = random.choice(corpus.segments(split), count)
    tokens = corpus.tokens[chosen]
    pair = _repair(tokens), _repair(_continue(tokens, continuation, random))
    return LabelledTokens(pair, np.stack((corpus.song[chosen],) * 2, axis=1))


def _continue(
    tokens: Integer[np.ndarray, "B T"], continuation: Continuation, random: np.random.Generator
) -> Integer[np.ndarray, "B T"]:
    draws = make_random(int(random.integers(2**62)), "continued")
    drawn = continuation.sample(torch.as_tensor(tokens), 1, draws)[0]
    return drawn.numpy().astype(tokens.dtype)


def _repair(tokens: Integer[np.ndarray, "B T"]) -> Integer[np.ndarray, "B T"]:
    """Make a rest of each hold that was left without its note."""
    repaired = drop_hanging_holds(torch.as_tensor(tokens).long()).numpy()
    return repaired.astype(tokens.dtype)


def _repeat_nearly(
    tokens: Integer[np.ndarray, "B T"],
    other: Integer[np.ndarray, "B T"],
    form: MelodyFormat,
    random: np.random.Generator,
) -> Integer[np.ndarray, "B T"]:
    made = tokens.copy()
    for kind, rows, steps in _split(tokens, form):
        own = tokens[rows, :steps], other[rows, :steps]
        made[rows, :steps] = _repeat_nearly_alike(*own, _beat(form, kind), random)
    return made


def _split(
    tokens: Integer[np.ndarray, "B T"], form: MelodyFormat
) -> Iterator[tuple[int, Int64[np.ndarray, "b"], int]]:
    """Yield each kind of bars, which rows have it, and how many steps."""
    for kind, rows in split_kinds(torch.from_numpy(form.find_kinds(tokens)), form):
        yield kind, rows.numpy(), form.lengths[kind]


def _repeat_nearly_alike(
    tokens: Integer[np.ndarray, "B n"],
    other: Integer[np.ndarray, "B n"],
    beat: int,
    random: np.random.Generator,
) -> Integer[np.ndarray, "B n"]:
    count, steps = tokens.shape
    places = random.random((count, steps)).argsort(axis=1).argsort(axis=1)
    exchanged = places < random.integers(1, _MOST_EXCHANGED + 1, (count, 1))
    beats = tokens.reshape(count, -1, beat)
    order = random.random(beats.shape[:2]).argsort(axis=1)
    shuffled = np.take_along_axis(beats, order[:, :, None], axis=1).reshape(count, steps)
    is_shuffled = random.random((count, 1)) < 0.5
    return np.where(is_shuffled, shuffled, np.where(exchanged, other, tokens))


def _draw_apart(
    corpus: Corpus,
    rows: Integer[np.ndarray, "_"],
    count: int,
    random: np.random.Generator,
) -> Integer[np.ndarray, "_ 2"]:
    """Draw rows of two segments of one song that neither overlap nor touch."""
    order = rows[np.argsort(corpus.song[rows], kind="stable")]
    songs = corpus.song[order]
    first, last = np.searchsorted(songs, songs), np.searchsorted(songs, songs, side="right")
    found: list[np.ndarray] = []
    for _ in range(_ATTEMPTS):
        one = random.integers(len(order), size=count)
        other = random.integers(first[one], last[one])
        gap = abs(corpus.bar[order[one]] - corpus.bar[order[other]])
        alike = corpus.kinds[order[one]] == corpus.kinds[order[other]]
        is_apart = (gap > corpus.form.bars_per_segment) & alike
        found.append(np.stack((order[one], order[other]), axis=1)[is_apart])
    return np.concatenate(found)[:count]


def _transpose_one(
    left: Integer[np.ndarray, "B T"],
    right: Integer[np.ndarray, "B T"],
    form: MelodyFormat,
    random: np.random.Generator,
) -> TokenPairs:
    """Move one half of each pair, downwards where that half would leave the range upwards."""
    count = len(left)
    moves = random.random((count, 1)) < 0.5
    shift = random.integers(1, _FARTHEST + 1, (count, 1)) * random.choice((-1, 1), (count, 1))

    def move(tokens: Integer[np.ndarray, "B T"]) -> Integer[np.ndarray, "B T"]:
        pitched = tokens >= FIRST_PITCH
        moved = tokens + shift
        fits = ((moved >= FIRST_PITCH) & (moved < form.vocabulary) | ~pitched).all(
            axis=1, keepdims=True
        )
        turned = np.where(fits, moved, tokens - shift)
        kept = turned.clip(FIRST_PITCH, form.vocabulary - 1)
        return np.where(pitched, kept, tokens).astype(tokens.dtype)

    return np.where(moves, left, move(left)), np.where(moves, move(right), right)


def _mix(
    one: Integer[np.ndarray, "B T"],
    other: Integer[np.ndarray, "B T"],
    form: MelodyFormat,
    random: np.random.Generator,
) -> TokenPairs:
    left, right = one.copy(), one.copy()
    for kind, rows, steps in _split(one, form):
        sizes = 1, _beat(form, kind), len(form.bars[kind])
        own = one[rows, :steps], other[rows, :steps]
        left[rows, :steps], right[rows, :steps] = _mix_alike(*own, sizes, random)
    return left, right


def _mix_alike(
    one: Integer[np.ndarray, "B n"],
    other: Integer[np.ndarray, "B n"],
    blocks: tuple[int, int, int],
    random: np.random.Generator,
) -> TokenPairs:
    count, steps = one.shape
    sizes = np.array(blocks)[random.integers(3, size=count)]
    block = np.arange(steps) // sizes[:, None]
    taken = [np.take_along_axis(random.random(one.shape) < 0.5, block, axis=1) for _ in range(2)]
    is_same = random.random((count, 1)) < 0.5
    left = np.where(taken[0], other, one)
    return left, np.where(is_same, left, np.where(taken[1], one, other))


def _beat(form: MelodyFormat, kind: int) -> int:
    """Steps of a beat, or 1 where a bar does not have whole beats.

    A beat is a quarter note, or three eighths in the meters that count these.
    """
    quarters = Fraction(3, 2) if counts_eighths(form.kinds[kind]) else 1
    beat = sum(line < quarters * form.steps_per_beat for line in form.bars[kind])
    return beat if len(form.bars[kind]) % beat == 0 else 1
