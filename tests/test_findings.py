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
