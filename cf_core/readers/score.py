"""Music as it is written, and the melody that is played from it.

ABC and MusicXML both write measures with signs between them: repeats, endings and jumps. Their
readers make a list of `Measure`; this module plays it out.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

from cf_core.melody import Bar, Melody, Note, Tempo, bar_length
from cf_core.readers.limits import MAX_BARS, check_size

MAX_TIMES = 4
"""Most times that one repeat is played."""

Jump = Literal["capo", "segno"]
"""Where music goes on after D.C. and after D.S."""


TICKS = 40_320
"""Ticks of a quarter note: times are whole numbers of them, but for odd tuplets."""
Time = int | Fraction
"""In ticks, exact."""


def exact(time: Time) -> Time:
    """The same time, as a whole number if it is one: those are much faster."""
    return time if isinstance(time, int) or time.denominator != 1 else time.numerator


@lru_cache(2**16)
def quarters(time: Time) -> Fraction:
    """Ticks as quarter notes."""
    return Fraction(time, TICKS)


@lru_cache(2**10)
def full_bar(meter: str) -> Time:
    """Ticks of a full bar."""
    return exact(bar_length(meter) * TICKS)


class Written(NamedTuple):
    """One note of a measure; times in ticks from the measure's start."""

    offset: Time
    duration: Time
    pitch: int
    """MIDI number as it sounds."""
    starts_tie: bool = False
    """It goes on as the next note played, where that has its pitch and begins at its end."""
    stops_tie: bool = True
    """It may be what an earlier note goes on as; ABC does not write this down."""


@dataclass
class Measure:
    """What stands between two bar lines, and the signs at them."""

    meter: str
    notes: list[Written] = field(default_factory=list)
    length: Time = 0
    """In ticks, as its notes and rests fill it; 0 stands for a whole empty bar."""
    tempos: list[tuple[Time, float]] = field(default_factory=list)
    """Quarter notes per minute, from so many ticks after the measure's start on."""
    opens: bool = False
    """A repeat begins at its left."""
    new_section: bool = False
    """A double bar line is at its left."""
    times: int = 0
    """How often the repeat that ends at its right is played; 0 where none ends there."""
    ending: frozenset[int] = frozenset()
    """Numbers of the ending that begins at its left."""
    ending_stops: bool = False
    """An ending stops at its right."""
    segno: bool = False
    """The sign that D.S. goes back to is at its left."""
    coda: bool = False
    """The coda begins at its left."""
    to_coda: bool = False
    """After a jump, the coda follows it."""
    fine: bool = False
    """After a jump, the music ends with it."""
    jump: Jump | None = None
    """The music jumps after it."""


# ---- the order of play -------------------------------------------------------------------------


def play_order(measures: Sequence[Measure]) -> list[int]:
    """Return indices of the measures in the order in which they are played.

    A repeat goes back to the last repeat start. Where none is open, it goes back to the last repeat
    end, last ending or double bar line, whichever is latest, or else to the beginning. After D.C.
    or D.S. no repeat is played again, the last of several endings is taken, and `fine` and `coda`
    hold.
    """
    endings = _endings(measures)
    order = _play(measures, endings, 0, after_jump=False)
    jump = measures[order[-1]].jump if order else None
    segno = next((index for index, measure in enumerate(measures) if measure.segno), None)
    back = {"capo": 0, "segno": segno, None: None}[jump]
    return order if back is None else order + _play(measures, endings, back, after_jump=True)


class _Ending(NamedTuple):
    """Measures `start` to `stop` (not included) of one ending.

    Endings that follow each other directly make a row.
    """

    start: int
    stop: int
    numbers: frozenset[int]
    beside: frozenset[int]
    """Numbers of all endings of its row, its own included."""
    is_last: bool
    """No other ending follows it directly."""


def _endings(measures: Sequence[Measure]) -> dict[int, _Ending]:
    """Find the endings, by the index of their first measure."""
    starts = [index for index, measure in enumerate(measures) if measure.ending]
    spans: list[tuple[int, int]] = []
    for start, limit in zip(starts, [*starts[1:], len(measures)], strict=False):
        stop = next((i + 1 for i in range(start, limit) if _stops(measures, i)), limit)
        before = spans[-1] if spans else (0, 0)
        length = before[1] - before[0]
        # A last ending is as long as the one before it, whatever repeat ends later.
        if before[1] == start and 0 < length < stop - start and measures[stop - 1].times:
            stop = start + length
        spans.append((start, stop))
    endings: dict[int, _Ending] = {}
    row: list[tuple[int, int]] = []
    for span, following in zip(spans, [*spans[1:], (-1, -1)], strict=False):
        row.append(span)
        if following[0] != span[1]:
            beside = frozenset().union(*(measures[start].ending for start, _ in row))
            for start, stop in row:
                numbers = measures[start].ending
                endings[start] = _Ending(start, stop, numbers, beside, (start, stop) == span)
            row = []
    return endings


def _stops(measures: Sequence[Measure], index: int) -> bool:
    """Whether an ending stops with a measure, by the signs at its right."""
    following = measures[index + 1] if index + 1 < len(measures) else None
    sign = following is not None and (following.opens or following.new_section)
    return bool(measures[index].times or measures[index].ending_stops or sign)


