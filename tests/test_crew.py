"""Networks of a study, trained by workers side by side."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cf_core.errors import ClusterError, UserError
from cf_core.training import Progress
from study.config import Execution
from study.crew import make_crew
from study.prepare import Crew
from study.store import Store
from tests.conftest import folder
from tests.tiny import RAY, furnish, models, tiny

pytestmark = pytest.mark.slow


@pytest.fixture
def crew() -> Iterator[Crew]:
    RAY.start()
    with ExitStack() as stack:
        yield make_crew(Execution(workers=2), stack)


def test_networks_are_those_of_one_process_though_they_were_stopped(
    crew: Crew, shared: Store, melodies: Path, tmp_path: Path
) -> None:
    config = tiny(melodies, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        models(config, "selection judge at 50", crew)
    store = models(config, "", crew)
    files = [path for name in ("core", "classifiers") for path in (folder(shared) / name).iterdir()]
    assert len(files) == 2 * 8 + 1
    for file in files:
        assert (folder(store) / file.parent.name / file.name).read_bytes() == file.read_bytes()


def test_a_core_below_its_gate_ends_all_trainings(
    crew: Crew, melodies: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"core_gate"):
        models(tiny(melodies, tmp_path, core_gate={"token_accuracy": 1.0}), "", crew)
    assert not (tmp_path / "tiny" / "classifiers" / "selection_judge.json").exists()


def test_a_worker_that_always_dies_is_told(
    crew: Crew, shared: Store, melodies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = furnish(tiny(melodies, tmp_path), shared)
    (tmp_path / "tiny" / "classifiers" / "search_classifier.json").unlink()

    def die(_shared: Any, _name: str) -> Iterator[Progress]:
        yield from ()
        os._exit(1)

    monkeypatch.setattr("study.crew._train", die)
    with pytest.raises(ClusterError, match=r": its worker died: .*give the same command again"):
        models(config, "", crew)


def test_a_gpu_for_networks_that_is_not_there_is_not_waited_for(
    melodies: Path, tmp_path: Path
) -> None:
    RAY.start()
    execution = Execution.model_validate({"resources": {"networks": {"gpu": 1}}})
    with ExitStack() as stack, pytest.raises(ClusterError, match=r"resources\.networks: no node"):
        models(tiny(melodies, tmp_path), "", make_crew(execution, stack))
