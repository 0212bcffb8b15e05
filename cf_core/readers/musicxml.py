"""Reads MusicXML, versions 1 to 4, part-wise or time-wise, compressed or not.

A part, one of its staves or one of its voices becomes a list of `Measure`, which `score` plays out.
Tempos, repeats and words such as "D.C." are taken from all parts: often only the first has them.
"""

from fractions import Fraction
from xml.etree.ElementTree import Element

from cf_core.melody import FREE, Melody
from cf_core.readers.limits import (
    LONGEST_BAR,
    MAX_MEASURES,
    RejectedError,
    check_size,
    choose_part,
    list_names,
)
from cf_core.readers.musicxml_files import parse_score
from cf_core.readers.musicxml_notation import (
    find_number,
    is_sounding,
    midi_number,
    parse_exact,
    parse_speed,
    printed_length,
    staff_of,
    voice_of,
)
from cf_core.readers.score import (
    MAX_TIMES,
    NEAR,
    TICKS,
    Measure,
    Time,
    Written,
    full_bar,
    order_measures,
    play,
    to_time,
)
from cf_core.readers.signs import mark, parse_meter, parse_numbers


def read(song_id: str, data: bytes, part: str | None) -> Melody:
    """Read one score; `part` is the name of a part, staff or voice, or a number from 1.

    A staff of a part that has several is named as in "Piano, staff 2", a voice as in "Violin, voice
    1" or "Piano, staff 2, voice 5", with the numbers of the file. A number counts parts and staves.
    Raises `RejectedError` where there is no such part, where there are several and `part` is
    `None`, and where the file is hostile or not a score.
    """
    root = parse_score(data)
    measures = _written(root, part)
    return play(song_id, _title(root) or song_id, measures, order_measures(measures))


def _title(root: Element) -> str:
    """Title of the work, else of the movement, else what is printed as the title; may be empty."""
    titles = [e.text or "" for tag in ("work-title", "movement-title") for e in root.iter(tag)]
    titles += [
        " ".join(words.text or "" for words in credit.iter("credit-words"))
        for credit in root.iter("credit")
        if credit.findtext("credit-type") == "title"
    ]
    return next((" ".join(title.split()) for title in titles if title.strip()), "")


def read_measures(data: bytes, part: str | None) -> list[Measure]:
    """Return the measures of a part as written, not played out; otherwise as `read`."""
    return _written(parse_score(data), part)


def _written(root: Element, part: str | None) -> list[Measure]:
    parts = root.findall("part")
    names = _names(root, parts)
    staves = [
        (f"{name}, staff {staff}" if staff else name, element, staff)
        for name, element in zip(names, parts, strict=True)
        for staff in _staves(element)
    ]
    if not staves:
        struck = (is_sounding(n) or n.find("unpitched") is not None for n in root.iter("note"))
        raise RejectedError("no notes", "percussion only" if any(struck) else "")
    labels = [label for label, _, _ in staves]
    name, voice = (part, "") if part in labels + names else _split(part)
    if name is None and len(staves) > 1:
        raise RejectedError("several parts", list_names(labels))
    if name in names and name not in labels:
        own = [label for label in labels if label.startswith(f"{name}, staff ")]
        if len(own) != 1:
            detail = (
                f"{name} has several staves: {list_names(labels)}" if own else f"none in {name}"
            )
            raise RejectedError("several parts" if own else "no notes", detail)
        name = own[0]
    _, element, staff = staves[0 if name is None else choose_part(labels, name)]
    notes = (note for note in element.iter("note") if staff in ("", staff_of(note)))
    voices = sorted({voice_of(note) for note in notes})
    if voice and voice not in voices:
        raise RejectedError("no such part", f"voice {voice} is none of {', '.join(voices)}")
    measures = _Reader(staff, voice).measures(element)
    without_meter = not _has_meter(element)
    for other in parts:
        if other is element:
            continue
        signs = _Reader(_NO_STAFF, "").measures(other)
        _add_signs(measures, signs)
        if without_meter and _has_meter(other):
            without_meter = False
            for measure, sign in zip(measures, signs, strict=False):
                measure.meter = sign.meter
    return measures


