"""Which trials are trained together: decided once, before the first of them, and written down."""

import json
import math
import os
import time
from collections.abc import Sequence
from itertools import takewhile
from statistics import median
from typing import Any

import torch

from cf_core.errors import UserError
from cf_core.files import replacing
from study.config import Execution, TrialSpec
from study.jobs import FINAL, PackSpec, Workbench, pack_trainer
from study.progress import Reporter
from study.store import Store

_GAIN = 1.1
"""A pack twice as large must train this many times more trial-steps a second to be worth it."""
_REPEATS = 5
_MEMORY_SHARE = 0.25
"""Part of the machine's memory that the packs of all workers may take."""


def planned_packs(
    trials: Sequence[TrialSpec],
    bench: Workbench,
    store: Store,
    execution: Execution,
    reporter: Reporter,
) -> list[PackSpec]:
    """The trials in packs, as an earlier run recorded them, else as now decided and recorded.

    A trial that failed in its pack is tried again by itself. Raises `UserError` for a record that
    does not hold these trials.
    """
    file = store.root / "packs.json"
    if not file.exists():
        record = _decide(trials, bench, execution)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n")
    by_id = {trial.id: trial for trial in trials}
    try:
        record = json.loads(file.read_text())
        packs = [tuple(by_id.pop(name) for name in names) for names in record["packs"]]
        size, measured = int(record["size"]), bool(record["trial_steps_per_second"])
    except (ValueError, KeyError, TypeError):
        packs = []
    if by_id or not packs:
        raise UserError(f"{file}: does not hold this study's trials; remove it and run again")
    why = ", as was measured to be fastest" if measured else ""
    if execution.pack not in ("auto", size):
        why = f", as {file.name} says; execution.pack counts before the first run only"
    reporter.say(f"{len(trials)} trials in packs of {size}{why}")
    failed = {name for name, status in store.done_trials().items() if status not in FINAL}
    whole = [tuple(trial for trial in pack if trial.id not in failed) for pack in packs]
    alone = [(trial,) for pack in packs for trial in pack if trial.id in failed]
    return [PackSpec(pack) for pack in (*whole, *alone) if pack]


def _decide(trials: Sequence[TrialSpec], bench: Workbench, execution: Execution) -> dict[str, Any]:
    rates: dict[int, float] = {}
    if execution.pack == "auto":
        rates = _measure(trials, bench, execution.workers)
        size = max(rates, key=lambda size: rates[size])
    else:
        size = execution.pack
    packs = [trials[start : start + size] for start in range(0, len(trials), size)]
    return {
        "size": size,
        "trial_steps_per_second": rates,
        "packs": [[trial.id for trial in pack] for pack in packs],
    }


def _measure(trials: Sequence[TrialSpec], bench: Workbench, workers: int) -> dict[int, float]:
    """Trial-steps per second of packs of 1, 2, 4, … trials, up to the last that was worth it."""
    most = min(math.ceil(len(trials) / workers), _most_in_memory(trials, bench, workers))
    rates: dict[int, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for size in takewhile(lambda size: size <= most, (2**power for power in range(16))):
            rate = _rate(trials[:size], bench)
            if rates and rate < _GAIN * max(rates.values()):
                break
            rates[size] = rate
    finally:
        torch.set_num_threads(threads)
    return rates


def _rate(trials: Sequence[TrialSpec], bench: Workbench) -> float:
    trainer, seconds = pack_trainer(trials, bench), []
    for _ in range(1 + _REPEATS):
        started = time.perf_counter()
        trainer.update()
        seconds.append(time.perf_counter() - started)
    return len(trials) / median(seconds[1:])


def _most_in_memory(trials: Sequence[TrialSpec], bench: Workbench, workers: int) -> int:
    """How many trials a worker's share of the memory holds; at least one."""
    state = pack_trainer(trials[:1], bench).state().values()
    settings, latent_dim = bench.fusion, bench.latents.mean.shape[1]
    # Gradients and their squares come on top of weights, moments and averages. Of all rows of an
    # update, each layer keeps its output, its gradient, and what the penalty's second pass needs.
    weights = 2 * sum(tensor.nbytes for tensor in state)
    rows = 4 * 11 * settings.batch
    activations = rows * (8 * latent_dim + 4 * settings.depth * settings.hidden)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, int(_MEMORY_SHARE * memory / workers / (weights + activations)))
