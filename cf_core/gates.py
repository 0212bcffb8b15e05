"""Played notes: where their ends were meant to be.

A key is released a little before or after the place that a score would give.
"""

from bisect import bisect_right
from typing import NamedTuple

Sounding = tuple[int, int, int]
"""Onset, end and pitch of a note, in units that divide all there is: exact, and fast."""


def move_ends(
    notes: list[Sounding], bars: list[tuple[int, int]], step: int, near: int
) -> list[Sounding]:
    """Move ends of played notes to where they were meant to be: keys are not released so exactly.

    An end that lies before the next onset by less than a step, or beyond it by less than half a
    step, means "until the next onset"; after the last onset, until the bar line. Where half of the
    notes or more end off the grid and too soon for the next onset, or too late, the middle one of
    them tells how much this file takes off or adds (its gate). Then an end means the place, of the
    next onset and the grid lines, that it misses most nearly by that, of its length or in ticks;
    the next onset, if both fit.

    `notes` come by onset. `bars` are their starts and lengths, `step` is the length of a grid step,
    and `near` how far from a grid line still counts as on it, all in the unit of the notes.
    """
    onsets = sorted({onset for onset, _, _ in notes})
    following = [_above(onsets, onset + near) for onset, _, _ in notes]
    starts = [start for start, _ in bars] or [0]
    beyond = [(end - starts[max(bisect_right(starts, end) - 1, 0)]) % step for _, end, _ in notes]
    missed = [
        (stop - end, stop - onset)
        for (onset, end, _), stop, off in zip(notes, following, beyond, strict=True)
        if stop is not None and -step < 2 * (stop - end) < max(2 * step, (stop - onset) / 4)
        # What lies on the grid, but for rounding, may be meant so.
        if 4 * min(off, step - off) > near or abs(stop - end) <= near
    ]
    gates = [gate for sign in (1, -1) if (gate := _gate(missed, len(notes), sign))]
    late = max((gate.ticks for gate in gates if gate.sign < 0), default=0)
    lines = [*starts, sum(bars[-1])] if bars else starts
    moved: list[Sounding] = []
    for (onset, end, pitch), stop, off in zip(notes, following, beyond, strict=True):
        meant = _nearest(lines, end) if stop is None else stop
        gap = meant - end
        close = -step < 2 * gap and gap + late < step - near and abs(gap) > near
        place = meant if close and meant > onset else end
        for gate in gates if place == end else []:
            place = _meant(onset, end, stop, end - off, step, near, gate)
        moved.append((onset, place, pitch))
    return moved


class _Gate(NamedTuple):
    """What a file takes off its notes (`sign` 1) or adds to them (-1)."""

    sign: int
    share: float
    """Of a note's length."""
    ticks: int


def _nearest(lines: list[int], place: int) -> int:
    """The one of sorted lines that is nearest to a place."""
    after = bisect_right(lines, place)
    return min(lines[max(after - 1, 0) : after + 1], key=lambda line: abs(line - place))


def _gate(missed: list[tuple[int, int]], count: int, sign: int) -> _Gate | None:
    """What a file of so many notes takes off them or adds to them, if most show it."""
    alike = sorted((sign * gap / full, sign * gap) for gap, full in missed if sign * gap > 0)
    return None if 2 * len(alike) < count else _Gate(sign, *alike[len(alike) // 2])


def _meant(
    onset: int, end: int, stop: int | None, line: int, step: int, near: int, gate: _Gate
) -> int:
    """Where a note was meant to end: at the next onset, `stop`, at a grid line, or as played.

    `line` is the last grid line before its end.
    """
    most = near + max(gate.ticks, gate.share * (end - onset) / (1 - gate.sign * gate.share))
    reach = int(most) // step + 2
    places = [*(line + step * number for number in range(-reach, reach + 1)), stop]
    found = {
        place: min(abs(gap - gate.ticks), abs(gap - gate.share * (place - onset)))
        for place in places
        if place is not None and onset < place and (stop is None or place <= stop)
        for gap in [gate.sign * (place - end)]
        if -near <= gap <= most
    }
    meant = min(found, key=lambda place: found[place], default=end)
    if stop in found and found[stop] <= found[meant] + near:
        meant = stop
    return meant if abs(meant - end) > near else end


def _above(values: list[int], bound: int) -> int | None:
    """Return the first of sorted values above a bound."""
    place = bisect_right(values, bound)
    return values[place] if place < len(values) else None
