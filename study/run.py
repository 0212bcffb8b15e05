"""A study from melodies to music: its stages in order, each skipped where its records exist."""

import math
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from shutil import which

import numpy as np
import polars as pl
import torch

from cf_core.bundle import load_bundle
from cf_core.corpus import TEST, Corpus
from cf_core.errors import UserError
from cf_core.fuse import Fused
from cf_core.render import write_midi, write_wav
from cf_core.seeding import derive
from evaluation.figures import frontier_figure, piano_roll_figure, save
from evaluation.frontier import (
    FUSIONS,
    PANELS,
    hypervolume,
    log_spaced,
    matched_points,
    matched_similarity,
    mean_difference,
    non_dominated,
    panel_points,
)
from study.config import EvaluationPlan, StudyConfig
from study.jobs import Spec, lp_jobs, record_references
from study.packs import planned_packs
from study.prepare import find_corpus, prepare
from study.progress import Reporter
from study.select import Choice, select
from study.store import Store
from study.sweep import run_jobs

AXES = ("z_distance", "edit_distance")
"""Metrics that can be the distance of a frontier."""

DRIVER_THREADS = 2
"""Torch threads outside the workers: one number for all machines, so that sums add up alike."""

_DISTANCES = 10
"""Distances at which methods are compared at matched similarity."""

_EXAMPLE_QUERY = (
    "SELECT trial, lambda, iteration, value, low, high FROM metrics"
    " WHERE metric = 'judge' AND source = 'test' ORDER BY value DESC LIMIT 10"
)

_EXAMPLE_TEMPO = 160.0
"""Quarter notes per minute of the example: that of a dance."""


def plan(config: StudyConfig) -> str:
    """What a run would do, as lines of text; nothing is made or written.

    Raises `UserError` for what can be seen to be wrong beforehand.
    """
    _foresee(config)
    trials, evaluation = config.trials(), config.evaluation
    readings = sum(1 if trial.lambda_ is not None else len(evaluation.lambda_) for trial in trials)
    points = readings * len(evaluation.iterations)
    lp = evaluation.lp
    rows = evaluation.pairs * 4 * (points + len(lp.step_sizes) * len(lp.iterations))
    megabytes = rows * 4 * 4 * config.core.latent_dim / 1e6
    space = config.search
    return "\n".join(
        [
            f"study {config.name}, kept in {root(config)}",
            f"corpus: {config.corpus.source}; segments of {config.melody.bars_per_segment} bars"
            f" of {', '.join(config.melody.meters)}",
            f"core: {config.core.latent_dim} latent dimensions, {config.core.steps} steps",
            f"trials: {len(trials)} = λ {', '.join(map(str, space.lambda_))}"
            f" × style dimension {', '.join(map(str, space.style_dim))}"
            f" × seed {', '.join(map(str, space.seeds))}; {config.fusion.steps} steps each,"
            f" iteration counts {', '.join(map(str, evaluation.iterations))}",
            f"latent search: step sizes {', '.join(map(str, lp.step_sizes))}, up to"
            f" {max(lp.iterations)} iterations",
            f"inputs: {evaluation.pairs} pairs of each source (test, prior and their validation"
            f" twins); latents take up to {megabytes:,.0f} MB",
            f"workers: {config.execution.workers}, trials in a pack: {config.execution.pack},"
            f" on {config.execution.address or 'a local Ray that the run starts and stops'}",
        ]
    )


def root(config: StudyConfig) -> Path:
    """The study's folder."""
    return Path(config.execution.results) / config.name


