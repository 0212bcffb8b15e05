"""A study small enough to be run whole in tests, and ways to run it."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from rich.console import Console

from cf_core.files import place, replacing
from cf_core.melody import Note
from cf_core.render import write_midi
from cf_core.training import limit_threads
from study.cluster import connected
from study.config import Execution, StudyConfig
from study.dispatch import Task
from study.dispatch import Watch as Told
from study.execution import run_job
from study.ledger import Failure
from study.packs import Rates, measure_packs
from study.prepare import Crew, find_corpus, prepare, train_here
from study.progress import Bar, Reporter
from study.recording import record_references
from study.run import DRIVER_THREADS, root, run
from study.specs import TrialSpec
from study.store import Store
from study.tables import TABLES, drop_volatile
from study.workbench import Workbench

HEAD: dict[str, Any] = {"include_dashboard": False}
"""The head of a cluster in tests: a dashboard that nobody looks at takes seconds to start."""
GATES = ("token_accuracy", "onset_pitch_recall", "exact_segments", "valid_prior")
JUDGE = {
    "reader": {"latent_dim": 8, "hidden": 16, "embedding": 8, "steps": 40, "batch": 16},
    "members": 2, "hidden": 16, "steps": 40, "batch": 12,
}  # fmt: skip
EVALUATION: dict[str, Any] = {
    "pairs": 24,
    "validation_pairs": 20,
    "iterations": [1, 2],
    "lambda": [0.01, 1.0],
    "edits": [2, 6],
    "styles": 2,
    "rivals": ["lp"],
    "lp": {"step_sizes": [0.3], "iterations": [1, 5]},
}
"""The least that can be measured, with one rival."""


def melody(seed: int) -> list[Note]:
    """Twelve bars of 4/4: a random walk in quarters and eighths, unlike any other seed's."""
    random = np.random.default_rng(seed)
    pitch, onset, notes = 66, Fraction(0), []
    while onset < 48:
        length = Fraction(int(random.choice([1, 2])), 2)
        pitch = int(np.clip(pitch + random.integers(-4, 5), 55, 80))
        notes.append(Note(onset, min(length, 48 - onset), pitch))
        onset += length
    return notes


def write_melodies(folder: Path) -> None:
    """Forty tunes as MIDI files."""
    for seed in range(40):
        write_midi(melody(seed), folder / f"tune{seed}.mid", 120.0)


def tiny(melodies: Path, results: Path, **changes: Any) -> StudyConfig:
    settings: dict[str, Any] = {
        "name": "tiny",
        "corpus": {"source": str(melodies)},
        "core": {"latent_dim": 8, "hidden": 32, "embedding": 8, "steps": 120, "batch": 32},
        "core_gate": dict.fromkeys(GATES, 0),
        "search_classifier": {"hidden": 16, "steps": 30, "batch": 16},
        "continuation": {"hidden": 16, "steps": 30, "batch": 8},
        "writer": {"hidden": 16, "steps": 30, "batch": 8},
        "selection_judge": JUDGE,
        "reporting_judge": JUDGE | {"hidden": 24},
        "fusion": {"scheme": "poster", "hidden": 16, "steps": 120, "batch": 8, "d_steps": 1},
        "search": {"lambda": [0.1, "conditional"], "style_dim": [0, 2], "seeds": [0, 1]},
        "evaluation": EVALUATION
        | {
            "rivals": ["lp", "gradient", "cmaes", "best_of_n", "slerp", "retrieval", "rewriting"],
            "gradient": {"lambda": [0.1, 1.0], "iterations": [1, 3]},
            "cmaes": {"lambda": [0.1], "iterations": [1, 2]},
            "best_of_n": {"step_sizes": [0.1, 0.3], "iterations": [2]},
            "slerp": {"iterations": [1, 2]},
            "retrieval": {"iterations": [1, 4]},
            "rewriting": {"prices": [3.0]},
        },
        "execution": {"workers": 2, "pack": 2, "results": str(results)},
    }
    return StudyConfig.model_validate(settings | changes)