def _has_meter(part: Element) -> bool:
    return part.find("measure/attributes/time") is not None


def _split(part: str | None) -> tuple[str | None, str]:
    """Split the name of a part into the part and, if it names one, the voice."""
    name, comma, voice = (part or "").rpartition(", voice ")
    return (name, voice) if comma else (part, "")


# ---- parts -------------------------------------------------------------------------------------


def _names(root: Element, parts: list[Element]) -> list[str]:
    """Names of the parts, as the score lists them."""
    if not parts:
        raise RejectedError("unreadable", "the score has no parts")
    listing = {element.get("id"): element for element in root.iterfind("part-list/score-part")}
    names = [listing.get(part.get("id"), part).findtext("part-name") or "" for part in parts]
    return [" ".join(name.split()) for name in names]


def _staves(part: Element) -> list[str]:
    """Numbers of a part's staves that have notes; the number of a single staff is empty.

    On a staff that has no clef but that of percussion, pitches are places of drums, and no notes.
    """
    every = {staff_of(note) for note in part.iter("note")}
    clefs = [(c.get("number", "1"), c.findtext("sign", "").strip()) for c in part.iter("clef")]
    drums = {staff for staff, _ in clefs} - {staff for staff, sign in clefs if sign != "percussion"}
    staves = {staff_of(note) for note in part.iter("note") if is_sounding(note)} - drums
    if len(every) == 1 and staves:
        return [""]
    return sorted(staves, key=lambda staff: (len(staff), staff))


_SIGNS = ("after_jump", "opens", "new_section", "ending_stops", "segno", "coda", "to_coda", "fine")


def _add_signs(measures: list[Measure], others: list[Measure]) -> None:
    """Add the tempos of another part, and its signs for the order of play.

    Where nothing is written in a measure, it is as long as that of the other part.
    """
    for measure, other in zip(measures, others, strict=False):
        measure.length = measure.length or other.length
        own = {at for at, _ in measure.tempos}
        measure.tempos += [tempo for tempo in other.tempos if tempo[0] not in own]
        measure.times = measure.times or other.times
        measure.ending = measure.ending or other.ending
        measure.jump = measure.jump or other.jump
        for sign in _SIGNS:
            setattr(measure, sign, getattr(measure, sign) or getattr(other, sign))


# ---- measures ----------------------------------------------------------------------------------

_MOVES = ("note", "backup", "forward")
"""Elements after which the time within a measure is another."""
_NO_STAFF = "none"
"""A staff without notes: a reader of it takes only signs and tempos."""


