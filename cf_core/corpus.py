"""Songs as a Parquet file of bars, and that file as segments, splits and adjacent pairs.

Shapes: `N` segments, `T` steps of a segment, `S` songs, `P` adjacent pairs.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64, UInt8

from cf_core import readers
from cf_core.errors import UserError
from cf_core.files import replacing
from cf_core.isolation import CallError, Mapper, isolated, processes
from cf_core.melody import (
    FIRST_PITCH,
    HOLD,
    MAX_STEPS_PER_BEAT,
    TOLERANCE,
    MelodyFormat,
    join,
)
from cf_core.readers import Gridded, Rejected, Song, read_gridded

SCHEMA_VERSION = 1
TRAIN, VALIDATION, TEST = 0, 1, 2

Progress = Callable[[int, int | None], None]
"""Called with the songs done and their total, where that is known."""

_BARS = pa.schema(
    [
        ("song_id", pa.string()),
        ("title", pa.string()),
        ("bar", pa.int32()),
        ("meter", pa.string()),
        ("tokens", pa.list_(pa.uint8())),
        ("held", pa.uint8()),
        ("reason", pa.string()),
    ]
)
_READ = pa.schema(
    [
        *_BARS,
        ("onsets", pa.int32()),
        ("moved", pa.int32()),
        ("path", pa.string()),
    ]
)
"""Bars as they are read; the first of a song has the path of its file.

A rejected song is one row without a bar: its title is the detail.
"""


# ---- writing -----------------------------------------------------------------------------------


@dataclass
class WindowCount:
    """Windows of one length: all, on the grid, and different ones of those on the grid."""

    all: int = 0
    on_grid: int = 0
    unique: int = 0


@dataclass
class IngestReport:
    """What an ingest took and what it left, and why.

    A window is consecutive whole bars in one time signature with, in each half, at least half as
    many onsets as the window has bars; windows start at every bar.
    """

    songs: int = 0
    windows: defaultdict[tuple[str, int], WindowCount] = field(
        default_factory=lambda: defaultdict(WindowCount)
    )
    """By meter ("all" for the sum) and number of bars (2, 4, 8)."""
    rejected_songs: Counter[str] = field(default_factory=Counter)
    rejected_bars: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    """Files that were not read because of their names, by suffix."""
    moved_ends: int = 0
    """Ends of played notes that were moved to the next onset or grid line."""
    moved_songs: int = 0
    """Songs that have such notes."""
    content_hash: str = ""

    def __str__(self) -> str:
        lines = [f"{self.songs} songs", "windows: all / on grid / unique", f"{'meter':8}"]
        lines[-1] += "".join(f"{f'{bars} bars':>26}" for bars in _WINDOW_BARS)
        meters = dict.fromkeys(meter for meter, _ in self.windows)
        for meter in sorted(meters, key=lambda m: -self.windows[m, _WINDOW_BARS[0]].all):
            counts = [self.windows[meter, bars] for bars in _WINDOW_BARS]
            cells = (f"{c.all:,} / {c.on_grid:,} / {c.unique:,}" for c in counts)
            lines.append(f"{meter:8}" + "".join(f"{cell:>26}" for cell in cells))
        lines.append(f"rejected songs: {_listed(self.rejected_songs)}")
        lines.append(f"rejected bars: {_listed(self.rejected_bars)}")
        if self.moved_ends:
            lines.append(
                f"played notes: the ends of {self.moved_ends:,} in {self.moved_songs:,} songs were"
                " moved to the next onset or grid line"
            )
        if self.passed_over:
            lines.append(f"files passed over by their names: {_listed(self.passed_over)}")
        return "\n".join(lines)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.most_common()) or "none"


_WINDOW_BARS = (2, 4, 8)


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
    reason. `include` is that of `readers.find_songs`, `part` that of `readers.read_song`. A song
    that takes more than `isolation.SECONDS` or `isolation.MEMORY`, or crashes, is rejected alone.

    `mapper` has batches of songs read, in as many processes as there are CPUs where there is none.
    What is read is kept in `.NAME.parquet.parts` until all is: an ingest that was stopped, however
    that was, goes on from there when it is called again. The file is the same, byte for byte,
    whatever the mapper and however often it was stopped.

    Raises `UserError` where nothing can be read, once the list of what was left out is written, and
    where `output` can't be written.
    """
    songs = readers.find_songs(source, include)
    plan = _Plan(source.name, part, steps_per_beat)
    report = _write(songs, output, plan, mapper or processes(), progress)
    report.passed_over = readers.passed_over(source, include)
    return report


