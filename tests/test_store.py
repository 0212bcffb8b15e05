import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from cf_core.errors import UserError
from study import store as module
from study.store import TABLES, Store, comparable, differences

ROOT = Path(__file__).parent.parent
IDENTITY: dict[str, Any] = {"seed": 0, "core": {"latent_dim": 3, "steps": 5}, "corpus": "abc"}

TRIAL: dict[str, Any] = {
    "trial": "lambda0.3-style2-seed1",
    "method": "fusion",
    "lambda": 0.3,
    "style_dim": 2,
    "seed": 2**40,
    "step_size": None,
    "steps": 4000,
    "status": "done",
    "reason": None,
    "checkpoint": "trials/a.safetensors",
    "fingerprint": "f",
    "seconds": 1.5,
    "training_seconds": 1.2,
    "peak_memory_mb": 10.0,
    "attempt": 1,
    "host": "h",
    "device": "cpu",
    "versions": "{}",
    "git_commit": None,
    "git_dirty": None,
    "finished_at": datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
}
METRIC: dict[str, Any] = {
    "trial": "lp-eta0.1",
    "method": "lp",
    "lambda": None,
    "style_dim": None,
    "seed": None,
    "step_size": 0.1,
    "source": "test",
    "iteration": 10,
    "metric": "judge",
    "value": math.nan,
    "low": math.inf,
    "high": None,
    "n": 512,
    "excluded": 0,
}


def latents(rows: int) -> dict[str, Any]:
    names = ("z_left_in", "z_right_in", "z_left", "z_right")
    z = np.arange(rows * 12, dtype=np.float32).reshape(4, rows, 3) / 3
    return {
        "trial": ["t"] * rows,
        "method": ["fusion"] * rows,
        "source": ["prior"] * rows,
        "iteration": np.ones(rows, np.int64),
        "pair": np.arange(rows),
        "style": np.full((rows, 2), 0.1, np.float32),
        **dict(zip(names, z, strict=True)),
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "study")
    store.claim(IDENTITY, "f", "study")
    return store


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "row"), [("trials", TRIAL), ("metrics", METRIC)])
def test_rows_come_back_with_nulls_and_what_is_not_finite(
    table: str, row: dict[str, Any], store: Store
) -> None:
    store.write(table, "a", [row])
    (back,) = store.scan(table).collect().to_dicts()
    assert list(back) == list(row)
    for name, value in row.items():
        same_nan = isinstance(value, float) and math.isnan(value) and math.isnan(back[name])
        assert same_nan or back[name] == value, name


def test_latents_come_back_bit_for_bit_as_fixed_size_lists(store: Store) -> None:
    columns = latents(5)
    store.write("latents", "a", columns)
    frame = store.scan("latents").collect()
    assert frame.schema["z_left"] == pl.Array(pl.Float32, 3)
    assert frame.schema["style"] == pl.List(pl.Float32)
    for name in ("z_left_in", "z_right_in", "z_left", "z_right"):
        np.testing.assert_array_equal(frame[name].to_numpy(), columns[name])
    np.testing.assert_array_equal(frame["style"].to_list(), columns["style"])
    assert frame["left_song"].to_list() == [None] * 5


def test_a_trial_without_style_has_empty_styles(store: Store) -> None:
    store.write("latents", "a", latents(2) | {"style": np.empty((2, 0), np.float32)})
    assert store.scan("latents").collect()["style"].to_list() == [[], []]


@pytest.mark.parametrize("table", TABLES)
def test_a_written_part_has_the_declared_schema_version_and_encodings(
    table: str, store: Store
) -> None:
    schema = TABLES[table].schema(3)
    store.write(table, "a", [])
    store.write(table, "b", store.scan(table).collect())
    (first, second) = sorted((store.root / table).iterdir())
    assert pq.read_schema(first).equals(schema)
    assert pq.read_schema(first).metadata[b"version"] == b"4"
    assert first.read_bytes() == second.read_bytes()


def test_floats_are_split_by_byte_without_dictionary(store: Store) -> None:
    store.write("latents", "a", latents(4))
    store.write("metrics", "a", [METRIC])
    group = pq.read_metadata(store.root / "latents" / "a.parquet").row_group(0)
    encodings = {c.path_in_schema: c.encodings for c in map(group.column, range(12))}
    group = pq.read_metadata(store.root / "metrics" / "a.parquet").row_group(0)
    encodings |= {c.path_in_schema: c.encodings for c in map(group.column, range(14))}
    assert {group.column(i).compression for i in range(14)} == {"ZSTD"}
    for path in ("z_left.list.element", "style.list.element", "value", "step_size"):
        assert "BYTE_STREAM_SPLIT" in encodings[path], path
        assert not any("DICTIONARY" in encoding for encoding in encodings[path]), path
    assert "RLE_DICTIONARY" in encodings["metric"]


