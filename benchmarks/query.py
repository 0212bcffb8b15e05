"""`python -m benchmarks.query`: how fast the records are read, and what writing them costs.

Prints one table and writes `benchmarks/out/query.json`, as `benchmarks.core` does.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl

import study
from benchmarks.measuring import Measure, Rounds, introduce, publish, ratio, tell
from benchmarks.panels import LATENT_DIM, STYLE_DIM, default_trainer
from cf_core.training import limit_threads
from evaluation.frontier import CHOSEN_ON
from study.config import StudyConfig
from study.provenance import provenance
from study.store import Rows, Store
from study.tables import TABLES
from study.workbench import REPORT_EVERY

OUTPUT = Path(__file__).parent / "out" / "query.json"
ROWS = 10_000_000
"""Metric rows of the study that is queried, of conditional trials that are read at 8 λ, after 5
counts, from 4 sources, by 22 metrics: 3,520 rows each."""
BINS = 50
DISTANCE, COHERENCY, SOURCE = "z_distance", "judge", "test"
_METRICS = (
    DISTANCE, COHERENCY, "z_weighted", "edit_distance", "halves_distance", "search_classifier",
    "style_diversity", "novelty", "copied", "overlap_area", "density", "coverage",
    *(f"{name}{kind}" for kind in ("", "_joint") for name in (
        "mean_pitch", "pitch_range", "note_count", "mean_duration", "pitch_class")),
)  # fmt: skip
_SQL = f"""
    WITH points AS (
        SELECT trial, "lambda", iteration,
            max(value) FILTER (metric = '{DISTANCE}') AS distance,
            max(value) FILTER (metric = '{COHERENCY}') AS judge
        FROM read_parquet('{{files}}')
        WHERE source = '{SOURCE}' AND metric IN ('{DISTANCE}', '{COHERENCY}')
        GROUP BY trial, "lambda", iteration
    )
    SELECT CAST(floor(distance * {BINS} / 10) AS INTEGER) AS bin,
        arg_max(trial, judge) AS trial, max(judge) AS judge
    FROM points GROUP BY bin ORDER BY bin
