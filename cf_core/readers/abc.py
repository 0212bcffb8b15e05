"""Reads ABC as its standard 2.1 defines it, and the common deviations of older files.

The standard is Walshaw, Guido et al., "The ABC music standard 2.1" (2011). Each voice of a tune
becomes a list of `Measure`, which `score` plays out.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

from cf_core.melody import Melody
from cf_core.readers.abc_notation import (
    ABC_NOTE,
    IN_NOTE,
    LENGTH,
    AbcNote,
    add_macro,
    decode_escapes,
    expand_macros,
    parse_length,
    parse_note,
)
from cf_core.readers.abc_voice import Voice
from cf_core.readers.limits import (
    MAX_BARS,
    MAX_TITLE,
    MAX_TUNE,
    RejectedError,
    choose_part,
    list_names,
)
from cf_core.readers.score import TICKS, order_measures, play


def read(song_id: str, text: str, part: str | None) -> Melody:
    """Read one tune; `part` is the name of a voice, or its number from 1.

    Raises `RejectedError` where there is no such voice, where the tune has several and `part` is
    `None`, and where the tune is empty or absurdly long.
    """
    tune = _Tune(text)
    voices = [voice for voice in tune.voices.values() if voice.notes]
    if not tune.has_key:
        raise RejectedError("unreadable", "no K: field, after which the music would begin")
    if not voices:
        empty = _EMPTY_BODY.search(text)
        why = "an empty line after its K: field ends the tune; remove the line" if empty else ""
        drums = any(voice.percussion for voice in tune.voices.values())
        raise RejectedError("no notes", "percussion only" if drums else why)
    names = [voice.name for voice in voices]
    if part is None and len(voices) > 1:
        raise RejectedError("several parts", list_names(names))
    named = tune.voices.get(part or "")
    if part is None or named not in voices or part in names or part.isdecimal():
        voice = voices[0 if part is None else choose_part(names, part)]
    else:
        voice = named
    for other in tune.voices.values():
        for measure, beside in zip(voice.measures, other.measures, strict=False):
            measure.tempos = measure.tempos or beside.tempos
    return play(song_id, tune.title or song_id, voice.measures, tune.order(voice))


_EMPTY_BODY = re.compile(r"^[ \t]*K:.*\n[ \t]*\n+[ \t]*(?![A-Za-z+]:)\S", re.MULTILINE)
"""A header, and after an empty line something that may be its music."""


# ---- lines -------------------------------------------------------------------------------------

# A line such as "C:|" is music: a letter before a repeat sign is a note, not the name of a field.
_FIELD = re.compile(r"(?P<name>[A-Za-z+]):(?!(?<=[A-Ga-gxzXZ]:)\s*[:|\]])(?P<value>.*)")
_COMMENT = re.compile(r"(?<!\\)%.*")
_BESIDE_MUSIC = re.compile(
    r'"[^"]{0,999}"|![^!]{0,999}!|\+[^+]{0,999}\+|\{[^}]{0,999}\}|\[[A-Za-z]:[^]]{0,999}\]'
)
"""Texts, decorations, graces and fields within a line of music."""
_PROSE = re.compile(r"[h-wyH-WY]{2}|^(?!.*[A-Ga-gxzXZ])[\s|:\[\]]*[^\s|:\[\]]")
"""Two letters that hardly ever stand side by side in music, or what is no note, rest or bar line,
without a note or a rest."""


class _Line(NamedTuple):
    """A field's letter and content, or a line of music, whose letter is empty."""

    field: str
    text: str


