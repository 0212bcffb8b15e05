"""Melodies read from MIDI, MusicXML and ABC, with their true bar lines.

Whatever can't be read becomes a `Rejected` record with a reason; no file raises, and none is
written: zip members are read in memory. Bytes count as hostile: see the limits below.
"""

import io
import os
import re
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from xml.etree.ElementTree import Element, fromstring

from cf_core.errors import UserError
from cf_core.melody import TOLERANCE, Bar, Melody, Note, bar_length

# mido and music21 are imported where a file is read: training needs neither.
if TYPE_CHECKING:
    from mido import MidiFile, MidiTrack
    from music21.stream import Measure, Part

MAX_BYTES = {"midi": 2**20, "musicxml": 2**25, "abc": 2**22}
"""Largest file of each format, uncompressed."""
MAX_TUNE = 2**16
"""Most characters of one ABC tune."""
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
    """The songs of one file: several for an ABC book, else one.

    `name` gives the format (by its suffix) and the song id (its stem; tunes of a book with several
    add `:number`). `part` names the part to take, or counts it from 1; without it a score
    must have one part, and of a MIDI file the first nearly monophonic track is taken.
    """
    path = PurePosixPath(name)
    kind = FORMATS.get(path.suffix.lower(), "")
    songs: Iterable[tuple[str, Callable[[], Melody]]]
    if len(data) > MAX_BYTES.get(kind, 0):
        detail = f"{len(data)} bytes, more than {MAX_BYTES[kind]}" if kind else path.suffix
        yield Rejected(path.stem, "too large" if kind else "unreadable", detail)
        return
    if kind == "midi":
        songs = [(path.stem, lambda: _read_midi(path.stem, data, part))]
    elif kind == "musicxml":
        songs = [(path.stem, lambda: _read_musicxml(path.stem, data, part))]
    else:
        songs = (
            (song_id, lambda song_id=song_id, text=text: _read_abc(song_id, text, part))
            for song_id, text in _tunes(path.stem, data)
        )
    for song_id, read in songs:
        try:
            yield _complete(read())
        except _RejectedError as error:
            yield Rejected(song_id, error.reason, error.detail)
        except Exception as error:  # noqa: BLE001  (parsers raise anything on a corrupt file)
            text = " ".join(str(error).split())[:200]
            yield Rejected(song_id, "unreadable", f"{type(error).__name__}: {text}")


def read_file(path: Path, part: str | None = None) -> Melody:
    """The one melody of a file (the first readable of an ABC book).

    Raises `UserError` where there is none, with the reason.
    """
    first: Rejected | None = None
    for name, data in _files(_existing_file(path), None):
        for song in read_melodies(name, data, part):
            if isinstance(song, Melody):
                return song
            first = first or song
    why = f"{first.reason} ({first.detail})" if first and first.detail else first and first.reason
    hint = ": name one of them as part" if first and first.reason == "several parts" else ""
    raise UserError(f"{path}: can't read a melody: {why or 'no tunes in it'}{hint}")


def read_collection(
    source: Path, include: str | None = None, part: str | None = None
) -> Iterator[Melody | Rejected]:
    """Every song of a folder, a zip archive or a single file, in order of the file names.

    `include` is a glob that a file's path inside the folder or archive must match from its end,
    as in `PurePath.match`. A song whose id was seen before is rejected. Raises `UserError` where
    `source` is missing or holds no file that could be read.
    """
    files = _files(source, include)
    first = next(files, None)
    if first is None:
        what = f"matches {include!r} and " if include else ""
        raise UserError(f"{source}: no file there {what}ends in {', '.join(FORMATS)}")

    def every() -> Iterator[tuple[str, bytes]]:
        yield first
        yield from files

    return read_all(every(), part)


def read_all(
    files: Iterable[tuple[str, bytes]], part: str | None = None
) -> Iterator[Melody | Rejected]:
    """The songs of `(name, data)` files, in their order, read by two processes when many."""
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


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: not a melody file: the name must end in {', '.join(FORMATS)}")
    return path


def _files(source: Path, include: str | None) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the melody files in `source`, by name."""

    def wanted(name: str) -> bool:
        path = PurePosixPath(name)
        return path.suffix.lower() in FORMATS and (include is None or path.match(include))

    try:
        if source.is_dir():
            names = sorted(
                Path(folder, file).relative_to(source).as_posix()
                for folder, _, files in os.walk(source)
                for file in files
            )
            for name in filter(wanted, names):
                with (source / name).open("rb") as stream:
                    yield name, _limited(stream, name)
        elif source.suffix.lower() == ".zip":
            with zipfile.ZipFile(source) as archive:
                for name in sorted(filter(wanted, archive.namelist())):
                    with archive.open(name) as stream:
                        yield name, _limited(stream, name)
        elif wanted(source.name):
            with source.open("rb") as stream:
                yield source.name, _limited(stream, source.name)
        elif not source.exists():
            raise UserError(f"{source}: no such file or folder")
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{source}: can't be read: {error}") from error


def _limited(stream: Any, name: str) -> bytes:
    """The stream's bytes, and one more than the limit where there are too many."""
    limit = MAX_BYTES[FORMATS[PurePosixPath(name).suffix.lower()]]
    return bytes(stream.read(limit + 1))


