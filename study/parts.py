"""The files of one table: part files, compacted files, and the quarantine of damaged files.

A table is a folder of part files, `PART.ATTEMPT.parquet`, each written as a whole. Of several
attempts at a part, the highest counts, so that a late write by the worker of an earlier attempt is
never read. Compaction merges parts into files `compacted-N.parquet`, whose footers say which rows
belong to which part and attempt. A part file of the same or a later attempt takes precedence over
them. So no row is ever lost or doubled, whichever process is killed. A file that is not a whole
part of the table is moved to `quarantine/TABLE/`, and a warning names it.
"""

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from polars.datatypes import DataType, DataTypeClass

from cf_core.errors import RecordsError
from cf_core.files import AnyPath, RemotePath, local, replacing

_FILE_BYTES = 256 * 10**6
"""Approximate size of one file after compaction, in memory."""
_GROUP_ROWS = 1 << 17
_COPY_LEVEL = 19
"""Level of zstd in copies, which are read far more often than written: 6 % less than by default."""
_PART_FILE = re.compile(r"(\w[\w.+-]*)\.(\d+)\.parquet", re.ASCII)
_COMPACTED_FILE = re.compile(r"compacted-(\d+)\.parquet", re.ASCII)


class QuarantineWarning(UserWarning):
    """Names a file that is not a whole part of its table, and says where the file is now."""


class Compaction(NamedTuple):
    """The result of compacting a table."""

    table: str
    files: tuple[int, int]
    """Number of files before and after."""
    bytes: tuple[int, int]
    """Their size before and after."""


class _Rows(NamedTuple):
    """Where the rows of a part are: in a file of its own, or in a compacted file."""

    part: str
    attempt: int
    file: AnyPath
    start: int = 0
    length: int | None = None
    """Number of rows; None for all rows of the file."""


_Held = dict[str, _Rows]
"""The rows of one file, by part."""