def builtin_corpus(
    output: Path,
    *,
    steps_per_beat: int = 4,
    progress: Progress | None = None,
    mapper: Mapper | None = None,
) -> IngestReport:
    """Write the built-in corpus: common-time tunes of the public-domain books in music21.

    It is every tune whose first `M:` field says 4/4, C, 2/2 or C| of Aird's Selection of Airs
    (1782-1801) and O'Neill's Music of Ireland (1903), with its repeats played out. The rest is as
    in `ingest`.
    """
    tunes = list(common_time_tunes())
    songs = (song for name, data in tunes for song in readers.songs(name, data))
    plan = _Plan("builtin", None, steps_per_beat)
    return _write(songs, output, plan, mapper or processes(), progress, len(tunes))


def common_time_tunes() -> Iterator[tuple[str, bytes]]:
    """Yield names and texts of the built-in corpus's tunes, each as an ABC file of its own."""
    spec = find_spec("music21")
    if spec is None or spec.origin is None:
        raise UserError(
            "the built-in corpus comes with music21, which is not installed:"
            " pip install 'connective-fusion[builtin]', or name melodies of your own"
        )
    for book in ("airdsAirs", "oneills1850"):
        for path in sorted((Path(spec.origin).parent / "corpus" / book).glob("*.abc")):
            text = path.read_text(encoding="utf-8", errors="replace")
            for tune in re.split(r"(?m)^(?=X:)", text)[1:]:
                meter = re.search(r"(?m)^M:\s*(\S+)", tune)
                if meter and meter[1] in ("4/4", "C", "2/2", "C|"):
                    number = tune[2:].split(maxsplit=1)[0].lstrip("0")
                    yield f"{book}-{path.stem}-{number}.abc", tune.encode()


@dataclass(frozen=True)
class _Plan:
    """What a corpus is made of, but for the songs themselves."""

    source: str
    part: str | None
    steps_per_beat: int


_BATCH_SONGS, _BATCH_BYTES = 32, 2**22
"""A batch is full when it has either: small enough to lose, large enough to be worth a file."""


@dataclass(frozen=True)
class _Batch:
    """Songs that are read in one go; `key` is a hash of all that decides what is read."""

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
        raise UserError(
            f"steps_per_beat: {plan.steps_per_beat} is not in 1 to {MAX_STEPS_PER_BEAT}"
        )
    beside = output.with_suffix(".rejected.parquet")
    for path in (output, beside):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give the name of a file")
    parts = output.parent / f".{output.name}.parts"
    table = _without_repeated(_read(_batches(songs, plan), parts, plan, mapper, progress, total))
    bars = table.filter(pc.is_valid(table["bar"])).select(_BARS.names)
    rejected = table.filter(pc.is_valid(table["reason"]))
    rejected = rejected.select(["song_id", "bar", "reason", "title"])
    rejected = rejected.rename_columns(["id", "bar", "reason", "detail"])
    if not len(bars):
        with replacing(beside) as rejected_file:
            pq.write_table(rejected, rejected_file, compression="zstd")
        rmtree(parts, ignore_errors=True)
        raise UserError(_nothing_read(plan.source, rejected, beside))
    report = _report(table)
    about = {
        "schema_version": SCHEMA_VERSION,
        "steps_per_beat": plan.steps_per_beat,
        "tolerance": str(TOLERANCE),
        "source": plan.source,
        "content_hash": report.content_hash,
    }
    bars = bars.replace_schema_metadata({_KEY: json.dumps(about)})
    # Both are whole before either appears.
    with replacing(output) as bars_file:
        pq.write_table(bars, bars_file, compression="zstd")
        with replacing(beside) as rejected_file:
            pq.write_table(rejected, rejected_file, compression="zstd")
    rmtree(parts, ignore_errors=True)
    return report


def _nothing_read(source: str, rejected: pa.Table, path: Path) -> str:
    """Say that no song could be read, and why."""
    songs = rejected.to_pylist()
    counts = _listed(Counter(song["reason"] for song in songs))
    shown = "; ".join(
        f"{song['id']}: {song['reason']}" + (f" ({song['detail']})" if song["detail"] else "")
        for song in songs[:3]
    )
    return (
        f"{source}: no melody could be read ({counts}): {shown}{'; …' * (len(songs) > 3)};"
        f" {path} lists them all"
    )


def _batches(songs: Iterable[Song | Rejected], plan: _Plan) -> Iterator[_Batch]:
    """Cut songs into batches; where they are cut depends on nothing but the songs."""
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
    """Return the bars of every batch, those that an earlier ingest has read from its parts."""
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
        with replacing(parts / f"{batch.key}.parquet") as file:
            pq.write_table(table, file)
        take(batch, table)
    return [tables[index] for index in sorted(tables)]


