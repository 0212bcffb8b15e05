"""Publishes finished studies: a folder of their tables, without models, that others can cite.

Each study of a publication is a study's folder that `study.open` reads, without the tables in
`LEFT_OUT` and without weights. Figures and findings come from it as from the study itself.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from cf_core.corpus import read_source
from cf_core.errors import CorpusError, RecordsError, UserError
from cf_core.files import replacing_folder
from evaluation.frontier import DEPLOYED_AXES, REAL
from study.cards import (
    PublishedStudy,
    PublishedTable,
    is_free,
    write_citation,
    write_config,
    write_croissant,
    write_readme,
)
from study.config import StudyConfig
from study.findings import (
    find_shown_points,
    read_finished_metrics,
    write_verdicts,
)
from study.select import list_jobs
from study.store import Store
from study.tables import TABLES

LEFT_OUT = ("latents", "failures")
"""Tables that are not published: the first is by far the largest and only models can read it, the
other holds tracebacks with the paths of somebody's machine."""
_CHECKSUMS = "checksums.sha256"
_CARDS = {
    "README.md": write_readme,
    "croissant.json": write_croissant,
    "CITATION.cff": write_citation,
}
_VERDICTS = "verdicts.csv"
_POINT = ["trial", "lambda", "iteration"]


@dataclass(frozen=True)
class Publication:
    """What was published."""

    folder: Path
    size: int
    """Of all files, in bytes."""
    largest: PublishedTable


def publish(stores: Sequence[Store], output: Path) -> Publication:
    """Write a publication of finished studies to a folder, whole or not at all.

    An earlier publication at `output` is replaced. Equal records give equal bytes.

        >>> from pathlib import Path
        >>> import study
        >>> store = study.open("results/quickstart")
        >>> published = study.publish_studies([store], Path("published"))

    Raises `RecordsError` for a study that is not finished, that is itself a publication, or whose
    records are of another release; `UserError` where two studies have one name, and where `output`
    is anything but a publication or can't be written.
    """
    _check(stores)
    with replacing_folder(output, "a publication", _is_publication) as folder:
        studies = [_copy(store, folder) for store in stores]
        write_verdicts(stores, folder / _VERDICTS)
        for name, write in _CARDS.items():
            (folder / name).write_text(write(studies), encoding="utf-8")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        lines = [f"{_hash(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
        (folder / _CHECKSUMS).write_text("".join(lines), encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    tables = [table for study in studies for table in study.tables]
    return Publication(output, size, max(tables, key=lambda table: table.size))


def _check(stores: Sequence[Store]) -> None:
    names: set[str] = set()
    for store in stores:
        store.need_whole("rows that it has not published itself")
        # It also refuses what is no name of a study: names become those of folders.
        name = StudyConfig.restored(store.record).name
        if name.casefold() in names:
            raise UserError(
                f"{store.root}: another of the studies is named {name}; publish it apart"
            )
        names.add(name.casefold())
        # A trial that has lost a part since has another status than the one it was written with.
        written = store.scan("trials").select("trial", "status").collect()
        unfinished = list_jobs(store).join(written, on=["trial", "status"], how="anti")["trial"]
        told = ("verdicts", "matched")
        lacks = [
            *(f"table {name}" for name in told if not store.has_rows(name)),
            *(f"whole records of {trial}" for trial in unfinished),
        ]
        if lacks:
            raise RecordsError(
                f"{store.root}: has no {lacks[0]}; run the study to its end, then publish it"
            )


def _is_publication(path: Path) -> bool:
    """Whether a folder holds a publication and nothing else, and so may be replaced."""
    try:
        lines = (path / _CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    listed = {line.partition("  ")[2] for line in lines}
    there = {file.relative_to(path) for file in path.rglob("*") if not file.is_dir()}
    # `cf-study frontier` draws figures into the folder of a published study.
    kept = {file.as_posix() for file in there if file.parts[1:2] != ("figures",)}
    return {*_CARDS, _VERDICTS} <= listed and kept - {_CHECKSUMS} <= listed


def _copy(store: Store, folder: Path) -> PublishedStudy:
    """Write the study's own folder within that of the publication."""
    root = folder / store.record["name"]
    keep = {"outcomes": _keep_compared(store), "trials": _drop_hosts}
    # Two segments of songs are in it, which are nobody else's to give away.
    own = () if is_free(store.record["identity"]["corpus"]) else ("examples",)
    tables = [
        _describe(file, folder)
        for table in TABLES
        if table not in (*LEFT_OUT, *own)
        and (file := store.copy(table, root / table, keep.get(table))) is not None
    ]
    record = {**store.record, "left_out": LEFT_OUT}
    (root / "study.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    last = store.trials.select(pl.col("finished_at").max()).collect().item()
    study = PublishedStudy(record, _find_source(store), tables, f"{last:%Y-%m-%d}")
    (root / "config.yaml").write_text(write_config(study), encoding="utf-8")
    return study


def _drop_hosts(trials: pl.DataFrame) -> pl.DataFrame:
    """The machines on which trials ran are nobody else's business."""
    return trials.with_columns(host=pl.lit(""))


def _keep_compared(store: Store) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """What is kept of `outcomes`: pairs of test songs, of points that are reported pair by pair.

    These are the points that are compared on the axes of deployment, and those of the figure of
    transition matrices; and the real neighbours and the inputs.
    """
    metrics = read_finished_metrics(store)
    compared = store.matched.filter(
        pl.col("axis").is_in(DEPLOYED_AXES), pl.col("source") == "test"
    ).collect()
    trials = metrics.select("configuration", "trial").unique()
    named = compared.select("configuration", "lambda", "iteration").join(trials, on="configuration")
    points = [named, find_shown_points(store, metrics)]
    kept = pl.concat(each.select(_POINT) for each in points if not each.is_empty()).unique()

    def keep(outcomes: pl.DataFrame) -> pl.DataFrame:
        marked = outcomes.filter(pl.col("source") == "test").join(
            kept.with_columns(kept=True),
            on=_POINT,
            how="left",
            nulls_equal=True,
            maintain_order="left",
        )
        always = pl.col("method").is_in([REAL, "identity"])
        return marked.filter(always | pl.col("kept")).drop("kept")

    return keep


def _find_source(store: Store) -> str | None:
    """The name of what the study's corpus was ingested from, if its file still lies beside it."""
    if isinstance(store.root, Path):
        for path in sorted((store.root.resolve().parent / ".corpora").glob("*.parquet")):
            with suppress(CorpusError):
                digest, source = read_source(path)
                if digest == store.record["identity"]["corpus"]:
                    return source
    return None


def _describe(file: Path, folder: Path) -> PublishedTable:
    return PublishedTable(
        study=file.parts[-3],
        table=file.parts[-2],
        path=file.relative_to(folder).as_posix(),
        schema=pq.read_schema(file),
        rows=pq.read_metadata(file).num_rows,
        size=file.stat().st_size,
        sha256=_hash(file),
    )


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return file_digest(content, "sha256").hexdigest()