def _lines(text: str) -> Iterator[_Line]:
    """Yield fields and music, without comments, text blocks and what follows a blank line.

    Some programs leave a blank line between a header and its music. That line ends nothing, unless
    what follows is prose, a title or a key.
    """
    in_block = in_body = has_music = is_apart = False
    for line in text.split("\n"):
        if line.startswith("%%"):
            in_block = line.startswith("%%begin") or (in_block and not line.startswith("%%end"))
            yield _Line("I", line[2:])
            continue
        if in_block:
            continue
        if in_body and not line.strip():
            if has_music:
                return
            is_apart = True
            continue
        stripped = _COMMENT.sub("", line)
        found = _FIELD.match(stripped.lstrip())
        if is_apart and not has_music and stripped.strip() and _is_alien(stripped, found):
            return
        if found is None:
            # A line that holds a comment alone counts as if it were not there.
            if in_body and stripped.strip():
                has_music = True
                yield _Line("", stripped)
            continue
        yield _Line(found["name"], found["value"].strip())
        in_body = in_body or found["name"] == "K"


def _joined(lines: Iterator[_Line]) -> Iterator[_Line]:
    """Join each field with the `+:` lines that continue it."""
    last: _Line | None = None
    for line in lines:
        if last is not None and last.field and line.field == "+":
            last = _Line(last.field, f"{last.text} {line.text}")
            continue
        if last is not None:
            yield last
        last = line
    if last is not None:
        yield last


def _is_alien(line: str, field: re.Match[str] | None) -> bool:
    """Whether a line after a header and a blank line does not belong to its tune."""
    if field is not None:
        return field["name"] in "TK"
    return _PROSE.search(_BESIDE_MUSIC.sub("", line)) is not None


# ---- tunes -------------------------------------------------------------------------------------

# Without limits to their repetitions, hostile text would take the square of its length.
_NUMBERS = r"\d(?:\d|\ {0,9}[,-]\ {0,9}(?=\d))*"
"""Numbers of an ending, such as "1" or "1,3-4"."""
_TOKEN = re.compile(
    rf"""
    "(?P<words>(?:\\"|[^"\n]){{0,999}})"
    | \[(?P<inline>[A-Za-z]:[^\]\n]{{0,999}})\]
    | (?P<bar>(?:\[(?=[|:])|(?<=[|:])\]|:\ +(?=[|:])|[|:])+)(?:\ *(?P<number>{_NUMBERS}))?
    | \[\ *(?P<variant>{_NUMBERS}|"[^"\n]{{0,99}}"(?![^\[\]|\n]{{0,999}}\]))
    | \[(?P<chord>[^\]|\n]{{0,999}})\](?P<chord_length>{LENGTH})
    | !(?P<decoration>[^!|\s:\[\]]{{1,99}}|(?i:d\.?[cs]|dal?\b|to\b|fine)[^!|\n]{{0,99}})!
    | \+(?P<plus>[^+|\s]{{1,99}})\+(?P<plus_length>{LENGTH})
    | \{{[^}}\n]{{0,999}}\}}
    | (?P<overlaid>\(&)
    | \((?P<tuplet>[2-9]|\d{{1,2}}(?=:))(?::(?P<time_of>\d{{0,2}}))?(?::(?P<count>\d{{0,2}}))?
    | (?P<note>{ABC_NOTE})
    | (?P<letter>[H-Wh-w~])
    | (?P<rest>[zx])(?P<rest_length>{LENGTH})
    | (?P<bars_rest>[ZX])(?P<bars>\d{{0,9}})
    | (?P<broken><{{1,3}}|>{{1,3}})
    | (?P<tie>-)
    | (?P<overlay>&\)|&+)
    | [yY]\d*
    | .
    """,
    re.VERBOSE,
)
_SIGN_APART = re.compile(r"(\^\^?|__?|=)((?:![^!|\s]{1,99}!){1,9})(?=[A-Ga-g])")
"""An accidental that a decoration separates from its note."""
_TYPED = {0x2013: "-", 0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x201E: '"'}
"""What was typed, where a word processor has put a typographer's sign."""
_LINE_BREAK = re.compile(r"linebreak\b.*!|decoration\s*\+")
"""A directive after which "!" is no decoration; these stand between "+" then."""
_LETTERS = {"O": "coda", "S": "segno"}
"""Meaning of the letters that affect the order of play."""


