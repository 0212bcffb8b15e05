"""It is long, since it opens every file of a publication as its readers would."""

import doctest
import json
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import mlcroissant
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from markdown_it import MarkdownIt
from polars.testing import assert_frame_equal

import study
from cf_core.corpus import BARS, label_bars
from cf_core.errors import RecordsError, UserError
from evaluation.figures import save
from evaluation.frontier import DEPLOYED_AXES
from evaluation.inference import decide_verdicts
from evaluation.rivals import list_rivals
from study import cli, findings
from study.cards import BUILTIN, KNOWN
from study.config import StudyConfig
from study.findings import CSV_COLUMNS, count_bins, draw, find_shown_points, read_finished_metrics
from study.page import write_page
from study.publish import _CARDS, LEFT_OUT, publish
from study.select import select
from study.store import Store
from study.tables import TABLES
from tests.conftest import folder
from tests.tiny import EVALUATION, claim, furnish, go, tiny

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference"

HOSTILE = (
    "../../../tmp/x\n---\n# \"'`</code><script>alert(1)</script> | *a* [b](javascript:c) \x1b[2J"
)
CARDS = {"README.md", "CITATION.cff", "croissant.json", "verdicts.csv", "checksums.sha256"}


@pytest.fixture(scope="module")
def finished(
    melodies: Path, shared: Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, StudyConfig]:
    """A study with two seeds, one rival and a name that dataset hubs could stumble over."""
    results = tmp_path_factory.mktemp("results")
    search = {"lambda": [0.1], "style_dim": [2], "seeds": [0, 1]}
    config = tiny(melodies, results, name="1e3", search=search, evaluation=EVALUATION)
    store, _ = go(furnish(config, shared))
    return store, config