class OneRay:
    """A Ray that all runs of a test process share, since each start takes seconds."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def start(self) -> None:
        """Have it there."""
        if not ray.is_initialized():
            self._stack.enter_context(connected(Execution(workers=2)))

    def stop(self) -> None:
        """Have none there, for those that need another; it is started anew when it is needed."""
        self._stack.close()


RAY = OneRay()


class Watch(Reporter):
    """Keeps what is said, and stops the run (as Ctrl-C does) at the first line that matches."""

    def __init__(self, stop: str = "") -> None:
        super().__init__(Console(quiet=True))
        self.lines: list[str] = []
        self.stop = stop

    def say(self, text: str) -> None:
        self.lines.append(text)
        if self.stop and self.stop in text:
            raise KeyboardInterrupt

    @contextmanager
    def job(self, name: str, total: int | None) -> Iterator[Bar]:
        with super().job(name, total) as job:
            update = job.update

            def watched(done: int, total: int | None = None, note: str = "") -> None:
                update(done, total, note)
                self.say(f"{name} at {done}")

            job.update = watched  # type: ignore[method-assign]
            yield job


class Here:
    """Runs tasks in this process, one after the other: for tests of what comes of them.

    It takes the place of `study.ray_executor.RayExecutor`.
    """

    def __init__(
        self, bench: Workbench, store: Store, execution: Execution, _reporter: Reporter
    ) -> None:
        self._bench, self._store, self._execution = bench, store, execution

    def close(self) -> None:
        """Nothing was opened."""

    def run(self, tasks: Sequence[Task], watch: Told) -> list[Failure | None]:
        with limit_threads(1):  # as in a worker
            return [self._run(task, watch) for task in tasks]

    def _run(self, task: Task, watch: Told) -> Failure | None:
        failure = None
        watch.check()
        watch.start(task.job)
        try:
            for report in run_job(task.job, self._bench, self._store, task.attempts):
                watch.show(task.job, report)
        except Exception as error:  # noqa: BLE001  as in a worker
            failure = Failure.of(error)
        watch.end(task.job, failed=failure is not None)
        return failure

    def record_references(self) -> None:
        record_references(self._bench, self._store)

    def measure_packs(self, trials: Sequence[TrialSpec]) -> Rates:
        return measure_packs(trials, self._bench, self._execution.workers)


def stay_here(patch: pytest.MonkeyPatch) -> None:
    """Have networks and jobs of a run done in this process, without Ray."""
    patch.setattr("study.sweep.RayExecutor", Here)
    patch.setattr("study.run.make_crew", lambda *_: train_here)


def go(
    config: StudyConfig, stop: str = "", *, on_ray: bool = False, pictured: bool = False
) -> tuple[Store, list[str]]:
    """Run a study in this process, or on Ray, where each wave of tasks costs seconds.

    What is to run on this machine does so on the Ray that all tests share. Runs that write into a
    bucket don't, for its workers don't know where that is. Figures take long too: none is drawn,
    and it is said where they would be. The picture of the example is drawn if it is to be
    `pictured`.
    """
    execution = config.execution
    if on_ray and execution.address is None and isinstance(place(execution.results), Path):
        RAY.start()
    with Watch(stop) as reporter, pytest.MonkeyPatch.context() as patch:
        patch.setattr("study.run.draw", lambda store: [store.root / "figures"])
        if not pictured:
            patch.setattr("study.run.save", lambda *_: [])
        if not on_ray:
            stay_here(patch)
        return run(config, reporter), reporter.lines


def models(config: StudyConfig, stop: str = "", train: Crew = train_here) -> Store:
    """Make what all trials of a study share (melodies read, core, classifiers) and no more."""
    torch.set_num_threads(DRIVER_THREADS)
    with Watch(stop) as reporter:
        corpus = find_corpus(config, reporter)
        store = claim(config, corpus.content_hash)
        prepare(config, corpus, store, reporter, train)
    return store


def claim(config: StudyConfig, corpus: str) -> Store:
    store = Store(root(config))
    store.claim(
        config.identity(corpus),
        config.fingerprint(corpus),
        config.name,
        config.selection.model_dump(mode="json"),
    )
    return store


def furnish(config: StudyConfig, made: Store) -> StudyConfig:
    """Have a tiny study begin with what `models` made."""
    results = place(config.execution.results)
    claim(config, made.record["identity"]["corpus"])
    for file in (file for name in ("core", "classifiers") for file in (made.root / name).glob("*")):
        with replacing(root(config) / file.parent.name / file.name) as temporary:
            temporary.write_bytes(file.read_bytes())
    if isinstance(results, Path):
        shutil.copytree(str(made.root.parent / ".corpora"), results / ".corpora")
    return config


def assert_same_tables(store: Store, other: Store) -> None:
    for table in TABLES:
        ours, theirs = (drop_volatile(s.scan(table).collect(), table) for s in (store, other))
        assert ours.equals(theirs, null_equal=True), table
