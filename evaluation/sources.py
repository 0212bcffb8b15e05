"""The input pairs on which every method is measured: unpaired songs, and prior samples.

Letters in shapes: `B` pairs, `S` songs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64, Integer

from cf_core.corpus import Corpus, Split
from cf_core.kinds import Groups
from cf_core.losses import Pair
from cf_core.seeding import derive, make_random
from cf_core.vae import MelodyVAE
from evaluation.likeness import FOLDS


@dataclass(frozen=True)
class Source:
    """Input pairs of one kind, the same for every trial and baseline of a study.

    `songs` holds the song of each half as an index into the corpus's song ids, or -1 for the prior.
    `split` says with which songs' statistics, and by which judge, the outputs are measured.
    """

    name: str
    split: Split
    inputs: Pair
    songs: Integer[np.ndarray, "B 2"]
    kinds: Int64[np.ndarray, "B"]
    """The kind of the bars of each pair, as an index into the format's."""
    rows: Integer[np.ndarray, "B 2"] | None = None
    """The corpus's segments; None for the prior."""

    def to(self, device: torch.device) -> "Source":
        """The same inputs on another device."""
        left, right = self.inputs
        return replace(self, inputs=(left.to(device), right.to(device)))


def deal_songs(corpus: Corpus, split: Split, seed: int) -> Int64[np.ndarray, "S"]:
    """Deal the songs of a split into `FOLDS` folds of about as many segments; -1 for other songs.

    Each fold has two songs or more, so there are fewer folds where there are few songs.
    """
    songs, sizes = np.unique(corpus.song[corpus.segments(split)], return_counts=True)
    random = np.random.default_rng(derive(seed, "folds", split))
    order = np.lexsort((random.random(len(songs)), -sizes))
    folds = np.full(len(corpus.song_ids), -1)
    folds[songs[order]] = np.arange(len(songs)) % max(1, min(FOLDS, len(songs) // 2))
    return folds


def unpaired(
    corpus: Corpus,
    split: Split,
    count: int,
    random: np.random.Generator,
    folds: Int64[np.ndarray, "S"] | None = None,
) -> Int[np.ndarray, "B 2"]:
    """Draw the rows of `count` random pairs of segments from different songs of one split.

    The left half is drawn from all segments, the right one from all with bars of the same kind,
    independently except that their songs differ, and are in the same one of `folds` if these are
    given.
    """
    rows = corpus.segments(split)

    def draw(number: int) -> Int[np.ndarray, "b 2"]:
        left = random.integers(len(rows), size=number)
        places = np.stack((left, match_kinds(corpus, rows, left, random)), axis=1)
        return np.asarray(rows[places])

    pairs = draw(count)
    while (bad := _is_refused(corpus.song[pairs], folds)).any():
        pairs[bad] = draw(int(bad.sum()))
    return pairs


def match_kinds(
    corpus: Corpus,
    rows: Int64[np.ndarray, "N"],
    like: Integer[np.ndarray, "B"],
    random: np.random.Generator,
) -> Int64[np.ndarray, "B"]:
    """Draw a place in `rows` for each place in `like`, so that both have bars of the same kind."""
    groups = Groups.of(torch.from_numpy(corpus.kinds[rows]))
    chance = torch.from_numpy(random.random(len(like)))
    return np.asarray(groups.match(chance, torch.from_numpy(like)).numpy())


def _is_refused(
    songs: Integer[np.ndarray, "B 2"], folds: Int64[np.ndarray, "S"] | None
) -> Bool[np.ndarray, "B"]:
    same = np.equal(*songs.T)
    return np.asarray(same if folds is None else same | np.not_equal(*folds[songs].T))


def name_pairs(
    corpus: Corpus, songs: Integer[np.ndarray, "B 2"], kinds: Int64[np.ndarray, "B"]
) -> dict[str, list[Any]]:
    """Columns that say which pairs rows are of: numbers, song ids of the halves, and meters.

    Prior samples, whose song is -1, have no song ids.
    """
    left, right = (
        [None if song < 0 else corpus.song_ids[song] for song in half] for half in songs.T
    )
    return {
        "pair": list(range(len(songs))),
        "left_song": left,
        "right_song": right,
        "meter": [corpus.form.kinds[kind] for kind in kinds],
    }


def make_sources(
    corpus: Corpus, core: MelodyVAE, counts: Mapping[Split, int], seed: int
) -> tuple[Source, ...]:
    """Make the four sources: unpaired test songs, prior samples, and the validation twin of each.

    `counts` maps each split to the number of pairs in both of its sources. The two songs of a pair
    are in the same fold, so that a classifier of the other folds has seen neither.
    """
    sources = []
    for name, prior_name, split in (
        ("test", "prior", Split.TEST),
        ("validation", "validation_prior", Split.VALIDATION),
    ):
        random, count = np.random.default_rng(derive(seed, "inputs", name)), counts[split]
        rows = unpaired(corpus, split, count, random, deal_songs(corpus, split, seed))
        left, right = (core.encode_mean(corpus.tokens[rows[:, half]]) for half in (0, 1))
        kinds = corpus.kinds[rows[:, 0]]
        sources.append(Source(name, split, (left, right), corpus.song[rows], kinds, rows))
        z_left, z_right = torch.randn(
            (2, *left.shape), generator=make_random(seed, "inputs", prior_name)
        )
        # Prior pairs have the kinds of bars of the songs' pairs.
        prior = Source(prior_name, split, (z_left, z_right), np.full((count, 2), -1), kinds)
        sources.append(prior)
    return tuple(sources)
