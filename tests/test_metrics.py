"""Metric rows against literal re-derivations on a small random study.

It is long, since every metric is computed once more, literally.
"""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from cf_core.continuation import Continuation, ContinuationSettings
from cf_core.corpus import Corpus, Split
from cf_core.distance import edit_distance
from cf_core.fusion import Generator
from cf_core.heard import Heard
from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat
from cf_core.nets import initialise
from cf_core.seeding import make_random
from cf_core.vae import MelodyVAE, VAESettings
from cf_core.writer import Writer, WriterSettings
from evaluation.classifier import ClassifierSettings, SearchClassifier
from evaluation.evaluator import OUTCOMES, Evaluator
from evaluation.frechet import RealGaussian
from evaluation.judge import Judge, JudgeSettings, ReaderSettings
from evaluation.likeness import FOLDS, describe_pairs, find_seams
from evaluation.metrics import COHERENCY, OF_PAIRS
from evaluation.sources import Source, deal_songs, make_sources, unpaired
from evaluation.statistics import (
    STATISTICS,
    Neighbourhoods,
    NotePairs,
    overlap_area,
    pair_features,
)
from evaluation.transforms import Fusion, Step
from tests.arrays import find_statistics, lift

FORM = MelodyFormat(bars_per_segment=1, lowest=60, highest=83)
ONLY = np.zeros(1, np.int64)
"""The kind of the bars of one segment."""
LABEL = {"trial": "x", "method": "fusion", "lambda": 0.5, "style_dim": 2, "seed": 3}
SETS = ("overlap_area", "density", "coverage")
DISTANCES = (
    "z_distance", "z_weighted", "edit_distance", "larger_z_distance", "larger_edit_distance"
)  # fmt: skip
LIKENESS = ("indistinguishable", "indistinguishable_halves")
STRATA = tuple(f"indistinguishable_{edits}" for edits in ("1_to_4", "5_to_8", "9_to_16", "17_up"))
GAPS = ("judge_gap", "halves_distance_gap", "frechet", "leaps")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """30 songs of 6 segments, each segment followed by the next."""
    random = np.random.default_rng(0)
    songs, length = 30, 6
    tokens = random.integers(FIRST_PITCH, FORM.vocabulary, (songs * length, FORM.steps))
    tokens[random.random(tokens.shape) < 0.6] = HOLD
    tokens[:, 0] = random.integers(FIRST_PITCH, FORM.vocabulary, len(tokens))
    song = np.repeat(np.arange(songs), length)
    rows = np.arange(len(tokens) - 1)
    pairs = np.stack((rows, rows + 1), 1)[song[:-1] == song[1:]]
    split = np.array([Split.TRAIN] * 10 + [Split.VALIDATION] * 10 + [Split.TEST] * 10)
    return Corpus(
        form=FORM,
        tokens=tokens.astype(np.uint8),
        song=song,
        bar=np.tile(np.arange(length), songs),
        song_ids=tuple(f"song{i}" for i in range(songs)),
        split=split,
        pairs=pairs,
        struck_again=0,
        content_hash="0",
    )


JUDGE = JudgeSettings(
    reader=ReaderSettings(latent_dim=4, hidden=8, embedding=4), members=2, hidden=8
)


@pytest.fixture(scope="module")
def evaluator(corpus: Corpus) -> Evaluator:
    core = MelodyVAE(FORM, VAESettings(latent_dim=4, hidden=16, embedding=8))
    classifier = SearchClassifier(4, ClassifierSettings(hidden=8))
    drawing, rating = (Continuation(FORM, ContinuationSettings(hidden=8)) for _ in range(2))
    judges = {split: Judge(FORM, JUDGE, rating) for split in (Split.VALIDATION, Split.TEST)}
    for index, network in enumerate((core, classifier, *judges.values(), drawing)):
        initialise(network, make_random(index, "weights"))
    core.measure_sigma_bar(corpus.tokens)
    return Evaluator(corpus, core, classifier, judges, seed=0, continuation=drawing)


