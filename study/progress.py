"""What a person sees while a study runs: live bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cf_core import training

_LINE_EVERY = 5.0
"""Seconds between plain lines of one job."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class Reporter:
    """Shows stages, and within them jobs that count up to a total.

    Use as a context manager; everything printed in between goes through `say`.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._stages = 0
        self._bars = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.console.is_terminal,
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
        self.console.print(f"\n{self._stages}. {title}", style="bold", markup=False)

    def say(self, text: str) -> None:
        """Print a line of the current stage."""
        self.console.print(f"  {text}", markup=False)

    @contextmanager
    def job(self, name: str, total: int | None) -> Iterator["Job"]:
        """A job that counts up to `total`; its bar goes away when it ends."""
        job = Job(name, total, self._bars, self.console)
        try:
            yield job
        finally:
            job.close()

    def follow(self, name: str, steps: Iterable[training.Progress]) -> None:
        """Train to the end, showing each report."""
        with self.job(name, None) as job:
            for progress in steps:
                job.update(progress.step, progress.total)


class Job:
    """One bar, or its plain lines: `Reporter.job` makes them."""

    def __init__(self, name: str, total: int | None, bars: Progress, console: Console) -> None:
        self.name, self.total, self._bars, self._console = name, total, bars, console
        self._task: TaskID | None = None
        self._first: tuple[float, int] | None = None
        self._printed = time.monotonic()

    def update(self, done: int, total: int | None = None) -> None:
        """Say that `done` of `total` is done."""
        self.total = self.total if total is None else total
        if self._bars.disable:
            self._line(done)
        elif self._task is None:
            self._task = self._bars.add_task(self.name, total=self.total, completed=done)
        else:
            self._bars.update(self._task, completed=done, total=self.total)

    def close(self) -> None:
        """Take the bar away."""
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None

    def _line(self, done: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        if now - self._printed < _LINE_EVERY:
            return
        self._printed = now
        since, start = self._first
        rate = (done - start) / (now - since) if now > since else 0.0
        line = f"{self.name}: {done}" + (f"/{self.total}" if self.total else "")
        if rate > 0:
            line += f", {rate:.1f}/s" if rate > 0.1 else f", {1 / rate:.0f} s each"
            if self.total:
                line += f", {(self.total - done) / rate:.0f} s left"
        self._console.print(f"  {line}", markup=False)
