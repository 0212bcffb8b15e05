"""Standard MIDI files, as far as a melody needs them: notes, meters, tempo and names.

Every byte is looked at once and whatever else a file holds is passed over, so that reading takes a
fraction of the time of building an object for each event.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

_PERCUSSION = 9
_OTHER_DATA = {0xA: 2, 0xB: 2, 0xC: 1, 0xD: 1, 0xE: 2}
"""Data bytes of the channel messages that are no notes, by the high half of the status."""


@dataclass
class Chunk:
    """One track chunk of a file; times in ticks from its start."""

    name: str = ""
    notes: dict[int, list[tuple[int, int, int, int]]] = field(default_factory=dict)
    """`(onset, end, pitch, velocity)` by channel, sorted; percussion left out."""
    meters: dict[int, str] = field(default_factory=dict)
    """Time signatures by tick."""
    tempo: int = 0
    """Microseconds per quarter note as first set; 0 where it is not."""


def parse(data: bytes) -> tuple[int, list[Chunk]]:
    """Return the ticks per quarter note and the tracks of a file.

    Raises `ValueError` for what is no MIDI file, is cut off, or has no common time line.
    """
    if data[:4] != b"MThd" or len(data) < 14:
        raise ValueError("not a MIDI file")
    kind, count = int.from_bytes(data[8:10]), int.from_bytes(data[10:12])
    quarter = int.from_bytes(data[12:14], signed=True)
    if quarter <= 0 or kind == 2:
        raise ValueError("neither ticks per quarter note nor one time line")
    tracks = _bodies(data, 8 + int.from_bytes(data[4:8]))
    try:
        return quarter, [_chunk(next(tracks)) for _ in range(count)]
    except (IndexError, StopIteration):
        raise ValueError("cut off, or lengths that don't fit") from None


def _bodies(data: bytes, at: int) -> Iterator[bytes]:
    """Contents of the track chunks from a place on."""
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
    sounding: dict[tuple[int, int], tuple[int, int]] = {}
    tick = at = status = 0
    while at < len(data):
        delta, at = _number(data, at)
        tick += delta
        if data[at] >= 0xF0:
            at = _other(data, at, tick, chunk)
            continue
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
        if channel == _PERCUSSION:
            continue
        begun = sounding.pop((channel, pitch), None)
        if begun is not None and tick > begun[0]:
            note = (begun[0], tick, pitch, begun[1])
            chunk.notes.setdefault(channel, []).append(note)
        if status >= 0x90 and velocity:
            sounding[channel, pitch] = (tick, velocity)
    if at > len(data):
        raise IndexError
    chunk.notes = {channel: sorted(notes) for channel, notes in sorted(chunk.notes.items())}
    return chunk


def _other(data: bytes, at: int, tick: int, chunk: Chunk) -> int:
    """Take what is needed of a meta event or system message; return where the next event begins."""
    status, kind = data[at], None
    if status == 0xFF:
        kind, at = data[at + 1], at + 1
    elif status not in (0xF0, 0xF7):
        raise ValueError(f"status {status:#x} has no place in a file")
    length, at = _number(data, at + 1)
    content = data[at : at + length]
    if kind == 0x03 and not chunk.name:
        chunk.name = content.decode("latin-1").strip()
    elif kind == 0x51 and not chunk.tempo:
        chunk.tempo = int.from_bytes(content[:3])
    elif kind == 0x58:
        beats, power = content[0], content[1]
        if not beats or power > 6:
            raise ValueError(f"time signature {beats}/2^{power}")
        chunk.meters[tick] = f"{beats}/{2**power}"
    return at + length


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return a variable-length number, of four bytes at most, and the place after it."""
    value = 0
    for place in range(at, at + 4):
        byte = data[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    raise ValueError("a number of more than four bytes")