def run(config: StudyConfig, reporter: Reporter) -> Store:
    """Run a study from its melodies to a bundle, or go on where an earlier run stopped.

    Raises `UserError` for what the person can mend: settings, melodies, a core below its gate, a
    folder of another study.
    """
    torch.set_num_threads(DRIVER_THREADS)
    _foresee(config)
    store = Store(root(config))
    reporter.stage("Corpus: melodies as segments on a grid")
    corpus = find_corpus(config, reporter)
    store.claim(
        config.identity(corpus.content_hash), config.fingerprint(corpus.content_hash), config.name
    )
    bench = prepare(config, corpus, store, reporter)
    reporter.stage(f"Jobs: {len(config.trials())} trials and the latent search, on Ray Tune")
    packs = planned_packs(config.trials(), bench, store, config.execution, reporter)
    jobs: list[Spec] = [*packs, *lp_jobs(config.evaluation)]
    run_jobs(jobs, bench, store, config.execution, reporter)
    _check_jobs(store, reporter)
    reporter.stage("Frontiers: coherency against similarity")
    if not store.has("metrics", "references"):
        record_references(bench, store)
    tabulate(store, config.evaluation)
    for path in draw(store):
        reporter.say(str(path))
    reporter.stage("Selection: one trial, chosen on validation songs")
    rule = config.selection
    choice = select(store, rule.maximise, rule.where, store.root / "bundle")
    reporter.say(
        f"highest {rule.maximise} with {' and '.join(rule.where) or 'no condition'}:"
        f" {choice.trial} at λ {choice.weight:g} after {choice.iterations} iterations,"
        f" {_interval(choice)}"
    )
    example = fuse_example(store, corpus, config.seed)
    reporter.say(f"example from two test songs: {example}")
    reporter.stage("Summary")
    for line in summary(store, choice, example):
        reporter.say(line)
    return store


def _foresee(config: StudyConfig) -> None:
    """Refuse what would only be refused after the melodies have been read."""
    path, store = config.corpus.path, Store(root(config))
    if path is not None and not path.exists():
        raise UserError(f"corpus.source: {path}: no such file or folder")
    if (store.root / "study.json").exists():
        begun_with = str(store.record["identity"]["corpus"])
        store.check(config.identity(begun_with))


def tabulate(store: Store, evaluation: EvaluationPlan) -> None:
    """Write the tables `frontier` and `matched` from the table `metrics`.

    At matched similarity a configuration's value is its mean over seeds. The reference point of a
    panel's hypervolume is fixed by the config: the largest matched distance, and a coherency of 0.
    """
    metrics = _finished_metrics(store)
    configurations = (
        metrics.with_columns(pl.col("trial").str.replace(r"-seed\d+$", ""))
        .group_by("method", "trial", "lambda", "source", "iteration", "metric", maintain_order=True)
        .agg(pl.col("value").mean())
    )
    bounds: Mapping[str, tuple[float, float]] = {
        "z_distance": evaluation.matched.z_distance,
        "edit_distance": evaluation.matched.edit_distance,
    }
    frontiers, matched = [], []
    for source, metric in PANELS:
        for axis, (smallest, largest) in bounds.items():
            panel = {"source": source, "metric": metric, "axis": axis}
            columns = [pl.lit(value).alias(name) for name, value in panel.items()]
            points = panel_points(metrics, source, metric, axis)
            points = points.filter(pl.col("distance").is_finite(), pl.col("value").is_finite())
            for _, group in points.group_by("method", maintain_order=True):
                frontiers.append(_front(group, largest).with_columns(columns))
            distances = log_spaced(smallest, largest, _DISTANCES)
            candidates = matched_points(configurations, source, metric, axis)
            found = matched_similarity(candidates, distances)
            matched.append(found.with_columns(*columns, pl.col("value").fill_null(math.nan)))
    store.write("frontier", "all", pl.concat(frontiers))
    store.write("matched", "all", pl.concat(matched))


def draw(store: Store) -> list[Path]:
    """Draw the frontier figures again, from the table `metrics` alone."""
    metrics = store.scan("metrics").collect()
    return [
        path
        for axis in AXES
        for path in save(
            frontier_figure(metrics, axis), store.root / "figures" / f"frontier-{axis}"
        )
    ]


def _finished_metrics(store: Store) -> pl.DataFrame:
    """The table `metrics` without what an unfinished job may have left in it."""
    unfinished = [trial for trial, status in store.done_trials().items() if status != "done"]
    return store.scan("metrics").filter(~pl.col("trial").is_in(unfinished)).collect()


def panels_led(store: Store, axis: str, method: str) -> tuple[int, int, list[str]]:
    """In how many panels a method is above LP at matched similarity: (led, panels, panels lost).

    A panel is led where the mean difference over all distances is positive; that is no test of
    significance.
    """
    matched = store.scan("matched").filter(pl.col("axis") == axis).collect()
    lost = [
        f"{metric} ({source})"
        for (source, metric), panel in matched.group_by("source", "metric", maintain_order=True)
        if not mean_difference(panel, method, "lp") > 0
    ]
    return len(PANELS) - len(lost), len(PANELS), lost


