"""Melodies read from MIDI, MusicXML and ABC, with their true bar lines.

Whatever can't be read becomes a `Rejected` record with a reason; no file raises, and none is
written: zip members are read in memory. Bytes count as hostile: see the limits below.
"""

import io
import os
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import import_module
from itertools import accumulate, chain, islice, pairwise
from math import inf
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeVar
from xml.etree.ElementTree import Element, fromstring

from cf_core import midi
from cf_core.errors import UserError
from cf_core.melody import TOLERANCE, Bar, GridBar, Melody, Note, bar_length, grid

VERSION = 3
"""Raised whenever what is read from a file changes: it names the caches of corpora."""
MAX_BYTES = {"midi": 2**20, "musicxml": 2**25, "abc": 2**22}
"""Largest file of each format, uncompressed."""
MAX_TUNE = 2**13
"""Most characters of one ABC tune: reading slows sharply with many bars; long tunes have 2,500."""
MAX_TUNES = 10_000
"""Most tunes of one ABC book."""
MAX_TAGS = 2**20
"""Most tags of a MusicXML score; long ones have 150,000."""
MAX_MEASURES = 2_000
"""Most measures of a MusicXML part as written: the time of reading grows with their square."""
MAX_NOTES = 20_000
MAX_BARS = 10_000
MAX_QUARTERS = 40_000
"""Most notes, bars and quarter notes of one song."""
MAX_TITLE = 200
"""Characters that are kept of a title, and of the detail of a rejection."""

FORMATS = {
    ".mid": "midi",
    ".midi": "midi",
    ".mxl": "musicxml",
    ".musicxml": "musicxml",
    ".xml": "musicxml",
    ".abc": "abc",
}
"""Suffixes of the files that can be read."""

SongReason = Literal[
    "unreadable",
    "too large",
    "no notes",
    "no melody track",
    "no such part",
    "several parts",
    "no complete bar",
    "duplicate id",
    "too slow",
    "too much memory",
    "reader died",
]
"""The last three come of reading in a process with limits: see `cf_core.isolation`."""


@dataclass(frozen=True)
class Rejected:
    """A song, or a file where it has no songs, that could not be taken."""

    id: str
    reason: SongReason
    detail: str