class TableFiles:
    """The files of a table in one folder, local or in any file system of pyarrow.

    Writers on several machines may share the folder, since each writes parts of its own.
    """

    def __init__(self, folder: AnyPath, quarantine: AnyPath, schema: pa.Schema) -> None:
        self._folder, self.quarantine, self._schema = folder, quarantine, schema
        self._known: dict[AnyPath, _Held] = {}
        """Files that were inspected and are sound."""
        self._ignored: set[AnyPath] = set()
        """Files that are damaged and can't be moved, or that no longer exist."""

    def write(self, part: str, attempt: int, frame: pl.DataFrame) -> None:
        """Write one part. Raises `ValueError` where `part` or `frame` does not fit the table."""
        if not re.fullmatch(r"\w[\w.+-]*", part, re.ASCII):
            raise ValueError(f"part {part!r}: must be letters, digits and . _ + - only")
        data = _conform(frame, self._schema, self._folder.name)
        with replacing(self._folder / f"{part}.{attempt}.parquet") as temporary:
            pq.write_table(data, temporary, **_encoding(self._schema))

    def scan(self) -> pl.LazyFrame:
        """Scan all rows that count; without parts there are none."""
        whole, slices = [], []
        for file, rows in self._live().items():
            if len(rows) == len(self._known[file]):
                whole.append(file)
            else:
                frame = _scan_files([file], self._schema)
                slices += [frame.slice(start, count) for start, count in _runs(rows)]
        return pl.concat([_scan_files(whole, self._schema), *slices])

    def list_parts(self) -> set[str]:
        """List the names of all parts."""
        return set(self._parts())

    def inspect(self) -> None:
        """Inspect every file, and move those that are damaged or foreign to the quarantine."""
        self._live()

    def compact(self) -> Compaction | None:
        """Merge many parts into few files; None where there is nothing to merge."""
        live, files = self._live(), self._files()
        whole = [f for f in files if f in live and len(live[f]) == len(self._known[f])]
        settled = [file for file in whole if self._count(file) >= _file_rows(self._schema)]
        todo = [file for file in files if file not in settled]
        if len(todo) <= 1 and set(todo) <= set(whole):
            return None
        size = _bytes(files)
        rows = [rows for file in todo for rows in live.get(file, ())]
        merged = self._merge(rows, files)
        # The old files counted until here; only now may they be removed.
        for file in todo:
            file.unlink(missing_ok=True)
            self._known.pop(file, None)
        kept = [*settled, *merged]
        return Compaction(self._folder.name, (len(files), len(kept)), (size, _bytes(kept)))

    def copy(
        self, folder: Path, keep: Callable[[pl.DataFrame], pl.DataFrame] | None = None
    ) -> Path | None:
        """Write all rows that count to one compacted file in another folder; None without rows.

        Of each part, only the rows that `keep` returns are written. Equal rows give equal bytes,
        however their parts lie in files.
        """
        parts = sorted(rows for live in self._live().values() for rows in live)
        kept = [pair for batch in _batches(parts, self._schema) for pair in batch]
        if keep is not None:
            kept = [(rows, self._keep(data, keep)) for rows, data in kept]
        if not sum(len(data) for _, data in kept):
            return None
        file = folder / "compacted-1.parquet"
        _write_compacted(file, kept, self._schema, compression_level=_COPY_LEVEL)
        return file

    def _keep(self, data: pa.Table, keep: Callable[[pl.DataFrame], pl.DataFrame]) -> pa.Table:
        frame = pl.DataFrame(data)
        return _conform(keep(frame), self._schema, self._folder.name)

    def _count(self, file: AnyPath) -> int:
        """Count the rows of a compacted file; 0 for other files."""
        return sum(rows.length or 0 for rows in self._known[file].values())

    def _merge(self, rows: Sequence[_Rows], files: Sequence[AnyPath]) -> list[AnyPath]:
        """Write rows to new compacted files, sorted by part."""
        schema, merged = self._schema, []
        numbers = [int(found[1]) for f in files if (found := _COMPACTED_FILE.fullmatch(f.name))]
        number = max(numbers, default=0)
        for batch in _batches(sorted(rows), schema):
            number += 1
            file = self._folder / f"compacted-{number}.parquet"
            _write_compacted(file, batch, schema)
            merged.append(file)
        return merged

    def _live(self) -> dict[AnyPath, list[_Rows]]:
        """Find the parts that count, by file and in order of their rows; all files are sound."""
        while True:
            live: dict[AnyPath, list[_Rows]] = {}
            for rows in sorted(self._parts().values()):
                live.setdefault(rows.file, []).append(rows)
            new = [file for file in live if file not in self._known]
            if isinstance(self._folder, RemotePath):
                with ThreadPoolExecutor() as pool:
                    sound = list(pool.map(self._inspect, new))
            else:
                sound = list(map(self._inspect, new))
            if all(sound):
                return live

    def _parts(self) -> dict[str, _Rows]:
        """Find the rows of each part, which are those of its highest attempt.

        Of files with the same attempt, the part's own file counts, else the latest compacted one.
        """
        parts: dict[str, _Rows] = {}
        for file in self._files():
            if found := _PART_FILE.fullmatch(file.name):
                held: _Held = {found[1]: _Rows(found[1], int(found[2]), file)}
            elif file in self._known or self._inspect(file):
                held = self._known[file]
            else:
                continue
            for part, rows in held.items():
                if part not in parts or rows.attempt >= parts[part].attempt:
                    parts[part] = rows
        return parts

    def _files(self) -> list[AnyPath]:
        """List all files that are not ignored; compacted files come first, by their number."""

        def rank(file: AnyPath) -> tuple[bool, int, str]:
            found = _COMPACTED_FILE.fullmatch(file.name)
            return found is None, int(found[1]) if found else 0, file.name

        files = self._folder.glob("[!.]*.parquet")
        return sorted((file for file in files if file not in self._ignored), key=rank)

    def _inspect(self, file: AnyPath) -> bool:
        """Inspect a file, and set it aside unless it is sound; return whether it is."""
        try:
            self._known[file] = _held(file, self._schema)
        except FileNotFoundError:  # another process has compacted it since it was listed
            self._ignored.add(file)
            return False
        except OSError as error:
            raise RecordsError(
                f"{file}: can't be read ({error}); check its permissions and the disk or network"
            ) from None
        except ValueError as error:
            self._set_aside(file, str(error))
            return False
        return True

    def _set_aside(self, file: AnyPath, problem: str) -> None:
        target = self.quarantine / file.name
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
        told = f"{file}: {problem}; it {where}. Run the study again to recreate its rows"
        warnings.warn(told, QuarantineWarning, stacklevel=2)


