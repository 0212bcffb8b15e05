"""It is long, since every command has its section."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from fractions import Fraction
from importlib.metadata import version
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import NamedTuple

import jaxtyping
import polars as pl
import pytest
import torch
from typer.models import CommandInfo

import study
from cf_core.bundle import save_bundle
from cf_core.files import place
from cf_core.melody import Note
from cf_core.readers import read_file
from cf_core.render import write_midi
from study import cli
from study.config import StudyConfig, load_config
from study.ledger import Failure, Ledger
from study.search import list_first_trials
from study.store import Store
from tests.conftest import MakeBundle, folder

ROOT = Path(__file__).parent.parent
CONFIG = StudyConfig.model_validate({"name": "tiny", "core": {"latent_dim": 2}})
TWO_PARTS = """<?xml version="1.0"?>
<score-partwise version="4.0"><part-list>
<score-part id="P1"><part-name>Voice</part-name></score-part>
<score-part id="P2"><part-name>Piano</part-name></score-part>
</part-list>
{}
</score-partwise>"""
MEASURES = """<part id="{}"><measure number="1">
<attributes><divisions>1</divisions><time><beats>4</beats><beat-type>4</beat-type></time></attributes>
{}</measure><measure number="2">{}</measure></part>"""
NOTE = """<note><pitch><step>{}</step><octave>4</octave></pitch><duration>4</duration>
<type>whole</type></note>"""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def cf_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """The command line, run in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["cf-study", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        code = end.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


def _refused(outcome: Outcome, *words: str) -> None:
    """Bad input ends in one line on standard error, and exit status 2."""
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _midi(path: Path, *pitches: int, meter: str = "4/4") -> Path:
    notes = [Note(Fraction(i), Fraction(1), pitch) for i, pitch in enumerate(pitches)]
    write_midi(notes, path, 100.0, meter)
    return path


# ---- all commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", cli.app.registered_commands, ids=lambda c: c.callback.__name__)
def test_help_shows_an_example(cf_study: Run, command: CommandInfo) -> None:
    assert command.callback is not None
    outcome = cf_study(command.callback.__name__, "--help")
    assert outcome.code == 0
    assert f"Example: cf-study {command.callback.__name__} " in outcome.out


def test_the_example_of_status_names_a_trial_of_the_quickstart(cf_study: Run) -> None:
    shown = cf_study("status", "-h").out
    (example,) = re.findall("Example: cf-study status quickstart (.*)", shown)
    assert example in [trial.id for trial in list_first_trials(load_config("quickstart"))]


def test_the_commands_are_those_promised() -> None:
    names = [
        command.callback.__name__ for command in cli.app.registered_commands if command.callback
    ]
    assert names == [
        "ingest", "run", "status", "query", "compact", "frontier", "page", "listening", "select",
        "publish", "fuse", "export", "serve",
    ]  # fmt: skip


def test_every_call_behind_a_command_is_there_and_documented() -> None:
    for name in study.__all__:
        assert getattr(study, name).__doc__, name


def test_help_starts_up_without_what_is_slow() -> None:
    program = "import sys, study.cli; print({'torch', 'ray', 'polars', 'music21'} & {*sys.modules})"
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "set()\n"


def test_interrupted(cf_study: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def press_control_c(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_open", press_control_c)
    outcome = cf_study("status", "tiny")
    assert outcome.code == 130
    assert outcome.err.startswith("interrupted: to go on")
    assert outcome.err.count("\n") == 1


@pytest.mark.slow
def test_a_reader_that_went_away(store: Store) -> None:
    end, pipe = os.pipe()
    os.close(end)
    program = "from study.cli import main; main()"
    arguments = ["query", str(store.root), "SELECT trial FROM trials"]
    gone = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        stdout=pipe,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(pipe)
    assert gone.returncode == 1
    assert gone.stderr == b""


# ---- ingest and run ------------------------------------------------------------------------------


def test_a_corrupt_file_among_good_ones_is_recorded_and_skipped(
    cf_study: Run, tmp_path: Path
) -> None:
    (tmp_path / "tunes").mkdir()
    _midi(tmp_path / "tunes" / "good.mid", *range(60, 76))
    whole = _midi(tmp_path / "tunes" / "torn.mid", *range(60, 76)).read_bytes()
    (tmp_path / "tunes" / "torn.mid").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "tunes" / "noise.mid").write_bytes(bytes(range(256)))
    outcome = cf_study("ingest", "tunes", "--output", "tunes.parquet")
    assert outcome.code == 0
    assert "1 songs" in outcome.out
    assert set(pl.read_parquet("tunes.parquet")["song_id"]) == {"good"}
    rejected = pl.read_parquet("tunes.rejected.parquet").filter(pl.col("bar").is_null())
    assert set(rejected["id"]) == {"torn", "noise"}
    assert set(rejected["reason"]) == {"unreadable"}


def test_a_folder_without_melodies(cf_study: Run, tmp_path: Path) -> None:
    (tmp_path / "tunes").mkdir()
    (tmp_path / "tunes" / "readme.txt").write_text("none here")
    outcome = cf_study("ingest", "tunes", "--output", "tunes.parquet")
    _refused(outcome, "tunes", ".mid", ".abc")
    assert _files(tmp_path) == {"tunes/readme.txt"}


def test_an_ingest_into_the_wrong_kind_of_file(cf_study: Run) -> None:
    _refused(cf_study("ingest", "tunes", "--output", "tunes.csv"), "must end in .parquet")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "serach.lambda=[1]"], ["unknown key serach"]),
        (["--set", "search.lamda=[1]"], ["search.lamda", "did you mean search.lambda?"]),
        (["--set", "seed=one"], ["seed", '"one"']),
        (["--set", "search.lambda=1"], ["search.lambda", "list"]),
        (["--set", "seed"], ["dotted.key=value"]),
        (["--set", "corpus.source=$CF_NOWHERE/x.zip"], ["CF_NOWHERE", "not set"]),
        (["--set", "corpus.source=nowhere.zip"], ["nowhere.zip"]),
        (
            ["--dry-run", "--set", "search.method=tpe", "--set", "search.warm_start=nowhere"],
            ["search.warm_start: nowhere", "not the folder of a study"],
        ),
    ],
)
def test_a_config_with_a_mistake(
    cf_study: Run, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    _refused(cf_study("run", "quickstart", *arguments), *words)
    assert not _files(tmp_path)


def test_a_study_that_does_not_exist(cf_study: Run) -> None:
    _refused(cf_study("run", "quikstart", "--dry-run"), "quikstart", "quickstart")


def test_a_dry_run_prints_the_plan_and_makes_nothing(cf_study: Run, tmp_path: Path) -> None:
    outcome = cf_study(
        "run", "quickstart", "--dry-run", "--set", "search.seeds=[0, 1]", "--address", "ray://a:1"
    )
    assert outcome.code == 0
    assert (
        "trials: 4 = 2 configurations (grid: lambda 0.3, conditional × style_dim 4)"
        " × seed 0, 1" in outcome.out
    )
    assert "ray://a:1" in outcome.out
    assert not _files(tmp_path)


def test_a_corpus_too_small_to_split(cf_study: Run, tmp_path: Path) -> None:
    _midi(tmp_path / "only.mid", *range(60, 76))
    outcome = cf_study("run", "quickstart", "--set", "corpus.source=only.mid")
    _refused(outcome, "too small to split", "add songs")
    assert not (tmp_path / "results" / "quickstart").exists()


# ---- status, query, select -----------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Curves of one trial with a hostile name, in results/tiny."""
    store = Store(tmp_path / "results" / "tiny")
    store.claim(CONFIG.identity("abc"), CONFIG.fingerprint("abc"), CONFIG.name)
    name = "[red]\x1b[31m lambda"
    store.write("curves", "a", [{"trial": name, "step": 1, "loss": "eq5", "value": 0.5}])
    latent = {"left_song": name, "style": [], **{key: [0.5, 1.5] for key in LATENTS}}
    row = {
        "trial": "a",
        "configuration": "a",
        "method": "lp",
        "source": "test",
        "iteration": 1,
        "pair": 0,
        "meter": "4/4",
    }
    store.write("latents", "a", [{**row, **latent}])
    return store


LATENTS = ("z_left_in", "z_right_in", "z_left", "z_right")


@pytest.mark.parametrize("study", ["tiny", "results/tiny", "results/tiny/"])
def test_a_study_is_named_or_pointed_at(cf_study: Run, store: Store, study: str) -> None:
    outcome = cf_study("status", study)
    assert outcome.code == 0
    planned = len(list_first_trials(CONFIG)) + len(CONFIG.evaluation.settings())
    assert outcome.out.startswith(f"{planned} jobs: {planned} pending\n")
    assert store.root.exists()


@pytest.mark.parametrize("command", [["status"], ["query"], ["frontier"], ["select"]])
@pytest.mark.parametrize(
    ("study", "problem"),
    [
        ("nil", "results, where there are: tiny; give one of them, or the folder"),
        ("a/nil", "a/nil: is not the folder of a study"),
        (".", ".: is not the folder of a study"),
    ],
)
def test_a_study_that_is_not_there(
    cf_study: Run, store: Store, command: list[str], study: str, problem: str
) -> None:
    assert store.root.exists()
    rest = ["SELECT 1"] if command == ["query"] else []
    _refused(cf_study(*command, study, *rest), problem)


def test_no_study_at_all(cf_study: Run) -> None:
    _refused(cf_study("status", "nil"), "there are: none")


def test_a_table_has_all_columns_and_steers_no_terminal(cf_study: Run, store: Store) -> None:
    outcome = cf_study("query", store.root, "SELECT * FROM curves")
    assert outcome.code == 0
    for column in ("trial", "step", "loss", "value"):
        assert column in outcome.out
    assert "[red]\N{REPLACEMENT CHARACTER}[31m lambda" in outcome.out
    assert "\x1b" not in outcome.out


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_query_into_a_file(cf_study: Run, store: Store, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "deep" / f"out.{suffix}"
    sql = "SELECT step + 1 AS next, value FROM curves"
    outcome = cf_study("query", store.root, sql, "--output", path)
    assert outcome.code == 0
    frame = pl.read_csv(path) if suffix == "csv" else pl.read_parquet(path)
    assert frame.columns == ["next", "value"]
    assert frame.rows() == [(2, 0.5)]


def test_latents_go_into_parquet_but_not_into_csv(
    cf_study: Run, store: Store, tmp_path: Path
) -> None:
    sql = "SELECT pair, z_left FROM latents"
    _refused(cf_study("query", store.root, sql, "--output", "a.csv"), "CSV can't hold lists")
    assert cf_study("query", store.root, sql, "--output", "a.parquet").code == 0
    assert pl.read_parquet(tmp_path / "a.parquet")["z_left"].to_list() == [[0.5, 1.5]]
    assert not (tmp_path / "a.csv").exists()


def test_a_damaged_part_is_one_warning_and_the_rest_is_queried(cf_study: Run, store: Store) -> None:
    (folder(store) / "curves" / "b.1.parquet").write_bytes(b"PAR1")
    outcome = cf_study("query", store.root, "SELECT step FROM curves")
    assert (outcome.code, outcome.err.count("\n")) == (0, 1)
    assert outcome.err.startswith("warning: ")
    assert "curves/b.1.parquet: is not a whole Parquet file" in outcome.err
    outcome = cf_study("status", store.root)
    assert outcome.err == ""
    assert f"1 damaged or foreign files are in {store.root}/quarantine" in outcome.out


def test_compaction_says_what_it_gained(cf_study: Run, store: Store) -> None:
    store.write("curves", "b", [{"trial": "b", "step": 1, "loss": "eq5", "value": 0.25}])
    sql = "SELECT trial, step, loss, value FROM curves ORDER BY value"
    before = cf_study("query", "tiny", sql).out
    outcome = cf_study("compact", "tiny")
    assert outcome.code == 0
    assert outcome.out.startswith("curves: 2 -> 1 files, 0.0 -> 0.0 MB\n")
    assert outcome.out.count("\n") == 1
    assert cf_study("query", "tiny", sql).out == before
    outcome = cf_study("compact", "tiny")
    assert outcome.out == "results/tiny: nothing to compact\n"


def test_a_publication_is_not_compacted(cf_study: Run, store: Store) -> None:
    root = folder(store)
    record = json.loads((root / "study.json").read_text())
    (root / "study.json").write_text(json.dumps(record | {"left_out": ["latents"]}))
    before = _files(root)
    _refused(cf_study("compact", "tiny"), "is a publication, which has no files to merge")
    assert _files(root) == before


def test_a_study_in_a_bucket_is_queried_by_its_uri(
    cf_study: Run, store: Store, bucket: str
) -> None:
    uri = f"{bucket}/commands/tiny"
    remote = Store(place(uri))
    remote.claim(CONFIG.identity("abc"), CONFIG.fingerprint("abc"), CONFIG.name)
    remote.write("curves", "a", store.curves.collect())
    sql = "SELECT * FROM curves"
    assert cf_study("query", uri, sql).out == cf_study("query", "tiny", sql).out
    _refused(cf_study("status", f"{bucket}/commands/nil"), "is not the folder of a study")


@pytest.mark.parametrize("sql", ["SELECT nothing FROM curves", "SELEKT 1", "SELECT * FROM nil", ""])
def test_sql_that_cannot_be_run(cf_study: Run, store: Store, sql: str) -> None:
    _refused(cf_study("query", store.root, sql), "SQL: ")


def test_a_query_into_another_kind_of_file(cf_study: Run, store: Store) -> None:
    outcome = cf_study("query", store.root, "SELECT 1", "--output", "a.txt")
    _refused(outcome, "must end in .csv or .parquet")


def test_selecting_from_an_unfinished_study(cf_study: Run, store: Store) -> None:
    planned = len(list_first_trials(CONFIG)) + len(CONFIG.evaluation.settings())
    _refused(cf_study("select", "tiny"), f"no trial is done yet ({planned} pending); run the")
    assert not (store.root / "bundle").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--maximise", "juge"], "maximise: juge: no such name; did you mean judge?"),
        (["--maximise", "z_distance"], "maximise: z_distance: lower is better"),
        (["--where", "z_distanse <= 3"], "where: z_distanse: no such name; did you mean z_dist"),
        (["--where", "z_distance"], 'where: "z_distance": a condition must read like'),
    ],
)
def test_rules_that_make_no_sense(
    cf_study: Run, store: Store, options: list[str], problem: str
) -> None:
    _refused(cf_study("select", store.root, *options), problem)


