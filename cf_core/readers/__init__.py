"""Melodies read from MIDI, MusicXML and ABC, with their true bar lines.

A song that can't be read becomes a `Rejected` record with a reason; no content of a file raises.
Nothing is written to disk: zip members are read in memory. Bytes count as hostile: see `limits`.
"""

import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar
from xml.etree.ElementTree import ParseError
from zipfile import BadZipFile

from cf_core.errors import MelodyError
from cf_core.grid import GridBar, to_grid
from cf_core.melody import FREE, Melody, bar_length
from cf_core.readers import abc, midi, musicxml
from cf_core.readers.files import FORMATS, count_passed_over, read_content, read_melody_files
from cf_core.readers.limits import (
    MAX_BYTES,
    MAX_TITLE,
    MAX_TUNE,
    MAX_TUNES,
    RejectedError,
    SongReason,
)
from cf_core.readers.text import decode_text, undo_mailing, undo_markup

__all__ = [
    "FORMATS",
    "VERSION",
    "Gridded",
    "Rejected",
    "Song",
    "count_passed_over",
    "find_songs",
    "load_file",
    "read_file",
    "read_gridded",
    "read_melodies",
    "read_melody",
    "read_song",
    "split_songs",
]

VERSION = 12
"""Increased whenever the result of reading a file changes; cached corpora are named by it."""


@dataclass(frozen=True)
class Rejected:
    """A song, or a whole file, that could not be taken."""

    id: str
    reason: SongReason
    detail: str


class Song(NamedTuple):
    """One song as stored in a file: a tune of an ABC book, else the whole file."""

    id: str
    format: str
    content: bytes
    path: str = ""
    """Path of its file, inside the folder or archive."""


@dataclass(frozen=True)
class Gridded:
    """One song as bars on a grid."""

    id: str
    title: str
    bars: list[GridBar]


# ---- public ------------------------------------------------------------------------------------


def split_songs(name: str, data: bytes) -> Iterator[Song | Rejected]:
    """Yield the songs of one file, not yet read: several for an ABC book, else one.

    `name` gives the format (by its suffix) and the song id (its stem; tunes of a book with several
    add `:number`, and `:number.2` where it comes a second time).
    """
    # File names need not be text, but ids are written down as such.
    path = name.encode(errors="backslashreplace").decode()
    stem = PurePosixPath(path).stem
    kind = FORMATS.get(PurePosixPath(name).suffix.lower())
    if kind is None or not data:
        yield Rejected(stem, "unreadable", "empty or damaged file" if kind else "unknown format")
    elif len(data) > MAX_BYTES[kind]:
        yield Rejected(stem, "too large", f"more than {MAX_BYTES[kind]} bytes")
    elif kind == "abc":
        yield from _tunes(stem, data, path)
    else:
        yield Song(stem, kind, data, path)


def read_song(song: Song, part: str | None = None) -> Melody | Rejected:
    """Read one song. Raises nothing but `MemoryError`, after which the process should end.

    `part` is the name of the part to take, or its number from 1. Without it, a score must have one
    part, and a MIDI file gives its first nearly monophonic track.
    """
    return _or_rejected(song, lambda: _melody(song, part))


def read_gridded(song: Song, part: str | None, steps_per_beat: int) -> Gridded | Rejected:
    """Read one song as `read_song` does, and put its bars on a grid."""

    def read() -> Gridded:
        melody = _melody(song, part)
        return Gridded(melody.id, melody.title, to_grid(melody, steps_per_beat))

    return _or_rejected(song, read)


def read_melodies(name: str, data: bytes, part: str | None = None) -> Iterator[Melody | Rejected]:
    """Yield the songs of one file, found by `split_songs` and read by `read_song`."""
    for song in split_songs(name, data):
        yield song if isinstance(song, Rejected) else read_song(song, part)


def read_file(path: Path, part: str | None = None) -> Melody:
    """Read the melody of a file; of an ABC book, the first tune that can be read.

    Raises `MelodyError` where there is none, with the reason for the first tune. Unlike an ingest,
    it limits only what a file may hold, not time and memory.

    >>> from pathlib import Path
    >>> from cf_core.readers import read_file
    >>> melody = read_file(Path("left.mid"))
    >>> len(melody.bars), melody.bars[0].meter, melody.tempo
    (4, '4/4', 120.0)
    """
    return read_melody(str(path), load_file(path), part)


def load_file(path: Path) -> bytes:
    """Return the bytes of a melody file: at most one more than its format may have.

    Raises `MelodyError` where there is no such file, where it is a folder or a pipe, and where its
    name has no suffix of `FORMATS`.
    """
    if not os.path.isfile(path):  # noqa: PTH113  (Path.is_file raises where it may not look)
        there = "is not a file; give a melody file" if os.path.lexists(path) else "no such file"
        raise MelodyError(f"{path}: {there}")
    _check_suffix(str(path))
    return read_content(path)


def read_melody(name: str, data: bytes, part: str | None = None) -> Melody:
    """Read the melody of a file's bytes, as `read_file` does. `name` gives the format."""
    _check_suffix(name)
    rejected: list[Rejected] = []
    for song in read_melodies(name, data, part):
        if isinstance(song, Melody):
            return song
        rejected.append(song)
    first = rejected[0]
    why = f"{first.reason} ({first.detail})" if first.detail else first.reason
    hint = "; name one of them as the part" if first.reason == "several parts" else ""
    raise MelodyError(f"{name}: can't read its melody: {why}{hint}")