def _write_compacted(
    file: AnyPath, batch: Sequence[tuple[_Rows, pa.Table]], schema: pa.Schema, **more: Any
) -> None:
    """Write the rows of parts to one file, with what says which part each row belongs to."""
    held = [(rows.part, rows.attempt, len(data)) for rows, data in batch]
    marks = schema.metadata | {b"parts": json.dumps(held)}
    # In one piece: the bytes may not depend on where one part ended.
    data = pa.concat_tables([data for _, data in batch]).combine_chunks()
    with replacing(file) as temporary:
        pq.write_table(
            data.replace_schema_metadata(marks),
            temporary,
            row_group_size=_GROUP_ROWS,
            **_encoding(schema),
            **more,
        )


def _conform(frame: pl.DataFrame, schema: pa.Schema, table: str) -> pa.Table:
    if unknown := [name for name in frame.columns if name not in schema.names]:
        raise ValueError(f"{table}: there is no column {unknown[0]}")
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
    """Choose how the columns of a part are written, as arguments of pyarrow's writers."""
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


def _scan_files(files: Sequence[AnyPath], schema: pa.Schema) -> pl.LazyFrame:
    remote = [file.opened for file in files if isinstance(file, RemotePath)]
    if not remote:
        return pl.scan_parquet([str(file) for file in files], schema=_polars(schema), glob=False)
    paths = [path for _, path in remote]
    dataset = ds.dataset(paths, schema=schema, filesystem=remote[0][0], format="parquet")
    return pl.scan_pyarrow_dataset(dataset)


def _runs(rows: Sequence[_Rows]) -> list[tuple[int, int]]:
    """Merge adjacent rows of a compacted file into runs, each with a start and a length."""
    runs: list[tuple[int, int]] = []
    for start, count in sorted((each.start, each.length or 0) for each in rows):
        if runs and sum(runs[-1]) == start:
            runs[-1] = runs[-1][0], runs[-1][1] + count
        else:
            runs.append((start, count))
    return runs


def _held(file: AnyPath, schema: pa.Schema) -> _Held:
    """Find the rows that a file holds. Raises `ValueError` where they do not fit the schema."""
    found = _read_schema(file)
    marks = found.metadata or {}
    if not found.equals(schema) or marks.get(b"version") != schema.metadata[b"version"]:
        raise ValueError("belongs to another table, study or release")
    if name := _PART_FILE.fullmatch(file.name):
        return {name[1]: _Rows(name[1], int(name[2]), file)}
    if not _COMPACTED_FILE.fullmatch(file.name) or b"parts" not in marks:
        raise ValueError("does not say to which parts its rows belong")
    held, start = {}, 0
    for part, attempt, count in json.loads(marks[b"parts"]):
        held[part] = _Rows(part, attempt, file, start, count)
        start += count
    return held


def _read_schema(file: AnyPath) -> pa.Schema:
    system, path = file.opened if isinstance(file, RemotePath) else (None, file)
    with suppress(pa.ArrowException, OSError):
        return pq.read_schema(path, filesystem=system)
    # Try again from memory: if that fails too, the file is damaged, not the disk or network.
    content = file.read_bytes()
    try:
        return pq.read_schema(pa.BufferReader(content))
    except (pa.ArrowException, OSError):
        raise ValueError("is not a whole Parquet file") from None


def _batches(rows: Iterable[_Rows], schema: pa.Schema) -> Iterator[list[tuple[_Rows, pa.Table]]]:
    """Yield the content of parts in batches, each as large as one compacted file."""
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
    """Estimate how many rows a file holds after compaction."""
    widths = (4 * getattr(field.type, "list_size", 4) for field in schema)
    return max(1, _FILE_BYTES // sum(widths))


def _read_table(file: AnyPath, schema: pa.Schema) -> pa.Table:
    with local(file) as whole:
        return pq.read_table(whole, schema=schema)


def _bytes(files: Iterable[AnyPath]) -> int:
    return sum(file.stat().st_size for file in files)
