"""The examples in docstrings run, in a folder with melodies."""

import doctest
from fractions import Fraction
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from cf_core.ingest import ingest
from cf_core.melody import Note
from cf_core.render import write_midi

MODULES = ("melody", "render", "readers", "ingest", "corpus", "bundle", "fuse", "heard", "writer")


def write_tune(path: Path, random: np.random.Generator) -> None:
    """Write four bars of crotchets."""
    pitches = random.integers(60, 80, 16).tolist()
    notes = [Note(Fraction(beat), Fraction(1), pitch) for beat, pitch in enumerate(pitches)]
    write_midi(notes, path, tempo=120.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("examples"), np.random.default_rng(0)
    for name in ("left", "right", *(f"tunes/{number}" for number in range(30))):
        write_tune(folder / f"{name}.mid", random)
    ingest(folder / "tunes", folder / "tunes.parquet")
    return folder


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(folder)
    found = doctest.testmod(import_module(f"cf_core.{name}"), report=True)
    assert found.attempted > 0
    assert not found.failed


def test_no_module_is_left_out() -> None:
    paths = (Path(__file__).parent.parent / "cf_core").rglob("*.py")
    names = {
        "readers" if p.parent.name == "readers" else p.stem for p in paths if ">>>" in p.read_text()
    }
    assert names == set(MODULES)
