"""How fast outputs are measured and judged: a part of `benchmarks.evaluation`."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import nn

from benchmarks.measuring import Measure, Rounds, ratio, tell
from benchmarks.products import Product, bare, decoding, forward
from cf_core.batches import Member
from cf_core.continuation import Continuation, ContinuationSettings
from cf_core.corpus import Corpus, Split
from cf_core.fusion import FusionSettings, Generator
from cf_core.graphs import WARM_UP
from cf_core.melody import FIRST_PITCH, HOLD, MelodyFormat
from cf_core.nets import initialise
from cf_core.pack import PackTrainer
from cf_core.seeding import make_random
from cf_core.training import limit_threads
from cf_core.vae import MelodyVAE, VAESettings
from evaluation.classifier import ClassifierSettings, SearchClassifier
from evaluation.evaluator import LABELS, Evaluator
from evaluation.frontier import CHOSEN_ON, matched_similarity
from evaluation.inference import decide_verdicts
from evaluation.judge import Judge, JudgeSettings
from evaluation.likeness import SEAMS
from evaluation.metrics import AXES, COHERENCY, LIKENESS
from evaluation.sources import Source, make_sources
from evaluation.statistics import STATISTICS, Bins, compute_statistics, transition_matrix
from evaluation.transforms import Fusion
from study.config import StudyConfig, load_config, load_configs
from study.execution import make_trainer
from study.findings import count_bins, read_finished_metrics
from study.networks import encode_training
from study.packs import measure_packs
from study.search import list_first_trials
from study.store import Store
from study.workbench import Workbench

PAIRS, LATENT_DIM, SEGMENTS = 512, 64, 100_000
WEIGHT, STYLE_DIM, MOST = 0.1, 4, 512
FORM = MelodyFormat()


def measure_evaluation(few: Rounds, device: str) -> list[Measure]:
    """Everything that takes the whole of `evaluation`; on a GPU only what it is for."""
    if device != "cpu":
        return [*panels(few, device), *pack_sizes(few, device)]
    return [*statistics(few), *panels(few, device), *verdict_table(few)]


def statistics(rounds: Rounds) -> Iterator[Measure]:
    """All five statistics and their matrices against decoding the same segments."""
    core = MelodyVAE(FORM, VAESettings())
    initialise(core, make_random(0, "core"))
    count = SEGMENTS // rounds.scale
    z = torch.randn(count, LATENT_DIM, generator=make_random(0, "latents"))
    tokens = core.decode_notes(z)
    tunes, kinds = _tunes(2000), np.zeros(count, np.int64)
    fitted = {n: v.numpy() for n, v in compute_statistics(torch.as_tensor(tunes), FORM).items()}
    bins = Bins.fit(fitted, FORM.find_kinds(tunes), len(FORM.kinds))

    def matrices() -> None:
        values = compute_statistics(tokens, FORM)
        for name in STATISTICS:
            of = bins.assign(name, values[name].numpy(), kinds)
            transition_matrix(of[: count // 2], of[count // 2 :], bins.count(name))

    with limit_threads(1):
        seconds = rounds.take_turns(matrices, lambda: core.decode_notes(z))
    tell(f"{count} segments, one thread", seconds, ("statistics", "decoding"))
    yield Measure("statistics_vs_decode", ratio(seconds, 0, 1), "×", 0.5, "lower")


def panels(rounds: Rounds, device: str) -> Iterator[Measure]:
    """Measuring outputs against the products of decoding and judging them.

    Networks have not learnt, and the map is applied by the scheme `poster`. So no pair comes to
    rest, and all pairs have to be measured after each of the counts of the study `poster`.
    """
    pairs, where = PAIRS // rounds.scale, torch.device(device)
    counts = load_configs("poster")[0].evaluation.iterations
    evaluator, fusion, sources = _furnish(rounds.scale, where)
    style = torch.rand(pairs, STYLE_DIM, generator=make_random(0, "style")).to(where)
    made = [
        list(Fusion(fusion, style, WEIGHT)(source.inputs, counts, make_random(0, "none")))
        for source in sources
    ]

    def measured() -> None:
        for source, steps in zip(sources, made, strict=True):
            evaluator.evaluate(dict.fromkeys(LABELS, "x"), source, steps)

    judge = evaluator.judges[Split.TEST]
    needed = decoding(FORM, VAESettings(), 2 * pairs) + _judging(
        judge, JudgeSettings(), FORM, pairs
    )
    products = bare(needed * len(sources) * len(counts), device=device)
    with limit_threads(1):
        seconds = rounds.take_turns(measured, products)
    on = "one thread" if where.type == "cpu" else torch.cuda.get_device_name(where)
    what = ["measures", "products of decoding and judging"]
    tell(f"{pairs} pairs of two sources after {len(counts)} counts, {on}", seconds, what)
    start = "" if where.type == "cpu" else "cuda_"
    yield Measure(start + "evaluation_vs_products", ratio(seconds, 0, 1), "×", 4.0, "lower")


def _furnish(scale: int, device: torch.device) -> tuple[Evaluator, Generator, Sequence[Source]]:
    """An evaluator, a map and two sources, with networks as they are before training."""
    corpus, pairs = make_corpus(scale), PAIRS // scale
    core = MelodyVAE(FORM, VAESettings())
    classifier = SearchClassifier(LATENT_DIM, ClassifierSettings())
    second = Continuation(FORM, ContinuationSettings())
    judges = {
        split: Judge(FORM, JudgeSettings(), second) for split in (Split.VALIDATION, Split.TEST)
    }
    fusion = FusionSettings().make_generator(LATENT_DIM, STYLE_DIM, conditional=True)
    for network in (core, classifier, *judges.values(), fusion):
        initialise(network, make_random(0, "weights"))
    evaluator = Evaluator(corpus, core, classifier, judges, 0, second)
    sources = make_sources(corpus, core, {Split.TEST: pairs, Split.VALIDATION: pairs}, 0)[:2]
    if device.type != "cpu":
        evaluator, sources = evaluator.to(device), tuple(each.to(device) for each in sources)
    return evaluator, _held_near(fusion).to(device), sources


def pack_sizes(rounds: Rounds, device: str) -> Iterator[Measure]:
    """The size that `execution.pack: auto` picks, against the best of all powers of two."""
    most = MOST // rounds.scale
    own = (f"configurations={most}", f"batch={most}", "hidden=[384]")
    config = load_config("search", [f"search.{each}" for each in own])
    trials, where = list_first_trials(config), torch.device(device)
    evaluator, _, sources = _furnish(rounds.scale, where)
    latents = encode_training(evaluator.corpus, deepcopy(evaluator.core).cpu()).to(where)
    bench = Workbench(latents, evaluator, sources, config.fusion, config.evaluation, 0, "")
    picked = measure_packs(trials, bench, workers=1)
    sizes = [2**power for power in range(most.bit_length())]
    best: dict[int, float] = {}
    for size in sizes:
        trainer = make_trainer(trials[:size], bench)
        for _ in range(WARM_UP):
            trainer.update()
        seconds = rounds.take_turns(trainer.update)
        best[size] = size / float(np.median(seconds))
    rates = ", ".join(f"{size}: {rate:.0f}" for size, rate in best.items())
    size = max(picked, key=lambda size: picked[size])
    print(f"trial-steps per second by size of a pack, {rates}; pack: auto picks {size}")
    share = best[size] / max(best.values())
    yield Measure("cuda_pack_auto_vs_best", share, "share", 0.95, "higher")


def _judging(judge: Judge, settings: JudgeSettings, form: MelodyFormat, rows: int) -> list[Product]:
    """The judge's probabilities of `rows` pairs: its reader, its committee, its model of notes."""
    reader = settings.reader
    body = [reader.hidden] * (reader.depth + 1)
    products = forward([form.steps * reader.embedding, *body, 2 * reader.latent_dim], 2 * rows)
    for name, module in judge.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("members"):
            halves = 2 if ".reader." in name else 1
            products.append(Product(halves * rows, module.in_features, module.out_features))
        elif isinstance(module, nn.Linear) and name.startswith("continuation"):
            # Once after the left half, and once by itself.
            steps = 2 * rows * form.steps
            products.append(Product(steps, module.in_features, module.out_features))
    return products


