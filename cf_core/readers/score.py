"""Measures as they are written, and the melody that is played from them.

ABC and MusicXML both write measures with signs between them: repeats, endings and jumps. Their
readers make a list of `Measure`; this module plays it out.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

from cf_core.grid import TOLERANCE
from cf_core.melody import Bar, Melody, Note, Tempo, bar_length
from cf_core.readers.limits import MAX_BARS, check_size

MAX_TIMES = 4
"""Most times that one repeat is played."""

Jump = Literal["capo", "segno"]
"""Where the music continues: after D.C. at "capo", after D.S. at "segno"."""


TICKS = 40_320
"""Ticks in a quarter note. Times are whole numbers of ticks, except in odd tuplets."""
NEAR = int(TOLERANCE * TICKS)
"""Times that are no farther apart, in ticks, were meant to be the same."""
Time = int | Fraction
"""In ticks, exact."""


def simplify(time: Time) -> Time:
    """Return the same time, as an `int` if it is whole: integers are much faster."""
    return time if isinstance(time, int) or time.denominator != 1 else time.numerator


def to_time(ticks: Fraction) -> Time:
    """Round a written length to a tick, unless its denominator is small: sums could grow long."""
    return simplify(ticks) if ticks.denominator < 1000 else round(ticks)


@lru_cache(2**16)
def to_quarters(time: Time) -> Fraction:
    """Convert ticks to quarter notes."""
    return Fraction(time, TICKS)


@lru_cache(2**10)
def full_bar(meter: str) -> Time:
    """Ticks of a full bar; in free meter, of as long a rest as programs play for a bar."""
    return simplify((bar_length(meter) or 4) * TICKS)


class Written(NamedTuple):
    """One note of a measure; times in ticks from the measure's start."""

    offset: Time
    duration: Time
    pitch: int
    """MIDI number as it sounds."""
    starts_tie: bool = False
    """Whether it is tied to the next note of its pitch, if that note begins where this one ends."""
    stops_tie: bool = True
    """Whether an earlier note may be tied to it. ABC does not write this down."""
    turns: frozenset[int] = frozenset()
    """Numbers of the times that its measure is played at which it sounds; empty for all."""


@dataclass
class Measure:
    """The notes between two bar lines, and the signs at these lines."""

    meter: str
    notes: list[Written] = field(default_factory=list)
    length: Time = 0
    """In ticks, as its notes and rests fill it; 0 stands for a whole empty bar."""
    tempos: list[tuple[Time, float]] = field(default_factory=list)
    """Pairs of a time, in ticks from the measure's start, and quarter notes per minute."""
    opens: bool = False
    """A repeat begins at its left."""
    new_section: bool = False
    """A double bar line is at its left."""
    times: int = 0
    """How often the repeat that ends at its right is played; 0 where none ends there."""
    after_jump: bool = False
    """That repeat is played after a jump, too."""
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


def order_measures(measures: Sequence[Measure]) -> list[int]:
    """Return indices of the measures in the order in which they are played.

    A repeat goes back to the last repeat start. Where none is open, it goes back to the last repeat
    end, last ending or double bar line, whichever is latest, or else to the beginning. After D.C.
    or D.S. only repeats that say so are played again, the last of several endings is taken, and
    `fine` and `coda` hold.
    """
    endings = _endings(measures)
    targets: dict[Jump | None, int] = {"capo": 0}
    for index, measure in enumerate(measures):
        if measure.segno:
            targets.setdefault("segno", index)
    order = _Player(measures, endings, 0, targets).order()
    target = targets.get(measures[order[-1]].jump) if order else None
    if target is None:
        return order
    return order + _Player(measures, endings, target, {}).order()


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
    goes_back: bool
    """The music goes back after it, though no sign says so: the sign comes after the last ending of
    its row, or nowhere."""
    shares: bool
    """What follows its row, up to a repeat sign, is played after each ending."""


def _endings(measures: Sequence[Measure]) -> dict[int, _Ending]:
    """Find the endings, by the index of their first measure."""
    starts = [index for index, measure in enumerate(measures) if measure.ending]
    spans: list[tuple[int, int]] = []
    for start, limit in zip(starts, [*starts[1:], len(measures)], strict=False):
        stop = next((i + 1 for i in range(start, limit) if _stops(measures, i)), limit)
        before = spans[-1] if spans else (0, 0)
        length = before[1] - before[0]
        # A last ending is as long as the one before it, whatever repeat or row comes later.
        last, row_follows = (
            measures[stop - 1],
            limit < len(measures) and 1 in measures[limit].ending,
        )
        longer = 0 < length < stop - start and 1 not in measures[start].ending
        longer &= last.times > 0 or (row_follows and stop == limit and not last.ending_stops)
        shorter = _is_cut_short(measures, start, stop, start + length)
        if before[1] == start and (longer or shorter):
            stop = start + length
        elif _goes_on(measures, start, limit):
            stop = limit
        spans.append((start, stop))
    endings: dict[int, _Ending] = {}
    row: list[tuple[int, int]] = []
    for span, following in zip(spans, [*spans[1:], (-1, -1)], strict=False):
        row.append(span)
        if following[0] != span[1]:
            beside = frozenset().union(*(measures[start].ending for start, _ in row))
            shares = _shares(measures, row[0][0], span[1])
            signs = [m.times > 0 or m.jump is not None for m in measures[row[0][0] : span[1]]]
            # Verses that are written as endings follow each other, whatever their numbers.
            verses = following[0] > 0 and _opens(measures[following[0]])
            goes_back = measures[span[1] - 1].times > 0 or not (any(signs) or shares or verses)
            for start, stop in row:
                numbers, is_last = measures[start].ending, (start, stop) == span
                endings[start] = _Ending(start, stop, numbers, beside, is_last, goes_back, shares)
            row = []
    return endings


