"""The sentences of the summary that a small study or a missing measure could make untrue."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import polars as pl
import pytest

from study import findings
from study.store import Store


def store_of(**tables: pl.DataFrame) -> Store:
    return cast("Store", SimpleNamespace(scan=lambda name: tables[name].lazy()))


def test_nothing_is_said_of_measures_that_no_trick_was_rated_by() -> None:
    rated = pl.DataFrame(
        [
            ("test", "judge", "gamble", True),
            ("test", "judge", "left_twice", False),
            ("test", "note_count", "gamble", False),
            ("test", "mean_pitch", "gamble", None),
            ("prior", "pitch_class", "gamble", True),
        ],
        ["source", "metric", "control", "pleases"],
        orient="row",
    )
    (told,) = findings.say_controls(store_of(controls=rated))
    assert told.endswith("real neighbours): judge by gamble; note_count by no trick")
    unknown = rated.with_columns(pleases=pl.lit(None, pl.Boolean))
    assert findings.say_controls(store_of(controls=unknown)) == []


@pytest.mark.parametrize(
    ("seeds", "rows", "told"),
    [
        (1, [(0.5, None), (-0.5, None), (np.nan, None)], "ahead in 1 of 3 panels"),
        (2, [(0.5, "win"), (-0.5, "loss"), (0.1, "tie")], "1 wins, 1 ties, 1 losses (judge)"),
        (2, [(0.5, None), (0.5, None)], "0 wins, 0 ties, 0 losses, 2 undecided"),
        (2, [], "no panel compared"),
    ],
)
def test_panels_are_counted_as_they_were_decided(
    seeds: int, rows: list[tuple[float, str | None]], told: str
) -> None:
    schema = {"difference": pl.Float64, "verdict": pl.String}
    panels = pl.DataFrame(rows, schema, orient="row").with_columns(
        metric=pl.lit("judge"), seeds=pl.lit(seeds)
    )
    assert findings._say_counts(panels) == told


@pytest.mark.parametrize(
    ("finished", "shown"),
    [
        (["ours", "lp"], [("ours-seed0", None, 4, "fusion"), ("lp", None, 30, "lp")]),
        (["lp"], [("lp", None, 30, "lp")]),
        ([], []),
    ],
)
def test_only_points_of_finished_trials_are_shown(
    finished: list[str], shown: list[tuple[str, float | None, int, str]]
) -> None:
    matched = pl.DataFrame(
        [
            (distance, configuration, None, iteration, "lp", "z_distance", "test", "judge")
            for distance in range(10)
            for configuration, iteration in (("ours", 4), ("lp", 30))
        ],
        {
            "distance": pl.Float64, "configuration": pl.String, "lambda": pl.Float64,
            "iteration": pl.Int32, "rival": pl.String, "axis": pl.String, "source": pl.String,
            "metric": pl.String,
        },
        orient="row",
    )  # fmt: skip
    trials = pl.DataFrame(
        [("ours-seed0", "ours", "fusion", 0), ("ours-seed1", "ours", "fusion", 1),
         ("lp", "lp", "lp", None)],
        {"trial": pl.String, "configuration": pl.String, "method": pl.String, "seed": pl.Int64},
        orient="row",
    )  # fmt: skip
    metrics = trials.filter(pl.col("configuration").is_in(finished))
    found = findings.find_shown_points(store_of(matched=matched), metrics)
    assert found.rows() == shown
