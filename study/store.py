"""A study's folder: its identity, and its tables as lazy Polars frames.

The only module that opens a result table. A study's folder holds `study.json` and, for each table,
a folder of Parquet files (`study.parts`).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl

from cf_core.errors import ConfigError, QueryError, RecordsError
from cf_core.files import AnyPath, place, replacing
from study.parts import Compaction, TableFiles
from study.tables import TABLES

Rows = pl.DataFrame | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""What can be written: a frame, a list of rows, or columns by name (2-D arrays for latents)."""

_DEFAULT_RULE: Mapping[str, Any] = MappingProxyType({})

_QUERIES = ("SELECT", "WITH", "FROM", "VALUES", "(")
"""How a query begins. Polars also takes statements, such as DROP TABLE, which ask for nothing."""


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
    failures: pl.LazyFrame
    curves: pl.LazyFrame
    latents: pl.LazyFrame
    outcomes: pl.LazyFrame
    influences: pl.LazyFrame
    costs: pl.LazyFrame
    bins: pl.LazyFrame
    song_distances: pl.LazyFrame
    examples: pl.LazyFrame
    metrics: pl.LazyFrame
    controls: pl.LazyFrame
    frontier: pl.LazyFrame
    matched: pl.LazyFrame
    verdicts: pl.LazyFrame
    hypervolumes: pl.LazyFrame

    def __init__(self, root: AnyPath) -> None:
        self.root = root
        self._files: dict[str, TableFiles] = {}

    def claim(
        self,
        identity: Mapping[str, Any],
        fingerprint: str,
        name: str,
        selection: Mapping[str, Any] = _DEFAULT_RULE,
    ) -> None:
        """Make the folder that of this study, or check that it is; record the rule of selection.

        `identity` and `fingerprint` are those of `StudyConfig`, and `selection` its rule as JSON
        values; an empty one is the default rule. Raises `ConfigError` if the folder
        holds another study, naming the settings that differ, or something else; `RecordsError` if
        its tables are of another release, or it is a publication.
        """
        path = self.root / "study.json"
        record = {
            "name": name,
            "fingerprint": fingerprint,
            "tables": {table: one.version for table, one in TABLES.items()},
            "selection": dict(selection),
            "identity": identity,
        }
        if path.exists():
            self.need_whole("models to go on with")
            self.check(identity)
            for table in TABLES:
                self._check_version(table)
            if self.record == json.loads(json.dumps(record)):
                return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not path.exists() and any(True for _ in self.root.glob("[!.]*")):
                raise ConfigError(
                    f"{self.root}: holds files but no study.json; give the study another name or"
                    " results folder, or remove them"
                )
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(record, indent=2) + "\n")
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            raise ConfigError(f"{self.root}: cannot be written: {reason}") from None
        vars(self).pop("record", None)

    def check(self, identity: Mapping[str, Any]) -> None:
        """Raise `ConfigError` where settings differ from those that the study was begun with."""
        if changed := find_differences(self.record["identity"], identity):
            raise ConfigError(
                f"{self.root}: was begun with other settings ({'; '.join(changed)}); give the"
                " study another name or results folder, or set them back"
            )

    def need_whole(self, needed: str) -> None:
        """Raise `RecordsError`, naming what is needed, in a publication, which lacks it."""
        if self.left_out:
            raise RecordsError(
                f"{self.root}: is a publication, which has no {needed}; use the study's own folder,"
                " or run its config.yaml again"
            )

    @property
    def left_out(self) -> tuple[str, ...]:
        """Tables that a publication (`study.publish`) lacks; in a study's own folder, none."""
        return tuple(self.record.get("left_out", ()))

    @cached_property
    def record(self) -> dict[str, Any]:
        """What `study.json` holds: name, fingerprint, identity, selection, versions of tables.

        That of a publication also holds `left_out`.

        Raises `RecordsError` if there is none or it is damaged.
        """
        path = self.root / "study.json"
        try:
            record: dict[str, Any] = json.loads(path.read_bytes())
            _ = record["tables"].get, record["identity"]["core"]["latent_dim"]
            _ = "".join((record["name"], record["fingerprint"], record["identity"]["corpus"]))
            _ = record["selection"].get, tuple(record.get("left_out", ()))
        except OSError:
            raise RecordsError(
                f"{self.root}: is not the folder of a study (no study.json)"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RecordsError(
                f"{path}: is damaged; restore it, or run the study in another folder"
            ) from None
        return record

    def write(self, table: str, part: str, rows: Rows, attempt: int = 1) -> None:
        """Write one part, which replaces what the same or an earlier `attempt` wrote.

        A column that may be null may be missing. Raises `ValueError`, which names the column, for
        what the schema does not allow, and for a `part` that is no plain file name.
        """
        frame = pl.DataFrame(rows, infer_schema_length=None)
        self._open(table).write(part, attempt, frame)

    def scan(self, table: str) -> pl.LazyFrame:
        """All rows of a table, for a table's name in a variable; else it is an attribute.

        Without rows where there is no part. What is no part of the table is set aside, with a
        warning. Raises `RecordsError` where another release wrote the table, and where this is a
        publication without it.
        """
        if table in self.left_out:
            self.need_whole(f"table {table}")
        return self._open(table).scan()

    def has_rows(self, table: str) -> bool:
        """Whether a table has a row: `verdicts`, where a study was run as far as these."""
        return not self.scan(table).head(1).collect().is_empty()

    def sql(self, query: str) -> pl.DataFrame:
        """Run one SQL query (of Polars' dialect) over all tables.

            >>> import study
            >>> store = study.open("results/quickstart")
            >>> left = store.sql("SELECT trial, status FROM trials WHERE status <> 'done'")

        Raises `QueryError`, with Polars' own words if it can't be run.
        """
        bare = re.sub(r"/\*.*?\*/", " ", query, flags=re.DOTALL)
        bare = re.sub(r"--[^\n]*", " ", bare).strip()
        if not bare.upper().startswith(_QUERIES):
            raise QueryError("SQL: only queries are taken, such as SELECT * FROM trials")
        named = [table for table in TABLES if re.search(rf"\b{table}\b", query)]
        context = pl.SQLContext({table: self.scan(table) for table in named})
        try:
            return context.execute(query, eager=True)
        except (pl.exceptions.PolarsError, OSError) as error:
            message = " ".join(str(error).split("\n\n")[0].split())
            raise QueryError(f"SQL: {message} (tables: {', '.join(TABLES)})") from None

    def list_parts(self, table: str) -> set[str]:
        """Names of all parts of a table that were written and are still there."""
        return self._open(table).list_parts()

    def inspect(self) -> None:
        """Look into every file of every table, and set aside what is damaged or foreign."""
        for table in TABLES:
            self._open(table).inspect()

    def list_quarantined(self) -> list[AnyPath]:
        """All files that were ever set aside."""
        folders = [self.root / "quarantine" / table for table in TABLES]
        return [file for folder in folders for file in folder.glob("*")]

    def compact(self) -> Iterator[Compaction]:
        """Merge the many parts of each table into few files, one table after the other.

        It may be stopped or killed at any moment, and called again; but no run may write meanwhile.
        Raises `UserError` where the folder can't be written.
        """
        for table in TABLES:
            if (gain := self._open(table).compact()) is not None:
                yield gain

    def copy(
        self,
        table: str,
        folder: Path,
        keep: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
    ) -> Path | None:
        """Write a table, or what `keep` returns of the rows of each part, to one file in `folder`.

        Returns the file, or None for a table without rows. A folder of such folders, each with its
        table's name, can be opened again.
        """
        return self._open(table).copy(folder, keep)

    def _open(self, table: str) -> TableFiles:
        if table not in self._files:
            self._check_version(table)
            schema = TABLES[table].schema(self.record["identity"]["core"]["latent_dim"])
            quarantine = self.root / "quarantine" / table
            self._files[table] = TableFiles(self.root / table, quarantine, schema)
        return self._files[table]

    def _check_version(self, table: str) -> None:
        """Tables are versioned one by one: one that has changed leaves the others readable."""
        ours = TABLES[table].version
        if (theirs := self.record["tables"].get(table, ours)) != ours:
            raise RecordsError(
                f"{self.root}: its table {table} has version {theirs}, and this release knows"
                f" version {ours}; read it with the release that wrote it"
            )


def open(path: str | AnyPath) -> Store:  # noqa: A001
    """Open the records of a study by its folder or URI. Raises `RecordsError` if it is none.

    >>> import study
    >>> store = study.open("results/quickstart")
    >>> like = store.metrics.filter(metric="indistinguishable", source="test").collect()
    """
    store = Store(place(path) if isinstance(path, str) else path)
    _ = store.record
    return store


def _frame(table: str) -> property:
    return property(lambda store: store.scan(table), doc=TABLES[table].about)


for _name in TABLES:
    setattr(Store, _name, _frame(_name))


def find_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the settings that differ between two identities, as `dotted.key: old -> new`."""
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        below = old.get(key), new.get(key)
        if isinstance(below[0], Mapping) and isinstance(below[1], Mapping):
            found += find_differences(below[0], below[1], f"{prefix}{key}.")
            continue
        before, after = (json.dumps(s[key]) if key in s else "absent" for s in (old, new))
        if before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found