class _RejectedError(Exception):
    """Ends the reading of one song."""

    def __init__(self, reason: SongReason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Song(NamedTuple):
    """One song as a file has it: a tune of an ABC book, else the whole file."""

    id: str
    format: str
    content: bytes


@dataclass(frozen=True)
class Gridded:
    """One song as bars on a grid."""

    id: str
    title: str
    bars: list[GridBar]


# ---- public ------------------------------------------------------------------------------------


def songs(name: str, data: bytes) -> Iterator[Song | Rejected]:
    """Yield the songs of one file, not yet read: several for an ABC book, else one.

    `name` gives the format (by its suffix) and the song id (its stem; tunes of a book with several
    add `:number`).
    """
    # File names need not be text, but ids are written down as such.
    stem = PurePosixPath(name).stem.encode(errors="backslashreplace").decode()
    kind = FORMATS.get(PurePosixPath(name).suffix.lower())
    if kind is None or not data:
        yield Rejected(stem, "unreadable", "empty or damaged file" if kind else "unknown format")
    elif len(data) > MAX_BYTES[kind]:
        yield Rejected(stem, "too large", f"more than {MAX_BYTES[kind]} bytes")
    elif kind == "abc":
        yield from _tunes(stem, data)
    else:
        yield Song(stem, kind, data)


def read_song(song: Song, part: str | None = None) -> Melody | Rejected:
    """Read one song. Raises nothing but `MemoryError`, after which a process is best ended.

    `part` names the part to take, or counts it from 1; without it a score must have one part, and
    of a MIDI file the first nearly monophonic track is taken.
    """
    return _or_rejected(song, lambda: _melody(song, part))


def read_gridded(song: Song, part: str | None, steps_per_beat: int) -> Gridded | Rejected:
    """Read one song as `read_song` does, and put its bars on a grid."""

    def read() -> Gridded:
        melody = _melody(song, part)
        return Gridded(melody.id, melody.title, grid(melody, steps_per_beat))

    return _or_rejected(song, read)


def read_melodies(name: str, data: bytes, part: str | None = None) -> Iterator[Melody | Rejected]:
    """Yield the songs of one file as `songs` finds and `read_song` reads them."""
    for song in songs(name, data):
        yield song if isinstance(song, Rejected) else read_song(song, part)


def read_file(path: Path, part: str | None = None) -> Melody:
    """Read the one melody of a file (the first readable of an ABC book).

    Raises `UserError` where there is none, with the reason for the first. Unlike an ingest it
    knows no limits of time and memory but those of what a file may hold.
    """
    if not os.path.isfile(path):  # noqa: PTH113  (Path.is_file raises where it may not look)
        raise UserError(f"{path}: no such file")
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: not a melody file: its name must end in {', '.join(FORMATS)}")
    rejected: list[Rejected] = []
    for song in read_melodies(path.name, _content(path), part):
        if isinstance(song, Melody):
            return song
        rejected.append(song)
    first = rejected[0]
    why = f"{first.reason} ({first.detail})" if first.detail else first.reason
    hint = ": name one as part" if first.reason == "several parts" else ""
    raise UserError(f"{path}: can't read its melody: {why}{hint}")


def find_songs(source: Path, include: str | None = None) -> Iterator[Song | Rejected]:
    """Yield every song of a folder, a zip archive or a single file, in order of the file names.

    `include` is a glob that a file's path inside the folder or archive must match from its end,
    as in `PurePath.match`. Raises `UserError` where `source` is missing or holds no file that could
    be read, and for an empty `include`.
    """
    if include is not None and not PurePosixPath(include).parts:
        raise UserError(f"include: {include!r} matches no file; give a pattern such as '*.mid'")
    files = _files(source, include)
    first = next(files, None)
    if first is None:
        named = f"named {include!r} " if include else ""
        raise UserError(f"{source}: no file {named}there that ends in {', '.join(FORMATS)}")
    return (song for name, data in chain([first], files) for song in songs(name, data))


# ---- files -------------------------------------------------------------------------------------

_DAMAGE = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
"""What reading a file or a damaged archive raises."""
_UNPACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How members of archives may be compressed: of other ways, a few bytes give gigabytes at once."""


def _files(source: Path, include: str | None) -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes of the melody files in `source`, by name."""

    def wanted(name: str) -> bool:
        path = PurePosixPath(name)
        readable = path.suffix.lower() in FORMATS and not path.name.startswith(".")
        return readable and (include is None or path.match(include))

    root: Path | zipfile.Path
    if os.path.isdir(source):  # noqa: PTH112  (Path.is_dir raises where it may not look)
        root = source
        names = [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
    elif not os.path.isfile(source):  # noqa: PTH113
        raise UserError(f"{source}: no such file or folder")
    elif source.suffix.lower() == ".zip":
        try:
            root = zipfile.Path(source)
        except _DAMAGE as error:
            raise UserError(f"{source}: not a readable zip archive: {error}") from error
        names = root.root.namelist()
    else:
        root, names = source.parent, [source.name]
    for name in sorted(filter(wanted, names)):
        yield name, _content(root / name)


def _content(path: Path | zipfile.Path) -> bytes:
    """Return a file's bytes, one more than the limit where there are too many, none if damaged."""
    limit = MAX_BYTES[FORMATS[PurePosixPath(path.name).suffix.lower()]]
    try:
        packed = isinstance(path, zipfile.Path) and path.root.getinfo(path.at).compress_type
        if packed and packed not in _UNPACKED:
            return b""
        with path.open("rb") as stream:
            return bytes(stream.read(limit + 1))
    except _DAMAGE:
        return b""


_T = TypeVar("_T")


def _or_rejected(song: Song, read: Callable[[], _T]) -> _T | Rejected:
    """What `read` returns, or why it can't."""
    try:
        with warnings.catch_warnings():
            # music21 warns of signs that don't matter to the notes.
            warnings.simplefilter("ignore")
            return read()
    except _RejectedError as error:
        return Rejected(song.id, error.reason, error.detail[:MAX_TITLE])
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (parsers raise anything on a corrupt file)
        text = " ".join(str(error)[: 2 * MAX_TITLE].split())
        return Rejected(song.id, "unreadable", f"{type(error).__name__}: {text}"[:MAX_TITLE])


def _melody(song: Song, part: str | None) -> Melody:
    readers: dict[str, Callable[[str, bytes, str | None], Melody]] = {
        "midi": _read_midi,
        "musicxml": _read_musicxml,
        "abc": _read_abc,
    }
    melody = readers[song.format](song.id, song.content, part)
    if not any(bar.length == bar_length(bar.meter) for bar in melody.bars):
        raise _RejectedError("no complete bar", f"{len(melody.bars)} bars")
    return replace(
        melody,
        title=melody.title[:MAX_TITLE],
        tempo=melody.tempo if 0 < melody.tempo < inf else 120.0,
    )


def _check_size(notes: int, bars: int, quarters: Fraction | float = 0) -> None:
    """Refuse what is empty or absurdly long, before work is spent on it."""
    if not notes:
        raise _RejectedError("no notes")
    if notes > MAX_NOTES or bars > MAX_BARS or quarters > MAX_QUARTERS:
        long = f", {float(quarters):.0f} quarter notes long" if quarters > MAX_QUARTERS else ""
        raise _RejectedError("too large", f"{notes} notes in {bars} bars{long}")


def _chosen(names: list[str], part: str) -> int:
    """Index of the part that `part` names, or counts from 1."""
    if part in names:
        return names.index(part)
    if part.isdecimal() and 1 <= int(part) <= len(names):
        return int(part) - 1
    raise _RejectedError("no such part", f"{part!r} is none of {_listed(names)}")


def _listed(names: list[str]) -> str:
    return ", ".join(f"{number} {name!r}" for number, name in enumerate(names, start=1))


def _library(name: str) -> Any:
    """Import a parser only where a file is read: training needs none of them."""
    return import_module(name)


# ---- MIDI --------------------------------------------------------------------------------------

_MONOPHONIC = 0.4
"""Least share of notes that start after the middle of the one before, in a melody track."""


class _Track(NamedTuple):
    """The notes of one channel of one track: `(onset, end, pitch, velocity)`, times in ticks."""

    name: str
    notes: list[tuple[int, int, int, int]]
    meters: dict[int, str]
    """Time signatures of the track, by tick."""


def _read_midi(song_id: str, data: bytes, part: str | None) -> Melody:
    """Read a standard MIDI file; bar lines as `_bars` says."""
    quarter, chunks = midi.parse(data)
    tracks = [_Track(c.name, notes, c.meters) for c in chunks for notes in c.notes.values()]
    track = _melody_track(tracks, part)
    end = max(end for _, end, _, _ in track.notes)
    _check_size(len(track.notes), 0, end / quarter)
    # Tracks may disagree: bars are the melody's.
    meters = {0: "4/4"}
    meters |= track.meters or {tick: m for chunk in chunks for tick, m in chunk.meters.items()}
    bars = tuple(islice(_bars(sorted(meters.items()), track.notes, quarter, end), MAX_BARS + 1))
    _check_size(len(track.notes), len(bars))
    return Melody(
        id=song_id,
        title=next((chunk.name for chunk in chunks if chunk.name), song_id),
        notes=tuple(
            Note(Fraction(onset, quarter), Fraction(end - onset, quarter), pitch)
            for onset, end, pitch, _ in track.notes
        ),
        bars=bars,
        tempo=6e7 / next((chunk.tempo for chunk in chunks if chunk.tempo), 500_000),
    )


def _melody_track(tracks: list[_Track], part: str | None) -> _Track:
    """Return the track that `part` chooses, else the first nearly monophonic one."""
    if not tracks:
        raise _RejectedError("no notes")
    if part is not None:
        return tracks[_chosen([track.name for track in tracks], part)]
    for track in tracks:
        apart = sum(
            second[0] > (first[0] + first[1]) / 2 for first, second in pairwise(track.notes)
        )
        if apart >= _MONOPHONIC * (len(track.notes) - 1):
            return track
    raise _RejectedError("no melody track", f"chords in {_listed([t.name for t in tracks])}")


def _pickup(
    notes: list[tuple[int, int, int, int]], quarter: int, bar: Fraction, stop: int
) -> Fraction:
    """Length of the pickup in quarter notes, from the notes that begin before tick `stop`.

    Programs that write MIDI from a score without padding its pickup play the first note of a bar
    loudest. Where the loudest notes are a minority and more than 40 % of them, on more than 40 %
    of the bars and at least two, fall on one place of the bar counted from tick 0, that place is
    the bar line; else there is no pickup.
    """
    opening = [(onset, velocity) for onset, _, _, velocity in notes if onset < stop]
    loudest = max((velocity for _, velocity in opening), default=0)
    accents = [onset for onset, velocity in opening if velocity == loudest]
    if len(accents) >= len(opening) / 2:
        return Fraction(0)
    places = Counter(Fraction(round(onset * 24 / quarter), 24) % bar for onset in accents)
    place, count = places.most_common(1)[0]
    found = count > max(1, 0.4 * len(accents), 0.4 * stop / (quarter * bar))
    return place if found else Fraction(0)


def _bars(
    meters: list[tuple[int, str]],
    notes: list[tuple[int, int, int, int]],
    quarter: int,
    end: int,
) -> Iterator[Bar]:
    """Bars up to tick `end`, counted from the pickup's end and anew from every time signature."""
    starts = [Fraction(tick, quarter) for tick, _ in meters]
    first = meters[0][1]
    pickup = _pickup(notes, quarter, bar_length(first), min([end, *(t for t, _ in meters[1:])]))
    if pickup:
        yield Bar(Fraction(0), pickup, first)
    for (_, meter), start, stop in zip(meters, starts, [*starts[1:], None], strict=True):
        position = start or pickup
        length = bar_length(meter)
        while position < (Fraction(end, quarter) - TOLERANCE if stop is None else stop):
            cut = length if stop is None else min(length, stop - position)
            yield Bar(position, cut, meter)
            position += length


# ---- MusicXML and ABC --------------------------------------------------------------------------


def _read_musicxml(song_id: str, data: bytes, part: str | None) -> Melody:
    """Read a MusicXML score, compressed or not, with only the chosen part ever converted."""
    if data[:2] == b"PK":
        data = _unpacked(data)
    if b"<!ENTITY" in data or b"\0" in data:
        raise _RejectedError("unreadable", "defines XML entities or is not UTF-8")
    if data.count(b"<") > MAX_TAGS:
        raise _RejectedError("too large", f"more than {MAX_TAGS} tags")
    root = fromstring(data)  # noqa: S314  (entities were refused above)
    if root.tag != "score-partwise":
        raise _RejectedError("unreadable", f"not a part-wise score: <{root.tag}>")
    for beats in root.iter("beats"):
        if any(len(number) > 2 for number in re.findall(r"\d+", beats.text or "")):
            raise _RejectedError("too large", "a time signature of more than 99 beats")
    # Often only the first part says the tempo.
    tempo = next((sound.get("tempo") for sound in root.iter("sound") if sound.get("tempo")), None)
    _keep_part(root, part)
    measures = sum(1 for _ in root.iter("measure"))
    _check_size(sum(1 for _ in root.iter("note")), measures)
    if measures > MAX_MEASURES:
        raise _RejectedError("too large", f"{measures} measures, more than {MAX_MEASURES}")
    score = _library("music21.musicxml.xmlToM21").MusicXMLImporter().xmlRootToScore(root)
    if len(score.parts) != 1:
        raise _RejectedError("several parts", "one part on several staves")
    title = next((e.text.strip() for e in root.iter("work-title") if e.text), "")
    title = title or next((e.text.strip() for e in root.iter("movement-title") if e.text), song_id)
    return _from_part(song_id, title, score.parts[0], float(tempo or 120))


def _unpacked(data: bytes) -> bytes:
    """Return the score inside a compressed MusicXML file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(member.compress_type not in _UNPACKED for member in archive.infolist()):
            raise _RejectedError("unreadable", "compressed by other than deflate")
        with archive.open("META-INF/container.xml") as stream:
            container = stream.read(4096).decode()
        found = re.search(r'full-path="([^"]+)"', container)
        if found is None:
            raise _RejectedError("unreadable", "META-INF/container.xml names no score")
        with archive.open(found[1]) as stream:
            score = stream.read(MAX_BYTES["musicxml"] + 1)
    if len(score) > MAX_BYTES["musicxml"]:
        raise _RejectedError("too large", f"more than {MAX_BYTES['musicxml']} bytes uncompressed")
    return score


def _keep_part(root: Element, part: str | None) -> None:
    """Remove every part but the chosen one from a part-wise score."""
    part_list = root.find("part-list")
    listed = [] if part_list is None else part_list.findall("score-part")
    if part_list is None or not listed:
        raise _RejectedError("unreadable", "the score lists no parts")
    names = [" ".join((element.findtext("part-name") or "").split()) for element in listed]
    if part is None and len(names) > 1:
        raise _RejectedError("several parts", _listed(names))
    keep = listed[0 if part is None else _chosen(names, part)].get("id")
    for parent, tag in ((part_list, "score-part"), (root, "part")):
        for element in parent.findall(tag):
            if element.get("id") != keep:
                parent.remove(element)
    for group in part_list.findall("part-group"):
        part_list.remove(group)


def _tunes(stem: str, data: bytes) -> Iterator[Song | Rejected]:
    """Yield the tunes of an ABC book; fields before the first tune go to every tune."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    header, *tunes = re.split(r"(?m)^X:", "\n".join(text.splitlines()) + "\n")
    if len(tunes) > MAX_TUNES:
        yield Rejected(stem, "too large", f"{len(tunes)} tunes, more than {MAX_TUNES}")
        return
    fields = "".join(re.findall(r"(?m)^[A-Z]:.*\n", header))[: MAX_TUNE + 1]
    for tune in tunes or [f"1\n{header}"]:
        number, body = tune.split("\n", 1)
        short = number.strip().lstrip("0")[:MAX_TITLE]
        song_id = f"{stem}:{short}" if len(tunes) > 1 else stem
        song = f"X:{number}\n{fields if tunes else ''}{body}"
        if len(song) > MAX_TUNE:
            yield Rejected(song_id, "too large", f"{len(song)} characters, more than {MAX_TUNE}")
        else:
            yield Song(song_id, "abc", song.encode())


_MAX_OPEN_SLURS, _MAX_SLURRED = 4, 3_000
"""Most slurs open at one place, and most characters, of a tune whose slurs music21 is shown.

It takes for ever with more. Slurs change no melody, but for the bug that a broken rhythm beside one
is read as even; real tunes are shown with their slurs, so that corpora stay what they are.
"""
# A digit makes a slur a tuplet.
_FIELD_OR_SLUR = re.compile(r"(?P<field>^(?:[A-Za-z]:|%).*)|\((?!\d)|\)", re.MULTILINE)
_ABSURD_METER = re.compile(r"^M:[^%\n]*\d{3,}|\[M:[^\]\n]*\d{3,}", re.MULTILINE)


def _read_abc(song_id: str, data: bytes, part: str | None) -> Melody:
    """Read one tune in ABC."""
    text = data.decode()
    if _ABSURD_METER.search(text):
        raise _RejectedError("too large", "a time signature of more than 99 beats")
    handler = _library("music21.abcFormat").ABCHandler()
    slurs = (found[0] for found in _FIELD_OR_SLUR.finditer(text) if not found["field"])
    deepest = max(accumulate(1 if slur == "(" else -1 for slur in slurs), default=0)
    if deepest > _MAX_OPEN_SLURS or len(text) > _MAX_SLURRED:
        text = _FIELD_OR_SLUR.sub(lambda found: found["field"] or "", text)
    # music21 takes ":|:" for the end of a repeat but not the start of one, and sees no bars in a
    # tune with fewer than two plain bar lines: two more after the end change nothing else.
    handler.process(text.replace(":|:", "::") + "\n| |\n")
    with _frugal():
        parts = list(_library("music21.abcFormat.translate").abcToStreamScore(handler).parts)
    names = [str(voice.partName or "") for voice in parts]
    if part is None and len(parts) > 1:
        raise _RejectedError("several parts", _listed(names))
    chosen = parts[0 if part is None else _chosen(names, part)]
    marks = chosen.recurse().getElementsByClass("MetronomeMark")
    tempo = next((mark.getQuarterBPM() for mark in marks if mark.number), None)
    title = handler.getTitle() or song_id
    return _from_part(song_id, title, chosen, float(tempo or 120))


@contextmanager
def _frugal() -> Iterator[None]:
    """Keep music21 from work that changes no melody, and takes for ever in odd tunes.

    That is beaming, a third of the time of any tune; looking for bars that are longer than their
    meter, to split them, where there are none or very many; and finding a meter for what is left of
    a bar that is far too long: such a tune is rejected.
    """
    stream, translate = _library("music21.stream"), _library("music21.abcFormat.translate")
    find, split = stream.Measure.bestTimeSignature, translate.reBar

    def find_for_short(measure: Any) -> Any:
        if measure.highestTime > _LONGEST_BAR:
            raise _RejectedError("too large", f"a bar of {float(measure.highestTime):.0f} quarters")
        return find(measure)

    def split_few(part: Any, **options: Any) -> None:
        meter, long = None, 0
        measures = list(part.getElementsByClass("Measure"))
        for measure in measures:
            meter = measure.timeSignature or meter
            long += meter is not None and measure.highestTime > meter.barDuration.quarterLength
        if 0 < long * len(measures) < _MAX_SPLITTING:
            split(part, **options)

    stream.Part.makeBeams = lambda part, **_: part
    stream.Measure.bestTimeSignature, translate.reBar = find_for_short, split_few
    try:
        yield
    finally:
        del stream.Part.makeBeams
        stream.Measure.bestTimeSignature, translate.reBar = find, split


_MAX_SPLITTING = 20_000
"""Most bars that are too long times bars for which those are split; real tunes have 2,000."""
_LONGEST_BAR = 128
"""In quarter notes, of ABC."""
_MAX_EXPANSION = 25_000
"""Most repeat signs times measures played for which repeats are played out; long scores have
20,000, which takes 3 seconds."""


def _from_part(song_id: str, title: str, part: Any, tempo: float) -> Melody:
    """Return the melody of one music21 part, its repeats played out.

    Grace notes, cue notes and chord symbols are dropped. Two neighbouring short bars that make up
    one full bar (a bar split at a repeat sign or a double bar) are that one bar.
    """
    measures = list(part.getElementsByClass("Measure"))
    _check_size(len(part.recurse().notes), len(measures))
    meters: list[str] = []
    for measure in measures:
        signature = measure.timeSignature
        meters.append(signature.ratioString if signature else meters[-1] if meters else "4/4")
    order = _played(part, measures)
    _check_size(1, len(order))
    notes: list[Note] = []
    bars: list[Bar] = []
    tied: dict[int, int] = {}
    start = Fraction(0)
    for index in order:
        length = Fraction(measures[index].highestTime) or bar_length(meters[index])
        for offset, note in _sounding(measures[index]):
            _add(notes, tied, start + offset, note)
        _add_bar(bars, Bar(start, length, meters[index]))
        start += length
    _check_size(1, len(bars), start)
    return Melody(
        song_id, title, tuple(sorted(notes, key=lambda note: note.onset)), tuple(bars), tempo
    )


def _sounding(measure: Any) -> Iterator[tuple[Fraction, Any]]:
    """Offsets in the measure and music21 notes, those of chords one by one."""
    for element in measure.flatten().notes:
        cue = element.hasStyleInformation and element.style.noteSize == "cue"
        if element.duration.isGrace or cue or "Harmony" in element.classes:
            continue
        for note in element.notes if element.isChord else [element]:
            if note.isNote:
                yield Fraction(element.offset), note


def _add(notes: list[Note], tied: dict[int, int], onset: Fraction, note: Any) -> None:
    """Append a note, or prolong the one it is tied to; `tied` holds the open ties by pitch."""
    pitch, length = note.pitch.midi, Fraction(note.duration.quarterLength)
    kind = note.tie.type if note.tie is not None else None
    index = tied.pop(pitch, None)
    before = notes[index] if index is not None and kind in ("continue", "stop") else None
    if index is not None and before and before.onset + before.duration == onset:
        notes[index] = Note(before.onset, before.duration + length, pitch)
    else:
        index = len(notes)
        notes.append(Note(onset, length, pitch))
    if kind in ("start", "continue"):
        tied[pitch] = index


def _add_bar(bars: list[Bar], bar: Bar) -> None:
    """Append a bar, or complete the short bar before it."""
    full = bar_length(bar.meter)
    if (
        bars
        and bars[-1].meter == bar.meter
        and max(bars[-1].length, bar.length) < full == bars[-1].length + bar.length
    ):
        bars[-1] = Bar(bars[-1].start, full, bar.meter)
    else:
        bars.append(bar)


def _played(part: Any, measures: list[Any]) -> list[int]:
    """Return indices of the measures in the order in which they are played.

    As written where the repeat signs make no sense, nest, or are more than any tune has. music21
    expands a copy without notes, since it copies every measure again and again.
    """
    bar, repeat, spanner = (_library(f"music21.{name}") for name in ("bar", "repeat", "spanner"))
    stream, note = _library("music21.stream"), _library("music21.note")
    as_written = list(range(len(measures)))
    skeleton = stream.Part()
    copies: dict[int, Any] = {}
    signs: list[str] = []
    played = since = 0
    for index, measure in enumerate(measures):
        bare = copies[id(measure)] = stream.Measure([note.Rest(id=index, quarterLength=1)])
        for side in ("leftBarline", "rightBarline"):
            line = getattr(measure, side)
            played += side == "rightBarline"
            if isinstance(line, bar.Repeat):
                times = min(line.times, 4) if line.times else None
                setattr(bare, side, bar.Repeat(line.direction, times=times))
                signs.append(line.direction)
                if line.direction == "start":
                    since = played
                else:
                    # One end after another, without a start, doubles all there is each time.
                    played += (played - since) * ((times or 2) - 1)
                    since = 0
        for expression in measure.getElementsByClass(repeat.RepeatExpression):
            bare.append(type(expression)())
            signs.append("jump")
        skeleton.append(bare)
    nested = ("start", "start") in pairwise(sign for sign in signs if sign != "jump")
    if not signs or nested or len(signs) * played > _MAX_EXPANSION:
        return as_written
    try:
        for bracket in part.recurse().getElementsByClass(spanner.RepeatBracket):
            spanned = [copies[id(measure)] for measure in bracket.getSpannedElements()]
            skeleton.insert(0, spanner.RepeatBracket(spanned, number=bracket.number))
        expanded = repeat.Expander(skeleton).process(deepcopy=False)
    except Exception:  # noqa: BLE001  (music21 raises KeyError and IndexError too on odd signs)
        return as_written
    return [rest.id for rest in expanded.recurse().getElementsByClass(note.Rest)]