@pytest.fixture(scope="module")
def sources(corpus: Corpus, evaluator: Evaluator) -> dict[str, Source]:
    return {
        s.name: s
        for s in make_sources(corpus, evaluator.core, {Split.TEST: 40, Split.VALIDATION: 40}, 0)
    }


Rows = dict[str, dict[str, Any]]


def evaluated(evaluator: Evaluator, source: Source, step: Step) -> tuple[Rows, pl.DataFrame]:
    rows, records, _ = evaluator.evaluate(LABEL, source, [step])
    return by_metric(rows), records


def by_metric(rows: list[dict[str, Any]]) -> Rows:
    found = {row["metric"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def moved(source: Source, iteration: int = 3) -> Step:
    noise = torch.randn(2, *source.inputs[0].shape, generator=make_random(iteration, "move"))
    return Step(iteration, (source.inputs[0] + noise[0], source.inputs[1] + noise[1]), 7)


def test_inputs_pair_different_songs_of_one_split(
    corpus: Corpus, sources: dict[str, Source]
) -> None:
    assert list(sources) == ["test", "prior", "validation", "validation_prior"]
    for name, split in (("test", Split.TEST), ("validation", Split.VALIDATION)):
        songs = sources[name].songs
        assert (songs[:, 0] != songs[:, 1]).all()
        assert set(corpus.split[songs.ravel()]) == {split}
    for name in ("prior", "validation_prior"):
        assert (sources[name].songs == -1).all()
    assert not torch.equal(sources["prior"].inputs[0], sources["validation_prior"].inputs[0])
    assert not torch.equal(sources["prior"].inputs[0], sources["prior"].inputs[1])


def test_sources_have_as_many_pairs_as_is_said(corpus: Corpus, evaluator: Evaluator) -> None:
    counts = {Split.TEST: 9, Split.VALIDATION: 5}
    for source in make_sources(corpus, evaluator.core, counts, 0):
        assert len(source.inputs[0]) == len(source.songs) == counts[source.split]


def test_halves_are_drawn_uniformly_from_all_songs_but_one(corpus: Corpus) -> None:
    kept = np.ones(len(corpus.tokens), bool)
    kept[121:126] = False  # song 20 keeps one segment of six
    smaller = replace(
        corpus, tokens=corpus.tokens[kept], song=corpus.song[kept], bar=corpus.bar[kept]
    )
    rows = unpaired(smaller, Split.TEST, 11000, np.random.default_rng(0))
    songs = smaller.song[rows]
    assert (songs[:, 0] != songs[:, 1]).all()
    for half in rows.T:
        count = np.bincount(half, minlength=175)[120:]
        assert len(count) == 55
        # 200 each, a few less where a tenth of all others cannot be drawn with it.
        assert 140 < count.min() <= count.max() < 270
    together = np.zeros((10, 10), np.int64)
    np.add.at(together, tuple(songs.T - 20), 1)
    assert not together.diagonal().any()
    assert together[1:, 1:][~np.eye(9, dtype=bool)].min() > 80  # 6 x 6 of 55 x 54: 130 each


def test_means_are_those_of_each_pair_by_itself(
    evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    source = sources["test"]
    step = moved(source)
    rows, records = evaluated(evaluator, source, step)
    core, judge = evaluator.core, evaluator.judges[Split.TEST]
    expected: defaultdict[str, list[float]] = defaultdict(list)
    smaller = list[int]()
    for i in range(40):
        before = [core.decode_tokens(half[i : i + 1]) for half in source.inputs]
        after = [core.decode_tokens(half[i : i + 1]) for half in step.outputs]
        edits = [int(edit_distance(b, a)[0]) for b, a in zip(before, after, strict=True)]
        gap = torch.stack([a[i] - b[i] for b, a in zip(source.inputs, step.outputs, strict=True)])
        sigma = core.sigma_bar
        with torch.no_grad():
            logit = evaluator.classifier((step.outputs[0][i : i + 1], step.outputs[1][i : i + 1]))
        expected["judge"].append(float(judge.probability(*lift(after[0], after[1]))))
        expected["search_classifier"].append(float(torch.sigmoid(logit)))
        expected["edit_distance"].append(sum(edits))
        expected["larger_edit_distance"].append(2 * max(edits))
        smaller.append(min(edits))
        expected["halves_distance"].append(int(edit_distance(after[0], after[1])[0]))
        apart = (torch.log(1 + gap**2) / sigma**2).sum(1) / 4
        expected["z_distance"].append(float(apart.sum()))
        expected["larger_z_distance"].append(2 * float(apart.max()))
        expected["z_weighted"].append(float((gap / sigma).square().sum() / 8))
    for name, values in expected.items():
        assert records[name].to_list() == pytest.approx(values, rel=1e-5)
        assert rows[name]["value"] == pytest.approx(np.mean(values), rel=1e-5)
    share = sum(smaller) / sum(expected["edit_distance"])
    assert 0 < share < 0.5
    assert rows["balance"]["value"] == pytest.approx(share)
    assert rows["balance"]["low"] < share < rows["balance"]["high"]
    for name in ("larger_edit_distance", "larger_z_distance"):
        ordered = sorted(expected[name])  # of 40, the quantile is a tenth on from the 36th
        reach = ordered[35] + 0.1 * (ordered[36] - ordered[35])
        assert rows[f"{name}_q90"]["value"] == pytest.approx(reach, rel=1e-5)
    assert "classifier_calls" not in rows
    for name, row in rows.items():
        assert (row["trial"], row["source"], row["iteration"]) == ("x", "test", 3)
        assert row["n"] == 40 or name in STRATA


def test_records_name_pairs_and_what_was_evaluated(
    evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    source = sources["test"]
    steps = [moved(source, 2), moved(source, 5)]
    rows, records, _ = evaluator.evaluate(LABEL, source, steps)
    assert records.schema == OUTCOMES
    assert records["iteration"].to_list() == [2] * 40 + [5] * 40
    assert records["pair"].to_list() == list(range(40)) * 2
    for half, songs in zip(("left", "right"), source.songs.T, strict=True):
        assert records[f"{half}_song"].to_list() == [f"song{song}" for song in songs] * 2
    described = records.select("trial", "method", "lambda", "seed", "source").unique()
    assert described.rows() == [("x", "fusion", 0.5, 3, "test")]
    apart = [evaluator.evaluate(LABEL, source, [step]) for step in steps]
    assert rows == [row for own in apart for row in own.metrics]
    assert records.equals(pl.concat([own.outcomes for own in apart]))


def test_metrics_follow_from_the_records(evaluator: Evaluator, sources: dict[str, Source]) -> None:
    source = sources["prior"]
    rows, records = evaluated(evaluator, source, moved(source))
    for name in OF_PAIRS:
        assert rows[name]["value"] == pytest.approx(records[name].cast(pl.Float64).mean())
    real = evaluator.real_outcomes(Split.TEST)
    for name in STATISTICS:
        tables = []
        for frame in (records, real):
            table = np.zeros((evaluator.bins.count(name),) * 2)
            for i, j in frame.select(f"{name}_left", f"{name}_right").iter_rows():
                if i >= 0 and j >= 0:
                    table[i, j] += 1
            tables.append(table.ravel())
        expected = np.corrcoef(tables[0], tables[1])[0, 1]
        assert rows[f"{name}_joint"]["value"] == pytest.approx(expected)
        assert rows[name]["n"] == tables[0].sum()


def test_real_pairs_are_recorded_as_notes(corpus: Corpus, evaluator: Evaluator) -> None:
    records = evaluator.real_outcomes(Split.VALIDATION)
    pairs = corpus.pairs_of(Split.VALIDATION)
    assert records.schema == OUTCOMES
    assert records["pair"].to_list() == list(range(len(pairs))) == list(range(50))
    for half in ("left_song", "right_song"):
        assert records[half].to_list() == [f"song{song}" for song in corpus.song[pairs[:, 0]]]
    described = records.select("trial", "method", "source", "iteration").unique()
    assert described.rows() == [("real", "real", "validation", 0)]
    for half, rows in zip(("left", "right"), pairs.T, strict=True):
        values = find_statistics(corpus.tokens[rows], FORM)
        for name in STATISTICS:
            bins = evaluator.bins.assign(name, values[name], corpus.kinds[rows])
            assert records[f"{name}_{half}"].to_list() == bins.tolist()
    left, right = corpus.tokens[pairs[:, 0]], corpus.tokens[pairs[:, 1]]
    judged = evaluator.judges[Split.VALIDATION].probability(*lift(left, right))
    assert records["judge"].to_list() == judged.tolist()
    for name in (*DISTANCES, "lambda", "seed"):
        assert records[name].null_count() == 50


def counted(evaluator: Evaluator, name: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    count = evaluator.bins.count(name)
    table = np.zeros((count, count))
    for a, b in zip(left, right, strict=True):
        values = [find_statistics(half[None], FORM)[name] for half in (a, b)]
        i, j = (int(evaluator.bins.assign(name, value, ONLY)[0]) for value in values)
        if i >= 0 and j >= 0:
            table[i, j] += 1
    return table


def test_correlations_with_matrices_counted_one_by_one(
    corpus: Corpus, evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    source = sources["validation"]
    step = moved(source)
    rows, _ = evaluated(evaluator, source, step)
    outputs = [evaluator.core.decode_tokens(half) for half in step.outputs]
    real = corpus.pairs_of(Split.VALIDATION)
    for name in STATISTICS:
        count = evaluator.bins.count(name)
        ours = counted(evaluator, name, outputs[0], outputs[1])
        theirs = counted(evaluator, name, corpus.tokens[real[:, 0]], corpus.tokens[real[:, 1]])
        joint = np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]
        smooth = [(m + 1 / count) / (m + 1 / count).sum(1, keepdims=True) for m in (ours, theirs)]
        stochastic = np.corrcoef(smooth[0].ravel(), smooth[1].ravel())[0, 1]
        assert rows[f"{name}_joint"]["value"] == pytest.approx(joint)
        assert rows[name]["value"] == pytest.approx(stochastic)
        apart = abs(ours / ours.sum() - theirs / theirs.sum()).sum() / 2
        assert rows[f"{name}_shared"]["value"] == pytest.approx(1 - apart)
        assert rows[f"{name}_shared"]["n"] == ours.sum()


def test_novelty_looks_the_first_pairs_up_among_the_training_segments(
    corpus: Corpus,
    evaluator: Evaluator,
    sources: dict[str, Source],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("evaluation.samples.NOVELTY_PAIRS", 15)
    source = sources["test"]
    step = moved(source)
    outputs = np.stack([evaluator.core.decode_tokens(half) for half in step.outputs])[:, :15]
    # Three of the 30 halves become training segments.
    known = replace(corpus, tokens=corpus.tokens.copy())
    known.tokens[[0, 7, 13]] = outputs[[0, 0, 1], [2, 4, 9]]
    rows, _ = evaluated(replace(evaluator, corpus=known), source, step)
    bank = np.unique(known.tokens[known.segments(Split.TRAIN)], axis=0)
    distances = [
        min(int(edit_distance(segment[None], other[None])[0]) for other in bank)
        for half in outputs
        for segment in half
    ]
    assert rows["novelty"]["value"] == pytest.approx(np.mean(distances))
    assert rows["copied"]["value"] == pytest.approx(distances.count(0) / 30)
    assert distances.count(0) >= 3
    for name in ("novelty", "copied"):
        assert (rows[name]["n"], rows[name]["excluded"]) == (15, 0)
        assert rows[name]["low"] <= rows[name]["value"] <= rows[name]["high"]


def test_sets_are_held_against_the_real_pairs_of_their_split(
    corpus: Corpus,
    evaluator: Evaluator,
    sources: dict[str, Source],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Outputs are unpaired training segments, two of 80 made silent, so that all are varied."""
    references = evaluator._references  # before decoding is replaced
    tokens = corpus.tokens.copy()
    tokens[[3, 44]] = REST
    monkeypatch.setattr(
        MelodyVAE,
        "decode_notes",
        lambda _, z, _kinds: torch.as_tensor(tokens).long()[z[:, 0].long().abs()],
    )
    left, right = torch.arange(80.0).reshape(2, 40, 1).expand(-1, -1, 4)
    ours = [find_statistics(tokens[rows], FORM) for rows in np.arange(80).reshape(2, 40)]
    sounding = np.setdiff1d(np.arange(40), [3, 4])
    ours = [{key: values[sounding] for key, values in half.items()} for half in ours]
    training = find_statistics(corpus.tokens[corpus.segments(Split.TRAIN)], FORM)
    deviations = {key: float(values.std()) for key, values in training.items()}
    for name, split in (("validation", Split.VALIDATION), ("prior", Split.TEST)):
        other = replace(
            sources[name]
        )  # whose inputs were not read yet, and are not kept for others
        rows, records = evaluated(evaluator, other, Step(1, (left, right)))
        pairs = corpus.pairs_of(split)
        theirs = [find_statistics(corpus.tokens[half], FORM) for half in pairs.T]
        area = np.mean([overlap_area(a, b) for a, b in zip(ours, theirs, strict=True)])
        balls = Neighbourhoods.fit(pair_features(theirs[0], theirs[1], deviations))
        density, coverage = balls.density_and_coverage(pair_features(ours[0], ours[1], deviations))
        assert 0.2 < coverage < 1
        for metric, expected in zip(SETS, (area, density, coverage), strict=True):
            assert rows[metric]["value"] == pytest.approx(expected)
            assert (rows[metric]["n"], rows[metric]["excluded"]) == (38, 2)
            assert rows[metric]["low"] is rows[metric]["high"] is None
        songs = sources[name].songs
        folds = np.arange(40) % FOLDS
        if name == "validation":
            dealt = deal_songs(corpus, split, evaluator.seed)
            assert np.equal(*dealt[songs].T).all()
            folds = dealt[songs[:, 0]]
        features, _ = describe_pairs(lift(tokens[:40], tokens[40:80]), FORM)
        ranks = references[split].neighbours.rank(features, folds)
        for metric, own in zip(LIKENESS, (ranks.whole, ranks.halves), strict=True):
            assert records[metric].to_list() == pytest.approx((2 * own).tolist(), rel=1e-6)
            assert rows[metric]["value"] == pytest.approx(2 * own.mean())
            assert (rows[metric]["n"], rows[metric]["excluded"]) == (40, 0)
            if np.ptp(own):
                assert rows[metric]["low"] < rows[metric]["value"] < rows[metric]["high"]
        own, real = (
            np.bincount(find_seams(lift(*each), FORM)[rest], minlength=27) / size
            for each, rest, size in (
                ((tokens[:40], tokens[40:80]), sounding, len(sounding)),
                ((corpus.tokens[pairs[:, 0]], corpus.tokens[pairs[:, 1]]), slice(None), len(pairs)),
            )
        )
        assert rows["seam"]["value"] == pytest.approx(1 - abs(own - real).sum() / 2)
        assert (rows["seam"]["n"], rows["seam"]["excluded"]) == (38, 2)
        assert (rows["mean_pitch"]["n"], rows["mean_pitch"]["excluded"]) == (38, 2)
        assert rows["note_count"]["n"] == rows["judge"]["n"] == 40


def test_gaps_are_from_real_pairs_that_were_decoded_and_judged_alike(
    corpus: Corpus, evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    """Leaps have no reference; they are shares of all intervals of all pairs."""
    core = evaluator.core
    for name, split in (("validation", Split.VALIDATION), ("prior", Split.TEST)):
        step = moved(sources[name])
        rows, records = evaluated(evaluator, sources[name], step)
        judge, pairs = evaluator.judges[split], corpus.pairs_of(split)
        left, right = (core.decode_tokens(core.encode_mean(corpus.tokens[h])) for h in pairs.T)
        gap = abs(
            float(records["judge"].to_numpy().mean())
            - float(judge.probability(*lift(left, right)).mean())
        )
        assert rows["judge_gap"]["value"] == pytest.approx(gap, rel=1e-4)
        apart = [sorted(records["halves_distance"].to_list() * len(left))]
        apart.append(sorted(edit_distance(left, right).tolist() * records.height))
        moves = np.mean([abs(a - b) for a, b in zip(*apart, strict=True)])
        assert rows["halves_distance_gap"]["value"] == pytest.approx(moves)
        outputs = [core.decode_tokens(half) for half in step.outputs]
        real = RealGaussian.fit(describe_pairs(lift(left, right), FORM)[0])
        features = describe_pairs(lift(outputs[0], outputs[1]), FORM)[0]
        assert rows["frechet"]["value"] == pytest.approx(real.distance(features))
        notes = [[t for t in pair if t >= FIRST_PITCH] for pair in np.hstack(outputs).tolist()]
        steps = [abs(b - a) for pair in notes for a, b in pairwise(pair)]
        share = np.mean([step > 12 for step in steps])
        assert rows["leaps"]["value"] == pytest.approx(share)
        assert 0 <= rows["leaps"]["low"] < share < rows["leaps"]["high"]


def test_information_of_new_onsets_is_summed_one_by_one(
    evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    """The floor has no inputs, so that all of its onsets count."""
    core, source = evaluator.core, sources["validation"]
    rate = evaluator.judges[Split.VALIDATION].continuation.per_step
    step = moved(source)
    rows, _ = evaluated(evaluator, source, step)
    left, right = (core.decode_tokens(half) for half in step.outputs)
    before = core.decode_tokens(source.inputs[1])
    found, every = [], []
    for one, other, old in zip(left, right, before, strict=True):
        tokens = torch.as_tensor(other)[None]
        after, alone = (rate(tokens, given)[0] for given in (torch.as_tensor(one)[None], None))
        for place, token in enumerate(other):
            if token >= FIRST_PITCH:
                every.append(token != old[place])
            if token >= FIRST_PITCH and token != old[place]:
                found.append(float(after[place] - alone[place]))
    assert 0 < len(found) < len(every)
    row = rows["new_onset_pmi"]
    assert row["value"] == pytest.approx(np.mean(found), rel=1e-4)
    assert row["low"] < row["value"] < row["high"]
    floor = {
        row["metric"]: row for row in evaluator.references_rows(source) if row["method"] == "floor"
    }
    assert np.isfinite(floor["new_onset_pmi"]["value"])
    unmoved, _ = evaluated(evaluator, source, Step(1, source.inputs))
    assert "new_onset_pmi" not in unmoved


def test_strata_of_edits_part_the_pairs(evaluator: Evaluator, sources: dict[str, Source]) -> None:
    rows, records = evaluated(evaluator, sources["test"], moved(sources["test"]))
    counted = 0
    for name, fewest, most in (("1_to_4", 1, 4), ("5_to_8", 5, 8), ("9_to_16", 9, 16)):
        own = records.filter(pl.col("edit_distance").is_between(fewest, most))
        counted += own.height
        assert (f"indistinguishable_{name}" in rows) == (own.height > 0)
        if own.height:
            row = rows[f"indistinguishable_{name}"]
            assert row["value"] == pytest.approx(own["indistinguishable"].mean())
            assert (row["n"], row["excluded"], row["low"]) == (own.height, 0, None)
    assert counted > 0
    row, largest = rows["indistinguishable_17_up"], records.filter(pl.col("edit_distance") >= 17)
    assert row["value"] == pytest.approx(largest["indistinguishable"].mean())
    assert counted + row["n"] + records.filter(edit_distance=0).height == records.height


def test_outputs_that_are_not_finite_are_counted_and_left_out(
    evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    source = sources["test"]
    step = moved(source)
    left = step.outputs[0].clone()
    left[5, 2], left[9], left[11, 0] = torch.nan, torch.inf, 1e30
    rows, records = evaluated(evaluator, source, Step(3, (left, step.outputs[1])))
    assert all(row["n"] + row["excluded"] == 40 for m, row in rows.items() if m not in STRATA)
    assert {rows[metric]["excluded"] for metric in STRATA if metric in rows} == {3}
    assert {rows[metric]["excluded"] for metric in OF_PAIRS} == {3}
    assert all(np.isfinite(row["value"]) for row in rows.values())
    gone = [5, 9, 11]
    bins = [f"{name}_{half}" for name in STATISTICS for half in ("left", "right")]
    assert records.filter(pl.col("judge").is_nan())["pair"].to_list() == gone
    assert records[gone].select(*OF_PAIRS).to_numpy() == pytest.approx(np.nan, nan_ok=True)
    assert (records[gone].select(bins).to_numpy() == -1).all()
    kept = [i for i in range(40) if i not in gone]
    smaller = replace(
        source,
        inputs=(source.inputs[0][kept], source.inputs[1][kept]),
        songs=source.songs[kept],
        kinds=source.kinds[kept],
        rows=None,
    )
    same, _ = evaluated(evaluator, smaller, Step(3, (left[kept], step.outputs[1][kept])))
    for metric, row in rows.items():
        bounds = ("value", "low", "high")
        assert [row[b] for b in bounds] == pytest.approx([same[metric][b] for b in bounds])


def test_a_step_of_which_nothing_is_finite_has_records_but_no_metrics(
    evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    source = sources["test"]
    nothing = torch.full_like(source.inputs[0], torch.nan)
    rows, records, influences = evaluator.evaluate(LABEL, source, [Step(1, (nothing, nothing))])
    assert rows == []
    assert influences.is_empty()
    assert records.height == 40
    assert records["judge"].is_nan().all()


def test_the_identity_is_at_no_distance(evaluator: Evaluator, sources: dict[str, Source]) -> None:
    for source in sources.values():
        rows, _ = evaluated(evaluator, source, Step(0, source.inputs))
        for metric in DISTANCES:
            assert rows[metric]["value"] == 0
        assert "balance" not in rows


def test_what_came_to_rest_is_not_read_again(
    evaluator: Evaluator, sources: dict[str, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources["test"]
    first, other = moved(source, 1).outputs, moved(source, 2).outputs
    every = torch.arange(40)[:, None]  # of 40 pairs
    left, right = (
        torch.where(every < 9, before, after)
        for before, after in zip(source.inputs, first, strict=True)
    )
    second = torch.where(every < 12, left, other[0]), right
    broken = second[0].clone(), second[1].clone()
    broken[0][10], broken[1][20] = torch.nan, torch.inf
    # The latents of one pair change too little to be heard.
    last = second[0].clone(), second[1].clone()
    last[0][30] += 1e-6
    outputs = [(left, right), second, broken, last]
    steps = [Step(iteration, pair, 7) for iteration, pair in enumerate(outputs, 1)]
    apart = [evaluator.evaluate(LABEL, source, [step]) for step in steps]

    read = list[int]()

    def counted(tokens: NotePairs, form: MelodyFormat) -> tuple[torch.Tensor, int]:
        read.append(len(tokens[0]))
        return describe_pairs(tokens, form)

    monkeypatch.setattr("evaluation.samples.describe_pairs", counted)
    together = evaluator.evaluate(LABEL, source, steps)
    assert read == [31 + 28 + 2 + 2]
    assert_frame_equal(together.outcomes, pl.concat([one.outcomes for one in apart]), rel_tol=1e-6)
    assert_frame_equal(
        pl.DataFrame(together.metrics),
        pl.DataFrame([row for one in apart for row in one.metrics]),
        rel_tol=1e-6,
    )


def test_validation_is_scored_by_the_selection_judge_alone(
    evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    swapped = replace(
        evaluator,
        judges={
            Split.VALIDATION: evaluator.judges[Split.TEST],
            Split.TEST: evaluator.judges[Split.VALIDATION],
        },
    )
    for name in ("test", "validation"):
        step = moved(sources[name])
        one, other = (evaluated(e, sources[name], step)[0] for e in (evaluator, swapped))
        changed = {metric for metric in one if one[metric]["value"] != other[metric]["value"]}
        assert changed == {"judge", "judge_gap"}


@pytest.mark.slow
def test_floor_and_ceiling_are_given_for_every_panel(
    evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    for source in sources.values():
        rows = list(evaluator.references_rows(source))
        for level in ("floor", "ceiling"):
            metrics = {row["metric"] for row in rows if row["trial"] == level}
            assert metrics >= {*COHERENCY, *SETS, *LIKENESS, *GAPS, "seam", "search_classifier"}
            assert not metrics & {*DISTANCES, "balance"}
        assert rows == list(evaluator.references_rows(source))


def test_intervals_hold_the_value_and_repeat(
    corpus: Corpus, evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    source = sources["prior"]
    step = moved(source)
    rows, records = evaluated(evaluator, source, step)
    assert rows["judge"]["low"] < rows["judge"]["value"] < rows["judge"]["high"]
    for name in STATISTICS:
        assert -1 <= rows[name]["low"] <= rows[name]["value"] <= rows[name]["high"] <= 1
    fresh = replace(evaluator, corpus=replace(corpus))
    again, same_records = evaluated(fresh, source, step)
    assert again == rows
    assert same_records.equals(records)


def test_intervals_count_what_songs_share(evaluator: Evaluator, sources: dict[str, Source]) -> None:
    """With one song there is no interval; where all a song's pairs are alike it is another."""
    source = sources["prior"]
    one = replace(source, songs=np.full((40, 2), 7))
    rows, _ = evaluated(evaluator, one, moved(source))
    assert {row["low"] for row in rows.values()} == {None}
    four = replace(source, songs=np.repeat(np.arange(40)[:, None] % 4, 2, axis=1))
    values = torch.tensor([0.2, -0.3, 0.9, -0.8])[np.arange(40) % 4][:, None]
    outputs = (source.inputs[0] + values, source.inputs[1])
    together, apart = (
        evaluated(evaluator, s, Step(1, outputs))[0]["z_distance"] for s in (four, source)
    )
    assert together["value"] == apart["value"]
    assert together["high"] - together["low"] > 1.5 * (apart["high"] - apart["low"])


@pytest.mark.slow
def test_style_diversity_is_the_mean_over_pairs_of_styles(
    evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    source, styles = sources["test"], 3
    made = Generator(4, 2, 16, 2)
    initialise(made, make_random(0, "g"))
    with torch.no_grad():
        made.net.weights[0][8:] *= 8
    drawn = torch.rand(styles, 2, generator=make_random(0, "diversity"))
    total, count = 0, 0
    no_condition = torch.empty(1, 0)
    for i in range(40):
        pair = (source.inputs[0][i : i + 1], source.inputs[1][i : i + 1])
        with torch.no_grad():
            outputs = [
                made(made(pair, s[None], no_condition), s[None], no_condition) for s in drawn
            ]
        for a in range(styles):
            for b in range(a):
                for half in (0, 1):
                    one, other = (evaluator.core.decode_tokens(outputs[k][half]) for k in (a, b))
                    total, count = total + int(edit_distance(one, other)[0]), count + 1
    fusion = Fusion(made, torch.empty(0, 2))
    measured = evaluator.style_diversity(fusion, source, styles, (1, 2))
    assert measured[2] == pytest.approx(total / count)
    assert 0 < measured[1] != measured[2]
    plain = Fusion(Generator(4, 0, 16, 2), torch.empty(0, 0))
    without = evaluator.style_diversity(plain, source, styles, (1, 2))
    assert without == {1: 0.0, 2: 0.0}


@pytest.mark.slow
def test_what_a_writer_draws_is_no_style(evaluator: Evaluator, sources: dict[str, Source]) -> None:
    """A map that does nothing with its style: outputs are written, but alike in all styles."""
    same = Generator(4, 2, 16, 2)
    initialise(same, make_random(0, "g"))
    with torch.no_grad():
        same.net.weights[0][8:] = 0
    writer = Writer(evaluator.core.form, WriterSettings(hidden=8))
    initialise(writer, make_random(0, "writer"))
    heard = Heard(evaluator.core, writer, price=0.5, drafts=2, imbalance=0.1, lead=0.5)
    fusion = Fusion(same, torch.empty(0, 2), 1.0, heard)
    assert evaluator.style_diversity(fusion, sources["test"], 3, (1, 2)) == {1: 0.0, 2: 0.0}
