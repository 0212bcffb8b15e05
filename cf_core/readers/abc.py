"""ABC, as its standard 2.1 has it, with the habits of older files.

The standard is that of Walshaw, Guido et al., "The ABC music standard 2.1" (2011). A tune becomes a
list of `Measure` for each of its voices, which `score` plays out.
"""

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from cf_core.melody import Melody, bar_length
from cf_core.readers.limits import (
    LONGEST_BAR,
    MAX_BARS,
    MAX_MEASURES,
    MAX_NOTES,
    MAX_TITLE,
    RejectedError,
    chosen,
    listed,
)
from cf_core.readers.score import (
    MAX_TIMES,
    TICKS,
    Measure,
    Time,
    Written,
    exact,
    full_bar,
    mark,
    meter_of,
    numbers,
    play_order,
    played,
    quarters,
)


def read(song_id: str, text: str, part: str | None) -> Melody:
    """Read one tune; `part` names a voice, or counts it from 1.

    Raises `RejectedError` where there is no such voice, none is named of several, or the tune is
    empty or absurdly long.
    """
    tune = _Tune(text)
    voices = [voice for voice in tune.voices.values() if voice.notes]
    if not tune.has_key:
        raise RejectedError("unreadable", "no K: field, after which the music would begin")
    if not voices:
        raise RejectedError("no notes")
    names = [voice.name for voice in voices]
    if part is None and len(voices) > 1:
        raise RejectedError("several parts", listed(names))
    named = tune.voices.get(part or "")
    if part is None or named not in voices or part in names or part.isdecimal():
        voice = voices[0 if part is None else chosen(names, part)]
    else:
        voice = named
    return played(song_id, tune.title or song_id, voice.measures, tune.order(voice))


# ---- lines -------------------------------------------------------------------------------------

# A line such as "C:|" is music: no note is a field whose content is a bar line.
_FIELD = re.compile(r"(?P<name>[A-Za-z+]):(?!(?<=[A-Ga-gxzXZ]:)\s*[:|\]])(?P<value>.*)")
_COMMENT = re.compile(r"(?<!\\)%.*")


class _Line(NamedTuple):
    """A field's letter and content, or a line of music, whose letter is empty."""

    field: str
    text: str


def _lines(text: str) -> Iterator[_Line]:
    """Yield fields and music: no comments, no text blocks, nothing after the tune's blank line."""
    in_block = in_body = False
    for line in text.split("\n"):
        if line.startswith("%%"):
            in_block = line.startswith("%%begin") or (in_block and not line.startswith("%%end"))
            yield _Line("I", line[2:])
            continue
        if in_block:
            continue
        if in_body and not line.strip():
            return
        stripped = _COMMENT.sub("", line)
        found = _FIELD.match(stripped.lstrip())
        if found is None:
            if in_body:
                yield _Line("", stripped)
            continue
        yield _Line(found["name"], found["value"].strip())
        in_body = in_body or found["name"] == "K"


# ---- keys --------------------------------------------------------------------------------------

_SHARPS = "FCGDAEB"
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_MODES = {"": 0, "maj": 0, "ion": 0, "m": -3, "min": -3, "aeo": -3}
_MODES |= {"mix": -1, "dor": -2, "phr": -4, "lyd": 1, "loc": -5}
_ALTERS = {"^^": 2, "^": 1, "=": 0, "_": -1, "__": -2}
# A word is a mode or a clef, but not if it is a property, such as "clef=bass".
_KEY = re.compile(r"([A-Ga-g])([#b♯♭]?)(\s*)(?:([A-Za-z]+)(?!=)\b|(?![A-Za-z]))")
_QUOTED = re.compile(r'(?<!clef=)"[^"]*"')
_ACCIDENTAL = re.compile(r"(?<![\w=])(\^\^|\^|__|_|=)([A-Ga-g])(?![\w=])")
_PROPERTY = re.compile(r"\b(transpose|octave|t)\s*=\s*([-+]?\d{1,3})")
_CLEF = re.compile(
    r"(?:\bclef\s*=\s*[\"']?|(?<![\w=]))(?:treble|alto|tenor|bass|perc|(?<==)none|[GCF](?=\d))\d?([-+]8)?"
)


