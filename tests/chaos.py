"""A study under real misfortune: processes killed, nodes lost, disks full, trials that misbehave.

`python -m tests.chaos` does all of it and writes `benchmarks/out/chaos.json`; the cheapest parts
are tests. After each misfortune the same command is given again, and the tables are held against
those of a run that nothing happened to.

It is long, since every misfortune is a function.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from ray.cluster_utils import Cluster

from cf_core.errors import StudyBusyError
from cf_core.files import AnyPath, replacing
from study import ledger
from study.config import StudyConfig
from study.store import Store
from study.tables import TABLES, drop_volatile
from tests.tiny import HEAD, go, tiny, write_melodies

OUTPUT = Path(__file__).parent.parent / "benchmarks" / "out" / "chaos.json"
PATIENCE = 600.0
"""Seconds after which anything here counts as stuck."""
_LONGEST_STOP = 10.0
"""Seconds within which an interrupted run has to end, on a machine that does nothing else."""

FAULTS = """
import builtins, os, sys, time
real = builtins.__import__
def watched(*names, **more):
    module = real(*names, **more)
    jobs = sys.modules.get("study.execution")
    if jobs is not None and hasattr(jobs, "_evaluate") and not hasattr(jobs, "_real"):
        jobs._real = jobs._evaluate
        def finish(trial, *rest):
            if trial.id == os.environ.get("CHAOS_TRIAL"):
                kind = os.environ["CHAOS_KIND"]
                if kind == "raise":
                    raise ValueError("no such thing")
                if kind == "hang":
                    time.sleep(10_000)
                if kind == "memory":
                    hoard = [bytearray(10**8) for _ in range(10**4)]
                if kind == "die":
                    os._exit(1)
            yield from jobs._real(trial, *rest)
        jobs._evaluate = finish
    return module
