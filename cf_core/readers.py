"""Melodies read from MIDI, MusicXML and ABC, with their true bar lines.

Whatever can't be read becomes a `Rejected` record with a reason; no file raises, and none is
written: zip members are read in memory. Bytes count as hostile: see the limits below.
"""

import io
import lzma
import os
import re
import warnings
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from itertools import chain, islice, pairwise
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple
from xml.etree.ElementTree import Element, fromstring

from cf_core.errors import UserError
from cf_core.melody import TOLERANCE, Bar, Melody, Note, bar_length

VERSION = 2
"""Raised whenever what is read from a file changes: it names the caches of corpora."""
MAX_BYTES = {"midi": 2**20, "musicxml": 2**25, "abc": 2**22}
"""Largest file of each format, uncompressed."""
MAX_TUNE = 2**13
"""Most characters of one ABC tune: reading slows sharply with many bars; long tunes have 2,500."""
MAX_NOTES = 20_000
MAX_BARS = 10_000
"""Most notes and bars of one song."""

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
]


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


# ---- public ------------------------------------------------------------------------------------


def read_melodies(name: str, data: bytes, part: str | None = None) -> Iterator[Melody | Rejected]:
    """Yield the songs of one file: several for an ABC book, else one.

    `name` gives the format (by its suffix) and the song id (its stem; tunes of a book with several
    add `:number`). `part` names the part to take, or counts it from 1; without it a score
    must have one part, and of a MIDI file the first nearly monophonic track is taken.
    """
    # File names need not be text, but ids are written down as such.
    stem = PurePosixPath(name).stem.encode(errors="backslashreplace").decode()
    kind = FORMATS.get(PurePosixPath(name).suffix.lower())
    if kind is None or not data:
        yield Rejected(stem, "unreadable", "empty or damaged file" if kind else "unknown format")
        return
    if len(data) > MAX_BYTES[kind]:
        yield Rejected(stem, "too large", f"more than {MAX_BYTES[kind]} bytes")
        return
    readers: dict[str, Callable[[str, Any, str | None], Melody]] = {
        "midi": _read_midi,
        "musicxml": _read_musicxml,
        "abc": _read_abc,
    }
    for song_id, song in _tunes(stem, data) if kind == "abc" else [(stem, data)]:
        try:
            with warnings.catch_warnings():
                # music21 warns of signs that don't matter to the notes.
                warnings.simplefilter("ignore")
                result: Melody | Rejected = _complete(readers[kind](song_id, song, part))
        except _RejectedError as error:
            result = Rejected(song_id, error.reason, error.detail)
        except Exception as error:  # noqa: BLE001  (parsers raise anything on a corrupt file)
            text = " ".join(str(error).split())[:200]
            result = Rejected(song_id, "unreadable", f"{type(error).__name__}: {text}")
        yield result


def read_file(path: Path, part: str | None = None) -> Melody:
    """Read the one melody of a file (the first readable of an ABC book).

    Raises `UserError` where there is none, with the reason for the first.
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


def read_collection(
    source: Path, include: str | None = None, part: str | None = None
) -> Iterator[Melody | Rejected]:
    """Yield every song of a folder, a zip archive or a single file, in order of the file names.

    `include` is a glob that a file's path inside the folder or archive must match from its end,
    as in `PurePath.match`. A song whose id was seen before is rejected. Raises `UserError` where
    `source` is missing or holds no file that could be read, and for an empty `include`.
    """
    if include is not None and not PurePosixPath(include).parts:
        raise UserError(f"include: {include!r} matches no file; give a pattern such as '*.mid'")
    files = _files(source, include)
    first = next(files, None)
    if first is None:
        named = f"named {include!r} " if include else ""
        raise UserError(f"{source}: no file {named}there that ends in {', '.join(FORMATS)}")
    return read_all(chain([first], files), part)


def read_all(
    files: Iterable[tuple[str, bytes]], part: str | None = None
) -> Iterator[Melody | Rejected]:
    """Yield the songs of `(name, data)` files in order, read by two processes when many."""
    seen: set[str] = set()
    for song in _in_parallel(iter(files), part):
        if isinstance(song, Melody) and song.id in seen:
            yield Rejected(song.id, "duplicate id", song.title)
            continue
        if isinstance(song, Melody):
            seen.add(song.id)
        yield song


# ---- files -------------------------------------------------------------------------------------

_BATCH = 8
_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a file or a damaged archive raises."""


def _read_batch(files: list[tuple[str, bytes]], part: str | None) -> list[Melody | Rejected]:
    return [song for name, data in files for song in read_melodies(name, data, part)]


def _in_parallel(
    files: Iterator[tuple[str, bytes]], part: str | None
) -> Iterator[Melody | Rejected]:
    batch = list(islice(files, _BATCH))
    if len(batch) < _BATCH:
        yield from _read_batch(batch, part)
        return
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        # A short queue keeps memory flat however large the collection is.
        queue: deque[Future[list[Melody | Rejected]]] = deque()
        while batch:
            queue.append(pool.submit(_read_batch, batch, part))
            if len(queue) > 8:
                yield from queue.popleft().result()
            batch = list(islice(files, _BATCH))
        for future in queue:
            yield from future.result()


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
        with path.open("rb") as stream:
            return bytes(stream.read(limit + 1))
    except _DAMAGE:
        return b""


