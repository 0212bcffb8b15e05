"""One voice of an ABC tune: a state machine that takes its signs one by one and makes measures."""

import re
from fractions import Fraction
from typing import NamedTuple

from cf_core.melody import FREE, bar_length
from cf_core.readers.abc_notation import (
    STEPS,
    AbcNote,
    is_drum_clef,
    parse_key,
    parse_length,
    parse_moves,
)
from cf_core.readers.limits import LONGEST_BAR, MAX_MEASURES, MAX_NOTES, MAX_TITLE, RejectedError
from cf_core.readers.score import (
    MAX_TIMES,
    TICKS,
    Measure,
    Time,
    Written,
    full_bar,
    simplify,
    to_quarters,
)
from cf_core.readers.signs import mark, parse_meter, parse_numbers

_IN_TIME_OF = {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}
"""In the time of how many notes a tuplet of this size is played; others in that of two or three."""
_DEEPEST = 2
"""Most tuplets that another tuplet may stand in."""
_PERCUSSION = 10
"""Channel of drums, counted from 1."""
_METERS = {"c": "4/4", "c|": "2/2", "none": FREE}
_METER_TERM = re.compile(r"(\d[\d+\s]*)\)?\s*/\s*(\d{1,3})")
_METER = re.compile(rf"[(\s]*{_METER_TERM.pattern}(?:\s*\+\s*\(?{_METER_TERM.pattern})*")
_SPEED = re.compile(r"(?P<speed>\d{1,9}(?:\.\d{1,4})?)(?![\d.]*\s*/)")
_TEMPO = re.compile(
    rf"(?:(?P<beats>(?:\d{{1,3}}/[1-9]\d{{0,2}}[\s+]*)+)|C(?P<units>\d{{0,2}})\s*)="
    rf"\s*(?:c(?:a|irca)?\b\.?\s*)?{_SPEED.pattern}",
    re.IGNORECASE,
)
_ABBREVIATED = {"dacapo": "D.C.", "dacoda": "to coda", "D.C.alfine": "D.C.", "D.S.alfine": "D.S."}


class _Element(NamedTuple):
    """The last note, chord or rest: the indices of its notes in its measure, and its duration."""

    measure: Measure
    notes: range
    duration: Time
    alters: dict[tuple[str, int], int]
    """Alterations of its notes by step and octave, which a tied note keeps."""
    is_even: bool
    """Whether a broken rhythm may change it: it ends no tuplet, and none has changed it."""


class _Tuplet(NamedTuple):
    """A tuplet, as far as it has been read."""

    factor: Fraction
    left: int
    """How many of its elements are to come."""
    is_explicit: bool
    """Whether it says of how many elements it is, so that it may hold another."""