builtins.__import__ = watched
"""
"""A `sitecustomize` module that has one trial misbehave when it is evaluated."""


@dataclass
class Toll:
    """What misfortunes cost."""

    kills: int = 0
    lost: int = 0
    """Finished trials whose records were gone afterwards."""
    repeated: int = 0
    """Finished trials that were handed out again."""
    differing_rows: int = 0
    """Rows of any table that an undisturbed run has otherwise."""
    slowest_stop: float = 0.0
    """Most seconds from an interrupt to the end of the run."""
    scenarios: list[str] = field(default_factory=list)


class Arena:
    """A folder with melodies and one tiny study that nothing happened to."""

    def __init__(self, folder: Path, melodies: Path) -> None:
        self.folder, self.melodies = folder, melodies
        self.toll = Toll()

    def study(
        self, name: str, execution: Mapping[str, Any] | None = None, **changes: Any
    ) -> StudyConfig:
        """The tiny study, in training long enough to be struck, with results of its own."""
        fusion = {"scheme": "poster", "hidden": 16, "steps": 250, "batch": 8}
        config = tiny(self.melodies, self.folder / name, **{"fusion": fusion, **changes})
        own = config.execution.model_copy(update=dict(execution or {}))
        return config.model_copy(update={"execution": own})

    def start(
        self, config: StudyConfig, environment: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        """Run it by the command line, as a process (and a group) of its own."""
        file = self.folder / f"{Path(config.execution.results).name}.yaml"
        file.write_text(config.model_dump_json(by_alias=True))
        bare = "study.run.draw = study.run.save = lambda *_: []"
        code = f"import study.run, study.cli; {bare}; study.cli.main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, "run", str(file)],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(
        self, config: StudyConfig, code: int = 0, environment: Mapping[str, str] | None = None
    ) -> str:
        """Run it to the end, which must have that exit status; what it said."""
        process = self.start(config, environment)
        try:
            said, _ = process.communicate(timeout=PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode != code:
            raise AssertionError(f"exit status {process.returncode}, not {code}:\n{said[-3000:]}")
        return said

    def faults(self, kind: str, trial: str) -> dict[str, str]:
        """Environment in which one trial misbehaves."""
        folder = self.folder / "faults"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(FAULTS)
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        return {"PYTHONPATH": path, "CHAOS_KIND": kind, "CHAOS_TRIAL": trial}

    def count(self, config: StudyConfig, before: "Progress") -> None:
        """Count what was done before, and is lost or was handed out again."""
        after = Progress.of(store_of(config))
        self.toll.lost += len(before.done - after.done)
        self.toll.repeated += sum(
            after.handed_out[trial] > before.handed_out[trial] for trial in before.done
        )

    def settle(
        self, name: str, config: StudyConfig, undisturbed: Store, before: "Progress"
    ) -> None:
        """Count what is lost, repeated or different once all is done."""
        self.count(config, before)
        self.toll.differing_rows += differing_rows(store_of(config), undisturbed)
        self.toll.scenarios.append(name)


@dataclass(frozen=True)
class Progress:
    """What is done, and how often each trial was handed out."""

    done: frozenset[str] = frozenset()
    handed_out: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store) -> "Progress":
        """The ledger as it stands; empty before a study is begun."""
        if not (store.root / "study.json").exists():
            return cls()
        store = Store(store.root)
        done = {
            name
            for name, status in ledger.Ledger(store).list_statuses().items()
            if status == "done"
        }
        return cls(frozenset(done), ledger.Ledger(store).count_attempts())


def store_of(config: StudyConfig) -> Store:
    """The records of a study."""
    return Store(Path(config.execution.results) / config.name)


def under_way(config: StudyConfig) -> list[AnyPath]:
    """Checkpoints of packs that are being trained."""
    names = "[0-9a-f]" * 16 + ".safetensors"
    return list((store_of(config).root / "checkpoints").glob(names))


def differing_rows(one: Store, other: Store) -> int:
    """Rows of all tables that only one of two studies has, volatile columns aside."""
    count = 0
    for table in TABLES:
        ours, theirs = (drop_volatile(s.scan(table).collect(), table) for s in (one, other))
        if not ours.equals(theirs, null_equal=True):
            count += max(1, abs(ours.height - theirs.height), _unequal(ours, theirs))
    return count


def _unequal(ours: pl.DataFrame, theirs: pl.DataFrame) -> int:
    if ours.height != theirs.height:
        return 0
    flags = [
        ours[name].cast(pl.String, strict=False).ne_missing(theirs[name].cast(pl.String))
        for name, kind in ours.schema.items()
        if not kind.is_nested()
    ]
    return int(pl.DataFrame(flags).select(pl.any_horizontal(pl.all())).to_series().sum())


def workers_of(pid: int) -> list[int]:
    """Processes below `pid` that do trials."""
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        for child in _children(parent):
            todo.append(child)
            with suppress(OSError):
                name = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace")
                if name.startswith("ray::") and "train" in name:
                    found.append(child)
    return found


def _children(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            yield from map(int, (task / "children").read_text().split())


def wait_for(what: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """What `what` gives once it gives something. `AssertionError` if it never does."""
    until = time.monotonic() + patience
    while not (found := what()):
        if time.monotonic() > until:
            raise AssertionError("waited in vain")
        time.sleep(0.2)
    return found


def kill(process: "subprocess.Popen[str]") -> None:
    """kill -9 the process that runs a study, and no other."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


# ---- misfortunes ---------------------------------------------------------------------------------


def drivers_killed(arena: Arena, times: int) -> None:
    """kill -9 of the driver at random moments, over one study, large enough to outlast them."""
    search = {"lambda": [0.1, "conditional"], "style_dim": [0, 2], "seeds": list(range(48))}
    calm, config = (arena.study(name, search=search) for name in ("calm many", "drivers"))
    arena.finish(calm)
    random = np.random.default_rng(0)
    for number in range(times):
        before = Progress.of(store_of(config))
        process = arena.start(config)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=float(random.uniform(4, 21)))
        assert process.poll() is None, f"the study was over after {number} kills"
        kill(process)
        arena.toll.kills += 1
        arena.count(config, before)
    before = Progress.of(store_of(config))
    assert before.done, "no kill came after a trial was done"
    arena.finish(config)
    arena.settle("driver killed", config, store_of(calm), before)


