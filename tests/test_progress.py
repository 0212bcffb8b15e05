"""What is printed where no terminal is."""

import io
import json
from collections.abc import Callable

import pytest
from rich.console import Console

from study.progress import Reporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [100.0]
    monkeypatch.setattr("study.progress.time.monotonic", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def printed(run: Callable[[Reporter], None]) -> list[str]:
    text = io.StringIO()
    with Reporter(Console(file=text, force_terminal=False, width=200, soft_wrap=True)) as reporter:
        run(reporter)
    return text.getvalue().splitlines()


def test_lines_come_every_five_seconds_with_rate_and_time_left(
    clock: Callable[[float], None],
) -> None:
    def run(reporter: Reporter) -> None:
        with reporter.job("core", 100) as job:
            for done in range(0, 101, 10):
                job.update(done)
                clock(2)

    # 5 a second, first seen at 0: lines when 5 s have passed since the last.
    assert printed(run) == [
        "  core: 30/100, 5.0/s, 14 s left",
        "  core: 60/100, 5.0/s, 8 s left",
        "  core: 90/100, 5.0/s, 2 s left",
    ]


def test_a_rate_counts_from_where_a_resumed_job_began(clock: Callable[[float], None]) -> None:
    def run(reporter: Reporter) -> None:
        with reporter.job("trial", 1000) as job:
            job.update(900)
            clock(10)
            job.update(910)

    assert printed(run) == ["  trial: 910/1000, 1.0/s, 90 s left"]


def test_a_slow_job_says_how_long_each_takes(clock: Callable[[float], None]) -> None:
    def run(reporter: Reporter) -> None:
        with reporter.job("songs", None) as job:
            job.update(0)
            clock(60)
            job.update(3)

    assert printed(run) == ["  songs: 3, 20 s each"]


def test_stages_are_numbered_and_names_are_not_markup() -> None:
    def run(reporter: Reporter) -> None:
        reporter.stage("Corpus")
        reporter.say("[red]song[/red]")
        reporter.stage("Core")

    assert printed(run) == ["", "1. Corpus", "  [red]song[/red]", "", "2. Core"]


def test_programs_get_each_event_as_a_line_of_json(clock: Callable[[float], None]) -> None:
    text = io.StringIO()
    with Reporter(Console(file=text, width=20), as_json=True) as reporter:
        reporter.stage("Corpus of a name that is longer than a line")
        reporter.say("[red]song[/red]")
        with reporter.job("core", 100) as job:
            job.update(0)
            clock(10)
            job.update(20, note="2 of 3")
    events = [json.loads(line) for line in text.getvalue().splitlines()]
    assert all(event.pop("time") > 0 for event in events)
    assert events == [
        {
            "event": "stage",
            "number": 1,
            "title": "Corpus of a name that is longer than a line",
        },
        {"event": "message", "text": "[red]song[/red]"},
        {
            "event": "progress",
            "job": "core",
            "done": 20,
            "total": 100,
            "per_second": 2.0,
            "seconds_left": 40.0,
            "note": "2 of 3",
        },
    ]
