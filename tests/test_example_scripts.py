"""The scripts of `examples` run as their docstrings say, and say what they promise."""

import runpy
import sys
from pathlib import Path

import polars as pl
import pytest

import study
from cf_core.bundle import load_bundle
from cf_core.readers import read_file
from tests.tiny import furnish, stay_here

EXAMPLES = Path(__file__).parent.parent / "examples"
LONGEST = 60
"""Lines of a script that can be read at a glance."""


def run_script(patch: pytest.MonkeyPatch, name: str, *arguments: Path) -> None:
    """Run a script as `python examples/NAME` does, but without figures."""
    path = EXAMPLES / name
    patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    patch.syspath_prepend(EXAMPLES)
    patch.setattr("study.run.draw", lambda _store: [])
    patch.setattr("study.run.save", lambda *_: [])
    runpy.run_path(str(path), run_name="__main__")


@pytest.fixture(scope="module")
def finished(melodies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the study that a script runs from Python."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        stay_here(patch)
        run_script(patch, "study_from_python.py", melodies, results)
    return results


@pytest.mark.slow
def test_two_melodies_of_its_own_or_of_files_are_fused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_script(monkeypatch, "fuse_two_melodies.py")
    fused = sorted(tmp_path.glob("fused-*.mid"))
    assert [len(read_file(path).bars) for path in fused] == [4, 4, 4]
    before = [path.read_bytes() for path in fused]
    run_script(monkeypatch, "fuse_two_melodies.py", *sorted(Path().glob("example-*")))
    assert [path.read_bytes() for path in fused] == before


@pytest.mark.slow
def test_a_study_is_run_from_python(finished: Path) -> None:
    records = study.open(finished / "small")
    assert set(study.list_jobs(records)["status"]) == {"done"}
    for name in ("bundle", "near.bundle"):
        assert load_bundle(finished / "small" / name).iterations in (1, 2)


@pytest.mark.slow
def test_the_tables_answer(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script(monkeypatch, "ask_the_tables.py", finished / "small")
    told = capsys.readouterr().out
    best = (
        study.open(finished / "small")
        .metrics.filter(pl.col("metric") == "indistinguishable", pl.col("source") == "validation")
        .filter(pl.col("method") == "fusion")
        .sort("value")
        .collect()["trial"][-1]
    )
    assert best in told
    assert told.count("shape:") == 3


@pytest.mark.slow
@pytest.mark.usefixtures("own_ray")
def test_a_rival_of_ones_own_is_on_the_frontier(
    finished: Path, melodies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    settings = [
        'evaluation.rivals=["own_rival:Shift"]',
        "evaluation.shift.amounts=[0.2, 1]",
        "name=own-rival",
        f"corpus.source={melodies}",
        f"execution.results={tmp_path}",
    ]
    # Its models are those of the other study, which take longest.
    furnish(study.load_config(EXAMPLES / "small.yaml", settings), study.open(finished / "small"))
    run_script(monkeypatch, "own_rival.py", melodies, tmp_path)
    records = study.open(tmp_path / "own-rival")
    shown = records.frontier.filter(pl.col("method") == "shift").collect()
    assert set(shown["trial"]) == {"shift-amount0.2", "shift-amount1.0"}
    assert "shift" in records.verdicts.collect()["rival"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_say_what_they_take(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=f"python examples/{path.name}"):
        run_script(monkeypatch, path.name, *map(Path, "abcd"))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