def _goes_on(measures: Sequence[Measure], start: int, limit: int) -> bool:
    """Whether an ending goes on to the next, at `limit`, though its bracket may be shorter.

    It does if the first repeat sign from `start` on is that before the next ending.
    """
    if limit == len(measures) or 1 in measures[limit].ending or not measures[limit - 1].times:
        return False
    inner = measures[start : limit - 1]
    opened = any(measure.opens for measure in measures[start + 1 : limit])
    return not (opened or any(measure.times for measure in inner))


def _is_cut_short(measures: Sequence[Measure], start: int, stop: int, end: int) -> bool:
    """Whether an ending goes on past its bracket, to the first repeat sign after it, at `end`."""
    if not stop < end <= len(measures):
        return False
    signs = any(_opens(measure) or measure.ending for measure in measures[stop:end])
    *inner, last = [measure.times for measure in measures[start:end]]
    return last > 0 and not (signs or any(inner))


def _shares(measures: Sequence[Measure], start: int, stop: int) -> bool:
    """Whether what follows a row of endings, `start` to `stop`, is played after each of them.

    It is if none of them has a sign, and a repeat sign follows after fewer measures than there are
    before them. With more, it is another section.
    """
    if any(measure.times or measure.jump for measure in measures[start:stop]):
        return False
    opening = start
    while opening and not (_opens(measures[opening]) or measures[opening - 1].times):
        opening -= 1
    for index in range(stop, min(stop + start - opening, len(measures)) - 1):
        if measures[index].times:
            return True
        if _opens(measures[index + 1]) or measures[index + 1].ending:
            return False
    return False


def _opens(measure: Measure) -> bool:
    return measure.opens or measure.new_section


def _stops(measures: Sequence[Measure], index: int) -> bool:
    """Whether an ending stops with a measure, by the signs at its right."""
    following = measures[index + 1] if index + 1 < len(measures) else None
    sign = following is not None and (following.opens or following.new_section)
    return bool(measures[index].times or measures[index].ending_stops or sign)


