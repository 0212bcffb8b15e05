"""Songs in a Parquet file of bars, as segments, splits and adjacent pairs.

Shapes: `N` segments, `T` steps of a segment, `S` songs, `P` adjacent pairs.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64, Integer

from cf_core.errors import CorpusError
from cf_core.grid import TOLERANCE, join_bars
from cf_core.melody import FIRST_PITCH, MelodyFormat

SCHEMA_VERSION = 1


class Split(IntEnum):
    """What the songs of a corpus are for."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


BARS = pa.schema(
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
"""Columns of a corpus file, one row for each bar."""
_KEY = b"connective_fusion.corpus"


def hash_bars(table: pa.Table) -> str:
    """SHA-256 of the bars in a corpus table. Path, compression and titles do not change it."""
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


def label_bars(bars: pa.Table, source: str, steps_per_beat: int, digest: str) -> pa.Table:
    """Add to a table of bars the metadata that `load_corpus` checks.

    `digest` is what `hash_bars` returns for the table.
    """
    about = {
        "schema_version": SCHEMA_VERSION,
        "steps_per_beat": steps_per_beat,
        "tolerance": str(TOLERANCE),
        "source": source,
        "content_hash": digest,
    }
    return bars.replace_schema_metadata({_KEY: json.dumps(about)})


@dataclass(frozen=True)
class Corpus:
    """Segments of one format from a file of bars, and the split of their songs into three parts."""

    form: MelodyFormat
    tokens: Integer[np.ndarray, "N T"]
    """Model tokens: `REST`, `HOLD`, `FIRST_PITCH + pitch - form.lowest`, then marks."""
    song: Int64[np.ndarray, "N"]
    """Index into `song_ids`."""
    bar: Int64[np.ndarray, "N"]
    """Index of each segment's first bar in its song."""
    song_ids: tuple[str, ...]
    split: Int64[np.ndarray, "S"]
    """`Split.TRAIN`, `Split.VALIDATION` or `Split.TEST` for every song."""
    pairs: Int64[np.ndarray, "P 2"]
    """Rows (left, right) of two segments of one song and one kind of bars, where the right one
    begins as the left one ends."""
    struck_again: int
    """How many segments begin within a held note, which is struck again there."""
    content_hash: str
    """Hash of the file's bars; it does not depend on where or how the file was written."""

    @cached_property
    def kinds(self) -> Int64[np.ndarray, "N"]:
        """Index into `form.kinds` of each segment."""
        return self.form.find_kinds(self.tokens)

    def segments(self, split: Split) -> Int64[np.ndarray, "n"]:
        """Rows of the segments of one split."""
        return np.flatnonzero(self.split[self.song] == split)

    def pairs_of(self, split: Split) -> Int64[np.ndarray, "p 2"]:
        """Adjacent pairs of one split."""
        return np.asarray(self.pairs[self.split[self.song[self.pairs[:, 0]]] == split])


@dataclass(frozen=True)
class Windows:
    """Windows of consecutive bars as model tokens; `song` is an index into all songs' ids."""

    tokens: Integer[np.ndarray, "N T"]
    song: Int64[np.ndarray, "N"]
    bar: Int64[np.ndarray, "N"]
    struck_again: Bool[np.ndarray, "N"]


def load_corpus(path: Path, form: MelodyFormat, seed: int) -> Corpus:
    """Load the segments of `form` from a corpus file, split by song into 80/10/10 %.

    A segment starts at every bar where `form.bars_per_segment` bars have steps of `form`, in one
    of its meters and within its pitches. Each half must have at least half as many onsets as the
    segment has bars.

    Two songs are alike if they share, transposed or not, a third or more of the distinct two-bar
    phrases of the song that has fewer. Songs that are alike, directly or through others, stay in
    one part of the split. Groups of such songs are dealt out at random from `seed`.

    Raises `CorpusError` for a file of another kind or grid, and where there are too few songs or
    pairs to split.

    >>> from pathlib import Path
    >>> from cf_core.corpus import Split, load_corpus
    >>> from cf_core.melody import MelodyFormat
    >>> corpus = load_corpus(Path("tunes.parquet"), MelodyFormat(), seed=0)
    >>> corpus.tokens[corpus.pairs_of(Split.TRAIN)].shape  # pairs, halves, steps
    (24, 2, 32)
    """
    check_grid(path, form)
    table = _read_bars(path)
    ids = table["song_id"].combine_chunks().dictionary_encode()
    songs = ids.indices.to_numpy().astype(np.int64)
    windows = _windows(table, songs, form, form.bars_per_segment)
    kept, song = np.unique(windows.song, return_inverse=True)
    phrases = _windows(table, songs, form, 2)
    groups = group_near_duplicates(phrases, kept)
    corpus = Corpus(
        form=form,
        tokens=windows.tokens,
        song=song.astype(np.int64),
        bar=windows.bar,
        song_ids=tuple(ids.dictionary.take(pa.array(kept)).to_pylist()),
        split=_split(groups, np.random.default_rng(seed)),
        pairs=_adjacent(song, windows.bar, form.find_kinds(windows.tokens), form.bars_per_segment),
        struck_again=int(windows.struck_again.sum()),
        content_hash=hash_bars(table),
    )
    for split, name in (
        (Split.TRAIN, "training"),
        (Split.VALIDATION, "validation"),
        (Split.TEST, "test"),
    ):
        if (corpus.split == split).sum() < 2 or not len(corpus.pairs_of(split)):
            raise CorpusError(
                f"{path}: too small to split: {len(kept)} songs with {len(windows.tokens)} segments"
                f" and {len(corpus.pairs)} adjacent pairs leave too few for {name}; add songs"
            )
    return corpus


def check_grid(path: Path, form: MelodyFormat) -> None:
    """Raise `CorpusError` unless the footer of `path` says that it is a corpus on `form`'s grid."""
    about = _read_about(path)
    if about["schema_version"] != SCHEMA_VERSION:
        raise CorpusError(
            f"{path}: the corpus file has version {about['schema_version']}, but this program reads"
            f" version {SCHEMA_VERSION}; ingest the melodies again"
        )
    if (found := about["steps_per_beat"]) != form.steps_per_beat:
        raise CorpusError(
            f"{path}: has {found} grid steps per quarter note, but melody.steps_per_beat is"
            f" {form.steps_per_beat}; ingest the melodies again with {form.steps_per_beat} steps,"
            f" or set melody.steps_per_beat to {found}"
        )


def read_source(path: Path) -> tuple[str, str]:
    """Read the content hash of a corpus file, and the name of what it was ingested from.

    Raises `CorpusError` for a file of another kind.
    """
    about = _read_about(path)
    return str(about["content_hash"]), str(about["source"])


def _read_about(path: Path) -> dict[str, Any]:
    """Read the metadata in the footer of a corpus file."""
    try:
        about = json.loads(pq.read_schema(path).metadata[_KEY])
        needed = ("schema_version", "steps_per_beat", "content_hash", "source")
        return {name: about[name] for name in needed}
    except FileNotFoundError as error:
        raise CorpusError(f"{path}: no such file") from error
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise CorpusError(f"{path}: not a corpus file; ingest melodies to make one") from error


def _read_bars(path: Path) -> pa.Table:
    """Read the table of a corpus file, and check that it is as it was written."""
    columns = [column for column in BARS if column.name != "title"]
    try:
        table = pq.read_table(path, columns=[column.name for column in columns])
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(f"{path}: not a corpus file; ingest melodies to make one") from error
    written = _read_about(path)["content_hash"]
    if table.schema.types != [column.type for column in columns] or hash_bars(table) != written:
        raise CorpusError(
            f"{path}: its bars are not those that were written (their hash differs); ingest the"
            " melodies again"
        )
    return table


def _windows(
    table: pa.Table, songs: Int64[np.ndarray, "bars"], form: MelodyFormat, length: int
) -> Windows:
    """Cut every window of `length` bars that `form` can hold, in the order of songs and bars."""
    form = replace(form, bars_per_segment=length)
    tokens = table["tokens"].combine_chunks()
    lines = pc.fill_null(pc.list_value_length(tokens), 0).to_numpy()
    names = table["meter"].combine_chunks().dictionary_encode()
    meters = names.indices.to_numpy()
    held = pc.fill_null(table["held"].combine_chunks(), 0).to_numpy()
    windows = np.arange(max(len(songs) - length + 1, 0))[:, None] + np.arange(length)
    one_song = (songs[windows] == songs[windows[:, :1]]).all(axis=1)
    one_meter = (meters[windows] == meters[windows[:, :1]]).all(axis=1)
    windows = windows[one_song & one_meter]
    found = []
    for kind, own in enumerate(form.kinds):
        same = [meter for meter in form.meters if form.find_kind(meter) == kind]
        allowed = pc.is_in(names, value_set=pa.array(same)).to_numpy(zero_copy_only=False)
        wide = form.count_lines(own)
        good = allowed & (lines == wide)
        on_grid = np.zeros((len(good), wide), dtype=np.uint8)
        values = tokens.filter(pa.array(good)).flatten().to_numpy()
        on_grid[good] = values.reshape(-1, wide)

        rows = windows[good[windows].all(axis=1)]
        onset = on_grid[rows].reshape(len(rows), length * wide) >= FIRST_PITCH
        half = onset.shape[1] // 2
        busy = np.minimum(onset[:, :half].sum(axis=1), onset[:, -half:].sum(axis=1)) * 2 >= length
        rows = rows[busy]
        joined = join_bars(on_grid[rows], held[rows[:, 0]], kind, form)
        kept = joined.in_range & joined.on_grid
        found.append((rows[kept, 0], joined.tokens[kept], joined.struck_again[kept]))
    first, model, struck_again = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(first, kind="stable")
    first = first[order]
    bar = table["bar"].to_numpy().astype(np.int64)
    return Windows(model[order], songs[first], bar[first], struck_again[order])


def _adjacent(
    song: Int64[np.ndarray, "N"],
    bar: Int64[np.ndarray, "N"],
    kind: Int64[np.ndarray, "N"],
    distance: int,
) -> Int64[np.ndarray, "P 2"]:
    """Rows (left, right) of windows of one song; the right one starts `distance` bars later."""
    place = song * (bar.max(initial=0) + distance + 1) + bar
    right = np.searchsorted(place, place + distance)
    found = right < len(place)
    found[found] = place[right[found]] == place[found] + distance
    pairs = np.stack([np.flatnonzero(found), right[found]], axis=1)
    return np.asarray(pairs[np.equal(*kind[pairs].T)])


def group_near_duplicates(
    phrases: Windows, songs: Int64[np.ndarray, "S"]
) -> Int64[np.ndarray, "S"]:
    """Group the songs that share phrases.

    Returns, for each of `songs`, the index of the last song in its group.
    """
    # Slow to import, and needed only here.
    from scipy.sparse import coo_array  # noqa: PLC0415
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    onset = phrases.tokens >= FIRST_PITCH
    first = phrases.tokens[np.arange(len(onset)), onset.argmax(axis=1)].astype(np.int16)
    relative = np.where(onset, phrases.tokens - first[:, None] + 256, phrases.tokens)
    # As bytes, phrases are told apart several times faster than number by number.
    rows = np.ascontiguousarray(relative, dtype=np.int16)
    _, phrase = np.unique(rows.view(f"V{2 * rows.shape[1]}")[:, 0], return_inverse=True)

    ones = np.ones(len(phrase), dtype=np.int32)
    shape = (phrases.song.max(initial=songs.max(initial=0)) + 1, phrase.max(initial=0) + 1)
    has = coo_array((ones, (phrases.song, phrase)), shape=shape).tocsr().sign()[songs]
    distinct = has.sum(axis=1)
    common = (has @ has.T).tocoo()
    left, right = common.coords
    alike = 3 * common.data >= np.minimum(distinct[left], distinct[right])
    edges = coo_array((common.data[alike], (left[alike], right[alike])), shape=common.shape)
    _, group = connected_components(edges, directed=False)
    last = np.zeros(len(songs), dtype=np.int64)
    np.maximum.at(last, group, songs)
    return np.asarray(last[group])


def _split(groups: Int64[np.ndarray, "S"], random: np.random.Generator) -> Int64[np.ndarray, "S"]:
    """Deal out groups: a tenth of the songs to test, a tenth to validation, others to training."""
    split = np.full(len(groups), Split.TRAIN, dtype=np.int64)
    room = {
        Split.TEST: max(2, round(len(groups) / 10)),
        Split.VALIDATION: max(2, round(len(groups) / 10)),
    }
    for group in random.permutation(np.unique(groups)):
        members = groups == group
        for part, free in room.items():
            if members.sum() <= free:
                split[members] = part
                room[part] = free - int(members.sum())
                break
    return split
