"""A study's records: Parquet tables, each with one schema, and the identity they belong to.

The only module that opens a result table. A study's folder holds `study.json` and, for each table,
a folder of part files. A part is written whole or not at all, and writing it again replaces it.

`python -m study.store > docs/tables.md` writes the reference of all columns.

Letters in shapes: `Z` latent dimensions, `S` style dimensions.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.datatypes import DataType, DataTypeClass

from cf_core.errors import UserError
from cf_core.files import replacing
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
            _column("versions", _TEXT, "Versions of the libraries, as JSON.", volatile=True),
            _column("git_commit", _TEXT, "Commit of the code.", null=True, volatile=True),
            _column(
                "git_dirty", _TRUTH, "Whether code was not committed.", null=True, volatile=True
            ),
            _column("finished_at", _TIME, "When it was over.", volatile=True),
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
        "Points of trials at the rungs of successive halving, on validation songs.",
        (
            _TRIAL,
            _CONFIGURATION,
            _BATCH,
            _column("rung", _INT32, "Training steps taken so far."),
            _LAMBDA,
            _ITERATION,
            _column("judge", _FLOAT64, "Selection judge."),
            _column("z_distance", _FLOAT64, "z-distance."),
        ),
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


class Store:
    """The records under one folder.

    Writers on several machines may share the folder: each writes parts of its own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

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
            if any(not entry.name.startswith(".") for entry in self.root.iterdir()):
                raise UserError(
                    f"{self.root}: holds files but no study.json; give the study another name or"
                    " results folder, or remove them"
                )
            with replacing(record) as temporary:
                temporary.write_text(text + "\n")
        except OSError as error:
            raise UserError(f"{self.root}: cannot be written: {error.strerror}") from None

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

    def write(
        self,
        table: str,
        part: str,
        rows: pl.DataFrame | Sequence[Mapping[str, Any]] | Mapping[str, Any],
    ) -> None:
        """Write one part: a frame, a list of rows, or columns by name (2-D arrays for latents).

        A column that may be null may be missing. Raises `ValueError`, which names the column, for
        what the schema does not allow, and for a `part` that is no plain file name.
        """
        if not re.fullmatch(r"\w[\w.+-]*", part, re.ASCII):
            raise ValueError(f"part {part!r}: must be letters, digits and . _ + - only")
        schema = self._schema(table)
        data = _conform(pl.DataFrame(rows, infer_schema_length=None), schema, table)
        floats, others = _by_encoding(schema)
        path = self.root / table / f"{part}.parquet"
        with replacing(path) as temporary:
            pq.write_table(
                data,
                temporary,
                compression="zstd",
                use_dictionary=others,
                column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
            )

    def scan(self, table: str) -> pl.LazyFrame:
        """All parts of a table as one lazy frame; without rows where there is no part.

        Raises `UserError` for a part that is truncated or of another schema.
        """
        schema = self._schema(table)
        parts = sorted((self.root / table).glob("[!.]*.parquet"))
        for part in parts:
            _check(part, schema, table)
        return pl.scan_parquet(parts, schema=_polars(schema), glob=False)

    def sql(self, query: str) -> pl.DataFrame:
        """Run one SQL query (of Polars' dialect) over all tables.

        Raises `UserError` with Polars' own words if it can't be run.
        """
        context = pl.SQLContext({table: self.scan(table) for table in TABLES})
        try:
            return context.execute(query, eager=True)
        except (pl.exceptions.PolarsError, OSError) as error:
            message = " ".join(str(error).split("\n\n")[0].split())
            raise UserError(f"SQL: {message} (tables: {', '.join(TABLES)})") from None

    def has(self, table: str, part: str) -> bool:
        """Whether a part was written."""
        return (self.root / table / f"{part}.parquet").exists()

    def done_trials(self) -> dict[str, str]:
        """Status of each trial that is over, by its identifier."""
        return dict(self.scan("trials").select("trial", "status").collect().iter_rows())

    def attempts(self) -> dict[str, int]:
        """How often each trial and setting was handed to a worker, by its name."""
        tried = self.scan("attempts").group_by("trial").agg(pl.col("attempt").max())
        return dict(tried.collect().iter_rows())

    def _schema(self, table: str) -> pa.Schema:
        return TABLES[table].schema(self.record["identity"]["core"]["latent_dim"])


def open(path: str | Path) -> Store:  # noqa: A001
    """Open the records of a study by its folder. Raises `UserError` if it is none."""
    store = Store(Path(path))
    _ = store.record
    return store


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


def _by_encoding(schema: pa.Schema) -> tuple[list[str], list[str]]:
    """Parquet paths of the columns that hold floats, and of all others."""
    floats: list[str] = []
    others: list[str] = []
    for field in schema:
        nested = hasattr(field.type, "value_type")
        leaf = field.type.value_type if nested else field.type
        path = f"{field.name}.list.element" if nested else field.name
        (floats if pa.types.is_floating(leaf) else others).append(path)
    return floats, others


def _polars(schema: pa.Schema) -> pl.Schema:
    return pl.DataFrame(schema.empty_table()).schema


def _check(part: Path, schema: pa.Schema, table: str) -> None:
    try:
        found = pq.read_schema(part)
    except (pa.ArrowException, OSError):
        raise UserError(
            f"{part}: is no whole Parquet file; remove it and run the study again"
        ) from None
    version = (found.metadata or {}).get(b"version")
    if not found.equals(schema) or version != schema.metadata[b"version"]:
        raise UserError(f"{part}: is not a part of this study's table {table}; remove it")


if __name__ == "__main__":
    sys.stdout.write(reference())