def _complete(melody: Melody) -> Melody:
    if not any(bar.length == bar_length(bar.meter) for bar in melody.bars):
        raise _RejectedError("no complete bar", f"{len(melody.bars)} bars")
    return melody


def _check_size(notes: int, bars: int) -> None:
    if not notes:
        raise _RejectedError("no notes")
    if notes > MAX_NOTES or bars > MAX_BARS:
        raise _RejectedError("too large", f"{notes} notes in {bars} bars")


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

_PERCUSSION = 9
_MONOPHONIC = 0.4
"""Least share of notes that start after the middle of the one before, in a melody track."""


class _Track(NamedTuple):
    """The notes of one channel of one track: `(onset, end, pitch, velocity)`, times in ticks."""

    name: str
    notes: list[tuple[int, int, int, int]]
    chunk: Any
    """The mido track that the channel is of."""


def _read_midi(song_id: str, data: bytes, part: str | None) -> Melody:
    """Read a standard MIDI file; bar lines as `_bars` says."""
    midi = _library("mido").MidiFile(file=io.BytesIO(data), clip=True)
    if midi.ticks_per_beat <= 0 or midi.type == 2:
        raise _RejectedError("unreadable", "neither ticks per quarter note nor one time line")
    quarter = midi.ticks_per_beat
    track = _melody_track([track for chunk in midi.tracks for track in _tracks(chunk)], part)
    notes = tuple(
        Note(Fraction(onset, quarter), Fraction(end - onset, quarter), pitch)
        for onset, end, pitch, _ in track.notes
    )
    # Tracks may disagree: bars are the melody's.
    signatures = _time_signatures([track.chunk]) or _time_signatures(midi.tracks)
    changes = sorted(({0: "4/4"} | signatures).items())
    meters = [(Fraction(tick, quarter), meter) for tick, meter in changes]
    end = max(note.onset + note.duration for note in notes)
    stop = min([end, *(start for start, _ in meters[1:])])
    velocities = [(note.onset, v) for note, (*_, v) in zip(notes, track.notes, strict=True)]
    pickup = _pickup(velocities, bar_length(meters[0][1]), stop)
    bars = tuple(islice(_bars(meters, pickup, end), MAX_BARS + 1))
    _check_size(len(notes), len(bars))
    tempos = (m.tempo for chunk in midi.tracks for m in chunk if m.type == "set_tempo" and m.tempo)
    return Melody(
        id=song_id,
        title=next((chunk.name.strip() for chunk in midi.tracks if chunk.name.strip()), song_id),
        notes=notes,
        bars=bars,
        tempo=6e7 / next(tempos, 500_000),
    )


def _tracks(chunk: Any) -> list[_Track]:
    """Return the channels of a track that have notes, percussion left out."""
    channels: dict[int, list[tuple[int, int, int, int]]] = {}
    sounding: dict[tuple[int, int], tuple[int, int]] = {}
    tick = 0
    for message in chunk:
        tick += message.time
        if message.type not in ("note_on", "note_off") or message.channel == _PERCUSSION:
            continue
        key = (message.channel, message.note)
        if key in sounding:
            onset, velocity = sounding.pop(key)
            if tick > onset:
                channels.setdefault(message.channel, []).append(
                    (onset, tick, message.note, velocity)
                )
        if message.type == "note_on" and message.velocity > 0:
            sounding[key] = (tick, message.velocity)
    name = chunk.name.strip()
    return [_Track(name, sorted(channels[channel]), chunk) for channel in sorted(channels)]


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


def _time_signatures(chunks: Iterable[Any]) -> dict[int, str]:
    """Meters of the time signatures of mido tracks, by tick."""
    meters: dict[int, str] = {}
    for chunk in chunks:
        tick = 0
        for message in chunk:
            tick += message.time
            if message.type == "time_signature":
                if message.numerator < 1 or message.denominator > 64:
                    raise _RejectedError("unreadable", f"time signature {message}")
                meters[tick] = f"{message.numerator}/{message.denominator}"
    return meters


def _pickup(velocities: list[tuple[Fraction, int]], bar: Fraction, stop: Fraction) -> Fraction:
    """Length of the pickup, from the onsets and velocities of the notes before `stop`.

    Programs that write MIDI from a score without padding its pickup play the first note of a bar
    loudest. Where the loudest notes are a minority and more than 40 % of them, on more than 40 %
    of the bars and at least two, fall on one place of the bar counted from tick 0, that place is
    the bar line; else there is no pickup.
    """
    opening = [(onset, velocity) for onset, velocity in velocities if onset < stop]
    loudest = max((velocity for _, velocity in opening), default=0)
    accents = [onset for onset, velocity in opening if velocity == loudest]
    places = Counter(Fraction(round(onset * 24), 24) % bar for onset in accents)
    for place, count in places.most_common(1):
        if len(accents) < len(opening) / 2 and count > max(1, 0.4 * len(accents), 0.4 * stop / bar):
            return place
    return Fraction(0)


