"""Tricks do what their names say, and are compared with real neighbours."""

import math

import numpy as np
import polars as pl
import pytest
import torch

from cf_core.continuation import Continuation, ContinuationSettings
from cf_core.corpus import Corpus, Split
from cf_core.distance import edit_distance
from cf_core.losses import Pair
from cf_core.melody import FIRST_PITCH, HOLD, MelodyFormat
from cf_core.nets import initialise
from cf_core.seeding import make_random
from cf_core.vae import MelodyVAE, VAESettings
from evaluation.classifier import ClassifierSettings, SearchClassifier
from evaluation.controls import CONTROLS, make_controls, rate_controls
from evaluation.evaluator import Evaluator
from evaluation.judge import Judge, JudgeSettings, ReaderSettings
from evaluation.sources import Source, make_sources

FORM = MelodyFormat(bars_per_segment=2, steps_per_beat=2, lowest=60, highest=83)
LENGTHS = [2, 4, 8] * 8
"""Segments of each song; one begins at every bar."""
JUDGE = JudgeSettings(
    reader=ReaderSettings(latent_dim=4, hidden=8, embedding=4), members=1, hidden=8
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    random = np.random.default_rng(0)
    song = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    bar = np.concatenate([np.arange(length) for length in LENGTHS])
    tokens = random.integers(FIRST_PITCH, FORM.vocabulary, (len(song), FORM.steps))
    tokens[random.random(tokens.shape) < 0.5] = HOLD
    tokens[:, 0] = random.integers(FIRST_PITCH, FORM.vocabulary, len(song))
    rows = np.arange(len(song) - 2)
    pairs = np.stack((rows, rows + 2), 1)[song[:-2] == song[2:]]
    return Corpus(
        form=FORM,
        tokens=tokens.astype(np.uint8),
        song=song,
        bar=bar,
        song_ids=tuple(f"song{i}" for i in range(len(LENGTHS))),
        split=np.repeat([Split.TRAIN, Split.VALIDATION, Split.TEST], len(LENGTHS) // 3),
        pairs=pairs,
        struck_again=0,
        content_hash="0",
    )


@pytest.fixture(scope="module")
def evaluator(corpus: Corpus) -> Evaluator:
    core = MelodyVAE(FORM, VAESettings(latent_dim=4, hidden=16, embedding=8))
    classifier = SearchClassifier(4, ClassifierSettings(hidden=8))
    continuation = Continuation(FORM, ContinuationSettings(hidden=8))
    judge = Judge(FORM, JUDGE, continuation)
    for index, network in enumerate((core, classifier, judge, continuation)):
        initialise(network, make_random(index, "weights"))
    core.measure_sigma_bar(corpus.tokens)
    judges = {Split.VALIDATION: judge, Split.TEST: judge}
    return Evaluator(corpus, core, classifier, judges, seed=0, continuation=continuation)


@pytest.fixture(scope="module")
def sources(corpus: Corpus, evaluator: Evaluator) -> dict[str, Source]:
    counts = {Split.TEST: 31, Split.VALIDATION: 20}
    return {source.name: source for source in make_sources(corpus, evaluator.core, counts, 0)}


Made = dict[str, dict[str, Pair]]


@pytest.fixture(scope="module")
def made(evaluator: Evaluator, sources: dict[str, Source]) -> Made:
    """The latents of all tricks, by source."""
    return {name: dict(make_controls(evaluator, source)) for name, source in sources.items()}


def same(one: Pair, other: Pair) -> bool:
    return all(torch.equal(*halves) for halves in zip(one, other, strict=True))


def test_every_trick_is_made_wherever_it_makes_sense_and_always_the_same(
    evaluator: Evaluator, sources: dict[str, Source], made: Made
) -> None:
    for source in sources.values():
        assert list(made[source.name]) == [
            name for name in CONTROLS if name != "same_song" or "prior" not in source.name
        ]
        assert not any(same(pair, source.inputs) for pair in made[source.name].values())
    again = dict(make_controls(evaluator, sources["validation"]))
    assert all(same(pair, again[name]) for name, pair in made["validation"].items())
    assert len({control.letter for control in CONTROLS.values()}) == len(CONTROLS) == 6


def test_sources_know_their_segments(
    corpus: Corpus, evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    for source in sources.values():
        if source.rows is None:
            assert (source.songs < 0).all()
            continue
        assert np.array_equal(corpus.song[source.rows], source.songs)
        halves = [evaluator.core.encode_mean(corpus.tokens[rows]) for rows in source.rows.T]
        assert same((halves[0], halves[1]), source.inputs)


def test_halves_are_repeated_and_averaged(sources: dict[str, Source], made: Made) -> None:
    for source in sources.values():
        left, right = source.inputs
        assert same(made[source.name]["left_twice"], (left, left))
        one, other = made[source.name]["equal_halves"]
        assert torch.allclose(one, left / 2 + right / 2)
        assert torch.equal(one, other)


def test_another_segment_of_the_song_neither_overlaps_nor_adjoins(
    corpus: Corpus, evaluator: Evaluator, sources: dict[str, Source], made: Made
) -> None:
    encoded = evaluator.core.encode_mean(corpus.tokens)
    unlike = torch.cdist(encoded, encoded) + 9 * torch.eye(len(encoded)) > 1e-3
    assert unlike.all(), "segments must be told apart by their latents"
    kinds = set()
    for name in ("test", "validation"):
        source = sources[name]
        assert source.rows is not None
        left, right = made[name]["same_song"]
        assert torch.equal(left, source.inputs[0])
        chosen = torch.cdist(right, encoded).argmin(1).numpy()
        for row, before, after in zip(*source.rows.T, chosen, strict=True):
            others = [
                other
                for other in range(len(corpus.song))
                if corpus.song[other] == corpus.song[row]
                and corpus.bar[other] - corpus.bar[row] not in {-2, -1, 0, 1, 2}
            ]
            # Without one, the pair is left as it is.
            assert after in others if others else after == before
            kinds.add(bool(others))
    assert kinds == {True, False}


def test_the_longest_search_only_ever_climbs(
    evaluator: Evaluator, sources: dict[str, Source], made: Made
) -> None:
    for source in sources.values():
        pair = made[source.name]["longest_search"]
        with torch.no_grad():
            rise = evaluator.classifier(pair) - evaluator.classifier(source.inputs)
        assert (rise >= 0).all()
        assert (rise > 0).float().mean() > 0.9


def test_a_continuation_is_the_likely_one_nearest_to_the_right_half(
    evaluator: Evaluator, sources: dict[str, Source], made: Made
) -> None:
    for source in sources.values():
        left, right = (evaluator.core.decode_tokens(half) for half in source.inputs)
        drawn = evaluator.continuation.sample(
            torch.as_tensor(left), 8, make_random(0, "control", "continuation", source.name)
        ).numpy()
        chosen = []
        for pair in range(len(left)):
            distances = [
                int(edit_distance(right[pair, None], drawn[k, pair, None])[0]) for k in range(8)
            ]
            chosen.append(drawn[distances.index(min(distances)), pair])
        expected = evaluator.core.encode_mean(np.stack(chosen).astype(np.uint8))
        found = made[source.name]["continuation"]
        assert torch.equal(found[0], source.inputs[0])
        assert torch.equal(found[1], expected)


def test_a_gamble_is_that_for_half_of_the_pairs(sources: dict[str, Source], made: Made) -> None:
    for source in sources.values():
        gambled, continued = (made[source.name][name][1] for name in ("gamble", "continuation"))
        changed = (gambled == continued).all(1)
        assert int(changed.sum()) == len(source.songs) // 2
        assert torch.equal(gambled[~changed], source.inputs[1][~changed])
        # Pairs without songs are divided by their places, so that both sides need some of each.
        for side in (changed[::2], changed[1::2]):
            assert 0 < side.float().mean() < 1


def test_tricks_are_rated_against_real_neighbours() -> None:
    nothing = None
    frame = pl.DataFrame(
        [
            ("ceiling", "test", "judge", 0.7, 0.6, 0.8),
            ("ceiling", "prior", "judge", 0.9, 0.8, 1.0),
            ("ceiling", "test", "density", 0.7, nothing, nothing),
            ("ceiling", "test", "seam", math.nan, nothing, nothing),
            ("identity", "test", "judge", 0.99, nothing, nothing),
            ("lp", "test", "judge", 0.99, nothing, nothing),
            ("left_twice", "test", "judge", 0.8, 0.7, 0.9),
            ("gamble", "test", "judge", 0.7, 0.6, 0.8),
            ("gamble", "prior", "judge", 0.8, nothing, nothing),
            ("gamble", "test", "density", 0.9, nothing, nothing),
            ("gamble", "test", "edit_distance", 9.0, 8.0, 9.5),
            ("gamble", "test", "balance", 0.4, 0.3, 0.5),
            ("gamble", "test", "seam", 0.4, nothing, nothing),
            ("gamble", "test", "coverage", math.nan, nothing, nothing),
        ],
        ["method", "source", "metric", "value", "low", "high"],
        orient="row",
    )
    rated = rate_controls(frame.with_columns(pl.lit(5).alias("n")))
    assert rated.columns == [
        "source", "metric", "control", "value", "low", "high", "real", "pleases"
    ]  # fmt: skip
    told = {
        (row["control"], row["source"], row["metric"]): (row["value"], row["real"], row["pleases"])
        for row in rated.filter(~pl.col("metric").is_in(["seam", "coverage"])).to_dicts()
    }
    assert told == {
        ("left_twice", "test", "judge"): (0.8, 0.7, True),
        ("gamble", "test", "judge"): (0.7, 0.7, False),
        ("gamble", "prior", "judge"): (0.8, 0.9, False),
        ("gamble", "test", "density"): (0.9, 0.7, None),  # not better where higher
        ("gamble", "test", "edit_distance"): (9.0, None, None),
        ("gamble", "test", "balance"): (0.4, None, None),
    }
    unknown = rated.filter(pl.col("metric").is_in(["seam", "coverage"]))
    assert unknown["pleases"].to_list() == [None, None]
    assert rated.filter(control="left_twice").select("low", "high").row(0) == (0.7, 0.9)
