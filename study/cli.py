"""The commands: each parses, calls and prints. Their examples assume a study named quickstart.

It is long because the options of all commands, with their helps, stand here.
"""

import json
import shutil
import signal
import sys
import warnings
from collections import Counter
from contextlib import ExitStack, suppress
from difflib import get_close_matches
from importlib.metadata import version
from io import TextIOWrapper
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import study
from cf_core.errors import UserError, say_missing
from cf_core.files import replacing

if TYPE_CHECKING:
    import polars as pl

    from cf_core.bundle import Bundle
    from cf_core.files import AnyPath
    from cf_core.fuse import BarRange, Fused
    from study.store import Store

app = typer.Typer(
    name="cf-study",
    help="Study Connective Fusion: two melodies transformed so that they join.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[
    str,
    typer.Argument(metavar="STUDY", help="Its folder or URI, or a bare name for results/NAME."),
]


_OF_STUDIES = ("cmaes", "matplotlib", "moocore", "optuna", "polars", "pydantic", "ray", "yaml")
"""Modules that the extra `study` brings."""
_OF_SERVING = ("fastapi", "uvicorn")
"""Modules that the extra `serve` brings."""
_MOST_DRAWN = 1000
"""Most times that a fusion is drawn."""


def _print_version(wanted: bool) -> None:
    if wanted:
        _say(f"cf-study {version('connective-fusion')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Study Connective Fusion: two melodies transformed so that they join."""


def main() -> None:
    """Run the command line: exit status 2 after one line for bad input, 130 if interrupted."""
    # Rivals of the user's own are found beside the configuration that names them.
    sys.path.insert(0, str(Path.cwd()))
    # Not every terminal has a λ, or the lines of tables.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    # Schedulers of clusters end what they take machines from so: as clean a stop as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            app()
    except UserError as error:
        sys.stderr.write(f"error: {_printable(' '.join(str(error).split()))}\n")
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name not in _OF_STUDIES + _OF_SERVING:
            raise
        what, extra = "running and reading studies", "study"
        if error.name in _OF_SERVING:
            what, extra = "serving", "serve"
        sys.stderr.write(f"error: {say_missing(error.name, what, extra)}\n")
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:
            sys.stderr.write("interrupted: to go on, give the same command again\n")
        raise


@app.command(epilog="Example: cf-study ingest tunes.zip --output tunes.parquet")
def ingest(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder, zip archive or file of melodies.")
    ],
    output: Annotated[Path, typer.Option(help="Corpus file to write; must end in .parquet.")],
    include: Annotated[
        str | None, typer.Option(help="Glob that a file's path must match from its end.")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="Part of scores that have several: its name, as errors list it, or 1, 2, …"
        ),
    ] = None,
    steps_per_beat: Annotated[
        int, typer.Option(help="Grid steps per quarter note; 12 also holds triplets.")
    ] = 4,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that read at one time; as many as CPUs if not given."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster that reads instead.")
    ] = None,
) -> None:
    """Read MIDI, MusicXML or ABC files into a corpus.

    What was left out, and why, is listed beside it in NAME.rejected.parquet. If it is stopped, the
    same command goes on where it was.
    """
    if output.suffix != ".parquet":
        raise UserError(f"--output {output}: must end in .parquet")
    with ExitStack() as stack:
        mapper = study.processes(processes)
        if address is not None:
            mapper = stack.enter_context(study.ray_tasks(address))
        reporter = stack.enter_context(study.Reporter())
        job = stack.enter_context(reporter.job("songs", None))
        report = study.ingest(
            source,
            output,
            include=include,
            part=part,
            steps_per_beat=steps_per_beat,
            progress=job.update,
            mapper=mapper,
        )
    _say(str(report), f"wrote {output}", f"wrote {output.with_suffix('.rejected.parquet')}")


