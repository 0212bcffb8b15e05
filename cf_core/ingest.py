"""Ingest: reads melody files into the Parquet file of bars that `cf_core.corpus` loads."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cf_core import readers
from cf_core.corpus import BARS, label_bars
from cf_core.errors import CorpusError
from cf_core.files import replacing
from cf_core.ingest_report import IngestReport, count_bars, list_counts
from cf_core.isolation import CallError, Mapper, call_isolated, processes
from cf_core.melody import MAX_STEPS_PER_BEAT
from cf_core.readers import Gridded, Rejected, Song, read_gridded

Progress = Callable[[int, int | None], None]
"""Called with the number of songs done, and the total where it is known."""

_READ = pa.schema(
    [
        *BARS,
        ("onsets", pa.int32()),
        ("moved", pa.int32()),
        ("path", pa.string()),
    ]
)
"""Bars as they are read. Only the first bar of a song has the path of its file.

A rejected song is one row without a bar, whose title is the detail of the rejection.
"""


def ingest(
    source: Path,
    output: Path,
    *,
    include: str | None = None,
    part: str | None = None,
    steps_per_beat: int = 4,
    progress: Progress | None = None,
    mapper: Mapper | None = None,
) -> IngestReport:
    """Read a folder, zip archive or file of melodies into `output`, a Parquet file of bars.

    Beside it, `NAME.rejected.parquet` lists every song and bar that was left out, with the
    reason. `include` is as in `readers.find_songs`, `part` as in `readers.read_song`. A song that
    takes more than `isolation.SECONDS` or `isolation.MEMORY`, or crashes its reader, is rejected
    alone.

    `mapper` distributes the reading of batches of songs; by default, one process for each CPU
    reads. Batches already read are kept in `.NAME.parquet.parts` until all are, so that after any
    stop the next call continues from there. The output is the same, byte for byte, for every mapper
    and after any number of stops.

    Raises `MelodyError` where `source` is missing or holds no melody file. Raises `CorpusError`
    where no song can be read (after `NAME.rejected.parquet` is written), for `steps_per_beat`
    outside 1…24, and where `output` can't be written.

    >>> from pathlib import Path
    >>> from cf_core.ingest import ingest
    >>> report = ingest(Path("tunes"), Path("tunes.parquet"), include="*.mid")
    >>> report.songs, report.windows["4/4", 2].on_grid
    (30, 90)
    """
    songs = readers.find_songs(source, include)
    plan = _Plan(source.name, part, steps_per_beat)
    report = _write(songs, output, plan, mapper or processes(), progress)
    report.passed_over = readers.count_passed_over(source, include)
    return report


def ingest_builtin(
    output: Path,
    *,
    steps_per_beat: int = 4,
    progress: Progress | None = None,
    mapper: Mapper | None = None,
) -> IngestReport:
    """Write the built-in corpus: the tunes of two public-domain books in music21.

    The corpus is every tune of Aird's Selection of Airs (1782-1801) and O'Neill's Music of Ireland
    (1903). Repeats are played out. Arguments and errors are as in `ingest`; `CorpusError` is also
    raised where music21 is not installed.
    """
    tunes = list(read_builtin_tunes())
    songs = (song for name, data in tunes for song in readers.split_songs(name, data))
    plan = _Plan("builtin", None, steps_per_beat)
    return _write(songs, output, plan, mapper or processes(), progress, len(tunes))


def read_builtin_tunes() -> Iterator[tuple[str, bytes]]:
    """Yield name and text of each tune of the built-in corpus, as an ABC file of its own.

    Raises `CorpusError` where music21 is not installed.
    """
    spec = find_spec("music21")
    if spec is None or spec.origin is None:
        raise CorpusError(
            "the built-in corpus comes with music21, which is not installed; run"
            " pip install 'connective-fusion[builtin]', or name melodies of your own"
        )
    for book in ("airdsAirs", "oneills1850"):
        for path in sorted((Path(spec.origin).parent / "corpus" / book).glob("*.abc")):
            text = path.read_text(encoding="utf-8", errors="replace")
            for tune in re.split(r"(?m)^(?=X:)", text)[1:]:
                number = tune[2:].split(maxsplit=1)[0].lstrip("0")
                yield f"{book}-{path.stem}-{number}.abc", tune.encode()


@dataclass(frozen=True)
class _Plan:
    """What decides the content of a corpus, apart from the songs themselves."""

    source: str
    part: str | None
    steps_per_beat: int


_BATCH_SONGS, _BATCH_BYTES = 32, 2**22
"""A batch is full at either limit: small enough to lose, large enough to be worth a file."""


@dataclass(frozen=True)
class _Batch:
    """Songs that are read in one call; `key` is a hash of all that decides the result."""

    index: int
    key: str
    songs: list[Song | Rejected]


def _write(
    songs: Iterable[Song | Rejected],
    output: Path,
    plan: _Plan,
    mapper: Mapper,
    progress: Progress | None,
    total: int | None = None,
) -> IngestReport:
    if not 1 <= plan.steps_per_beat <= MAX_STEPS_PER_BEAT:
        raise CorpusError(
            f"steps_per_beat: {plan.steps_per_beat} is out of range; give 1 to {MAX_STEPS_PER_BEAT}"
        )
    beside = output.with_suffix(".rejected.parquet")
    for path in (output, beside):
        if path.is_dir():
            raise CorpusError(f"{path}: is a folder; give the name of a file")
    parts = output.parent / f".{output.name}.parts"
    table = _without_repeated(_read(_batches(songs, plan), parts, plan, mapper, progress, total))
    bars = table.filter(pc.is_valid(table["bar"])).select(BARS.names)
    rejected = table.filter(pc.is_valid(table["reason"]))
    rejected = rejected.select(["song_id", "bar", "reason", "title"])
    rejected = rejected.rename_columns(["id", "bar", "reason", "detail"])
    if not len(bars):
        with replacing(beside, CorpusError) as rejected_file:
            pq.write_table(rejected, rejected_file, compression="zstd")
        rmtree(parts, ignore_errors=True)
        raise CorpusError(_nothing_read(plan.source, rejected, beside))
    report = count_bars(table)
    bars = label_bars(bars, plan.source, plan.steps_per_beat, report.content_hash)
    # Both files are complete before either of them appears.
    with replacing(output, CorpusError) as bars_file:
        pq.write_table(bars, bars_file, compression="zstd")
        with replacing(beside, CorpusError) as rejected_file:
            pq.write_table(rejected, rejected_file, compression="zstd")
    rmtree(parts, ignore_errors=True)
    return report


def _nothing_read(source: str, rejected: pa.Table, path: Path) -> str:
    """Say that no song could be read, and why."""
    songs = rejected.to_pylist()
    counts = list_counts(Counter(song["reason"] for song in songs))
    shown = "; ".join(
        f"{song['id']}: {song['reason']}" + (f" ({song['detail']})" if song["detail"] else "")
        for song in songs[:3]
    )
    return (
        f"{source}: no melody could be read ({counts}): {shown}{'; …' * (len(songs) > 3)};"
        f" {path} lists them all"
    )


def _batches(songs: Iterable[Song | Rejected], plan: _Plan) -> Iterator[_Batch]:
    """Cut songs into batches; the cuts depend on nothing but the songs."""
    batch: list[Song | Rejected] = []
    count = size = 0
    for song in songs:
        batch.append(song)
        size += len(song.content) if isinstance(song, Song) else 0
        if len(batch) == _BATCH_SONGS or size >= _BATCH_BYTES:
            yield _Batch(count, _key(batch, plan), batch)
            batch, count, size = [], count + 1, 0
    if batch:
        yield _Batch(count, _key(batch, plan), batch)


def _key(batch: Sequence[Song | Rejected], plan: _Plan) -> str:
    digest = hashlib.sha256(repr((readers.VERSION, plan.part, plan.steps_per_beat)).encode())
    for song in batch:
        if isinstance(song, Song):
            digest.update(repr((song.id, song.path, song.format, len(song.content))).encode())
            digest.update(song.content)
        else:
            digest.update(repr(song).encode())
    return digest.hexdigest()[:32]


def _read(
    batches: Iterable[_Batch],
    parts: Path,
    plan: _Plan,
    mapper: Mapper,
    progress: Progress | None,
    total: int | None,
) -> list[pa.Table]:
    """Return the bars of every batch; batches that an earlier ingest read come from `parts`."""
    tables: dict[int, pa.Table] = {}
    done = 0

    def take(batch: _Batch, table: pa.Table) -> None:
        nonlocal done
        tables[batch.index] = table
        for _ in batch.songs:
            done += 1
            if progress is not None:
                progress(done, total)

    def unread() -> Iterator[_Batch]:
        for batch in batches:
            table = _part(parts / f"{batch.key}.parquet")
            if table is None:
                yield batch
            else:
                take(batch, table)

    for batch, table in mapper(partial(_read_batch, plan), unread()):
        with replacing(parts / f"{batch.key}.parquet", CorpusError) as file:
            pq.write_table(table, file)
        take(batch, table)
    return [tables[index] for index in sorted(tables)]


def _part(path: Path) -> pa.Table | None:
    """Read a part; None where it is missing or damaged."""
    try:
        # Parquet gives the items of lists another name.
        return pq.read_table(path).cast(_READ)
    except (OSError, ValueError, pa.ArrowException):
        return None


def _read_batch(plan: _Plan, batch: _Batch) -> tuple[_Batch, pa.Table]:
    """Read the songs of a batch, each in isolation."""
    rows: list[tuple[Any, ...]] = []
    for song in batch.songs:
        result: Gridded | Rejected
        try:
            result = (
                song
                if isinstance(song, Rejected)
                else call_isolated(read_gridded, song, plan.part, plan.steps_per_beat)
            )
        except CallError as error:
            result = Rejected(song.id, error.reason, error.detail)
        if isinstance(result, Rejected):
            rows.append((result.id, result.detail, *[None] * 4, result.reason, *[None] * 3))
            continue
        for index, bar in enumerate(result.bars):
            about = (bar.meter, bar.tokens, bar.held, bar.reason, bar.onsets, bar.moved)
            path = None if index or isinstance(song, Rejected) else song.path
            rows.append((result.id, result.title, index, *about, path))
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, type=kind.type) for c, kind in zip(columns, _READ, strict=True)]
    return batch, pa.table(arrays, schema=_READ)


def _without_repeated(tables: Sequence[pa.Table]) -> pa.Table:
    """Join the batches. A song with the id of an earlier one becomes a rejection.

    The detail of the rejection names the paths of both.
    """
    table = pa.concat_tables(tables).combine_chunks() if tables else _READ.empty_table()
    # Every song that was read has a bar 0; a rejected one has no bar.
    first = pc.fill_null(pc.equal(table["bar"], 0), False).to_numpy()
    starts = np.flatnonzero(first)
    seen: dict[str, str] = {}
    repeated: dict[int, str] = {}
    ids, paths = (table[name].take(starts).to_pylist() for name in ("song_id", "path"))
    for start, song_id, path in zip(starts.tolist(), ids, paths, strict=True):
        if song_id in seen:
            repeated[start] = f"{path}: {seen[song_id]} was taken"
        seen.setdefault(song_id, path)
    if not repeated:
        return table
    songs = np.cumsum(first | table["bar"].is_null().to_numpy())
    gone = np.isin(songs, songs[list(repeated)])
    kept = ~gone
    kept[list(repeated)] = True
    is_repeated = pa.array(gone)
    columns = {
        name: pc.if_else(is_repeated, pa.scalar(None, table[name].type), table[name])
        for name in ("bar", "meter", "tokens", "held", "onsets", "moved", "path")
    }
    columns["reason"] = pc.if_else(is_repeated, "duplicate id", table["reason"])
    details = [repeated.get(row) for row in range(len(table))]
    columns["title"] = pc.coalesce(pa.array(details, pa.string()), table["title"])
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return table.filter(pa.array(kept)).combine_chunks()
