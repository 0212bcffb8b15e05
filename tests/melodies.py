"""Melody files made for the tests of the readers, and what is read from them."""

import io
from collections.abc import Sequence
from fractions import Fraction

import mido

from cf_core.melody import Melody
from cf_core.readers import Rejected, read_melodies

HEAD = "X:1\nT:A Tune\nM:4/4\nL:1/4\nK:C\n"
C, D, E, F, G = 60, 62, 64, 65, 67
A, B = 69, 71

Event = tuple[int, mido.Message | mido.MetaMessage]


def sound(onset: int, end: int, pitch: int, velocity: int = 80, channel: int = 0) -> list[Event]:
    common = {"note": pitch, "channel": channel}
    return [
        (onset, mido.Message("note_on", velocity=velocity, **common)),
        (end, mido.Message("note_off", **common)),
    ]


def meter(tick: int, beats: int, unit: int) -> Event:
    return tick, mido.MetaMessage("time_signature", numerator=beats, denominator=unit)


def midi(*tracks: Sequence[Event], quarter: int = 480, shuffled: bool = False) -> bytes:
    """A file of so many tracks; of one tick, ends come before onsets, or as given if `shuffled`."""
    file = mido.MidiFile(ticks_per_beat=quarter)
    for events in tracks:
        track = mido.MidiTrack()
        now = 0
        for tick, message in sorted(
            events, key=lambda e: (e[0], not shuffled and e[1].type == "note_on")
        ):
            track.append(message.copy(time=tick - now))
            now = tick
        file.tracks.append(track)
    stream = io.BytesIO()
    file.save(file=stream)
    return stream.getvalue()


def only(name: str, data: bytes, part: str | None = None) -> Melody:
    (song,) = read_melodies(name, data, part)
    assert isinstance(song, Melody), song
    return song


def rejection(name: str, data: bytes, part: str | None = None) -> Rejected:
    (song,) = read_melodies(name, data, part)
    assert isinstance(song, Rejected), song
    return song


def pitches(song: Melody) -> list[int]:
    return [note.pitch for note in song.notes]


def lengths(song: Melody) -> list[Fraction]:
    return [bar.length for bar in song.bars]


def xml_note(step: str, octave: int, duration: int, inside: str = "", after: str = "") -> str:
    pitch = f"<pitch><step>{step}</step><octave>{octave}</octave></pitch>"
    length = f"<duration>{duration}</duration>" if duration else ""
    return f"<note>{inside}{pitch}{length}{after}</note>"


def score(parts: dict[str, list[str]], doctype: str = "") -> bytes:
    """A score in 2/4 with two divisions per quarter; parts by name, each a list of measures."""
    listed = "".join(
        f'<score-part id="P{i}"><part-name>{name}</part-name></score-part>'
        for i, name in enumerate(parts)
    )
    attributes = (
        "<attributes><divisions>2</divisions>"
        "<time><beats>2</beats><beat-type>4</beat-type></time></attributes>"
    )
    bodies = "".join(
        f'<part id="P{i}">'
        + "".join(
            f'<measure number="{number}">{attributes if number == 0 else ""}{measure}</measure>'
            for number, measure in enumerate(measures)
        )
        + "</part>"
        for i, measures in enumerate(parts.values())
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{doctype}<score-partwise version="3.1">'
        "<work><work-title>A Song</work-title></work>"
        f"<part-list>{listed}</part-list>{bodies}</score-partwise>"
    ).encode()
