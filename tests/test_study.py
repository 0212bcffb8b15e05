"""A tiny complete study through Ray: its tables, its stops, its failures."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console

from cf_core.bundle import load_bundle
from cf_core.errors import UserError
from cf_core.fuse import fuse_files
from cf_core.melody import Note
from cf_core.render import write_midi
from evaluation.frontier import COHERENCY, PANELS
from evaluation.metrics import MEANS
from study import jobs
from study.config import StudyConfig, TrialSpec
from study.findings import CSV_COLUMNS, draw, tabulate, verdict_lines
from study.prepare import find_corpus, prepare
from study.progress import Job, Reporter
from study.run import plan, run, run_all
from study.store import TABLES, Store, comparable
from tests.conftest import folder

GATES = ("token_accuracy", "onset_pitch_recall", "exact_segments", "valid_prior")
JUDGE = {
    "reader": {"latent_dim": 8, "hidden": 16, "embedding": 8, "steps": 40, "batch": 16},
    "members": 2, "hidden": 16, "steps": 40, "batch": 12,
}  # fmt: skip
SOURCES = ("test", "prior", "validation", "validation_prior")


def melody(seed: int) -> list[Note]:
    """Twelve bars of 4/4: a random walk in quarters and eighths, unlike any other seed's."""
    random = np.random.default_rng(seed)
    pitch, onset, notes = 66, Fraction(0), []
    while onset < 48:
        length = Fraction(int(random.choice([1, 2])), 2)
        pitch = int(np.clip(pitch + random.integers(-4, 5), 55, 80))
        notes.append(Note(onset, min(length, 48 - onset), pitch))
        onset += length
    return notes


@pytest.fixture(scope="module")
def melodies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("melodies")
    for seed in range(40):
        write_midi(melody(seed), folder / f"tune{seed}.mid", 120.0)
    return folder


def tiny(melodies: Path, results: Path, **changes: Any) -> StudyConfig:
    settings: dict[str, Any] = {
        "name": "tiny",
        "corpus": {"source": str(melodies)},
        "core": {"latent_dim": 8, "hidden": 32, "embedding": 8, "steps": 120, "batch": 32},
        "core_gate": dict.fromkeys(GATES, 0),
        "search_classifier": {"hidden": 16, "steps": 30, "batch": 16},
        "selection_judge": JUDGE,
        "reporting_judge": JUDGE | {"hidden": 24},
        "fusion": {"hidden": 16, "steps": 250, "batch": 8},
        "search": {"lambda": [0.1, "conditional"], "style_dim": [0, 2], "seeds": [0, 1]},
        "evaluation": {
            "pairs": 24,
            "validation_pairs": 20,
            "iterations": [1, 2],
            "lambda": [0.01, 1.0],
            "styles": 2,
            "resamples": 20,
            "rivals": ["lp", "gradient", "cmaes", "best_of_n", "slerp", "retrieval"],
            "lp": {"step_sizes": [0.3], "iterations": [1, 5]},
            "gradient": {"lambda": [0.1, 1.0], "iterations": [1, 3]},
            "cmaes": {"lambda": [0.1], "iterations": [1, 2]},
            "best_of_n": {"step_sizes": [0.1, 0.3], "iterations": [2]},
            "slerp": {"iterations": [1, 2]},
            "retrieval": {"iterations": [1, 4]},
            "verdict_resamples": 50,
        },
        "selection": {"maximise": "judge", "where": []},
        "execution": {"workers": 2, "pack": 2, "results": str(results)},
    }
    return StudyConfig.model_validate(settings | changes)


RIVALS: dict[str, tuple[float | None, tuple[int, ...]]] = {
    "lp-eta0.3": (None, (1, 5)),
    "gradient-lambda0.1": (0.1, (1, 3)),
    "gradient-lambda1.0": (1.0, (1, 3)),
    "cmaes-lambda0.1": (0.1, (1, 2)),
    "best_of_n-eta0.1": (None, (2,)),
    "best_of_n-eta0.3": (None, (2,)),
    "slerp": (None, (1, 2)),
    "slerp-straight": (None, (1, 2)),
    "retrieval": (None, (1, 4)),
}
"""λ and iteration counts of each setting."""
JOBS = 4 + 7
RECORDS = 8 + len(RIVALS)