"""  # noqa: S608


def main(repeats: int = 7, seconds: float = 0.2, scale: int = 1, output: Path = OUTPUT) -> None:
    """Measure everything, print the table and write it to `output`."""
    introduce(repeats)
    publish(measures(Rounds(repeats, seconds, scale)), output)


def measures(rounds: Rounds) -> list[Measure]:
    """Queries against DuckDB and pandas on the same files; writing against training."""
    return [*queries(rounds), *writing(rounds)]


def queries(rounds: Rounds) -> Iterator[Measure]:
    """The best trial in each similarity bin, before compaction and after."""
    with TemporaryDirectory() as folder:
        store = _claimed(Path(folder) / "study")
        _fill(store, ROWS // rounds.scale)
        for kind in ("parts", "compacted"):
            files = f"{folder}/study/metrics/*.parquet"
            if kind == "compacted":
                list(store.compact())
            ours, theirs, pandas = by_study(folder), by_duckdb(files), by_pandas(folder)
            if not (ours.equals(theirs) and ours.equals(pandas)):
                raise AssertionError("the three do not find the same trials")
            seconds = rounds.take_turns(partial(by_study, folder), partial(by_duckdb, files))
            once = Rounds(1, 0.0, rounds.scale).take_turns(partial(by_pandas, folder))
            count = len(list((Path(folder) / "study" / "metrics").iterdir()))
            tell(f"{ROWS // rounds.scale:,} rows in {count} files", seconds, ("study", "DuckDB"))
            compacted = kind == "compacted"
            name = "query_vs_duckdb" + ("" if compacted else "_parts")
            yield Measure(name, ratio(seconds, 1, 0), "×", 0.7 if compacted else None, "higher")
            speed = float(once[0, 0] / np.median(seconds[:, 0]))
            yield Measure(name.replace("duckdb", "pandas"), speed, "×", None, "higher")


def by_study(folder: str) -> pl.DataFrame:
    """The query through `study.open`: `bin`, `trial`, `judge`."""
    return (
        study.open(f"{folder}/study")
        .metrics.filter(pl.col("source") == SOURCE, pl.col("metric").is_in([DISTANCE, COHERENCY]))
        .group_by("trial", "lambda", "iteration")
        .agg(
            distance=pl.col("value").filter(pl.col("metric") == DISTANCE).max(),
            judge=pl.col("value").filter(pl.col("metric") == COHERENCY).max(),
        )
        .group_by(bin=(pl.col("distance") * BINS / 10).floor().cast(pl.Int32))
        .agg(trial=pl.col("trial").get(pl.col("judge").arg_max()), judge=pl.col("judge").max())
        .sort("bin")
        .collect()
    )


def by_duckdb(files: str) -> pl.DataFrame:
    """The same in SQL on the same files."""
    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        found: pl.DataFrame = connection.sql(_SQL.format(files=files)).pl()
    return found


def by_pandas(folder: str) -> pl.DataFrame:
    """The same with pandas, which reads only the columns and rows in question."""
    columns = ["trial", "lambda", "iteration", "metric", "value"]
    wanted = [("source", "==", SOURCE), ("metric", "in", [DISTANCE, COHERENCY])]
    rows = pd.read_parquet(f"{folder}/study/metrics", columns=columns, filters=wanted)
    points = rows.pivot_table("value", ["trial", "lambda", "iteration"], "metric").reset_index()
    points["bin"] = np.floor(points[DISTANCE] * BINS / 10).astype(np.int32)
    best = points.loc[points.groupby("bin")[COHERENCY].idxmax()].sort_values("bin")
    return pl.DataFrame(best[["bin", "trial", COHERENCY]].to_dict("list")).cast({"bin": pl.Int32})


def writing(rounds: Rounds) -> Iterator[Measure]:
    """All records of one conditional trial, at the defaults, against its training alone.

    That overstates the share: evaluation takes time too, and a trial of one λ writes an eighth.
    """
    config = StudyConfig(name="write")
    trainer = default_trainer(config.fusion, rounds.scale)
    with TemporaryDirectory() as folder, limit_threads(1):
        store = _claimed(Path(folder) / "study")
        tables = _trial_tables(config, rounds.scale)

        def write() -> None:
            for name, rows in tables.items():
                store.write(name, "trial", rows)

        seconds = rounds.take_turns(write, trainer.update)
    seconds[:, 1] *= config.fusion.steps
    tell(f"records of a trial; {config.fusion.steps} steps", seconds, ("writing", "training"))
    yield Measure("write_share", ratio(seconds, 0, 1), "share", 0.02, "lower")


def _claimed(folder: Path) -> Store:
    store = Store(folder)
    store.claim({"core": {"latent_dim": LATENT_DIM}, "corpus": "made up"}, "f", "made-up")
    return store


def _fill(store: Store, rows: int) -> None:
    """Metrics of made-up trials, each a part of its own."""
    random = np.random.default_rng(0)
    weights = [1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
    sources = ("test", "prior", "validation", "validation_prior")
    points = list(product(weights, sources, (1, 2, 4, 8, 16), _METRICS))
    labels = pl.DataFrame(
        points, schema=["lambda", "source", "iteration", "metric"], orient="row"
    ).with_columns(method=pl.lit("conditional"), style_dim=STYLE_DIM, n=1024, excluded=0)
    started = perf_counter()
    trials = max(2, rows // labels.height)
    for seed in range(trials):
        value = random.random(labels.height)
        frame = labels.with_columns(
            trial=pl.lit(f"conditional-style{STYLE_DIM}-seed{seed}"),
            configuration=pl.lit(f"conditional-style{STYLE_DIM}"),
            seed=pl.lit(seed, pl.Int64),
            value=pl.Series(value * np.where(labels["metric"] == DISTANCE, 10, 1)),
            low=pl.Series(value - 0.02),
            high=pl.Series(value + 0.02),
        )
        store.write("metrics", f"conditional-style{STYLE_DIM}-seed{seed}", frame)
    print(f"wrote {trials:,} trials in {perf_counter() - started:.0f} s")


def _trial_tables(config: StudyConfig, scale: int) -> dict[str, Rows]:
    """What a conditional trial at the defaults records, in the form that jobs hand over."""
    random, plan = np.random.default_rng(0), config.evaluation
    pairs = {"test": plan.pairs, "prior": plan.pairs}
    pairs |= {CHOSEN_ON[source]: plan.validation_pairs for source in pairs}
    points = list(product(plan.lambda_, pairs, plan.iterations))
    trial = {
        "trial": "conditional-style4-seed0",
        "configuration": "conditional-style4",
        "method": "conditional",
    }
    whole = {**trial, "style_dim": STYLE_DIM, "seed": 0}
    sizes = [pairs[source] // scale for _, source, _ in points]
    rows = pl.DataFrame(points, schema=["lambda", "source", "iteration"], orient="row").select(
        pl.all().repeat_by(pl.Series(sizes)).explode(), **{k: pl.lit(v) for k, v in trial.items()}
    )
    count = rows.height
    each: dict[str, Any] = {name: rows[name].to_list() for name in rows.columns} | {
        "pair": list(range(count)),
        "left_song": [f"song {number}" for number in range(count)],
        "right_song": [f"song {number + 1}" for number in range(count)],
        "meter": ["4/4"] * count,
    }
    z = random.standard_normal((4, count, LATENT_DIM), np.float32)
    latents = dict(zip(("z_left_in", "z_right_in", "z_left", "z_right"), z, strict=True))
    style = random.random((count, STYLE_DIM), np.float32).tolist()
    taken = {"trial", "configuration", "method", "lambda", "seed", *each}
    measured = {
        column.name: random.random(count, np.float32)
        if str(column.type) == "float"
        else random.integers(0, 8, count, np.int8)
        for column in TABLES["outcomes"].columns
        if column.name not in taken
    }
    value = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 1024, "excluded": 0}
    return {
        "curves": [
            {"trial": trial["trial"], "step": step, "loss": f"eq{number}", "value": 0.5}
            for step in range(0, config.fusion.steps, REPORT_EVERY)
            for number in range(10)
        ],
        "latents": each | {"style": style} | latents,
        "outcomes": pl.DataFrame(each | {"seed": [0] * count} | measured),
        "costs": [
            {**trial, "lambda": lambda_, "iteration": iteration, "pairs": 3072, "seconds": 1.0}
            | {"classifier_calls": 0.0, "decoder_calls": 1.0, "device": "cpu"}
            for lambda_, iteration in product(plan.lambda_, plan.iterations)
        ],
        "metrics": [
            {**whole, "lambda": lambda_, "source": source, "iteration": iteration, "metric": metric}
            | value
            for (lambda_, source, iteration), metric in product(points, _METRICS)
        ],
        "trials": [
            {**whole, **provenance(), "status": "done", "fingerprint": "f", "seconds": 1.0}
            | {"attempt": 1, "device": "cpu", "finished_at": datetime.now(UTC), "parts": "metrics"}
        ],
    }


if __name__ == "__main__":
    main()