@app.command(epilog="Example: cf-study run quickstart --set 'search.lambda=[0.1, 1]' --dry-run")
def run(
    source: Annotated[
        str, typer.Argument(metavar="CONFIG", help="YAML file, or the name of a built-in study.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Another value for a key; may be repeated."
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Existing Ray cluster: auto, or HOST:PORT.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Tell progress as lines of JSON, for programs.")
    ] = False,
) -> None:
    """Run a study, or go on with it where it stopped.

    It uses GPUs where execution.resources asks for them. Training and evaluation have been run on
    one by themselves, a whole study has not yet.
    """
    from cf_core.training import use_huge_pages  # noqa: PLC0415  (slow)

    use_huge_pages()
    overrides = [] if address is None else [f"execution.address={json.dumps(address)}"]
    configs = study.load_configs(source, [*(settings or []), *overrides])
    if dry_run:
        _say("\n\n".join(map(study.plan_study, configs)))
        return
    with study.Reporter(as_json=as_json) as reporter:
        study.run_studies(configs, reporter)


@app.command(epilog="Example: cf-study status quickstart lambda0.3-style4-seed0")
def status(
    folder: Folder,
    trial: Annotated[
        str | None,
        typer.Argument(
            metavar="TRIAL", help="A trial or a setting of a rival, to see all that went wrong."
        ),
    ] = None,
) -> None:
    """Say which trials are done, which failed, and why."""
    store = _open(folder)
    jobs = study.list_jobs(store)
    if trial is not None:
        _say(*_tell_trial(store, jobs, trial))
        return
    counts = Counter(jobs["status"].to_list())
    _say(f"{jobs.height} jobs: " + ", ".join(f"{n} {state}" for state, n in counts.most_common()))
    for name, state, reason, attempt, seconds in jobs.iter_rows():
        times = "" if seconds is None else f"  {seconds:.0f} s, attempt {attempt}"
        _say(f"  {state:8}  {name}{times}" + (f"  {reason}" if reason else ""))
    if aside := store.list_quarantined():
        _say(f"{len(aside)} damaged or foreign files are in {store.root / 'quarantine'}")


def _tell_trial(store: "Store", jobs: "pl.DataFrame", trial: str) -> list[str]:
    """How one trial stands, and each of its failures with its whole traceback."""
    rows = jobs.filter(jobs["trial"] == trial)
    if rows.is_empty():
        near = get_close_matches(trial, jobs["trial"].to_list(), 1)
        hint = f"; did you mean {near[0]}?" if near else "; `cf-study status STUDY` lists all"
        raise UserError(f"{trial}: the study has no such trial{hint}")
    _, state, reason, attempt, _ = rows.row(0)
    lines = [f"{trial}: {state}" + (f" after {attempt} attempts" if (attempt or 0) > 1 else "")]
    lines += [f"  {reason}"] if reason else []
    for failure in study.list_failures(store, trial).iter_rows(named=True):
        when = f"{failure['failed_at']:%Y-%m-%d %H:%M:%S} UTC, {failure['host']}"
        lines += ["", f"attempt {failure['attempt']} failed ({when}): {failure['reason']}"]
        lines.append(failure["traceback"] or "  no traceback: the worker died without a word")
    return lines


@app.command(epilog="Example: cf-study query quickstart 'SELECT trial, status FROM trials'")
def query(
    folder: Folder,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A query in the SQL of Polars.")],
    output: Annotated[
        Path | None, typer.Option(help="File to write instead; must end in .csv or .parquet.")
    ] = None,
) -> None:
    """Ask the tables (trials, metrics, verdicts, ...) in SQL."""
    if output is not None and output.suffix not in (".csv", ".parquet"):
        raise UserError(f"--output {output}: must end in .csv or .parquet")
    frame = _open(folder).sql(sql)
    if output is None:
        _print_table(frame)
    else:
        _write_table(frame, output)
        _say(f"wrote {output}: {frame.height} rows")


@app.command(epilog="Example: cf-study compact quickstart")
def compact(folder: Folder) -> None:
    """Merge the many files of each table into few.

    Queries get faster, and nothing else changes. It may be stopped at any moment, but not begun
    while the study runs.
    """
    from study.lease import Lease  # noqa: PLC0415  (slow)

    store, done = _open(folder), 0
    store.need_whole("files to merge")
    with Lease(store.root):
        for table, files, size in store.compact():
            done += 1
            sizes = " -> ".join(f"{each / 1e6:,.1f}" for each in size)
            _say(f"{table}: {files[0]:,} -> {files[1]:,} files, {sizes} MB")
    if not done:
        _say(f"{store.root}: nothing to compact")


@app.command(epilog="Example: cf-study frontier quickstart --meter 6/8")
def frontier(
    folder: Folder,
    meter: Annotated[
        str | None,
        typer.Option(help="Compare the pairs in this meter alone, in figures and verdicts."),
    ] = None,
) -> None:
    """Draw all figures again, from the tables alone.

    Unless it is for one meter, it also tells the findings again.
    """
    store = _open(folder)
    if meter is None:
        for line in study.list_findings(store):
            _say(f"found: {line}")
    for path in study.draw_figures(store, meter):
        _say(f"wrote {path}")


@app.command(epilog="Example: cf-study page quickstart")
def page(folder: Folder) -> None:
    """Write report.html: every point, to be seen and heard."""
    store = _open(folder)
    _use_one_thread()
    _say(f"{store.root}: collecting its points and their notes, which takes a while")
    _say(f"wrote {study.write_page(store)}")


@app.command(epilog="Example: cf-study listening listening-*.csv")
def listening(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES", help="CSV files of a page's blind test.")
    ],
) -> None:
    """Count which methods listeners preferred."""
    _print_table(study.count_answers(files))