def _complete(melody: Melody) -> Melody:
    if not any(bar.length == bar_length(bar.meter) for bar in melody.bars):
        raise _RejectedError("no complete bar", f"{len(melody.bars)} bars")
    return melody


def _check_size(notes: int, bars: int | Fraction) -> None:
    if not notes:
        raise _RejectedError("no notes")
    if notes > MAX_NOTES or bars > MAX_BARS:
        raise _RejectedError("too large", f"{notes} notes in {int(bars)} bars")


def _chosen(names: list[str], part: str) -> int:
    """Index of the part that `part` names, or counts from 1."""
    if part in names:
        return names.index(part)
    if part.isdecimal() and 1 <= int(part) <= len(names):
        return int(part) - 1
    raise _RejectedError("no such part", f"{part!r} is none of {_listed(names)}")


def _listed(names: list[str]) -> str:
    return ", ".join(f"{number} {name!r}" for number, name in enumerate(names, start=1))


# ---- MIDI --------------------------------------------------------------------------------------

_PERCUSSION = 9
_MONOPHONIC = 0.4
"""Least share of notes that start after the one before has ended, for a track to be a melody."""


class _Track(NamedTuple):
    """The notes of one channel of one track: `(onset, end, pitch, velocity)`, times in ticks."""

    name: str
    notes: list[tuple[int, int, int, int]]


def _read_midi(song_id: str, data: bytes, part: str | None) -> Melody:
    """Read a standard MIDI file; bar lines as `_bars` says."""
    from mido import MidiFile  # noqa: PLC0415

    midi = MidiFile(file=io.BytesIO(data), clip=True)
    if midi.ticks_per_beat <= 0 or midi.type == 2:
        raise _RejectedError("unreadable", "neither ticks per quarter note nor one time line")
    quarter = midi.ticks_per_beat
    track = _melody_track([track for chunk in midi.tracks for track in _tracks(chunk)], part)
    notes = tuple(
        Note(Fraction(onset, quarter), Fraction(end - onset, quarter), pitch)
        for onset, end, pitch, _ in track.notes
    )
    meters = [(Fraction(tick, quarter), meter) for tick, meter in _time_signatures(midi)]
    loudest = max(velocity for *_, velocity in track.notes)
    accents = [
        note.onset
        for note, (*_, velocity) in zip(notes, track.notes, strict=True)
        if velocity == loudest
    ]
    pickup = _pickup(accents, len(notes), bar_length(meters[0][1]))
    end = max(note.onset + note.duration for note in notes)
    _check_size(len(notes), end / min(bar_length(meter) for _, meter in meters))
    tempos = (m.tempo for chunk in midi.tracks for m in chunk if m.type == "set_tempo" and m.tempo)
    return Melody(
        id=song_id,
        title=next((chunk.name.strip() for chunk in midi.tracks if chunk.name.strip()), song_id),
        notes=notes,
        bars=tuple(_bars(meters, pickup, end)),
        tempo=6e7 / next(tempos, 500_000),
    )


def _tracks(chunk: "MidiTrack") -> list[_Track]:
    """The channels of a track that have notes, percussion left out."""
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
    return [_Track(chunk.name.strip(), sorted(channels[channel])) for channel in sorted(channels)]


def _melody_track(tracks: list[_Track], part: str | None) -> _Track:
    """The track that `part` chooses, else the first nearly monophonic one."""
    if not tracks:
        raise _RejectedError("no notes")
    if part is not None:
        return tracks[_chosen([track.name for track in tracks], part)]
    for track in tracks:
        apart = sum(
            second[0] > (first[0] + first[1]) / 2
            for first, second in zip(track.notes, track.notes[1:], strict=False)
        )
        if apart >= _MONOPHONIC * (len(track.notes) - 1):
            return track
    raise _RejectedError("no melody track", f"chords in {_listed([t.name for t in tracks])}")


def _time_signatures(midi: "MidiFile") -> list[tuple[int, str]]:
    """Ticks and meters of the time signatures, from tick 0; 4/4 where the file says none."""
    meters = {0: "4/4"}
    for chunk in midi.tracks:
        tick = 0
        for message in chunk:
            tick += message.time
            if message.type == "time_signature":
                if message.numerator < 1 or message.denominator > 64:
                    raise _RejectedError("unreadable", f"time signature {message}")
                meters[tick] = f"{message.numerator}/{message.denominator}"
    return sorted(meters.items())