@pytest.fixture(scope="module")
def published(
    finished: tuple[Store, StudyConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Its publication."""
    output = tmp_path_factory.mktemp("out") / "published"
    publish([finished[0]], output)
    return output


@pytest.fixture
def own(finished: tuple[Store, StudyConfig], tmp_path: Path) -> Store:
    """A copy of the study's tables, for tests that change it."""
    root = tmp_path / "results" / "1e3"
    for table in TABLES:
        if (folder(finished[0]) / table).exists():
            shutil.copytree(folder(finished[0]) / table, root / table)
    shutil.copy(folder(finished[0]) / "study.json", root)
    return Store(root)


def read_all(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def in_order(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort([name for name, kind in frame.schema.items() if not kind.is_nested()])


# ---- tables --------------------------------------------------------------------------------------


def test_tables_are_those_of_the_study(
    finished: tuple[Store, StudyConfig], published: Path
) -> None:
    store, again = finished[0], study.open(published / "1e3")
    for table in TABLES.keys() - {*LEFT_OUT, "outcomes", "examples"}:
        ours, theirs = (each.scan(table).collect() for each in (store, again))
        if table == "trials":
            # Where trials ran is told to nobody.
            assert set(theirs["host"]) == {""}
            assert "" not in set(ours["host"])
            ours, theirs = ours.drop("host"), theirs.drop("host")
        ours, theirs = in_order(ours), in_order(theirs)
        assert ours.equals(theirs, null_equal=True), table
        files = [file.name for file in (published / "1e3" / table).glob("*")]
        assert files == (["compacted-1.parquet"] if ours.height else []), table
    assert {each.name for each in (published / "1e3").iterdir()} == {
        "study.json", "config.yaml", *(t for t in TABLES if store.scan(t).head(1).collect().height)
    } - {*LEFT_OUT, "examples"}  # fmt: skip
    assert study.list_jobs(again).equals(study.list_jobs(store))
    assert again.list_parts("outcomes") == store.list_parts("outcomes")
    assert list(again.compact()) == []


def test_outcomes_are_those_of_points_that_are_reported_pair_by_pair(
    finished: tuple[Store, StudyConfig], published: Path
) -> None:
    store = finished[0]
    reported: set[tuple[Any, ...]] = set()
    for row in store.matched.collect().iter_rows(named=True):
        if row["axis"] in DEPLOYED_AXES and row["source"] == "test":
            reported.add((row["configuration"], row["lambda"], row["iteration"]))
    for row in find_shown_points(store, read_finished_metrics(store)).iter_rows(named=True):
        reported.add((row["trial"], row["lambda"], row["iteration"]))
    wanted = [
        row
        for row in store.outcomes.collect().iter_rows(named=True)
        if row["source"] == "test"
        and (
            row["method"] in ("real", "identity")
            or (row["configuration"], row["lambda"], row["iteration"]) in reported
            or (row["trial"], row["lambda"], row["iteration"]) in reported
        )
    ]
    found = study.open(published / "1e3").outcomes.collect()
    assert 0 < len(wanted) < store.outcomes.collect().height
    assert in_order(found).equals(in_order(pl.DataFrame(wanted, found.schema)), null_equal=True)


def test_verdicts_on_deployed_axes_can_be_reached_again(published: Path) -> None:
    again = study.open(published / "1e3")
    told = pl.col("axis").is_in(DEPLOYED_AXES) & (pl.col("source") == "test")
    metrics = read_finished_metrics(again)
    matched = again.matched.filter(told).collect()
    influences = again.scan("influences")
    found = decide_verdicts(metrics, matched, again.outcomes, influences, count_bins(again))
    stored = again.verdicts.filter(told).collect()
    assert stored["low"].null_count() < stored.height == found.height > 10
    panel = ["rival", "axis", "metric"]
    assert_frame_equal(found.sort(panel), stored.sort(panel), rel_tol=1e-9)


def test_figures_and_findings_are_those_of_the_study(
    finished: tuple[Store, StudyConfig], published: Path, tmp_path: Path
) -> None:
    again = study.open(published / "1e3")
    assert study.list_findings(again) == study.list_findings(finished[0])
    whole = [figure for figure in findings._figures(finished[0]) if figure[0] != "styles"]
    figures = zip(whole, findings._figures(again), strict=True)
    compared = {"likeness", "transitions", "song-distances", "cost"}
    for (name, ours), (same, theirs) in figures:
        assert name == same
        if name in compared:  # one for each table; to draw all of them takes a minute
            compared.remove(name)
            files = zip(save(ours, tmp_path / "a"), save(theirs, tmp_path / "b"), strict=True)
            assert all(one.read_bytes() == other.read_bytes() for one, other in files), name
    assert not compared


def test_what_is_not_there_is_said(
    finished: tuple[Store, StudyConfig], published: Path, tmp_path: Path
) -> None:
    store = study.open(published / "1e3")
    needy: list[tuple[str, Callable[[], object]]] = [
        ("weights", lambda: select(store)),
        ("weights", lambda: write_page(store)),
        ("outcomes of all pairs", lambda: list(draw(store, "4/4"))),
        ("table latents", lambda: store.scan("latents")),
        ("table failures", lambda: store.sql("SELECT * FROM failures")),
        ("rows that it has not published", lambda: publish([store], tmp_path / "again")),
    ]
    for what, needs in needy:
        with pytest.raises(RecordsError, match=f"is a publication, which has no {what}"):
            needs()
    results = {"execution": {"results": str(published)}}
    config = StudyConfig.model_validate(finished[1].model_dump(by_alias=True) | results)
    with pytest.raises(RecordsError, match="no models to go on with"):
        claim(config, str(store.record["identity"]["corpus"]))
    assert not list(tmp_path.iterdir())


def test_examples_in_docstrings_run(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = folder(own).rename(folder(own).parent / "quickstart")
    monkeypatch.chdir(renamed.parent.parent)
    for name in ("publish", "findings"):
        found = doctest.testmod(import_module(f"study.{name}"), report=True)
        assert found.attempted > 0
        assert not found.failed
    assert Path("published", "1e3", "study.json").is_file()


# ---- cards ---------------------------------------------------------------------------------------


def test_checksums(published: Path) -> None:
    lines = (published / "checksums.sha256").read_text().splitlines()
    told = {line[66:]: line[:64] for line in lines}
    files = read_all(published)
    del files["checksums.sha256"]
    assert told == {name: sha256(content).hexdigest() for name, content in files.items()}


def test_the_header_names_every_file_and_hubs_take_its_names(published: Path) -> None:
    _, header, text = (published / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(header)
    assert told["license"] == "apache-2.0"
    files = {config["data_files"] for config in told["configs"]}
    assert files == {f.relative_to(published).as_posix() for f in published.rglob("*.parquet")}
    names = [config["config_name"] for config in told["configs"]]
    assert len({*names}) == len(names) == len(files)
    assert all(isinstance(name, str) for name in names)
    assert [each["config_name"] for each in told["configs"] if each.get("default")] == [
        "1e3-verdicts"
    ]
    rows = sum(pq.read_metadata(published / file).num_rows for file in files)
    assert 10**4 <= rows < 10**5
    assert told["size_categories"] == ["10K<n<100K"]
    assert "a corpus of its authors' own" in text
    assert "The songs are not included" in text


def read_records(published: Path, table: str) -> list[dict[str, Any]]:
    """The rows of a table, by Croissant's own reader."""
    records = mlcroissant.Dataset(jsonld=published / "croissant.json").records(f"1e3-{table}")
    return [
        {
            name.removeprefix(f"1e3-{table}/"): v.decode() if isinstance(v, bytes) else v
            for name, v in record.items()
        }
        for record in records
    ]


def test_notes_of_songs_are_published_only_if_the_songs_are_free(
    own: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish([own], tmp_path / "published")
    assert study.open(tmp_path / "published" / "1e3").examples.collect().is_empty()
    assert "examples" not in {path.name for path in (tmp_path / "published" / "1e3").iterdir()}
    monkeypatch.setitem(KNOWN, str(own.record["identity"]["corpus"]), BUILTIN)
    publish([own], tmp_path / "published")
    # This table has lists.
    assert read_records(tmp_path / "published", "examples") == own.examples.collect().to_dicts()


def test_croissant_is_valid_and_loads_records(
    finished: tuple[Store, StudyConfig], published: Path
) -> None:
    dataset = mlcroissant.Dataset(jsonld=published / "croissant.json")
    assert not dataset.metadata.ctx.issues.errors
    assert not dataset.metadata.ctx.issues.warnings
    described = json.loads((published / "croissant.json").read_text())
    for records in described["recordSet"]:
        table = records["name"].removeprefix("1e3-")
        columns = TABLES[table].columns
        assert [field["name"] for field in records["field"]] == [each.name for each in columns]
        meanings = [each.metadata[b"meaning"].decode() for each in columns]
        assert [field["description"] for field in records["field"]] == meanings
    assert read_records(published, "verdicts") == finished[0].verdicts.collect().to_dicts()


def test_the_configuration_gives_the_same_study(
    finished: tuple[Store, StudyConfig], published: Path
) -> None:
    store, config = finished
    again = study.load_config(published / "1e3" / "config.yaml")
    corpus = str(store.record["identity"]["corpus"])
    assert again.name == "1e3"
    assert again.fingerprint(corpus) == store.record["fingerprint"]
    assert again.selection == config.selection


def test_the_built_in_tunes_are_known_by_their_hash(own: Store, tmp_path: Path) -> None:
    record = json.loads((folder(own) / "study.json").read_text())
    record["identity"]["corpus"] = next(hash_ for hash_, card in KNOWN.items() if card is BUILTIN)
    (folder(own) / "study.json").write_text(json.dumps(record))
    publish([Store(own.root)], tmp_path / "out")
    page = (tmp_path / "out" / "README.md").read_text()
    assert "in the public domain" in page
    assert "pip install 'connective-fusion[builtin]'" in page
    assert study.load_config(tmp_path / "out" / "1e3" / "config.yaml").corpus.path is None


def test_citation(published: Path, finished: tuple[Store, StudyConfig]) -> None:
    told = yaml.safe_load((published / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= told.keys()
    assert told["type"] == "dataset"
    assert told["identifiers"][0]["value"] == finished[0].record["fingerprint"]


def test_two_studies_have_their_verdicts_in_one_file(
    finished: tuple[Store, StudyConfig], own: Store, tmp_path: Path
) -> None:
    record = json.loads((folder(own) / "study.json").read_text()) | {"name": "other"}
    (folder(own) / "study.json").write_text(json.dumps(record))
    done = publish([finished[0], Store(own.root)], tmp_path / "two")
    found = pl.read_csv(tmp_path / "two" / "verdicts.csv", schema_overrides={"corpus": pl.String})
    one = finished[0].verdicts.collect()
    assert tuple(found.columns) == CSV_COLUMNS
    assert found["corpus"].to_list() == ["1e3"] * one.height + ["other"] * one.height
    assert found["difference"].to_list() == one["difference"].to_list() * 2
    sizes = {name: len(content) for name, content in read_all(tmp_path / "two").items()}
    assert done.size == sum(sizes.values())
    tables = [size for name, size in sizes.items() if name.endswith(".parquet")]
    assert done.largest.size == max(tables) == sizes[done.largest.path]


def test_equal_records_give_equal_bytes(own: Store, published: Path, tmp_path: Path) -> None:
    assert list(own.compact())
    publish([Store(own.root)], tmp_path / "again")
    again, first = read_all(tmp_path / "again"), read_all(published)
    # The name of the melodies' folder lies beside the study, and so not beside its copy.
    named = {"README.md", "1e3/config.yaml", "checksums.sha256"}
    assert again.keys() == first.keys()
    assert {name for name in first if again[name] != first[name]} == named
    publish([Store(own.root)], tmp_path / "again")
    assert read_all(tmp_path / "again") == again


# ---- the publication in this repository ----------------------------------------------------------


def test_the_reference_is_whole_and_can_be_drawn() -> None:
    lines = (REFERENCE / "checksums.sha256").read_text().splitlines()
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name, digest in listed.items():
        assert sha256((REFERENCE / name).read_bytes()).hexdigest() == digest, name
    assert sum((REFERENCE / name).stat().st_size for name in listed) < 20e6
    verdicts = pl.read_csv(REFERENCE / "verdicts.csv")
    for corpus in ("cre", "nottingham"):
        store, panel = study.open(REFERENCE / corpus), ["rival", "axis", "source", "metric"]
        own = verdicts.filter(corpus=corpus).drop("corpus").sort(panel)
        stored = store.verdicts.select(own.columns).collect().sort(panel)
        assert own.height > 300
        assert_frame_equal(own, stored)
        near = store.matched.group_by(panel).agg(pl.col("candidates").min()).collect()
        alone = own.join(near.filter(candidates=0), on=panel, how="semi")
        assert alone["verdict"].is_null().all()  # the inputs stand in for one of the sides
        assert next(findings._figures(store))[0] == "likeness"


def test_readme_tells_the_verdicts_of_the_reference() -> None:
    verdicts = pl.read_csv(REFERENCE / "verdicts.csv").filter(
        axis="larger_edit_distance_q90", source="test", metric="indistinguishable"
    )
    labels = {"the poster's scheme": "poster"} | {
        rival.look.label: name for name, rival in list_rivals().items()
    }
    told = 0
    for line in (ROOT / "README.md").read_text().splitlines():
        name, *cells = line.strip("| ").split(" | ")
        rivals = [rival for label, rival in labels.items() if name.startswith(label)]
        if len(rivals) == 1 and len(cells) > 1 and cells[0].startswith("+"):
            for cell, corpus in zip(cells, ("cre", "nottingham"), strict=False):
                row = verdicts.filter(corpus=corpus, rival=rivals[0]).row(0, named=True)
                star = "*" if row["verdict"] == "win" else ""
                interval = f"{row['low']:.2f} to {row['high']:.2f}"
                assert cell == f"{row['difference']:+.2f} ({interval}){star}", (name, corpus)
                told += 1
    assert told == 20


# ---- names of strangers --------------------------------------------------------------------------


def _rename_songs(store: Store) -> None:
    """Give every song a hostile id, as a later attempt at each part."""
    for table in ("outcomes", "influences"):
        path = folder(store) / table
        for file in path.glob("*.parquet"):
            frame = pl.read_parquet(file)
            songs = [name for name in frame.columns if name in ("left_song", "right_song", "song")]
            frame = frame.with_columns(pl.col(songs) + HOSTILE)
            store.write(table, file.name.removesuffix(".1.parquet"), frame, attempt=2)


def test_names_of_songs_and_files_are_data(own: Store, tmp_path: Path) -> None:
    _rename_songs(own)
    corpus = folder(own).parent / ".corpora" / "x.parquet"
    corpus.parent.mkdir()
    digest = str(own.record["identity"]["corpus"])
    pq.write_table(label_bars(BARS.empty_table(), HOSTILE, 4, digest), corpus)
    (corpus.parent / "a.parquet").write_bytes(b"no corpus")
    output = tmp_path / "out" / "published"
    before = read_all(folder(own))
    publish([own], output)
    assert read_all(folder(own)) == before
    assert {path.name for path in output.iterdir()} == CARDS | {"1e3"}
    assert {path.name for path in output.parent.iterdir()} == {"published"}
    songs = study.open(output / "1e3").influences.collect()["song"]
    assert songs.str.ends_with(HOSTILE).all()
    records = read_records(output, "influences")
    assert [record["song"] for record in records] == songs.to_list()
    shown = HOSTILE.replace("\n", "\ufffd").replace("\x1b", "\ufffd")
    assert study.load_config(output / "1e3" / "config.yaml").corpus.source == shown
    page = (output / "README.md").read_text()
    _, header, text = page.split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "apache-2.0"
    assert f"ingested from {shown}." in _read_markdown(text)


def _read_markdown(text: str) -> str:
    """What a reader sees of a page; nothing of it may be HTML or a link to a script."""
    tokens = list(_flat(MarkdownIt().enable("table").parse(text)))
    assert not [token for token in tokens if token.type in ("html_block", "html_inline")]
    assert not [token for token in tokens if "javascript" in str(token.attrGet("href") or "")]
    kinds = ("text", "text_special", "code_inline", "softbreak")
    return "".join(token.content or " " for token in tokens if token.type in kinds)


def _flat(tokens: Any) -> Iterator[Any]:
    for token in tokens:
        yield token
        yield from _flat(token.children or ())


@pytest.mark.parametrize("name", ["../evil", "a/b", "x\ny", "", ".", 'a": {', "a|b"])
def test_a_name_that_no_study_has_is_refused(name: str, own: Store, tmp_path: Path) -> None:
    record = json.loads((folder(own) / "study.json").read_text()) | {"name": name}
    (folder(own) / "study.json").write_text(json.dumps(record))
    before = read_all(tmp_path)
    with pytest.raises(RecordsError):
        publish([Store(own.root)], tmp_path / "out" / "published")
    assert read_all(tmp_path) == before


def test_the_command_says_what_it_wrote(
    own: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder(own).parent.parent)
    monkeypatch.setattr("sys.argv", ["cf-study", "publish", "1e3", "--output", "out"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    wrote, draws = capsys.readouterr().out.splitlines()
    assert not end.value.code
    files = read_all(tmp_path / "out")
    largest = max((n for n in files if n.endswith(".parquet")), key=lambda n: len(files[n]))
    assert wrote == (
        f"wrote out: {sum(map(len, files.values())) / 1e6:.2f} MB; the largest table is"
        f" {largest.split('/')[1]} of 1e3, {len(files[largest]) / 1e6:.2f} MB"
    )
    assert draws == "to draw its figures: cf-study frontier out/1e3"


# ---- whole or not at all -------------------------------------------------------------------------


def test_an_interrupted_publication_leaves_nothing(
    own: Store, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = tmp_path / "earlier"
    shutil.copytree(published, earlier)
    (earlier / "1e3" / "figures").mkdir()
    before = read_all(tmp_path)

    def press_control_c(_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(_CARDS, "README.md", press_control_c)
        for output in (earlier, tmp_path / "new"):
            with pytest.raises(KeyboardInterrupt):
                publish([own], output)
    assert read_all(tmp_path) == before
    publish([own], earlier)
    assert not (earlier / "1e3" / "figures").exists()


def test_what_is_no_publication_is_left_alone(own: Store, published: Path, tmp_path: Path) -> None:
    names = ("notes", "versioned", "file", "bare", "added")
    notes, versioned, file, bare, added = (tmp_path / name for name in names)
    notes.mkdir()
    bare.mkdir()
    for name in ("README.md", "checksums.sha256"):
        (bare / name).write_text("mine")
    shutil.copytree(published, added)
    (added / "1e3" / "metrics" / "thesis.txt").write_text("mine")
    (notes / "checksums.sha256").write_text("mine")
    (notes / "thesis.txt").write_text("mine")
    shutil.copytree(published, versioned)
    (versioned / ".git").mkdir()
    (versioned / ".git" / "HEAD").write_text("mine")
    file.write_text("mine")
    before = read_all(tmp_path)
    for output in (notes, versioned, file, bare, added, folder(own), folder(own).parent):
        with pytest.raises(UserError, match="exists and is not a publication"):
            publish([own], output)
    assert read_all(tmp_path) == before


def test_studies_that_cannot_be_published(own: Store, shared: Store, tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="has no table verdicts; run the study to its end"):
        publish([shared], tmp_path / "out")
    with pytest.raises(UserError, match="another of the studies is named 1e3"):
        publish([own, own], tmp_path / "out")
    trial = own.trials.select(pl.col("trial").max()).collect().item()
    for lost, lacks in (
        (f"metrics/*{trial}*", f"whole records of {trial}"),
        (f"trials/*{trial}*", f"whole records of {trial}"),
        ("matched/*", "table matched"),
    ):
        (part,) = folder(own).glob(lost)
        part.unlink()
        with pytest.raises(RecordsError, match=f"has no {lacks}; run the study to its end"):
            publish([Store(own.root)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