class _Reader:
    """Reads the measures of a part, or of one of its staves or voices."""

    def __init__(self, staff: str, voice: str) -> None:
        self._staff, self._voice = staff, voice
        self._divisions = Fraction(1)
        self._meter = "4/4"
        self._transposition = 0
        self._segnos: dict[str, Measure] = {}
        """Measures by the names that signs at their left have in playback."""
        self._goal = ""
        """The name of the sign that the first D.S. goes back to."""
        self._repeated = 0
        """How many measures a sign repeats, in place of what is not written."""

    def measures(self, part: Element) -> list[Measure]:
        """Read a part; raises `RejectedError` where it is absurdly long."""
        elements = part.findall("measure")
        if len(elements) > MAX_MEASURES:
            raise RejectedError("too large", f"{len(elements)} measures, more than {MAX_MEASURES}")
        check_size(1 + sum(1 for _ in part.iter("note")), len(elements))
        # Some programs write the first divisions after the notes that are counted in them.
        self._set_divisions(part.findtext("measure/attributes/divisions"))
        measures: list[Measure] = []
        measure = Measure(self._meter)
        for element in elements:
            following = Measure(self._meter)
            self._read(measure, measure if element is elements[-1] else following, element)
            if 0 < self._repeated <= len(measures) and not measure.notes:
                measure.notes = list(measures[-self._repeated].notes)
            full = full_bar(measure.meter)
            # Durations of tuplets may have been rounded.
            if full - NEAR <= measure.length <= full + NEAR:
                measure.length = full
            for line in element.iterfind("barline"):
                at_left, at_right = (line.get("location") == side for side in ("left", "right"))
                before = measures[-1] if at_left and measures else measure
                _bar_line(line, measure, before, following if at_right else measure)
                after = measure if at_left else following
                after.new_section |= (line.findtext("bar-style") or "") in _DOUBLE
            measures.append(measure)
            measure = following
        if self._goal in self._segnos:
            for measure in measures:
                measure.segno = measure is self._segnos[self._goal]
        return measures

    def _read(self, measure: Measure, following: Measure, element: Element) -> None:
        """Read the notes of a measure and what stands between them.

        Signs after all of its notes stand at the bar line, where the `following` measure begins;
        nothing follows the last one.
        """
        measure.meter = self._meter
        at: Time = 0
        onset: Time = 0
        moves = sum(child.tag in _MOVES for child in element)
        for child in element:
            moves -= child.tag in _MOVES
            match child.tag:
                case "note":
                    if child.find("grace") is not None:
                        continue
                    duration = self._duration(child)
                    if child.find("chord") is None:
                        onset, at = at, at + duration
                    self._note(measure, child, onset, duration)
                case "backup":
                    at = max(at - self._duration(child), 0)
                case "forward":
                    at += self._duration(child)
                case "attributes":
                    self._attributes(child)
                    measure.meter = measure.meter if at else self._meter
                case "direction" | "sound":
                    is_last = at and not moves and child.find("offset") is None
                    place = following if is_last else measure
                    _direction(measure, place, child, at, max(at + self._offset(child), 0))
                    self._name_signs(place, child)
            measure.length = max(measure.length, at)
            if measure.length > LONGEST_BAR * TICKS:
                long = float(measure.length / TICKS)
                raise RejectedError("too large", f"a bar of {long:.0f} quarter notes")
        measure.notes = sorted(_without_unison(measure.notes), key=lambda note: note.offset)

    def _duration(self, element: Element) -> Time:
        """Ticks of a note or a move; of a note that gives none, what its printed value says."""
        text = (element.findtext("duration") or "").strip()
        if not text:
            return to_time(printed_length(element) * TICKS)
        divisions = parse_exact(text, "duration")
        return to_time(Fraction(max(divisions, 0) * TICKS) / self._divisions)

    def _name_signs(self, measure: Measure, direction: Element) -> None:
        for sound in direction.iter("sound"):
            if name := sound.get("segno"):
                self._segnos.setdefault(name, measure)
            self._goal = self._goal or sound.get("dalsegno", "")

    def _offset(self, direction: Element) -> Time:
        """Ticks by which what a direction or `<sound>` says is heard later, or earlier."""
        offset = direction.find("sound/offset")
        if offset is None:
            offset = direction.find("offset")
            if offset is None or (direction.tag == "direction" and offset.get("sound") != "yes"):
                return 0
        return to_time(Fraction(find_number(offset.text)) * TICKS / self._divisions)

    def _note(self, measure: Measure, note: Element, onset: Time, duration: Time) -> None:
        """Add a note that sounds on the staff and in the voice that are read."""
        pitch = note.find("pitch")
        other = self._staff not in ("", staff_of(note)) or (
            self._voice and self._voice != voice_of(note)
        )
        if pitch is None or other or not duration or not is_sounding(note):
            return
        ties = {
            tie.get("type") for path in ("tie", "notations/tied") for tie in note.iterfind(path)
        }
        number = midi_number(pitch) + self._transposition
        if not 0 <= number <= 127:
            raise RejectedError("unreadable", f"a note outside MIDI's range: number {number}")
        goes_on = "continue" in ties
        starts, stops = goes_on or "start" in ties, goes_on or "stop" in ties
        turns = parse_numbers(note.get("time-only", ""))
        measure.notes.append(Written(onset, duration, number, starts, stops, turns))

    def _set_divisions(self, text: str | None) -> None:
        divisions = parse_exact(text or "", "divisions")
        self._divisions = Fraction(divisions) if divisions > 0 else self._divisions

    def _attributes(self, attributes: Element) -> None:
        """Take divisions, time signature, transposition and repeated measures of this staff."""
        self._set_divisions(attributes.findtext("divisions"))
        for element in attributes:
            if element.get("number") not in (None, self._staff or "1"):
                continue
            if element.tag == "time":
                beats = [beat.text or "" for beat in element.findall("beats")]
                units = [unit.text or "" for unit in element.findall("beat-type")]
                free = element.find("senza-misura") is not None
                self._meter = FREE if free else parse_meter(beats, units) or self._meter
            elif element.tag == "transpose":
                octaves = find_number(element.findtext("octave-change"))
                double = element.find("double")
                if double is not None:
                    octaves += 1 if double.get("above") == "yes" else -1
                semitones = find_number(element.findtext("chromatic")) + 12 * octaves
                self._transposition = round(semitones)
            elif (sign := element.find("measure-repeat")) is not None:
                self._repeated = int(find_number(sign.text)) if sign.get("type") == "start" else 0


