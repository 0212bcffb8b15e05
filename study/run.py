"""A study from melodies to music: its stages in order, each skipped where its records exist."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from shutil import which

import numpy as np
import polars as pl
import torch
from jaxtyping import Int64

from cf_core.bundle import Bundle, load_bundle
from cf_core.corpus import Corpus, Split, check_grid
from cf_core.errors import ConfigError, UserError
from cf_core.files import AnyPath, place
from cf_core.fuse import Fused
from cf_core.render import write_midi, write_wav
from cf_core.seeding import derive, make_random
from cf_core.training import limit_threads
from evaluation.figures import piano_roll_figure, save
from evaluation.frontier import CHOSEN_ON, FUSIONS
from study.cluster import reached
from study.config import Range, StudyConfig
from study.crew import make_crew
from study.findings import draw, list_findings, say_verdicts, tabulate, write_verdicts
from study.lease import Lease
from study.ledger import Status
from study.page import write_page
from study.parameters import PARAMETERS
from study.prepare import find_corpus, prepare
from study.progress import Reporter
from study.recording import has_references, record_references
from study.select import Choice, select
from study.store import Store
from study.sweep import count_conditional, count_configurations, sweep
from study.tables import TABLES
from study.workbench import Workbench

DRIVER_THREADS = 2
"""Torch threads outside the workers: one number for all machines, so that sums add up alike."""

_EXAMPLE_QUERY = (
    "SELECT trial, lambda, iteration, value, low, high FROM metrics"
    " WHERE metric = 'indistinguishable' AND source = 'test' ORDER BY value DESC LIMIT 10"
)

_EXAMPLE_STYLES = 4

_EXAMPLE_TEMPO = 160.0
"""Quarter notes per minute of the example: that of a dance."""


def plan(config: StudyConfig) -> str:
    """What a run would do, as lines of text; nothing is made or written.

        >>> from study import load_config
        >>> plan(load_config("quickstart")).splitlines()[1]
        'corpus: builtin; segments of 2 bars of 4/4, 2/2, 2/4, 3/4, 3/8, 6/8, 9/8, 12/8'

    Raises `UserError` for what can be seen to be wrong beforehand.
    """
    _foresee(config)
    search, evaluation = config.search, config.evaluation
    trials = count_configurations(config) * len(search.seeds)
    readings = count_configurations(config) + count_conditional(config) * (
        len(evaluation.lambda_) - 1
    )
    # Trials of the first seed are recorded in both schemes.
    recorded = len(search.seeds) + (config.fusion.scheme == "heard")
    points = readings * recorded * len(evaluation.iterations)
    rivals = [evaluation.rival(name) for name in evaluation.rivals]
    settings = sum(len(rival.settings()) for rival in rivals)
    compared = sum(len(rival.settings()) * len(rival.iterations) for rival in rivals)
    pairs = {CHOSEN_ON[source]: evaluation.validation_pairs for source in CHOSEN_ON}
    kept = sum(pairs.get(source, evaluation.pairs) for source in evaluation.latent_sources)
    gigabytes = kept * (points + compared) * 4 * 4 * config.core.latent_dim / 1e9
    searched = ((name, search.of(name)) for name in PARAMETERS)
    space = " × ".join(f"{name} {_shown(values)}" for name, values in searched if values)
    return "\n".join(
        [
            f"study {config.name}, kept in {root(config)}",
            f"corpus: {config.corpus.source}; segments of {config.melody.bars_per_segment} bars"
            f" of {', '.join(config.melody.meters)}",
            f"core: {config.core.latent_dim} latent dimensions, {config.core.steps} steps",
            f"trials: {trials} = {count_configurations(config)} configurations"
            f" ({search.method}: {space}) × seed {', '.join(map(str, search.seeds))};"
            f" up to {config.fusion.steps} steps each, iteration counts"
            f" {', '.join(map(str, evaluation.iterations))}",
            *_tell_writing(config),
            f"rivals: {', '.join(evaluation.rivals) or 'none'}, in {settings} settings with"
            f" {compared} points",
            f"inputs: {evaluation.pairs} pairs of each source (test, prior) and"
            f" {evaluation.validation_pairs} of its validation twin",
            f"latents kept: {evaluation.latents}, up to {gigabytes:,.2f} GB",
            f"workers: {config.execution.workers}, trials in a pack: {config.execution.pack},"
            f" on {config.execution.address or 'a local Ray that the run starts and stops'}",
        ]
    )


def _tell_writing(config: StudyConfig) -> Iterator[str]:
    """What a plan says of the models of notes that write, and of what they write."""
    if config.writes:
        yield f"writer: two models of notes, {config.writer.steps} steps each"
    if config.fusion.scheme == "heard":
        asked = ", ".join(map(str, config.evaluation.edits))
        yield (
            f"outputs: as models of notes hear and write them, {config.fusion.drafts} drafts, price"
            f" {config.fusion.price:g} at λ 1, imbalance {config.fusion.imbalance:g}; trials of"
            f" seed {config.search.seeds[0]} also as on the poster and, where G takes λ, with a λ"
            f" for each pair at {asked} edits"
        )


def _shown(searched: tuple[float | str, ...] | Range) -> str:
    if isinstance(searched, Range):
        return f"{searched.low:g} to {searched.high:g}"
    return ", ".join(map(str, searched))


def root(config: StudyConfig) -> AnyPath:
    """The study's folder. Raises `UserError` where it can't be reached."""
    return place(config.execution.results) / config.name


def run(config: StudyConfig, reporter: Reporter) -> Store:
    """Run a study from its melodies to a bundle, or go on where an earlier run stopped.

        >>> import study
        >>> config = study.load_config("quickstart")
        >>> with study.Reporter() as reporter:  # doctest: +SKIP
        ...     store = study.run_study(config, reporter)

    Raises `UserError` for what the person can mend: settings, melodies, a core below its gate, a
    folder of another study.
    """
    _foresee(config)
    store = Store(root(config))
    with limit_threads(DRIVER_THREADS), reached(config, store.root) as nodes:
        if nodes:
            reporter.say(f"all {nodes} nodes have this code and share {store.root}")
        reporter.stage("Corpus: melodies as segments on a grid")
        corpus = find_corpus(config, reporter)
        store.claim(
            config.identity(corpus.content_hash),
            config.fingerprint(corpus.content_hash),
            config.name,
            config.selection.model_dump(mode="json"),
        )
        with Lease(store.root) as lease:
            return _run(config, corpus, store, reporter, lease)


def _run(
    config: StudyConfig, corpus: Corpus, store: Store, reporter: Reporter, lease: Lease
) -> Store:
    with ExitStack() as stack:
        bench = prepare(config, corpus, store, reporter, make_crew(config.execution, stack))
        _sweep(config, bench, store, reporter, lease)
    reporter.stage("Selection: one trial, chosen on validation songs")
    choice = select(store, config.selection)
    for line in choice.lines():
        reporter.say(line)
    example = fuse_example(store, corpus, config.seed)
    reporter.say(f"example from two test songs: {example}")
    reporter.stage("Findings: coherency against similarity, and verdicts")
    if not has_references(store):
        record_references(bench, store)
    with reporter.job("tables", None):
        tabulate(store, config.evaluation)
    for path in draw(store):
        reporter.say(str(path))
    write_verdicts([store], store.root / "verdicts.csv")
    reporter.stage("Page: every point to be seen and heard")
    page = write_page(store)
    reporter.stage("Summary")
    for line in summary(store, choice, example, page):
        reporter.say(line)
    return store


def _sweep(
    config: StudyConfig, bench: Workbench, store: Store, reporter: Reporter, lease: Lease
) -> None:
    store.inspect()
    if aside := store.list_quarantined():
        reporter.say(f"{len(aside)} damaged or foreign files are in {store.root / 'quarantine'}")
    trials = count_configurations(config) * len(config.search.seeds)
    reporter.stage(f"Jobs: {trials} trials and their rivals, on Ray Tune")
    sweep(config, bench, store, reporter, lease)
    _check_jobs(store, config, reporter)


def run_all(configs: Sequence[StudyConfig], reporter: Reporter) -> list[Store]:
    """Run the studies of several corpora one after another, and join their verdicts.

    Raises `UserError` as `run` does; what can be foreseen of any study, before the first begins.
    """
    for config in configs:
        _foresee(config)
    stores = [run(config, reporter) for config in configs]
    if len(stores) > 1:
        path = place(configs[0].execution.results) / "verdicts.csv"
        write_verdicts(stores, path)
        reporter.stage(f"All {len(stores)} corpora")
        for store in stores:
            for line in say_verdicts(store):
                reporter.say(f"{store.record['name']}: {line}")
        reporter.say(f"verdicts: {path}")
    return stores


def _foresee(config: StudyConfig) -> None:
    """Refuse what would only be refused after the melodies have been read."""
    path, store = config.corpus.path, Store(root(config))
    if path is not None and not path.exists():
        raise ConfigError(f"corpus.source: {path}: no such file or folder")
    if path is not None and path.suffix == ".parquet":
        check_grid(path, config.melody)
    begun = (store.root / "study.json").exists()
    # Known before the melodies: whether the study to start warm from is there.
    identity = config.identity(str(store.record["identity"]["corpus"]) if begun else "")
    if begun:
        store.check(identity)


def fuse_example(store: Store, corpus: Corpus, seed: int) -> AnyPath:
    """Fuse two melodies of test songs with the study's bundle; MIDI, WAV and a picture of it.

    What other styles make of them goes to the table `examples`.
    """
    bundle = load_bundle(store.root / "bundle")
    random = np.random.default_rng(derive(seed, "example"))
    rows = _choose_example(corpus, random)
    songs, inputs = corpus.song[rows], corpus.tokens[rows]
    bars = [(int(bar) + 1, int(bar) + corpus.form.bars_per_segment) for bar in corpus.bar[rows]]
    unfused = Fused(
        form=corpus.form,
        inputs=inputs,
        outputs=inputs,
        bars=(bars[0], bars[1]),
        meter=corpus.form.kinds[corpus.kinds[rows[0]]],
        tempo=_EXAMPLE_TEMPO,
        seed=seed,
        style=(),
        iterations=bundle.iterations,
        lambda_=bundle.lambda_,
        lead=bundle.lead,
    )
    fused = unfused.redraw(bundle, seed)
    folder = store.root / "example"
    for name, notes in (("inputs", fused.input_notes), ("outputs", fused.output_notes)):
        write_midi(notes, folder / f"{name}.mid", fused.tempo, fused.meter)
        write_wav(notes, folder / f"{name}.wav", fused.tempo)
    names = (corpus.song_ids[songs[0]], corpus.song_ids[songs[1]])
    save(piano_roll_figure(fused.inputs, fused.outputs, fused.form, names), folder / "piano-roll")
    _record_styles(store, fused, bundle, names)
    return folder


def _choose_example(corpus: Corpus, random: np.random.Generator) -> Int64[np.ndarray, "2"]:
    """The last segment of a test song, and the first of another with bars of the same kind."""
    test = corpus.segments(Split.TEST)
    songs = np.unique(corpus.song[test])
    left = np.flatnonzero(corpus.song == random.choice(songs))[-1]
    others = test[
        (corpus.song[test] != corpus.song[left]) & (corpus.kinds[test] == corpus.kinds[left])
    ]
    if not len(others):  # no other test song has such bars
        return _choose_example(corpus, random)
    song = random.choice(np.unique(corpus.song[others]))
    return np.array([left, others[corpus.song[others] == song][0]])


def _record_styles(store: Store, fused: Fused, bundle: Bundle, songs: tuple[str, str]) -> None:
    """Write the inputs and what the bundle makes of them in several styles."""
    size = bundle.generator.style_dim
    random = make_random(fused.seed, "example", "styles")
    styles = torch.rand(_EXAMPLE_STYLES if size else 1, size, generator=random).numpy()
    shown = [("inputs", fused.inputs)]
    for style in styles:
        label = f"s = {', '.join(f'{x:.2f}' for x in style)}" if size else "no style"
        shown.append((label, fused.redraw(bundle, fused.seed, style.tolist()).outputs))
    trial = {
        "trial": str(bundle.record["trial"]),
        "configuration": str(bundle.record["configuration"]),
        "lambda": bundle.record["lambda"],
        "iteration": bundle.iterations,
        "left_song": songs[0],
        "right_song": songs[1],
    }
    rows = [
        {**trial, "row": row, "label": label, "left": pair[0].tolist(), "right": pair[1].tolist()}
        for row, (label, pair) in enumerate(shown)
    ]
    store.write("examples", "all", rows)


def summary(store: Store, choice: Choice, example: AnyPath, page: AnyPath) -> list[str]:
    """What was run, what was found, where everything is, and what to type next."""
    called = Path(sys.argv[0])
    command = called if called.name == "cf-study" and not which("cf-study") else "cf-study"
    statuses = store.scan("trials").collect()
    counts = statuses.group_by("method", "status").len().sort("method", "status").iter_rows()
    lines = ["run: " + ", ".join(f"{n} {method} {status}" for method, status, n in counts)]
    lines += [f"found: {line}" for line in list_findings(store)]
    lines += [
        f"tables: {store.root}/{{{','.join(TABLES)}}}",
        f"verdicts: {store.root / 'verdicts.csv'}",
        f"figures: {store.root / 'figures'}",
        f"bundle: {choice.bundle} ({choice.trial}, λ {choice.lambda_:g},"
        f" iterations {choice.iterations})",
        f"listen: {example / 'inputs.wav'}, then {example / 'outputs.wav'}",
        "next:",
        f'  {command} query {store.root} "{_EXAMPLE_QUERY}"',
        f"  {command} fuse LEFT.mid RIGHT.mid --bundle {choice.bundle} --output fused.mid",
        f"see and hear all of it: open {page} in a browser",
    ]
    return lines


def _check_jobs(store: Store, config: StudyConfig, reporter: Reporter) -> None:
    """Say what failed; stop where no trial is left, or none of what it is compared with."""
    over = store.scan("trials").collect()
    failed = over.filter(pl.col("status") != Status.DONE)
    for trial, status, reason in failed.select("trial", "status", "reason").iter_rows():
        reporter.say(f"{trial} {status}: {reason}")
    done = set(over.filter(pl.col("status") == Status.DONE)["method"])
    kinds: dict[str, set[str]] = {
        "trial": set(FUSIONS),
        "setting of a rival": {s.method for s in config.evaluation.settings()},
    }
    for name, methods in kinds.items():
        if methods and not methods & done:
            raise UserError(
                f"{store.root}: no {name} came to its end, so there is nothing to compare; mend"
                " the reasons above and run the study again"
            )