def fuse_example(store: Store, corpus: Corpus, seed: int) -> Path:
    """Fuse two melodies of test songs with the study's bundle; MIDI, WAV and a picture of it."""
    bundle = load_bundle(store.root / "bundle")
    random = np.random.default_rng(derive(seed, "example"))
    songs = random.choice(np.unique(corpus.song[corpus.segments(TEST)]), 2, replace=False)
    rows = [np.flatnonzero(corpus.song == songs[0])[-1], np.flatnonzero(corpus.song == songs[1])[0]]
    inputs = corpus.tokens[rows]
    bars = [(int(bar) + 1, int(bar) + corpus.form.bars_per_segment) for bar in corpus.bar[rows]]
    style = bundle.draw_style(seed)
    fused = Fused(
        form=corpus.form,
        inputs=inputs,
        outputs=np.stack(bundle.fuse(inputs[0], inputs[1], style, bundle.iterations)),
        bars=(bars[0], bars[1]),
        meter=corpus.form.meters[0],
        tempo=_EXAMPLE_TEMPO,
        style=style,
        iterations=bundle.iterations,
        weight=bundle.weight,
    )
    folder = store.root / "example"
    for name, notes in (("inputs", fused.input_notes), ("outputs", fused.output_notes)):
        write_midi(notes, folder / f"{name}.mid", fused.tempo, fused.meter)
        write_wav(notes, folder / f"{name}.wav", fused.tempo)
    names = (corpus.song_ids[songs[0]], corpus.song_ids[songs[1]])
    save(piano_roll_figure(fused.inputs, fused.outputs, fused.form, names), folder / "piano-roll")
    return folder


def summary(store: Store, choice: Choice, example: Path) -> list[str]:
    """What was run, what was found, where everything is, and what to type next."""
    called = Path(sys.argv[0])
    command = called if called.name == "cf-study" and not which("cf-study") else "cf-study"
    statuses = store.scan("trials").collect()
    counts = statuses.group_by("method", "status").len().sort("method", "status").iter_rows()
    lines = ["run: " + ", ".join(f"{n} {method} {status}" for method, status, n in counts)]
    done = statuses.filter(pl.col("status") == "done")["method"]
    methods = [method for method in FUSIONS if method in done]
    for method, axis in product(methods, AXES):
        led, panels, lost = panels_led(store, axis, method)
        lines.append(
            f"found: at matched {axis.replace('_', ' ')}, {method} leads LP in {led} of {panels}"
            " panels" + (f"; not in {', '.join(lost)}" if lost else "")
        )
    lines += [
        "(led: the mean over distances is higher; a count, no test of significance)",
        f"tables: {store.root}/{{trials,curves,latents,metrics,frontier,matched}}",
        f"figures: {store.root / 'figures'}",
        f"bundle: {choice.bundle} ({choice.trial}, λ {choice.weight:g},"
        f" {choice.iterations} iterations)",
        f"listen: {example / 'inputs.wav'}, then {example / 'outputs.wav'}",
        "next:",
        f'  {command} query {store.root} "{_EXAMPLE_QUERY}"',
        f"  {command} fuse LEFT.mid RIGHT.mid --bundle {choice.bundle} --output fused.mid",
    ]
    return lines


def _front(points: pl.DataFrame, largest: float) -> pl.DataFrame:
    distance, value = points["distance"].to_numpy(), points["value"].to_numpy()
    return points.select(
        "method",
        "trial",
        "lambda",
        "iteration",
        similarity="distance",
        coherency="value",
        non_dominated=pl.Series(non_dominated(distance, value)),
        hypervolume=pl.lit(hypervolume(distance, value, (largest, 0.0))),
    )


def _check_jobs(store: Store, reporter: Reporter) -> None:
    """Say what failed; stop where no trial is left to compare."""
    over = store.scan("trials").collect()
    failed = over.filter(pl.col("status") != "done")
    for trial, status, reason in failed.select("trial", "status", "reason").iter_rows():
        reporter.say(f"{trial} {status}: {reason}")
    done = set(over.filter(pl.col("status") == "done")["method"])
    kinds = {"trial": set(FUSIONS), "setting of the latent search": {"lp"}}
    for name, methods in kinds.items():
        if not methods & done:
            raise UserError(
                f"{store.root}: no {name} came to its end, so there is nothing to compare; mend"
                " the reasons above and run the study again"
            )


def _interval(choice: Choice) -> str:
    if choice.low is None or choice.high is None:
        return f"{choice.value:.3f}"
    return f"{choice.value:.3f} (95 % interval {choice.low:.3f} to {choice.high:.3f})"