class _Player:
    """Goes through measures as they are played, from one of them to the end or the first jump."""

    def __init__(
        self,
        measures: Sequence[Measure],
        endings: dict[int, _Ending],
        index: int,
        targets: dict[Jump | None, int],
    ) -> None:
        self._measures, self._endings, self._index = measures, endings, index
        self._targets, self._after_jump = targets, not targets
        self._start, self._is_open, self._turn = index, False, 1
        """Where a repeat goes back to, whether a sign says so, and how often it has been played."""
        self._inside: _Ending | None = None
        codas = [index for index, measure in enumerate(measures) if measure.coda]
        self._coda = codas[-1] if codas else None
        """Where the coda begins. A sign before it means "to the coda", where no words say so."""
        signs = codas[:-1] if not any(measure.to_coda for measure in measures) else []
        self._leaves = {index - 1 for index in signs}

    def order(self) -> list[int]:
        """Return the indices of the measures played, until there are too many for a song."""
        order: list[int] = []
        while self._index < len(self._measures) and len(order) <= MAX_BARS:
            measure = self._measures[self._index]
            self._begin_section(measure)
            if self._skips_ending():
                continue
            order.append(self._index)
            if self._after_jump and measure.fine:
                break
            leaves = measure.to_coda or order[-1] in self._leaves
            if self._after_jump and leaves and self._coda is not None:
                self._index, self._coda = self._coda, None
            elif self._repeats(measure):
                self._index, self._inside = self._start, None
                self._turn += 1
            elif measure.jump in self._targets:
                break
            else:
                self._go_on(measure)
        return order

    def _begin_section(self, measure: Measure) -> None:
        """Set where the next repeat goes back to, if this measure is the place."""
        begins = measure.opens or (measure.new_section and not self._is_open)
        if begins and self._index != self._start:
            self._start, self._turn = self._index, 1
        self._is_open = measure.opens if begins else self._is_open

    def _skips_ending(self) -> bool:
        """Skip an ending for another turn; after a jump, all but the last or what leads out."""
        ending = self._inside = self._endings.get(self._index, self._inside)
        if ending is None or ending.start != self._index:
            return False
        if self._after_jump:
            skips = not (ending.is_last or self._leads_out(ending))
        else:
            is_only = self._turn == 1 and ending.is_last and not ending.shares
            skips = self._turn not in ending.numbers and not is_only
        if skips:
            self._index = ending.stop
            if ending.is_last and not ending.shares:
                self._close_section()
        return skips

    def _leads_out(self, ending: _Ending) -> bool:
        """Whether Fine or a way to the coda is in an ending, and in no later one of its row."""
        signs, has_coda = [], self._coda is not None
        while True:
            inside = self._measures[ending.start : ending.stop]
            signs.append(any(each.fine or (each.to_coda and has_coda) for each in inside))
            if ending.is_last:
                return signs[0] and not any(signs[1:])
            ending = self._endings[ending.stop]

    def _repeats(self, measure: Measure) -> bool:
        """Whether the music goes back after this measure.

        The last of several endings may have the repeat sign that should end the others, or none.
        """
        ending = self._inside
        if self._after_jump and not measure.after_jump:
            return False
        if ending is None or len(ending.beside) == 1:
            return self._turn < measure.times
        misplaced = ending.goes_back and self._index + 1 == ending.stop and not measure.jump
        return bool(measure.times or misplaced) and self._turn + 1 in ending.beside

    def _go_on(self, measure: Measure) -> None:
        """Go on to the next measure; the end of a repeat or of its last ending closes a section.

        An earlier ending may be the one that is played last, as 3 in "1,3" before "2".
        """
        self._index += 1
        inside = self._inside
        leaves = inside is not None and self._index == inside.stop
        ends = inside is not None and inside.is_last and not inside.shares
        skips_rest = leaves and inside is not None and not inside.is_last
        if (measure.times and not skips_rest) or (leaves and ends):
            self._close_section()
        if leaves:
            self._inside = None

    def _close_section(self) -> None:
        self._start, self._is_open, self._turn, self._inside = self._index, False, 1, None


# ---- the melody --------------------------------------------------------------------------------


def play(song_id: str, title: str, measures: Sequence[Measure], order: Iterable[int]) -> Melody:
    """Play measures in an order. Tied notes become one note, as they are heard.

    Neighbouring short bars that make up one full bar (a bar split at a repeat sign, an ending or a
    double bar line) become one bar. Raises `RejectedError` where the song is empty or too long.
    """
    order = list(order)
    check_size(sum(len(measure.notes) for measure in measures), len(order))
    notes: list[list[Time]] = []
    bars: list[Bar] = []
    tempos: list[Tempo] = []
    tied: dict[int, list[Time]] = {}
    start: Time = 0
    turns = Counter[int]()
    for index in order:
        measure = measures[index]
        turns[index] += 1
        for note in measure.notes:
            if not note.turns or turns[index] in note.turns:
                _add(notes, tied, start, note)
        tempos += [Tempo(to_quarters(start + at), speed) for at, speed in measure.tempos]
        length = measure.length or full_bar(measure.meter)
        _add_bar(bars, Bar(to_quarters(start), to_quarters(length), measure.meter))
        start += length
        check_size(len(notes) or 1, len(bars), start / TICKS)
    check_size(len(notes), len(bars))
    notes.sort(key=lambda note: note[0])
    return Melody(
        song_id,
        title,
        tuple(
            Note(to_quarters(onset), to_quarters(end - onset), int(pitch))
            for onset, end, pitch in notes
        ),
        tuple(bars),
        tuple(sorted(tempos, key=lambda tempo: tempo.start)),
    )


def _add(notes: list[list[Time]], tied: dict[int, list[Time]], start: Time, note: Written) -> None:
    """Append a note, or prolong the one that is tied to it; `tied` has the open ties by pitch."""
    onset = start + note.offset
    last = tied.pop(note.pitch, None) if tied else None
    if last is not None and note.stops_tie and -NEAR <= last[1] - onset <= NEAR:
        last[1] = onset + note.duration
    else:
        last = [onset, onset + note.duration, note.pitch]
        notes.append(last)
    if note.starts_tie:
        tied[note.pitch] = last


def _add_bar(bars: list[Bar], bar: Bar) -> None:
    """Append a bar, and make one bar of the last few, up to 16, if they fill one together."""
    bars.append(bar)
    full = bar_length(bar.meter)
    length = Fraction(0)
    for index in range(len(bars) - 1, max(len(bars) - 17, -1), -1):
        length += bars[index].length
        if bars[index].meter != bar.meter or bars[index].length >= full or length > full:
            return
        if length == full:
            bars[index:] = [Bar(bars[index].start, full, bar.meter)]
            return
