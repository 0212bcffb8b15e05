"""The intended ends of played notes.

A player releases a key a little before or after the end that a score would give.
"""

from bisect import bisect_right
from typing import NamedTuple

Sounding = tuple[int, int, int]
"""Onset, end and pitch of a note. Times are whole numbers of a unit that divides all times of the
melody: this is exact, and fast."""


def move_ends(
    notes: list[Sounding], bars: list[tuple[int, int]], step: int, near: int
) -> list[Sounding]:
    """Move the ends of played notes to the ends that were intended.

    An end less than a step before the next onset, or less than half a step after it, moves to that
    onset. For notes of the last onset, the nearest bar line takes the place of the next onset.

    If at least half of the notes end off the grid and too early for the next onset, the median gap
    is the file's gate: how much it shortens notes, in ticks and as a share of their length. Ends
    that are too late give a second gate in the same way. With a gate, an end that was not moved yet
    goes to the place, among the grid lines and the next onset, whose gap to the end is closest to
    the gate, in ticks or as a share. Where both fit, the next onset is taken.

    `notes` are sorted by onset. `bars` gives starts and lengths, `step` is the length of a grid
    step, and `near` is how far from a grid line still counts as on it. All are in the unit of the
    notes.
    """
    onsets = sorted({onset for onset, _, _ in notes})
    following = [_above(onsets, onset + near) for onset, _, _ in notes]
    starts = [start for start, _ in bars] or [0]
    beyond = [(end - starts[max(bisect_right(starts, end) - 1, 0)]) % step for _, end, _ in notes]
    missed = [
        (stop - end, stop - onset)
        for (onset, end, _), stop, off in zip(notes, following, beyond, strict=True)
        if stop is not None and -step < 2 * (stop - end) < max(2 * step, (stop - onset) / 4)
        # An end that lies on the grid, but for rounding, may be intended.
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
    """How much a file shortens its notes (`sign` 1) or lengthens them (`sign` -1)."""

    sign: int
    share: float
    """As a share of a note's intended length."""
    ticks: int


def _nearest(lines: list[int], place: int) -> int:
    """Return the line nearest to a place; `lines` are sorted."""
    after = bisect_right(lines, place)
    return min(lines[max(after - 1, 0) : after + 1], key=lambda line: abs(line - place))


def _gate(missed: list[tuple[int, int]], count: int, sign: int) -> _Gate | None:
    """Return the gate of one sign in a file of `count` notes, if at least half of them show it."""
    alike = sorted((sign * gap / full, sign * gap) for gap, full in missed if sign * gap > 0)
    return None if 2 * len(alike) < count else _Gate(sign, *alike[len(alike) // 2])


def _meant(
    onset: int, end: int, stop: int | None, line: int, step: int, near: int, gate: _Gate
) -> int:
    """Return a note's intended end: the next onset (`stop`), a grid line, or its end as played.

    `line` is the last grid line at or before its end.
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
