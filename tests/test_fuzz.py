"""A small helping of the hostile files that `make fuzz` reads by the thousand."""

import pytest

from cf_core.isolation import MEMORY, SECONDS, processes
from tests.fuzz import PROCESSES, attempt, files, summary


@pytest.mark.slow
def test_hostile_files_are_read_or_rejected_with_a_reason_within_the_limits() -> None:
    count = 120
    outcomes = list(processes(PROCESSES)(attempt, files(count, seed=1)))
    report = summary(outcomes)
    assert report["files"] == count
    assert all(outcome.results for outcome in outcomes)
    assert report["melodies"] > 10
    assert len(report["rejected"]) > 2
    assert report["crashes"] == 0, [outcome for outcome in outcomes if "reader died" in outcome]
    assert report["slowest_seconds"] < SECONDS
    assert report["peak_memory_mb"] * 2**20 < MEMORY


@pytest.mark.slow
def test_the_same_seed_gives_the_same_files() -> None:
    assert list(files(30)) == list(files(30))
    assert list(files(30)) != list(files(30, seed=1))