def _play(
    measures: Sequence[Measure], endings: dict[int, _Ending], index: int, *, after_jump: bool
) -> list[int]:
    """Play from a measure on, to the end or the first jump."""
    order: list[int] = []
    start, is_open, turn = index, False, 1
    inside: _Ending | None = None
    coda = next((i for i, measure in enumerate(measures) if measure.coda), None)
    while index < len(measures) and len(order) <= MAX_BARS:
        measure = measures[index]
        if (measure.opens or measure.new_section) and not is_open:
            turn = turn if index == start else 1
            start, is_open = index, measure.opens
        elif measure.opens and index != start:
            start, turn = index, 1
        if index in endings:
            inside = endings[index]
            if not inside.is_last and (after_jump or turn not in inside.numbers):
                index = inside.stop
                continue
            if inside.is_last and turn > 1 and turn not in inside.numbers and not after_jump:
                index = start = inside.stop
                is_open, turn, inside = False, 1, None
                continue
        order.append(index)
        if after_jump and (measure.fine or (measure.to_coda and coda is not None)):
            if measure.fine:
                break
            index, coda = coda or 0, None
            continue
        times = 0 if after_jump else measure.times
        again = turn < times
        if times and inside is not None and len(inside.beside) > 1:
            again = turn + 1 in inside.beside
        if again:
            turn += 1
            index, inside = start, None
            continue
        if measure.jump and not after_jump:
            break
        index += 1
        last = inside is not None and index == inside.stop and inside.is_last
        if times or last:
            start, is_open, turn = index, False, 1
        if inside is not None and index == inside.stop:
            inside = None
    return order


_JUMPS = re.compile(
    r"(?P<capo>\bD\.?\s?C\b|\bda\s?capo\b)|(?P<segno>\bD\.?\s?S\b|\bdal\s?segno\b)"
    r"|(?P<fine>^\W*fine\b)|(?P<to_coda>\bto\s?coda\b|\bda\s?coda\b)|(?P<coda>^\W*coda\b)",
    re.IGNORECASE,
)


def mark(measure: Measure, text: str) -> None:
    """Note what words such as "D.C. al Fine" say of the order of play, if they say anything."""
    found = _JUMPS.search(text)
    if found is None:
        return
    kind = str(found.lastgroup)
    if kind in ("capo", "segno"):
        measure.jump = "capo" if kind == "capo" else "segno"
    else:
        setattr(measure, kind, True)


# ---- the melody --------------------------------------------------------------------------------


def played(
    song_id: str,
    title: str,
    measures: Sequence[Measure],
    order: Iterable[int],
) -> Melody:
    """Play measures in an order: ties are joined as they are heard, split bars are one bar.

    Two neighbouring short bars that make up one full bar (a bar split at a repeat sign or a double
    bar line) are that one bar. Raises `RejectedError` where the song is empty or too long.
    """
    order = list(order)
    check_size(sum(len(measure.notes) for measure in measures), len(order))
    notes: list[list[Time]] = []
    bars: list[Bar] = []
    tempos: list[Tempo] = []
    tied: dict[int, list[Time]] = {}
    start: Time = 0
    for index in order:
        measure = measures[index]
        for note in measure.notes:
            _add(notes, tied, start, note)
        tempos += [Tempo(quarters(start + at), speed) for at, speed in measure.tempos]
        length = measure.length or full_bar(measure.meter)
        _add_bar(bars, Bar(quarters(start), quarters(length), measure.meter))
        start += length
        check_size(len(notes) or 1, len(bars), start / TICKS)
    check_size(len(notes), len(bars))
    notes.sort(key=lambda note: note[0])
    return Melody(
        song_id,
        title,
        tuple(
            Note(quarters(onset), quarters(end - onset), int(pitch)) for onset, end, pitch in notes
        ),
        tuple(bars),
        tuple(tempos),
    )


def _add(notes: list[list[Time]], tied: dict[int, list[Time]], start: Time, note: Written) -> None:
    """Append a note, or prolong the one that is tied to it; `tied` has the open ties by pitch."""
    onset = start + note.offset
    last = tied.pop(note.pitch, None) if tied else None
    if last is not None and note.stops_tie and last[1] == onset:
        last[1] = onset + note.duration
    else:
        last = [onset, onset + note.duration, note.pitch]
        notes.append(last)
    if note.starts_tie:
        tied[note.pitch] = last


def _add_bar(bars: list[Bar], bar: Bar) -> None:
    """Append a bar, and make one bar of the last few if they are short and fill one together."""
    bars.append(bar)
    full = quarters(full_bar(bar.meter))
    length = Fraction(0)
    for index in range(len(bars) - 1, -1, -1):
        length += bars[index].length
        if bars[index].meter != bar.meter or bars[index].length >= full or length > full:
            return
        if length == full:
            bars[index:] = [Bar(bars[index].start, full, bar.meter)]
            return


def numbers(text: str) -> frozenset[int]:
    """Numbers of an ending, from lists and ranges such as "1,3" and "1-3"; none above 99."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d{1,2})(?:\s*-\s*(\d{1,2}))?", text):
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def meter_of(beats: Sequence[str], units: Sequence[str]) -> str | None:
    """Return a time signature from its numbers: additive ones ("3+2", or several) are summed.

    Returns `None` where they are no time signature.
    """
    total = Fraction(0)
    pairs = list(zip(beats, units, strict=False))
    for count, unit in pairs:
        terms = re.findall(r"\d+", count)
        if not terms or not unit.strip().isdecimal() or int(unit) not in _UNITS:
            return None
        total += Fraction(sum(map(int, terms)), int(unit))
    if not total:
        return None
    unit = max(int(unit) for _, unit in pairs)
    return f"{total * unit}/{unit}"


_UNITS = {2**power for power in range(8)}
