"""The jobs of a study on a device that is pretended: their tables are those of the CPU."""

import json
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from polars.testing import assert_frame_equal
from rich.console import Console

from cf_core.corpus import Split
from cf_core.training import limit_threads, load_tensors
from evaluation.rivals import Rival
from evaluation.samples import measure_notes
from study.config import StudyConfig
from study.execution import run_job
from study.networks import SEARCH_CLASSIFIER, Networks
from study.prepare import find_corpus, prepare
from study.progress import Reporter
from study.ray_executor import RayExecutor
from study.recording import has_references, record_references
from study.run import root
from study.search import list_first_trials
from study.specs import Job, PackSpec, RivalJob
from study.store import Store
from study.tables import TABLES, drop_volatile
from study.workbench import Workbench
from tests import pretended
from tests.test_heard_study import HEARD
from tests.tiny import EVALUATION, Watch, claim, furnish, tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad"),
]
OPTIONS: dict[str, Any] = {
    "lp": {"step_sizes": [0.3], "iterations": [3]},
    "best_of_n": {"step_sizes": [0.3], "iterations": [2]},
    "gradient": {"lambda": [0.1], "iterations": [2]},
    "cmaes": {"lambda": [0.1], "iterations": [2]},
    "slerp": {"iterations": [2]},
    "transport": {"iterations": [2]},
    "transpose": {},
    "retrieval": {"iterations": [4]},
    "rewriting": {"prices": [3.0]},
}


@pytest.fixture(scope="module")
def config(melodies: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    # Each operation on the device takes a hundred times as long as on the CPU.
    few = {
        "pairs": 16,
        "validation_pairs": 16,
        "iterations": [2],
        "lambda": [0.1, 1.0],
        "edits": [4],
    }
    changes = HEARD | {
        "fusion": HEARD["fusion"] | {"steps": 6, "drafts": 1},
        "search": {"lambda": ["conditional"], "style_dim": [2], "seeds": [0]},
        "evaluation": EVALUATION | few | {"rivals": list(OPTIONS)} | OPTIONS,
    }
    return tiny(melodies, tmp_path_factory.mktemp("device"), **changes)


@pytest.fixture(scope="module")
def bench(config: StudyConfig, shared: Store) -> Workbench:
    store = Store(claim(furnish(config, shared), shared.record["identity"]["corpus"]).root)
    return prepare(config, find_corpus(config, Watch()), store, Watch())


@pytest.fixture(scope="module")
def moved(bench: Workbench) -> Workbench:
    with pretended.device():
        return bench.to(torch.device(pretended.NAME, 0))


def list_jobs(config: StudyConfig) -> dict[str, Job]:
    trials = tuple(list_first_trials(config))
    rivals: list[tuple[str, Rival]] = [(n, config.evaluation.rival(n)) for n in OPTIONS]
    return {"trials": PackSpec(trials, trials)} | {
        name: RivalJob(tuple(rival.settings()), name) for name, rival in rivals
    }


def run_on(bench: Workbench, job: Job, store: Store) -> None:
    for _ in run_job(job, bench, store, {part.id: 1 for part in job.parts}):
        pass


def claim_two(config: StudyConfig, shared: Store, folder: Path) -> list[Store]:
    """A store for what the CPU writes, and one for what the device does."""
    stores = []
    for where in ("cpu", pretended.NAME):
        execution = config.execution.model_copy(update={"results": str(folder / where)})
        own = config.model_copy(update={"execution": execution})
        stores.append(claim(own, shared.record["identity"]["corpus"]))
    return stores


def compare_tables(stores: list[Store]) -> None:
    written = 0
    for table in TABLES:
        expected, found = (drop_volatile(s.scan(table).collect(), table) for s in stores)
        assert_frame_equal(found, expected, abs_tol=1e-5)
        written += expected.height
    assert written > 0


@pytest.mark.parametrize("name", ["trials", *OPTIONS])
def test_a_job_writes_what_it_writes_on_the_cpu(
    name: str,
    config: StudyConfig,
    bench: Workbench,
    moved: Workbench,
    shared: Store,
    tmp_path: Path,
) -> None:
    job, stores = list_jobs(config)[name], claim_two(config, shared, tmp_path)
    run_on(bench, job, stores[0])
    with pretended.device():
        run_on(moved, job, stores[1])
    compare_tables(stores)
    assert set(stores[1].scan("trials").collect()["device"]) == {pretended.NAME}


def test_what_is_measured_of_notes_is_measured_there_without_waiting(bench: Workbench) -> None:
    evaluator, (left, right) = bench.evaluator, bench.sources[0].inputs
    judge, form = evaluator.judges[Split.TEST], evaluator.corpus.form
    tokens = evaluator.core.decode_notes(left), evaluator.core.decode_notes(right)
    expected = measure_notes(tokens, form, judge)
    with pretended.device() as log:
        there = deepcopy(judge).to(pretended.NAME)
        one, other = (half.to(pretended.NAME) for half in tokens)
        measure_notes((one, other), form, there)  # the form's tables are copied once
        log.waits.clear()
        found = measure_notes((one, other), form, there)
        assert log.waits == []
        for own, wanted in zip(found, expected, strict=True):
            assert own.device.type == pretended.NAME
            torch.testing.assert_close(own.cpu(), wanted, rtol=1e-5, atol=1e-5)


def test_references_are_those_of_the_cpu(
    config: StudyConfig, bench: Workbench, moved: Workbench, shared: Store, tmp_path: Path
) -> None:
    stores = claim_two(config, shared, tmp_path)
    record_references(bench, stores[0])
    with pretended.device():
        record_references(moved, stores[1])
    compare_tables(stores)


def test_a_worker_records_references_as_the_driver_does(
    config: StudyConfig, bench: Workbench, shared: Store, tmp_path: Path
) -> None:
    stores = claim_two(config, shared, tmp_path)
    with limit_threads(1):
        record_references(bench, stores[0])
    with (
        Reporter(Console(quiet=True)) as reporter,
        closing(RayExecutor(bench, stores[1], config.execution, reporter)) as executor,
    ):
        executor.record_references()
    assert has_references(stores[1])
    for table in TABLES:
        expected, found = (drop_volatile(s.scan(table).collect(), table) for s in stores)
        assert_frame_equal(found, expected)


def test_a_network_is_trained_there_and_reported_on_the_cpu(
    config: StudyConfig, bench: Workbench, shared: Store, tmp_path: Path
) -> None:
    execution = config.execution.model_copy(update={"results": str(tmp_path)})
    own = furnish(config.model_copy(update={"execution": execution}), shared)
    store = Store(root(own))
    places = [Path(str(each.root)) / "classifiers" for each in (shared, store)]
    for file in (weights := "search_classifier.safetensors"), (report := "search_classifier.json"):
        (places[1] / file).unlink()
    with pretended.device():
        list(Networks(own, bench.evaluator.corpus, store).train(SEARCH_CLASSIFIER, pretended.NAME))
    expected, found = (load_tensors(place / weights) for place in places)
    assert expected is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    aucs = [json.loads((place / report).read_text())["test"]["auc"] for place in places]
    assert aucs[1] == pytest.approx(aucs[0], abs=1e-3)
