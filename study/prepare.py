"""Prepares what all trials of a study share: corpus, core and classifiers, each made only once."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cf_core import readers
from cf_core.continuation import (
    Continuation,
    ContinuationTrainer,
    drop_hanging_holds,
    reverse,
)
from cf_core.corpus import Corpus, Split, load_corpus
from cf_core.errors import UserError
from cf_core.files import place, replacing
from cf_core.fusion import Latents
from cf_core.ingest import ingest, ingest_builtin
from cf_core.ingest_report import IngestReport
from cf_core.isolation import processes
from cf_core.kinds import encode_kinds
from cf_core.seeding import derive, make_random
from cf_core.training import Trainer, collect_weights, load_tensors, save_tensors, train
from cf_core.vae import MelodyVAE, VAETrainer, report_prior, report_reconstruction
from cf_core.writer import Writer, make_trainers
from evaluation.classifier import ClassifierTrainer, SearchClassifier
from evaluation.evaluator import Evaluator
from evaluation.judge import Judge, JudgeData, JudgeTrainer
from evaluation.negatives import KINDS, LabelledTokens, draw_hard_pairs
from evaluation.reliability import Estimate, LabelledPairs, Scorer, draw_adjacent
from evaluation.sources import make_sources, unpaired
from evaluation.statistics import TokenPairs
from study.config import StudyConfig
from study.progress import Reporter
from study.reading import ray_tasks
from study.store import Store
from study.workbench import REPORT_EVERY, Workbench, find_checkpoint

_PRIOR_SAMPLES = 16384
"""Number of decoded prior samples that judges are trained on."""

_UNSEEN = (("validation", Split.VALIDATION), ("test", Split.TEST))

_HARD_PAIRS = 4096
"""Hard negatives of each kind that judges are trained on."""

_RESAMPLES = 1000
"""Resamples for the intervals of a classifier's report."""


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
    for name, split in _UNSEEN:
        if (songs := len(np.unique(corpus.song[corpus.segments(split)]))) < 4:
            raise UserError(
                f"corpus.source: only {songs} songs are left for {name}, but at least 4 are needed"
                " to compare songs with others; add melodies"
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


def prepare(config: StudyConfig, corpus: Corpus, store: Store, reporter: Reporter) -> Workbench:
    """Train or read the core and the classifiers, and draw the input pairs.

    Raises `UserError` if the core does not reach the config's `core_gate`.
    """
    reporter.stage("Core: the VAE over melody segments")
    core = _core(config, corpus, store, reporter)
    latents = training_latents(corpus, core)
    reporter.stage("Classifiers: one to search by, two to judge by, and a model of notes for these")
    classifier, continuation, judges = _classifiers(config, corpus, core, latents, store, reporter)
    plan = config.evaluation
    evaluator = Evaluator(corpus, core, classifier, judges, config.seed, continuation)
    counts = {Split.TEST: plan.pairs, Split.VALIDATION: plan.validation_pairs}
    sources = make_sources(corpus, core, counts, config.seed)
    writer = _writer(config, corpus, latents, store, reporter) if config.writes else None
    fingerprint = store.record["fingerprint"]
    return Workbench(
        latents,
        evaluator,
        sources,
        config.fusion,
        plan,
        config.seed,
        fingerprint,
        writer,
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


def _core(config: StudyConfig, corpus: Corpus, store: Store, reporter: Reporter) -> MelodyVAE:
    tokens = corpus.tokens[corpus.segments(Split.TRAIN)]
    trainer = VAETrainer(tokens, config.melody, config.core, config.seed)

    def finish() -> dict[str, Any]:
        trainer.vae.measure_sigma_bar(tokens)
        random = make_random(config.seed, "core", "prior")
        return {
            name: report_reconstruction(trainer.vae, corpus.tokens[corpus.segments(split)])
            for name, split in _UNSEEN
        } | {
            "prior": report_prior(trainer.vae, _prior_kinds(corpus, config.seed), random),
            "meters": _report_meters(trainer.vae, corpus),
        }

    report = _trained("core", trainer, trainer.vae, finish, store, reporter)
    for name in ("validation", "test"):
        figures = report[name]
        reporter.say(
            f"{name} songs: token accuracy {figures['token_accuracy']:.3f}, onset-pitch recall"
            f" {figures['onset_pitch_recall']:.3f}, exact segments"
            f" {figures['exact_segments']:.3f}, KL {figures['kl']:.1f} nats,"
            f" {figures['active_units']} active units, aggregate posterior"
            f" {figures['aggregate_kl']:.1f} nats from the prior"
        )
    for meter, figures in report["meters"].items():
        reporter.say(
            f"validation songs in {meter}: token accuracy {figures['token_accuracy']:.3f},"
            f" onset-pitch recall {figures['onset_pitch_recall']:.3f}, exact segments"
            f" {figures['exact_segments']:.3f}, of {figures['segments']:,} segments"
        )
    prior = report["prior"]
    reporter.say(
        f"prior samples: {prior['valid_prior']:.3f} decode to a melody"
        f" ({prior['valid_prior_by_step']:.3f} if every step were decoded by itself)"
    )
    config.core_gate.check(report)
    return trainer.vae


def _report_meters(core: MelodyVAE, corpus: Corpus) -> dict[str, dict[str, float]]:
    """How well validation segments of each kind of bars are decoded, if there are several."""
    rows, found = corpus.segments(Split.VALIDATION), {}
    for kind, meter in enumerate(corpus.form.kinds):
        own = rows[corpus.kinds[rows] == kind]
        if len(corpus.form.kinds) > 1 and len(own) > 1:
            report = report_reconstruction(core, corpus.tokens[own])
            found[meter] = {**report, "segments": len(own)}
    return found


def _classifiers(
    config: StudyConfig,
    corpus: Corpus,
    core: MelodyVAE,
    latents: Latents,
    store: Store,
    reporter: Reporter,
) -> tuple[SearchClassifier, Continuation, Mapping[Split, Judge]]:
    continuation = _continuation(config, corpus, latents, store, reporter)
    trials = {
        name: LabelledPairs.draw(corpus, split, continuation, config.seed)
        for name, split in _UNSEEN
    }
    trainer = ClassifierTrainer(latents, config.search_classifier, config.seed)

    def latent_scores(pairs: TokenPairs) -> np.ndarray:
        left, right = (core.encode_mean(half) for half in pairs)
        with torch.no_grad():
            scores: np.ndarray = trainer.classifier((left, right)).numpy()
        return scores

    report = _trained(
        "search_classifier",
        trainer,
        trainer.classifier,
        lambda: _reliability(trials, latent_scores, config),
        store,
        reporter,
    )
    _say_reliability("search classifier", report, reporter)
    data = _judge_data(corpus, core, latents, continuation, config.seed)
    judges = {
        split: _judge(name, data, continuation, corpus, trials, config, store, reporter)
        for name, split in (("selection_judge", Split.VALIDATION), ("reporting_judge", Split.TEST))
    }
    agreement = trials["test"].measure_agreement(
        _scorer(judges[Split.VALIDATION]),
        _scorer(judges[Split.TEST]),
        _RESAMPLES,
        config.seed,
    )
    reporter.say(f"the two judges rank pairs of test songs alike: Spearman {agreement}")
    return trainer.classifier, continuation, judges


def _continuation(
    config: StudyConfig, corpus: Corpus, latents: Latents, store: Store, reporter: Reporter
) -> Continuation:
    tokens = torch.as_tensor(corpus.tokens[corpus.segments(Split.TRAIN)])
    settings = config.continuation
    trainer = ContinuationTrainer(tokens, latents.pairs, config.melody, settings, config.seed)
    network = trainer.continuation

    def finish() -> dict[str, Any]:
        return {name: _nats(network, _adjacent(corpus, split)) for name, split in _UNSEEN}

    report = _trained("continuation", trainer, network, finish, store, reporter)
    for name, nats in report.items():
        reporter.say(
            f"model of notes, {name} songs: {-nats['after']:.1f} nats for a right half after its"
            f" left one, {-nats['alone']:.1f} for one by itself"
        )
    return network


def _writer(
    config: StudyConfig, corpus: Corpus, latents: Latents, store: Store, reporter: Reporter
) -> Writer:
    tokens = torch.as_tensor(corpus.tokens[corpus.segments(Split.TRAIN)])
    writer = Writer(config.melody, config.writer)
    trainers = make_trainers(
        writer, tokens, latents.pairs, config.melody, config.writer, config.seed
    )
    for name, trainer in trainers.items():
        network = trainer.continuation

        def finish(name: str = name, network: Continuation = network) -> dict[str, Any]:
            unseen = _adjacent(corpus, Split.VALIDATION)
            if name == "backwards":
                unseen = reverse(unseen[1]), reverse(unseen[0])
            return _nats(network, unseen)

        report = _trained(f"writer_{name}", trainer, network, finish, store, reporter)
        reporter.say(
            f"writer, {name}, validation songs: {-report['after']:.1f} nats for a half beside the"
            f" other, {-report['alone']:.1f} for one by itself"
        )
    return writer


def _adjacent(corpus: Corpus, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of all adjacent pairs of a split."""
    tokens = torch.as_tensor(corpus.tokens[corpus.pairs_of(split)])
    left, right = (drop_hanging_holds(half.long()) for half in tokens.unbind(1))
    return left, right


def _nats(network: Continuation, pairs: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    """Mean log-probability of the right halves."""
    left, right = pairs
    return {
        "after": float(network.log_probability(right, left).mean()),
        "alone": float(network.log_probability(right, None).mean()),
    }


def _judge(
    name: str,
    data: JudgeData,
    continuation: Continuation,
    corpus: Corpus,
    trials: Mapping[str, LabelledPairs],
    config: StudyConfig,
    store: Store,
    reporter: Reporter,
) -> Judge:
    settings = getattr(config, name)
    trainer = JudgeTrainer(data, continuation, config.melody, settings, config.seed, name)

    def finish() -> dict[str, Any]:
        # Fitted on validation songs, so only the calibration error on test songs is of unseen ones.
        random = np.random.default_rng(derive(config.seed, name, "calibration"))
        adjacent = draw_adjacent(corpus, Split.VALIDATION, random)
        negatives = unpaired(corpus, Split.VALIDATION, len(adjacent), random)
        hard = draw_hard_pairs(corpus, Split.VALIDATION, len(adjacent), continuation, random)
        real, others = (LabelledTokens.of(corpus, rows).tokens for rows in (adjacent, negatives))
        trainer.judge.calibrate(real, others, {kind: pairs.tokens for kind, pairs in hard.items()})
        return _reliability(trials, _scorer(trainer.judge), config)

    report = _trained(name, trainer, trainer.judge, finish, store, reporter)
    _say_reliability(name.replace("_", " "), report, reporter)
    return trainer.judge


def _scorer(judge: Judge) -> Scorer:
    return lambda pairs: judge.logits(*pairs)


def _trained(
    name: str,
    trainer: Trainer,
    network: torch.nn.Module,
    finish: Callable[[], dict[str, Any]],
    store: Store,
    reporter: Reporter,
) -> dict[str, Any]:
    """Train `network`, or fill it with the weights of an earlier run, and return its report.

    The report is written last, so that it exists only beside complete weights.
    """
    folder = store.root / "core" if name == "core" else store.root / "classifiers"
    file, record = folder / f"{name}.safetensors", folder / f"{name}.json"
    if record.exists() and (state := load_tensors(file)) is not None:
        network.load_state_dict(state)
        report: dict[str, Any] = json.loads(record.read_text())
        return report
    checkpoint = find_checkpoint(store, name)
    reporter.follow(name.replace("_", " "), train(trainer, REPORT_EVERY // 2, checkpoint))
    report = finish()
    save_tensors(collect_weights(network), file)
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    return report


def training_latents(corpus: Corpus, core: MelodyVAE) -> Latents:
    """Make the training data of trials and of the search classifier: posteriors of segments."""
    rows = corpus.segments(Split.TRAIN)
    mean, deviation = core.posteriors(corpus.tokens[rows])
    pairs = torch.as_tensor(np.searchsorted(rows, corpus.pairs_of(Split.TRAIN)))
    code = encode_kinds(torch.from_numpy(corpus.kinds[rows]), len(corpus.form.kinds))
    return Latents(mean, deviation, pairs, core.sigma_bar, code)


def _prior_kinds(corpus: Corpus, seed: int) -> np.ndarray:
    """Draw the kinds of bars of prior samples, as they are among the training segments."""
    kinds = corpus.kinds[corpus.segments(Split.TRAIN)]
    random = np.random.default_rng(derive(seed, "prior", "kinds"))
    return np.asarray(random.choice(kinds, _PRIOR_SAMPLES))


def _judge_data(
    corpus: Corpus, core: MelodyVAE, latents: Latents, continuation: Continuation, seed: int
) -> JudgeData:
    random, rows = make_random(seed, "judge", "prior"), corpus.segments(Split.TRAIN)
    prior = torch.randn(_PRIOR_SAMPLES, latents.mean.shape[1], generator=random)
    draws = np.random.default_rng(derive(seed, "judge", "hard"))
    hard = draw_hard_pairs(corpus, Split.TRAIN, _HARD_PAIRS, continuation, draws).values()
    left, right = (np.concatenate([pairs.tokens[half] for pairs in hard]) for half in (0, 1))
    decoded = draws.random(len(left)) < 2 / 3
    for half in (left, right):
        kinds = corpus.form.find_kinds(half[decoded])
        half[decoded] = core.decode_tokens(core.encode_mean(half[decoded]), kinds)
    return JudgeData(
        real=torch.as_tensor(corpus.tokens[rows]),
        reconstructed=torch.as_tensor(core.decode_tokens(latents.mean, corpus.kinds[rows])),
        prior=torch.as_tensor(core.decode_tokens(prior, _prior_kinds(corpus, seed))),
        pairs=latents.pairs,
        hard=torch.as_tensor(np.stack((left, right), axis=1)),
    )


def _reliability(
    trials: Mapping[str, LabelledPairs], scores: Scorer, config: StudyConfig
) -> dict[str, Any]:
    return {name: trial.report(scores, _RESAMPLES, config.seed) for name, trial in trials.items()}


def _say_reliability(name: str, report: Mapping[str, Any], reporter: Reporter) -> None:
    for split, figures in report.items():
        told = {key: Estimate(**value) for key, value in figures.items() if key != "pairs"}
        hard = ", ".join(
            f"{told[kind + '_auc'].value:.3f} {kind.replace('_', ' ')}"
            for kind in ("same_key", *KINDS)
            if kind + "_auc" in told
        )
        reporter.say(
            f"{name}, {split} songs: AUC {told['auc']} over {figures['pairs']:,} pairs of each"
            f" kind; against hard negatives: {hard}; calibration error {told['calibration_error']}"
        )