def _part(path: Path) -> pa.Table | None:
    """Read a part; none where it was not written, or has come to harm since."""
    try:
        # What is read back names the items of lists otherwise.
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
                else isolated(read_gridded, song, plan.part, plan.steps_per_beat)
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
    """Join the batches; of a song whose id an earlier one has, a rejection is left.

    It names both paths.
    """
    table = pa.concat_tables(tables).combine_chunks() if tables else _READ.empty_table()
    # Whatever has a bar 0 is a song that was read.
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


_KEY = b"connective_fusion.corpus"


def content_hash(table: pa.Table) -> str:
    """SHA-256 of the bars in a corpus table: not of its path, compression or titles."""
    digest = hashlib.sha256()
    for name in ("song_id", "bar", "meter", "tokens", "held", "reason"):
        column = table[name].combine_chunks()
        digest.update(f"{name}:{len(column)};".encode())
        if pa.types.is_list(column.type):
            lengths = pc.fill_null(pc.list_value_length(column), -1)
            digest.update(lengths.to_numpy().astype("<i4").tobytes())
            column = column.flatten()
        elif column.null_count:
            digest.update(column.is_null().to_numpy(zero_copy_only=False).tobytes())
            column = column.drop_null()
        if pa.types.is_string(column.type):
            lengths = pc.binary_length(column)
            digest.update(lengths.to_numpy().astype("<i4").tobytes())
            digest.update("".join(column.to_pylist()).encode())
        else:
            digest.update(column.to_numpy().astype("<i4").tobytes())
    return digest.hexdigest()


def _report(table: pa.Table) -> IngestReport:
    """Count what was read, from bars as `_READ` has them."""
    songs = table.filter(table["bar"].is_null())
    bars = table.filter(pc.is_valid(table["bar"]))
    report = IngestReport(
        songs=pc.sum(pc.equal(bars["bar"], 0)).as_py(),
        rejected_songs=Counter(songs["reason"].to_pylist()),
        rejected_bars=Counter(bars["reason"].drop_null().to_pylist()),
        moved_ends=pc.sum(bars["moved"]).as_py(),
        moved_songs=len(bars.filter(pc.greater(bars["moved"], 0))["song_id"].unique()),
        content_hash=content_hash(bars),
    )
    _count_windows(bars, report.windows)
    return report


def _count_windows(bars: pa.Table, counts: defaultdict[tuple[str, int], WindowCount]) -> None:
    """Count windows of every length, by meter and in all."""
    song = np.cumsum(bars["bar"].to_numpy() == 0)
    meters = bars["meter"].combine_chunks().dictionary_encode()
    meter, names = meters.indices.to_numpy(), meters.dictionary.to_pylist()
    onsets = bars["onsets"].to_numpy()
    reasons = pa.array(["short bar", "long bar"])
    whole = ~pc.is_in(bars["reason"], value_set=reasons).to_numpy()
    on_grid = bars["reason"].is_null().to_numpy()
    tokens, codes = bars["tokens"].to_pylist(), dict[tuple[int, ...], int]()
    code = np.array([codes.setdefault(tuple(t), len(codes)) if t else -1 for t in tokens])
    held = np.array([bool(t) and t[0] == HOLD for t in tokens]) * (
        pc.fill_null(bars["held"], 0).to_numpy().astype(np.int64) + 1
    )
    for length in _WINDOW_BARS:
        rows = np.arange(max(len(song) - length + 1, 0))[:, None] + np.arange(length)
        one = (song[rows] == song[rows[:, :1]]) & (meter[rows] == meter[rows[:, :1]])
        rows = rows[(one & whole[rows]).all(axis=1)]
        half = length // 2
        busy = np.minimum(onsets[rows[:, :half]].sum(axis=1), onsets[rows[:, half:]].sum(axis=1))
        rows = rows[busy >= half]
        good = rows[on_grid[rows].all(axis=1)]
        of = meter[good[:, :1]]
        unique = np.unique(np.hstack([of, held[good[:, :1]], code[good]]), axis=0)[:, 0]
        for kind in np.unique(meter[rows[:, 0]]):
            found = [(of == kind).sum() for of in (meter[rows[:, 0]], meter[good[:, 0]], unique)]
            for name in ("all", names[kind]):
                count = counts[name, length]
                count.all += int(found[0])
                count.on_grid += int(found[1])
                count.unique += int(found[2])


