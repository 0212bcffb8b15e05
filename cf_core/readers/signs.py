"""Signs that scores write in words and numbers: jumps, numbers of endings and time signatures."""

import re
from collections.abc import Sequence
from fractions import Fraction

from cf_core.readers.score import Measure

# "Tacet on D.S." speaks of a jump that stands elsewhere. Signs may be characters of music fonts.
_JUMPS = re.compile(
    r"(?<!\bon )(?<!\bthe )(?<!\bafter )(?:(?P<capo>\bD(?:\.\s?)?C\b|\bda\s?capo\b)"
    r"|(?P<dal_segno>\b(?:D(?:\.\s?)?|dal\s?)(?:S(?:egno)?\b|[\U0001d10b\ue047])))"
    r"(?!\W*(?:only|time)\b)|(?P<segno>^\W*segno\W*$)|(?P<fine>^\W*fine?\b)"
    r"|(?P<to_coda>\b(?:to|da)\s?(?:coda\b|[\U0001d10c\ue048\u2295]))|(?P<coda>^\W*coda\b)",
    re.IGNORECASE,
)


def mark(measure: Measure, text: str) -> None:
    """Set the signs of a measure from words such as "D.C. al Fine"; ignore other words."""
    found = _JUMPS.search(text)
    if found is None:
        return
    kind = str(found.lastgroup)
    if kind in ("capo", "dal_segno"):
        measure.jump = "capo" if kind == "capo" else "segno"
    else:
        setattr(measure, kind, True)


def parse_numbers(text: str) -> frozenset[int]:
    """Parse the numbers of an ending, as "1,3" or "1.-3."; only two digits of each are read."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d{1,2})(?:\.?\s*[-\u2013]\s*(\d{1,2}))?", text):
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def parse_meter(beats: Sequence[str], units: Sequence[str]) -> str | None:
    """Return a time signature from its numbers; additive ones ("3+2", or several) are summed.

    Returns `None` where the numbers are not a time signature.
    """
    total, finest = Fraction(0), 1
    for count, unit in zip(beats, units, strict=False):
        terms = [int(term) for term in re.findall(r"\d+", count)]
        if not terms or not unit.strip().isdecimal() or int(unit) not in _UNITS:
            return None
        total += Fraction(sum(terms), int(unit))
        finest = max(finest, int(unit))
    return f"{total * finest}/{finest}" if total else None


_UNITS = {2**power for power in range(8)}
