"""The files of one table: parts that are written whole, compacted files, and what is damaged.

A table is a folder of part files, `PART.ATTEMPT.parquet`. Of several attempts at one part the
highest counts, so that what a worker of an earlier one writes late is never read. Compacting merges
parts into files `compacted-N.parquet`, whose footers say which rows are of which part and attempt;
a part file of the same or a later attempt still counts before them. So no row is ever lost or
doubled, whoever is killed. A file that is no whole part of the table is moved to
`quarantine/TABLE/`, and a warning names it.
"""

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
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


_Held = dict[str, _Rows]
"""What one file holds, by part."""


class TableFiles:
    """The files of the table in one folder, local or in any file system of pyarrow.

    Writers on several machines may share the folder: each writes parts of its own.
    """

    def __init__(self, folder: AnyPath, quarantine: AnyPath, schema: pa.Schema) -> None:
        self._folder, self.quarantine, self._schema = folder, quarantine, schema
        self._known: dict[AnyPath, _Held] = {}
        """Files that were looked into and are sound."""
        self._ignored: set[AnyPath] = set()
        """Files that are not and can't be moved, or are gone."""

    def write(self, part: str, attempt: int, frame: pl.DataFrame) -> None:
        """Write one part. Raises `ValueError` for what the schema or a file name does not allow."""
        if not re.fullmatch(r"\w[\w.+-]*", part, re.ASCII):
            raise ValueError(f"part {part!r}: must be letters, digits and . _ + - only")
        data = _conform(frame, self._schema, self._folder.name)
        with replacing(self._folder / f"{part}.{attempt}.parquet") as temporary:
            pq.write_table(data, temporary, **_encoding(self._schema))

    def scan(self) -> pl.LazyFrame:
        """All rows that count; none where there is no part."""
        whole, slices = [], []
        for file, rows in self._live().items():
            if len(rows) == len(self._known[file]):
                whole.append(file)
            else:
                frame = _scan_files([file], self._schema)
                slices += [frame.slice(start, count) for start, count in _runs(rows)]
        return pl.concat([_scan_files(whole, self._schema), *slices])

    def list_parts(self) -> set[str]:
        """Names of all parts that are there."""
        return set(self._parts())

    def inspect(self) -> None:
        """Look into every file, and set aside what is damaged or foreign."""
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
        # Only now: till here the part files have counted.
        for file in todo:
            file.unlink(missing_ok=True)
            self._known.pop(file, None)
        kept = [*settled, *merged]
        return Compaction(self._folder.name, (len(files), len(kept)), (size, _bytes(kept)))

    def _count(self, file: AnyPath) -> int:
        """Rows of a compacted file; 0 for others."""
        return sum(rows.length or 0 for rows in self._known[file].values())

    def _merge(self, rows: Sequence[_Rows], files: Sequence[AnyPath]) -> list[AnyPath]:
        """Write rows to new compacted files, sorted by part."""
        schema, merged = self._schema, []
        numbers = [int(found[1]) for f in files if (found := _COMPACTED_FILE.fullmatch(f.name))]
        number = max(numbers, default=0)
        for batch in _batches(sorted(rows), schema):
            number += 1
            held = [(rows.part, rows.attempt, len(data)) for rows, data in batch]
            marks = schema.metadata | {b"parts": json.dumps(held)}
            data = pa.concat_tables([data for _, data in batch]).replace_schema_metadata(marks)
            file = self._folder / f"compacted-{number}.parquet"
            with replacing(file) as temporary:
                pq.write_table(data, temporary, row_group_size=_GROUP_ROWS, **_encoding(schema))
            merged.append(file)
        return merged

    def _live(self) -> dict[AnyPath, list[_Rows]]:
        """By file, in order of their rows, the parts that count; all files are sound."""
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
        """Where the rows of each part are: those of the highest attempt.

        Of the files that hold the same attempt, a part's own, then the latest compacted one.
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
        """All files but those set aside, compacted ones first, by their number."""

        def rank(file: AnyPath) -> tuple[bool, int, str]:
            found = _COMPACTED_FILE.fullmatch(file.name)
            return found is None, int(found[1]) if found else 0, file.name

        files = self._folder.glob("[!.]*.parquet")
        return sorted((file for file in files if file not in self._ignored), key=rank)

    def _inspect(self, file: AnyPath) -> bool:
        """Look into a file once, and set it aside unless it is sound."""
        try:
            self._known[file] = _held(file, self._schema)
        except FileNotFoundError:  # compacted by another process since it was listed
            self._ignored.add(file)
            return False
        except OSError as error:
            raise RecordsError(f"{file}: can't be read ({error})") from None
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
        told = f"{file}: {problem}; it {where}, and running the study again makes anew what it held"
        warnings.warn(told, QuarantineWarning, stacklevel=2)


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


def _scan_files(files: Sequence[AnyPath], schema: pa.Schema) -> pl.LazyFrame:
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