@pytest.mark.parametrize("options", [[], ["--meter", "4/4"]])
def test_figures_of_an_unfinished_study(cf_study: Run, store: Store, options: list[str]) -> None:
    outcome = cf_study("frontier", store.root, *options)
    _refused(outcome, f"{store.root}: no job is done yet; run the study first")
    assert not outcome.out  # there are no findings to tell


def test_an_output_that_is_empty_is_not_the_study_s_own_bundle(
    cf_study: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def select(*arguments: object) -> None:
        given.extend(arguments)
        raise study.UserError("stopped")

    monkeypatch.setattr(study, "select_bundle", select, raising=False)
    _refused(cf_study("select", store.root, "--output", ""), "stopped")
    assert given[-1] == Path()  # which exists and is no bundle


def test_only_queries_are_taken(cf_study: Run, store: Store) -> None:
    _refused(cf_study("query", store.root, "DROP TABLE trials"), "only queries are taken")


def _fail(why: str) -> None:
    raise ValueError(why)


def test_a_trial_shows_all_its_failures_with_tracebacks(cf_study: Run, store: Store) -> None:
    ledger, trial = Ledger(store), list_first_trials(CONFIG)[0].id
    for _ in range(2):
        attempts = ledger.begin([trial])
        with pytest.raises(ValueError, match="no room") as caught:
            _fail(f"no room in attempt {attempts[trial]}")
        ledger.note_failure([trial], Failure.of(caught.value), attempts)
    ledger.note_failure([trial], Failure("the worker died", died=True), ledger.begin([trial]))
    outcome = cf_study("status", store.root, trial)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0] == f"{trial}: pending"
    for attempt in (1, 2):
        assert f"ValueError: no room in attempt {attempt}" in lines
    assert outcome.out.count("Traceback (most recent call last):") == 2
    assert outcome.out.count("raise ValueError(why)") == 2
    assert "the worker died without a word" in lines[-1]
    _refused(cf_study("status", store.root, "lambda"), "the study has no such trial")


