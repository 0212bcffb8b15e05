"""Counts of what an ingest took and what it left out."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cf_core.corpus import hash_bars
from cf_core.melody import HOLD

_WINDOW_BARS = (2, 4, 8)


@dataclass
class WindowCount:
    """Windows of one length: all, those on the grid, and how many of the latter are distinct."""

    all: int = 0
    on_grid: int = 0
    unique: int = 0


@dataclass
class IngestReport:
    """Counts of what an ingest took, and of what it left out for which reason.

    A window is a run of whole bars in one time signature. Each half has at least half as many
    onsets as the window has bars. Windows start at every bar.
    """

    songs: int = 0
    windows: defaultdict[tuple[str, int], WindowCount] = field(
        default_factory=lambda: defaultdict(WindowCount)
    )
    """By meter ("all" for the sum) and number of bars (2, 4, 8)."""
    rejected_songs: Counter[str] = field(default_factory=Counter)
    rejected_bars: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    """Number of files that were not read because of their names, by suffix."""
    moved_ends: int = 0
    """Number of ends of played notes that were moved to the next onset or grid line."""
    moved_songs: int = 0
    """Number of songs with such notes."""
    content_hash: str = ""

    def __str__(self) -> str:
        lines = [f"{self.songs} songs", "windows: all / on grid / unique", f"{'meter':8}"]
        lines[-1] += "".join(f"{f'{bars} bars':>26}" for bars in _WINDOW_BARS)
        meters = dict.fromkeys(meter for meter, _ in self.windows)
        for meter in sorted(meters, key=lambda m: -self.windows[m, _WINDOW_BARS[0]].all):
            counts = [self.windows[meter, bars] for bars in _WINDOW_BARS]
            cells = (f"{c.all:,} / {c.on_grid:,} / {c.unique:,}" for c in counts)
            lines.append(f"{meter:8}" + "".join(f"{cell:>26}" for cell in cells))
        lines.append(f"rejected songs: {list_counts(self.rejected_songs)}")
        lines.append(f"rejected bars: {list_counts(self.rejected_bars)}")
        if self.moved_ends:
            lines.append(
                f"played notes: the ends of {self.moved_ends:,} in {self.moved_songs:,} songs were"
                " moved to the next onset or grid line"
            )
        if self.passed_over:
            lines.append(f"files passed over by their names: {list_counts(self.passed_over)}")
        return "\n".join(lines)


def list_counts(counts: Counter[str]) -> str:
    """List how many there are of each kind, the most frequent kind first."""
    return ", ".join(f"{count:,} {what}" for what, count in counts.most_common()) or "none"


def count_bars(table: pa.Table) -> IngestReport:
    """Count the songs, windows and rejections in a table of bars as an ingest reads them."""
    songs = table.filter(table["bar"].is_null())
    bars = table.filter(pc.is_valid(table["bar"]))
    report = IngestReport(
        songs=pc.sum(pc.equal(bars["bar"], 0)).as_py(),
        rejected_songs=Counter(songs["reason"].to_pylist()),
        rejected_bars=Counter(bars["reason"].drop_null().to_pylist()),
        moved_ends=pc.sum(bars["moved"]).as_py(),
        moved_songs=len(bars.filter(pc.greater(bars["moved"], 0))["song_id"].unique()),
        content_hash=hash_bars(bars),
    )
    _count_windows(bars, report.windows)
    return report


def _count_windows(bars: pa.Table, counts: defaultdict[tuple[str, int], WindowCount]) -> None:
    """Count windows of every length, by meter and in total."""
    song = np.cumsum(bars["bar"].to_numpy() == 0)
    meters = bars["meter"].combine_chunks().dictionary_encode()
    meter, names = meters.indices.to_numpy(), meters.dictionary.to_pylist()
    onsets = bars["onsets"].to_numpy()
    reasons = pa.array(["free meter", "short bar", "long bar"])
    whole = ~pc.is_in(bars["reason"], value_set=reasons).to_numpy()
    on_grid = bars["reason"].is_null().to_numpy()
    tokens, codes = bars["tokens"].to_pylist(), dict[tuple[int, ...], int]()
    code = np.array([codes.setdefault(tuple(t), len(codes)) if t else -1 for t in tokens])
    held = np.array([bool(t) and t[0] == HOLD for t in tokens]) * (
        pc.fill_null(bars["held"], 0).to_numpy().astype(np.int64) + 1
    )
    for length in _WINDOW_BARS:
        rows = np.arange(max(len(song) - length + 1, 0))[:, None] + np.arange(length)
        one = (song[rows] == song[rows[:, :1]]) & (meter[rows] == meter[rows[:, :1]])
        rows = rows[(one & whole[rows]).all(axis=1)]
        half = length // 2
        busy = np.minimum(onsets[rows[:, :half]].sum(axis=1), onsets[rows[:, half:]].sum(axis=1))
        rows = rows[busy >= half]
        good = rows[on_grid[rows].all(axis=1)]
        of = meter[good[:, :1]]
        unique = np.unique(np.hstack([of, held[good[:, :1]], code[good]]), axis=0)[:, 0]
        for kind in np.unique(meter[rows[:, 0]]):
            found = [(of == kind).sum() for of in (meter[rows[:, 0]], meter[good[:, 0]], unique)]
            for name in ("all", names[kind]):
                count = counts[name, length]
                count.all += int(found[0])
                count.on_grid += int(found[1])
                count.unique += int(found[2])