def _without_unison(notes: list[Written]) -> list[Written]:
    """Merge notes of the same pitch, onset and duration into one, of all their ties and turns."""
    heard: dict[tuple[Time, Time, int], Written] = {}
    for note in notes:
        other = heard.setdefault((note.offset, note.duration, note.pitch), note)
        starts, stops = other.starts_tie or note.starts_tie, other.stops_tie or note.stops_tie
        turns = other.turns | note.turns if other.turns and note.turns else frozenset[int]()
        heard[note[:3]] = other._replace(starts_tie=starts, stops_tie=stops, turns=turns)
    return list(heard.values())


_DOUBLE = ("light-light", "light-heavy", "heavy-light", "heavy-heavy")


def _bar_line(line: Element, measure: Measure, before: Measure, after: Measure) -> None:
    """Take the repeat and the ending of a bar line, which end with `before` or begin `after` it."""
    repeat, ending = line.find("repeat"), line.find("ending")
    after.segno |= line.find("segno") is not None or bool(line.get("segno"))
    coda = line.find("coda") is not None or bool(line.get("coda"))
    after.coda |= coda and not measure.to_coda
    if repeat is not None and repeat.get("direction") == "forward":
        after.opens = True
    elif repeat is not None:
        times = repeat.get("times") or ""
        before.times = min(int(times[:2]), MAX_TIMES) if times.isdecimal() and times != "0" else 2
        before.after_jump = repeat.get("after-jump") == "yes"
    if ending is not None and ending.get("type") == "start":
        given = (ending.get("number") or "", ending.text or "", "1")
        after.ending = next(numbers for text in given if (numbers := parse_numbers(text)))
    elif ending is not None:
        before.ending_stops = True


def _direction(measure: Measure, place: Measure, direction: Element, at: Time, heard: Time) -> None:
    """Take the tempo and the order of play from a direction or a `<sound>`.

    It stands at one time, and its tempo may be heard at another. What begins there begins with the
    measure `place`, which is the next one if the direction stands after all notes.
    """
    sounds = list(direction.iter("sound"))
    to_coda = any(sound.get("tocoda") for sound in sounds)
    begins_coda = any(sound.get("coda") for sound in sounds)
    for content in direction.iter("direction-type"):
        # A text in several fonts is written as several elements.
        text = " ".join(words.text or "" for words in content.iter("words"))
        mark(measure, " ".join(text.split()))
    place.segno |= direction.find("direction-type/segno") is not None
    has_coda = direction.find("direction-type/coda") is not None
    if has_coda and not (begins_coda or to_coda or measure.to_coda):
        measure.coda, measure.to_coda = measure.coda or not at, measure.to_coda or bool(at)
    measure.to_coda |= to_coda
    place.coda |= begins_coda
    for sound in sounds:
        measure.jump = "capo" if sound.get("dacapo") == "yes" else measure.jump
        measure.jump = "segno" if sound.get("dalsegno") else measure.jump
        measure.fine |= bool(sound.get("fine"))
        place.opens |= sound.get("forward-repeat") == "yes"
        place.segno |= bool(sound.get("segno"))
    tempo = next((find_number(s.get("tempo")) for s in sounds if s.get("tempo")), 0.0)
    for metronome in direction.iter("metronome"):
        tempo = tempo or parse_speed(metronome)
    if 0 < tempo < float("inf"):
        measure.tempos.append((heard, tempo))
