"""Timing things against each other, and telling what came of it.

What is compared is run in turns, so that whatever else the machine does falls on both alike; times
are medians, and a ratio is the median of the rounds' ratios.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cf_core.files import replacing
from cf_core.training import describe_hardware

Action = Callable[[], object]


@dataclass(frozen=True)
class Measure:
    """One figure; without a `target` it is only reported."""

    name: str
    value: float
    unit: str
    target: float | None
    better: Literal["higher", "lower"]

    @property
    def verdict(self) -> str:
        """How the value stands to its target."""
        if self.target is None:
            return "reported"
        met = self.value >= self.target if self.better == "higher" else self.value <= self.target
        sign = ">=" if self.better == "higher" else "<="
        return f"{sign} {self.target:g}: {'met' if met else 'MISSED'}"


@dataclass(frozen=True)
class Rounds:
    """How thoroughly to measure, and on how small a scale."""

    repeats: int
    seconds: float
    """Least length of one timing."""
    scale: int
    """All sizes are divided by it."""

    def take_turns(self, *actions: Action) -> NDArray[np.float64]:
        """Seconds that one call of each action takes, a row per round: `[repeats, actions]`."""
        for action in actions:
            _timed(action, 1)
        calls = [1] * len(actions)
        if self.seconds:
            calls = [max(1, ceil(self.seconds / _timed(action, 1))) for action in actions]
        rounds = [
            [_timed(action, count) / count for action, count in zip(actions, calls, strict=True)]
            for _ in range(self.repeats)
        ]
        return np.array(rounds)


def find_device() -> str:
    """The device that the environment names in `DEVICE`: the CPU, or a GPU that is there."""
    device = os.environ.get("DEVICE", "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(f"DEVICE={device}: PyTorch finds no GPU here; leave DEVICE out")
    return device


def introduce(repeats: int) -> None:
    """Say what is measured on."""
    print(f"{describe_hardware()}, {torch.get_num_threads()} threads;", end=" ")
    print(f"torch {torch.__version__}; medians of {repeats} rounds")


def publish(measures: Sequence[Measure], output: Path) -> None:
    """Print the table and write it to `output` as JSON."""
    print()
    for measure in measures:
        print(f"{measure.name:32} {measure.value:12.4g} {measure.unit:12} {measure.verdict}")
    with replacing(output) as temporary:
        temporary.write_text(json.dumps([asdict(measure) for measure in measures], indent=1) + "\n")


def ratio(seconds: NDArray[np.float64], above: int, below: int) -> float:
    """Median over the rounds of one action's time over another's."""
    return float(np.median(seconds[:, above] / seconds[:, below]))


def tell(title: str, seconds: NDArray[np.float64], what: Sequence[str]) -> None:
    """Print the median time of each action."""
    times = zip(what, 1e3 * np.median(seconds, axis=0), strict=True)
    print(f"{title}: " + ", ".join(f"{name} {time:.4g} ms" for name, time in times))


def _timed(action: Action, calls: int) -> float:
    _wait()
    start = perf_counter()
    for _ in range(calls):
        action()
    _wait()
    return perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
