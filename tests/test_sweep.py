"""A search with rungs: batches, survivors, and what is never repeated."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import polars as pl
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from cf_core.errors import UserError
from cf_core.training import load_tensors, train
from evaluation.frontier import FUSIONS
from study import findings
from study.config import StudyConfig
from study.config.schema import Resources
from study.execution import make_trainer
from study.ledger import Ledger, State
from study.parameters import PARAMETERS
from study.prepare import find_corpus, prepare
from study.run import plan
from study.search import list_first_trials, measure_hypervolume, propose
from study.select import list_jobs, select
from study.store import Store
from study.sweep import list_planned, sweep
from study.workbench import find_generator
from tests.conftest import folder
from tests.tiny import EVALUATION, Watch, assert_same_tables, claim, furnish, go, tiny

pytestmark = pytest.mark.slow

SEARCH: dict[str, Any] = {
    "method": "tpe",
    "lambda": {"low": 0.01, "high": 3.0, "log": True},
    "style_dim": [0, 2],
    "hidden": [8, 16],
    "first": [{"lambda": 0.1, "style_dim": 2, "hidden": 16}],
    "configurations": 6,
    "batch": 3,
    "seeds": [0, 1],
    "rungs": [100],
    "keep": 0.5,
    "constraints": ["style_diversity >= 0"],
    "region": ["larger_edit_distance <= 30"],
}
FUSION = {"scheme": "poster", "hidden": 16, "steps": 110, "batch": 8, "d_steps": 1}


def searching(melodies: Path, results: Path, **changes: Any) -> StudyConfig:
    execution = {"workers": 2, "pack": 1, "results": str(results)}
    settings = {"search": SEARCH, "evaluation": EVALUATION, "fusion": FUSION}
    return tiny(melodies, results, **{**settings, "execution": execution, **changes})


Study = tuple[Store, StudyConfig, list[str]]


@pytest.fixture(scope="module")
def finished(melodies: Path, shared: Store, tmp_path_factory: pytest.TempPathFactory) -> Study:
    config = furnish(searching(melodies, tmp_path_factory.mktemp("searched")), shared)
    store, lines = go(config)
    return store, config, lines


def test_each_batch_is_whittled_down_and_told(finished: Study) -> None:
    store, config, lines = finished
    configurations = store.scan("configurations").collect()
    assert configurations["origin"].to_list() == ["first", *["tpe"] * 5]
    assert configurations["batch"].to_list() == [0] * 3 + [1] * 3
    objectives = store.scan("objectives").collect()
    states = objectives.group_by("batch", "state").len().sort("batch", "state").rows()
    assert states == [(0, "COMPLETE", 2), (0, "PRUNED", 1), (1, "COMPLETE", 2), (1, "PRUNED", 1)]
    told = Ledger(store).list_outcomes()
    assert [one.configuration.id for one in told] == configurations["configuration"].to_list()
    for batch in (0, 1):
        past = [one for one in told if one.batch < batch]
        assert list(propose(config, past)) == Ledger(store).list_proposed(batch)
    (last,) = [line for line in lines if "hypervolume so far" in line][-1:]
    area = measure_hypervolume(config.search, told)
    assert last.startswith("batch 2: ")
    assert last.endswith(f"hypervolume so far {area:.3f} where larger_edit_distance <= 30")
    assert "step 100: 2 of 3 configurations go on" in lines


def test_objectives_are_those_of_the_tables(finished: Study) -> None:
    store, config, _ = finished
    metrics = store.scan("metrics").filter(source="validation", iteration=2).collect()
    for one in Ledger(store).list_outcomes():
        rows = metrics.filter(configuration=one.configuration.id)
        if not one.objectives:
            assert rows.is_empty()
            continue
        for value, metric in zip(one.objectives, config.search.objectives, strict=True):
            seeds = rows.filter(metric=metric)["value"]
            assert len(seeds) == 2
            assert value == seeds.mean()


def test_what_was_stopped_is_a_row_and_in_no_frontier(finished: Study) -> None:
    store, config, _ = finished
    trials = store.scan("trials").filter(pl.col("method").is_in(FUSIONS)).collect()
    pruned = trials.filter(status="pruned")
    assert pruned.height == 4
    assert set(pruned["steps"]) == {100}
    told = r"^stopped after 100 steps: (only \d+\.\d{3} beyond|\d+\.\d{3} short of) the front"
    assert pruned["reason"].str.contains(told).all()
    rungs = store.scan("rungs").collect()
    assert set(rungs["trial"]) == set(trials["trial"])
    for table in ("metrics", "outcomes", "latents", "frontier"):
        names = store.scan(table).select("trial").unique().collect()["trial"]
        assert not set(names) & set(pruned["trial"])
    # At a rung all is measured that a constraint may be about.
    measured = store.metrics.filter(pl.col("method").is_in(FUSIONS)).collect()
    # Strata of edits are measured where there are such pairs.
    strata = pl.col("metric").str.contains(r"^indistinguishable_\d")
    assert set(rungs.filter(~strata)["metric"]) == set(measured.filter(~strata)["metric"])
    # The weakest by the recorded points, by a definition written out.
    for (_, batch), points in rungs.group_by("rung", "batch"):
        means = rungs.filter(pl.col("batch") <= batch).pivot(
            "metric",
            index=["configuration", "lambda", "iteration"],
            values="value",
            aggregate_function="mean",
        )
        objectives = means.select(config.search.objectives)
        spread = [float(np.ptp(column.to_numpy())) for column in objectives]
        short = {}
        for name in points["configuration"].unique():
            own = means.filter(configuration=name).select(config.search.objectives).rows()
            others = means.filter(pl.col("configuration") != name)
            rivals = others.select(config.search.objectives).rows()
            short[name] = min(
                max(min((r - j) / spread[0], (z - d) / spread[1]) for r, d in rivals)
                for j, z in own
            )
        # Several may fall short alike; of these the last by name is stopped.
        weakest = max(short, key=lambda name: (round(short[name], 9), name))
        assert set(pruned["trial"]) >= {f"{weakest}-seed0", f"{weakest}-seed1"}


def test_a_survivor_is_what_it_would_have_been_without_rungs(finished: Study) -> None:
    store, config, _ = finished
    done = store.scan("trials").filter(status="done").collect()["trial"]
    survivor = next(trial for trial in list_planned(config, store) if trial.id in done)
    bench = prepare(config, find_corpus(config, Watch()), store, Watch())
    trainer = make_trainer([survivor], bench)
    for _ in train(trainer, 100):
        pass
    expected = trainer.take_generator(0).state_dict()
    found = load_tensors(find_generator(store, survivor.id))
    assert found is not None
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_neither_ray_nor_stops_change_a_record(
    finished: Study, shared: Store, melodies: Path, tmp_path: Path
) -> None:
    done, _, _ = finished
    one = {"workers": 1, "pack": 1, "results": str(tmp_path)}
    config = furnish(searching(melodies, tmp_path, execution=one), shared)
    written: dict[Path, int] = {}
    stopped = []
    for stop in ("to step 100: finished (4 of", ": finished (2 of 4"):
        with pytest.raises(KeyboardInterrupt) as caught:
            go(config, stop, on_ray=True)
        stopped.append(caught)  # what Tune held must be free though its frames are alive
        parts = [*tmp_path.rglob("trials/*.parquet"), *tmp_path.rglob("rungs/*.parquet")]
        written = {path: path.stat().st_mtime_ns for path in parts} | written
    store, lines = go(config)
    assert len(stopped) == 2
    assert len(written) >= 6
    for path, then in written.items():
        assert path.stat().st_mtime_ns == then, "what was finished was run again"
    assert any("are already done" in line for line in lines)
    assert_same_tables(store, done)


def test_what_failed_is_made_again_and_told_anew(finished: Study, tmp_path: Path) -> None:
    done, config, _ = finished
    shutil.copytree(folder(done), tmp_path / "tiny")
    shutil.copytree(folder(done).parent / ".corpora", tmp_path / ".corpora")
    survivor = done.trials.filter(status="done", method="fusion").collect()["trial"][0]
    for part in (tmp_path / "tiny" / "metrics").glob(f"{survivor}.*"):
        part.unlink()
    # As had it failed, and the search been told so.
    failed = pl.col("configuration") == survivor.rpartition("-seed")[0]
    batch = done.objectives.filter(failed).collect()["batch"].item()
    told = done.objectives.filter(batch=batch).collect()
    lost = told.with_columns(
        pl.when(failed).then(pl.lit("FAIL")).otherwise("state").alias("state"),
        pl.when(~failed).then("maximised").alias("maximised"),
        pl.when(~failed).then("minimised").alias("minimised"),
    )
    Store(tmp_path / "tiny").write("objectives", f"batch{batch:05d}", lost)
    execution = config.execution.model_copy(update={"results": str(tmp_path)})
    store, _ = go(config.model_copy(update={"execution": execution}))
    assert Ledger(store).count_attempts()[survivor] == Ledger(done).count_attempts()[survivor] + 1
    assert_same_tables(store, done)


def test_references_are_left_to_a_worker_where_rivals_have_a_gpu(
    finished: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, config, _ = finished
    shutil.copytree(folder(done), tmp_path / "tiny")
    shutil.copytree(folder(done).parent / ".corpora", tmp_path / ".corpora")
    for part in (tmp_path / "tiny").glob("*/references.*"):
        part.unlink()
    resources = config.execution.resources.model_copy(update={"rivals": Resources(gpu=0.5)})
    changes = {"results": str(tmp_path), "resources": resources}
    execution = config.execution.model_copy(update=changes)

    def refuse(*_: Any) -> None:
        raise AssertionError("the driver recorded them")

    monkeypatch.setattr("study.run.record_references", refuse)
    store, _ = go(config.model_copy(update={"execution": execution}))
    assert_same_tables(store, done)


def test_the_search_opens_in_optuna(finished: Study) -> None:
    store, _, _ = finished
    backend = JournalFileBackend(str(store.root / "optuna.log"))
    study = optuna.load_study(study_name="tiny", storage=JournalStorage(backend))
    told = Ledger(store).list_outcomes()
    assert [trial.state for trial in study.trials] == [TrialState[one.state] for one in told]
    assert [trial.user_attrs["configuration"] for trial in study.trials] == [
        one.configuration.id for one in told
    ]
    assert optuna.visualization.matplotlib.plot_pareto_front(study) is not None


def test_the_figure_of_the_search_and_its_bundle_are_made(finished: Study, tmp_path: Path) -> None:
    store, config, _ = finished
    figure = findings._search_figure(store, config.search.objectives)
    assert figure is not None
    complete = store.objectives.filter(state="COMPLETE").select("configuration")
    tried = store.configurations.join(complete, on="configuration").collect()
    varied = {one.label for name, one in PARAMETERS.items() if tried[name].n_unique() > 1}
    assert "λ" in varied
    assert {axes.get_xlabel() for axes in figure.axes} - {""} == varied
    choice = select(store, output=tmp_path / "bundle")
    width = store.scan("trials").filter(trial=choice.trial).collect()["hidden"][0]
    assert f"hidden{width}" in choice.trial


def test_status_lists_all_that_was_proposed(finished: Study) -> None:
    store, _, _ = finished
    counts = dict(list_jobs(store)["status"].value_counts().iter_rows())
    assert counts == {"done": 8 + 1, "pruned": 4}


def test_a_later_study_learns_from_an_earlier_one(
    finished: Study, melodies: Path, tmp_path: Path
) -> None:
    done, _, _ = finished
    wider = {**SEARCH, "warm_start": str(done.root), "first": [], "rungs": []}
    config = searching(melodies, tmp_path, search={**wider, "hidden": [16, 32]})
    store = claim(config, done.record["identity"]["corpus"])
    with pytest.raises(_Stop):
        sweep(config, None, store, _Stopping(), None)  # type: ignore[arg-type]
    learned = Ledger(store).list_outcomes()
    theirs = [one for one in Ledger(done).list_outcomes() if "hidden16" in one.configuration.id]
    assert [one.configuration for one in learned] == [one.configuration for one in theirs]
    assert {one.batch for one in learned} == {-1}
    assert [one.objectives for one in learned] == [one.objectives for one in theirs]
    assert store.record["identity"]["search"]["warm_start"] == done.record["fingerprint"]
    assert list(propose(config, learned)) == Ledger(store).list_proposed(0)
    assert list(propose(config, [])) != Ledger(store).list_proposed(0)


def test_a_later_study_remembers_which_constraints_were_missed(
    finished: Study, melodies: Path, tmp_path: Path
) -> None:
    done, _, _ = finished
    search = {
        **SEARCH,
        "warm_start": str(done.root),
        "first": [],
        "rungs": [],
        "constraints": ["halves_distance >= 1000", "larger_edit_distance >= 0"],
    }
    config = searching(melodies, tmp_path, search=search)
    store = claim(config, done.record["identity"]["corpus"])
    with pytest.raises(_Stop):
        sweep(config, None, store, _Stopping(), None)  # type: ignore[arg-type]
    learned = Ledger(store).list_outcomes()
    complete = [one for one in learned if one.state == State.COMPLETE]
    assert complete
    metrics = done.metrics.filter(source="validation", iteration=2, metric="halves_distance")
    means = dict(metrics.group_by("configuration").agg(pl.col("value").mean()).collect().rows())
    for one in complete:
        far = 1000 - means[one.configuration.id]
        assert one.violations == pytest.approx((far, -one.objectives[1]))
        assert not one.feasible
    # What misses a constraint is in no hypervolume.
    assert measure_hypervolume(config.search, learned) == 0.0


class _Stop(Exception):  # noqa: N818
    pass


class _Stopping(Watch):
    """Stops a sweep once its first batch is written down and would be tried."""

    def say(self, text: str) -> None:
        super().say(text)
        if "packs of up to" in text:
            raise _Stop


@pytest.mark.parametrize(
    ("changes", "of_search", "differing"),
    [
        ({"seed": 5}, {}, "seed: 0 -> 5"),
        ({}, {"maximise": "judge"}, 'search.maximise: "indistinguishable" -> "judge"'),
        ({}, {"minimise": "z_distance"}, 'search.minimise: "larger_edit_distance" -> "z_distance"'),
    ],
)
def test_a_study_of_another_core_or_of_other_objectives_teaches_nothing(
    finished: Study,
    melodies: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    of_search: dict[str, Any],
    differing: str,
) -> None:
    done, _, _ = finished
    search = {**SEARCH, "warm_start": str(done.root), "region": [], **of_search}
    config = searching(melodies, tmp_path, search=search, **changes)
    store = claim(config, done.record["identity"]["corpus"])
    with pytest.raises(UserError, match=rf"warm_start: .*can't be compared.*{differing}"):
        sweep(config, None, store, Watch(), None)  # type: ignore[arg-type]


def test_another_writer_teaches_nothing_where_it_makes_the_outputs(
    melodies: Path, tmp_path: Path
) -> None:
    for scheme, end in (("heard", UserError), ("poster", KeyboardInterrupt)):
        fusion = {**FUSION, "scheme": scheme}
        earlier = claim(searching(melodies, tmp_path / scheme, fusion=fusion), "0" * 64)
        search = {**SEARCH, "warm_start": str(earlier.root)}
        changes = {"fusion": fusion, "search": search, "writer": {"hidden": 16, "steps": 31}}
        config = searching(melodies, tmp_path / f"after {scheme}", **changes)
        store, watch = claim(config, "0" * 64), Watch("learning from")
        with pytest.raises(end) as raised:
            sweep(config, None, store, watch, None)  # type: ignore[arg-type]
        differs = "writer.batch: 8 -> 64; writer.steps: 30 -> 31" in str(raised.value)
        assert differs == (scheme == "heard")


def test_a_plan_counts_what_will_be_tried(melodies: Path, tmp_path: Path) -> None:
    told = plan(searching(melodies, tmp_path))
    assert "trials: 12 = 6 configurations (tpe: lambda 0.01 to 3 × style_dim 0, 2" in told
    assert len(list_first_trials(searching(melodies, tmp_path))) == 6
