"""Reads standard MIDI files: the notes of the melody, meters, tempos and names.

Every byte is looked at once, and all other events are skipped, so that reading takes a fraction of
the time of building an object for each event. `_bars` says how bar lines are found.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice, pairwise
from typing import NamedTuple, TypeVar

from cf_core.grid import TOLERANCE
from cf_core.melody import Bar, Melody, Note, Tempo, bar_length
from cf_core.readers.limits import (
    MAX_BARS,
    RejectedError,
    check_size,
    choose_part,
    list_names,
)
from cf_core.readers.text import decode_text

_PERCUSSION = 9
_OTHER_DATA = {0xA: 2, 0xB: 2, 0xC: 1, 0xD: 1, 0xE: 2}
"""Number of data bytes of the channel messages other than notes, by the status's high half."""

_Note = tuple[int, int, int, int]
"""`(onset, end, pitch, velocity)`, times in ticks."""


def read(song_id: str, data: bytes, part: str | None) -> Melody:
    """Read the melody of a file; `part` is the name of a track, or a number from 1.

    Numbers count every channel of every track that has notes. Raises `RejectedError` where there is
    no melody or no such part, and `ValueError` where the data is not a MIDI file.
    """
    quarter, chunks = parse(data)
    tracks = [
        _Track(chunk.names.get(channel, chunk.name), notes, chunk.meters)
        for chunk in chunks
        for channel, notes in chunk.notes.items()
    ]
    if not tracks and any(chunk.percussion for chunk in chunks):
        raise RejectedError("no notes", "percussion only")
    track = _melody_track(tracks, part)
    end = max(end for _, end, _, _ in track.notes)
    check_size(len(track.notes), 0, end / quarter)
    # Tracks may disagree; the bars follow the melody's own time signatures, or those of the first
    # track where it has the same and more. If its own come later, others tell what holds till then.
    every, first = [chunk.meters for chunk in chunks], chunks[0].meters
    own = [first if track.meters.items() <= first.items() else track.meters]
    at_start = _in_time(every[::-1], quarter).get(0, "4/4")
    meters = {0: at_start} | _in_time(own if track.meters else every, quarter)
    bars = tuple(islice(_bars(sorted(meters.items()), track.notes, quarter, end), MAX_BARS + 1))
    check_size(len(track.notes), len(bars))
    tempos = _in_time([chunk.tempos for chunk in reversed(chunks)], quarter)
    titles = [*(chunk.title for chunk in chunks), *(chunk.name for chunk in chunks)]
    return Melody(
        id=song_id,
        title=next(filter(None, titles), song_id),
        notes=tuple(
            Note(Fraction(onset, quarter), Fraction(end - onset, quarter), pitch)
            for onset, end, pitch, _ in track.notes
        ),
        bars=bars,
        tempos=tuple(Tempo(Fraction(t, quarter), 6e7 / tempos[t]) for t in sorted(tempos)),
        played=True,
    )


# ---- bytes -------------------------------------------------------------------------------------


@dataclass
class Chunk:
    """One track chunk of a file; times in ticks from its start."""

    name: str = ""
    notes: dict[int, list[_Note]] = field(default_factory=dict)
    """By channel, sorted; percussion left out."""
    meters: dict[int, str] = field(default_factory=dict)
    """Time signatures by tick."""
    tempos: dict[int, int] = field(default_factory=dict)
    """Microseconds per quarter note by tick."""
    percussion: bool = False
    """Whether notes of percussion were left out."""
    title: str = ""
    """Title of the song, as a karaoke file gives it in a text."""
    names: dict[int, str] = field(default_factory=dict)
    """Names of channels, where the track gives them some of their own."""
    prefix: int | None = None
    """The channel that the following events without one are about."""