class Voice:
    """One voice, as far as it has been read."""

    def __init__(self, name: str, header: "Voice | None" = None) -> None:
        self.name = name
        self.measures: list[Measure] = []
        self.labels: list[str] = []
        """The part (`P:`) of each measure."""
        self.notes = 0
        self.percussion = False
        """Whether notes of drums were left out."""
        self.begun = header is not None
        """Whether the first `K:` field has come, which ends a header."""
        self.label: str = header.label if header else ""
        self.meter: str = header.meter if header else "4/4"
        self.unit: Time | None = header.length_of_unit if header else None
        self.key: dict[str, int] = header.key if header else {}
        self._moves: dict[str, int] = dict(header._moves) if header else {}
        self._is_on_drum_channel: bool = header._is_on_drum_channel if header else False
        self._has_drum_clef: bool = header._has_drum_clef if header else False
        self.propagation: str = header.propagation if header else "pitch"
        self._accidentals: dict[tuple[str, int], int] = {}
        self._tied: dict[tuple[str, int], int] = {}
        self._tuplets: list[_Tuplet] = []
        """The tuplets that the next element is in."""
        self._before: _Element | None = None
        """The last element of the measure before, while this measure has none."""
        self._factor: Fraction | None = None
        """How a broken rhythm changes the next element, which may follow a bar line."""
        self._opened = 1
        """Colons of the last sign that opened a repeat."""
        self._is_open = False
        """Whether a sign has opened a repeat that none has ended."""
        self._ending, self._in_endings = 0, False
        self._tied_into_endings: dict[tuple[str, int], int] = {}
        self._before_endings: _Element | None = None
        self._ahead: list[Measure] = []
        """Measures to come that an overlay goes through once more."""
        self._overlay_start: int | None = None
        """The measure that an overlay of several measures goes back to."""
        self._begin()
        self.tempo: str = ""
        """The last `Q:` field. In a header it may stand before the `L:` that it depends on."""
        if header:
            self.set_tempo(header.tempo)

    def _begin(self, written: Measure | None = None) -> None:
        """Begin a measure: a new one, or one whose notes others shall sound together with."""
        self.measure: Measure = written or Measure(self.meter)
        self._at: Time = 0
        self._overlaid: Time = self.measure.length
        self._last: _Element | None = None
        self._segno_at: Time | None = None

    # ---- fields and signs

    def set_meter(self, text: str) -> None:
        """Apply an `M:` field, to this measure if it is still empty, else from the next on."""
        text = _METERS.get(text.replace(" ", "").lower(), text)
        found = _METER.match(text)
        terms = _METER_TERM.findall(found[0]) if found else []
        meter = parse_meter([beats for beats, _ in terms], [unit for _, unit in terms])
        if meter is not None and bar_length(meter) > LONGEST_BAR:
            raise RejectedError("too large", f"a time signature of {meter[:MAX_TITLE]}")
        self.meter = FREE if text == FREE else meter or self.meter
        if self._is_empty:
            self.measure.meter = self.meter

    def set_unit(self, text: str) -> None:
        """Apply an `L:` field."""
        found = re.match(r"(\d{1,3})(?:\s*/\s*(\d{1,9}))?", text)
        if found and int(found[1]) and int(found[2] or 1):
            self.unit = simplify(Fraction(4 * TICKS * int(found[1]), int(found[2] or 1)))

    def set_key(self, text: str) -> None:
        """Apply a `K:` field: the key signature and transpositions."""
        self.begun = True
        signature = parse_key(text)
        if signature is not None:
            self.key, self._accidentals = signature, {}
        self.move(text)

    def move(self, text: str) -> None:
        """Apply the transpositions and the clef of a `K:` or `V:` field."""
        self._moves |= parse_moves(text)
        is_drum = is_drum_clef(text)
        self._has_drum_clef = self._has_drum_clef if is_drum is None else is_drum

    def set_playback(self, directive: str) -> None:
        """Apply a directive of `%%MIDI`: `transpose`, `rtranspose` (by so much more), `channel`."""
        found = re.match(r"MIDI\s*=?\s*(r?transpose|channel)\s+([-+]?\d{1,3})", directive)
        if found and found[1].endswith("transpose"):
            before = self._moves.get("playback", 0) if found[1][0] == "r" else 0
            self._moves["playback"] = before + int(found[2])
        elif found:
            self._is_on_drum_channel = int(found[2]) == _PERCUSSION

    def set_tempo(self, text: str) -> None:
        """Apply a `Q:` field: beats per minute, or units (`L:`) per minute if it names no beat."""
        self.tempo = text
        text = re.sub(r'"[^"]*"', " ", text).strip()
        found = _TEMPO.search(text) or _SPEED.fullmatch(text)
        if found is None:
            return
        about = found.groupdict()
        if about.get("beats"):
            beats = re.findall(r"(\d+)/(\d+)", found["beats"])
            beat = sum(Fraction(4 * int(over), int(under)) for over, under in beats)
        else:
            beat = to_quarters(self.length_of_unit) * int(about.get("units") or 1)
        speed = float(beat * Fraction(found["speed"]))
        if 1 <= speed < 10_000:
            self.measure.tempos.append((self._at, speed))

    def sign(self, name: str) -> None:
        """Apply a decoration; only those that affect the order of play have an effect."""
        kind, had_segno = name.lower(), self.measure.segno
        if kind == "coda" and self._is_empty:
            self.measure.coda = True
        elif kind == "coda":
            self.measure.to_coda = True
        else:
            mark(self.measure, _ABBREVIATED.get(name, name))
        if self.measure.segno and not had_segno:
            self._segno_at = self._at

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
        if self._is_empty or self._is_entered:
            return
        if self.measure.length > LONGEST_BAR * TICKS:
            long = float(self.measure.length / TICKS)
            raise RejectedError("too large", f"a bar of {long:.0f} quarter notes")
        if len(self.measures) == MAX_MEASURES:
            raise RejectedError("too large", f"more than {MAX_MEASURES} measures")
        self._leave()

    def _leave(self) -> None:
        """Keep the measure and go to the next, which may have been written before an overlay."""
        self.measure.notes.sort(key=lambda note: note.offset)
        self.measures.append(self.measure)
        self.labels += [self.label] * (len(self.measures) - len(self.labels))
        self._begin(self._ahead.pop(0) if self._ahead else None)

    def finish(self) -> None:
        """End a measure at a bar line or the end; signs after its last note belong to it.

        A segno there belongs to the bar line, and so to the measure that follows.
        """
        is_late = 0 < self.measure.length == self._segno_at
        self.close()
        if self.measures and self._is_empty:
            last, now = self.measures[-1], self.measure
            if is_late:
                last.segno, now.segno = False, True
            last.jump = last.jump or now.jump
            last.fine, last.to_coda = last.fine or now.fine, last.to_coda or now.to_coda
            now.jump, now.fine, now.to_coda = None, False, False

    def bar_line(self, sign: str) -> None:
        """Apply a bar line such as "|", ":|", "::" or "|]"."""
        sign = sign.replace(" ", "")
        if sign == ":":
            if self._is_open or not self._is_empty:
                return
            sign = "|:"  # As in "| :", where the bar line has come before.
        # An invisible bar line may stand before a visible one.
        sign = sign.replace("[|]", "") or "|"
        self._before = self._last or self._before
        self.finish()
        self._accidentals, self._last = {}, None
        ends, opens = len(sign) - len(sign.lstrip(":")), len(sign) - len(sign.rstrip(":"))
        if sign == "::":
            ends = opens = 1
        if ends and self.measures:
            self.measures[-1].times = min(ends, self._opened, MAX_TIMES - 1) + 1
        if ends or opens:
            self._opened, self._is_open = max(opens, 1), opens > 0
        self.measure.opens |= bool(opens)
        self.measure.new_section |= "||" in sign or "[" in sign or "]" in sign
        self._in_endings &= not (self.measure.opens or self.measure.new_section)

    def ending(self, which: str) -> None:
        """Begin an ending, such as "1" or "1,3-4"; every one follows what is before the first."""
        before = self._last or self._before
        self.close()
        self._ending = max(parse_numbers(which), default=self._ending + 1)
        if 1 in parse_numbers(which) or not self._in_endings:
            self._tied_into_endings, self._before_endings = dict(self._tied), before
        else:
            self._tied, self._before = dict(self._tied_into_endings), self._before_endings
        self._in_endings = True
        self.measure.ending = parse_numbers(which) or frozenset([self._ending])
        # A strain has music before its first ending, so that it can't begin with it.
        self.measure.new_section &= 1 not in self.measure.ending

    def rest_for_bars(self, count: int) -> None:
        """Rest for whole bars, the first of which is this measure."""
        for number in range(min(count, MAX_MEASURES + 1)):
            if number:
                self.close()
            self._move(full_bar(self.meter))

    # ---- notes

    def element(self, notes: list[AbcNote], length: str, times: Fraction | None = None) -> None:
        """Add a note, a chord, or (if `notes` is empty) a rest.

        Its duration is `length`, multiplied by `times` if given.
        """
        if self._is_on_drum_channel or self._has_drum_clef:
            self.percussion |= bool(notes)
            notes = []
        duration = parse_length(length, self.length_of_unit)
        for factor in (times, self._factor, *(tuplet.factor for tuplet in self._tuplets)):
            duration = duration if factor is None else simplify(duration * factor)
        is_even = self._factor is None and all(tuplet.left > 1 for tuplet in self._tuplets)
        tied, self._tied, self._factor = self._tied, {}, None
        alters: dict[tuple[str, int], int] = {}
        first = len(self.measure.notes)
        for note in notes if duration else []:
            pitch = self._pitch(note, tied, alters)
            self.measure.notes.append(Written(self._at, duration, pitch, note.ties))
            if note.ties:
                self._tied |= alters
        self._before = None
        sounding = range(first, len(self.measure.notes))
        self._last = _Element(self.measure, sounding, duration, alters, is_even)
        self._tuplets = [t._replace(left=t.left - 1) for t in self._tuplets if t.left > 1]
        self.notes += len(sounding)
        if self.notes > MAX_NOTES:
            raise RejectedError("too large", f"more than {MAX_NOTES} notes")
        self._move(duration)

    def _move(self, duration: Time) -> None:
        self._at = simplify(self._at + duration)
        self.measure.length = max(self._at, self._overlaid) if self._overlaid else self._at

    def _pitch(
        self, note: AbcNote, tied: dict[tuple[str, int], int], alters: dict[tuple[str, int], int]
    ) -> int:
        """MIDI number of a note. By default its accidental holds in all octaves to the bar line."""
        place = (note.step, note.octave)
        name = place if self.propagation == "octave" else (note.step, 0)
        alter = note.alter
        if alter is None:
            alter = tied.get(place, self._accidentals.get(name, self.key.get(note.step, 0)))
        elif self.propagation != "not":
            self._accidentals[name] = alter
        alters[place] = alter
        pitch = 12 * note.octave + STEPS[note.step] + alter + sum(self._moves.values())
        if not 0 <= pitch <= 127:
            where = f"{note.step} in octave {note.octave}"
            raise RejectedError("unreadable", f"a note outside MIDI's range: {where}")
        return pitch

    def tie(self) -> None:
        """Tie the last element to the next one, also where the sign follows a bar line."""
        element = self._last or self._before
        if element is None:
            return
        notes = element.measure.notes
        for index in element.notes:
            notes[index] = notes[index]._replace(starts_tie=True)
        self._tied = element.alters

    def broken(self, sign: str) -> None:
        """Lengthen the last element and shorten the next by as much, or the other way round.

        After the last element of a tuplet the sign has no effect, nor has the second of two signs
        beside one element.
        """
        if self._last is None or not self._last.is_even:
            return
        short = Fraction(1, 2 ** len(sign))
        mine, self._factor = (2 - short, short) if sign[0] == ">" else (short, 2 - short)
        for index in self._last.notes:
            note = self.measure.notes[index]
            self.measure.notes[index] = note._replace(duration=simplify(note.duration * mine))
        self._move(self._last.duration * (mine - 1))
        duration = simplify(self._last.duration * mine)
        self._last = self._last._replace(duration=duration, is_even=False)

    def tuplet(self, size: int, time_of: int, count: int) -> None:
        """Begin a tuplet: `size` notes in the time of `time_of`, for the next `count` notes."""
        compound = self.meter in ("6/8", "9/8", "12/8")
        time_of = time_of or _IN_TIME_OF.get(size, 3 if compound else 2)
        outer = [tuplet for tuplet in self._tuplets if tuplet.is_explicit][-_DEEPEST:]
        new = _Tuplet(Fraction(time_of, size or 1), count or size, count > 0)
        self._tuplets = [*outer, new] if new.left else outer

    def overlay(self, sign: str) -> None:
        """Go back in time: the notes that follow sound together with those written there.

        "&" goes back to the last bar line, "&&" to the one before. Between "(&" and "&)", each "&"
        goes back to the first sign.
        """
        if sign == "(&":
            self._overlay_start = len(self.measures)
        elif sign == "&)":
            while self._ahead:
                self._leave()
            self._overlay_start, self._at = None, self.measure.length
        else:
            start = len(self.measures) + (not self._is_empty) - len(sign)
            start = max(start if self._overlay_start is None else self._overlay_start, 0)
            every = [*self.measures[start:], self.measure]
            del self.measures[start:]
            self._ahead = every[1:] + self._ahead
            self._begin(every[0])
            self._accidentals, self._tied, self._tuplets = {}, {}, []

    @property
    def _is_entered(self) -> bool:
        """Whether an overlay has reached a written measure and not yet added anything to it."""
        return bool(self.measures) and bool(self._overlaid) and not self._at