def worker_killed(arena: Arena, undisturbed: Store) -> None:
    """kill -9 of a worker in the middle of a trial: the run itself tries again."""
    config, process = _in_the_middle(arena, "worker")
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    arena.toll.kills += 1
    assert "the worker died" in _ended(process)
    arena.settle("worker killed", config, undisturbed, Progress.of(store_of(config)))


def trial_misbehaves(arena: Arena, undisturbed: Store, kind: str, *, alone: bool) -> None:
    """A trial raises, hangs, eats memory or takes its process along; its pack goes on."""
    trial = "lambda0.1-style2-seed0"
    limits: dict[str, Any] = {"trial_seconds": 30.0, "memory_gb": 4.0, "pack": 1 if alone else 2}
    config = arena.study(f"{kind}-{alone}", limits)
    said = arena.finish(config, environment=arena.faults(kind, trial))
    statuses = ledger.Ledger(store_of(config)).list_statuses()
    assert {name for name, status in statuses.items() if status != "done"} == {trial}, said[-3000:]
    before = Progress.of(store_of(config))
    arena.finish(config)
    arena.settle(f"trial: {kind}", config, undisturbed, before)


def everything_at_once(arena: Arena, config: StudyConfig, undisturbed: Store) -> None:
    """In one run a second driver, a worker killed, the driver killed; Ctrl-C in the next.

    The second driver is this process, which also does what is left in the end. One worker goes on
    where two were stopped.
    """
    process = arena.start(config)
    wait_for(lambda: list((store_of(config).root / "runs").glob("*.json")))
    with pytest.raises(StudyBusyError, match=f"is being run by process {process.pid}"):
        go(config)
    victim, *_ = wait_for(lambda: workers_of(process.pid))
    wait_for(lambda: under_way(config))
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: len(Progress.of(store_of(config)).done) >= 1)
    wait_for(lambda: max(Progress.of(store_of(config)).handed_out.values()) == 2)
    kill(process)
    arena.toll.kills += 2
    alone = config.execution.model_copy(update={"workers": 1})
    config = config.model_copy(update={"execution": alone})
    before = Progress.of(store_of(config))
    _interrupt(arena, config)
    go(config)
    arena.settle("worker and driver killed", config, undisturbed, before)


def two_drivers(arena: Arena, undisturbed: Store) -> None:
    """A second driver on one study is refused, and told who holds it."""
    config = arena.study("two")
    first = arena.start(config)
    wait_for(lambda: list((store_of(config).root / "runs").glob("*.json")))
    _refused(arena.start(config), first)
    _ended(first)
    arena.settle("two drivers", config, undisturbed, Progress.of(store_of(config)))


def interrupted(arena: Arena, undisturbed: Store) -> None:
    """Ctrl-C stops within 10 s and says how to go on."""
    config = arena.study("interrupted")
    for sign in (signal.SIGINT, signal.SIGTERM):
        _interrupt(arena, config, sign)
    before = Progress.of(store_of(config))
    arena.finish(config)
    arena.settle("interrupted", config, undisturbed, before)


def _in_the_middle(
    arena: Arena, name: str, execution: Mapping[str, Any] | None = None
) -> "tuple[StudyConfig, subprocess.Popen[str]]":
    """A study that has begun to train, and the process that runs it."""
    config = arena.study(name, execution)
    process = arena.start(config)
    wait_for(lambda: under_way(config))
    return config, process


def _ended(process: "subprocess.Popen[str]") -> str:
    """Wait until a run has come to its end, and well; what it said."""
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said[-3000:]
    return said


def _interrupt(arena: Arena, config: StudyConfig, sign: signal.Signals = signal.SIGINT) -> None:
    process = arena.start(config)
    wait_for(lambda: workers_of(process.pid))
    wait_for(lambda: under_way(config))
    began = time.monotonic()
    process.send_signal(sign)
    said, _ = process.communicate(timeout=PATIENCE)
    arena.toll.slowest_stop = max(arena.toll.slowest_stop, time.monotonic() - began)
    assert process.returncode == 130, said[-3000:]
    assert "give the same command again" in said


def _refused(second: "subprocess.Popen[str]", first: "subprocess.Popen[str]") -> None:
    said, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 2, said[-3000:]
    assert f"is being run by process {first.pid}" in said, said