def test_writing_a_part_again_replaces_it(store: Store) -> None:
    store.write("trials", "a", [TRIAL])
    store.write("trials", "b", [TRIAL | {"trial": "b", "status": "diverged", "reason": "nan"}])
    assert store.done_trials() == {TRIAL["trial"]: "done", "b": "diverged"}
    store.write("trials", "b", [TRIAL | {"trial": "b"}])
    assert store.done_trials() == {TRIAL["trial"]: "done", "b": "done"}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_without_parts_has_its_columns(table: str, store: Store) -> None:
    frame = store.scan(table).collect()
    assert frame.height == 0
    assert frame.columns == [column.name for column in TABLES[table].columns]
    assert store.done_trials() == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stauts": "done"}, "metrics: no column stauts"),
        ({"value": "0.5"}, "metrics.value: must be Float64, not String"),
        ({"value": True}, "metrics.value: must be Float64, not Boolean"),
        ({"n": 1.5}, "metrics.n: must be Int64, not Float64"),
        ({"iteration": 2**40}, "metrics.iteration: must be Int32"),
        ({"metric": 3}, "metrics.metric: must be String, not Int"),
        ({"value": None}, "metrics.value: a value is missing"),
    ],
)
def test_rows_that_the_schema_does_not_allow_are_refused(
    change: dict[str, Any], message: str, store: Store
) -> None:
    with pytest.raises(ValueError, match=message):
        store.write("metrics", "a", [METRIC | change] * 2)
    with pytest.raises(ValueError, match=message):
        store.write("metrics", "a", {k: [v] for k, v in (METRIC | change).items()})
    assert list(store.root.glob("metrics/*")) == []


def test_a_missing_column_is_null_only_where_null_may_be(store: Store) -> None:
    rest = {name: value for name, value in METRIC.items() if name not in ("lambda", "high")}
    store.write("metrics", "a", [rest])
    assert store.scan("metrics").collect()["lambda"].to_list() == [None]
    del rest["method"]
    with pytest.raises(ValueError, match=r"metrics\.method: a value is missing"):
        store.write("metrics", "a", [rest])


def test_latents_of_another_width_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=r"latents\.z_left: must be Array"):
        store.write("latents", "a", latents(2) | {"z_left": np.zeros((2, 4), np.float32)})


@pytest.mark.parametrize("part", ["../a", "a/b", "/a", "", ".a", "a b", "a\n", "ä", ".."])
def test_a_part_name_is_a_plain_file_name(part: str, store: Store) -> None:
    with pytest.raises(ValueError, match="part"):
        store.write("metrics", part, [METRIC])
    assert [path.name for path in store.root.iterdir()] == ["study.json"]


def test_a_writer_that_dies_leaves_the_part_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("metrics", "a", [METRIC])
    before = (store.root / "metrics" / "a.parquet").read_bytes()

    def die(_: Any, where: Path, **__: Any) -> None:
        where.write_bytes(b"PAR1 half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", die)
    for part in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            store.write("metrics", part, [METRIC])
    assert [path.name for path in (store.root / "metrics").iterdir()] == ["a.parquet"]
    assert (store.root / "metrics" / "a.parquet").read_bytes() == before


def test_what_a_killed_writer_left_is_not_scanned(store: Store) -> None:
    store.write("metrics", "a", [METRIC])
    (store.root / "metrics" / ".b.parquet.0123").write_bytes(b"PAR1 half a file")
    (store.root / "metrics" / ".c.parquet").write_bytes(b"PAR1 half a file")
    assert store.scan("metrics").collect().height == 1


def test_a_bad_part_is_named(store: Store) -> None:
    store.write("metrics", "a", [METRIC])
    store.write("trials", "t", [TRIAL])
    part = store.root / "metrics" / "b.parquet"
    whole = (store.root / "metrics" / "a.parquet").read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        part.write_bytes(content)
        with pytest.raises(UserError, match=r"metrics/b\.parquet: is no whole Parquet file"):
            store.scan("metrics")
    part.write_bytes((store.root / "trials" / "t.parquet").read_bytes())
    with pytest.raises(UserError, match=r"metrics/b\.parquet: is not a part of .* metrics"):
        store.scan("metrics")
    schema = pq.read_schema(store.root / "metrics" / "a.parquet").with_metadata({"version": "0"})
    pq.write_table(schema.empty_table(), part)
    with pytest.raises(UserError, match=r"metrics/b\.parquet: is not a part of .* metrics"):
        store.sql("SELECT 1")


# --- queries -------------------------------------------------------------------------------------