class Watch(Reporter):
    """Keeps what is said, and stops the run (as Ctrl-C does) at the first line that matches."""

    def __init__(self, stop: str = "") -> None:
        super().__init__(Console(quiet=True))
        self.lines: list[str] = []
        self.stop = stop

    def say(self, text: str) -> None:
        self.lines.append(text)
        if self.stop and self.stop in text:
            raise KeyboardInterrupt

    @contextmanager
    def job(self, name: str, total: int | None) -> Iterator[Job]:
        with super().job(name, total) as job:
            update = job.update

            def watched(done: int, total: int | None = None) -> None:
                update(done, total)
                self.say(f"{name} at {done}")

            job.update = watched  # type: ignore[method-assign]
            yield job


def go(config: StudyConfig, stop: str = "", *, figures: bool = False) -> tuple[Store, list[str]]:
    """Run a study; figures, which take longest, only where they are looked at."""
    with Watch(stop) as reporter, pytest.MonkeyPatch.context() as patch:
        if not figures:
            patch.setattr("study.run.draw", lambda _store: [])
        return run(config, reporter), reporter.lines


@pytest.fixture(scope="module")
def undisturbed(
    melodies: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, StudyConfig, list[str]]:
    config = tiny(melodies, tmp_path_factory.mktemp("results"))
    store, lines = go(config, figures=True)
    return store, config, lines


Study = tuple[Store, StudyConfig, list[str]]


@pytest.fixture
def results(undisturbed: Study, tmp_path: Path) -> Path:
    """An empty results folder, but for the melodies, which are read before."""
    shutil.copytree(folder(undisturbed[0]).parent / ".corpora", tmp_path / ".corpora")
    return tmp_path


def test_every_table_has_its_schema_and_every_row_is_there(undisturbed: Study) -> None:
    store, config, _ = undisturbed
    tables = {name: store.scan(name).collect() for name in TABLES}
    for name, frame in tables.items():
        wanted = TABLES[name].schema(config.core.latent_dim)
        assert frame.schema == pl.DataFrame(wanted.empty_table()).schema, name
        assert frame.height > 0, name
    trials = [spec.id for spec in config.trials()]
    assert sorted(tables["trials"]["trial"]) == sorted([*trials, *RIVALS])
    assert set(tables["trials"]["status"]) == {"done"}
    points: set[tuple[str, float | None, str, int]] = {
        (spec.id, weight, source, count)
        for spec in config.trials()
        for weight in ([0.01, 1.0] if spec.lambda_ is None else [spec.lambda_])
        for source in SOURCES
        for count in (1, 2)
    }
    points |= {
        (rival, weight, source, count)
        for rival, (weight, counts) in RIVALS.items()
        for source in SOURCES
        for count in counts
    }
    latents = tables["latents"]
    assert set(latents.select("trial", "lambda", "source", "iteration").iter_rows()) == points
    pairs = {name: 20 if name.startswith("validation") else 24 for name in SOURCES}
    assert latents.height == sum(pairs[source] for _, _, source, _ in points)
    sizes = latents.group_by("trial", "lambda", "source", "iteration").len()
    assert all(count == pairs[source] for _, _, source, _, count in sizes.iter_rows())
    metrics = tables["metrics"]
    references = ["identity", "floor", "ceiling"]
    for metric in (*COHERENCY, *MEANS[1:], "novelty", "copied", "overlap_area", "coverage"):
        rows = metrics.filter(pl.col("metric") == metric, ~pl.col("trial").is_in(references))
        found = rows.select("trial", "lambda", "source", "iteration").iter_rows()
        assert set(found) == points, metric
        assert rows.height == len(points)
    for level in ("floor", "ceiling"):
        rows = metrics.filter(pl.col("method") == level, pl.col("metric").is_in(COHERENCY))
        assert rows.height == len(COHERENCY) * len(SOURCES)
    outcomes = tables["outcomes"].filter(~pl.col("trial").is_in(["identity", "real"]))
    assert set(outcomes.select("trial", "lambda", "source", "iteration").iter_rows()) == points
    assert outcomes.height == latents.height
    costs = tables["costs"].select("trial", "lambda", "iteration")
    assert sorted(map(str, costs.iter_rows())) == sorted(
        str((trial, weight, count)) for trial, weight, source, count in points if source == "test"
    )
    assert set(tables["costs"]["pairs"]) == {sum(pairs.values())}
    trained = tables["trials"].filter(pl.col("seed").is_not_null())
    assert (trained["training_seconds"] * config.execution.pack < trained["seconds"]).all()
    panels = set(tables["frontier"].select("source", "metric").unique().iter_rows())
    assert panels == set(PANELS)
    assert set(tables["curves"]["trial"]) == set(trials)
    assert set(tables["curves"]["step"]) == {100, 200, 250}