def verdict_table(rounds: Rounds) -> Iterator[Measure]:
    """The verdicts of the study `poster-small` against the time that its jobs took.

    Where it has not been run, made-up tables of its size, against the training of its trials alone
    (on as many workers): that overstates the share.
    """
    configs = load_configs("poster-small")[:: rounds.scale]
    stores = [Store(Path(c.execution.results) / c.name) for c in configs]
    if rounds.scale == 1 and all(map(is_finished, stores)):
        tables = [_recorded(store) for store in stores]
        whole = sum(_job_seconds(store) for store in stores)
        what = "of results/poster-small"
    else:
        tables = [_made_up(config, rounds.scale) for config in configs]
        whole = sum(_training_seconds(config, rounds.scale) for config in configs)
        what = "made up; its training alone"
    plan = configs[0].evaluation

    def decide() -> None:
        for metrics, outcomes, influences, bins in tables:
            bounds = dict(plan.matched)
            matched = matched_similarity(metrics, bounds)
            decide_verdicts(metrics, matched, outcomes, influences, bins)

    (seconds,) = Rounds(1, 0.0, rounds.scale).take_turns(decide)
    share = float(seconds[0]) / whole
    print(f"verdicts, {what}: {seconds[0]:.1f} s of {whole:.0f} s")
    yield Measure("verdict_share", share, "share", 0.02, "lower")