@contextmanager
def nodes(count: int) -> Iterator[Cluster]:
    """A cluster of one head that does nothing and some nodes with one CPU each."""
    cluster = Cluster(initialize_head=True, head_node_args=HEAD | {"num_cpus": 0})
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def node_killed(arena: Arena, undisturbed: Store) -> None:
    """A node with a worker on it goes away; the rest of the cluster takes over."""
    with nodes(2) as cluster:
        config, process = _in_the_middle(arena, "node", {"address": cluster.address})
        victim = next(iter(cluster.worker_nodes))
        cluster.remove_node(victim, allow_graceful=False)
        arena.toll.kills += 1
        _ended(process)
    arena.settle("node killed", config, undisturbed, Progress.of(store_of(config)))


def zombie(arena: Arena, undisturbed: Store) -> None:
    """A node is declared dead while its worker goes on and writes."""
    with nodes(2) as cluster:
        config, process = _in_the_middle(arena, "zombie", {"address": cluster.address})
        victim = next(iter(cluster.worker_nodes))
        raylet = victim.all_processes["raylet"][0].process.pid
        os.kill(raylet, signal.SIGSTOP)
        arena.toll.kills += 1
        try:
            _ended(process)
        finally:
            os.kill(raylet, signal.SIGCONT)
    arena.settle("zombie", config, undisturbed, Progress.of(store_of(config)))


def disk_full(arena: Arena, undisturbed: Store) -> bool:
    """The results folder is full midway, then read-only, then well again; False if not allowed."""
    config = arena.study("disk")
    place = Path(config.execution.results)
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        return False
    try:
        said = arena.finish(config, code=2)
        assert "No space left" in said, said[-3000:]
        _remount(place, "ro,size=200m")
        said = arena.finish(config, code=2)
        assert "Read-only" in said, said[-3000:]
        _remount(place, "rw,size=200m")
        before = Progress.of(store_of(config))
        arena.finish(config)
        arena.settle("disk full, then read-only", config, undisturbed, before)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
    return True


def _remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def main(arguments: Sequence[str]) -> None:
    """Do all of it and write down the toll."""
    times = int(arguments[0]) if arguments else 20
    with tempfile.TemporaryDirectory() as folder:
        melodies = Path(folder) / "melodies"
        melodies.mkdir()
        write_melodies(melodies)
        arena = Arena(Path(folder), melodies)
        calm = arena.study("calm")
        arena.finish(calm)
        undisturbed = store_of(calm)
        singles = arena.study("singles", {"pack": 1})
        arena.finish(singles)
        parts: list[Callable[[], Any]] = [
            lambda: worker_killed(arena, undisturbed),
            lambda: two_drivers(arena, undisturbed),
            lambda: interrupted(arena, undisturbed),
            *(
                lambda kind=kind: trial_misbehaves(arena, undisturbed, kind, alone=False)
                for kind in ("raise", "hang", "memory", "die")
            ),
            *(
                lambda kind=kind: trial_misbehaves(arena, store_of(singles), kind, alone=True)
                for kind in ("raise", "hang", "memory", "die")
            ),
            lambda: node_killed(arena, undisturbed),
            lambda: zombie(arena, undisturbed),
            lambda: disk_full(arena, undisturbed),
            lambda: drivers_killed(arena, times),
        ]
        failures = 0
        for part in parts:
            began = time.monotonic()
            try:
                if part() is False:
                    print("disk full: not tried, since nothing may be mounted here")
            except AssertionError as error:
                failures += 1
                print(f"FAILED: {error}")
            print(f"{arena.toll} after {time.monotonic() - began:.0f} s", flush=True)
        toll = arena.toll
    if toll.slowest_stop > _LONGEST_STOP:
        failures += 1
        print(f"FAILED: a run went on for {toll.slowest_stop:.0f} s after it was interrupted")
    if failures:
        raise SystemExit(f"{failures} of {len(parts)} misfortunes did not end as they should")
    with replacing(OUTPUT) as temporary:
        names = ("kills", "lost", "repeated", "differing_rows", "slowest_stop")
        figures = {name: getattr(toll, name) for name in names}
        temporary.write_text(json.dumps(figures | {"scenarios": toll.scenarios}, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