def _signature(text: str) -> dict[str, int] | None:
    """Return how a `K:` field alters each step; `None` where it names no key."""
    text = text.strip()
    alters: dict[str, int] = {}
    found = _KEY.match(text)
    word = (found[4] or "").lower() if found else ""
    mode = "m" if word == "m" else word[:3]
    if text.startswith(("HP", "Hp")):
        alters, rest = ({"F": 1, "C": 1} if text[1] == "p" else {}), text[2:]
    elif text.lower().startswith("none"):
        rest = text[4:]
    elif found and (mode in _MODES or found[3]):
        fifths = _SHARPS.index(found[1].upper()) - 1 + _MODES.get(mode, 0)
        fifths += {"#": 7, "♯": 7, "b": -7, "♭": -7}.get(found[2], 0)
        alters = dict.fromkeys(_SHARPS[: max(fifths, 0)], 1)
        alters |= dict.fromkeys(_SHARPS[fifths:] if fifths < 0 else "", -1)
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


def _moves(text: str) -> dict[str, int]:
    """Semitones by which a `K:` or `V:` field moves its notes, by what moves them."""
    text = _QUOTED.sub('""', text)
    moves: dict[str, int] = {}
    for name, number in _PROPERTY.findall(text):
        octave = name == "octave"
        moves["octave" if octave else "transpose"] = int(number) * (12 if octave else 1)
    clef = _CLEF.search(text)
    return moves if clef is None else moves | {"clef": {None: 0, "+8": 12, "-8": -12}[clef[1]]}


# ---- tokens ------------------------------------------------------------------------------------

_LENGTH = r"(?:\d{0,4}/{1,6}\d{0,4}|\d{1,4})?"
_NOTE = rf"(?:\^\^|\^|__|_|=)?[A-Ga-g][,']*{_LENGTH}"
_TOKEN = re.compile(
    rf"""
    "(?P<words>[^"\n]*)"
    | \[(?P<inline>[A-Za-z]:[^\]\n]*)\]
    | (?P<bar>(?:\[(?=\|)|(?<=\|)\]|:\ +(?=\|)|[|:])+)(?P<number>\d[\d,-]*)?
    | \[\ *(?P<variant>\d[\d,\- ]*|"[^"\n]*")
    | \[(?P<chord>[^\]|\n]*)\](?P<chord_length>{_LENGTH})
    | !(?P<decoration>[^!|\s:\[\]]+|(?i:d\.?[cs]|dal?\b|to\b|fine)[^!|\n]*)!
    | \+(?P<plus>[^+|\s]+)\+
    | \{{[^}}\n]*\}}
    | \((?P<tuplet>\d)(?::(?P<time_of>\d?))?(?::(?P<count>\d?))?
    | (?P<note>{_NOTE})
    | (?P<letter>[H-Wh-w~])
    | (?P<rest>[zx])(?P<rest_length>{_LENGTH})
    | (?P<bars_rest>[ZX])(?P<bars>\d{{0,9}})
    | (?P<broken><{{1,3}}|>{{1,3}})
    | (?P<tie>-)
    | (?P<overlay>&)
    | [yY]\d*
    | .
    """,
    re.VERBOSE,
)
_IN_NOTE = re.compile(
    r"(?P<sign>\^\^|\^|__|_|=)?(?P<letter>[A-Ga-g])(?P<octave>[,']*)"
    rf"(?P<length>{_LENGTH})(?P<tie>-?)"
)
_IN_TIME_OF = {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}
"""So many notes of a tuplet are played in the time of so many; others in that of two or three."""
_LETTERS = {"O": "coda", "S": "segno"}
"""What a letter stands for, of those that matter to the order of play."""


class _Note(NamedTuple):
    """A note as written."""

    step: str
    octave: int
    alter: int | None
    length: str
    ties: bool


@lru_cache(4096)
def _note(text: str) -> _Note | None:
    """Take a note such as "^c'3/2-" apart; `None` where it is none."""
    found = _IN_NOTE.fullmatch(text)
    if found is None:
        return None
    letter, marks = found["letter"], found["octave"]
    octave = 5 + letter.islower() + marks.count("'") - marks.count(",")
    alter = _ALTERS[found["sign"]] if found["sign"] else None
    return _Note(letter.upper(), octave, alter, found["length"], bool(found["tie"]))


