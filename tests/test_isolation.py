"""What is done in processes of their own, by functions that any process can import."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from cf_core import isolation
from cf_core.isolation import CallError, call_isolated, processes


@pytest.mark.parametrize(
    ("function", "argument", "reason"),
    [
        (time.sleep, 60, "too slow"),
        # Never comes back to Python, so that nothing in Python could stop it.
        (math.factorial, 10**9, "too slow"),
        (bytearray, 2**30, "too much memory"),
        (signal.raise_signal, signal.SIGSEGV, "reader died"),
        (os._exit, 0, "reader died"),
        (int, "no number", "reader died"),
    ],
)
def test_a_call_that_fails_fails_alone(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], argument: Any, reason: str
) -> None:
    monkeypatch.setattr(isolation, "SECONDS", 0.5)
    with pytest.raises(CallError) as caught:
        call_isolated(function, argument)
    assert caught.value.reason == reason
    assert call_isolated(abs, -3) == 3


def test_calls_share_a_process_that_is_not_ours() -> None:
    first, second = call_isolated(os.getpid), call_isolated(os.getpid)
    assert first == second != os.getpid()


def test_a_mapper_does_every_item_once_and_takes_them_as_it_needs_them() -> None:
    assert sorted(processes(3)(abs, range(-50, 0))) == list(range(1, 51))
    taken = count()
    endless = processes(2)(abs, taken)
    assert isinstance(next(endless), int)
    assert next(taken) < 10


def pids(_: object) -> tuple[int, int]:
    return os.getpid(), call_isolated(os.getpid)


def test_processes_end_with_the_mapper() -> None:
    for stop_early in (False, True):
        results: Iterator[tuple[int, int]] = processes(2)(pids, range(40))
        found = {next(results)} if stop_early else set(results)
        del results
        for ours, theirs in found:
            assert ours == os.getpid()
            with pytest.raises(ProcessLookupError):
                os.kill(theirs, 0)


def test_a_script_need_not_guard_its_main() -> None:
    script = "from cf_core.isolation import processes; print(*processes(1)(abs, [-1]))"
    shown = subprocess.run(
        [sys.executable, "-"], input=script, capture_output=True, text=True, check=True
    )
    assert (shown.stdout, shown.stderr) == ("1\n", "")
