"""The tables of a study: the schema of each, with the meaning of every column.

Columns of metrics come from `evaluation.metrics`, and those of searched parameters from
`study.parameters`. `python -m study.tables > docs/tables.md` writes the reference.

This module is long because it is the only place where columns of tables are declared.

Letters in shapes: `Z` latent dimensions, `S` style dimensions.
"""

import sys
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import polars as pl
import pyarrow as pa

from evaluation.controls import CONTROLS
from evaluation.metrics import AXES, METRICS, OF_PAIRS
from evaluation.rivals import list_rivals
from evaluation.statistics import STATISTICS
from study.parameters import PARAMETERS, SETTINGS

_TEXT, _TIME, _TRUTH = pa.string(), pa.timestamp("us", "UTC"), pa.bool_()
_INT8, _INT32, _INT64 = pa.int8(), pa.int32(), pa.int64()
_FLOAT32, _FLOAT64 = pa.float32(), pa.float64()
_TOKENS = pa.list_(pa.field("element", pa.int16()))
_STYLE = pa.list_(pa.field("element", _FLOAT32))
LATENT = pa.list_(pa.field("element", _FLOAT32), 0)
"""Placeholder for a list of `Z` numbers, since `Z` differs between studies."""


def _column(
    name: str, kind: pa.DataType, meaning: str, *, null: bool = False, volatile: bool = False
) -> pa.Field:
    marks = {"meaning": meaning} | ({"volatile": "true"} if volatile else {})
    return pa.field(name, kind, null, marks)


@dataclass(frozen=True)
class Table:
    """What a table is about, and its columns."""

    about: str
    columns: tuple[pa.Field, ...]
    edition: int = 1
    """To be raised where a column comes to mean something else under its old name."""

    @cached_property
    def version(self) -> str:
        """The edition with a hash of names and types of the columns.

        Studies with another version then have this table, and no other, read by the release that
        wrote it.
        """
        told = "\n".join(f"{c.name} {c.type} {c.nullable}" for c in self.columns)
        return f"{self.edition}-{sha256(told.encode()).hexdigest()[:8]}"

    def schema(self, latent_dim: int) -> pa.Schema:
        """Make the Arrow schema of the table's parts in a study of `latent_dim` dimensions."""
        latent = pa.list_(LATENT.value_field, latent_dim)
        columns = (c.with_type(latent) if c.type == LATENT else c for c in self.columns)
        return pa.schema(columns, {"version": self.version})

    @property
    def volatile(self) -> list[str]:
        """Columns that differ between equal runs, such as seconds."""
        return [c.name for c in self.columns if b"volatile" in c.metadata]


_TRIAL = _column("trial", _TEXT, "Name of the trial, of the rival's setting, or of the reference.")
_CONFIGURATION = _column(
    "configuration", _TEXT, "Name of the trial without its seed; for all else the same as `trial`."
)
_METHOD = _column(
    "method",
    _TEXT,
    f"`fusion` or `conditional`; a rival: {', '.join(f'`{name}`' for name in list_rivals())},"
    " `identity`, or one of the user's own; `poster`, a trial of the scheme `heard` as the scheme"
    " `poster` has it; `by_edits`, the same with a λ for each pair; a control:"
    f" {', '.join(f'`{name}`' for name in CONTROLS)}; `floor`, `ceiling`, `real`.",
)
_LAMBDA = _column(
    "lambda",
    _FLOAT64,
    "λ (equation 4). For a conditional trial, the λ that it is evaluated at; for a rival, the λ of"
    " its penalty.",
    null=True,
)
_STYLE_DIM = _column("style_dim", _INT32, "`S`, the style dimensions of a trial.", null=True)
_SEED = _column("seed", _INT64, "Training seed of a trial.", null=True)
_STEP_SIZE = _column("step_size", _FLOAT64, "η of a rival.", null=True)
_METER = _column("meter", _TEXT, "Meter of the bars, as the first of its kind in `melody.meters`.")
_SOURCE = _column("source", _TEXT, "Origin of the input pairs, such as `test` or `prior`.")
_ITERATION = _column(
    "iteration",
    _INT32,
    "Number of applications, steps or draws; of `by_edits`, the edits asked for; 0 for none.",
)
_METRIC = _column("metric", _TEXT, "Name of the metric, such as `judge` or `mean_pitch`.")
_AXIS = _column("axis", _TEXT, f"Similarity axis: {', '.join(f'`{axis}`' for axis in AXES)}.")
_BATCH = _column(
    "batch", _INT32, "Batch in which it was proposed, from 0; -1 if taken from another study."
)