def test_the_version_is_printed(cf_study: Run) -> None:
    outcome = cf_study("--version")
    assert (outcome.code, outcome.out) == (0, f"cf-study {version('connective-fusion')}\n")


def test_a_page_needs_a_study_and_listening_needs_answers(cf_study: Run, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    _refused(cf_study("listening", tmp_path / "x.csv"), "x.csv", "is no file of answers")
    _refused(cf_study("page", tmp_path), "is not the folder of a study")


def test_helps_of_commands_are_not_cut_off(cf_study: Run) -> None:
    _, _, commands = cf_study("--help").out.partition("Commands:")
    lines = [line for line in commands.splitlines() if line.strip()]
    assert len(lines) == len(cli.app.registered_commands)
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


def test_letters_that_a_terminal_does_not_have_are_replaced(
    cf_study: Run, tunes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, encoding="ascii"))
    assert cf_study("fuse", tunes / "a.mid", tunes / "b.mid", *OUT).code == 0
    assert b", ? fixed, iterations 3" in written.getvalue()


def test_a_dry_run_notices_a_corpus_on_another_grid(cf_study: Run, tmp_path: Path) -> None:
    corpus = tmp_path / "tunes.parquet"
    _midi(tmp_path / "tunes" / "a.mid", *range(60, 76))
    assert cf_study("ingest", tmp_path / "tunes", "--output", corpus).code == 0
    own = ["--set", f"corpus.source={corpus}"]
    coarse = ["--set", "melody.steps_per_beat=4", "--set", "melody.subdivisions=[]"]
    assert cf_study("run", "quickstart", "--dry-run", *own, *coarse).code == 0
    _refused(
        cf_study("run", "quickstart", "--dry-run", *own),
        "has 4 grid steps per quarter note, but melody.steps_per_beat is 12",
    )


