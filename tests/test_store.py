"""It is long, since all promises of the storage are tried on one small table."""

import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

import study
from cf_core.errors import QueryError, RecordsError, UserError
from cf_core.files import place, replacing
from study import store as module
from study.findings import count_bins
from study.ledger import Ledger
from study.parts import QuarantineWarning
from study.store import Store, find_differences
from study.tables import TABLES, drop_volatile, write_reference
from tests.conftest import folder

ROOT = Path(__file__).parent.parent
IDENTITY: dict[str, Any] = {"seed": 0, "core": {"latent_dim": 3, "steps": 5}, "corpus": "abc"}

TRIAL: dict[str, Any] = {
    "trial": "lambda0.3-style2-seed1",
    "configuration": "lambda0.3-style2",
    "method": "fusion",
    "lambda": 0.3,
    "style_dim": 2,
    "seed": 2**40,
    "step_size": None,
    "hidden": 384,
    "learning_rate": 0.002,
    "style_weight": 1.0,
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
    "hardware": "c",
    "versions": "{}",
    "git_commit": None,
    "git_dirty": None,
    "finished_at": datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
    "parts": "",
}
METRIC: dict[str, Any] = {
    "trial": "lp-eta0.1",
    "configuration": "lp-eta0.1",
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
        "configuration": ["t"] * rows,
        "method": ["fusion"] * rows,
        "source": ["prior"] * rows,
        "iteration": np.ones(rows, np.int64),
        "pair": np.arange(rows),
        "meter": ["4/4"] * rows,
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
    # A column that may be null and is not given is null.
    assert all(value is None for name, value in back.items() if name not in row)
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
    (first, second) = sorted((folder(store) / table).iterdir())
    assert pq.read_schema(first).equals(schema)
    assert pq.read_schema(first).metadata[b"version"] == str(TABLES[table].version).encode()
    assert first.read_bytes() == second.read_bytes()


def test_floats_are_split_by_byte_without_dictionary(store: Store) -> None:
    store.write("latents", "a", latents(4))
    store.write("metrics", "a", [METRIC])
    group = pq.read_metadata(folder(store) / "latents" / "a.1.parquet").row_group(0)
    encodings = {c.path_in_schema: c.encodings for c in map(group.column, range(group.num_columns))}
    group = pq.read_metadata(folder(store) / "metrics" / "a.1.parquet").row_group(0)
    encodings |= {
        c.path_in_schema: c.encodings for c in map(group.column, range(group.num_columns))
    }
    assert {group.column(i).compression for i in range(group.num_columns)} == {"ZSTD"}
    for path in ("z_left.list.element", "style.list.element", "value", "step_size"):
        assert "BYTE_STREAM_SPLIT" in encodings[path], path
        assert not any("DICTIONARY" in encoding for encoding in encodings[path]), path
    assert "RLE_DICTIONARY" in encodings["metric"]


def test_writing_a_part_again_replaces_it(store: Store) -> None:
    store.write("trials", "a", [TRIAL])
    store.write("trials", "b", [TRIAL | {"trial": "b", "status": "diverged", "reason": "nan"}])
    assert Ledger(store).list_statuses() == {TRIAL["trial"]: "done", "b": "diverged"}
    store.write("trials", "b", [TRIAL | {"trial": "b"}])
    assert Ledger(store).list_statuses() == {TRIAL["trial"]: "done", "b": "done"}


def test_bins_are_counted_in_the_meter_that_has_most(store: Store) -> None:
    """No meter has the most bins of both statistics."""
    counts = {
        "4/4": {"note_count": 3, "pitch_range": 4},
        "3/8": {"note_count": 2, "pitch_range": 4},
        "9/8": {"note_count": 5, "pitch_range": 1},
    }
    rows = [
        {"meter": meter, "statistic": name, "bin": place, "lower": float(place) if place else None}
        for meter, of_meter in counts.items()
        for name, count in of_meter.items()
        for place in range(count)
    ]
    store.write("bins", "references", rows)
    assert count_bins(store) == {"note_count": 5, "pitch_range": 4}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_without_parts_has_its_columns(table: str, store: Store) -> None:
    frame = store.scan(table).collect()
    assert frame.height == 0
    assert frame.columns == [column.name for column in TABLES[table].columns]
    assert Ledger(store).list_statuses() == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stauts": "done"}, "metrics: there is no column stauts"),
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
    assert list(folder(store).glob("metrics/*")) == []


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
    assert [path.name for path in folder(store).iterdir()] == ["study.json"]


def test_a_writer_that_dies_leaves_the_part_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("metrics", "a", [METRIC])
    before = (folder(store) / "metrics" / "a.1.parquet").read_bytes()

    def die(_: Any, where: Path, **__: Any) -> None:
        where.write_bytes(b"PAR1 half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", die)
    for part in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            store.write("metrics", part, [METRIC])
    assert [path.name for path in (folder(store) / "metrics").iterdir()] == ["a.1.parquet"]
    assert (folder(store) / "metrics" / "a.1.parquet").read_bytes() == before


def test_what_a_killed_writer_left_is_not_scanned(store: Store) -> None:
    store.write("metrics", "a", [METRIC])
    (folder(store) / "metrics" / ".b.1.parquet.0123").write_bytes(b"PAR1 half a file")
    (folder(store) / "metrics" / ".c.1.parquet").write_bytes(b"PAR1 half a file")
    assert store.scan("metrics").collect().height == 1


# --- attempts, quarantine, compaction ------------------------------------------------------------


def values(store: Store) -> dict[str, list[float]]:
    """The metrics' values, by trial."""
    rows = Store(store.root).metrics.sort("trial", "value").collect()
    grouped = rows.group_by("trial", maintain_order=True).agg("value")
    return dict(grouped.iter_rows())


def put(store: Store, part: str, found: Sequence[float], attempt: int = 1) -> None:
    rows = [METRIC | {"trial": part, "value": value} for value in found]
    store.write("metrics", part, rows, attempt)


def test_what_an_earlier_attempt_writes_late_is_never_read(store: Store) -> None:
    put(store, "a", [1.0], attempt=1)
    put(store, "a", [10.0], attempt=10)
    put(store, "a", [9.0], attempt=9)
    put(store, "a.1", [5.0])
    assert values(store) == {"a": [10.0], "a.1": [5.0]}
    assert list(store.compact())
    put(store, "a", [9.5], attempt=9)
    assert values(store) == {"a": [10.0], "a.1": [5.0]}
    assert list(store.compact())
    assert values(store) == {"a": [10.0], "a.1": [5.0]}
    assert [file.name for file in (folder(store) / "metrics").iterdir()] == ["compacted-2.parquet"]


def test_a_table_that_is_written_again_after_compaction_counts_anew(store: Store) -> None:
    for part in ("a", "b", "c"):
        put(store, part, [0.0, 1.0])
    assert list(store.compact())
    assert "b" in store.list_parts("metrics")
    put(store, "b", [2.0])
    assert values(store) == {"a": [0.0, 1.0], "b": [2.0], "c": [0.0, 1.0]}


@pytest.mark.parametrize("seed", range(6))
def test_any_history_of_writes_and_stopped_compactions_reads_as_if_nothing_was_merged(
    seed: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.parts._FILE_BYTES", 1000)
    random = np.random.default_rng(seed)
    wanted: dict[str, tuple[int, list[float]]] = {}
    for _ in range(40):
        part, attempt = f"part{random.integers(6)}", int(random.integers(1, 4))
        found = sorted(random.random(random.integers(0, 4)).tolist())
        if random.random() < 0.6:
            put(store, part, found, attempt)
            if attempt >= wanted.get(part, (0, []))[0]:
                wanted[part] = attempt, found
        else:
            stop_after = int(random.integers(1, 12))
            with die_after(stop_after), suppress(KeyboardInterrupt):
                list(Store(store.root).compact())
        assert values(store) == {part: found for part, (_, found) in wanted.items() if found}
        assert all((part in store.list_parts("metrics")) for part in wanted)
    list(store.compact())
    assert values(store) == {part: found for part, (_, found) in wanted.items() if found}
    assert list(store.compact()) == []


@contextmanager
def die_after(operations: int) -> Iterator[None]:
    """Stop at the operation of that number that changes a folder."""
    left = operations

    def dying(real: Any) -> Any:
        def operation(path: Path, *rest: Any, **more: Any) -> Any:
            nonlocal left
            left -= not path.name.startswith(".") or bool(rest)
            if left == 0:
                raise KeyboardInterrupt
            return real(path, *rest, **more)

        return operation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", dying(Path.unlink))
        patch.setattr(Path, "replace", dying(Path.replace))
        yield


def test_compaction_gives_one_sorted_file_of_the_same_schema(store: Store) -> None:
    parts = [f"lambda{weight}-seed{seed}" for weight in (0.1, 3.0) for seed in range(10)]
    for part in reversed(parts):
        put(store, part, [0.1, 0.2])
    store.write("trials", "a", [TRIAL])
    before = store.metrics.collect()
    (gain,) = store.compact()
    assert gain[:2] == ("metrics", (20, 1))
    (file,) = (folder(store) / "metrics").iterdir()
    assert gain.bytes[1] == file.stat().st_size
    assert pq.read_schema(file).equals(TABLES["metrics"].schema(3))
    assert pl.read_parquet(file)["trial"].unique(maintain_order=True).to_list() == parts
    assert_frame_equal(store.metrics.collect(), before, check_row_order=False)
    group = pq.read_metadata(file).row_group(0)
    assert "BYTE_STREAM_SPLIT" in group.column(10).encodings
    stamp = file.stat().st_mtime_ns
    assert list(store.compact()) == []
    assert file.stat().st_mtime_ns == stamp


BAD: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "no Parquet": lambda _: b"hello",
    "truncated": lambda whole: whole[: len(whole) // 2],
    "without its end": lambda whole: whole[:-1],
    "a damaged footer": lambda whole: whole[:-200] + bytes(192) + whole[-8:],
}


@pytest.mark.parametrize("kind", BAD)
def test_a_damaged_part_is_set_aside_and_named_and_the_rest_is_read(
    kind: str, store: Store
) -> None:
    put(store, "a", [1.0])
    put(store, "b", [2.0])
    part = folder(store) / "metrics" / "b.1.parquet"
    content = BAD[kind](part.read_bytes())
    part.write_bytes(content)
    with pytest.warns(
        QuarantineWarning, match=r"metrics/b\.1\.parquet: is not a whole Parquet file"
    ):
        assert values(store) == {"a": [1.0]}
    aside = folder(store) / "quarantine" / "metrics" / "b.1.parquet"
    assert aside.read_bytes() == content
    assert store.list_quarantined() == [aside]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert values(store) == {"a": [1.0]}
        assert "b" not in store.list_parts("metrics")


def test_the_attempt_before_a_damaged_one_counts(store: Store) -> None:
    put(store, "a", [1.0], attempt=1)
    put(store, "a", [2.0], attempt=2)
    (folder(store) / "metrics" / "a.2.parquet").write_bytes(b"PAR1")
    with pytest.warns(QuarantineWarning):
        assert values(store) == {"a": [1.0]}


def test_foreign_files_are_set_aside_and_never_replaced(store: Store) -> None:
    put(store, "a", [1.0])
    store.write("trials", "t", [TRIAL])
    table = folder(store) / "metrics"
    schema = pq.read_schema(table / "a.1.parquet")
    old = schema.with_metadata({"version": "0"}).empty_table()
    foreign = {
        "b.1.parquet": (folder(store) / "trials" / "t.1.parquet").read_bytes(),
        "mine.parquet": (table / "a.1.parquet").read_bytes(),
        "compacted-1.parquet": (table / "a.1.parquet").read_bytes(),
    }
    for name, content in foreign.items():
        (table / name).write_bytes(content)
    pq.write_table(old, table / "c.1.parquet")
    for _ in range(2):
        (table / "b.1.parquet").write_bytes(foreign["b.1.parquet"])
        with pytest.warns(QuarantineWarning) as warned:
            assert values(store) == {"a": [1.0]}
        assert any("b.1.parquet: belongs to another table" in str(each.message) for each in warned)
    kept = [path.name for path in (folder(store) / "quarantine" / "metrics").iterdir()]
    assert len(kept) == 5
    assert sum(name.endswith("b.1.parquet") for name in kept) == 2


def test_a_bad_part_that_cannot_be_moved_is_left_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "a", [1.0])
    (folder(store) / "metrics" / "b.1.parquet").write_bytes(b"")

    def read_only(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.warns(QuarantineWarning, match=r"b\.1\.parquet: .* it is left out"):
        assert store.metrics.collect()["value"].to_list() == [1.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.sql("SELECT COUNT(*) AS n FROM metrics")["n"].to_list() == [1]


@pytest.mark.parametrize("compacted", [False, True])
def test_a_trial_that_lost_its_rows_is_not_done(compacted: bool, store: Store) -> None:
    for trial in ("a", "b"):
        put(store, trial, [1.0])
        store.write("trials", trial, [TRIAL | {"trial": trial, "parts": "metrics"}])
    other = TRIAL | {"trial": "c", "status": "diverged", "reason": "nan", "parts": ""}
    store.write("trials", "c", [other])
    assert Ledger(store).list_statuses() == {"a": "done", "b": "done", "c": "diverged"}
    if compacted:
        assert len(list(store.compact())) == 2
    lost = "compacted-1" if compacted else "b.1"
    (folder(store) / "metrics" / f"{lost}.parquet").write_bytes(b"PAR1")
    again = Store(store.root)
    with pytest.warns(QuarantineWarning):
        again.inspect()
    assert len(again.list_quarantined()) == 1
    status = {"a": "failed" if compacted else "done", "b": "failed", "c": "diverged"}
    assert Ledger(again).list_statuses() == status
    reasons = dict(Ledger(again).list_over().select("trial", "reason").iter_rows())
    assert reasons["b"] == "its part of metrics is lost"
    assert reasons["c"] == "nan"
    put(store, "b", [1.0], attempt=2)
    row = TRIAL | {"trial": "b", "attempt": 2, "parts": "metrics"}
    store.write("trials", "b", [row], attempt=2)
    assert Ledger(again).list_statuses() == status | {"b": "done"}
    assert dict(Ledger(again).list_over().select("trial", "attempt").iter_rows())["b"] == 2


def test_latents_may_be_removed_as_a_whole_but_not_lost_one_by_one(store: Store) -> None:
    for trial in ("a", "b"):
        store.write("latents", trial, latents(2))
        store.write("trials", trial, [TRIAL | {"trial": trial, "parts": "latents"}])
    (folder(store) / "latents" / "a.1.parquet").unlink()
    assert Ledger(store).list_statuses() == {"a": "failed", "b": "done"}
    shutil.rmtree(folder(store) / "latents")
    assert Ledger(store).list_statuses() == {"a": "done", "b": "done"}
    assert store.latents.collect().is_empty()


def test_every_table_is_an_attribute(store: Store) -> None:
    assert set(TABLES) <= set(Store.__annotations__)
    for table in TABLES:
        assert getattr(store, table).collect_schema() == store.scan(table).collect_schema()
    with pytest.raises(AttributeError):
        _ = store.nothing  # type: ignore[attr-defined]


def test_latents_become_numpy_without_a_copy(store: Store) -> None:
    for part in ("a", "b"):
        store.write("latents", part, latents(4))
    frame = store.latents.collect().rechunk()
    z = frame["z_left"].to_numpy(allow_copy=False)
    assert z.shape == (8, 3)
    assert np.shares_memory(z, frame["z_left"].to_arrow().flatten().to_numpy())
    np.testing.assert_array_equal(z, np.tile(latents(4)["z_left"], (2, 1)))


@pytest.mark.slow
def test_records_may_be_in_a_bucket(bucket: str, store: Store) -> None:
    """Written, queried, damaged, compacted, done: as in a local folder."""
    root = place(f"{bucket}/records/a b")
    remote = Store(root)
    remote.claim(IDENTITY, "f", "study")
    assert study.open(str(root)).record == store.record
    for each in (store, remote):
        assert each.metrics.collect().is_empty()
        for part in ("a", "b", "lambda1e+38", "d"):
            put(each, part, [1.0, 2.0])
            row = TRIAL | {"trial": part, "parts": "metrics"}
            each.write("trials", part, [row])
        put(each, "b", [3.0], attempt=2)
        each.write("latents", "a", latents(3))
        whole = (each.root / "metrics" / "d.1.parquet").read_bytes()
        with replacing(each.root / "metrics" / "d.1.parquet") as temporary:
            temporary.write_bytes(whole[:-9])
        with pytest.warns(QuarantineWarning, match=r"metrics/d\.1\.parquet: is not a whole"):
            each.inspect()
        assert [file.name for file in each.list_quarantined()] == ["d.1.parquet"]
    for _ in range(2):
        for table in ("metrics", "trials", "latents"):
            frames = [s.scan(table).sort("trial").collect() for s in (store, remote)]
            assert_frame_equal(*frames)
        assert Ledger(remote).list_statuses() == Ledger(store).list_statuses()
        assert Ledger(remote).list_statuses()["d"] == "failed"
        assert values(remote)["b"] == [3.0]
        query = "SELECT trial, SUM(value) AS s FROM metrics GROUP BY trial ORDER BY trial"
        assert remote.sql(query).equals(store.sql(query))
        gains = [[gain[:2] for gain in each.compact()] for each in (store, remote)]
        assert gains[0] == gains[1]
    put(remote, "a", [7.0], attempt=3)
    assert values(remote) == values(store) | {"a": [7.0]}


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
        (
            "SELECT * FROM metric",
            "'metric' was not found.*tables: trials, configurations, objectives",
        ),
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
        frames.append(drop_volatile(store.scan("trials").collect(), "trials"))
    assert_frame_equal(frames[0], frames[1], check_exact=True)
    assert not frames[0].equals(frames[2])
    assert {"seconds", "finished_at", "versions"}.isdisjoint(frames[0].columns)


# --- the study's identity ------------------------------------------------------------------------


def test_claiming_again_is_allowed_and_changes_nothing(store: Store) -> None:
    before = (folder(store) / "study.json").read_bytes()
    Store(folder(store)).claim(IDENTITY, "f", "study")
    assert (folder(store) / "study.json").read_bytes() == before
    assert module.open(folder(store)).record == {
        "name": "study",
        "fingerprint": "f",
        "tables": {name: table.version for name, table in TABLES.items()},
        "selection": {},
        "identity": IDENTITY,
    }
    rule = {"maximise": "coverage", "where": []}
    Store(folder(store)).claim(IDENTITY, "f", "study", rule)
    assert module.open(folder(store)).record["selection"] == rule


def test_another_identity_is_refused_with_what_differs(store: Store) -> None:
    changed = IDENTITY | {"seed": 7, "core": {"latent_dim": 3, "steps": 6}}
    with pytest.raises(UserError) as caught:
        Store(folder(store)).claim(changed, "g", "study")
    assert "core.steps: 5 -> 6; seed: 0 -> 7" in str(caught.value)
    assert "another name" in str(caught.value)
    assert module.open(folder(store)).record["fingerprint"] == "f"


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
    (folder(store) / "study.json").write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        module.open(folder(store))
    with pytest.raises(UserError, match="is damaged"):
        Store(folder(store)).claim(IDENTITY, "f", "study")


@pytest.mark.parametrize("key", ["name", "fingerprint", "identity", "selection", "tables"])
def test_a_record_that_lacks_an_entry_is_told(key: str, store: Store) -> None:
    path = folder(store) / "study.json"
    record = json.loads(path.read_text())
    for broken in ({k: v for k, v in record.items() if k != key}, record | {key: 1}):
        path.write_text(json.dumps(broken))
        with pytest.raises(UserError, match="is damaged"):
            module.open(folder(store))


def test_records_of_another_version_are_told(store: Store) -> None:
    record = json.loads((folder(store) / "study.json").read_text())
    record["tables"]["metrics"] = 0
    (folder(store) / "study.json").write_text(json.dumps(record))
    store = module.open(folder(store))
    with pytest.raises(RecordsError, match=r"table metrics has version 0.*release that wrote"):
        store.scan("metrics")
    with pytest.raises(RecordsError, match=r"table metrics has version 0"):
        store.sql("SELECT * FROM metrics")
    # All other tables are what they were.
    assert store.trials.collect().is_empty()
    with pytest.raises(RecordsError, match=r"table metrics has version 0"):
        store.claim(IDENTITY, "f", "study")


def test_a_study_from_before_a_table_was_added_has_no_rows_of_it(store: Store) -> None:
    record = json.loads((folder(store) / "study.json").read_text())
    del record["tables"]["failures"]
    (folder(store) / "study.json").write_text(json.dumps(record))
    old = module.open(folder(store))
    assert old.failures.collect().is_empty()
    old.claim(IDENTITY, "f", "study")
    assert module.open(folder(store)).record["tables"].keys() == TABLES.keys()


@pytest.mark.parametrize(
    "statement",
    ["DROP TABLE trials", "-- SELECT\nDELETE FROM trials", "/* SELECT */ TRUNCATE trials", "", "x"],
)
def test_only_queries_are_taken(statement: str, store: Store) -> None:
    with pytest.raises(QueryError, match="only queries are taken"):
        store.sql(statement)


@pytest.mark.parametrize(
    "query",
    [
        "  select trial FROM trials",
        "-- which\nSELECT trial FROM trials",
        "WITH t AS (SELECT trial FROM trials) SELECT * FROM t",
        "(SELECT trial FROM trials)",
    ],
)
def test_queries_may_begin_in_several_ways(query: str, store: Store) -> None:
    assert store.sql(query).columns == ["trial"]


def test_differences_name_added_removed_and_changed_settings() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "gone": "x"}
    new = {"b": {"d": {"e": 0.5}, "c": [2, 1]}, "a": 1, "new": True}
    assert find_differences(old, new) == [
        "b.c: [1, 2] -> [2, 1]",
        "b.d.e: null -> 0.5",
        'gone: "x" -> absent',
        "new: absent -> true",
    ]
    assert find_differences(old, dict(reversed(old.items()))) == []


# --- reference -----------------------------------------------------------------------------------


def test_every_column_says_what_it_means() -> None:
    for table in TABLES.values():
        for column in table.columns:
            assert column.metadata[b"meaning"].endswith(b".")


def test_written_reference_is_the_generated_one() -> None:
    written = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    assert written == write_reference(), "run: python -m study.tables > docs/tables.md"
