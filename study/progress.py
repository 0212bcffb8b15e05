"""Reports the progress of a study: live bars on a terminal, plain lines elsewhere, or JSON."""

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from cf_core import training

_LINE_EVERY = 5.0
"""Seconds between plain lines of one job."""

_RATE_OVER = 30.0
"""Seconds over which a rate is measured; training and evaluation have different rates."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class Reporter:
    """Shows stages, and within them jobs that count up to a total.

    Use it as a context manager, and print everything within it through `say`. With `as_json` each
    line is a JSON object with `event` ("stage", "message" or "progress") and the event's fields.
    """

    def __init__(self, console: Console | None = None, *, as_json: bool = False) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.as_json = as_json
        self._stages = 0
        self._bars = Bars(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=as_json or not self.console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def stage(self, title: str) -> None:
        """Begin a stage; stages are numbered from 1."""
        self._stages += 1
        if self.as_json:
            self.emit("stage", number=self._stages, title=title)
            return
        self.console.print(f"\n{self._stages}. {title}", style="bold", markup=False)

    def say(self, text: str) -> None:
        """Print a line of the current stage."""
        if self.as_json:
            self.emit("message", text=text)
        else:
            self.console.print(f"  {text}", markup=False)

    def emit(self, event: str, **about: object) -> None:
        """Print one event as a line of JSON."""
        line = {"event": event, "time": time.time(), **about}
        self.console.out(json.dumps(line), highlight=False)

    @contextmanager
    def job(self, name: str, total: int | None) -> Iterator["Bar"]:
        """Show a job that counts up to `total`; its bar disappears when the job ends."""
        bar = Bar(name, total, self._bars, self)
        try:
            yield bar
        finally:
            bar.close()

    def follow(self, name: str, steps: Iterable[training.Progress]) -> None:
        """Run a training to its end, and show each report."""
        with self.job(name, None) as job:
            for progress in steps:
                job.update(progress.step, progress.total)


class Bar:
    """One bar, or the plain lines in its place; made by `Reporter.job`."""

    def __init__(self, name: str, total: int | None, bars: Bars, reporter: Reporter) -> None:
        self.name, self.total, self._bars, self._reporter = name, total, bars, reporter
        self._task: TaskID | None = None
        self._seen: deque[tuple[float, int]] = deque()
        """Pairs of a time and what was done by then, over the last half minute."""
        self._printed = time.monotonic()

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Show that `done` of `total` is done, with a note if there is one."""
        self.total = self.total if total is None else total
        if self._bars.disable:
            self._line(done, note)
            return
        shown = f"{self.name} ({note})" if note else self.name
        if self._task is None:
            self._task = self._bars.add_task(shown, total=self.total, completed=done)
        else:
            self._bars.update(self._task, description=shown, completed=done, total=self.total)

    def close(self) -> None:
        """Remove the bar."""
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None

    def _line(self, done: int, note: str) -> None:
        now = time.monotonic()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > _RATE_OVER:
            self._seen.popleft()
        if now - self._printed < _LINE_EVERY:
            return
        self._printed = now
        since, start = self._seen[0]
        rate = (done - start) / (now - since) if now > since else 0.0
        left = (self.total - done) / rate if self.total and rate > 0 else None
        if self._reporter.as_json:
            self._reporter.emit(
                "progress", job=self.name, done=done, total=self.total, per_second=rate,
                seconds_left=left, note=note,
            )  # fmt: skip
            return
        line = f"{self.name}: {done}" + (f"/{self.total}" if self.total else "")
        if rate > 0:
            line += f", {rate:.1f}/s" if rate > 0.1 else f", {1 / rate:.0f} s each"
        if left is not None:
            line += f", {left:.0f} s left"
        self._reporter.say(line + (f" ({note})" if note else ""))