def test_latents_hold_what_was_put_in_and_what_came_out(undisturbed: Study) -> None:
    store, config, _ = undisturbed
    latents = store.scan("latents").collect()
    inputs = latents.group_by("source", "pair").agg(pl.col("z_left_in").n_unique())
    assert inputs["z_left_in"].max() == 1
    style = latents.filter(pl.col("trial") == "lambda0.1-style2-seed0")["style"]
    assert style.list.len().unique().to_list() == [2]
    assert latents.filter(pl.col("source") == "prior")["left_song"].null_count() == (
        latents.filter(pl.col("source") == "prior").height
    )
    songs = latents.filter(pl.col("source") == "test").select("left_song", "right_song")
    assert songs.filter(pl.col("left_song") == pl.col("right_song")).is_empty()
    outputs = latents["z_left"].to_numpy()
    assert outputs.shape == (latents.height, config.core.latent_dim)


def assert_same_tables(store: Store, other: Store) -> None:
    for table in TABLES:
        ours, theirs = (comparable(s.scan(table).collect(), table) for s in (store, other))
        assert ours.equals(theirs, null_equal=True), table


@pytest.mark.parametrize("stop", ["core at 50", "selection judge at 50", f": over (2 of {JOBS})"])
def test_a_stopped_study_goes_on_and_ends_with_the_same_tables(
    undisturbed: Study, melodies: Path, results: Path, stop: str
) -> None:
    config = tiny(melodies, results)
    with pytest.raises(KeyboardInterrupt):
        go(config, stop)
    before = {path: path.stat().st_mtime_ns for path in results.rglob("trials/*.parquet")}
    assert (len(before) >= 2) == ("over" in stop)
    store, lines = go(config)
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written, "a finished trial was run again"
    if before:
        assert f"{len(before)} of {RECORDS} are already done" in lines
    assert_same_tables(store, undisturbed[0])


def test_running_a_finished_study_again_changes_no_record(undisturbed: Study) -> None:
    store, config, _ = undisturbed
    written = {
        path: path.stat().st_mtime_ns
        for table in ("trials", "curves", "latents", "metrics")
        for path in (folder(store) / table).iterdir()
    }
    _, lines = go(config)
    assert f"{RECORDS} of {RECORDS} are already done" in lines
    assert all(path.stat().st_mtime_ns == before for path, before in written.items())


def test_another_study_under_the_same_name_is_refused(undisturbed: Study, melodies: Path) -> None:
    store, _, _ = undisturbed
    changed = tiny(melodies, folder(store).parent, seed=5)
    with pytest.raises(UserError, match=r"seed: 0 -> 5"):
        go(changed)
    with pytest.raises(UserError, match=r"seed: 0 -> 5"):
        plan(changed)


def test_a_plan_is_refused_where_the_melodies_are_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus\.source: .*nowhere\.zip: no such file"):
        plan(tiny(tmp_path / "nowhere.zip", tmp_path))


def test_a_core_below_its_gate_stops_the_study(melodies: Path, results: Path) -> None:
    gate = dict.fromkeys(GATES, 0) | {"token_accuracy": 1.0}
    config = tiny(melodies, results, core_gate=gate)
    with pytest.raises(UserError, match=r"token_accuracy 0\.\d+ on validation songs, 0\.\d+ below"):
        go(config)
    assert not (results / "tiny" / "trials").exists()


def test_a_trial_that_diverges_is_a_row_and_the_others_go_on(melodies: Path, results: Path) -> None:
    config = tiny(
        melodies,
        results,
        search={"lambda": [0.1, 1e38], "style_dim": [0], "seeds": [0]},
    )
    store, lines = go(config)
    rows = {row["trial"]: row for row in store.scan("trials").collect().to_dicts()}
    bad = rows["lambda1e+38-style0-seed0"]
    assert bad["status"] == "diverged"
    assert "not finite" in bad["reason"]
    assert rows["lambda0.1-style0-seed0"]["status"] == "done"
    assert any("1e+38" in line and "diverged" in line for line in lines)
    assert store.scan("metrics").filter(pl.col("trial") == bad["trial"]).collect().is_empty()


