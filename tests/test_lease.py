"""A study is run by one process at a time, whoever comes, dies or is late."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from cf_core.errors import RecordsError, StudyBusyError, UserError
from cf_core.files import AnyPath, place
from study import lease
from study.lease import Lease

SPAWN = multiprocessing.get_context("spawn")
RACERS, ROUNDS = 4, 50


@pytest.fixture(params=["folder", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    """A study's folder, in either kind of place."""
    return (
        tmp_path
        if request.param == "folder"
        else place(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")
    )


def leave(root: Path, **changes: Any) -> None:
    """Leave a holder behind: of another machine, heard of at second 1000."""
    holder = {
        "host": "elsewhere", "machine": "another", "pid": 1, "started": "before", "alive": 1000.0,
        "over": False,
    } | changes  # fmt: skip
    folder = root / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("*.json"))) + 1
    (folder / f"{number:05d}.json").write_text(json.dumps(holder))


def race(root: Path, start: Any, over: Any, wins: Any) -> None:
    """Enter at the same moment as others, round after round; who gets in stays till all tried."""
    for number in range(ROUNDS):
        with ExitStack() as stack:
            start.wait(60)
            try:
                stack.enter_context(Lease(root))
            except StudyBusyError:
                pass
            else:
                wins.put(number)
            over.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("holder", ["nobody", "a dead one"])
def test_of_processes_that_enter_at_once_exactly_one_gets_in(tmp_path: Path, holder: str) -> None:
    if holder == "a dead one":
        leave(tmp_path)
    start, over, wins = SPAWN.Barrier(RACERS), SPAWN.Barrier(RACERS), SPAWN.Queue()
    racers = [SPAWN.Process(target=race, args=(tmp_path, start, over, wins)) for _ in range(RACERS)]
    for racer in racers:
        racer.start()
    won = [wins.get(timeout=60) for _ in range(ROUNDS)]
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert sorted(won) == list(range(ROUNDS))
    assert wins.empty()


@pytest.mark.slow
def test_of_those_that_enter_a_bucket_at_once_at_most_one_gets_in(bucket: str) -> None:
    start, over = Barrier(RACERS), Barrier(RACERS)

    def enter(root: AnyPath) -> bool:
        with ExitStack() as stack:
            start.wait(60)
            try:
                stack.enter_context(Lease(root))
            except UserError:  # moto fails where a file is read while another withdraws it
                return False
            finally:
                over.wait(60)
        return True

    with ThreadPoolExecutor(RACERS) as threads:
        for number in range(10):
            root = place(f"{bucket}/race{number}")
            assert sum(threads.map(enter, [root] * RACERS)) <= 1
            with Lease(root):
                pass


def test_the_holder_is_named_and_followed(root: AnyPath) -> None:
    for _ in range(3):
        with Lease(root) as held:
            held.check()
            with pytest.raises(StudyBusyError, match=f"run by process {os.getpid()} on .* since"):
                Lease(root).__enter__()


def hold(root: Path, held: Any) -> None:
    with Lease(root):
        held.set()
        time.sleep(600)


def test_one_that_was_killed_is_followed_at_once_on_the_same_machine(tmp_path: Path) -> None:
    held = SPAWN.Event()
    holder = SPAWN.Process(target=hold, args=(tmp_path, held))
    holder.start()
    assert held.wait(60)
    with pytest.raises(StudyBusyError, match=f"run by process {holder.pid} "):
        Lease(tmp_path).__enter__()
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(60)
    with Lease(tmp_path):
        pass


def test_one_of_another_machine_is_followed_a_minute_after_its_last_sign(tmp_path: Path) -> None:
    leave(tmp_path)
    with pytest.raises(StudyBusyError, match=r"process 1 on elsewhere .* last heard of 59 s ago"):
        Lease(tmp_path, lambda: 1059.0).__enter__()
    with Lease(tmp_path, lambda: 1061.0):
        pass


def test_another_container_of_the_same_name_is_not_taken_for_dead(tmp_path: Path) -> None:
    with Lease(tmp_path):
        (file,) = (tmp_path / "runs").iterdir()
        # No process here has that number.
        holder = json.loads(file.read_text()) | {"machine": "another", "pid": 2**22 + 1}
        file.write_text(json.dumps(holder))
        with pytest.raises(StudyBusyError):
            Lease(tmp_path).__enter__()


def at_first(happens: Callable[[], object]) -> Callable[[], float]:
    """A clock at second 2000; what happens elsewhere when it is first looked at."""
    todo = [happens]

    def clock() -> float:
        if todo:
            todo.pop()()
        return 2000.0

    return clock


def test_who_saw_a_dead_holder_does_not_get_in_after_another_did(root: AnyPath) -> None:
    if isinstance(root, Path):
        leave(root)
    else:
        with Lease(root):
            pass
    with ExitStack() as stack:

        def another() -> None:
            """One comes and goes, and a second comes."""
            with Lease(root, lambda: 2000.0):
                pass
            stack.enter_context(Lease(root, lambda: 2000.0))

        with pytest.raises(StudyBusyError):
            Lease(root, at_first(another)).__enter__()


def test_one_that_was_taken_for_dead_is_told(
    root: AnyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_EVERY", 0.01)
    now = [1000.0]
    with Lease(root, lambda: now[0]) as first:
        # As seen from elsewhere, it is silent: its own clock stands still.
        with Lease(root, lambda: 1061.0) as second:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    first.check()
                except StudyBusyError:
                    break
                time.sleep(0.01)
            with pytest.raises(StudyBusyError, match="taken this study over"):
                first.check()
            second.check()
        second.check()


def test_one_that_is_just_writing_its_name_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "00001.json"
    file.parent.mkdir()
    file.touch()
    with pytest.raises(StudyBusyError):
        Lease(tmp_path).__enter__()
    os.utime(file, (0, 0))
    with Lease(tmp_path):
        pass


def test_a_place_that_cant_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(RecordsError, match=r"runs: can't be used \(File exists\)"):
        Lease(tmp_path).__enter__()