def test_sql_joins_tables(store: Store) -> None:
    store.write("trials", "a", [TRIAL])
    store.write(
        "metrics",
        "a",
        [
            METRIC | {"trial": TRIAL["trial"], "value": value, "metric": metric}
            for metric, value in [("judge", 0.25), ("judge", 0.75), ("note_count", 9.0)]
        ],
    )
    frame = store.sql(
        "SELECT t.lambda, AVG(m.value) AS mean FROM metrics m JOIN trials t ON m.trial = t.trial"
        " WHERE m.metric = 'judge' GROUP BY t.lambda"
    )
    assert frame.to_dicts() == [{"lambda": 0.3, "mean": 0.5}]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT * FROM metric", "'metric' was not found.*tables: trials, curves, latents"),
        ("SELEC", "SQL: .*SELEC"),
        ("SELECT nope FROM metrics", "nope"),
        ("", "SQL: "),
        ("SELECT 1; SELECT 2", "SQL: "),
        ("SELECT * FROM read_parquet('/no/such')", "SQL: "),
        ("SELECT trial + 1 FROM metrics", "SQL: "),
        ("SELECT foo(trial) FROM metrics", "SQL: .*foo"),
    ],
)
def test_bad_sql_is_told_in_one_line(query: str, message: str, store: Store) -> None:
    with pytest.raises(UserError, match=message) as caught:
        store.sql(query)
    assert "\n" not in str(caught.value)


def test_comparable_forgets_order_and_volatile_columns_only(store: Store) -> None:
    one = [TRIAL, TRIAL | {"trial": "b"}]
    volatile = {"seconds": 9.0, "host": "i", "attempt": 2, "git_dirty": True, "peak_memory_mb": 1.0}
    two = [TRIAL | {"trial": "b"} | volatile, TRIAL | {"device": "cuda"}]
    frames = []
    for rows in (one, two, [TRIAL, TRIAL | {"trial": "b", "steps": 3999}]):
        store.write("trials", "a", rows)
        frames.append(comparable(store.scan("trials").collect(), "trials"))
    assert_frame_equal(frames[0], frames[1], check_exact=True)
    assert not frames[0].equals(frames[2])
    assert {"seconds", "finished_at", "versions"}.isdisjoint(frames[0].columns)


# --- the study's identity ------------------------------------------------------------------------


def test_claiming_again_is_allowed_and_changes_nothing(store: Store) -> None:
    before = (store.root / "study.json").read_bytes()
    Store(store.root).claim(IDENTITY, "f", "study")
    assert (store.root / "study.json").read_bytes() == before
    assert module.open(store.root).record == {
        "name": "study",
        "fingerprint": "f",
        "tables": {name: table.version for name, table in TABLES.items()},
        "identity": IDENTITY,
    }


def test_another_identity_is_refused_with_what_differs(store: Store) -> None:
    changed = IDENTITY | {"seed": 7, "core": {"latent_dim": 3, "steps": 6}}
    with pytest.raises(UserError) as caught:
        Store(store.root).claim(changed, "g", "study")
    assert "core.steps: 5 -> 6; seed: 0 -> 7" in str(caught.value)
    assert "another name" in str(caught.value)
    assert module.open(store.root).record["fingerprint"] == "f"


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds files but no study\.json"):
        Store(tmp_path).claim(IDENTITY, "f", "study")
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "thesis.tex").claim(IDENTITY, "f", "study")
    with pytest.raises(UserError, match="is not the folder of a study"):
        module.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_is_claimed_though_a_killed_claim_left_a_file(tmp_path: Path) -> None:
    (tmp_path / ".study.json.0123").write_text("{")
    Store(tmp_path).claim(IDENTITY, "f", "study")
    assert module.open(tmp_path).record["name"] == "study"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": "s"}', "null", '"x"'])
def test_a_damaged_record_is_told(text: str, store: Store) -> None:
    (store.root / "study.json").write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        module.open(store.root)
    with pytest.raises(UserError, match="is damaged"):
        Store(store.root).claim(IDENTITY, "f", "study")


def test_records_of_another_version_are_told(store: Store) -> None:
    record = json.loads((store.root / "study.json").read_text())
    record["tables"]["metrics"] = 5
    (store.root / "study.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r'"metrics": 5.*release that wrote'):
        module.open(store.root)


def test_differences_name_added_removed_and_changed_settings() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "gone": "x"}
    new = {"b": {"d": {"e": 0.5}, "c": [2, 1]}, "a": 1, "new": True}
    assert differences(old, new) == [
        "b.c: [1, 2] -> [2, 1]",
        "b.d.e: null -> 0.5",
        'gone: "x" -> absent',
        "new: absent -> true",
    ]
    assert differences(old, dict(reversed(old.items()))) == []


# --- reference -----------------------------------------------------------------------------------


def test_every_column_says_what_it_means() -> None:
    for table in TABLES.values():
        for column in table.columns:
            assert column.metadata[b"meaning"].endswith(b".")


def test_written_reference_is_the_generated_one() -> None:
    written = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    assert written == module.reference(), "run: python -m study.store > docs/tables.md"