def _bars(meters: list[tuple[Fraction, str]], pickup: Fraction, end: Fraction) -> Iterator[Bar]:
    """Bars up to `end`, counted from the pickup's end and anew from every time signature."""
    if pickup:
        yield Bar(Fraction(0), pickup, meters[0][1])
    stops = [start for start, _ in meters[1:]] + [None]
    for (start, meter), stop in zip(meters, stops, strict=True):
        position = start or pickup
        length = bar_length(meter)
        while position < (end - TOLERANCE if stop is None else stop):
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
    root = fromstring(data)  # noqa: S314  (entities were refused above)
    if root.tag != "score-partwise":
        raise _RejectedError("unreadable", f"not a part-wise score: <{root.tag}>")
    # Often only the first part says the tempo.
    tempo = next((sound.get("tempo") for sound in root.iter("sound") if sound.get("tempo")), None)
    _keep_part(root, part)
    _check_size(sum(1 for _ in root.iter("note")), sum(1 for _ in root.iter("measure")))
    score = _library("music21.musicxml.xmlToM21").MusicXMLImporter().xmlRootToScore(root)
    if len(score.parts) != 1:
        raise _RejectedError("several parts", "one part on several staves")
    title = next((e.text.strip() for e in root.iter("work-title") if e.text), "")
    title = title or next((e.text.strip() for e in root.iter("movement-title") if e.text), song_id)
    return _from_part(song_id, title, score.parts[0], float(tempo or 120))


def _unpacked(data: bytes) -> bytes:
    """Return the score inside a compressed MusicXML file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
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


def _tunes(stem: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Yield song ids and texts of an ABC book; fields before the first tune go to every tune."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    header, *tunes = re.split(r"(?m)^X:", "\n".join(text.splitlines()) + "\n")
    fields = "".join(re.findall(r"(?m)^[A-Z]:.*\n", header))
    for tune in tunes or [f"1\n{header}"]:
        number, body = tune.split("\n", 1)
        song_id = f"{stem}:{number.strip().lstrip('0')}" if len(tunes) > 1 else stem
        yield song_id, f"X:{number}\n{fields if tunes else ''}{body}"


def _read_abc(song_id: str, text: str, part: str | None) -> Melody:
    """Read one tune in ABC."""
    if len(text) > MAX_TUNE:
        raise _RejectedError("too large", f"{len(text)} characters, more than {MAX_TUNE}")
    handler = _library("music21.abcFormat").ABCHandler()
    # music21 takes ":|:" for the end of a repeat but not the start of one, and sees no bars in a
    # tune with fewer than two plain bar lines: two more after the end change nothing else.
    handler.process(text.replace(":|:", "::") + "\n| |\n")
    parts = list(_library("music21.abcFormat.translate").abcToStreamScore(handler).parts)
    names = [str(voice.partName or "") for voice in parts]
    if part is None and len(parts) > 1:
        raise _RejectedError("several parts", _listed(names))
    chosen = parts[0 if part is None else _chosen(names, part)]
    marks = chosen.recurse().getElementsByClass("MetronomeMark")
    tempo = next((mark.getQuarterBPM() for mark in marks if mark.number), None)
    title = handler.getTitle() or song_id
    return _from_part(song_id, title, chosen, float(tempo or 120))


_MAX_EXPANSION = 50_000
"""Most repeat signs times measures for which repeats are played out; a long score has 10,000."""


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
    for index, measure in enumerate(measures):
        bare = copies[id(measure)] = stream.Measure([note.Rest(id=index, quarterLength=1)])
        for side in ("leftBarline", "rightBarline"):
            line = getattr(measure, side)
            if isinstance(line, bar.Repeat):
                times = min(line.times, 4) if line.times else None
                setattr(bare, side, bar.Repeat(line.direction, times=times))
                signs.append(line.direction)
        for expression in measure.getElementsByClass(repeat.RepeatExpression):
            bare.append(type(expression)())
            signs.append("jump")
        skeleton.append(bare)
    nested = ("start", "start") in pairwise(sign for sign in signs if sign != "jump")
    if not signs or nested or len(signs) * len(measures) > _MAX_EXPANSION:
        return as_written
    try:
        for bracket in part.recurse().getElementsByClass(spanner.RepeatBracket):
            spanned = [copies[id(measure)] for measure in bracket.getSpannedElements()]
            skeleton.insert(0, spanner.RepeatBracket(spanned, number=bracket.number))
        expanded = repeat.Expander(skeleton).process(deepcopy=False)
    except Exception:  # noqa: BLE001  (music21 raises KeyError and IndexError too on odd signs)
        return as_written
    return [rest.id for rest in expanded.recurse().getElementsByClass(note.Rest)]