def test_a_study_uses_a_cluster_that_is_there_and_leaves_it_running(
    undisturbed: Study, melodies: Path, results: Path
) -> None:
    undisturbed_store, config, _ = undisturbed
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        place = {"results": str(results), "address": cluster.address}
        execution = config.execution.model_dump() | place
        store, _ = go(tiny(melodies, results, execution=execution))
        assert len(cluster.list_all_nodes()) == 1
        ray.init(address=cluster.address, log_to_driver=False)
        assert ray.cluster_resources()["CPU"] == 2
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert_same_tables(store, undisturbed_store)


def test_a_cluster_that_is_not_there_is_named(melodies: Path, results: Path) -> None:
    execution = {"workers": 2, "results": str(results), "address": "127.0.0.1:1"}
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1.*execution\.address"):
        go(tiny(melodies, results, execution=execution))


def test_figures_come_from_parquet_alone(undisturbed: Study, tmp_path: Path) -> None:
    store, _, _ = undisturbed
    copy = tmp_path / "copy"
    for table in TABLES:
        shutil.copytree(folder(store) / table, copy / table)
    shutil.copy(folder(store) / "study.json", copy)
    drawn = draw(Store(copy))
    assert {path.name for path in drawn} == {
        path.name for path in (folder(store) / "figures").iterdir()
    }
    for path in drawn:
        assert path.read_bytes() == (folder(store) / "figures" / path.name).read_bytes()


def test_verdicts_are_those_of_the_tables(undisturbed: Study) -> None:
    store, _, lines = undisturbed
    found = store.scan("verdicts").collect()
    rivals = {"identity", "lp", "gradient", "cmaes", "best_of_n", "slerp", "retrieval"}
    keys = found.select("rival", "axis", "source", "metric")
    assert set(keys.iter_rows()) == {
        (rival, axis, *panel)
        for rival in rivals
        for axis in ("z_distance", "edit_distance")
        for panel in PANELS
    }
    assert set(found["seeds"]) == {2}
    matched = store.scan("matched").collect()
    for row in found.filter(pl.col("difference").is_finite()).iter_rows(named=True):
        panel = matched.filter(pl.all_horizontal(pl.col(key) == row[key] for key in keys.columns))
        ours = panel.filter(pl.col("method") == "ours")["value"].mean()
        theirs = panel.filter(pl.col("method") == row["rival"])["value"].mean()
        assert row["difference"] == pytest.approx(ours - theirs, abs=1e-5), row  # type: ignore[operator]
    csv = pl.read_csv(folder(store) / "verdicts.csv")
    assert tuple(csv.columns) == CSV_COLUMNS
    assert csv.height == found.height
    assert set(csv["corpus"]) == {"tiny"}
    for rival in rivals:
        counted = found.filter(pl.col("rival") == rival, pl.col("axis") == "z_distance")
        wins = counted.filter(pl.col("verdict") == "win").height
        assert any(f"against {rival}, at matched z distance: {wins} wins" in x for x in lines)


def test_the_summary_tells_how_far_the_halves_are_apart(undisturbed: Study) -> None:
    store, _, lines = undisturbed
    (line,) = [line for line in lines if "halves to each other" in line]
    outcomes = store.scan("outcomes").filter(pl.col("source") == "test").collect()
    chosen = (
        store.scan("matched")
        .filter(axis="z_distance", source="test", metric="judge", rival="lp")
        .collect()
        .sort("distance")
    )
    for method in ("ours", "lp"):
        trial, weight, count = (
            chosen.filter(method=method).select("trial", "lambda", "iteration").row(-1)
        )
        pairs = outcomes.filter(
            pl.col("trial").str.contains(f"^{re.escape(trial)}(-seed.)?$"),
            pl.col("lambda").eq_missing(weight),
            iteration=count,
        )
        mean = float(np.mean(pairs["halves_distance"].to_numpy()))
        assert f"{method} {mean:.1f}," in line
    ceiling = store.scan("metrics").filter(
        method="ceiling", source="test", metric="halves_distance"
    )
    assert line.endswith(f"real neighbours {ceiling.collect()['value'][0]:.1f}")