class _Tune:
    """One tune, read line by line: its title, its voices and the order of its parts."""

    def __init__(self, text: str) -> None:
        self.title = ""
        self.voices: dict[str, Voice] = {}
        self._header = self._voice = Voice("1")
        """Every voice starts with the header's settings at the time when its music begins."""
        self._declared: dict[str, str] = {}
        self._directives: dict[str, list[str]] = {}
        """What a header says of voices: in their `V:` fields, and in directives after these."""
        self._parts = ""
        self._letters = dict(_LETTERS)
        self._macros: dict[str, str] = {}
        self._breaks_lines = False
        """Whether "!" is a line break, and so encloses no decoration."""
        self._room = 8 * MAX_TUNE
        """Characters that its music may still have, macros written out."""
        for line in _joined(_lines(text)):
            if line.field:
                self._field(line.field, line.text)
            else:
                self._music(line.text)
        for voice in self.voices.values():
            voice.overlay("&)")
            voice.finish()

    @property
    def has_key(self) -> bool:
        """Whether a `K:` field has ended the header, so that there is a body."""
        return self._header.begun

    @property
    def _in_header(self) -> bool:
        return self._voice is self._header and not self._header.begun

    def order(self, voice: Voice) -> list[int]:
        """Order in which a voice's measures are played: parts by `P:`, each by its own signs."""
        blocks: dict[str, list[int]] = {}
        for index, label in enumerate(voice.labels):
            blocks.setdefault(label, []).append(index)
        parts = [part for part in _in_sequence(self._parts) if part in blocks]
        if not parts:
            return order_measures(voice.measures)
        order: list[int] = []
        for part in ["", *parts]:
            block = blocks.get(part, [])
            # "D.C." only says in print what the order of parts says.
            measures = [replace(voice.measures[index], jump=None) for index in block]
            order += [block[index] for index in order_measures(measures)]
        return order[: MAX_BARS + 1]

    # ---- fields

    def _field(self, name: str, text: str) -> None:
        if name == "V":
            self._take_voice(text)
        elif name == "P":
            self._take_part(text)
        elif name == "T":
            self.title = self.title or " ".join(decode_escapes(text).split())
        elif name == "U":
            letter, _, meaning = text.partition("=")
            self._letters[letter.strip()] = meaning.strip().strip("!+")
        elif name == "m":
            add_macro(self._macros, text)
        elif name == "I":
            self._breaks_lines |= _LINE_BREAK.match(text) is not None
            found = re.match(r"propagate-accidentals\s+(not|octave|pitch)", text)
            self._voice.propagation = found[1] if found else self._voice.propagation
            if self._in_header and self._directives:
                self._directives[next(reversed(self._directives))].append(text)
            else:
                self._voice.set_playback(text)
        elif name in _SETTINGS:
            _SETTINGS[name](self._voice, text)

    def _take_voice(self, text: str) -> None:
        name, about = (*text.split(None, 1), "", "")[:2]
        self._declared[name] = f"{self._declared.get(name, '')} {about}"
        if self._in_header:
            self._directives[name] = self._directives.pop(name, [])
        else:
            self._voice = self._voice_of(name)
            self._voice.move(about)

    def _voice_of(self, name: str) -> Voice:
        """Return a voice by its name; create it where its first music comes."""
        if name not in self.voices:
            about = self._declared.get(name, "")
            found = re.search(r'\b(?:name|nm)\s*=\s*(?:"([^"]*)"|(\S+))', about)
            title = (found[1] or found[2]) if found else name
            self.voices[name] = Voice(title or name, self._header)
            self.voices[name].move(about)
            for directive in self._directives.get(name, []):
                self.voices[name].set_playback(directive)
        return self.voices[name]

    def _take_part(self, text: str) -> None:
        if not self._header.begun:
            self._parts = text
            return
        for voice in (self._header, *self.voices.values()):
            voice.close()
            voice.label = text[:1]

    # ---- music

    def _music(self, line: str) -> None:
        if self._voice is self._header:
            self._voice = self._voice_of(next(iter(self._declared), "1"))
        line = line.replace("!", " ") if self._breaks_lines else line
        line = _SIGN_APART.sub(r"\2\1", line.translate(_TYPED))
        text = expand_macros(line, self._macros, self._room)
        self._room -= len(text)
        for token in _TOKEN.finditer(text):
            if token.lastgroup is not None:
                self._token(token)

    def _token(self, token: re.Match[str]) -> None:  # noqa: C901  (a case for each kind)
        """Apply one token; most are notes and bar lines."""
        voice = self._voice
        match token.lastgroup:
            case "note":
                note = parse_note(token["note"])
                voice.element([note] if note else [], note.length if note else "")
            case "bar" | "number":
                voice.bar_line(token["bar"])
                if token["number"]:
                    voice.ending(token["number"])
            case "rest_length":
                voice.element([], token["rest_length"])
            case "chord_length":
                self._chord(token["chord"], token["chord_length"])
            case "plus_length" if _CHORD.fullmatch(token["plus"]):
                self._chord(token["plus"], token["plus_length"])
            case "bars":
                voice.rest_for_bars(int(token["bars"] or 1))
            case "variant":
                voice.ending(token["variant"])
            case "inline":
                self._field(token["inline"][0], token["inline"][2:].strip())
            case "tuplet" | "time_of" | "count":
                sizes = (token["tuplet"], token["time_of"], token["count"])
                voice.tuplet(*(int(size or 0) for size in sizes))
            case "broken":
                voice.broken(token["broken"])
            case _:
                self._mark(token)

    def _mark(self, token: re.Match[str]) -> None:
        """Apply a token that stands between notes, or over them."""
        voice = self._voice
        match token.lastgroup:
            case "tie":
                voice.tie()
            case "overlay" | "overlaid":
                voice.overlay(token[0])
            case "letter":
                voice.sign(self._letters.get(token["letter"], ""))
            case "decoration":
                voice.sign(token["decoration"])
            case "plus_length":
                voice.sign(token["plus"])
            case "words" if token["words"].startswith(tuple("^_<>@")):
                voice.sign(token["words"][1:])

    def _chord(self, text: str, length: str) -> None:
        """Add notes that sound together, all as long as the first; unisons are added once."""
        text = _BESIDE_NOTES.sub(" ", text)
        written = [note for found in IN_NOTE.finditer(text) if (note := parse_note(found[0]))]
        heard: dict[tuple[str, int, int | None], AbcNote] = {}
        for note in written:
            name = (note.step, note.octave, note.alter)
            ties = note.ties or (name in heard and heard[name].ties)
            heard[name] = note._replace(ties=ties)
        notes = list(heard.values())
        if notes:
            times = Fraction(parse_length(length, TICKS), TICKS) if length else None
            self._voice.element(notes, notes[0].length, times)


_CHORD = re.compile(rf"(?!f+$)(?:{ABC_NOTE})+")
"""Notes between two "+"; one or several "f" alone are a dynamic mark."""
_BESIDE_NOTES = re.compile(r'"[^"]*"|![^!]*!|\+[^+]*\+|\{[^}]*\}')
"""Annotations, decorations and graces within a chord."""
_SETTINGS: dict[str, Callable[[Voice, str], None]] = {
    "K": Voice.set_key,
    "L": Voice.set_unit,
    "M": Voice.set_meter,
    "Q": Voice.set_tempo,
}


def _in_sequence(text: str) -> list[str]:
    """List parts in the order that a `P:` field such as "A2(BC)3" gives; at most `MAX_BARS`."""
    text = re.sub(r"[^A-Za-z0-9()]", "", text)[:MAX_TITLE]
    while found := re.search(r"\(([A-Za-z0-9]*)\)(\d*)|([A-Za-z])(\d{1,2})", text):
        repeated = found[1] if found[3] is None else found[3]
        count = min(int((found[2] if found[3] is None else found[4])[:2] or 1), MAX_BARS)
        text = (text[: found.start()] + repeated * count + text[found.end() :])[:MAX_BARS]
    return [letter for letter in text if letter.isalpha()]
