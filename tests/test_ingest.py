"""An ingest is the same however it is run, and whatever befalls it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from cf_core import ingest as ingesting
from cf_core import isolation
from cf_core.errors import UserError
from cf_core.ingest import ingest
from cf_core.isolation import CallError, call_isolated, processes
from cf_core.melody import Note
from cf_core.render import write_midi
from study.reading import ray_tasks
from tests.test_corpus import tune
from tests.tiny import HEAD

ROOT = Path(__file__).parent.parent
BATCHES = 6


@pytest.fixture(scope="module")
def tunes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several batches: with a repeated id, and one of each kind that can't be read.

    The last batches take the longest.
    """
    folder = tmp_path_factory.mktemp("tunes")
    for number in range((BATCHES - 1) * ingesting._BATCH_SONGS):
        notes = [Note(Fraction(i), Fraction(1), 60 + i * number % 13) for i in range(16)]
        write_midi(notes, folder / f"{number:03}.mid", 120.0)
    for number in range(10):
        (folder / f"x{number}.abc").write_text(tune(number))
    (folder / "005.abc").write_text(tune(0))
    (folder / "torn.mid").write_bytes((folder / "001.mid").read_bytes()[:60])
    (folder / "empty.abc").write_text("")
    return folder


@pytest.fixture(scope="module")
def undisturbed(tunes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "x.parquet"
    ingest(tunes, output, mapper=processes(1))
    return output


def assert_same(one: Path, other: Path) -> None:
    for suffix in (".parquet", ".rejected.parquet"):
        assert one.with_suffix(suffix).read_bytes() == other.with_suffix(suffix).read_bytes()
    for path in (one, other):
        names = sorted(file.name for file in path.parent.iterdir())
        assert names == [path.name, f"{path.stem}.rejected.parquet"]


class Noting:
    """A mapper that notes the songs that are read."""

    def __init__(self, most: int | None = None) -> None:
        self.read: list[str] = []
        self.most = most

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        def noted() -> Iterator[Any]:
            for item in items:
                self.read += [song.id for song in item.songs]
                yield item

        for done, result in enumerate(processes(2)(function, noted())):
            if done == self.most:
                raise KeyboardInterrupt
            yield result


def test_what_is_rejected_is_told(undisturbed: Path) -> None:
    rejected = pq.read_table(undisturbed.with_suffix(".rejected.parquet")).to_pylist()
    songs = {(row["id"], row["reason"]) for row in rejected if row["bar"] is None}
    assert songs == {("005", "duplicate id"), ("torn", "unreadable"), ("empty", "unreadable")}


@pytest.mark.slow
def test_it_is_the_same_with_any_number_of_processes(
    tunes: Path, undisturbed: Path, tmp_path: Path
) -> None:
    for count in (2, 3):
        ingest(tunes, tmp_path / "x.parquet", mapper=processes(count))
        assert_same(tmp_path / "x.parquet", undisturbed)


@pytest.mark.slow
def test_it_goes_on_after_a_kill_and_reads_nothing_twice(
    tunes: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "x.parquet"
    parts = tmp_path / ".x.parquet.parts"
    script = "import sys; from pathlib import Path; from cf_core.ingest import ingest;"
    script += "ingest(*map(Path, sys.argv[1:]))"
    command = [sys.executable, "-c", script, str(tunes), str(output)]
    process = subprocess.Popen(command, cwd=ROOT)
    while len(list(parts.glob("[!.]*"))) < 2:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()
    finished = [pq.read_table(part)["bar"].to_pylist() for part in parts.glob("[!.]*")]
    assert 2 <= len(finished) < BATCHES
    (parts / f"{0:032}.parquet").write_bytes(b"PAR1")
    rest, calls = Noting(), list[tuple[int, int | None]]()
    ingest(tunes, output, progress=lambda *call: calls.append(call), mapper=rest)
    assert_same(output, undisturbed)
    # Every song has a bar 0, or one row without a bar.
    read = sum(bar in (0, None) for part in finished for bar in part)
    total = len(list(tunes.iterdir()))
    assert len(rest.read) == total - read
    assert calls == [(n, None) for n in range(1, total + 1)]


@pytest.mark.slow
def test_it_goes_on_after_an_interruption_unless_it_is_another(tunes: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.parquet"
    with pytest.raises(KeyboardInterrupt):
        ingest(tunes, output, mapper=Noting(most=2))
    other, rest = Noting(most=2), Noting()
    with pytest.raises(KeyboardInterrupt):
        ingest(tunes, output, steps_per_beat=12, mapper=other)
    ingest(tunes, output, mapper=rest)
    total = len(list(tunes.iterdir()))
    assert len(rest.read) == total - 2 * ingesting._BATCH_SONGS
    assert len(set(other.read) - set(rest.read)) > ingesting._BATCH_SONGS


@pytest.mark.slow
def test_a_song_that_takes_too_much_is_rejected_alone(
    tunes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hostile(function: Callable[..., Any], song: Any, *arguments: Any) -> Any:
        if song.id == "003":
            return call_isolated(time.sleep, 60)
        if song.id == "004":
            return call_isolated(bytearray, 2**30)
        if song.id == "006":
            return call_isolated(os._exit, 1)
        return call_isolated(function, song, *arguments)

    monkeypatch.setattr(isolation, "SECONDS", 2.0)
    monkeypatch.setattr(ingesting, "call_isolated", hostile)
    report = ingest(tunes, tmp_path / "x.parquet", mapper=processes(2))
    for reason in ("too slow", "too much memory", "reader died", "duplicate id"):
        assert report.rejected_songs[reason] == 1
    assert report.songs == len(list(tunes.iterdir())) - 6


@pytest.mark.slow
@pytest.mark.usefixtures("own_ray")
def test_it_is_the_same_as_ray_tasks_within_the_same_limits(
    tunes: Path, undisturbed: Path, tmp_path: Path
) -> None:
    cluster = Cluster(initialize_head=True, head_node_args=HEAD | {"num_cpus": 2})

    def outcome(call: Callable[[], Any]) -> str:
        try:
            return f"returned {call()}"
        except CallError as error:
            return error.reason

    try:
        with ray_tasks(cluster.address) as mapper:
            ingest(tunes, tmp_path / "x.parquet", mapper=mapper)
            calls = [
                partial(call_isolated, bytearray, 2**30),
                partial(call_isolated, os._exit, 1),
                partial(call_isolated, abs, -1),
            ]
            outcomes = sorted(mapper(outcome, calls))
    finally:
        cluster.shutdown()
    assert_same(tmp_path / "x.parquet", undisturbed)
    assert outcomes == ["reader died", "returned 1", "too much memory"]


@pytest.mark.usefixtures("own_ray")
def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"127\.0\.0\.1:1.*check the address"),
        ray_tasks("127.0.0.1:1"),
    ):
        pass
    assert not list(tmp_path.iterdir())