@lru_cache(4096)
def _duration(length: str, unit: Time) -> Time:
    """Return a length such as "3/2", "/" or "//" in ticks; a unit where it is empty."""
    over, _, under = length.partition("/")
    slashes, under = length.count("/"), under.lstrip("/")
    divisor = int(under) if under else 2**slashes
    return exact(Fraction(unit * int(over or 1), divisor)) if divisor else 0


class _Element(NamedTuple):
    """The last note, chord or rest: where its notes are in the measure, and how long it is."""

    notes: range
    duration: Time
    alters: dict[tuple[str, int], int]
    """How its notes are altered, by step and octave: a tied note keeps that."""
    ends_tuplet: bool


class _Voice:
    """One voice, as far as it has been read."""

    def __init__(self, name: str, header: "_Voice | None" = None) -> None:
        self.name = name
        self.measures: list[Measure] = []
        self.labels: list[str] = []
        """The part (`P:`) of each measure."""
        self.notes = 0
        self.begun = header is not None
        """Its first `K:` has come, which ends a header."""
        self.label: str = header.label if header else ""
        self.meter: str = header.meter if header else "4/4"
        self.unit: Time | None = header.length_of_unit if header else None
        self.key: dict[str, int] = header.key if header else {}
        self._moves: dict[str, int] = dict(header._moves) if header else {}
        self.propagation: str = header.propagation if header else "pitch"
        self._accidentals: dict[tuple[str, int], int] = {}
        self._tied: dict[tuple[str, int], int] = {}
        self._tuplet, self._tuplet_left = Fraction(1), 0
        self._ending, self._in_endings = 0, False
        self._tied_into_endings: dict[tuple[str, int], int] = {}
        self._begin()
        self.tempo: str = ""
        """What `Q:` said last: in a header, it may stand before the unit that it counts in."""
        if header:
            self.set_tempo(header.tempo)

    def _begin(self) -> None:
        self.measure: Measure = Measure(self.meter)
        self._at: Time = 0
        self._overlaid: Time = 0
        self._last: _Element | None = None
        self._factor: Fraction | None = None

    # ---- fields and signs

    def set_meter(self, text: str) -> None:
        """Take an `M:` field, of this measure if it is still empty, else from the next on."""
        text = {"C": "4/4", "c": "4/4", "C|": "2/2", "c|": "2/2"}.get(text.strip(), text)
        found = _METER.match(text)
        terms = _METER_TERM.findall(found[0]) if found else []
        meter = meter_of([beats for beats, _ in terms], [unit for _, unit in terms])
        if meter is not None and bar_length(meter) > LONGEST_BAR:
            raise RejectedError("too large", f"a time signature of {meter[:MAX_TITLE]}")
        self.meter = meter or self.meter
        if self._is_empty:
            self.measure.meter = self.meter

    def set_unit(self, text: str) -> None:
        """Take an `L:` field."""
        found = re.match(r"(\d{1,3})(?:\s*/\s*(\d{1,3}))?", text)
        if found and int(found[1]) and int(found[2] or 1):
            self.unit = exact(Fraction(4 * TICKS * int(found[1]), int(found[2] or 1)))

    def set_key(self, text: str) -> None:
        """Take a `K:` field: the signature, and how notes are moved."""
        self.begun = True
        signature = _signature(text)
        self.key = self.key if signature is None else signature
        self.move(text)

    def move(self, text: str) -> None:
        """Take what a `K:` or `V:` field says of how notes are moved."""
        self._moves |= _moves(text)

    def set_tempo(self, text: str) -> None:
        """Take a `Q:` field: beats per minute, in units where it names no beat."""
        self.tempo = text
        text = re.sub(r'"[^"]*"', " ", text).strip()
        found = _TEMPO.search(text) or _SPEED.fullmatch(text)
        if found is None:
            return
        about = found.groupdict()
        if about.get("beats"):
            beat = sum(Fraction(*map(int, f.split("/"))) for f in found["beats"].split()) * 4
        else:
            beat = quarters(self.length_of_unit) * int(about.get("units") or 1)
        speed = float(beat * Fraction(found["speed"]))
        if 0 < speed < 10_000:
            self.measure.tempos.append((self._at, speed))

    def sign(self, name: str) -> None:
        """Take a decoration: those that say what is played next are kept."""
        if name == "segno":
            self.measure.segno = True
        elif name == "coda" and self._is_empty:
            self.measure.coda = True
        elif name == "coda":
            self.measure.to_coda = True
        else:
            mark(self.measure, _ABBREVIATED.get(name, name))

    @property
    def length_of_unit(self) -> Time:
        """`L:` in ticks: without it a sixteenth in meters below 3/4, else an eighth."""
        if self.unit is None:
            return TICKS // 4 if full_bar(self.meter) < 3 * TICKS else TICKS // 2
        return self.unit

    @property
    def _is_empty(self) -> bool:
        return not self.measure.length

    # ---- measures

    def close(self) -> None:
        """End the measure, unless it is empty."""
        if self._is_empty:
            return
        if self.measure.length > LONGEST_BAR * TICKS:
            long = self.measure.length / TICKS
            raise RejectedError("too large", f"a bar of {long:.0f} quarter notes")
        if len(self.measures) == MAX_MEASURES:
            raise RejectedError("too large", f"more than {MAX_MEASURES} measures")
        self.measure.notes.sort(key=lambda note: note.offset)
        self.measures.append(self.measure)
        self.labels.append(self.label)
        self._begin()

    def finish(self) -> None:
        """End the voice, or the line at a bar line: signs after the last note belong to it."""
        self.close()
        if self.measures:
            last, now = self.measures[-1], self.measure
            last.jump = last.jump or now.jump
            last.fine, last.to_coda = last.fine or now.fine, last.to_coda or now.to_coda
            now.jump, now.fine, now.to_coda = None, False, False

    def bar_line(self, sign: str) -> None:
        """Take a bar line such as "|", ":|", "::" or "|]"."""
        sign = sign.replace(" ", "")
        if sign == ":":
            return
        self.finish()
        self._accidentals, self._last = {}, None
        if sign.startswith(":") and self.measures:
            colons = len(sign) - len(sign.lstrip(":"))
            self.measures[-1].times = min(colons + 1, MAX_TIMES) if "|" in sign else 2
        self.measure.opens |= sign.endswith(":")
        self.measure.new_section |= "||" in sign or "[" in sign or "]" in sign
        self._in_endings &= not (self.measure.opens or self.measure.new_section)

    def ending(self, which: str) -> None:
        """Begin an ending, such as "1" or "1,3-4"."""
        self.close()
        self._ending = max(numbers(which), default=self._ending + 1)
        if 1 in numbers(which) or not self._in_endings:
            self._tied_into_endings = dict(self._tied)
        else:
            self._tied = dict(self._tied_into_endings)
        self._in_endings = True
        self.measure.ending = numbers(which) or frozenset([self._ending])

    def rest_for_bars(self, count: int) -> None:
        """Rest for whole bars, the first of which is this measure."""
        for number in range(min(count, MAX_MEASURES + 1)):
            if number:
                self.close()
            self._move(full_bar(self.meter))

    # ---- notes

    def element(self, notes: list[_Note], length: str, times: Fraction | None = None) -> None:
        """Add a note, several that sound together, or, without any, a rest.

        It is `length` long, or as many `times` that.
        """
        duration = _duration(length, self.length_of_unit)
        for factor in (times, self._factor, self._tuplet if self._tuplet_left else None):
            duration = duration if factor is None else exact(duration * factor)
        tied, self._tied, self._factor = self._tied, {}, None
        alters: dict[tuple[str, int], int] = {}
        first = len(self.measure.notes)
        for note in notes if duration else []:
            pitch = self._pitch(note, tied, alters)
            self.measure.notes.append(Written(self._at, duration, pitch, note.ties))
            if note.ties:
                self._tied |= alters
        sounding = range(first, len(self.measure.notes))
        self._last = _Element(sounding, duration, alters, self._tuplet_left == 1)
        self._tuplet_left = max(self._tuplet_left - 1, 0)
        self.notes += len(sounding)
        if self.notes > MAX_NOTES:
            raise RejectedError("too large", f"more than {MAX_NOTES} notes")
        self._move(duration)

    def _move(self, duration: Time) -> None:
        self._at = exact(self._at + duration)
        self.measure.length = max(self._at, self._overlaid) if self._overlaid else self._at

    def _pitch(
        self, note: _Note, tied: dict[tuple[str, int], int], alters: dict[tuple[str, int], int]
    ) -> int:
        """MIDI number of a note: its accidental holds in all octaves to the bar line."""
        place = (note.step, note.octave)
        name = place if self.propagation == "octave" else (note.step, 0)
        alter = note.alter
        if alter is None:
            alter = tied.get(place, self._accidentals.get(name, self.key.get(note.step, 0)))
        elif self.propagation != "not":
            self._accidentals[name] = alter
        alters[place] = alter
        pitch = 12 * note.octave + _STEPS[note.step] + alter + sum(self._moves.values())
        if not 0 <= pitch <= 127:
            where = f"{note.step} in octave {note.octave}"
            raise RejectedError("unreadable", f"a note that MIDI has not: {where}")
        return pitch

    def tie(self) -> None:
        """Tie the last element to the next one."""
        if self._last is None:
            return
        for index in self._last.notes:
            self.measure.notes[index] = self.measure.notes[index]._replace(starts_tie=True)
        self._tied = self._last.alters

    def broken(self, sign: str) -> None:
        """Lengthen the last element at the cost of the next one, or the other way round.

        Between a tuplet and what follows it the sign has no meaning.
        """
        if self._last is None or self._last.ends_tuplet:
            return
        short = Fraction(1, 2 ** len(sign))
        mine, self._factor = (2 - short, short) if sign[0] == ">" else (short, 2 - short)
        for index in self._last.notes:
            note = self.measure.notes[index]
            self.measure.notes[index] = note._replace(duration=exact(note.duration * mine))
        self._move(self._last.duration * (mine - 1))
        self._last = self._last._replace(duration=exact(self._last.duration * mine))

    def tuplet(self, size: int, time_of: int, count: int) -> None:
        """Begin a tuplet: `size` notes in the time of `time_of`, for the next `count` notes."""
        compound = self.meter in ("6/8", "9/8", "12/8")
        time_of = time_of or _IN_TIME_OF.get(size, 3 if compound else 2)
        self._tuplet, self._tuplet_left = Fraction(time_of, size or 1), count or size

    def overlay(self) -> None:
        """Go back to the start of the measure: what follows sounds at the same time."""
        self._overlaid = self.measure.length
        self._at, self._last = 0, None


