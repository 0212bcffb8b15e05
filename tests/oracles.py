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
from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from shutil import which
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, fromstring

import mido
import symusic

from cf_core.ingest import read_builtin_tunes
from cf_core.isolation import call_isolated, processes
from cf_core.melody import Melody
from cf_core.readers import Rejected, read_song, split_songs
from cf_core.readers.midi import parse
from cf_core.readers.musicxml import read_measures
from cf_core.readers.score import to_quarters

DIGESTS = Path(__file__).parent / "built_in_tunes.json"


class Heard(NamedTuple):
    """A note as it is heard, in quarter notes from the first one."""

    onset: float
    duration: float
    pitch: int


def digest(name: str, data: bytes) -> str:
    """A digest of what is read of a tune: notes, bars and tempos, or the reason against it."""
    (song,) = split_songs(name, data)
    read = song if isinstance(song, Rejected) else read_song(song)
    if isinstance(read, Rejected):
        return read.reason
    text = repr(
        [[tuple(map(str, row)) for row in rows] for rows in (read.notes, read.bars, read.tempos)]
    )
    return sha256(text.encode()).hexdigest()[:16]


def digests(tunes: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """Digests of tunes by their names, made in processes that check no types while they read."""

    def make(tune: tuple[str, bytes]) -> tuple[str, str]:
        return tune[0], call_isolated(digest, *tune)

    return dict(sorted(processes(2)(make, tunes)))


def heard(*voices: Melody) -> list[Heard]:
    """Our reading, by onset and pitch; times count from the first note of all voices."""
    first = min((voice.notes[0].onset for voice in voices), default=Fraction(0))
    return in_order(
        Heard(float(note.onset - first), float(note.duration), note.pitch)
        for voice in voices
        for note in voice.notes
    )


def in_order(notes: Iterable[Heard]) -> list[Heard]:
    """Notes by onset, of one onset by pitch; of equal ones, one."""
    return sorted(set(notes), key=lambda note: (round(note.onset * 48), *note[:0:-1]))


def same(ours: list[Heard], theirs: list[Heard]) -> bool:
    """Whether pitches are equal, and times but for rounding to ticks."""
    return len(ours) == len(theirs) and all(
        a.pitch == b.pitch and abs(a.onset - b.onset) < 0.03 and abs(a.duration - b.duration) < 0.03
        for a, b in zip(ours, theirs, strict=True)
    )


# Ornaments that abc2midi plays, and staccato, which it plays short.
_ORNAMENT = re.compile(
    r"(?P<field>\[[A-Za-z]:[^]\n]*\])|[~TRJMPu]|\.+(?=[\^_=(\[{~HTuv]*[A-Ga-gz])|![^!\s]*!"
)
_MUSIC = re.compile(r"(?m)^(?![A-Za-z]:[^|:\]]|%).*$")


def without_ornaments(text: str) -> str:
    """The tune with notes alone to play: no swing of hornpipes, chords not spread."""
    text = re.sub(r"(?m)^R:.*\n", "", text).replace("\n", "\n%%MIDI chordattack 0\n", 1)
    head, key, body = text.partition("\nK:")
    first, newline, rest = body.partition("\n")
    rest = _MUSIC.sub(lambda line: re.sub(r'"[^"\n]*"', "", line[0]), rest)
    rest = _MUSIC.sub(lambda line: _ORNAMENT.sub(lambda sign: sign["field"] or "", line[0]), rest)
    return head + key + first + newline + rest


_BAR = re.compile(
    r"\[[A-Za-z]:[^]\n]*\]|%.*|\"[^\"\n]*\""  # nothing that stands in these is a bar line
    r"|(?P<bar>(?:\[(?=\|)|(?<=\|)\]|[|:])+)(?P<number>\d)?|\[(?P<variant>\d)"
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
    found = (Heard((on - first) / quarter, (off - on) / quarter, p) for on, off, p in notes)
    return in_order(found)


def nottingham() -> Iterator[tuple[str, bytes]]:
    """Names and texts of the tunes of Nottingham's ABC books."""
    archive = Path(os.environ["CF_DATA"], "nottingham", "nottingham-dataset.zip")
    with zipfile.ZipFile(archive) as members:
        for name in sorted(members.namelist()):
            if "ABC_cleaned/" in name and name.endswith(".abc"):
                text = members.read(name).decode("latin-1")
                for number, tune in enumerate(re.split(r"(?m)^(?=X:)", text)[1:], start=1):
                    yield f"{Path(name).stem}{number}.abc", tune.encode()


# ---- MIDI: symusic -----------------------------------------------------------------------------


def as_symusic(data: bytes) -> bool:
    """Whether a MIDI file has the notes that symusic reads, percussion apart.

    Of a key that is struck anew while it sounds, symusic lets the first note go on.
    """
    _, chunks = parse(data)
    score: Any = symusic.Score.from_midi(data)
    theirs = set[tuple[int, int, int, int]]()
    for track in score.tracks:
        if track.is_drum:
            continue
        struck = {(n.pitch, n.time) for n in track.notes}
        for n in track.notes:
            later = [time for pitch, time in struck if pitch == n.pitch and time > n.time]
            end = min([n.time + n.duration, *later])
            theirs.add((int(n.time), int(end), int(n.pitch), int(n.velocity)))
    return theirs == {note for chunk in chunks for notes in chunk.notes.values() for note in notes}


# ---- MusicXML: music21 -------------------------------------------------------------------------


def scores() -> list[str]:
    """Names of the scores of OpenScore Lieder."""
    with _lieder() as members:
        return sorted(name for name in members.namelist() if name.endswith(".mxl"))


def as_music21(name: str) -> tuple[int, int]:
    """How many notes the first part of a score has, and how many of them music21 reads alike.

    Compared are measure, place, length and pitch, before repeats are played and ties joined.
    """
    with _lieder() as members:
        data = members.read(name)
    ours = Counter(
        (index, to_quarters(note.offset), to_quarters(note.duration), note.pitch)
        for index, measure in enumerate(read_measures(data, "1"))
        for note in measure.notes
    )
    part = _first_part(data)
    if part is None:
        return 0, 0
    theirs: Counter[tuple[Any, ...]] = Counter()
    for index, measure in enumerate(part.getElementsByClass("Measure")):
        for element in measure.flatten().notes:
            if element.duration.isGrace or "Harmony" in element.classes:
                continue
            onset, length = Fraction(element.offset), Fraction(element.duration.quarterLength)
            for note in element.notes if element.isChord else [element]:
                if not (note.hasStyleInformation and note.style.noteSize == "cue"):
                    theirs[index, onset, length, note.pitch.midi] += 1
    # In unison, voices sound as one.
    return max(len(ours), len(theirs)), len(ours.keys() & theirs.keys())


def _first_part(data: bytes) -> Any:
    """First part of a compressed score as music21 reads it, without cue notes, which it plays.

    Nothing where it finds none, as in one score whose first part is on two staves.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        root = fromstring(archive.read("score.xml"))  # noqa: S314  (a file of the corpus)
    listing = root.find("part-list")
    assert listing is not None
    for parent, tag in ((listing, "score-part"), (root, "part")):
        for element in parent.findall(tag)[1:]:
            parent.remove(element)
    for group in listing.findall("part-group"):
        listing.remove(group)
    if listing[0].find("part-name") is None:
        listing[0].insert(0, Element("part-name"))
    for measure in root.iter("measure"):
        for note in measure.findall("note"):
            if note.find("cue") is not None and note.find("chord") is not None:
                measure.remove(note)
            elif note.find("cue") is not None and (pitch := note.find("pitch")) is not None:
                note.remove(pitch)
                note.insert(1, Element("rest"))
    reader: Any = import_module("music21.musicxml.xmlToM21").MusicXMLImporter()
    parts = list(reader.xmlRootToScore(root).parts)
    return parts[0].toSoundingPitch() if parts else None


def _lieder() -> zipfile.ZipFile:
    folder = Path(os.environ["CF_DATA"], "openscore-lieder")
    return zipfile.ZipFile(folder / "openscore-lieder-mxl.zip")


# ---- the whole ---------------------------------------------------------------------------------


def all_voices(name: str, data: bytes) -> list[Heard]:
    """Our reading of a tune, all its voices together."""
    (song,) = split_songs(name, data)
    if isinstance(song, Rejected):
        return []
    read = read_song(song)
    voices = [read]
    if isinstance(read, Rejected):
        voices = [read_song(song, str(number)) for number in range(1, 2 + read.detail.count("',"))]
    melodies = [voice for voice in voices if isinstance(voice, Melody)]
    return heard(*melodies)


def report_abc(title: str, tunes: list[tuple[str, bytes]]) -> None:
    """Print how many tunes are equal, as they are and made unambiguous, and which are not."""
    for how, change in (("as they are", str), ("unambiguous", unambiguous)):
        differing = []
        for name, data in tunes:
            text = change(data.decode())
            if not same(all_voices(name, text.encode()), abc2midi(text)):
                differing.append(name.removesuffix(".abc"))
        equal = len(tunes) - len(differing)
        print(f"{title}, {how}: {equal} of {len(tunes)} equal ({equal / len(tunes):.2%})")
        print("  others:", ", ".join(differing))


def main(arguments: list[str]) -> None:
    """Print all comparisons for which there is an oracle and a corpus."""
    if "--digests" in arguments:
        found = {name: digest(name, text) for name, text in sorted(read_builtin_tunes())}
        DIGESTS.write_text(json.dumps(found, indent=0) + "\n")
        return
    if which("abc2midi"):
        report_abc("built-in tunes", list(read_builtin_tunes()))
        if "CF_DATA" in os.environ:
            report_abc("Nottingham", list(nottingham()))
    if "CF_DATA" in os.environ:
        counts = {name: as_music21(name) for name in scores()}
        total, alike = map(sum, zip(*counts.values(), strict=True))
        print(f"OpenScore: {alike} of {total} notes equal ({alike / total:.2%})")
        print(
            "  others:", [(Path(n).stem, *pair) for n, pair in counts.items() if len({*pair}) > 1]
        )


if __name__ == "__main__":
    main(sys.argv[1:])