# ---- fuse ----------------------------------------------------------------------------------------


@pytest.fixture
def tunes(tmp_path: Path, make_bundle: MakeBundle) -> Path:
    """a.mid and b.mid of four bars each, waltz.mid, two.musicxml, and a bundle."""
    _midi(tmp_path / "a.mid", *range(60, 76))
    _midi(tmp_path / "b.mid", *range(76, 60, -1))
    _midi(tmp_path / "waltz.mid", *range(60, 72), meter="3/4")
    parts = [
        MEASURES.format(id_, *(NOTE.format(step) for step in steps))
        for id_, steps in (("P1", "CD"), ("P2", "EF"))
    ]
    (tmp_path / "two.musicxml").write_text(TWO_PARTS.format("\n".join(parts)))
    save_bundle(make_bundle(), tmp_path / "bundle")
    return tmp_path


OUT = ("--bundle", "bundle", "--output", "out.mid")


def test_fuse_tells_what_it_did_and_can_be_repeated(cf_study: Run, tunes: Path) -> None:
    outcome = cf_study("fuse", "a.mid", "b.mid", *OUT, "--wav", "--picture", "--seed", 5)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].startswith("a.mid, bars 3-4: ")
    assert lines[0].endswith(" of 32 grid steps edited")
    assert lines[1].startswith("b.mid, bars 1-2: ")
    names = ["out.mid", "out.wav", "out.svg", "out.png"]
    assert lines[3] == (
        "whole tune: 8 bars, of which 3-6 are fused; the seam is between bars 4 and 5"
    )
    assert lines[4:] == [f"wrote {name}" for name in names]
    assert len(read_file(tunes / "out.mid").bars) == 8
    for name, magic in zip(names, (b"MThd", b"RIFF", b"<?xml", b"\x89PNG"), strict=True):
        assert (tunes / name).read_bytes().startswith(magic)
    seed, style, weight, iterations, tempo = (field.split()[1] for field in lines[2].split(", "))
    assert (seed, weight, iterations, tempo) == ("5", "fixed", "3", "100")
    again = cf_study(
        "fuse", "a.mid", "b.mid", "--bundle", "bundle", "--output", "again.mid",
        "--style", style, "--iterations", 3, "--left-bars", "3-4", "--right-bars", "1-2",
    )  # fmt: skip
    assert again.code == 0
    assert (tunes / "again.mid").read_bytes() == (tunes / "out.mid").read_bytes()