# ---- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Segments of one format, from a file of bars, with their songs split in three."""

    form: MelodyFormat
    tokens: UInt8[np.ndarray, "N T"]
    """Model tokens: `REST`, `HOLD`, `FIRST_PITCH + pitch - form.lowest`."""
    song: Int64[np.ndarray, "N"]
    """Index into `song_ids`."""
    bar: Int64[np.ndarray, "N"]
    """Index, in its song, of a segment's first bar."""
    song_ids: tuple[str, ...]
    split: Int64[np.ndarray, "S"]
    """`TRAIN`, `VALIDATION` or `TEST` of every song."""
    pairs: Int64[np.ndarray, "P 2"]
    """Rows (left, right) of adjacent, not overlapping segments of one song."""
    struck_again: int
    """Segments whose first note was held over their start and is struck again there."""
    content_hash: str
    """Hash of the file's bars: the same wherever and however it was written."""

    def segments(self, split: int) -> Int64[np.ndarray, "n"]:
        """Rows of the segments of one split."""
        return np.flatnonzero(self.split[self.song] == split)

    def pairs_of(self, split: int) -> Int64[np.ndarray, "p 2"]:
        """Adjacent pairs of one split."""
        return np.asarray(self.pairs[self.split[self.song[self.pairs[:, 0]]] == split])


@dataclass(frozen=True)
class _Windows:
    """Windows of consecutive bars as model tokens; `song` is an index into all songs' ids."""

    tokens: UInt8[np.ndarray, "N T"]
    song: Int64[np.ndarray, "N"]
    bar: Int64[np.ndarray, "N"]
    struck_again: Bool[np.ndarray, "N"]


def load_corpus(path: Path, form: MelodyFormat, seed: int) -> Corpus:
    """Load the segments of `form` from a corpus file, split by song into 80/10/10 %.

    Segments start at every bar whose `form.bars_per_segment` bars are on the grid, in one meter
    of `form` and within its pitches, each half with half as many onsets as the segment has bars.
    Songs that share a third or more of the smaller one's different two-bar phrases, transposed or
    not, are kept on one side of the split; groups of such songs are dealt out at random from
    `seed`. Raises `UserError` for a file of another kind or grid, and where songs or pairs are too
    few to split.
    """
    table, steps_per_beat = _open(path)
    if steps_per_beat != form.steps_per_beat:
        raise UserError(
            f"{path}: has {steps_per_beat} steps per beat, but {form.steps_per_beat} are"
            " asked for: ingest the melodies again with that steps_per_beat"
        )
    ids = table["song_id"].combine_chunks().dictionary_encode()
    songs = ids.indices.to_numpy().astype(np.int64)
    windows = _windows(table, songs, form, form.bars_per_segment)
    kept, song = np.unique(windows.song, return_inverse=True)
    phrases = _windows(table, songs, form, 2)
    groups = _near_duplicates(phrases, kept)
    corpus = Corpus(
        form=form,
        tokens=windows.tokens,
        song=song.astype(np.int64),
        bar=windows.bar,
        song_ids=tuple(ids.dictionary.take(pa.array(kept)).to_pylist()),
        split=_split(groups, np.random.default_rng(seed)),
        pairs=_adjacent(song, windows.bar, form.bars_per_segment),
        struck_again=int(windows.struck_again.sum()),
        content_hash=content_hash(table),
    )
    for split, name in ((TRAIN, "training"), (VALIDATION, "validation"), (TEST, "test")):
        if (corpus.split == split).sum() < 2 or not len(corpus.pairs_of(split)):
            raise UserError(
                f"{path}: too small to split: {len(kept)} songs with {len(windows.tokens)} segments"
                f" and {len(corpus.pairs)} adjacent pairs leave too few for {name}: add songs"
            )
    return corpus


def _open(path: Path) -> tuple[pa.Table, int]:
    """Return the table of a corpus file and its grid steps per quarter note."""
    columns = [column for column in _BARS if column.name != "title"]
    try:
        table = pq.read_table(path, columns=[column.name for column in columns])
        about = json.loads(table.schema.metadata[_KEY])
        version, steps_per_beat = about["schema_version"], about["steps_per_beat"]
        written = about["content_hash"]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a corpus file: write one from melodies with cf-study ingest"
        ) from error
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: written as version {version} of the corpus file, this is"
            f" version {SCHEMA_VERSION}: ingest the melodies again"
        )
    if table.schema.types != [column.type for column in columns] or content_hash(table) != written:
        raise UserError(f"{path}: its bars are not those that were written: ingest them again")
    return table, steps_per_beat