def _searched(name: str) -> pa.Field:
    """Make the column of a searched parameter in the table of proposed configurations."""
    one = PARAMETERS[name]
    kind = _INT32 if one.kind == "whole" else _FLOAT64
    where = {"lambda": "; null for a conditional one", "style_dim": ""}.get(
        name, ", where searched"
    )
    return _column(name, kind, f"{one.about}{where}.", null=name != "style_dim")


def _setting(name: str) -> pa.Field:
    """Make the column of a searched setting of fusion in the table of trials."""
    kind = _INT32 if SETTINGS[name].kind == "whole" else _FLOAT64
    return _column(name, kind, f"{SETTINGS[name].about} of a trial.", null=True)


_BINS = tuple(
    _column(
        f"{statistic}_{half}",
        _INT8,
        f"Bin of the {half} half's {name}, one of those of its meter; -1 if it has none.",
    )
    for statistic, name in ((statistic, statistic.replace("_", " ")) for statistic in STATISTICS)
    for half in ("left", "right")
)
_MEASURED = tuple(
    _column(name, _FLOAT32, f"{METRICS[name].about} NaN where a latent was not finite.", null=True)
    for name in OF_PAIRS
)

TABLES: dict[str, Table] = {
    "trials": Table(
        "One row per trial or rival's setting that is over, whether done or failed: the ledger of"
        " the study.",
        (
            _TRIAL,
            _CONFIGURATION,
            _METHOD,
            _LAMBDA,
            _STYLE_DIM,
            _SEED,
            _STEP_SIZE,
            *(_setting(name) for name in SETTINGS if name != "steps"),
            _column("steps", _INT32, "Updates of G, or proposals; null if it failed.", null=True),
            _column("status", _TEXT, "`done`; or `pruned`, `diverged` or `failed`, with a reason."),
            _column("reason", _TEXT, "Why its status is not `done`.", null=True),
            _column(
                "checkpoint",
                _TEXT,
                "Path of its weights, relative to the study's folder.",
                null=True,
            ),
            _column("fingerprint", _TEXT, "Fingerprint of the study."),
            _column(
                "seconds",
                _FLOAT64,
                "Wall time from the start of its job (the whole pack) to this row, in seconds.",
                volatile=True,
            ),
            _column(
                "training_seconds",
                _FLOAT64,
                "Its share of the wall time of its pack's training, in seconds, since the last"
                " interruption.",
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
            _column("attempt", _INT32, "Number of the attempt, from 1.", volatile=True),
            _column("host", _TEXT, "Name of the machine.", volatile=True),
            _column("device", _TEXT, "Torch device.", null=True, volatile=True),
            _column(
                "hardware", _TEXT, "Processor, GPU if any, and number of cores.", volatile=True
            ),
            _column(
                "versions",
                _TEXT,
                "Versions of Python and of the libraries, as JSON.",
                volatile=True,
            ),
            _column("git_commit", _TEXT, "Commit of the code.", null=True, volatile=True),
            _column(
                "git_dirty",
                _TRUTH,
                "Whether the code had uncommitted changes.",
                null=True,
                volatile=True,
            ),
            _column("finished_at", _TIME, "Time at which it was over.", volatile=True),
            _column(
                "parts",
                _TEXT,
                "Tables that hold its rows, separated by commas. It counts as done only while all"
                " of them have its rows.",
            ),
        ),
    ),
    "configurations": Table(
        "The proposed configurations, written before any of them is tried.",
        (
            _CONFIGURATION,
            _BATCH,
            _column("number", _INT32, "Place in its batch, from 0."),
            _column("origin", _TEXT, "`grid`, the name of the sampler, `first` or `warm_start`."),
            *map(_searched, PARAMETERS),
        ),
    ),
    "objectives": Table(
        "The outcome of each configuration, as the search was told.",
        (
            _CONFIGURATION,
            _BATCH,
            _column("state", _TEXT, "`COMPLETE`, `PRUNED` or `FAIL`."),
            _column(
                "maximised", _FLOAT64, "The metric `search.maximise`, mean over seeds.", null=True
            ),
            _column(
                "minimised", _FLOAT64, "The metric `search.minimise`, mean over seeds.", null=True
            ),
            _column(
                "violations",
                pa.list_(pa.field("element", _FLOAT64)),
                "By how much each constraint is missed; 0 or less if it holds.",
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
    ),
    "importances": Table(
        "How much each searched parameter matters to the objectives (PED-ANOVA).",
        (
            _column("objective", _TEXT, "The metric `search.maximise` or `search.minimise`."),
            _column("parameter", _TEXT, "Name of the parameter."),
            _column("importance", _FLOAT64, "Its share of the importance, 0 to 1."),
        ),
    ),
    "attempts": Table(
        "Trials and rivals' settings handed to workers, written before they are handed out.",
        (
            _column("wave", _INT32, "Jobs handed out together, counted from 1.", volatile=True),
            _column("trial", _TEXT, "Trial, or setting of a rival.", volatile=True),
            _column("attempt", _INT32, "Number of the attempt, from 1.", volatile=True),
            _column("started_at", _TIME, "Time at which it was handed out.", volatile=True),
        ),
    ),
    "failures": Table(
        "Every failed attempt, even if a later attempt succeeded.",
        (
            _column("trial", _TEXT, "Trial, or setting of a rival.", volatile=True),
            _column("attempt", _INT32, "Number of the attempt, from 1.", volatile=True),
            _column("reason", _TEXT, "What went wrong, in one line.", volatile=True),
            _column(
                "traceback",
                _TEXT,
                "The whole traceback; null if the worker died without one.",
                null=True,
                volatile=True,
            ),
            _column("host", _TEXT, "Machine that reported the failure.", volatile=True),
            _column("failed_at", _TIME, "Time of the failure.", volatile=True),
        ),
    ),
    "curves": Table(
        "Training losses, as means over the steps since the previous row.",
        (
            _column("trial", _TEXT, "Name of the trial."),
            _column("step", _INT32, "Updates of G made so far."),
            _column("loss", _TEXT, "Name of the loss, such as `eq5`."),
            _column("value", _FLOAT32, "Mean of the loss."),
        ),
    ),
    "latents": Table(
        "Inputs and outputs of every transform, one row per pair. The methods `poster`"
        " and `by_edits` and controls are among them, and real neighbours (`real`), which nothing"
        " changes.",
        (
            _TRIAL,
            _CONFIGURATION,
            _METHOD,
            _LAMBDA,
            _SOURCE,
            _ITERATION,
            _column("pair", _INT32, "Number of the input pair in its source."),
            _column("left_song", _TEXT, "Song of the left input; null for a prior.", null=True),
            _column("right_song", _TEXT, "Song of the right input; null for a prior.", null=True),
            _METER,
            _column("style", _STYLE, "`S` numbers in 0…1; empty without style."),
            _column("z_left_in", LATENT, "Left input."),
            _column("z_right_in", LATENT, "Right input."),
            _column("z_left", LATENT, "Left output."),
            _column("z_right", LATENT, "Right output."),
        ),
    ),
    "outcomes": Table(
        "Measurements of every pair of every point; method `real` holds all real neighbours.",
        (
            _TRIAL,
            _CONFIGURATION,
            _METHOD,
            _LAMBDA,
            _SEED,
            _SOURCE,
            _ITERATION,
            _column("pair", _INT32, "Number of the input pair in its source."),
            _column("left_song", _TEXT, "Song of the left half; null for a prior.", null=True),
            _column("right_song", _TEXT, "Song of the right half; null for a prior.", null=True),
            _METER,
            *_MEASURED,
            *_BINS,
            _column(
                "seam_bin",
                _INT8,
                "Interval from the last note of the left half to the first of the right: 13 plus"
                " semitones, where 0 and 26 are more than an octave; -1 if a half has no notes.",
            ),
        ),
        edition=2,
    ),
    "influences": Table(
        "How the real pairs of each song bear on `indistinguishable` of a point: other songs would"
        " bring other real pairs, and verdicts take this into account.",
        (
            _TRIAL,
            _CONFIGURATION,
            _METHOD,
            _LAMBDA,
            _SEED,
            _SOURCE,
            _ITERATION,
            _column("song", _TEXT, "Song of the real pairs."),
            _column(
                "influence", _FLOAT32, "By how much the metric rises if these pairs count twice."
            ),
        ),
    ),
    "costs": Table(
        "Cost of a transform, over all sources.",
        (
            _TRIAL,
            _CONFIGURATION,
            _METHOD,
            _LAMBDA,
            _ITERATION,
            _column("pairs", _INT64, "Pairs transformed."),
            _column(
                "classifier_calls",
                _FLOAT64,
                "Calls of the search classifier per pair; a call with its gradient counts as 3.",
            ),
            _column("decoder_calls", _FLOAT64, "Calls of the decoder per pair."),
            _column("seconds", _FLOAT64, "Wall time for all pairs, in seconds.", volatile=True),
            _column("device", _TEXT, "Torch device.", volatile=True),
        ),
    ),
    "bins": Table(
        "Bins of the musical statistics: quantiles of the training segments of each kind of bars.",
        (
            _METER,
            _column("statistic", _TEXT, "Name of the statistic."),
            _column("bin", _INT32, "Number of the bin, from 0."),
            _column("lower", _FLOAT64, "Its lower edge; null for the first, open bin.", null=True),
        ),
    ),
    "song_distances": Table(
        "z-distances between segments of test songs, within one song and between two songs.",
        (
            _column("kind", _TEXT, "`same song` or `different songs`."),
            _column("z_distance", _FLOAT64, "Equation 7 for one half."),
        ),
    ),
    "examples": Table(
        "One input pair, and what the selected trial makes of it in several styles.",
        (
            _TRIAL,
            _CONFIGURATION,
            _LAMBDA,
            _ITERATION,
            _column("row", _INT32, "Order of the rows; 0 is the inputs."),
            _column("label", _TEXT, "`inputs`, or the style of the row."),
            _column("left_song", _TEXT, "Song of the left input."),
            _column("right_song", _TEXT, "Song of the right input."),
            _column("left", _TOKENS, "Tokens of the left half."),
            _column("right", _TOKENS, "Tokens of the right half."),
        ),
    ),
    "metrics": Table(
        "One row per trial (and λ), rival's setting or reference, source, iteration and metric.",
        (
            _TRIAL,
            _CONFIGURATION,
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
            _column("n", _INT64, "Number of pairs measured."),
            _column("excluded", _INT64, "Number of pairs left out, as not finite or silent."),
        ),
    ),
    "controls": Table(
        "Tricks against real neighbours, by every metric: whom it can be pleased by.",
        (
            _SOURCE,
            _METRIC,
            _column(
                "control",
                _TEXT,
                " ".join(f"`{one.name}`: {one.about}" for one in CONTROLS.values()),
            ),
            _column("value", _FLOAT64, "The metric of the control."),
            _column("low", _FLOAT64, "Lower end of its 95 % interval.", null=True),
            _column("high", _FLOAT64, "Upper end of its 95 % interval.", null=True),
            _column(
                "real", _FLOAT64, "The metric of real neighbours: the method `ceiling`.", null=True
            ),
            _column(
                "pleases",
                _TRUTH,
                "Whether the control is rated above real neighbours; null for a metric of which"
                " higher values are not better.",
                null=True,
            ),
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
            _CONFIGURATION,
            _LAMBDA,
            _ITERATION,
            _column("similarity", _FLOAT64, "Distance between inputs and outputs."),
            _column("coherency", _FLOAT64, "The metric."),
            _column("non_dominated", _TRUTH, "Whether no point of the method dominates it."),
        ),
    ),
    "matched": Table(
        "Fusion and a rival at matched similarity: points are chosen on validation songs and scored"
        " on test songs.",
        (
            _column("rival", _TEXT, "Method that fusion is compared with."),
            _AXIS,
            _SOURCE,
            _METRIC,
            _column("distance", _FLOAT64, "Largest distance allowed."),
            _column("method", _TEXT, "`ours` (`fusion` and `conditional`), or the rival."),
            _CONFIGURATION,
            _LAMBDA,
            _ITERATION,
            _column(
                "validation_value",
                _FLOAT64,
                "What it was chosen by, on validation songs: the metric itself on the axes"
                " `z_distance` and `edit_distance` (the poster's way), `indistinguishable` on the"
                " others.",
            ),
            _column("value", _FLOAT64, "The metric on test songs."),
            _column("candidates", _INT64, "Number of points that it was chosen from."),
            _column("excluded", _INT64, "Number of points left out, as unfinished or not finite."),
        ),
    ),
    "verdicts": Table(
        "Fusion less a rival at matched similarity, in every panel.",
        (
            _column("rival", _TEXT, "Method that fusion is compared with."),
            _AXIS,
            _SOURCE,
            _METRIC,
            _column(
                "difference", _FLOAT64, "Mean over the distances; positive where fusion is ahead."
            ),
            _column("low", _FLOAT64, "Lower end of its 95 % interval.", null=True),
            _column("high", _FLOAT64, "Upper end of its 95 % interval.", null=True),
            _column("p", _FLOAT64, "Two-sided p-value of no difference.", null=True),
            _column(
                "p_holm", _FLOAT64, "p, corrected over the panels of its source (Holm).", null=True
            ),
            _column(
                "verdict",
                _TEXT,
                "`win`, `tie` or `loss` of fusion; null with one training seed.",
                null=True,
            ),
            _column("songs", _INT64, "Number of songs, or blocks of prior pairs, in intervals."),
            _column("seeds", _INT64, "Number of training seeds."),
            _column("excluded", _INT64, "Number of pairs left out, over the compared points."),
            _column("candidates", _INT64, "Number of points of ours that could be chosen."),
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
            _column(
                "hypervolume",
                _FLOAT64,
                "Area up to the largest matched distance, above a value of 0.",
            ),
            _column("candidates", _INT64, "Number of points that the front was chosen from."),
        ),
    ),
}


def drop_volatile(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    """Return the rows in a fixed order, without volatile columns; equal runs give equal frames."""
    kept = frame.drop(TABLES[table].volatile)
    if not kept.columns:
        return kept.clear()  # no column of such a table repeats
    return kept.sort([name for name, kind in kept.schema.items() if not kind.is_nested()])


def write_reference() -> str:
    """Describe every table with its columns, types and meanings, as Markdown."""
    lines = [
        "# Tables",
        "",
        "The records of a study. Each table is a folder of Parquet files of one schema (zstd;"
        " floats byte-stream-split). Columns marked *volatile* differ from run to run. In equal"
        " runs all others are equal. `Z` is the number of latent dimensions.",
    ]
    for name, table in TABLES.items():
        lines += ["", f"## {name}", "", f"{table.about} Version {table.version}.", ""]
        lines += ["| Column | Type | Meaning |", "|---|---|---|"]
        for column in table.columns:
            kind = "list<float>[Z]" if column.type == LATENT else str(column.type)
            kind = kind.replace("element: ", "") + (" or null" if column.nullable else "")
            volatile = " *volatile*" if column.name in table.volatile else ""
            meaning = column.metadata[b"meaning"].decode()
            lines.append(f"| `{column.name}` | {kind} | {meaning}{volatile} |")
    lines += [
        "",
        "# Metrics",
        "",
        "The values of the column `metric`, which are also the names that a rule may use.",
        "",
    ]
    lines += ["| Metric | Of | Better | Real neighbours | Meaning |", "|---|---|---|---|---|"]
    for name, metric in METRICS.items():
        of = "pairs" if name in OF_PAIRS else "sets"
        lines.append(f"| `{name}` | {of} | {metric.better} | {metric.real} | {metric.about} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(write_reference())
