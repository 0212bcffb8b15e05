"""The smallest parts of ABC, each read from a few characters: keys, moves, notes and lengths."""

import re
from fractions import Fraction
from functools import lru_cache
from html import unescape
from typing import NamedTuple
from unicodedata import normalize

from cf_core.readers.limits import RejectedError
from cf_core.readers.score import Time, to_time

# ---- keys --------------------------------------------------------------------------------------

_SHARPS = "FCGDAEB"
STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
"""Semitones from C up to each step of the C major scale."""
_MODES = {"": 0, "maj": 0, "ion": 0, "m": -3, "min": -3, "aeo": -3}
_MODES |= {"mix": -1, "dor": -2, "phr": -4, "lyd": 1, "loc": -5, "mi": -3, "mol": -3}
_ALTERS = {"^^": 2, "^": 1, "=": 0, "_": -1, "__": -2}
# A word is a mode or a clef, unless it is the name of a property, as in "clef=bass".
_KEY = re.compile(
    r"([A-Ga-g])([#b♯♭]|\s?(?i:sharp|flat)(?![a-z]))?(\s*)(?:([A-Za-z]+)(?![A-Za-z\d=])|(?![A-Za-z]))"
)
_SHIFTS = {"#": 7, "♯": 7, "sharp": 7, "b": -7, "♭": -7, "flat": -7}
"""By how many fifths an accidental moves a tonic."""
_CLEF_BEFORE = re.compile(r"^(?:clef\s*=\s*\S+|(?:treble|alto|tenor|bass|perc)\S*)(?:\s+|$)", re.I)
_QUOTED = re.compile(r'(?<!clef=)"[^"]*"')
_ACCIDENTAL = re.compile(
    r"(?:(?<![\w=])|(?<=[\^_=][A-Ga-g]))(\^\^|\^|__|_|=)([A-Ga-g])(?![A-Za-z\d])"
)
_PROPERTY = re.compile(r"\b(transpose|octave|t)\s*=\s*([-+]?\d{1,3})")
_PITCH = r"[\^_=]?[A-Ga-g][,']{0,9}"
_SHIFT = re.compile(rf"\b(sound|shift)\s*=\s*({_PITCH})({_PITCH})(?![A-Za-z])")
_OCTAVES = {None: 0, "+8": 12, "-8": -12, "+15": 24, "-15": -24}
_CLEF = re.compile(
    r"(?:\bclef\s*=\s*[\"']?|(?<![\w=]))(treble|alto|tenor|bass|perc|(?<==)none|[GCF](?=\d))\d?([-+](?:8|15))?"
)


def parse_key(text: str) -> dict[str, int] | None:
    """Return by how many semitones a `K:` field alters each step; `None` where it names no key."""
    text = _CLEF_BEFORE.sub("", text.strip())
    alters: dict[str, int] = {}
    found = _KEY.match(text)
    word = (found[4] or "").lower() if found else ""
    mode = "m" if word == "m" else word[:3]
    if text.upper().startswith("HP"):
        # Pipes sound these sharps, whether they are printed (Hp) or not (HP).
        alters, rest = {"F": 1, "C": 1}, text[2:]
    elif text.lower().startswith("none"):
        rest = text[4:]
    elif found and (mode in _MODES or found[3] or found[1].isupper()):
        fifths = _SHARPS.index(found[1].upper()) - 1 + _MODES.get(mode, 0)
        fifths += _SHIFTS.get((found[2] or "").strip().lower(), 0)
        signs = _SHARPS * 2 if fifths > 0 else _SHARPS[::-1] * 2
        for letter in signs[: abs(fifths)]:
            alters[letter] = alters.get(letter, 0) + (1 if fifths > 0 else -1)
        rest = text[found.end() if mode in _MODES else found.start(4) :]
    elif _ACCIDENTAL.search(text):
        rest = text
    else:
        return None
    if re.match(r"\s*exp\b", rest):
        alters = {}
    for sign, letter in _ACCIDENTAL.findall(rest):
        alters[letter.upper()] = _ALTERS[sign]
    return alters


def parse_moves(text: str) -> dict[str, int]:
    """Semitones by which a `K:` or `V:` field transposes notes, by the property that says so."""
    text = _QUOTED.sub('""', text)
    moves: dict[str, int] = {}
    for name, number in _PROPERTY.findall(text):
        octave = name == "octave"
        moves["octave" if octave else "transpose"] = int(number) * (12 if octave else 1)
    for name, low, high in _SHIFT.findall(text):
        moves[name] = _number(high) - _number(low)
    clef = _CLEF.search(text)
    return moves if clef is None else moves | {"clef": _OCTAVES[clef[2]]}


def is_drum_clef(text: str) -> bool | None:
    """Whether a `K:` or `V:` field has the clef of drums; `None` where it has no clef."""
    clef = _CLEF.search(_QUOTED.sub('""', text))
    return None if clef is None else clef[1] == "perc"


def _number(pitch: str) -> int:
    """MIDI number of a pitch such as "_B,"."""
    note = parse_note(pitch)
    return 12 * note.octave + STEPS[note.step] + (note.alter or 0) if note else 0


# ---- titles ------------------------------------------------------------------------------------

