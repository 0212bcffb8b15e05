"""A study's records: Parquet tables, each with one schema, and the identity they belong to.

The only module that opens a result table. A study's folder holds `study.json` and, for each table,
a folder of part files, `PART.ATTEMPT.parquet`. A part is written whole or not at all. Of several
attempts at one part the highest counts, so that what a worker of an earlier one writes late is
never read. `compact` merges parts into files `compacted-N.parquet`, whose footers say which rows
are of which part and attempt; a part file of the same or a later attempt still counts before them.
So at no moment is a row lost or doubled, whoever is killed. What is no whole part of the table is
moved to `quarantine/TABLE/`, and a warning names it.

`python -m study.store > docs/tables.md` writes the reference of all columns.

Letters in shapes: `Z` latent dimensions, `S` style dimensions.
"""

import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple
from uuid import uuid4

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from polars.datatypes import DataType, DataTypeClass

from cf_core.errors import UserError
from cf_core.files import AnyPath, RemotePath, local, place, replacing
from evaluation.statistics import STATISTICS

_TEXT, _TIME, _TRUTH = pa.string(), pa.timestamp("us", "UTC"), pa.bool_()
_INT8, _INT32, _INT64 = pa.int8(), pa.int32(), pa.int64()
_FLOAT32, _FLOAT64 = pa.float32(), pa.float64()
_TOKENS = pa.list_(pa.field("element", pa.uint8()))
_STYLE = pa.list_(pa.field("element", _FLOAT32))
_LATENT = pa.list_(pa.field("element", _FLOAT32), 0)
"""Stands for a list of `Z` numbers, with `Z` known for each study only."""


def _column(
    name: str, kind: pa.DataType, meaning: str, *, null: bool = False, volatile: bool = False
) -> pa.Field:
    marks = {"meaning": meaning} | ({"volatile": "true"} if volatile else {})
    return pa.field(name, kind, null, marks)


@dataclass(frozen=True)
class Table:
    """What a table is about, and its columns. A change of columns is a new `version`."""

    about: str
    columns: tuple[pa.Field, ...]
    version: int = 5

    def schema(self, latent_dim: int) -> pa.Schema:
        """Arrow schema of the table's parts in a study of `latent_dim` dimensions."""
        latent = pa.list_(_LATENT.value_field, latent_dim)
        columns = (c.with_type(latent) if c.type == _LATENT else c for c in self.columns)
        return pa.schema(columns, {"version": str(self.version)})

    @property
    def volatile(self) -> list[str]:
        """Columns that a second, equal run need not repeat, such as seconds."""
        return [c.name for c in self.columns if b"volatile" in c.metadata]


_TRIAL = _column("trial", _TEXT, "Trial, setting of a baseline, or name of a reference.")
_METHOD = _column(
    "method",
    _TEXT,
    "`fusion` or `conditional`; a rival: `lp`, `gradient`, `cmaes`, `best_of_n`, `slerp`,"
    " `retrieval`, `identity`; `floor`, `ceiling`, `real`.",
)
_LAMBDA = _column(
    "lambda",
    _FLOAT64,
    "λ (equation 4); of a conditional trial, the one it is read at; of a rival, that of its"
    " penalty.",
    null=True,
)
_STYLE_DIM = _column("style_dim", _INT32, "`S` of a trial.", null=True)
_SEED = _column("seed", _INT64, "Training seed of a trial.", null=True)
_STEP_SIZE = _column("step_size", _FLOAT64, "η of a rival.", null=True)
_SOURCE = _column("source", _TEXT, "Origin of the input pairs, such as `test` or `prior`.")
_ITERATION = _column("iteration", _INT32, "Number of applications, steps or draws; 0 for none.")
_METRIC = _column("metric", _TEXT, "What is measured, such as `judge` or `mean_pitch`.")
_AXIS = _column("axis", _TEXT, "Similarity axis: `z_distance` or `edit_distance`.")
_CONFIGURATION = _column("configuration", _TEXT, "Configuration: a trial without its seed.")
_BATCH = _column("batch", _INT32, "Batch in which it was proposed; -1 for another study's.")
_PROPOSED = (
    _column("lambda", _FLOAT64, "λ; null for a conditional one.", null=True),
    _column("style_dim", _INT32, "`S`."),
    _column("hidden", _INT32, "Width of G and D, where searched.", null=True),
    _column("learning_rate", _FLOAT64, "Learning rate, where searched.", null=True),
    _column("steps", _INT32, "Training budget, where searched.", null=True),
    _column("style_weight", _FLOAT64, "Weight of the style loss, where searched.", null=True),
)