def _pickup(accents: list[Fraction], notes: int, bar: Fraction) -> Fraction:
    """Length of the pickup, from the onsets of the loudest notes.

    Programs that write MIDI from a score without padding its pickup play the first note of a bar
    loudest. Where the loudest notes are a minority and more than 40 % of them fall on one place
    of the bar counted from tick 0, that place is the bar line; else there is no pickup.
    """
    places = Counter(Fraction(round(onset * 24), 24) % bar for onset in accents)
    place, count = places.most_common(1)[0]
    return place if len(accents) < notes / 2 and count > 0.4 * len(accents) else Fraction(0)


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
    from music21.musicxml.xmlToM21 import MusicXMLImporter  # noqa: PLC0415

    if data[:2] == b"PK":
        data = _unpacked(data)
    if b"<!ENTITY" in data:
        raise _RejectedError("unreadable", "defines XML entities")
    root = fromstring(data)  # noqa: S314  (entities were refused above)
    if root.tag != "score-partwise":
        raise _RejectedError("unreadable", f"not a part-wise score: <{root.tag}>")
    _keep_part(root, part)
    _check_size(sum(1 for _ in root.iter("note")), sum(1 for _ in root.iter("measure")))
    tempo = next((sound.get("tempo") for sound in root.iter("sound") if sound.get("tempo")), None)
    score = MusicXMLImporter().xmlRootToScore(root)
    if len(score.parts) != 1:
        raise _RejectedError("several parts", "one part on several staves")
    title = next((e.text.strip() for e in root.iter("work-title") if e.text), "")
    title = title or next((e.text.strip() for e in root.iter("movement-title") if e.text), song_id)
    return _from_part(song_id, title, score.parts[0], float(tempo or 120))


def _unpacked(data: bytes) -> bytes:
    """The score inside a compressed MusicXML file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        container = archive.read("META-INF/container.xml")[:4096].decode()
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
    names = [(score_part.findtext("part-name") or "").strip() for score_part in listed]
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
    """Song ids and texts of an ABC book; fields before the first tune go to every tune."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    header, *tunes = re.split(r"(?m)^X:", text.replace("\r\n", "\n").replace("\r", "\n"))
    fields = "".join(re.findall(r"(?m)^[A-Z]:.*\n", header)) if tunes else ""
    for tune in tunes:
        number = tune.split("\n", 1)[0].strip()
        yield (
            f"{stem}:{number.lstrip('0')}" if len(tunes) > 1 else stem,
            f"X:{number}\n{fields}" + (tune.split("\n", 1)[1] if "\n" in tune else ""),
        )


def _read_abc(song_id: str, text: str, part: str | None) -> Melody:
    """Read one tune in ABC."""
    from music21.abcFormat import ABCHandler  # noqa: PLC0415
    from music21.abcFormat.translate import abcToStreamScore  # noqa: PLC0415

    if len(text) > MAX_TUNE:
        raise _RejectedError("too large", f"{len(text)} characters, more than {MAX_TUNE}")
    handler = ABCHandler()
    handler.process(text)
    parts = list(abcToStreamScore(handler).parts)
    names = [str(voice.id) for voice in parts]
    if part is None and len(parts) > 1:
        raise _RejectedError("several parts", _listed(names))
    chosen = parts[0 if part is None else _chosen(names, part)]
    marks = chosen.recurse().getElementsByClass("MetronomeMark")
    tempo = next((mark.getQuarterBPM() for mark in marks if mark.number), None)
    title = handler.getTitle() or song_id
    return _from_part(song_id, title, chosen, float(tempo or 120))


def _from_part(song_id: str, title: str, part: "Part", tempo: float) -> Melody:
    """The melody of one music21 part, its repeats played out.

    Grace notes, cue notes and chord symbols are dropped. Two neighbouring short bars that make up
    one full bar (a bar split at a repeat sign or a double bar) are that one bar.
    """
    measures = list(part.getElementsByClass("Measure"))
    _check_size(len(part.recurse().notes), len(measures))
    meters = []
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


def _sounding(measure: "Measure") -> Iterator[tuple[Fraction, Any]]:
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


def _played(part: "Part", measures: list["Measure"]) -> list[int]:
    """Indices of the measures in the order in which they are played.

    As written where the repeat signs don't make sense. music21 expands a copy without notes: it
    copies every measure again and again.
    """
    from music21 import bar, note, repeat, spanner, stream  # noqa: PLC0415

    brackets = list(part.recurse().getElementsByClass(spanner.RepeatBracket))
    skeleton = stream.Part()
    copies: dict[int, stream.Measure] = {}
    signs = len(brackets)
    for index, measure in enumerate(measures):
        bare = copies[id(measure)] = stream.Measure([note.Rest(quarterLength=1)], number=index)
        for side in ("leftBarline", "rightBarline"):
            line = getattr(measure, side)
            if isinstance(line, bar.Repeat):
                setattr(bare, side, bar.Repeat(direction=line.direction, times=line.times))
                signs += 1
        for expression in measure.getElementsByClass(repeat.RepeatExpression):
            bare.append(type(expression)())
            signs += 1
        skeleton.append(bare)
    if not signs:
        return list(range(len(measures)))
    for bracket in brackets:
        spanned = [copies[id(measure)] for measure in bracket.getSpannedElements()]
        skeleton.insert(0, spanner.RepeatBracket(spanned, number=bracket.number))
    try:
        expanded = repeat.Expander(skeleton).process(deepcopy=False)
    except repeat.ExpanderException:
        return list(range(len(measures)))
    return [measure.number for measure in expanded.getElementsByClass(stream.Measure)]
