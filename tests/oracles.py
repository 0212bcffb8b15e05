"""`python -m tests.oracles`: our readers against those of others, tune by tune.

ABC is held against abc2midi (Debian's package `abcmidi`), on the built-in tunes and on the ABC of
Nottingham where CF_DATA has it; MusicXML against music21, on the scores of OpenScore Lieder. Prints
how many are equal and lists the others. `--digests` writes the digests that the tests hold.
"""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import mido

from cf_core.corpus import common_time_tunes
from cf_core.melody import Melody
from cf_core.readers import Rejected, read_song, songs

DIGESTS = Path(__file__).parent / "built_in_tunes.json"


class Heard(NamedTuple):
    """A note as it is heard, in quarter notes from the first one."""

    onset: float
    duration: float
    pitch: int


def digest(name: str, data: bytes) -> str:
    """A digest of what is read of a tune: notes, bars and tempos, or the reason against it."""
    (song,) = songs(name, data)
    read = song if isinstance(song, Rejected) else read_song(song)
    if isinstance(read, Rejected):
        return read.reason
    text = repr(
        [[tuple(map(str, row)) for row in rows] for rows in (read.notes, read.bars, read.tempos)]
    )
    return sha256(text.encode()).hexdigest()[:16]


def heard(melody: Melody) -> list[Heard]:
    """Our reading, by onset and pitch."""
    first = melody.notes[0].onset
    notes = [Heard(float(n.onset - first), float(n.duration), n.pitch) for n in melody.notes]
    return sorted(notes, key=lambda n: (round(n.onset * 48), n.pitch))


def same(ours: list[Heard], theirs: list[Heard]) -> bool:
    """Whether pitches are equal, and times but for rounding to ticks."""
    return len(ours) == len(theirs) and all(
        a.pitch == b.pitch and abs(a.onset - b.onset) < 0.03 and abs(a.duration - b.duration) < 0.03
        for a, b in zip(ours, theirs, strict=True)
    )


# Ornaments that abc2midi plays, and staccato, which it plays short.
_ORNAMENT = re.compile(r"[~TRJMPu]|\.+(?=[\^_=(\[{~HTuv]*[A-Ga-gz])|![^!\s]*!")
_MUSIC = re.compile(r"(?m)^(?![A-Za-z]:[^|:\]]|%).*$")


def without_ornaments(text: str) -> str:
    """The tune with notes alone to play: no swing of hornpipes, chords not spread."""
    text = re.sub(r"(?m)^R:.*\n", "", text).replace("\n", "\n%%MIDI chordattack 0\n", 1)
    head, key, body = text.partition("\nK:")
    first, newline, rest = body.partition("\n")
    rest = _MUSIC.sub(lambda line: re.sub(r'"[^"\n]*"', "", line[0]), rest)
    return head + key + first + newline + _MUSIC.sub(lambda line: _ORNAMENT.sub("", line[0]), rest)


_BAR = re.compile(
    r"(?P<bar>(?:\[(?=\|)|(?<=\|)\]|[|:])+)(?P<number>\d)?|\[(?P<variant>\d)|%.*|\"[^\"\n]*\""
)


class _Repeat:
    """Where the next repeat of a voice starts, in a tune's text."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.is_open = self.in_last_ending = False

    def take(self, found: re.Match[str], offset: int) -> list[int]:
        """Take a bar line or the number of an ending; return where a start is missing."""
        sign, number = found["bar"] or "", found["number"] or found["variant"]
        ends, opens = len(sign) > 1 and sign[0] == ":", len(sign) > 1 and sign[-1] == ":"
        thick = any(mark in sign for mark in ("||", "[", "]"))
        missing = ends and not self.is_open and not self.in_last_ending
        start, self.is_open = self.start, self.is_open or missing
        if number:
            self.in_last_ending = number != "1"
        elif ends or (thick and (self.in_last_ending or not self.is_open)):
            self.start, self.is_open, self.in_last_ending = offset + found.end(), False, False
        if opens:
            self.is_open, self.in_last_ending = True, False
        return [start] if missing else []


def unambiguous(text: str) -> str:
    """The tune with every missing start of a repeat written out, and no D.C.

    A repeat starts after the last double bar line, repeat or row of endings.
    """
    head, body = re.split(
        r"(?m)(?<=\n)(?=(?:[^A-Za-z%]|[A-Za-z][^:]|[A-Ga-g]:[|:]))", text, maxsplit=1
    )
    body = re.sub(r"!D\.?C\.?!", "", body)
    inserted: list[int] = []
    voices: dict[str, _Repeat] = {}
    at = 0
    for line in body.splitlines(keepends=True):
        if not re.match(r"[A-Za-z]:(?![|:])|%", line):
            voice = re.match(r"\[V:([^]]*)\]", line)
            repeat = voices.setdefault(
                voice[1] if voice else "", _Repeat(at + (voice.end() if voice else 0))
            )
            for found in _BAR.finditer(line):
                inserted += repeat.take(found, at)
        at += len(line)
    inserted.sort()
    for place in reversed(inserted):
        body = f"{body[:place]} |: {body[place:]}"
    return head + body


def abc2midi(text: str) -> list[Heard]:
    """What abc2midi plays, graces and ornaments left out."""
    with tempfile.TemporaryDirectory() as folder:
        tune, output = Path(folder, "x.abc"), Path(folder, "x.mid")
        tune.write_text(without_ornaments(text))
        command = ["abc2midi", str(tune), "-o", str(output), "-NGRA", "-NGUI", "-NFER", "-NFNP"]
        subprocess.run([*command, "-silent"], check=False, stdout=subprocess.DEVNULL)
        return midi_notes(output.read_bytes()) if output.exists() else []


def midi_notes(data: bytes) -> list[Heard]:
    """Notes of all tracks of a MIDI file, as mido reads it."""
    file = mido.MidiFile(file=io.BytesIO(data))
    notes: list[tuple[int, int, int]] = []
    for track in file.tracks:
        now, sounding = 0, dict[int, int]()
        for message in track:
            now += message.time
            if message.type in ("note_on", "note_off") and message.channel != 9:
                begun = sounding.pop(message.note, None)
                if begun is not None and begun < now:
                    notes.append((begun, now, message.note))
                if message.type == "note_on" and message.velocity:
                    sounding[message.note] = now
    if not notes:
        return []
    first, quarter = min(notes)[0], file.ticks_per_beat
    found = [Heard((on - first) / quarter, (off - on) / quarter, p) for on, off, p in notes]
    return sorted(set(found), key=lambda n: (round(n.onset * 48), n.pitch, n.duration))


def nottingham() -> Iterator[tuple[str, bytes]]:
    """Names and texts of the tunes of Nottingham's ABC books."""
    archive = Path(os.environ["CF_DATA"], "nottingham", "nottingham-dataset.zip")
    with zipfile.ZipFile(archive) as members:
        for name in sorted(members.namelist()):
            if "ABC_cleaned/" in name and name.endswith(".abc"):
                text = members.read(name).decode("latin-1")
                for number, tune in enumerate(re.split(r"(?m)^(?=X:)", text)[1:], start=1):
                    yield f"{Path(name).stem}{number}.abc", tune.encode()


def main(arguments: list[str]) -> None:
    if "--digests" in arguments:
        digests = {name: digest(name, text) for name, text in common_time_tunes()}
        DIGESTS.write_text(json.dumps(digests, indent=0) + "\n")
        return


if __name__ == "__main__":
    main(sys.argv[1:])
