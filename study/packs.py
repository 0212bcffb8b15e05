"""Decides how many trials are trained together; it is measured once, and recorded."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from statistics import median

import torch

from cf_core.errors import RecordsError
from cf_core.files import replacing
from cf_core.fusion import FusionSettings
from cf_core.graphs import WARM_UP
from study.config import Execution
from study.execution import make_trainer
from study.progress import Reporter
from study.specs import TrialSpec, group_packs
from study.store import Store
from study.workbench import Workbench

_GAIN, _GAIN_ON_GPU = 1.1, 1.03
"""A pack twice as large must train this many times as many trial-steps per second.

On an H100 a gain of 1.1 stopped at 128 trials, where 512 train an eighth more (`docs/gpu.json`).
"""
_REPEATS = 5
_MEMORY_SHARE = 0.25
"""Share of the machine's memory that the packs of all workers may take."""

Rates = Mapping[int, float]
"""Trial-steps per second, by the number of trials in a pack."""


@dataclass(frozen=True)
class PackPlan:
    """How trials are grouped into packs."""

    size: int
    """Most trials in a pack."""
    workers: int
    """Number of packs that there should be, if there are enough trials."""


def plan_packs(
    trials: Sequence[TrialSpec],
    fusion: FusionSettings,
    store: Store,
    execution: Execution,
    measure: Callable[[Sequence[TrialSpec]], Rates],
    reporter: Reporter,
) -> PackPlan:
    """Return the pack plan that an earlier run recorded; otherwise decide and record it now.

    `measure` calls `measure_packs` on the machine that trains. Raises `RecordsError` for a damaged
    record.
    """
    file = store.root / "packs.json"
    if not file.exists():
        rates: Rates = {}
        if execution.pack == "auto":
            packs = group_packs(trials, len(trials), fusion)
            alike = max(packs, key=lambda pack: len(pack.trials)).trials
            rates = measure(alike) if _share(alike, execution.workers) > 1 else {}
            size = max(rates, key=lambda size: rates[size], default=1)
            plan = PackPlan(size, execution.workers)
        else:
            plan = PackPlan(execution.pack, 1)
        record = asdict(plan) | {"trial_steps_per_second": dict(rates)}
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n")
    try:
        record = json.loads(file.read_text())
        plan = PackPlan(int(record["size"]), int(record["workers"]))
        measured = bool(record["trial_steps_per_second"])
    except (ValueError, KeyError, TypeError):
        raise RecordsError(f"{file}: is damaged; remove it and run again") from None
    why = ", which was measured to be fastest" if measured else ""
    if execution.pack not in ("auto", plan.size):
        why = f", as recorded in {file.name}; execution.pack counts only before the first run"
    reporter.say(f"trials are trained in packs of up to {plan.size}{why}")
    return plan


def measure_packs(trials: Sequence[TrialSpec], bench: Workbench, workers: int) -> Rates:
    """Measure packs of 1, 2, 4, … trials of one shape, as long as a larger pack gains enough.

    No pack is so large that one of `workers` would be idle, or that the device's memory would not
    hold it.
    """
    most = _share(trials, workers)
    gain = _GAIN if bench.device.type == "cpu" else _GAIN_ON_GPU
    if bench.device.type == "cpu":
        most = min(most, _most_in_memory(trials, bench, workers))
    rates: dict[int, float] = {}
    for size in takewhile(lambda size: size <= most, (2**power for power in range(16))):
        try:
            rate = _rate(trials[:size], bench)
        except torch.OutOfMemoryError:
            if not rates:
                raise
            break
        if rates and rate < gain * max(rates.values()):
            break
        rates[size] = rate
    return rates


def _share(trials: Sequence[TrialSpec], workers: int) -> int:
    """How many trials a pack may hold without leaving one of the workers idle."""
    return max(1, len(trials) // workers)


def _rate(trials: Sequence[TrialSpec], bench: Workbench) -> float:
    trainer, seconds = make_trainer(trials, bench), []
    for _ in range(WARM_UP + _REPEATS):
        started = time.perf_counter()
        trainer.update()
        torch.get_device_module(bench.device).synchronize()
        seconds.append(time.perf_counter() - started)
    return len(trials) / median(seconds[WARM_UP:])


def _most_in_memory(trials: Sequence[TrialSpec], bench: Workbench, workers: int) -> int:
    """Estimate how many trials fit into a worker's share of the memory; at least one."""
    state = make_trainer(trials[:1], bench).state().values()
    settings = trials[0].configuration.settings(bench.fusion)
    latent_dim = bench.latents.mean.shape[1]
    # Gradients and their squares are added to weights, moments and averages. For each row of an
    # update, a layer keeps its output, its gradient, and what the penalty's second pass needs.
    weights = 2 * sum(tensor.nbytes for tensor in state)
    rows = 4 * 11 * settings.batch
    activations = rows * (8 * latent_dim + 4 * settings.depth * settings.hidden)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, int(_MEMORY_SHARE * memory / workers / (weights + activations)))
