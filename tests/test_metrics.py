"""Metric rows against literal re-derivations on a small random study."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cf_core.corpus import TEST, TRAIN, VALIDATION, Corpus
from cf_core.fusion import Generator
from cf_core.melody import FIRST_PITCH, HOLD, MelodyFormat
from cf_core.nets import initialise
from cf_core.seeding import generator
from cf_core.vae import MelodyVAE, VAESettings
from evaluation.classifier import ClassifierSettings, SearchClassifier
from evaluation.distance import edit_distance
from evaluation.frontier import COHERENCY
from evaluation.judge import Judge, JudgeSettings
from evaluation.metrics import Evaluator, Source, make_sources, unpaired
from evaluation.statistics import STATISTICS, segment_statistics
from evaluation.transforms import Step, identity

FORM = MelodyFormat(bars_per_segment=1, lowest=60, highest=83)
LABEL = {"trial": "x", "method": "fusion"}


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
    split = np.array([TRAIN] * 10 + [VALIDATION] * 10 + [TEST] * 10)
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


@pytest.fixture(scope="module")
def evaluator(corpus: Corpus) -> Evaluator:
    core = MelodyVAE(FORM, VAESettings(latent_dim=4, hidden=16, embedding=8))
    classifier = SearchClassifier(4, ClassifierSettings(hidden=8))
    judges = {split: Judge(FORM, JudgeSettings(hidden=8)) for split in (VALIDATION, TEST)}
    for index, network in enumerate((core, classifier, *judges.values())):
        initialise(network, generator(index, "weights"))
    core.measure_sigma_bar(corpus.tokens)
    return Evaluator(corpus, core, classifier, judges, pairs=40, resamples=50, seed=0)


@pytest.fixture(scope="module")
def sources(corpus: Corpus, evaluator: Evaluator) -> dict[str, Source]:
    return {s.name: s for s in make_sources(corpus, evaluator.core, 40, 0)}


def by_metric(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {row["metric"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def moved(source: Source) -> Step:
    noise = torch.randn(2, *source.inputs[0].shape, generator=generator(0, "move"))
    return Step(3, (source.inputs[0] + noise[0], source.inputs[1] + noise[1]), 7)


def test_inputs_pair_different_songs_of_one_split(
    corpus: Corpus, sources: dict[str, Source]
) -> None:
    assert list(sources) == ["test", "prior", "validation", "validation_prior"]
    for name, split in (("test", TEST), ("validation", VALIDATION)):
        songs = sources[name].songs
        assert (songs[:, 0] != songs[:, 1]).all()
        assert set(corpus.split[songs.ravel()]) == {split}
        assert sources[name].clusters.tolist() == songs[:, 0].tolist()
    for name in ("prior", "validation_prior"):
        assert (sources[name].songs == -1).all()
        assert len(set(sources[name].clusters.tolist())) == 40
    assert not torch.equal(sources["prior"].inputs[0], sources["validation_prior"].inputs[0])
    assert not torch.equal(sources["prior"].inputs[0], sources["prior"].inputs[1])


def test_unpaired_draws_are_uniform_over_segments(corpus: Corpus) -> None:
    rows = unpaired(corpus, TEST, 6000, np.random.default_rng(0))
    counts = np.bincount(rows[:, 0], minlength=180)[corpus.segments(TEST)]
    assert counts.min() > 60
    assert counts.max() < 145


def test_means_are_those_of_each_pair_by_itself(
    evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    source = sources["test"]
    step = moved(source)
    rows = by_metric(list(evaluator.rows(LABEL, source, step)))
    core, judge = evaluator.core, evaluator.judges[TEST]
    judged, edits, distances, weighted = [], [], [], []
    for i in range(40):
        before = [core.decode_tokens(half[i : i + 1]) for half in source.inputs]
        after = [core.decode_tokens(half[i : i + 1]) for half in step.outputs]
        judged.append(judge.probability(after[0], after[1])[0])
        edits.append(sum(int(edit_distance(b, a)[0]) for b, a in zip(before, after, strict=True)))
        gap = torch.stack([a[i] - b[i] for b, a in zip(source.inputs, step.outputs, strict=True)])
        sigma = core.sigma_bar
        distances.append(float((torch.log(1 + gap**2) / sigma**2).sum() / 4))
        weighted.append(float((gap / sigma).square().sum() / 8))
    assert rows["judge"]["value"] == pytest.approx(np.mean(judged), rel=1e-5)
    assert rows["edit_distance"]["value"] == pytest.approx(np.mean(edits))
    assert rows["z_distance"]["value"] == pytest.approx(np.mean(distances), rel=1e-5)
    assert rows["z_weighted"]["value"] == pytest.approx(np.mean(weighted), rel=1e-5)
    assert rows["classifier_calls"]["value"] == 7
    for row in rows.values():
        assert (row["trial"], row["source"], row["iteration"], row["n"]) == ("x", "test", 3, 40)


def counted(evaluator: Evaluator, name: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    count = evaluator.bins.count(name)
    table = np.zeros((count, count))
    for a, b in zip(left, right, strict=True):
        values = [segment_statistics(half[None], FORM)[name] for half in (a, b)]
        i, j = (int(evaluator.bins.assign(name, value)[0]) for value in values)
        if i >= 0 and j >= 0:
            table[i, j] += 1
    return table


def test_correlations_with_matrices_counted_one_by_one(
    corpus: Corpus, evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    source = sources["validation"]
    step = moved(source)
    rows = by_metric(list(evaluator.rows(LABEL, source, step)))
    outputs = [evaluator.core.decode_tokens(half) for half in step.outputs]
    real = corpus.pairs_of(VALIDATION)
    for name in STATISTICS:
        count = evaluator.bins.count(name)
        ours = counted(evaluator, name, outputs[0], outputs[1])
        theirs = counted(evaluator, name, corpus.tokens[real[:, 0]], corpus.tokens[real[:, 1]])
        joint = np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]
        smooth = [(m + 1 / count) / (m + 1 / count).sum(1, keepdims=True) for m in (ours, theirs)]
        stochastic = np.corrcoef(smooth[0].ravel(), smooth[1].ravel())[0, 1]
        assert rows[f"{name}_joint"]["value"] == pytest.approx(joint)
        assert rows[name]["value"] == pytest.approx(stochastic)


def test_outputs_that_are_not_finite_are_counted_and_left_out(
    evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    source = sources["test"]
    step = moved(source)
    left = step.outputs[0].clone()
    left[5, 2], left[9] = torch.nan, torch.inf
    rows = list(evaluator.rows(LABEL, source, Step(3, (left, step.outputs[1]))))
    assert {(row["n"], row["excluded"]) for row in rows} == {(38, 2)}
    assert all(np.isfinite(row["value"]) for row in rows)
    kept = [i for i in range(40) if i not in (5, 9)]
    smaller = replace(
        source,
        inputs=(source.inputs[0][kept], source.inputs[1][kept]),
        songs=source.songs[kept],
    )
    same = evaluator.rows(LABEL, smaller, Step(3, (left[kept], step.outputs[1][kept])))
    assert [row["value"] for row in same] == [row["value"] for row in rows]


def test_the_identity_is_at_no_distance(evaluator: Evaluator, sources: dict[str, Source]) -> None:
    for source in sources.values():
        rows = by_metric(list(evaluator.rows(LABEL, source, next(identity(source.inputs)))))
        for metric in ("z_distance", "z_weighted", "edit_distance"):
            assert rows[metric]["value"] == 0


def test_validation_is_scored_by_the_selection_judge_alone(
    evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    swapped = replace(
        evaluator,
        judges={VALIDATION: evaluator.judges[TEST], TEST: evaluator.judges[VALIDATION]},
    )
    for name in ("test", "validation"):
        step = moved(sources[name])
        one, other = (
            by_metric(list(e.rows(LABEL, sources[name], step))) for e in (evaluator, swapped)
        )
        changed = {metric for metric in one if one[metric]["value"] != other[metric]["value"]}
        assert changed == {"judge"}


def test_floor_and_ceiling_are_given_for_every_panel(
    evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    for source in sources.values():
        rows = list(evaluator.references_rows(source))
        for level in ("floor", "ceiling"):
            metrics = {row["metric"] for row in rows if row["trial"] == level}
            assert metrics >= set(COHERENCY)
        assert rows == list(evaluator.references_rows(source))


def test_intervals_hold_the_value_and_repeat(
    evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    source = sources["prior"]
    step = moved(source)
    rows = by_metric(list(evaluator.rows(LABEL, source, step)))
    assert rows["judge"]["low"] < rows["judge"]["value"] < rows["judge"]["high"]
    assert by_metric(list(evaluator.rows(LABEL, source, step))) == rows


def test_style_diversity_is_the_mean_over_pairs_of_styles(
    evaluator: Evaluator, sources: dict[str, Source]
) -> None:
    source, styles = sources["test"], 3
    made = Generator(4, 2, 16, 2)
    initialise(made, generator(0, "g"))
    with torch.no_grad():
        made.net.weights[0][8:] *= 8
    drawn = torch.rand(styles, 2, generator=generator(0, "diversity"))
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
    measured = evaluator.style_diversity(made, source, styles, (1, 2))
    assert measured[2] == pytest.approx(total / count)
    assert 0 < measured[1] != measured[2]
    without = evaluator.style_diversity(Generator(4, 0, 16, 2), source, styles, (1, 2))
    assert without == {1: 0.0, 2: 0.0}