def test_one_seed_gives_no_verdict(undisturbed: Study, tmp_path: Path) -> None:
    store, config, _ = undisturbed
    copy = tmp_path / "copy"
    shutil.copytree(folder(store), copy)
    for table in ("metrics", "outcomes", "trials"):
        for part in (copy / table).glob("*-seed1.1.parquet"):
            part.unlink()
    tabulate(Store(copy), config.evaluation, config.seed)
    found = Store(copy).scan("verdicts").collect()
    assert found["difference"].is_finite().any()
    for column in ("low", "high", "p", "p_holm", "verdict"):
        assert found[column].null_count() == found.height
    assert any("ahead in" in line for line in verdict_lines(Store(copy)))


def test_two_corpora_have_a_study_each_and_one_file_of_verdicts(
    undisturbed: Study, tmp_path: Path
) -> None:
    finished, config, _ = undisturbed
    configs = []
    for name in ("one", "two"):
        shutil.copytree(folder(finished), tmp_path / name)
        record = json.loads((tmp_path / name / "study.json").read_text())
        (tmp_path / name / "study.json").write_text(json.dumps(record | {"name": name}))
        execution = config.execution.model_copy(update={"results": str(tmp_path)})
        configs.append(config.model_copy(update={"name": name, "execution": execution}))
    with Watch() as reporter, pytest.MonkeyPatch.context() as patch:
        patch.setattr("study.run.draw", lambda _store: [])
        run_all(configs, reporter)
    joined = pl.read_csv(tmp_path / "verdicts.csv")
    assert set(joined["corpus"]) == {"one", "two"}
    for name in ("one", "two"):
        own = pl.read_csv(tmp_path / name / "verdicts.csv")
        assert joined.filter(pl.col("corpus") == name).equals(own, null_equal=True)


def test_the_bundle_fuses_files_and_the_example_is_complete(
    undisturbed: Study, melodies: Path
) -> None:
    store, config, _ = undisturbed
    bundle = load_bundle(store.root / "bundle")
    assert bundle.record["fingerprint"] == store.record["fingerprint"]
    fused = fuse_files(melodies / "tune0.mid", melodies / "tune1.mid", bundle)
    assert fused.bars == ((11, 12), (1, 2))
    assert fused.outputs.shape == (2, config.melody.steps)
    names = {path.name for path in (folder(store) / "example").iterdir()}
    assert names == {
        "inputs.mid", "inputs.wav", "outputs.mid", "outputs.wav",
        "piano-roll.svg", "piano-roll.png",
    }  # fmt: skip
    examples = store.scan("examples").collect()
    assert examples["trial"].unique().to_list() == [bundle.record["trial"]]
    assert sorted(examples["row"]) == list(range(1 + (4 if bundle.generator.style_dim else 1)))


def test_what_a_pack_leaves_undone_is_recorded_and_nothing_else(
    undisturbed: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial is done already, one can't be evaluated, one ends as it should."""
    finished, config, _ = undisturbed
    trials = config.trials()[:3]
    store = Store(tmp_path / "tiny")
    shutil.copytree(folder(finished), folder(store))
    for trial in trials[1:]:
        (store.root / "trials" / f"{trial.id}.1.parquet").unlink()
    bench = prepare(config, find_corpus(config, Watch()), store, Watch())
    finish = jobs._finish

    def fail(trial: TrialSpec, *rest: Any) -> Any:
        if trial == trials[1]:
            raise ValueError("no room")
        return finish(trial, *rest)

    monkeypatch.setattr(jobs, "_finish", fail)
    attempts = {trial.id: 2 for trial in trials}
    with pytest.raises(ValueError, match="no room"):
        list(jobs.run_job(jobs.PackSpec(tuple(trials)), bench, store, attempts))
    died: dict[jobs.Spec, str] = {jobs.PackSpec(tuple(trials)): "the worker died"}
    jobs.record_failures(died, bench, store, attempts)
    over = store.scan("trials").filter(pl.col("trial").is_in([trial.id for trial in trials]))
    rows = {row["trial"]: row for row in over.collect().to_dicts()}
    assert [rows[trial.id]["status"] for trial in trials] == ["done", "failed", "done"]
    assert [rows[trial.id]["attempt"] for trial in trials] == [1, 2, 2]
    assert rows[trials[1].id]["reason"] == "ValueError: no room"
    assert not list((folder(store) / "checkpoints").iterdir())
