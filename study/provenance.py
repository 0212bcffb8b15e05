"""Records where a result was computed, and with which versions."""

import json
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cf_core.training import describe_hardware

_PACKAGES = (
    "connective-fusion", "torch", "numpy", "scipy", "cmaes", "moocore", "rapidfuzz", "polars",
    "pyarrow", "safetensors", "ray", "optuna", "music21", "mido",
)  # fmt: skip
"""Packages whose release can change a result, or decide whether there is one."""


@cache
def provenance() -> dict[str, Any]:
    """Return the columns of the table `trials` that describe the machine and the program."""
    commit, dirty = _git()
    return {
        "host": platform.node(),
        "hardware": describe_hardware(),
        "versions": json.dumps(_versions()),
        "git_commit": commit,
        "git_dirty": dirty,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _git() -> tuple[str | None, bool | None]:
    """Commit of the code, and whether it was altered; None where the code is not a git checkout."""
    folder = Path(__file__).parent
    try:
        commit, status = (
            subprocess.run(  # noqa: S603
                ["git", *command],  # noqa: S607
                cwd=folder,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(status)