_METER_TERM = re.compile(r"(\d[\d+\s]*)\)?\s*/\s*(\d{1,3})")
_METER = re.compile(rf"[(\s]*{_METER_TERM.pattern}(?:\s*\+\s*\(?{_METER_TERM.pattern})*")
_SPEED = re.compile(r"(?P<speed>\d{1,4}(?:\.\d{1,4})?)")
_TEMPO = re.compile(
    rf"(?:(?P<beats>(?:\d{{1,3}}/[1-9]\d{{0,2}}\s*)+)|C(?P<units>\d{{0,2}})\s*)=\s*{_SPEED.pattern}"
)
_ABBREVIATED = {"dacapo": "D.C.", "dacoda": "to coda", "D.C.alfine": "D.C.", "D.S.alfine": "D.S."}


# ---- tunes -------------------------------------------------------------------------------------


class _Tune:
    """One tune, read line by line: its title, its voices and the order of its parts."""

    def __init__(self, text: str) -> None:
        self.title = ""
        self.voices: dict[str, _Voice] = {}
        self._header = self._voice = _Voice("1")
        """Voices begin as the header is when their music begins."""
        self._declared: dict[str, str] = {}
        self._parts = ""
        self._letters = dict(_LETTERS)
        for line in _lines(text):
            if line.field:
                self._field(line.field, line.text)
            else:
                self._music(line.text)
        for voice in self.voices.values():
            voice.finish()

    @property
    def has_key(self) -> bool:
        """Whether the header ends, so that there is a body."""
        return self._header.begun

    def order(self, voice: _Voice) -> list[int]:
        """Order in which a voice's measures are played: that of `P:`, and in each part its own."""
        blocks: dict[str, list[int]] = {}
        for index, label in enumerate(voice.labels):
            blocks.setdefault(label, []).append(index)
        parts = [part for part in _in_sequence(self._parts) if part in blocks]
        if not parts:
            return play_order(voice.measures)
        order: list[int] = []
        for part in ["", *parts]:
            block = blocks.get(part, [])
            order += [block[index] for index in play_order([voice.measures[i] for i in block])]
        return order[: MAX_BARS + 1]

    # ---- fields

    def _field(self, name: str, text: str) -> None:
        if name == "V":
            self._take_voice(text)
        elif name == "P":
            self._take_part(text)
        elif name == "T":
            self.title = self.title or " ".join(text.split())
        elif name == "U":
            letter, _, meaning = text.partition("=")
            self._letters[letter.strip()] = meaning.strip().strip("!+")
        elif name == "I":
            found = re.match(r"propagate-accidentals\s+(not|octave|pitch)", text)
            self._voice.propagation = found[1] if found else self._voice.propagation
        elif name in _SETTINGS:
            _SETTINGS[name](self._voice, text)

    def _take_voice(self, text: str) -> None:
        name, about = (*text.split(None, 1), "", "")[:2]
        in_header = self._voice is self._header and not self._header.begun
        self._declared[name] = f"{self._declared.get(name, '')} {about}"
        if not in_header:
            self._voice = self._voice_of(name)
            self._voice.move(about)

    def _voice_of(self, name: str) -> _Voice:
        """Return a voice by its name, begun anew where its first music comes."""
        if name not in self.voices:
            about = self._declared.get(name, "")
            found = re.search(r'\b(?:name|nm)\s*=\s*(?:"([^"]*)"|(\S+))', about)
            title = (found[1] or found[2]) if found else name
            self.voices[name] = _Voice(title or name, self._header)
            self.voices[name].move(about)
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
        for token in _TOKEN.finditer(line):
            if token.lastgroup is not None:
                self._token(token)

    def _token(self, token: re.Match[str]) -> None:  # noqa: C901  (a case for each kind)
        """Take one token; most are notes and bar lines."""
        voice = self._voice
        match token.lastgroup:
            case "note":
                note = _note(token["note"])
                voice.element([note] if note else [], note.length if note else "")
            case "bar" | "number":
                voice.bar_line(token["bar"])
                if token["number"]:
                    voice.ending(token["number"])
            case "rest_length":
                voice.element([], token["rest_length"])
            case "chord_length":
                self._chord(token["chord"], token["chord_length"])
            case "plus" if _CHORD.fullmatch(token["plus"]):
                self._chord(token["plus"], "")
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
        """Take a token that stands between notes, or over them."""
        voice = self._voice
        match token.lastgroup:
            case "tie":
                voice.tie()
            case "overlay":
                voice.overlay()
            case "letter":
                voice.sign(self._letters.get(token["letter"], ""))
            case "decoration" | "plus":
                voice.sign(token[token.lastgroup])
            case "words" if token["words"].startswith(tuple("^_<>@")):
                voice.sign(token["words"][1:])

    def _chord(self, text: str, length: str) -> None:
        """Notes that sound together, in unison only once, are as long as the first of them."""
        written = [note for found in _IN_NOTE.finditer(text) if (note := _note(found[0]))]
        heard: dict[tuple[str, int, int | None], _Note] = {}
        for note in written:
            name = (note.step, note.octave, note.alter)
            ties = note.ties or (name in heard and heard[name].ties)
            heard[name] = note._replace(ties=ties)
        notes = list(heard.values())
        if notes:
            times = Fraction(_duration(length, TICKS), TICKS) if length else None
            self._voice.element(notes, notes[0].length, times)


_CHORD = re.compile(rf"(?:{_NOTE})+")
_SETTINGS: dict[str, Callable[[_Voice, str], None]] = {
    "K": _Voice.set_key,
    "L": _Voice.set_unit,
    "M": _Voice.set_meter,
    "Q": _Voice.set_tempo,
}


def _in_sequence(text: str) -> list[str]:
    """Parts in the order that a `P:` field gives, such as "A2(BC)3"; at most `MAX_BARS`."""
    text = re.sub(r"[^A-Za-z0-9()]", "", text)[:MAX_TITLE]
    while found := re.search(r"\(([A-Za-z0-9]*)\)(\d*)|([A-Za-z])(\d{1,2})", text):
        repeated = found[1] if found[3] is None else found[3]
        count = min(int((found[2] if found[3] is None else found[4])[:2] or 1), MAX_BARS)
        text = (text[: found.start()] + repeated * count + text[found.end() :])[:MAX_BARS]
    return [letter for letter in text if letter.isalpha()]