def test_which_tune_of_a_book_was_taken_is_told(cf_study: Run, tunes: Path) -> None:
    tune = "X:{}\nT:{}\nM:4/4\nL:1/4\nK:C\nCDEF|GABc|]\n\n"
    (tunes / "book.abc").write_text(tune.format(7, "The Lark") + tune.format(8, "The Wren"))
    (tunes / "one.abc").write_text(tune.format(7, "The Lark"))
    outcome = cf_study("fuse", "book.abc", "one.abc", *OUT)
    first, second, *_ = outcome.out.splitlines()
    assert first.startswith('book.abc, tune 7 "The Lark", bars 1-2: ')
    assert second.startswith("one.abc, bars 1-2: ")


def test_lambda_is_told_and_can_be_repeated(
    cf_study: Run, tunes: Path, make_bundle: MakeBundle
) -> None:
    save_bundle(make_bundle(conditional=True), tunes / "bundle")
    written = []
    for given, told in (((), "0.1"), (("--lambda", "0.1"), "0.1"), (("--lambda", "10"), "10.0")):
        outcome = cf_study("fuse", "a.mid", "b.mid", *OUT, *given)
        assert outcome.code == 0
        assert f", λ {told}, iterations 3, tempo 100" in outcome.out
        written.append((tunes / "out.mid").read_bytes())
    assert written[0] == written[1] != written[2]
    outcome = cf_study("fuse", "a.mid", "b.mid", *OUT, "--lambda", "11")
    _refused(outcome, "λ: this bundle was trained for 0.001 to 10, not 11")


def test_lead_and_edits_are_told_and_can_be_repeated(
    cf_study: Run, tunes: Path, make_bundle: MakeBundle
) -> None:
    save_bundle(make_bundle(conditional=True, heard=True), tunes / "bundle")
    for given, told in ((("--lead", "left"), 0), (("--lead", "0.25"), 0.25), ((), 0.5)):
        outcome = cf_study("fuse", "a.mid", "b.mid", *OUT, *given, "--edits", 12)
        assert outcome.code == 0
        assert f", lead {told}, tempo 100" in outcome.out
        written = (tunes / "out.mid").read_bytes()
        lambda_ = outcome.out.split("λ ")[1].split(",")[0]
        assert cf_study("fuse", "a.mid", "b.mid", *OUT, *given, "--lambda", lambda_).code == 0
        assert (tunes / "out.mid").read_bytes() == written


@pytest.mark.usefixtures("tunes")
def test_bars_that_the_whole_tune_leaves_out_are_told(cf_study: Run) -> None:
    chosen = ("--left-bars", "2-3", "--right-bars", "3-4")
    outcome = cf_study("fuse", "a.mid", "b.mid", *OUT, *chosen)
    assert "left out of the whole tune: a.mid, bar 4; b.mid, bars 1-2\n" in outcome.out
    assert "left out" not in cf_study("fuse", "a.mid", "b.mid", *OUT, *chosen, "--no-whole").out