_BINS = tuple(
    _column(f"{statistic}_{half}", _INT8, f"Bin of the {half} half's {name}; -1 for none.")
    for statistic, name in ((statistic, statistic.replace("_", " ")) for statistic in STATISTICS)
    for half in ("left", "right")
)
_MEASURED = tuple(
    _column(name, _FLOAT32, f"{meaning} NaN where a latent was not finite.", null=True)
    for name, meaning in (
        ("judge", "Probability of the judge."),
        ("search_classifier", "Probability of the search classifier; null for real pairs."),
        ("halves_distance", "Edit distance of the two halves to each other."),
        ("z_distance", "Equation 7 to the inputs; null for real pairs."),
        ("z_weighted", "Weighted z-distance to the inputs; null for real pairs."),
        ("edit_distance", "Edit distance of both halves to the inputs; null for real pairs."),
    )
)

TABLES: dict[str, Table] = {
    "trials": Table(
        "One row per trial or setting of a baseline that is over, whether done or failed: the"
        " ledger of the study.",
        (
            _TRIAL,
            _METHOD,
            _LAMBDA,
            _STYLE_DIM,
            _SEED,
            _STEP_SIZE,
            _column("hidden", _INT32, "Width of a trial's G and D.", null=True),
            _column("learning_rate", _FLOAT64, "Learning rate of a trial's G and D.", null=True),
            _column("style_weight", _FLOAT64, "Weight of a trial's style loss.", null=True),
            _column("steps", _INT32, "Updates of G, or proposals; null if it failed.", null=True),
            _column("status", _TEXT, "`done`; `pruned`, `diverged` or `failed`, with a reason."),
            _column("reason", _TEXT, "Why it is not done.", null=True),
            _column("checkpoint", _TEXT, "Weights, relative to the study's folder.", null=True),
            _column("fingerprint", _TEXT, "Fingerprint of the study."),
            _column(
                "seconds",
                _FLOAT64,
                "Wall time since its job began; the trials of a pack share it.",
                volatile=True,
            ),
            _column(
                "training_seconds",
                _FLOAT64,
                "Its share of the wall time of its pack's training, since the last interruption.",
                null=True,
                volatile=True,
            ),
            _column(
                "peak_memory_mb",
                _FLOAT64,
                "Peak memory of the process in 10⁶ bytes; null where it was killed.",
                null=True,
                volatile=True,
            ),
            _column("attempt", _INT32, "1 for the first attempt.", volatile=True),
            _column("host", _TEXT, "Machine.", volatile=True),
            _column("device", _TEXT, "Torch device.", null=True, volatile=True),
            _column(
                "hardware", _TEXT, "Processor, GPU if any, and cores it may use.", volatile=True
            ),
            _column(
                "versions",
                _TEXT,
                "Versions of Python and of the libraries, as JSON.",
                volatile=True,
            ),
            _column("git_commit", _TEXT, "Commit of the code.", null=True, volatile=True),
            _column(
                "git_dirty", _TRUTH, "Whether code was not committed.", null=True, volatile=True
            ),
            _column("finished_at", _TIME, "When it was over.", volatile=True),
            _column(
                "parts",
                _TEXT,
                "Tables that hold its rows, with commas between: it counts as done while all do.",
            ),
        ),
    ),
    "configurations": Table(
        "What was proposed, written before any of it was tried.",
        (
            _CONFIGURATION,
            _BATCH,
            _column("number", _INT32, "Place in its batch, from 0."),
            _column("origin", _TEXT, "`grid`, the name of the sampler, `first` or `warm_start`."),
            *_PROPOSED,
        ),
    ),
    "objectives": Table(
        "What came of each configuration, as the search was told.",
        (
            _CONFIGURATION,
            _BATCH,
            _column("state", _TEXT, "`COMPLETE`, `PRUNED` or `FAIL`."),
            _column("judge", _FLOAT64, "Selection judge, mean over seeds.", null=True),
            _column("z_distance", _FLOAT64, "z-distance, mean over seeds.", null=True),
            _column(
                "violations",
                pa.list_(pa.field("element", _FLOAT64)),
                "By how much each constraint is missed; 0 or less where it holds.",
            ),
        ),
    ),
    "rungs": Table(
        "Metrics of trials at the rungs of successive halving, on validation songs.",
        (
            _TRIAL,
            _CONFIGURATION,
            _BATCH,
            _column("rung", _INT32, "Training steps taken so far."),
            _LAMBDA,
            _ITERATION,
            _METRIC,
            _column("value", _FLOAT64, "The metric."),
        ),
        version=6,
    ),
    "importances": Table(
        "How much each searched parameter matters to the objectives (PED-ANOVA).",
        (
            _column("objective", _TEXT, "`judge` or `z_distance`."),
            _column("parameter", _TEXT, "Name of the parameter."),
            _column("importance", _FLOAT64, "Its share."),
        ),
    ),
    "attempts": Table(
        "Which trials and settings were handed to workers, written before they were.",
        (
            _column("wave", _INT32, "Jobs handed out together, counted from 1.", volatile=True),
            _column("trial", _TEXT, "Trial, or setting of a rival.", volatile=True),
            _column("attempt", _INT32, "1 for the first time.", volatile=True),
            _column("started_at", _TIME, "When.", volatile=True),
        ),
    ),
    "curves": Table(
        "Losses in training: means over the steps since the row before.",
        (
            _column("trial", _TEXT, "Identifier of the trial."),
            _column("step", _INT32, "Updates of G made so far."),
            _column("loss", _TEXT, "Name of the loss, such as `eq5`."),
            _column("value", _FLOAT32, "Its mean."),
        ),
    ),
    "latents": Table(
        "Inputs and outputs of every transform, one row per pair.",
        (
            _TRIAL,
            _METHOD,
            _LAMBDA,
            _SOURCE,
            _ITERATION,
            _column("pair", _INT32, "Number of the input pair in its source."),
            _column("left_song", _TEXT, "Song of the left input; null for a prior.", null=True),
            _column("right_song", _TEXT, "Song of the right input; null for a prior.", null=True),
            _column("style", _STYLE, "`S` numbers in 0…1; empty without style."),
            _column("z_left_in", _LATENT, "Left input."),
            _column("z_right_in", _LATENT, "Right input."),
            _column("z_left", _LATENT, "Left output."),
            _column("z_right", _LATENT, "Right output."),
        ),
    ),
    "outcomes": Table(
        "What was measured of every pair of every point; method `real` is all real neighbours.",
        (
            _TRIAL,
            _METHOD,
            _LAMBDA,
            _SEED,
            _SOURCE,
            _ITERATION,
            _column("pair", _INT32, "Number of the input pair in its source."),
            _column("left_song", _TEXT, "Song of the left half; null for a prior.", null=True),
            _column("right_song", _TEXT, "Song of the right half; null for a prior.", null=True),
            *_MEASURED,
            *_BINS,
        ),
    ),
    "costs": Table(
        "What a transform cost, over all sources.",
        (
            _TRIAL,
            _METHOD,
            _LAMBDA,
            _ITERATION,
            _column("pairs", _INT64, "Pairs transformed."),
            _column(
                "classifier_calls",
                _FLOAT64,
                "Calls of the search classifier per pair; one with its gradient counts as 3.",
            ),
            _column("decoder_calls", _FLOAT64, "Calls of the decoder per pair."),
            _column("seconds", _FLOAT64, "Wall time for all pairs.", volatile=True),
            _column("device", _TEXT, "Torch device.", volatile=True),
        ),
    ),
    "bins": Table(
        "Bins of the musical statistics: quantiles of the training segments.",
        (
            _column("statistic", _TEXT, "Name of the statistic."),
            _column("bin", _INT32, "Number of the bin, from 0."),
            _column("lower", _FLOAT64, "Its lower edge; null for the first, open one.", null=True),
        ),
    ),
    "song_distances": Table(
        "z-distances of segments of the test songs, of one song and of two.",
        (
            _column("kind", _TEXT, "`same song` or `different songs`."),
            _column("z_distance", _FLOAT64, "Equation 7, of one half."),
        ),
    ),
    "examples": Table(
        "One input pair, and what the selected trial makes of it in several styles.",
        (
            _TRIAL,
            _LAMBDA,
            _ITERATION,
            _column("row", _INT32, "Order of the rows; 0 is the inputs."),
            _column("label", _TEXT, "`inputs`, or the style."),
            _column("left_song", _TEXT, "Song of the left input."),
            _column("right_song", _TEXT, "Song of the right input."),
            _column("left", _TOKENS, "Tokens of the left half."),
            _column("right", _TOKENS, "Tokens of the right half."),
        ),
    ),
    "metrics": Table(
        "One row per trial (and λ), baseline or reference, source, iteration and metric.",
        (
            _TRIAL,
            _METHOD,
            _LAMBDA,
            _STYLE_DIM,
            _SEED,
            _STEP_SIZE,
            _SOURCE,
            _ITERATION,
            _METRIC,
            _column("value", _FLOAT64, "The metric."),
            _column("low", _FLOAT64, "Lower end of its 95 % interval.", null=True),
            _column("high", _FLOAT64, "Upper end of its 95 % interval.", null=True),
            _column("n", _INT64, "Pairs that count."),
            _column("excluded", _INT64, "Pairs left out: not finite, or silent."),
        ),
    ),
    "frontier": Table(
        "Coherency against similarity: one row per point of a panel.",
        (
            _SOURCE,
            _METRIC,
            _AXIS,
            _METHOD,
            _TRIAL,
            _LAMBDA,
            _ITERATION,
            _column("similarity", _FLOAT64, "Distance between inputs and outputs."),
            _column("coherency", _FLOAT64, "The metric."),
            _column("non_dominated", _TRUTH, "Whether no point of the method is better in both."),
        ),
    ),
    "matched": Table(
        "Fusion and a rival at matched similarity: chosen on validation songs, scored on test"
        " songs.",
        (
            _column("rival", _TEXT, "Method that fusion is compared with."),
            _AXIS,
            _SOURCE,
            _METRIC,
            _column("distance", _FLOAT64, "Largest mean distance allowed."),
            _column("method", _TEXT, "`ours` (`fusion` and `conditional`), or the rival."),
            _column("trial", _TEXT, "What was chosen: a trial without its seed, or a setting."),
            _LAMBDA,
            _ITERATION,
            _column("validation_value", _FLOAT64, "The metric on validation songs."),
            _column("value", _FLOAT64, "The metric on test songs."),
            _column("candidates", _INT64, "Points that it was chosen from."),
            _column("excluded", _INT64, "Points left out: unfinished or not finite."),
        ),
    ),
    "verdicts": Table(
        "Fusion less a rival at matched similarity, in every panel.",
        (
            _column("rival", _TEXT, "Method that fusion is compared with."),
            _AXIS,
            _SOURCE,
            _METRIC,
            _column("difference", _FLOAT64, "Mean over the distances; positive is for fusion."),
            _column("low", _FLOAT64, "Lower end of its 95 % interval.", null=True),
            _column("high", _FLOAT64, "Upper end of its 95 % interval.", null=True),
            _column("p", _FLOAT64, "Two-sided p of no difference.", null=True),
            _column("p_holm", _FLOAT64, "p, corrected over the 12 panels.", null=True),
            _column(
                "verdict",
                _TEXT,
                "`win`, `tie` or `loss` of fusion; null with one training seed.",
                null=True,
            ),
            _column("songs", _INT64, "Songs, or blocks of prior pairs, that were resampled."),
            _column("seeds", _INT64, "Training seeds."),
            _column("excluded", _INT64, "Pairs of the points compared that were left out."),
            _column("candidates", _INT64, "Points that either could choose from."),
        ),
    ),
    "hypervolumes": Table(
        "Hypervolume of each method's front, by training seed.",
        (
            _SOURCE,
            _METRIC,
            _AXIS,
            _METHOD,
            _SEED,
            _column("hypervolume", _FLOAT64, "Area up to the largest matched distance, above 0."),
            _column("candidates", _INT64, "Points of the front's choice."),
        ),
    ),
}


