"""Imports go one way, transforms see no judge, and each check looks at every file."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("cf_core", "evaluation", "study")
BESIDE = ("benchmarks", "tests")
FILES = sorted(path for folder in (*LAYERS, *BESIDE) for path in (ROOT / folder).rglob("*.py"))


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


OURS = [path for path in FILES if module(path).split(".")[0] in LAYERS]


@cache
def imports(path: Path) -> set[str]:
    """Every module a file names in an import, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


@cache
def graph() -> Mapping[str, set[str]]:
    """What each file imports; not made where the tests are only collected."""
    return {module(path): imports(path) for path in FILES}


def reachable(start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        name = todo.pop()
        if name in graph() and name not in seen:
            seen.add(name)
            todo += graph()[name]
    return seen


def test_the_files_are_those_of_the_project() -> None:
    assert {module(path).split(".")[0] for path in FILES} == {*LAYERS, *BESIDE}
    assert len(FILES) > 30


@pytest.mark.parametrize("path", OURS, ids=module)
def test_imports_point_downwards(path: Path) -> None:
    own = LAYERS.index(module(path).split(".")[0])
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in BESIDE, f"{path} imports {name}"
        if top in LAYERS:
            assert LAYERS.index(top) <= own, f"{path} imports {name}"


@pytest.mark.parametrize("path", [p for p in FILES if module(p).startswith("cf_core")], ids=module)
def test_the_core_knows_no_study_tools(path: Path) -> None:
    for name in imports(path):
        assert name.split(".")[0] not in {"ray", "optuna", "polars", "matplotlib", "pydantic"}
        assert name.split(".")[0] != "music21", "it only carries the built-in tunes"


def test_no_transform_reaches_a_judge() -> None:
    assert "evaluation.judge" in graph()
    assert "evaluation.judge" in reachable("evaluation.metrics")
    rivals = [name for name in graph() if name.startswith("evaluation.rivals")]
    assert len(rivals) > 6
    for start in ("evaluation.transforms", "evaluation.classifier", "cf_core.fusion", *rivals):
        assert "evaluation.judge" not in reachable(start)


def test_what_retries_hands_out_and_records_knows_no_ray() -> None:
    assert "ray" in reachable("study.ray_executor") | graph()["study.ray_executor"]
    for start in ("study.dispatch", "study.ledger", "study.recording", "study.execution"):
        for name in reachable(start):
            assert not {each for each in graph()[name] if each.split(".")[0] == "ray"}, name


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_long_file_says_why(path: Path) -> None:
    text = path.read_text()
    if len(text.splitlines()) > 450:
        about = ast.get_docstring(ast.parse(text)) or ""
        assert re.search(r"\blong\b", about), f"{path}: over 450 lines without a reason"


IMPORTS = {
    "what trains without a study": (
        "cf_core.fusion, cf_core.vae, cf_core.bundle, evaluation.transforms, evaluation.judge",
        {"matplotlib", "music21", "polars", "ray"},
    ),
    "a worker": (
        "study.ray_executor",
        {"matplotlib", "music21", "optuna", "scipy.stats", "torch._dynamo", "typer"},
    ),
    "a server": (
        "study.serve",
        {"evaluation", "matplotlib", "music21", "optuna", "polars", "pretty_midi", "ray"},
    ),
    "a node that answers": ("study.nodes", {"evaluation", "polars", "pydantic", "torch"}),
}
"""What some processes import, and what that may not bring along."""


@pytest.mark.slow
@pytest.mark.parametrize("process", IMPORTS)
def test_processes_import_only_what_they_use(process: str) -> None:
    names, idle = IMPORTS[process]
    code = f"import sys; import {names}; print({idle} & sys.modules.keys())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_ruff_looks_at_every_file() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--show-files"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {str(path) for path in FILES} <= set(shown.split())


@pytest.mark.slow
def test_mypy_looks_at_every_file() -> None:
    command = [sys.executable, "-m", "mypy"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = re.search(r"no issues found in (\d+) source files", result.stdout)
    assert found, result.stdout[-2000:]
    assert int(found[1]) == len(FILES)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["mypy"]["strict"] is True


def test_every_dependency_is_justified() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    page = (ROOT / "docs" / "dependencies.md").read_text()
    project = settings["project"]
    extras = project["optional-dependencies"]
    used = [*project["dependencies"]]
    for extra in ("builtin", "export", "serve", "study"):
        used += extras[extra]
    for requirement in used:
        name = re.split(r"[<>=~;]", requirement)[0]
        assert f"| {name} |" in page, f"{name}: docs/dependencies.md does not say why"


def test_nothing_is_unpickled() -> None:
    for path in OURS:
        names = {name.split(".")[0] for name in imports(path)}
        assert not names & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}, path
        assert "torch.load(" not in path.read_text(), path