def is_finished(store: Store) -> bool:
    """Whether there is a study, and it has come to its end."""
    return (store.root / "study.json").exists() and store.has_rows("verdicts")


Tables = tuple[pl.DataFrame, pl.LazyFrame, pl.LazyFrame, Mapping[str, int]]


def _recorded(store: Store) -> Tables:
    influences = store.scan("influences")
    return read_finished_metrics(store), store.outcomes, influences, count_bins(store)


def _job_seconds(store: Store) -> float:
    """From the start of a study's first job to the end of its last."""
    ends = pl.col("finished_at").dt.timestamp("ms") / 1e3
    trials = store.scan("trials").select(start=ends - pl.col("seconds"), end=ends).collect()
    return float(trials["end"].max()) - float(trials["start"].min())  # type: ignore[arg-type]


def default_trainer(settings: FusionSettings, scale: int) -> PackTrainer:
    """The trainer of one conditional trial, on a made-up corpus and core of the default size."""
    corpus, core = make_corpus(scale), MelodyVAE(FORM, VAESettings())
    initialise(core, make_random(0, "weights"))
    return make_pack(corpus, core, settings)


def _training_seconds(config: StudyConfig, scale: int) -> float:
    with limit_threads(1):
        trainer = default_trainer(config.fusion, scale)
        (seconds,) = Rounds(1, 0.0, scale).take_turns(trainer.update)
    rounds = -(-len(list_first_trials(config)) // config.execution.workers)
    return float(seconds[0]) * config.fusion.steps * rounds


def make_pack(
    corpus: Corpus, core: MelodyVAE, settings: FusionSettings, trials: int = 1, device: str = "cpu"
) -> PackTrainer:
    """A pack of conditional trials, untrained."""
    alike = [Member(None, STYLE_DIM, seed, settings.learning_rate) for seed in range(trials)]
    return PackTrainer(encode_training(corpus, core), settings, alike, device)


def _held_near(fusion: Generator) -> Generator:
    """Untrained maps grow without bound when iterated; a tenth of the weights keeps them finite."""
    with torch.no_grad():
        for weight in fusion.net.weights:
            weight.clamp_(-0.02, 0.02)
    return fusion


def _tunes(count: int) -> np.ndarray:
    """Segments of random notes, each held for about two and a half steps."""
    random = np.random.default_rng(0)
    tokens = random.integers(FIRST_PITCH + 20, FIRST_PITCH + 45, (count, FORM.steps))
    tokens[random.random(tokens.shape) < 0.6] = HOLD
    tokens[:, 0] = FIRST_PITCH + 30
    return tokens.astype(np.uint8)


def make_corpus(scale: int) -> Corpus:
    """Made-up songs of 20 segments, each followed by the next; eight of ten for training."""
    songs, length = max(30, 500 // scale), 20
    song = np.repeat(np.arange(songs), length)
    rows = np.arange(len(song) - 1)
    return Corpus(
        form=FORM,
        tokens=_tunes(len(song)),
        song=song,
        bar=np.tile(np.arange(length), songs),
        song_ids=tuple(map(str, range(songs))),
        split=np.resize([Split.TRAIN] * 8 + [Split.VALIDATION, Split.TEST], songs),
        pairs=np.stack((rows, rows + 1), 1)[song[:-1] == song[1:]],
        struck_again=0,
        content_hash="",
    )


_Point = tuple[str, str, str, float | None, int | None, int]
_KINDS = {
    "method": pl.String,
    "trial": pl.String,
    "configuration": pl.String,
    "lambda": pl.Float64,
    "seed": pl.Int64,
    "iteration": pl.Int32,
}
"""What a `_Point` is made of."""


def _made_up(config: StudyConfig, scale: int) -> Tables:
    """Random metrics and outcomes, of as many points and pairs as a study has."""
    random, count = np.random.default_rng(0), config.evaluation.pairs // scale
    bins = {name: 12 if name == "pitch_class" else 8 for name in STATISTICS}
    songs = random.integers(0, 50, (2, count)).astype(str)
    named = pl.DataFrame({"pair": np.arange(count), "left_song": songs[0], "right_song": songs[1]})
    rows, pairs, influences = [], [], []
    of_song = pl.DataFrame({"song": sorted(map(str, range(50)))})
    for point, source in product(_points(config, scale), (*CHOSEN_ON, *CHOSEN_ON.values())):
        label = dict(zip(_KINDS, point, strict=True))
        labels = [pl.lit(value, _KINDS[name]).alias(name) for name, value in label.items()]
        if point[0] != "real":
            values = {name: random.random() for name in (*COHERENCY, *LIKENESS)}
            far = 0.0 if point[0] == "identity" else float(random.uniform(0.02, 8))
            values |= {axis: far * (4 if "edit" in axis else 1) for axis in AXES}
            influences.append(
                of_song.with_columns(*labels, source=pl.lit(source), influence=pl.lit(1e-3))
            )
            rows += [
                {**label, "source": source, "metric": m, "value": v} for m, v in values.items()
            ]
        elif source != "test":
            continue
        own = named.with_columns(left_song=None, right_song=None) if "prior" in source else named
        own = named.with_columns(right_song="left_song") if point[0] == "real" else own
        measured = _measured(bins, count, random)
        pairs.append(own.with_columns(*measured, *labels, source=pl.lit(source)))
    return (
        pl.DataFrame(rows, infer_schema_length=None),
        pl.concat(pairs).lazy(),
        pl.concat(influences).lazy(),
        bins,
    )


def _points(config: StudyConfig, scale: int) -> list[_Point]:
    plan = config.evaluation
    ours: list[_Point] = [
        ("conditional", trial.id, trial.configuration.id, lambda_, trial.seed, iteration)
        for trial, lambda_, iteration in product(
            list_first_trials(config), plan.lambda_[::scale], plan.iterations
        )
    ]
    rivals: list[_Point] = [
        (setting.method, setting.id, setting.id, setting.value("lambda"), None, iteration)
        for rival in map(plan.rival, plan.rivals[::scale])
        for setting in rival.settings()[::scale]
        for iteration in rival.iterations
    ]
    return [*ours, *rivals, *((name, name, name, None, None, 0) for name in ("identity", "real"))]


def _measured(bins: Mapping[str, int], count: int, random: np.random.Generator) -> list[pl.Series]:
    """What is measured of each pair."""
    scores = [
        pl.Series(name, random.random(count, np.float32)) for name in ("judge", "indistinguishable")
    ]
    scores.append(pl.Series("seam_bin", random.integers(-1, SEAMS, count), pl.Int8))
    return scores + [
        pl.Series(f"{name}_{half}", random.integers(0, size, count), pl.Int8)
        for name, size in bins.items()
        for half in ("left", "right")
    ]