_FILE_BYTES = 256 * 10**6
"""In memory: about what one file holds after compaction."""
_GROUP_ROWS = 1 << 17
_PART_FILE = re.compile(r"(\w[\w.+-]*)\.(\d+)\.parquet", re.ASCII)
_COMPACTED_FILE = re.compile(r"compacted-(\d+)\.parquet", re.ASCII)


class QuarantineWarning(UserWarning):
    """Names a file that is no whole part of its table, and where it is now."""


class Compaction(NamedTuple):
    """What compacting a table gained."""

    table: str
    files: tuple[int, int]
    """Before and after."""
    bytes: tuple[int, int]
    """Before and after."""


class _Rows(NamedTuple):
    """Where the rows of a part are: in a file of its own, or in one of many parts."""

    part: str
    attempt: int
    file: AnyPath
    start: int = 0
    length: int | None = None
    """None for all."""


Rows = pl.DataFrame | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""What can be written: a frame, a list of rows, or columns by name (2-D arrays for latents)."""

_Held = Mapping[str, _Rows]
"""What one file holds, by part."""


class Store:
    """The records under one folder, local or in any file system of pyarrow.

    Each table is a lazy Polars frame: `store.trials`, `store.metrics`. Writers on several machines
    may share the folder: each writes parts of its own.
    """

    trials: pl.LazyFrame
    configurations: pl.LazyFrame
    objectives: pl.LazyFrame
    rungs: pl.LazyFrame
    importances: pl.LazyFrame
    attempts: pl.LazyFrame
    curves: pl.LazyFrame
    latents: pl.LazyFrame
    outcomes: pl.LazyFrame
    costs: pl.LazyFrame
    bins: pl.LazyFrame
    song_distances: pl.LazyFrame
    examples: pl.LazyFrame
    metrics: pl.LazyFrame
    frontier: pl.LazyFrame
    matched: pl.LazyFrame
    verdicts: pl.LazyFrame
    hypervolumes: pl.LazyFrame

    def __init__(self, root: AnyPath) -> None:
        self.root = root
        self._known: dict[AnyPath, _Held] = {}
        """Files that were looked into and are sound."""
        self._ignored: set[AnyPath] = set()
        """Files that are not and can't be moved, or are gone."""

    def claim(self, identity: Mapping[str, Any], fingerprint: str, name: str) -> None:
        """Make the folder that of this study, or check that it is.

        `identity` and `fingerprint` are those of `StudyConfig`. Raises `UserError` if the folder
        holds another study, naming the settings that differ, or something else.
        """
        record = self.root / "study.json"
        if record.exists():
            self.check(identity)
            return
        versions = {table: TABLES[table].version for table in TABLES}
        text = json.dumps(
            {"name": name, "fingerprint": fingerprint, "tables": versions, "identity": identity},
            indent=2,
        )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if any(True for _ in self.root.glob("[!.]*")):
                raise UserError(
                    f"{self.root}: holds files but no study.json; give the study another name or"
                    " results folder, or remove them"
                )
            with replacing(record) as temporary:
                temporary.write_text(text + "\n")
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            raise UserError(f"{self.root}: cannot be written: {reason}") from None

    def check(self, identity: Mapping[str, Any]) -> None:
        """Raise `UserError` where settings differ from those that the study was begun with."""
        if changed := differences(self.record["identity"], identity):
            raise UserError(
                f"{self.root}: was begun with other settings ({'; '.join(changed)}); give the"
                " study another name or results folder, or set them back"
            )

    @cached_property
    def record(self) -> dict[str, Any]:
        """What `study.json` holds: name, fingerprint, identity, version of each table.

        Raises `UserError` if there is none or it is damaged or of another version.
        """
        path = self.root / "study.json"
        try:
            record: dict[str, Any] = json.loads(path.read_bytes())
            versions, _ = record["tables"], record["identity"]["core"]["latent_dim"]
        except OSError:
            raise UserError(f"{self.root}: is not the folder of a study (no study.json)") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}: is damaged; restore it, or run the study in another folder"
            ) from None
        if versions != {name: table.version for name, table in TABLES.items()}:
            raise UserError(
                f"{path}: the tables are of other versions ({json.dumps(versions)}); read them"
                " with the release that wrote them"
            )
        return record

    def write(self, table: str, part: str, rows: Rows, attempt: int = 1) -> None:
        """Write one part, which replaces what the same or an earlier `attempt` wrote.

        A column that may be null may be missing. Raises `ValueError`, which names the column, for
        what the schema does not allow, and for a `part` that is no plain file name.
        """
        if not re.fullmatch(r"\w[\w.+-]*", part, re.ASCII):
            raise ValueError(f"part {part!r}: must be letters, digits and . _ + - only")
        schema = self._schema(table)
        data = _conform(pl.DataFrame(rows, infer_schema_length=None), schema, table)
        with replacing(self.root / table / f"{part}.{attempt}.parquet") as temporary:
            pq.write_table(data, temporary, **_encoding(schema))

    def scan(self, table: str) -> pl.LazyFrame:
        """All rows of a table, for a table's name in a variable; else it is an attribute.

        Without rows where there is no part. What is no part of the table is set aside, with a
        warning.
        """
        schema, whole, slices = self._schema(table), [], []
        for file, rows in self._live(table).items():
            if len(rows) == len(self._known[file]):
                whole.append(file)
            else:
                frame = _lazy([file], schema)
                slices += [frame.slice(start, count) for start, count in _runs(rows)]
        return pl.concat([_lazy(whole, schema), *slices])

    def sql(self, query: str) -> pl.DataFrame:
        """Run one SQL query (of Polars' dialect) over all tables.

        Raises `UserError` with Polars' own words if it can't be run.
        """
        named = [table for table in TABLES if re.search(rf"\b{table}\b", query)]
        context = pl.SQLContext({table: self.scan(table) for table in named})
        try:
            return context.execute(query, eager=True)
        except (pl.exceptions.PolarsError, OSError) as error:
            message = " ".join(str(error).split("\n\n")[0].split())
            raise UserError(f"SQL: {message} (tables: {', '.join(TABLES)})") from None

    def has(self, table: str, part: str) -> bool:
        """Whether a part was written and is still there."""
        return part in self._parts(table)

    def done_trials(self) -> dict[str, str]:
        """Status of each trial that is over, by its identifier."""
        return dict(self.ledger().select("trial", "status").iter_rows())

    def tried(self) -> dict[str, int]:
        """How often each trial and setting was handed to a worker, by its name."""
        tried = self.scan("attempts").group_by("trial").agg(pl.col("attempt").max())
        return dict(tried.collect().iter_rows())

    def ledger(self) -> pl.DataFrame:
        """The table `trials`, where a trial of which other tables have lost their part has failed.

        So the next run tries it again. Only `latents` may be removed as a whole, to make room.
        """
        trials = self.scan("trials").collect()
        parts = trials.select("trial", "parts")
        kept = {trial: tables.split(",") if tables else [] for trial, tables in parts.iter_rows()}
        written = {table: self._parts(table) for table in set().union(*kept.values())}
        if not written.get("latents"):
            kept = {trial: [t for t in tables if t != "latents"] for trial, tables in kept.items()}
        lost = {
            trial: f"its part of {', '.join(gone)} is lost"
            for trial, tables in kept.items()
            if (gone := [table for table in tables if trial not in written[table]])
        }
        if not lost:
            return trials
        again = pl.col("trial").is_in(list(lost))
        return trials.with_columns(
            status=pl.when(again).then(pl.lit("failed")).otherwise("status"),
            reason=pl.when(again)
            .then(pl.col("trial").replace_strict(lost, default=None, return_dtype=pl.String))
            .otherwise("reason"),
        )

    def inspect(self) -> None:
        """Look into every file of every table, and set aside what is damaged or foreign."""
        for table in TABLES:
            self._live(table)

    def quarantined(self) -> list[AnyPath]:
        """All that was ever set aside."""
        folders = [self.root / "quarantine" / table for table in TABLES]
        return [file for folder in folders for file in folder.glob("*")]

    def compact(self) -> Iterator[Compaction]:
        """Merge the many parts of each table into few files, one table after the other.

        It may be stopped or killed at any moment, and called again; but no run may write meanwhile.
        Raises `UserError` where the folder can't be written.
        """
        for table in TABLES:
            live, files = self._live(table), self._files(table)
            schema = self._schema(table)
            whole = [f for f in files if f in live and len(live[f]) == len(self._known[f])]
            settled = [file for file in whole if self._count(file) >= _file_rows(schema)]
            todo = [file for file in files if file not in settled]
            if len(todo) <= 1 and set(todo) <= set(whole):
                continue
            size = _bytes(files)
            rows = [rows for file in todo for rows in live.get(file, ())]
            merged = self._merge(table, rows, files)
            # Only now: till here the part files have counted.
            for file in todo:
                file.unlink(missing_ok=True)
                self._known.pop(file, None)
            kept = [*settled, *merged]
            yield Compaction(table, (len(files), len(kept)), (size, _bytes(kept)))

    def _count(self, file: AnyPath) -> int:
        """Rows of a compacted file; 0 for others."""
        return sum(rows.length or 0 for rows in self._known[file].values())

    def _merge(self, table: str, rows: Sequence[_Rows], files: Sequence[AnyPath]) -> list[AnyPath]:
        """Write rows to new compacted files of a table, sorted by part."""
        schema, merged = self._schema(table), []
        numbers = [int(found[1]) for f in files if (found := _COMPACTED_FILE.fullmatch(f.name))]
        number = max(numbers, default=0)
        for batch in _batches(sorted(rows), schema):
            number += 1
            held = [(rows.part, rows.attempt, len(data)) for rows, data in batch]
            marks = schema.metadata | {b"parts": json.dumps(held)}
            data = pa.concat_tables([data for _, data in batch]).replace_schema_metadata(marks)
            file = self.root / table / f"compacted-{number}.parquet"
            with replacing(file) as temporary:
                pq.write_table(data, temporary, row_group_size=_GROUP_ROWS, **_encoding(schema))
            merged.append(file)
        return merged

    def _live(self, table: str) -> dict[AnyPath, list[_Rows]]:
        """By file, in order of their rows, the parts that count; all files are sound."""
        while True:
            live: dict[AnyPath, list[_Rows]] = {}
            for rows in sorted(self._parts(table).values()):
                live.setdefault(rows.file, []).append(rows)
            new = [file for file in live if file not in self._known]
            inspect = partial(self._inspect, table=table)
            if isinstance(self.root, RemotePath):
                with ThreadPoolExecutor() as pool:
                    sound = list(pool.map(inspect, new))
            else:
                sound = list(map(inspect, new))
            if all(sound):
                return live

    def _parts(self, table: str) -> dict[str, _Rows]:
        """Where the rows of each part are: those of the highest attempt.

        Of the files that hold the same attempt, a part's own, then the latest compacted one.
        """
        parts: dict[str, _Rows] = {}
        for file in self._files(table):
            if found := _PART_FILE.fullmatch(file.name):
                held: _Held = {found[1]: _Rows(found[1], int(found[2]), file)}
            elif file in self._known or self._inspect(file, table):
                held = self._known[file]
            else:
                continue
            for part, rows in held.items():
                if part not in parts or rows.attempt >= parts[part].attempt:
                    parts[part] = rows
        return parts

    def _files(self, table: str) -> list[AnyPath]:
        """All files of a table but those set aside, compacted ones first, by their number."""

        def rank(file: AnyPath) -> tuple[bool, int, str]:
            found = _COMPACTED_FILE.fullmatch(file.name)
            return found is None, int(found[1]) if found else 0, file.name

        files = (self.root / table).glob("[!.]*.parquet")
        return sorted((file for file in files if file not in self._ignored), key=rank)

    def _inspect(self, file: AnyPath, table: str) -> bool:
        """Look into a file once, and set it aside unless it is sound."""
        try:
            self._known[file] = _held(file, self._schema(table))
        except FileNotFoundError:  # compacted by another process since it was listed
            self._ignored.add(file)
            return False
        except OSError as error:
            raise UserError(f"{file}: can't be read ({error})") from None
        except ValueError as error:
            self._set_aside(file, table, str(error))
            return False
        return True

    def _set_aside(self, file: AnyPath, table: str, problem: str) -> None:
        target = self.root / "quarantine" / table / file.name
        try:
            if target.exists():
                target = target.with_name(f"{uuid4().hex[:8]}-{file.name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)  # type: ignore[arg-type]  # both are local, or both are not
        except FileNotFoundError:
            return
        except OSError:
            self._ignored.add(file)
            where = "is left out"
        else:
            where = f"was moved to {target}"
        told = f"{file}: {problem}; it {where}, and running the study again makes anew what it held"
        warnings.warn(told, QuarantineWarning, stacklevel=2)

    def _schema(self, table: str) -> pa.Schema:
        return TABLES[table].schema(self.record["identity"]["core"]["latent_dim"])


def open(path: str | AnyPath) -> Store:  # noqa: A001
    """Open the records of a study by its folder or URI. Raises `UserError` if it is none."""
    store = Store(place(path) if isinstance(path, str) else path)
    _ = store.record
    return store


def _frame(table: str) -> property:
    return property(lambda store: store.scan(table), doc=TABLES[table].about)


for _name in TABLES:
    setattr(Store, _name, _frame(_name))


def comparable(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    """Return the rows in a fixed order, without volatile columns: what equal runs have equal."""
    kept = frame.drop(TABLES[table].volatile)
    if not kept.columns:
        return kept.clear()  # a table of what happened, of which nothing repeats
    return kept.sort([name for name, kind in kept.schema.items() if not kind.is_nested()])


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the settings that differ between two identities, as `dotted.key: old -> new`."""
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        below = old.get(key), new.get(key)
        if isinstance(below[0], Mapping) and isinstance(below[1], Mapping):
            found += differences(below[0], below[1], f"{prefix}{key}.")
            continue
        before, after = (json.dumps(s[key]) if key in s else "absent" for s in (old, new))
        if before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def reference() -> str:
    """Every table with its columns, types and meanings, as Markdown."""
    lines = [
        "# Tables",
        "",
        "The records of a study: each table is a folder of Parquet files of one schema (zstd;"
        " floats byte-stream-split). Columns marked *volatile* can't repeat; equal runs have all"
        " others equal. `Z` is the number of latent dimensions.",
    ]
    for name, table in TABLES.items():
        lines += ["", f"## {name}", "", f"{table.about} Schema version {table.version}.", ""]
        lines += ["| Column | Type | Meaning |", "|---|---|---|"]
        for column in table.columns:
            kind = "list<float>[Z]" if column.type == _LATENT else str(column.type)
            kind = kind.replace("element: ", "") + (" or null" if column.nullable else "")
            volatile = " *volatile*" if column.name in table.volatile else ""
            meaning = column.metadata[b"meaning"].decode()
            lines.append(f"| `{column.name}` | {kind} | {meaning}{volatile} |")
    return "\n".join(lines) + "\n"


def _conform(frame: pl.DataFrame, schema: pa.Schema, table: str) -> pa.Table:
    if unknown := [name for name in frame.columns if name not in schema.names]:
        raise ValueError(f"{table}: no column {unknown[0]}")
    columns = {}
    for name, wanted in _polars(schema).items():
        column = frame[name] if name in frame.columns else pl.Series([None] * frame.height)
        if not _fits(column.dtype, wanted):
            raise ValueError(f"{table}.{name}: must be {wanted}, not {column.dtype}")
        if column.null_count() and not schema.field(name).nullable:
            raise ValueError(f"{table}.{name}: a value is missing")
        try:
            columns[name] = column.cast(wanted)
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{table}.{name}: must be {wanted}: {error}") from None
    return pl.DataFrame(columns).to_arrow().cast(schema)


def _fits(given: DataType | DataTypeClass, wanted: DataType | DataTypeClass) -> bool:
    if isinstance(given, pl.List | pl.Array) and isinstance(wanted, pl.List | pl.Array):
        return _fits(given.inner, wanted.inner)
    return (
        given in (wanted, pl.Null)
        or (wanted.is_integer() and given.is_integer())
        or (wanted.is_float() and given.is_numeric())
    )


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """How the columns of a part are written, as arguments of pyarrow's writers."""
    floats: list[str] = []
    others: list[str] = []
    for field in schema:
        nested = hasattr(field.type, "value_type")
        leaf = field.type.value_type if nested else field.type
        path = f"{field.name}.list.element" if nested else field.name
        (floats if pa.types.is_floating(leaf) else others).append(path)
    return {
        "compression": "zstd",
        "use_dictionary": others,
        "column_encoding": dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
    }


def _polars(schema: pa.Schema) -> pl.Schema:
    return pl.DataFrame(schema.empty_table()).schema


def _lazy(files: Sequence[AnyPath], schema: pa.Schema) -> pl.LazyFrame:
    remote = [file.opened for file in files if isinstance(file, RemotePath)]
    if not remote:
        return pl.scan_parquet([str(file) for file in files], schema=_polars(schema), glob=False)
    paths = [path for _, path in remote]
    dataset = ds.dataset(paths, schema=schema, filesystem=remote[0][0], format="parquet")
    return pl.scan_pyarrow_dataset(dataset)


def _runs(rows: Sequence[_Rows]) -> list[tuple[int, int]]:
    """Start and length of the stretches of a compacted file that consist of these rows."""
    runs: list[tuple[int, int]] = []
    for start, count in sorted((each.start, each.length or 0) for each in rows):
        if runs and sum(runs[-1]) == start:
            runs[-1] = runs[-1][0], runs[-1][1] + count
        else:
            runs.append((start, count))
    return runs


def _held(file: AnyPath, schema: pa.Schema) -> _Held:
    """What a file holds. Raises `ValueError` where that is no rows of the schema."""
    found = _read_schema(file)
    marks = found.metadata or {}
    if not found.equals(schema) or marks.get(b"version") != schema.metadata[b"version"]:
        raise ValueError("is of another table, study or release")
    if name := _PART_FILE.fullmatch(file.name):
        return {name[1]: _Rows(name[1], int(name[2]), file)}
    if not _COMPACTED_FILE.fullmatch(file.name) or b"parts" not in marks:
        raise ValueError("does not say whose rows it holds")
    held, start = {}, 0
    for part, attempt, count in json.loads(marks[b"parts"]):
        held[part] = _Rows(part, attempt, file, start, count)
        start += count
    return held


def _read_schema(file: AnyPath) -> pa.Schema:
    system, path = file.opened if isinstance(file, RemotePath) else (None, file)
    with suppress(pa.ArrowException, OSError):
        return pq.read_schema(path, filesystem=system)
    # Again from memory: what fails there too is not the fault of a disk or a network.
    content = file.read_bytes()
    try:
        return pq.read_schema(pa.BufferReader(content))
    except (pa.ArrowException, OSError):
        raise ValueError("is no whole Parquet file") from None


def _batches(rows: Iterable[_Rows], schema: pa.Schema) -> Iterator[list[tuple[_Rows, pa.Table]]]:
    """The content of parts, as much at a time as goes to one compacted file."""
    read = lru_cache(maxsize=4)(_read_table)
    batch: list[tuple[_Rows, pa.Table]] = []
    count = 0
    for each in rows:
        if each.length is None:
            data = _read_table(each.file, schema)
        else:
            data = read(each.file, schema).slice(each.start, each.length)
        batch.append((each, data))
        count += len(data)
        if count >= _file_rows(schema):
            yield batch
            batch, count = [], 0
    if batch:
        yield batch


def _file_rows(schema: pa.Schema) -> int:
    """How many rows a file holds after compaction, about."""
    widths = (4 * getattr(field.type, "list_size", 4) for field in schema)
    return max(1, _FILE_BYTES // sum(widths))


def _read_table(file: AnyPath, schema: pa.Schema) -> pa.Table:
    with local(file) as whole:
        return pq.read_table(whole, schema=schema)


def _bytes(files: Iterable[AnyPath]) -> int:
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    sys.stdout.write(reference())
