"""Limits on the content of melody files, and the error that ends the reading of a song."""

from fractions import Fraction
from typing import Literal

from cf_core.errors import MelodyError

MAX_BYTES = {"midi": 2**20, "musicxml": 2**25, "abc": 2**22}
"""Largest file of each format, uncompressed."""
MAX_TUNE = 2**15
"""Most characters of one ABC tune: several voices with words have 20,000."""
MAX_TUNES = 10_000
"""Most tunes of one ABC book."""
MAX_TAGS = 2**20
"""Most tags of a MusicXML score; long ones have 150,000."""
MAX_MEASURES = 2_000
"""Most measures of a MusicXML part or an ABC voice as written."""
MAX_NOTES = 20_000
MAX_BARS = 10_000
MAX_QUARTERS = 40_000
"""Most notes, bars and quarter notes of one song."""
LONGEST_BAR = 128
"""Longest bar of ABC and MusicXML, in quarter notes."""
MAX_TITLE = 200
"""Most characters that are kept of a title, and of the detail of a rejection."""

SongReason = Literal[
    "unreadable",
    "too large",
    "no notes",
    "no melody track",
    "no such part",
    "several parts",
    "no complete bar",
    "duplicate id",
    "too slow",
    "too much memory",
    "reader died",
]
"""The last three come from reading in a process with limits: see `cf_core.isolation`."""


class RejectedError(MelodyError):
    """Ends the reading of one song, which can't be taken."""

    def __init__(self, reason: SongReason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


def check_size(notes: int, bars: int, quarters: Fraction | float = 0) -> None:
    """Raise `RejectedError` for an empty or absurdly long song, before work is spent on it."""
    if not notes:
        raise RejectedError("no notes")
    if notes > MAX_NOTES or bars > MAX_BARS or quarters > MAX_QUARTERS:
        long = f", {float(quarters):.0f} quarter notes long" if quarters > MAX_QUARTERS else ""
        raise RejectedError("too large", f"{notes} notes in {bars} bars{long}")


def choose_part(names: list[str], part: str) -> int:
    """Index of the part that has the name, or the number from 1, that `part` gives.

    Raises `RejectedError` where there is no such part.
    """
    if part in names:
        return names.index(part)
    if part.isdecimal() and 1 <= int(part) <= len(names):
        return int(part) - 1
    raise RejectedError("no such part", f"{part!r} is not one of {list_names(names)}")


def list_names(names: list[str]) -> str:
    """List names with their numbers from 1, for an error message; a part may have no name."""
    numbered = enumerate(names, start=1)
    return ", ".join(f"{number} {name!r}" if name else f"{number}" for number, name in numbered)