def parse(data: bytes) -> tuple[int, list[Chunk]]:
    """Return the ticks per quarter note and the tracks of a file, in RIFF or not.

    Raises `ValueError` for data that is not a MIDI file, is cut off, or has no common time line.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"RMID":
        data = _in_riff(data)
    if data[:4] != b"MThd" or len(data) < 14:
        raise ValueError("not a MIDI file")
    kind, count = int.from_bytes(data[8:10]), int.from_bytes(data[10:12])
    quarter = int.from_bytes(data[12:14], signed=True)
    if quarter < 0:
        raise ValueError("its time is in film frames (SMPTE): export it in quarter notes")
    if not quarter:
        raise ValueError("it has 0 ticks per quarter note")
    # Some programs count too few tracks.
    tracks = list(_bodies(data, 8 + int.from_bytes(data[4:8])))
    if kind == 2 and max(count, len(tracks)) > 1:
        raise ValueError("its tracks are separate pieces (MIDI type 2): export one of them")
    damage = "cut off, or lengths that don't fit"
    if len(tracks) < count:
        raise ValueError(damage)
    try:
        return quarter, [_chunk(track) for track in tracks]
    except IndexError:
        raise ValueError(damage) from None


def _in_riff(data: bytes) -> bytes:
    """Return the MIDI file inside a RIFF file."""
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data":
            return data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    return b""


def _bodies(data: bytes, at: int) -> Iterator[bytes]:
    """Yield the contents of the track chunks from byte `at` on."""
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8])
        if data[at : at + 4] == b"MTrk":
            if end > len(data):
                return
            yield data[at + 8 : end]
        at = end


def _chunk(data: bytes) -> Chunk:
    """Read one track; raises `IndexError` where it ends within an event."""
    chunk = Chunk()
    keys: dict[int, list[tuple[int, int]]] = {}
    tick = at = status = 0
    while at < len(data):
        delta, at = _number(data, at)
        tick += delta
        if data[at] >= 0xF0:
            at = _other(data, at, tick, chunk)
            continue
        chunk.prefix = None
        if data[at] >= 0x80:
            status = data[at]
            at += 1
        elif not status:
            raise ValueError("data bytes before any status")
        if status >= 0xA0:
            at += _OTHER_DATA[status >> 4]
            continue
        channel, pitch, velocity = status & 0xF, min(data[at], 127), min(data[at + 1], 127)
        at += 2
        struck = velocity if status >= 0x90 else 0
        if channel == _PERCUSSION:
            chunk.percussion |= struck > 0
        else:
            keys.setdefault(channel << 7 | pitch, []).append((tick, struck))
    if at > len(data):
        raise IndexError
    for key, events in keys.items():
        notes = [(on, off, key & 127, velocity) for on, off, velocity in _pressed(events, tick)]
        if notes:
            chunk.notes.setdefault(key >> 7, []).extend(notes)
    chunk.notes = {channel: sorted(notes) for channel, notes in sorted(chunk.notes.items())}
    return chunk


def _pressed(events: list[tuple[int, int]], end: int) -> Iterator[tuple[int, int, int]]:
    """Yield onset, end and velocity of each note of one key, from its strokes and releases.

    An event is a tick and a velocity, which is 0 for a release. A stroke ends the note before it. A
    release belongs to the oldest note without one. Where a key is struck more often than it is
    released, strokes take the place of the missing releases, and tick `end`, where the track ends,
    that of the last one.
    """
    strokes = sum(velocity > 0 for _, velocity in events)
    all_released = 2 * strokes <= len(events)
    unreleased: deque[int] = deque()
    sounding: tuple[int, int] | None = None
    struck_anew = -1
    for tick, velocity in events:
        if velocity:
            if sounding is not None and sounding[0] < tick:
                yield sounding[0], tick, sounding[1]
                struck_anew = tick
            if not all_released:
                unreleased.clear()
            sounding = tick, velocity
            unreleased.append(tick)
        elif unreleased and (all_released or tick > struck_anew):
            onset = unreleased.popleft()
            if sounding is not None and onset == sounding[0] and onset not in unreleased:
                if onset < tick:
                    yield onset, tick, sounding[1]
                sounding = None
    if sounding is not None and sounding[0] < end:
        yield sounding[0], end, sounding[1]


def _other(data: bytes, at: int, tick: int, chunk: Chunk) -> int:
    """Take what is needed from a meta event or system message; return where the next one begins."""
    status, kind = data[at], None
    if status == 0xFF:
        kind, at = data[at + 1], at + 1
    elif status not in (0xF0, 0xF7):
        raise ValueError(f"status {status:#x} is not allowed in a file")
    length, at = _number(data, at + 1)
    content = data[at : at + length]
    if kind in (0x01, 0x03):
        _take_text(kind, content, chunk)
    elif kind == 0x20 and content:
        chunk.prefix = content[0]
    elif kind == 0x51 and any(content[:3]):
        chunk.tempos[tick] = int.from_bytes(content[:3])
    elif kind == 0x58:
        beats, power = content[0], content[1]
        if not beats or power > 6:
            raise ValueError(f"time signature {beats}/2^{power}")
        chunk.meters[tick] = f"{beats}/{2**power}"
    elif kind == 0x2F:
        # The track ends here, whatever its chunk holds beyond.
        return len(data)
    return at + length


def _take_text(kind: int, content: bytes, chunk: Chunk) -> None:
    """Take the name of a track or channel, or a karaoke file's title, from a text."""
    if kind == 0x01 and not content.startswith(b"@T"):
        return
    text = decode_text(content[2 * (kind == 0x01) :]).strip("\0 \t\r\n")
    if kind == 0x01:
        chunk.title = chunk.title or text
    elif chunk.prefix is None:
        chunk.name = chunk.name or text
    else:
        chunk.names.setdefault(chunk.prefix, text)


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return a variable-length number, of four bytes at most, and the place after it."""
    value = 0
    for place in range(at, at + 4):
        byte = data[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    raise ValueError("a number of more than four bytes")


_T = TypeVar("_T")


def _in_time(tracks: Sequence[dict[int, _T]], quarter: int) -> dict[int, _T]:
    """Join what tracks say by tick; what comes within `TOLERANCE` of the start holds from there."""
    return {
        tick if tick > TOLERANCE * quarter else 0: value
        for track in tracks
        for tick, value in track.items()
    }


# ---- the melody --------------------------------------------------------------------------------

_MONOPHONIC = 0.4
"""In a melody track, at least this share of notes start after the middle of the note before."""


class _Track(NamedTuple):
    """The notes of one channel of one track, times in ticks."""

    name: str
    notes: list[_Note]
    meters: dict[int, str]
    """Time signatures of the track, by tick."""


def _melody_track(tracks: list[_Track], part: str | None) -> _Track:
    """Return the track that `part` chooses; without it, the first nearly monophonic one."""
    if not tracks:
        raise RejectedError("no notes")
    if part is not None:
        return tracks[choose_part([track.name for track in tracks], part)]
    for track in tracks:
        apart = sum(
            second[0] > (first[0] + first[1]) / 2 for first, second in pairwise(track.notes)
        )
        if apart >= _MONOPHONIC * (len(track.notes) - 1):
            return track
    raise RejectedError("no melody track", f"chords in {list_names([t.name for t in tracks])}")


def _pickup(notes: list[_Note], quarter: int, bar: Fraction, stop: int) -> Fraction:
    """Length of the pickup in quarter notes, from the notes that begin before tick `stop`.

    Programs that write MIDI from a score without padding its pickup play the first note of a bar
    loudest. So the loudest notes, if they are a minority, are counted by their place in bars that
    start at tick 0. The place with the most is the bar line if it has at least two notes, more than
    40 % of the loudest notes, and more than 40 % as many notes as there are bars. Otherwise there
    is no pickup.
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
    notes: list[_Note],
    quarter: int,
    end: int,
) -> Iterator[Bar]:
    """Yield bars up to tick `end`; they are counted from the pickup and each time signature on.

    A time signature within `TOLERANCE` of a bar line stands there.
    """
    first = meters[0][1]
    pickup = _pickup(notes, quarter, bar_length(first), min([end, *(t for t, _ in meters[1:])]))
    if pickup:
        yield Bar(Fraction(0), pickup, first)
    position = pickup
    for (_, meter), following in zip(meters, [*meters[1:], None], strict=True):
        stop = Fraction(end if following is None else following[0], quarter)
        length = bar_length(meter)
        while position < stop - TOLERANCE:
            is_whole = following is None or stop - position >= length - TOLERANCE
            cut = length if is_whole else stop - position
            yield Bar(position, cut, meter)
            position += cut
