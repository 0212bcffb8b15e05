"""Which trials are trained together. How many is decided once and written down."""

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from statistics import median

import torch

from cf_core.errors import UserError
from cf_core.files import replacing
from cf_core.fusion import FusionSettings
from study.config import Execution, TrialSpec
from study.jobs import PackSpec, Workbench, pack_trainer
from study.progress import Reporter
from study.store import Store

_GAIN = 1.1
"""A pack twice as large must train this many times more trial-steps a second to be worth it."""
_REPEATS = 5
_MEMORY_SHARE = 0.25
"""Part of the machine's memory that the packs of all workers may take."""

Rates = Mapping[int, float]
"""Trial-steps per second, by the number of trials in a pack."""


def pack_size(
    trials: Sequence[TrialSpec],
    fusion: FusionSettings,
    store: Store,
    execution: Execution,
    measure: Callable[[Sequence[TrialSpec]], Rates],
    reporter: Reporter,
) -> int:
    """How many trials a pack holds, as an earlier run recorded it, else as now decided.

    `measure` is `pack_rates` where trials are trained. Raises `UserError` for a damaged record.
    """
    file = store.root / "packs.json"
    if not file.exists():
        rates: Rates = {}
        if execution.pack == "auto":
            alike = max(packed(trials, len(trials), fusion), key=lambda pack: len(pack.trials))
            rates = measure(alike.trials)
            size = max(rates, key=lambda size: rates[size])
        else:
            size = execution.pack
        record = {"size": size, "trial_steps_per_second": dict(rates)}
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n")
    try:
        record = json.loads(file.read_text())
        size, measured = int(record["size"]), bool(record["trial_steps_per_second"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file}: is damaged; remove it and run again") from None
    why = ", as was measured to be fastest" if measured else ""
    if execution.pack not in ("auto", size):
        why = f", as {file.name} says; execution.pack counts before the first run only"
    reporter.say(f"trials are trained in packs of up to {size}{why}")
    return size


def packed(
    trials: Sequence[TrialSpec],
    size: int,
    fusion: FusionSettings,
    batch: int = 0,
    start: int = 0,
    until: int | None = None,
) -> list[PackSpec]:
    """The trials in packs of one shape and budget, in their order; a function of these alone."""
    alike: dict[FusionSettings, list[TrialSpec]] = defaultdict(list)
    for trial in trials:
        own = trial.configuration.settings(fusion)
        alike[replace(own, learning_rate=fusion.learning_rate)].append(trial)
    return [
        PackSpec(pack, pack, batch, start, until)
        for group in alike.values()
        for pack in (tuple(group[at : at + size]) for at in range(0, len(group), size))
    ]


def pack_rates(
    trials: Sequence[TrialSpec], bench: Workbench, workers: int, device: str = "cpu"
) -> Rates:
    """Measure packs of 1, 2, 4, … trials of one shape, up to the last that is worth it.

    No pack holds more than an equal share of `trials` for each of `workers`, nor than fits into
    the memory of the device.
    """
    most = math.ceil(len(trials) / workers)
    if device == "cpu":
        most = min(most, _most_in_memory(trials, bench, workers))
    rates: dict[int, float] = {}
    for size in takewhile(lambda size: size <= most, (2**power for power in range(16))):
        try:
            rate = _rate(trials[:size], bench, device)
        except torch.OutOfMemoryError:
            if not rates:
                raise
            break
        if rates and rate < _GAIN * max(rates.values()):
            break
        rates[size] = rate
    return rates


def _rate(trials: Sequence[TrialSpec], bench: Workbench, device: str) -> float:
    trainer, seconds = pack_trainer(trials, bench, device=device), []
    for _ in range(1 + _REPEATS):
        started = time.perf_counter()
        trainer.update()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return len(trials) / median(seconds[1:])


def _most_in_memory(trials: Sequence[TrialSpec], bench: Workbench, workers: int) -> int:
    """How many trials a worker's share of the memory holds; at least one."""
    state = pack_trainer(trials[:1], bench).state().values()
    settings = trials[0].configuration.settings(bench.fusion)
    latent_dim = bench.latents.mean.shape[1]
    # Gradients and their squares come on top of weights, moments and averages. Of all rows of an
    # update, each layer keeps its output, its gradient, and what the penalty's second pass needs.
    weights = 2 * sum(tensor.nbytes for tensor in state)
    rows = 4 * 11 * settings.batch
    activations = rows * (8 * latent_dim + 4 * settings.depth * settings.hidden)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, int(_MEMORY_SHARE * memory / workers / (weights + activations)))