@pytest.mark.usefixtures("tunes")
def test_a_fusion_in_which_nothing_changed_says_what_to_try(
    cf_study: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    farther, others = "--edits 8 goes farther", "no λ comes nearer to 12 edits"

    def check(*far: float | str, changed: bool, told: tuple[bool, bool]) -> None:
        outcome = cf_study("fuse", "a.mid", "b.mid", "--output", "out.mid", *far)
        edited = re.findall(r": (\d+) of 48 grid steps edited", outcome.out)
        assert (edited != ["0", "0"]) == changed
        assert (farther in outcome.out, others in outcome.out) == told

    check("--lambda", 10, changed=False, told=(True, False))
    check("--edits", 12, changed=True, told=(False, False))
    check("--edits", 0, changed=False, told=(False, False))
    # Halves that fit as they are stay, at any λ.
    monkeypatch.setattr("cf_core.bundle.Bundle.fuse", lambda _, left, right, *__: (left, right))
    check("--edits", 12, changed=False, told=(False, True))


def test_the_fused_segments_may_be_written_alone(cf_study: Run, tunes: Path) -> None:
    outcome = cf_study("fuse", "a.mid", "b.mid", *OUT, "--no-whole")
    assert outcome.code == 0
    assert "whole tune" not in outcome.out
    assert len(read_file(tunes / "out.mid").bars) == 4


def test_alternatives_that_differ_are_ranked_by_how_well_they_fit(
    cf_study: Run, tunes: Path, make_bundle: MakeBundle
) -> None:
    save_bundle(make_bundle(conditional=True, heard=True), tunes / "bundle")
    alone, one_by_one = ("--bundle", "bundle", "--output", "one.mid"), set()
    for seed in range(8, 12):
        assert cf_study("fuse", "a.mid", "b.mid", *alone, "--seed", seed).code == 0
        one_by_one.add((tunes / "one.mid").read_bytes())
    assert 1 < len(one_by_one) < 4, len(one_by_one)  # else these seeds show nothing

    outcome = cf_study("fuse", "a.mid", "b.mid", *OUT, "--alternatives", 4, "--seed", 8)
    assert outcome.code == 0
    told = [line for line in outcome.out.splitlines() if line.startswith("out-")]
    names = [f"out-{number}.mid" for number in range(1, len(one_by_one) + 1)]
    assert [line.split(":")[0] for line in told] == names
    assert f"4 fusions drawn, of which {len(names)} differ; for others" in outcome.out
    assert sorted(path.name for path in tunes.glob("out*")) == names
    assert {(tunes / name).read_bytes() for name in names} == one_by_one
    fits = [float(line.split("fit ")[1].split()[0]) for line in told]
    assert fits == sorted(fits, reverse=True)
    styled = cf_study("fuse", "a.mid", "b.mid", *OUT, "--alternatives", 4, "--style", "0.1,0.9")
    drawn = [line for line in styled.out.splitlines() if line.startswith("out-")]
    assert len(drawn) > 1
    assert all(", style 0.1,0.9, " in line for line in drawn)
    outcome = cf_study("fuse", "a.mid", "b.mid", *OUT, "--alternatives", 4, "--seed", 8)
    # The first is the same as that of its seed alone.
    best = told[0].split("seed ")[1].split(", ")[0]
    assert cf_study("fuse", "a.mid", "b.mid", *OUT, "--seed", best).code == 0
    assert (tunes / "out.mid").read_bytes() == (tunes / "out-1.mid").read_bytes()


def test_fuse_computes_on_one_thread_as_the_server_does(cf_study: Run, tunes: Path) -> None:
    torch.set_num_threads(2)
    assert cf_study("fuse", tunes / "a.mid", tunes / "b.mid", *OUT).code == 0
    assert torch.get_num_threads() == 1


def test_intervals_are_told(cf_study: Run, tunes: Path) -> None:
    outcome = cf_study("fuse", "a.mid", "b.mid", *OUT, "--transpose-right", "-3")
    assert outcome.code == 0
    assert "the right piece moved by -3 semitones" in outcome.out
    last = [note.pitch for note in read_file(tunes / "out.mid").notes][-4:]
    assert last == [note.pitch - 3 for note in read_file(tunes / "b.mid").notes][-4:]


def test_without_a_bundle_the_ready_made_one_is_used(
    cf_study: Run, tunes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cf_study("fuse", "a.mid", "b.mid", *OUT).code == 0
    monkeypatch.setattr("cf_core.bundle.DEFAULT_BUNDLE", tunes / "bundle")
    assert cf_study("fuse", "a.mid", "b.mid", "--output", "same.mid").code == 0
    assert (tunes / "same.mid").read_bytes() == (tunes / "out.mid").read_bytes()
    monkeypatch.setattr("cf_core.bundle.DEFAULT_BUNDLE", tunes / "nil")
    outcome = cf_study("fuse", "a.mid", "b.mid", "--output", "none.mid")
    _refused(outcome, "no ready-made bundle", "make bundle")
    assert not (tunes / "none.mid").exists()


def test_the_tempo_is_that_of_left_unless_given(cf_study: Run, tunes: Path) -> None:
    assert cf_study("fuse", "a.mid", "b.mid", *OUT).code == 0
    assert read_file(tunes / "out.mid").tempo == pytest.approx(100, rel=1e-4)
    assert cf_study("fuse", "a.mid", "b.mid", *OUT, "--tempo", "73").code == 0
    assert read_file(tunes / "out.mid").tempo == pytest.approx(73, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.mid", "b.mid", "--style", "0.5"], ["style: 1 numbers given; this bundle takes 2"]),
        (["a.mid", "b.mid", "--style", "0.5,1.5"], ["style: each number must lie in 0…1"]),
        (["a.mid", "b.mid", "--style", "0.5,much"], ["--style 0.5,much", "numbers"]),
        (["a.mid", "b.mid", "--style", "nan,0.5"], ["style: each number must lie in 0…1"]),
        (["a.mid", "b.mid", "--lambda", "0.1"], ["has one λ", "give none, or another bundle"]),
        (["a.mid", "b.mid", "--iterations", "0"], ["iterations: 0 is too few"]),
        (["a.mid", "b.mid", "--edits", "8"], ["edits: this bundle has one λ", "leave edits out"]),
        (["a.mid", "b.mid", "--lead", "left"], ["lead: in this bundle both halves change"]),
        (["a.mid", "b.mid", "--lead", "LEFT"], ["--lead LEFT", "left, even, right or a number"]),
        (["a.mid", "b.mid", "--transpose-right", "up"], ["--transpose-right up", "auto, none"]),
        (
            ["a.mid", "b.mid", "--transpose-right", "-" + "9" * 30],
            ["-99999", "out of the bundle's pitches", "give another interval"],
        ),
        (["a.mid", "b.mid", "--transpose-right", "auto"], ["no models of notes"]),
        (["a.mid", "b.mid", "--seam", "auto"], ["no models of notes", "choose bars"]),
        (["a.mid", "b.mid", "--alternatives", "0"], ["--alternatives 0", "1 to 1000"]),
        (["a.mid", "b.mid", "--alternatives", "9" * 30], ["--alternatives 9999", "1 to 1000"]),
        (["a.mid", "b.mid", "--output", "", "--alternatives", "2"], ["must end in .mid"]),
        (["a.mid", "b.mid", "--tempo", "0"], ["tempo: 0", "10 to 500"]),
        (["a.mid", "b.mid", "--left-bars", "3"], ["--left-bars 3", "such as 5-6"]),
        (["a.mid", "b.mid", "--right-bars", "4-5"], ["b.mid: bars 4-5", "has bars 1 to 4"]),
        (
            ["a.mid", "b.mid", "--left-bars", "1-3"],
            ["a.mid", "a segment of this bundle has 2 bars"],
        ),
        (["waltz.mid", "b.mid"], ["waltz.mid", "knows 4/4 and 2/2", "4 of 3/4", "choose another"]),
        (["a.mid", "none.mid"], ["none.mid: no such file"]),
        (["a.mid", "short.abc"], ["short.abc", "no complete bar"]),
        (["a.mid", "two.musicxml"], ["several parts", "1 'Voice', 2 'Piano'", "part"]),
        (["two.musicxml", "two.musicxml", "--part", "Horn"], ["no such part", "'Horn'"]),
        (["a.mid", "b.mid", *["--part", "1"] * 3], ["--part: given 3 times"]),
        (["a.mid", "b.mid", "--bundle", "nil"], ["nil: no bundle here"]),
        (["a.mid", "b.mid", "--output", "out.txt"], ["out.txt", "must end in .mid"]),
        (
            ["a.mid", "b.mid", "--output", "a.mid/out.mid"],
            ["a.mid/out.mid: can't be written (a.mid is a file)"],
        ),
        (["a.mid", "b.mid", "--output", "./a.mid"], ["would replace LEFT", "another name"]),
        (["a.mid", "b.mid", "--output", "b.mid"], ["would replace RIGHT"]),
        (["t-2.mid", "b.mid", "--output", "t.mid", "--alternatives", "2"], ["would replace LEFT"]),
        (["chords.mid", "b.mid"], ["no melody track", "set chords to top"]),
        (["a.mid", "high.mid"], ["pitches 36 to 96", "its pitches: 97 to 112"]),
    ],
)
def test_fuse_refuses(cf_study: Run, tunes: Path, arguments: list[str], words: list[str]) -> None:
    (tunes / "short.abc").write_text("X:1\nT:Short\nM:4/4\nL:1/4\nK:C\nC D E |]\n")
    _midi(tunes / "t-2.mid", *range(60, 76))
    _midi(tunes / "high.mid", *range(97, 113))
    chords = [Note(Fraction(beat), Fraction(1), p) for beat in range(8) for p in (60, 64, 67)]
    write_midi(chords, tunes / "chords.mid", tempo=120.0)
    before = _files(tunes)
    given = (
        [*OUT, *arguments]
        if "--bundle" in arguments or "--output" in arguments
        else [
            *arguments,
            *OUT,
        ]
    )
    _refused(cf_study("fuse", *given), *words)
    assert _files(tunes) == before


def test_an_altered_bundle(cf_study: Run, tunes: Path) -> None:
    path = tunes / "bundle" / "core.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    _refused(cf_study("fuse", "a.mid", "b.mid", *OUT), "core.safetensors: altered", "again")
    assert not (tunes / "out.mid").exists()


@pytest.mark.parametrize(
    ("parts", "arguments"),
    [
        (((60, 62), (60, 62)), ["two.musicxml", "two.musicxml", "--part", "Voice"]),
        (((60, 62), (64, 65)), ["two.musicxml", "two.musicxml", "--part", "1", "--part", "Piano"]),
    ],
)
def test_a_part_for_both_files_or_one_for_each(
    cf_study: Run,
    tunes: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts: tuple[tuple[int, ...], ...],
    arguments: list[str],
) -> None:
    # Without a transformation, what is written shows which parts were read.
    monkeypatch.setattr("cf_core.bundle.Bundle.fuse", lambda _, left, right, *__: (left, right))
    assert cf_study("fuse", *arguments, *OUT).code == 0
    written = read_file(tunes / "out.mid")
    assert tuple(note.pitch for note in written.notes) == parts[0] + parts[1]


@pytest.mark.skipif("CF_DATA" not in os.environ, reason="needs the corpora in $CF_DATA")
def test_abc_book_meets_midi(cf_study: Run, tunes: Path) -> None:
    archive = Path(os.environ["CF_DATA"]) / "nottingham" / "nottingham-dataset.zip"
    with zipfile.ZipFile(archive) as songs:
        book = songs.read("nottingham-dataset/ABC_cleaned/ashover.abc")
        midi = next(name for name in songs.namelist() if "/MIDI/reels" in name)
        (tunes / "right.mid").write_bytes(songs.read(midi))
    # The first tune in 4/4 of the book.
    fields, *rest = book.decode().split("X:")
    tune = next(f"X:{text}" for text in rest if "\nM:4/4" in text.replace(" ", ""))
    (tunes / "left.abc").write_text(fields + tune)
    assert cf_study("fuse", "left.abc", "right.mid", *OUT).code == 0
    assert (tunes / "out.mid").is_file()


# ---- export --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_bundle_is_exported_and_what_was_written_is_told(
    cf_study: Run, tmp_path: Path, make_bundle: MakeBundle
) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)  # sizes are symbols where it is traced
    save_bundle(make_bundle(), tmp_path / "bundle")
    outcome = cf_study("export", "bundle", "--output", "deep/onnx")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    first, *lines = outcome.out.splitlines()
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "deep" / "onnx").iterdir()}
    assert first == f"wrote deep/onnx: {sum(sizes.values()) / 1e6:.1f} MB"
    assert sorted(lines) == sorted(f"  {name}: {size / 1e6:.2f} MB" for name, size in sizes.items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nil", "--output", "onnx"], ["nil: no bundle here"]),
        (["--output", "bundle"], ["bundle: exists and is not an export", "choose another place"]),
        (["--output", "file"], ["file: exists and is not an export"]),
        (["--output", "file/onnx"], ["file/onnx: can't be written", "choose another place"]),
    ],
)
def test_export_refuses(
    cf_study: Run,
    tmp_path: Path,
    make_bundle: MakeBundle,
    arguments: list[str],
    words: list[str],
) -> None:
    save_bundle(make_bundle(), tmp_path / "bundle")
    (tmp_path / "file").write_text("mine")
    before = _files(tmp_path)
    _refused(cf_study("export", *arguments), *words)
    assert _files(tmp_path) == before


@pytest.mark.parametrize("module", ["onnx", "onnxscript"])
def test_export_without_its_extra(
    cf_study: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    outcome = cf_study("export", "--output", "onnx")
    _refused(outcome, f"{module} is not installed", "pip install 'connective-fusion[export]'")
    assert not (tmp_path / "onnx").exists()