@app.command(epilog="Example: cf-study select quickstart --where 'larger_edit_distance <= 12'")
def select(
    folder: Folder,
    maximise: Annotated[
        str | None,
        typer.Option(help="Metric whose highest value wins, instead of the study's own."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Condition to meet, instead of the study's own; may be repeated.",
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder of the bundle; STUDY/bundle unless given.")
    ] = None,
) -> None:
    """Choose a trial on validation songs; write its bundle.

    The rule is the study's own (`selection` of its configuration) unless options say otherwise.
    """
    store = _open(folder)
    given = {"maximise": maximise, "where": where or None}
    rule = study.read_rule(store, **{name: x for name, x in given.items() if x is not None})
    choice = study.select_bundle(store, rule, None if output is None else study.place(output))
    _say(*choice.lines(), f"wrote {choice.bundle}")


@app.command(epilog="Example: cf-study publish quickstart --output published")
def publish(
    studies: Annotated[
        list[str],
        typer.Argument(metavar="STUDIES", help="Folders, URIs or bare names of finished studies."),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Write finished studies to a folder that others can cite.

    It holds their tables and no model. An earlier publication there is replaced.
    """
    done = study.publish_studies([_open(each) for each in studies], output)
    largest = done.largest
    _say(
        f"wrote {done.folder}: {done.size / 1e6:,.2f} MB; the largest table is {largest.table} of"
        f" {largest.study}, {largest.size / 1e6:,.2f} MB",
        f"to draw its figures: cf-study frontier {done.folder / largest.study}",
    )


@app.command(epilog="Example: cf-study fuse a.mid b.abc --lambda 0.1 --output ab.mid")
def fuse(
    left: Annotated[Path, typer.Argument(metavar="LEFT", help="MIDI, MusicXML or ABC file.")],
    right: Annotated[Path, typer.Argument(metavar="RIGHT", help="Another, to join to its right.")],
    *,
    output: Annotated[Path, typer.Option(help="MIDI file to write; must end in .mid.")],
    bundle: Annotated[
        str | None,
        typer.Option(help="Folder of a bundle, as select writes it; the ready-made one if none."),
    ] = None,
    left_bars: Annotated[
        str | None,
        typer.Option(help="Bars of LEFT, such as 5-6 (0: pickup); else its last whole segment."),
    ] = None,
    right_bars: Annotated[
        str | None, typer.Option(help="Bars of RIGHT; else its first whole segment.")
    ] = None,
    seam: Annotated[
        Literal["ends", "auto"],
        typer.Option(
            help="Where to leave LEFT and enter RIGHT: at their ends, or where they fit best within"
            " four bars of these."
        ),
    ] = "ends",
    whole: Annotated[
        bool,
        typer.Option(help="Write the whole tune, or the fused segments alone."),
    ] = True,
    transpose_right: Annotated[
        str,
        typer.Option(
            metavar="auto|none|NUMBER",
            help="Semitones by which RIGHT is moved; auto takes the interval that fits best.",
        ),
    ] = "none",
    chords: Annotated[
        Literal["top", "bottom", "reject"],
        typer.Option(help="Which note of chords to take; bars with chords are rejected if none."),
    ] = "reject",
    alternatives: Annotated[
        int,
        typer.Option(
            help="How many times to draw, with as many seeds: each fusion that differs is written"
            " to a file of its own, such as fused-1.mid for the best fit."
        ),
    ] = 1,
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            help="Part of files that have several, by name or 1, 2, …: once for both files, or"
            " twice for LEFT and RIGHT.",
        ),
    ] = None,
    style: Annotated[
        str | None, typer.Option(help="Numbers in 0…1, such as 0.2,0.8; drawn if not given.")
    ] = None,
    lambda_: Annotated[
        float | None,
        typer.Option(
            "--lambda",
            metavar="NUMBER",
            help="How far it may go: small is far from the inputs, large near them; the bundle's"
            " own if not given.",
        ),
    ] = None,
    edits: Annotated[
        int | None,
        typer.Option(
            help="How far in notes: about so many grid steps change. In place of --lambda."
        ),
    ] = None,
    lead: Annotated[
        str | None,
        typer.Option(
            metavar="left|even|right|NUMBER",
            help="Who leads and so stays as it is: LEFT (0), RIGHT (1), or neither (0.5).",
        ),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Times to transform; the bundle's own if not given.")
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the notes that are drawn, and of the style if none is given."),
    ] = 0,
    tempo: Annotated[
        float | None, typer.Option(help="Quarter notes per minute; that of LEFT if not given.")
    ] = None,
    wav: Annotated[bool, typer.Option("--wav", help="Also write it as sound.")] = False,
    picture: Annotated[
        bool, typer.Option("--picture", help="Also draw it, before and after.")
    ] = False,
) -> None:
    """Fuse the end of one melody with the beginning of another."""
    from cf_core.render import check_midi_name  # noqa: PLC0415  (slow)

    left_part, right_part = _parts(part or [])
    check_midi_name(output)
    if not 1 <= alternatives <= _MOST_DRAWN:
        raise UserError(f"--alternatives {alternatives}: must be 1 to {_MOST_DRAWN}")
    numbered = [output.with_stem(f"{output.stem}-{n}") for n in range(1, alternatives + 1)]
    _spare(left, right, [output] if alternatives == 1 else numbered)
    _use_one_thread()
    loaded = study.load_bundle(None if bundle is None else study.place(bundle))
    first = study.fuse_files(
        left,
        right,
        loaded,
        left_bars=_bars("--left-bars", left_bars),
        right_bars=_bars("--right-bars", right_bars),
        seam=seam,
        left_part=left_part,
        right_part=right_part,
        chords=chords,
        transpose_right=_interval(transpose_right),
        style=(chosen := _style(style)),
        lambda_=lambda_,
        edits=edits,
        lead=_lead(lead),
        iterations=iterations,
        seed=seed,
        tempo=tempo,
    )
    if alternatives == 1:
        made, paths, lines = [first], [output], _account(first, left, right, whole=whole)
        if first.lambda_ is not None and edits != 0 and not any(first.edits):
            lines.append(
                "nothing changed at this λ; --edits 8 goes farther"
                if edits is None
                else f"nothing changed, as no λ comes nearer to {edits} edits with this seed and"
                " style; --alternatives 5 draws others"
            )
    else:
        made = _redraw(first, loaded, range(seed + 1, seed + alternatives), chosen, edits)
        paths = numbered[: len(made)]
        lines = _account_shared(first, left, right, whole=whole)
        lines += [_account_one(fused, path) for fused, path in zip(made, paths, strict=True)]
        lines.append(_account_draws(alternatives, len(made)))
    written = [
        file
        for fused, path in zip(made, paths, strict=True)
        for file in _write_fused(fused, path, (left, right), whole=whole, wav=wav, picture=picture)
    ]
    _say(*lines, *(f"wrote {path}" for path in written))


@app.command(epilog="Example: cf-study export results/quickstart/bundle --output onnx")
def export(
    bundle: Annotated[
        str | None,
        typer.Argument(metavar="BUNDLE", help="Folder of a bundle; the ready-made one if none."),
    ] = None,
    *,
    output: Annotated[Path, typer.Option(help="Folder to write; an earlier export is replaced.")],
) -> None:
    """Write a bundle as ONNX graphs, for programs in any language.

    The folder also has a card, which says what the numbers mean, and vectors to test with.
    """
    source = study.load_bundle(None if bundle is None else study.place(bundle))
    with study.Reporter() as reporter, reporter.job("graphs", None) as job:
        sizes = study.export_bundle(source, output, job.update)
    _say(f"wrote {output}: {sum(sizes.values()) / 1e6:.1f} MB")
    _say(*(f"  {name}: {size / 1e6:.2f} MB" for name, size in sizes.items()))


@app.command(epilog="Example: cf-study serve --bundle results/quickstart/bundle --port 8000")
def serve(
    bundle: Annotated[
        str | None,
        typer.Option(help="Folder of a bundle, as select writes it; the ready-made one if none."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than the loopback let strangers in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that answer.")] = 1,
) -> None:
    """Fuse melodies over HTTP, until interrupted.

    POST /fuse takes two files or two lists of notes, GET /capabilities says what can be asked. A
    request may have 4 MiB (512 KiB in JSON) and take 30 seconds, a melody 4,000 notes; a worker
    has at most 16 requests at one time.
    """
    study.serve_bundle(None if bundle is None else study.place(bundle), host, port, workers)


def _use_one_thread() -> None:
    """As `study.serve` does: products are small, and threads would wait for each other."""
    import torch  # noqa: PLC0415  (slow)

    torch.set_num_threads(1)


def _spare(left: Path, right: Path, outputs: list[Path]) -> None:
    """Refuse to write over what is to be fused."""
    for output, (half, path) in product(outputs, (("LEFT", left), ("RIGHT", right))):
        with suppress(OSError):  # one of them does not exist
            if output.samefile(path):
                raise UserError(f"--output {output}: would replace {half}; give another name")


def _redraw(
    first: "Fused", bundle: "Bundle", seeds: range, style: list[float] | None, edits: int | None
) -> "list[Fused]":
    """A fusion, and those by other seeds whose notes differ; the best fit first."""
    made = {first.outputs.tobytes(): first}
    with study.Reporter() as reporter, reporter.job("alternatives", len(seeds)) as job:
        for done, seed in enumerate(seeds, 1):
            other = first.redraw(bundle, seed, style, edits)
            made.setdefault(other.outputs.tobytes(), other)
            job.update(done)
    return sorted(made.values(), key=lambda fused: -(fused.fit or 0.0))


def _write_fused(
    fused: "Fused", path: Path, names: tuple[Path, Path], *, whole: bool, wav: bool, picture: bool
) -> "list[AnyPath]":
    """Write a fused melody as MIDI, and as sound and picture if asked for."""
    notes, meters, markers = fused.tune if whole else fused.excerpt
    study.write_midi(notes, path, fused.tempo, meters, markers)
    written: list[AnyPath] = [path]
    if wav:
        written.append(path.with_suffix(".wav"))
        study.write_wav(notes, written[-1], fused.tempo)
    if picture:
        from evaluation.figures import piano_roll_figure, save  # noqa: PLC0415  (slow)

        shown = names[0].name, names[1].name
        figure = piano_roll_figure(fused.inputs, fused.outputs, fused.form, shown)
        written += save(figure, path.with_suffix(""))
    return written


def _account(fused: "Fused", left: Path, right: Path, *, whole: bool) -> list[str]:
    """Tell what was fused, how, and how far the notes moved."""
    steps = fused.form.lengths[fused.form.find_kind(fused.meter)]
    taken = [
        f"{half}: {count} of {steps} grid steps edited"
        for half, count in zip(_account_halves(fused, left, right), fused.edits, strict=True)
    ]
    lambda_ = "fixed" if fused.lambda_ is None else fused.lambda_
    lead = "" if fused.lead is None else f", lead {fused.lead:g}"
    how = f"{_account_draw(fused)}, λ {lambda_}, iterations {fused.iterations}{lead}"
    return [
        *taken,
        f"{how}, tempo {fused.tempo:g}",
        *_account_tune(fused, left, right, whole=whole),
    ]


def _account_shared(fused: "Fused", left: Path, right: Path, *, whole: bool) -> list[str]:
    """Tell what alternatives have in common."""
    tune = _account_tune(fused, left, right, whole=whole)
    return [*_account_halves(fused, left, right), *tune]


def _account_halves(fused: "Fused", left: Path, right: Path) -> list[str]:
    """Tell which bars were taken of which file, and of which tune where it holds several."""
    return [
        f"{path}{'' if tune is None else f', {tune}'}, bars {first}-{last}"
        for path, tune, (first, last) in zip((left, right), fused.tunes, fused.bars, strict=True)
    ]


def _account_one(fused: "Fused", path: Path) -> str:
    """Tell of one alternative what sets it apart."""
    fit = "" if fused.fit is None else f", fit {fused.fit:.1f} nats"
    left, right = fused.edits
    return f"{path}: {_account_draw(fused)}, {left} + {right} grid steps edited{fit}"


def _account_draws(drawn: int, different: int) -> str:
    """Tell how many alternatives there are, and what to do if these are too few."""
    told = f"{drawn} fusions drawn, of which {different} differ"
    hint = "; for others, draw more, or change how far to go (--edits)"
    return told if drawn == different else told + hint


def _account_tune(fused: "Fused", left: Path, right: Path, *, whole: bool) -> list[str]:
    """Tell how far the right piece was moved, where the seam is, and what the tune leaves out."""
    lines = []
    if fused.transposed:
        lines.append(f"the right piece moved by {fused.transposed:+d} semitones")
    first, last = fused.bars_in_tune
    around = sum(len(passage.bars) for passage in fused.around)
    if whole and around:
        seam = first + fused.form.bars_per_segment
        lines.append(
            f"whole tune: {around + last - first + 1} bars, of which {first}-{last} are fused; the"
            f" seam is between bars {seam - 1} and {seam}"
        )
    left_out = [
        f"{path}, bar{f's {bars[0]}-{bars[1]}' if bars[0] < bars[1] else f' {bars[0]}'}"
        for path, bars in zip((left, right), fused.left_out, strict=True)
        if bars is not None
    ]
    if whole and left_out:
        lines.append(f"left out of the whole tune: {'; '.join(left_out)}")
    return lines


def _account_draw(fused: "Fused") -> str:
    """Tell what was drawn, so that it can be asked for again."""
    style = ",".join(f"{value:g}" for value in fused.style) or "none"
    return f"seed {fused.seed}, style {style}"


def _open(folder: str) -> "Store":
    if "://" in folder:
        return study.open(folder)
    path = Path(folder)
    if path.exists() or path.name != folder:
        return study.open(path)
    results = Path("results").resolve()
    if not (results / folder).exists():
        known = sorted(found.parent.name for found in results.glob("*/study.json"))
        raise UserError(
            f"{folder}: no study of that name in {results}, where there are:"
            f" {', '.join(known) or 'none'}; give one of them, or the folder of a study"
        )
    return study.open(Path("results", folder))


def _parts(parts: list[str]) -> tuple[str | None, str | None]:
    if len(parts) > 2:
        raise UserError(f"--part: given {len(parts)} times; give it once, or for LEFT and RIGHT")
    return (parts[0], parts[-1]) if parts else (None, None)


def _bars(option: str, text: str | None) -> "BarRange | None":
    if text is None:
        return None
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and len(text) < 20):
        raise UserError(f"{option} {text}: must be two bar numbers, such as 5-6")
    return int(first), int(last)


def _style(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"--style {text}: must be numbers, such as 0.2,0.8") from None


def _interval(text: str) -> "int | Literal['auto']":
    """Read a transposition, as a word or a number of semitones."""
    if text == "auto":
        return "auto"
    try:
        return 0 if text == "none" else int(text)
    except ValueError:
        raise UserError(
            f"--transpose-right {text}: must be auto, none or a number of semitones, such as -3"
        ) from None


def _lead(text: str | None) -> float | None:
    """Read a lead, as a word or a number."""
    from cf_core.fuse import LEADS  # noqa: PLC0415  (slow)

    if text is None or text in LEADS:
        return None if text is None else LEADS[text]
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"--lead {text}: must be left, even, right or a number in 0…1, such as 0.25"
        ) from None


def _print_table(frame: "pl.DataFrame") -> None:
    import polars as pl  # noqa: PLC0415  (slow)

    width = shutil.get_terminal_size((1000, 24)).columns
    with pl.Config(tbl_cols=-1, tbl_rows=100, tbl_width_chars=width, fmt_str_lengths=80):
        _say(str(frame))


def _write_table(frame: "pl.DataFrame", path: Path) -> None:
    if path.suffix == ".csv" and any(kind.is_nested() for kind in frame.dtypes):
        raise UserError(f"{path}: CSV can't hold lists; write .parquet, or leave those columns out")
    with replacing(path) as temporary:
        if path.suffix == ".csv":
            frame.write_csv(temporary)
        else:
            frame.write_parquet(temporary)


def _warn(message: Warning | str, category: type[Warning], *_where: Any, **_more: Any) -> None:
    # Warnings of libraries are for those who can change the code.
    if issubclass(category, study.QuarantineWarning):
        sys.stderr.write(f"warning: {_printable(str(message))}\n")


def _say(*lines: str) -> None:
    # Flushed, so that a reader that has gone away is noticed here and not at exit.
    print(*map(_printable, lines), sep="\n", flush=True)


def _printable(text: str) -> str:
    """Replace what could steer a terminal: names come from files of strangers."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