def _windows(
    table: pa.Table, songs: Int64[np.ndarray, "bars"], form: MelodyFormat, length: int
) -> _Windows:
    """Cut every window of `length` bars that `form` can hold."""
    tokens = table["tokens"].combine_chunks()
    steps = pc.fill_null(pc.list_value_length(tokens), 0).to_numpy()
    meter = table["meter"].combine_chunks().dictionary_encode()
    meters = meter.indices.to_numpy()
    allowed = pc.is_in(meter, value_set=pa.array(form.meters)).to_numpy(zero_copy_only=False)
    good = allowed & (steps == form.steps_per_bar)
    on_grid = np.zeros((len(good), form.steps_per_bar), dtype=np.uint8)
    values = tokens.filter(pa.array(good)).flatten().to_numpy()
    on_grid[good] = values.reshape(-1, form.steps_per_bar)

    rows = np.arange(max(len(good) - length + 1, 0))[:, None] + np.arange(length)
    one_song = (songs[rows] == songs[rows[:, :1]]).all(axis=1)
    one_meter = (meters[rows] == meters[rows[:, :1]]).all(axis=1)
    rows = rows[good[rows].all(axis=1) & one_song & one_meter]
    onset = on_grid[rows].reshape(len(rows), length * form.steps_per_bar) >= FIRST_PITCH
    half = onset.shape[1] // 2
    busy = np.minimum(onset[:, :half].sum(axis=1), onset[:, -half:].sum(axis=1)) * 2 >= length
    rows = rows[busy]
    held = pc.fill_null(table["held"].combine_chunks(), 0).to_numpy()
    model, struck_again, in_range = join(on_grid[rows], held[rows[:, 0]], form)
    first = rows[in_range, 0]
    bar = table["bar"].to_numpy().astype(np.int64)
    return _Windows(model[in_range], songs[first], bar[first], struck_again[in_range])


def _adjacent(
    song: Int64[np.ndarray, "N"], bar: Int64[np.ndarray, "N"], distance: int
) -> Int64[np.ndarray, "P 2"]:
    """Rows (left, right) of windows of one song, the right one `distance` bars on."""
    place = song * (bar.max(initial=0) + distance + 1) + bar
    right = np.searchsorted(place, place + distance)
    found = right < len(place)
    found[found] = place[right[found]] == place[found] + distance
    return np.stack([np.flatnonzero(found), right[found]], axis=1)


def _near_duplicates(phrases: _Windows, songs: Int64[np.ndarray, "S"]) -> Int64[np.ndarray, "S"]:
    """Return a group number for each of `songs`: the same for songs that share phrases."""
    onset = phrases.tokens >= FIRST_PITCH
    first = phrases.tokens[np.arange(len(onset)), onset.argmax(axis=1)].astype(np.int16)
    relative = np.where(onset, phrases.tokens - first[:, None] + 256, phrases.tokens)
    rows = np.ascontiguousarray(relative, dtype=np.int16)
    _, phrase = np.unique(rows.view(f"V{2 * rows.shape[1]}")[:, 0], return_inverse=True)
    # One entry per phrase and song, by phrase: entries of one phrase stand next to each other.
    phrase, song = np.unique(np.stack([phrase, phrases.song], axis=1), axis=0).T
    distinct = np.bincount(song, minlength=songs.max(initial=0) + 1)
    shared: list[Int64[np.ndarray, "n 2"]] = []
    for apart in range(1, np.bincount(phrase).max(initial=0)):
        same = phrase[:-apart] == phrase[apart:]
        shared.append(np.stack([song[:-apart][same], song[apart:][same]], axis=1))
    group = {int(number): int(number) for number in songs}

    def root(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    if shared:
        pairs, common = np.unique(np.concatenate(shared), axis=0, return_counts=True)
        for left, right in pairs[3 * common >= distinct[pairs].min(axis=1)].tolist():
            if left in group and right in group:
                group[root(left)] = root(right)
    return np.array([root(int(number)) for number in songs], dtype=np.int64)


def _split(
    groups: Int64[np.ndarray, "S"], generator: np.random.Generator
) -> Int64[np.ndarray, "S"]:
    """Deal groups of songs out: a tenth of the songs to test, a tenth to validation."""
    split = np.full(len(groups), TRAIN, dtype=np.int64)
    room = {TEST: max(2, round(len(groups) / 10)), VALIDATION: max(2, round(len(groups) / 10))}
    for group in generator.permutation(np.unique(groups)):
        members = groups == group
        for part, free in room.items():
            if members.sum() <= free:
                split[members] = part
                room[part] = free - int(members.sum())
                break
    return split
