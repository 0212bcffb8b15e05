"""What a bare installation holds: enough to fuse two files, and nothing that only studies need."""

import subprocess
import sys
from fractions import Fraction
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cf_core.melody import Note
from cf_core.readers import read_file
from cf_core.render import write_midi

ROOT = Path(__file__).parent.parent
STUDY = ("ray", "optuna", "matplotlib", "moocore", "polars", "pydantic", "yaml", "cmaes")

pytestmark = pytest.mark.slow


def find_closure(name: str) -> set[str]:
    """A distribution with all that it requires without extras, as far as installed here."""
    found: set[str] = set()
    todo = [name]
    while todo:
        own = todo.pop()
        if own in found:
            continue
        found.add(own)
        for text in distribution(own).requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                todo.append(needed.name.lower())
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and what it requires, linked from here."""
    folder = tmp_path_factory.mktemp("bare")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    for name in find_closure("connective-fusion") - {"connective-fusion"}:
        here = distribution(name)
        for top in {file.parts[0] for file in here.files or () if file.parts[0] != ".."}:
            link = packages / top
            if not link.exists() and top != "__pycache__":
                link.symlink_to(Path(str(here.locate_file(top))).resolve())
    (wheel,) = folder.glob("connective_fusion-*.whl")
    python = ["--python", str(folder / "env" / "bin" / "python")]
    install = ["install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *python, *install], check=True)
    return folder / "env" / "bin"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@pytest.fixture
def tunes(tmp_path: Path) -> tuple[Path, Path]:
    """Two melodies of four bars each."""
    for name, pitches in (("left", range(60, 76)), ("right", range(76, 60, -1))):
        notes = [Note(Fraction(at), Fraction(1), pitch) for at, pitch in enumerate(pitches)]
        write_midi(notes, tmp_path / f"{name}.mid", 120.0)
    return tmp_path / "left.mid", tmp_path / "right.mid"


def test_a_bare_installation_fuses_two_files(bare: Path, tunes: tuple[Path, Path]) -> None:
    output = tunes[0].with_name("fused.mid")
    done = run(bare / "cf-study", "fuse", *tunes, "--output", output)
    assert done.returncode == 0, done.stderr
    assert read_file(output).notes
    found = run(bare / "python", "-c", f"import {', '.join(STUDY)}")
    assert found.returncode == 1


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("study", ("run", "quickstart", "--dry-run")),
        ("study", ("status", ".")),
        ("study", ("select", ".")),
        ("study", ("fuse", "--picture")),
        ("export", ("export", "--output", "onnx")),
        ("serve", ("serve",)),
    ],
)
def test_commands_that_lack_their_extra_say_which(
    bare: Path, tunes: tuple[Path, Path], extra: str, command: tuple[str, ...]
) -> None:
    files = (*tunes, "--output", tunes[0].with_name("fused.mid")) if "fuse" in command else ()
    done = run(bare / "cf-study", *command, *files)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"pip install 'connective-fusion[{extra}]'")


def test_the_page_brings_its_scripts(bare: Path) -> None:
    (page,) = bare.parent.glob("lib/python*/site-packages/study/page")
    assert {"engine.js", "midi.js"} <= {path.name for path in page.iterdir()}
