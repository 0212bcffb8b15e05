"""`python -m benchmarks.study`: what sweeps, queries and ingests cost.

Prints one table and writes `benchmarks/out/study.json`, as `benchmarks.core` does. The sweeps run
as a study's do, through Ray Tune, over a made-up corpus; what they have in common (core, judges) is
tiny, and what is trained is as large as by default.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import polars as pl
from rich.console import Console

from benchmarks import ingest, query
from benchmarks.measuring import Measure, Rounds, introduce, publish
from cf_core.training import limit_threads, save_tensors, use_huge_pages
from study.config import StudyConfig
from study.dispatch import Dispatcher
from study.execution import make_trainer
from study.lease import Lease
from study.ledger import Ledger
from study.prepare import find_corpus, prepare
from study.progress import Reporter
from study.ray_executor import RayExecutor
from study.specs import Configuration, TrialSpec, group_packs
from study.store import Store
from study.workbench import REPORT_EVERY, Workbench
from tests.tiny import tiny, write_melodies

OUTPUT = Path(__file__).parent / "out" / "study.json"
TRIALS, SECONDS = 64, 20.0
"""Trials of the sweep whose overhead is measured, and about how long each trains."""
MANY, FEW = 2000, 200
"""Trials of the two sweeps whose drivers are compared."""


def main(repeats: int = 3, scale: int = 1, output: Path = OUTPUT) -> None:
    """Measure everything, print the table and write it to `output`."""
    introduce(repeats)
    rounds = Rounds(repeats, 0.2, scale)
    measures = [*overhead(scale), *growth(scale), *query.measures(rounds), *ingest.measures(rounds)]
    publish(measures, output)


def overhead(scale: int = 1) -> Iterator[Measure]:
    """A sweep of two workers, against half the time that its trials train."""
    with _bench({"hidden": 384, "batch": 64}) as (config, bench, store):
        steps, checkpoint = _steps(bench, SECONDS / scale)
        sweep, first = (
            [TrialSpec(Configuration(0.1, 4, (("steps", count),)), seed) for seed in range(number)]
            for count, number in ((steps, TRIALS), (1, 1))
        )
        with _workers(config, bench, store) as workers:
            # What starts Ray is not counted.
            workers.do(group_packs(first, 1, bench.fusion))
            started = perf_counter()
            workers.do(group_packs(sweep, 1, bench.fusion))
            wall = perf_counter() - started
        rows = store.trials.filter(pl.col("steps") == steps).collect()
    trained, whole = (float(rows[name].sum()) for name in ("training_seconds", "seconds"))
    checkpoints = TRIALS * checkpoint * -(-steps // REPORT_EVERY)
    training, evaluation = trained - checkpoints, whole - trained
    ratio = (wall - evaluation / 2) / (training / 2)
    print(
        f"{rows.height} trials of {training / TRIALS:.1f} s: wall {wall:.1f} s; shares of two"
        f" workers' time: training {training / 2 / wall:.3f}, checkpoints"
        f" {checkpoints / 2 / wall:.3f}, evaluation and writing {evaluation / 2 / wall:.3f},"
        f" scheduling {1 - whole / 2 / wall:.3f}"
    )
    yield Measure("sweep_overhead", ratio, "ratio", 1.10, "lower")
    yield Measure("sweep_scheduling_share", 1 - whole / 2 / wall, "share", None, "lower")
    yield Measure("sweep_checkpoint_share", checkpoints / 2 / wall, "share", None, "lower")
    yield Measure("sweep_evaluation_share", evaluation / 2 / wall, "share", None, "lower")


def growth(scale: int = 1) -> Iterator[Measure]:
    """Processor time and memory of the driver per trial: of many trials over few."""
    found = {}
    for trials in (FEW // scale, MANY // scale):
        # Each in a process of its own, whose memory is that of this sweep alone.
        command = [sys.executable, "-m", "benchmarks.study", "drive", str(trials)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        found[trials] = json.loads(done.stdout.splitlines()[-1])
        print(f"{trials} trivial trials: {found[trials]}")
    few, many = ({k: v / n for k, v in found[n].items()} for n in found)
    yield Measure(
        "driver_growth",
        max(many[k] / few[k] for k in ("seconds", "megabytes")),
        "ratio",
        1.2,
        "lower",
    )
    for name in ("seconds", "megabytes"):
        yield Measure(f"driver_growth_{name}", many[name] / few[name], "ratio", None, "lower")


def drive(count: int) -> dict[str, float]:
    """Seconds and megabytes of this process that a sweep of trivial trials takes."""
    with _bench({"hidden": 8, "steps": 1, "batch": 4}) as (config, bench, store):
        trials = [TrialSpec(Configuration(0.1, 0), seed) for seed in range(count)]
        with _workers(config, bench, store) as workers:
            workers.do(group_packs([TrialSpec(Configuration(0.2, 0), 0)], 1, bench.fusion))
            before, started = _memory(), process_time()
            workers.do(group_packs(trials, 1, bench.fusion))
            seconds, megabytes = process_time() - started, _memory() - before
        done = set(Ledger(store).list_statuses().values())
    if done != {"done"}:
        raise SystemExit(f"trials ended as {done}")
    return {"seconds": seconds, "megabytes": megabytes}


def _steps(bench: Workbench, seconds: float) -> tuple[int, float]:
    """Steps that take about `seconds` with two processes at work, and what a checkpoint takes."""
    trainer, times = make_trainer([TrialSpec(Configuration(0.1, 4), 0)], bench), []
    with limit_threads(1), TemporaryDirectory() as folder:
        for _ in range(30):
            started = perf_counter()
            trainer.update()
            times.append(perf_counter() - started)
        writing = []
        for _ in range(10):
            started = perf_counter()
            save_tensors(trainer.state(), Path(folder) / "state.safetensors")
            writing.append(perf_counter() - started)
    return max(1, round(seconds / median(times[5:]))), median(writing)


@contextmanager
def _bench(fusion: dict[str, Any]) -> Iterator[tuple[StudyConfig, Workbench, Store]]:
    """A study on made-up tunes that is ready to train."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "melodies").mkdir()
        write_melodies(folder / "melodies")
        plan = tiny(folder, folder).evaluation.model_dump() | {"iterations": [1], "rivals": []}
        config = tiny(folder / "melodies", folder, fusion=fusion, evaluation=plan)
        store, reporter = Store(folder / "study"), Reporter(Console(quiet=True))
        corpus = find_corpus(config, reporter)
        known = corpus.content_hash
        store.claim(config.identity(known), config.fingerprint(known), config.name)
        yield config, prepare(config, corpus, store, reporter), store


@contextmanager
def _workers(config: StudyConfig, bench: Workbench, store: Store) -> Iterator[Dispatcher]:
    reporter = Reporter(Console(quiet=True))
    with (
        Lease(store.root) as lease,
        closing(RayExecutor(bench, store, config.execution, reporter)) as executor,
    ):
        yield Dispatcher(executor, bench, store, reporter, lease)


def _memory() -> float:
    """Memory that this process has now, in 10⁶ bytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    use_huge_pages()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1:2] == ["drive"]:
        print(json.dumps(drive(int(sys.argv[2]))))
    else:
        main()
