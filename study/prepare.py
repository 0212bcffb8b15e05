"""Prepares what all trials of a study share: corpus, core and classifiers, each made only once."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np

from cf_core import readers
from cf_core.corpus import Corpus, Split, load_corpus
from cf_core.errors import UserError
from cf_core.files import place
from cf_core.ingest import ingest, ingest_builtin
from cf_core.ingest_report import IngestReport
from cf_core.isolation import processes
from evaluation.evaluator import Evaluator
from evaluation.negatives import KINDS
from evaluation.reliability import Estimate
from evaluation.sources import make_sources
from study.config import StudyConfig
from study.networks import CORE, FOR_JUDGES, UNSEEN, WRITERS, Networks, Report, spoken
from study.progress import Reporter
from study.reading import ray_tasks
from study.store import Store
from study.workbench import Workbench

Crew = Callable[[Networks, Sequence[str], Reporter], Iterator[str]]
"""Trains networks by name, shows how that goes, and gives each name once its network is there."""


def train_here(networks: Networks, names: Sequence[str], reporter: Reporter) -> Iterator[str]:
    """Train one after another in this process, a `Crew`."""
    for name in names:
        reporter.follow(spoken(name), networks.train(name))
        yield name


def find_corpus(config: StudyConfig, reporter: Reporter) -> Corpus:
    """Read the study's melodies; other files than Parquet are ingested once, for all studies.

    Raises `UserError` as `ingest` and `load_corpus` do, and where a split has too few songs.
    """
    source, cache = config.corpus.path, _cache(config)
    path: Path
    if source is not None and source.suffix == ".parquet":
        path = source
    else:
        path = cache / f"{_corpus_key(config)}.parquet"
        if path.exists():
            reporter.say(f"the melodies were ingested before; reading {path}")
        else:
            report = _ingest(config, path, reporter)
            for line in str(report).splitlines():
                reporter.say(line)
    corpus = load_corpus(path, config.melody, config.seed)
    for name, split in UNSEEN:
        if (songs := len(np.unique(corpus.song[corpus.segments(split)]))) < 4:
            raise UserError(
                f"corpus.source: only {songs} songs are left for {name}, but at least 4 are needed"
                f" to compare songs with others; add melodies in {', '.join(config.melody.meters)}"
            )
    sizes = ", ".join(
        f"{len(corpus.segments(split)):,} for {name}"
        for split, name in (
            (Split.TRAIN, "training"),
            (Split.VALIDATION, "validation"),
            (Split.TEST, "test"),
        )
    )
    reporter.say(
        f"{len(corpus.tokens):,} segments of {len(corpus.song_ids):,} songs: {sizes}"
        " (split by song; near-duplicates stay together)"
    )
    return corpus


def prepare(
    config: StudyConfig,
    corpus: Corpus,
    store: Store,
    reporter: Reporter,
    train: Crew = train_here,
) -> Workbench:
    """Train or read the core and the classifiers, and draw the input pairs.

    Raises `UserError` if the core does not reach the config's `core_gate`, and `ConfigError` where
    the store was begun with other settings or other melodies: models rated by songs of another
    corpus would give numbers all the same.
    """
    store.check(config.identity(corpus.content_hash))
    networks = Networks(config, corpus, Store(store.root.resolve()))
    reporter.stage("Core: the VAE over melody segments, and models of notes")
    for name, report in _trained(networks, networks.melodic, train, reporter):
        for line in _describe(name, report):
            reporter.say(line)
        if name == CORE:
            config.core_gate.check(report)
    reporter.stage("Classifiers: one to search by, and two to judge by")
    for name, report in _trained(networks, networks.judging, train, reporter):
        for line in _describe_reliability(spoken(name), report):
            reporter.say(line)
    agreement = Estimate(**networks.report_agreement()["spearman"])
    reporter.say(f"the two judges rank pairs of test songs alike: Spearman {agreement}")
    plan = config.evaluation
    evaluator = Evaluator(
        corpus,
        networks.core,
        networks.make_classifier(),
        networks.judges,
        config.seed,
        networks.continuation,
    )
    counts = {Split.TEST: plan.pairs, Split.VALIDATION: plan.validation_pairs}
    return Workbench(
        networks.latents,
        evaluator,
        make_sources(corpus, networks.core, counts, config.seed),
        config.fusion,
        plan,
        config.seed,
        store.record["fingerprint"],
        networks.make_writer() if config.writes else None,
        compared_seed=config.search.seeds[0] if config.fusion.scheme == "heard" else None,
    )


def _cache(config: StudyConfig) -> Path:
    """Folder of ingested melodies: beside the studies if these are local, else on this machine.

    Only the driver loads them, so no other machine has to reach them.
    """
    results = place(config.execution.results)
    if isinstance(results, Path):
        return results / ".corpora"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "connective-fusion"


def _corpus_key(config: StudyConfig) -> str:
    """Name of the ingested corpus, which depends on the files, the filter, grid and reader."""
    steps, source = config.melody.steps_per_beat, config.corpus.path
    kind = f"{steps}-v{readers.VERSION}"
    if source is None:
        return f"builtin-{kind}"
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    stamps = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    text = json.dumps([str(source.resolve()), config.corpus.include, stamps])
    return f"{source.stem}-{kind}-{sha256(text.encode()).hexdigest()[:12]}"


def _ingest(config: StudyConfig, path: Path, reporter: Reporter) -> IngestReport:
    steps, address = config.melody.steps_per_beat, config.execution.address
    with ExitStack() as stack:
        mapper = processes(config.execution.workers)
        if address is not None:
            mapper = stack.enter_context(ray_tasks(address))
        job = stack.enter_context(reporter.job("melodies", None))
        if config.corpus.path is None:
            return ingest_builtin(path, steps_per_beat=steps, progress=job.update, mapper=mapper)
        return ingest(
            config.corpus.path,
            path,
            include=config.corpus.include,
            steps_per_beat=steps,
            progress=job.update,
            mapper=mapper,
        )


def _trained(
    networks: Networks, names: Sequence[str], train: Crew, reporter: Reporter
) -> Iterator[tuple[str, Report]]:
    """Have the networks trained that are not; each is given with its report once it is there."""
    missing = [name for name in names if not networks.is_trained(name)]
    there = [name for name in names if name not in missing]
    for name in chain(there, train(networks, missing, reporter) if missing else ()):
        yield name, networks.report(name)


def _describe(name: str, report: Report) -> Iterator[str]:
    """Say how good a network is that was trained on melodies alone."""
    if name == CORE:
        yield from _describe_core(report)
    elif name in FOR_JUDGES:
        for split, nats in report.items():
            yield (
                f"model of notes that {FOR_JUDGES[name]}, {split} songs: {-nats['after']:.1f} nats"
                f" for a right half after its left one, {-nats['alone']:.1f} for one by itself"
            )
    else:
        yield (
            f"writer, {WRITERS[name]}, validation songs: {-report['after']:.1f} nats for a half"
            f" beside the other, {-report['alone']:.1f} for one by itself"
        )


def _describe_core(report: Report) -> Iterator[str]:
    for name, _ in UNSEEN:
        figures = report[name]
        yield (
            f"{name} songs: token accuracy {figures['token_accuracy']:.3f}, onset-pitch recall"
            f" {figures['onset_pitch_recall']:.3f}, exact segments"
            f" {figures['exact_segments']:.3f}, KL {figures['kl']:.1f} nats,"
            f" {figures['active_units']} active units, aggregate posterior"
            f" {figures['aggregate_kl']:.1f} nats from the prior"
        )
    for meter, figures in report["meters"].items():
        yield (
            f"validation songs in {meter}: token accuracy {figures['token_accuracy']:.3f},"
            f" onset-pitch recall {figures['onset_pitch_recall']:.3f}, exact segments"
            f" {figures['exact_segments']:.3f}, of {figures['segments']:,} segments"
        )
    prior = report["prior"]
    yield (
        f"prior samples: {prior['valid_prior']:.3f} decode to a melody"
        f" ({prior['valid_prior_by_step']:.3f} if every step were decoded by itself)"
    )


def _describe_reliability(name: str, report: Report) -> Iterator[str]:
    for split, figures in report.items():
        told = {key: Estimate(**value) for key, value in figures.items() if key != "pairs"}
        hard = ", ".join(
            f"{told[kind + '_auc'].value:.3f} {kind.replace('_', ' ')}"
            for kind in ("same_key", *KINDS)
            if kind + "_auc" in told
        )
        yield (
            f"{name}, {split} songs: AUC {told['auc']} over {figures['pairs']:,} pairs of each"
            f" kind; against hard negatives: {hard}; calibration error {told['calibration_error']}"
        )