_ACCENTS = {"`": "\u0300", "'": "\u0301", "^": "\u0302", "~": "\u0303", '"': "\u0308"}
_ACCENTS |= {"c": "\u0327", "v": "\u030c", "H": "\u030b", "u": "\u0306"}
"""Combining characters by the sign that a backslash and a letter enclose."""
_LETTERS = {"AA": "Å", "aa": "å", "AE": "Æ", "ae": "æ", "OE": "Œ", "oe": "œ", "/O": "Ø", "/o": "ø"}
_LETTERS |= {"DH": "Ð", "dh": "ð", "TH": "Þ", "th": "þ", "ss": "ß", "%": "%", "&": "&", "\\": "\\"}
_ESCAPE = re.compile(
    rf"\\u(?P<code>[\dA-Fa-f]{{4}})|\\(?P<letter>{'|'.join(map(re.escape, _LETTERS))})"
    r"|\\(?P<accent>[`'^~\"cvHu])(?P<base>[A-Za-z])|&#?\w{2,8};"
)


def decode_escapes(text: str) -> str:
    r"""Replace what stands for a character in a text, such as `\'e`, `\u00e9` or `&eacute;`."""

    def character(found: re.Match[str]) -> str:
        if found["letter"]:
            return _LETTERS[found["letter"]]
        if found["accent"]:
            return normalize("NFC", found["base"] + _ACCENTS[found["accent"]])
        return unescape(f"&#x{found['code']};" if found["code"] else found[0])

    return _ESCAPE.sub(character, text)


# ---- notes -------------------------------------------------------------------------------------

LENGTH = r"(?:\d{0,9}/{1,6}\d{0,9}|\d{1,9})?"
ABC_NOTE = rf"(?:(?:\^\^|\^|__|_|=)(?:\d{{0,3}}/\d{{0,3}})?)?[A-Ga-g][,']*{LENGTH}"
"""Pattern of a note with its length."""
IN_NOTE = re.compile(
    r"(?:(?P<sign>\^\^|\^|__|_|=)(?P<share>\d{0,3}/\d{0,3})?)?(?P<letter>[A-Ga-g])(?P<octave>[,']*)"
    rf"(?P<length>{LENGTH})(?P<tie>-?)"
)
"""Pattern of a note with its tie, with a named group for each part."""


class AbcNote(NamedTuple):
    """A note as written."""

    step: str
    octave: int
    alter: int | None
    length: str
    ties: bool


@lru_cache(4096)
def parse_note(text: str) -> AbcNote | None:
    """Parse a note such as "^c'3/2-"; `None` where the text is not a note."""
    found = IN_NOTE.fullmatch(text)
    if found is None:
        return None
    letter, marks = found["letter"], found["octave"]
    octave = 5 + letter.islower() + marks.count("'") - marks.count(",")
    alter = _ALTERS[found["sign"]] if found["sign"] else None
    if alter and found["share"]:
        # Microtones, such as "^3/2" or "_/", which stands for "_1/2".
        over, _, under = found["share"].partition("/")
        alter = round(Fraction(alter * int(over or 1), int(under or 2) or 1))
    return AbcNote(letter.upper(), octave, alter, found["length"], bool(found["tie"]))


@lru_cache(4096)
def parse_length(length: str, unit: Time) -> Time:
    """Return a length such as "3/2", "/" or "//" in ticks; an empty one is one `unit`."""
    over, _, under = length.partition("/")
    slashes, under = length.count("/"), under.lstrip("/")
    divisor = int(under) if under else 2**slashes
    return to_time(Fraction(unit * int(over or 1), divisor)) if divisor else 0


# ---- macros ------------------------------------------------------------------------------------

_MOST_MACROS, _LONGEST_TARGET, _LONGEST_MACRO = 100, 31, 999
_NO_MACRO = r'"[^"\n]*"|\[[A-Za-z]:[^\]\n]*\]|![^!\n]*!'
_SCALE = "CDEFGAB"


def add_macro(macros: dict[str, str], text: str) -> None:
    """Take a field such as "~G2 = {A}G{F}G", or "~n2 = {o}n{m}n" for any note `n`.

    Without limits to their number and length, hostile text could grow by the square of its length.
    """
    target, equals, meaning = (word.strip() for word in text.partition("="))
    fits = len(target) <= _LONGEST_TARGET and len(text) <= _LONGEST_MACRO
    if target and equals and fits and len(macros) < _MOST_MACROS:
        macros[target] = meaning


def expand_macros(line: str, macros: dict[str, str], room: int) -> str:
    """Return a line of music with its macros written out; texts, decorations and fields stay.

    Raises `RejectedError` where the macros take more than `room` characters.
    """
    if not macros:
        return line
    targets = sorted(macros, key=len, reverse=True)
    patterns = [
        f"(?P<m{i}>{re.escape(target).replace('n', f'(?P<n{i}>[A-Ga-g][,{chr(39)}]*)', 1)})"
        for i, target in enumerate(targets)
    ]

    def meaning(found: re.Match[str]) -> str:
        nonlocal room
        if found.lastgroup is None:
            return found[0]
        number = found.lastgroup[1:]
        text = macros[targets[int(number)]]
        room -= len(text)
        if room < 0:
            raise RejectedError("too large", "its macros are too long, written out")
        note = found.groupdict().get(f"n{number}")
        if note is None:
            return text
        return re.sub(
            rf"{_NO_MACRO}|([h-z])",
            lambda sign: _moved(note, sign[1]) if sign[1] else sign[0],
            text,
        )

    return re.sub("|".join([_NO_MACRO, *patterns]), meaning, line)


def _moved(note: str, letter: str) -> str:
    """Return a note as many steps of the scale above `note` as `letter` comes after "n"."""
    octave = note.islower() + note.count("'") - note.count(",")
    octaves, step = divmod(7 * octave + _SCALE.index(note[0].upper()) + ord(letter) - ord("n"), 7)
    return _SCALE[step] + ("'" * octaves if octaves > 0 else "," * -octaves)
