"""The smallest parts of MusicXML, each read from one element: notes, values, tempos and numbers."""

import re
from fractions import Fraction
from xml.etree.ElementTree import Element

from cf_core.readers.limits import RejectedError
from cf_core.readers.score import Time

# ---- notes -------------------------------------------------------------------------------------


def is_sounding(note: Element) -> bool:
    """Whether a note has a pitch and is no grace note, no cue and no slash for players."""
    size = note.find("type")
    cue = note.find("cue") is not None or (size is not None and "cue" in size.get("size", ""))
    slash = (note.findtext("notehead") or "").strip() == "slash"
    return note.find("pitch") is not None and note.find("grace") is None and not (cue or slash)


def staff_of(note: Element) -> str:
    """Number of a note's staff, as a text."""
    return (note.findtext("staff") or "1").strip()


def voice_of(note: Element) -> str:
    """Number of a note's voice, as a text."""
    return (note.findtext("voice") or "1").strip()


_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_VALUES = "maxima long breve whole half quarter eighth 16th 32nd 64th 128th 256th 512th 1024th"
_QUARTERS = {name: Fraction(32, 2**power) for power, name in enumerate(_VALUES.split())}
"""Note values in quarter notes."""


def midi_number(pitch: Element) -> int:
    """MIDI number of a pitch as written; quarter tones are rounded."""
    step = (pitch.findtext("step") or "").strip()
    octave = parse_exact(pitch.findtext("octave") or "4", "octave")
    if step not in _STEPS:
        raise RejectedError("unreadable", f"{step!r} is not a step of a scale")
    alter = parse_exact(pitch.findtext("alter") or "", "alter")
    return 12 * (int(octave) + 1) + _STEPS[step] + round(alter)


def printed_length(note: Element) -> Fraction:
    """Quarter notes of the value that a note is printed with, dots and tuplets counted."""
    actual, normal = (
        max(int(find_number(note.findtext(f"time-modification/{name}-notes"))), 1)
        for name in ("actual", "normal")
    )
    return _value(note.findtext("type"), len(note.findall("dot"))) * Fraction(normal, actual)


def _value(name: str | None, dots: int) -> Fraction:
    """Quarter notes of a note value such as "half"; 0 where it is unknown."""
    value = _QUARTERS.get((name or "").strip(), Fraction(0))
    return value * (2 - Fraction(1, 2 ** min(dots, 3)))


# ---- tempos and numbers --------------------------------------------------------------------------


def parse_speed(metronome: Element) -> float:
    """Quarter notes per minute of a metronome mark; 0 where it gives no tempo."""
    if len(metronome.findall("beat-unit")) != 1:
        return 0.0
    beat = sum(map(_beat, [metronome, *metronome.findall("beat-unit-tied")]))
    return find_number(metronome.findtext("per-minute")) * float(beat)


def _beat(element: Element) -> Fraction:
    return _value(element.findtext("beat-unit"), len(element.findall("beat-unit-dot")))


_EXACT = re.compile(r"[-+]?(?:\d{1,12}\.?\d{0,12}|\.\d{1,12})")


def parse_exact(text: str, tag: str) -> Time:
    """The number that an element holds, 0 where it is empty."""
    text = text.strip() or "0"
    if _EXACT.fullmatch(text) is None:
        raise RejectedError("unreadable", f"<{tag}> holds no number: {text[:99]!r}")
    return Fraction(text) if "." in text else int(text)


def find_number(text: str | None) -> float:
    """The first number of a text, 0 where it has none."""
    found = re.search(r"-?\d{1,9}(?:[.,]\d{1,9})?", text or "")
    return float(found[0].replace(",", ".")) if found else 0.0