def _check_suffix(name: str) -> None:
    if PurePosixPath(name).suffix.lower() not in FORMATS:
        raise MelodyError(f"{name}: not a melody file: its name must end in {', '.join(FORMATS)}")


def find_songs(source: Path, include: str | None = None) -> Iterator[Song | Rejected]:
    """Yield every song of a folder, a zip archive or a single file, in order of the file names.

    `include` is a glob that a file's path inside the folder or archive must match from its end,
    as in `PurePath.match`. Raises `MelodyError` where `source` is missing, where it has no melody
    file that matches, and for an empty `include`.
    """
    if include is not None and not PurePosixPath(include).parts:
        raise MelodyError(f"include: {include!r} matches no file; give a pattern such as '*.mid'")
    files = read_melody_files(source, include)
    first = next(files, None)
    if first is None:
        named = f"named {include!r} " if include else ""
        raise MelodyError(f"{source}: holds no file {named}that ends in {', '.join(FORMATS)}")
    return (song for name, data in chain([first], files) for song in split_songs(name, data))


# ---- songs ---------------------------------------------------------------------------------------

_T = TypeVar("_T")


def _or_rejected(song: Song, read: Callable[[], _T]) -> _T | Rejected:
    """Return the result of `read`, or a rejection that says why there is none."""
    try:
        return read()
    except RejectedError as error:
        return Rejected(song.id, error.reason, error.detail[:MAX_TITLE])
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (parsers raise anything on a corrupt file)
        text = " ".join(str(error)[: 2 * MAX_TITLE].split())
        kind = _DAMAGE.get(type(error), type(error).__name__)
        return Rejected(song.id, "unreadable", f"{kind}: {text}".strip(": ")[:MAX_TITLE])


_DAMAGE: dict[type[Exception], str] = {
    ParseError: "not well-formed XML",
    UnicodeDecodeError: "not text in its encoding",
    BadZipFile: "not a whole archive",
    zlib.error: "not a whole archive",
    ValueError: "",
}
"""Words for the damage that parsers find, by the exception that they raise."""

_READERS: dict[str, Callable[[str, bytes, str | None], Melody]] = {
    "midi": midi.read,
    "musicxml": musicxml.read,
    "abc": lambda song_id, data, part: abc.read(song_id, data.decode(), part),
}


def _melody(song: Song, part: str | None) -> Melody:
    melody = _READERS[song.format](song.id, song.content, part)
    if not any(bar.length == bar_length(bar.meter) for bar in melody.bars):
        raise RejectedError("no complete bar", _describe_bars(melody))
    tempos = tuple(tempo for tempo in melody.tempos if tempo.speed > 0 and isfinite(tempo.speed))
    return replace(melody, title=melody.title[:MAX_TITLE], tempos=tempos)


def _describe_bars(melody: Melody) -> str:
    """Say how long most bars are, none of which is as long as its time signature says."""
    lengths = Counter((bar.length, bar.meter) for bar in melody.bars)
    if not lengths:
        return "its notes are too short to be heard"
    ((length, meter), count), *_ = lengths.most_common(1)
    if meter == FREE:
        return "free meter: nothing says how long a bar is"
    return (
        f"{count} of {len(melody.bars)} bars are {float(length):g} quarter notes long, but {meter}"
        f" has {float(bar_length(meter)):g}: correct the time signature or the bar lines"
    )


# ---- ABC books ---------------------------------------------------------------------------------


_OF_THE_BOOK = re.compile(
    r"^(?:[IKLMPQUVm]:|%%(?:MIDI|propagate|linebreak|decoration)).*\n", re.MULTILINE
)
_CHARSET = re.compile(rb"^(?:%%|I:)\s*abc-charset\s+iso-?8859-([2-9]|10)\b", re.M | re.I)
"""The encodings that the ABC standard knows, but for UTF-8 and Latin-1."""


def _tunes(stem: str, data: bytes, path: str) -> Iterator[Song | Rejected]:
    """Yield the tunes of an ABC book; fields before the first tune apply to every tune.

    Of these, only those that bear on the music are kept: programs write long lists in others.
    """
    # Files that were joined to a book may each begin with a byte order mark.
    named = _CHARSET.search(data)
    otherwise = f"iso8859-{named[1].decode()}" if named else "cp1252"
    text = re.sub(r"\r*\n|\r", "\n", decode_text(data, otherwise).replace("\ufeff", "")) + "\n"
    text = undo_markup(text)
    header, *tunes = re.split(r"(?m)^[ \t]*X:(?!\s*[|:\]])", text)
    if len(tunes) > MAX_TUNES:
        yield Rejected(stem, "too large", f"{len(tunes)} tunes, more than {MAX_TUNES}")
        return
    fields = "".join(re.findall(_OF_THE_BOOK, header))[: MAX_TUNE + 1]
    seen = Counter[str]()
    for tune in tunes or [f"1\n{header}"]:
        number, body = tune.split("\n", 1)
        short = number.partition("%")[0].strip().lstrip("0")[:MAX_TITLE]
        seen[short] += 1
        again = f".{seen[short]}" if seen[short] > 1 else ""
        song_id = f"{stem}:{short}{again}" if len(tunes) > 1 else stem
        song = f"X:{number}\n{fields if tunes else ''}{undo_mailing(body)}"
        if len(song) > MAX_TUNE:
            yield Rejected(song_id, "too large", f"{len(song)} characters, more than {MAX_TUNE}")
        else:
            yield Song(song_id, "abc", song.encode(), path)
