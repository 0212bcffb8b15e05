"""A tiny complete study: its tables, its stops, its failures, and that of Ray, which is the same.

It is long, since one study is run once and looked at from all sides.
"""

import doctest
import json
import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import duckdb
import numpy as np
import polars as pl
import pytest
import ray
import torch
from matplotlib.figure import Figure
from polars.testing import assert_frame_equal

import study
from cf_core.bundle import load_bundle
from cf_core.errors import ConfigError, UserError
from cf_core.files import AnyPath
from cf_core.fuse import fuse_files
from cf_core.training import load_tensors
from evaluation.controls import CONTROLS
from evaluation.figures import save
from evaluation.frontier import CHOSEN_ON, DEPLOYED_AXES, LEVELS, PANELS, POSTER_AXES, REAL
from evaluation.inference import measure_again
from evaluation.metrics import AXES, COHERENCY, LIKENESS, METRICS, OF_PAIRS
from evaluation.rivals import list_rivals
from evaluation.samples import take_bins
from evaluation.statistics import STATISTICS, transition_matrix
from study import findings
from study.config import StudyConfig
from study.execution import estimate_work, run_job
from study.findings import CSV_COLUMNS, draw, say_verdicts, tabulate
from study.ledger import Ledger, list_failures
from study.prepare import find_corpus, prepare
from study.recording import Recorder
from study.run import plan, run, run_all
from study.search import list_first_trials
from study.specs import Job, PackSpec, plan_rivals
from study.store import Store
from study.tables import TABLES, drop_volatile
from tests import readme
from tests.conftest import folder
from tests.tiny import (
    EVALUATION,
    GATES,
    Watch,
    furnish,
    go,
    models,
    tiny,
)

pytestmark = pytest.mark.slow

SOURCES = ("test", "prior", "validation", "validation_prior")


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
    "rewriting-price3.0": (None, (1,)),
}
"""λ and iteration counts of each setting."""
RECORDS = 8 + len(RIVALS)


@pytest.fixture(scope="module")
def undisturbed(
    melodies: Path, shared: Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, StudyConfig, list[str]]:
    config = furnish(tiny(melodies, tmp_path_factory.mktemp("results")), shared)
    store, lines = go(config, pictured=True)
    return store, config, lines


Study = tuple[Store, StudyConfig, list[str]]


@pytest.fixture
def results(melodies: Path, shared: Store, tmp_path: Path) -> Path:
    """A results folder with what trials share, and no trial yet."""
    furnish(tiny(melodies, tmp_path), shared)
    return tmp_path


def _check_latents_of_references(latents: pl.DataFrame, outcomes: pl.DataFrame) -> None:
    """Controls are there for every input, and real pairs as they are numbered in `outcomes`."""
    tricks = latents.filter(pl.col("method") != "real")
    made = set(tricks.select("method", "source").unique().iter_rows())
    assert made == {
        (name, source)
        for name in CONTROLS
        for source in SOURCES
        if name != "same_song" or "prior" not in source
    }
    twice = tricks.filter(method="left_twice")
    for half in ("z_left", "z_right"):
        np.testing.assert_array_equal(twice[half].to_numpy(), twice["z_left_in"].to_numpy())
    real = latents.filter(method="real")
    assert set(real["source"]) == {"test", "validation"}
    np.testing.assert_array_equal(real["z_right"].to_numpy(), real["z_right_in"].to_numpy())
    on = ["source", "pair", "left_song", "right_song", "meter"]
    known = outcomes.filter(method="real").select(on)
    assert real.join(known, on=on).height == real.height
    assert real.filter(source="test").height == 24


def test_every_table_has_its_schema_and_every_row_is_there(undisturbed: Study) -> None:
    store, config, _ = undisturbed
    tables = {name: store.scan(name).collect() for name in TABLES}
    for name, frame in tables.items():
        wanted = TABLES[name].schema(config.core.latent_dim)
        assert frame.schema == pl.DataFrame(wanted.empty_table()).schema, name
        assert (frame.height > 0) == (name not in ("rungs", "failures")), name
    trials = [spec.id for spec in list_first_trials(config)]
    assert sorted(tables["trials"]["trial"]) == sorted([*trials, *RIVALS])
    assert set(tables["trials"]["status"]) == {"done"}
    points: set[tuple[str, float | None, str, int]] = {
        (spec.id, weight, source, count)
        for spec in list_first_trials(config)
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
    of_references = pl.col("trial").is_in(["real", *CONTROLS])
    latents = tables["latents"].filter(~of_references)
    assert set(latents.select("trial", "lambda", "source", "iteration").iter_rows()) == points
    pairs = {name: 20 if name.startswith("validation") else 24 for name in SOURCES}
    assert latents.height == sum(pairs[source] for _, _, source, _ in points)
    _check_latents_of_references(tables["latents"].filter(of_references), tables["outcomes"])
    sizes = latents.group_by("trial", "lambda", "source", "iteration").len()
    assert all(count == pairs[source] for _, _, source, _, count in sizes.iter_rows())
    metrics = tables["metrics"]
    assert set(metrics["metric"]) == set(METRICS)
    references = ["identity", "floor", "ceiling", *CONTROLS]
    for metric in (*COHERENCY, *OF_PAIRS, "novelty", "copied", "overlap_area", "coverage"):
        rows = metrics.filter(pl.col("metric") == metric, ~pl.col("trial").is_in(references))
        found = rows.select("trial", "lambda", "source", "iteration").iter_rows()
        assert set(found) == points, metric
        assert rows.height == len(points)
    for level in ("floor", "ceiling"):
        rows = metrics.filter(pl.col("method") == level, pl.col("metric").is_in(COHERENCY))
        assert rows.height == len(COHERENCY) * len(SOURCES)
    for control in CONTROLS:
        sense = [name for name in SOURCES if control != "same_song" or "prior" not in name]
        rows = metrics.filter(pl.col("trial") == control)
        assert set(rows["source"]) == set(sense), control
        assert {*AXES, *COHERENCY, "seam"} <= set(rows["metric"])
        assert set(rows.select("method", "configuration").iter_rows()) == {(control, control)}
    told = tables["controls"].join(
        metrics, left_on=["source", "metric", "control"], right_on=["source", "metric", "trial"]
    )
    assert told.height == tables["controls"].height
    assert told["value"].equals(told["value_right"], null_equal=True)
    not_inputs = ~pl.col("trial").is_in(["identity", "real", *CONTROLS])
    outcomes = tables["outcomes"].filter(not_inputs)
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
    assert panels == set(product(CHOSEN_ON, (*LIKENESS, *COHERENCY)))
    for name in ("frontier", "matched", "hypervolumes"):
        assert not {*CONTROLS} & {*tables[name]["method"]}, f"{name}: a trick is no rival"
    assert set(tables["curves"]["trial"]) == set(trials)
    assert set(tables["curves"]["step"]) == {100, 120}


def test_bins_are_recorded_by_their_lower_edges(undisturbed: Study) -> None:
    store, config, _ = undisturbed
    bins = store.bins.collect()
    assert set(bins["meter"]) == {*config.melody.kinds}
    for _, own in bins.group_by("meter", "statistic", maintain_order=True):
        assert own["bin"].to_list() == list(range(own.height))
        first, *others = own["lower"]
        assert first is None
        assert others == sorted({*others})


def test_latents_hold_what_was_put_in_and_what_came_out(undisturbed: Study) -> None:
    store, config, _ = undisturbed
    # Real pairs are of a song each, and have no inputs.
    latents = store.scan("latents").filter(pl.col("method") != REAL).collect()
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


def test_a_stopped_preparation_goes_on_and_ends_with_the_same_models(
    shared: Store, melodies: Path, tmp_path: Path
) -> None:
    config = tiny(melodies, tmp_path)
    for stop in ("core at 50", "selection judge at 50"):
        with pytest.raises(KeyboardInterrupt):
            models(config, stop)
    store = models(config)
    files = [path for name in ("core", "classifiers") for path in (folder(shared) / name).iterdir()]
    assert len(files) == 2 * 8 + 1
    for file in files:
        assert (folder(store) / file.parent.name / file.name).read_bytes() == file.read_bytes()


def test_judges_rate_by_another_model_of_notes_than_draws_their_negatives(shared: Store) -> None:
    def read(name: str) -> dict[str, torch.Tensor]:
        weights = load_tensors(shared.root / "classifiers" / f"{name}.safetensors")
        assert weights is not None
        return weights

    rates, draws = read("second_opinion"), read("continuation")
    for judge in map(read, ("selection_judge", "reporting_judge")):
        for name, value in rates.items():
            assert torch.equal(judge[f"continuation.{name}"], value)
    assert all(not torch.equal(draws[name], rates[name]) for name in rates if "weight" in name)


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


def test_a_trial_that_diverges_is_a_row_and_the_others_go_on(
    melodies: Path, shared: Store, tmp_path: Path
) -> None:
    search = {"lambda": [0.1, 1e38], "style_dim": [0], "seeds": [0]}
    config = tiny(melodies, tmp_path, search=search, evaluation=EVALUATION)
    store, lines = go(furnish(config, shared))
    rows = {row["trial"]: row for row in store.scan("trials").collect().to_dicts()}
    bad = rows["lambda1e+38-style0-seed0"]
    assert bad["status"] == "diverged"
    assert "not finite" in bad["reason"]
    assert rows["lambda0.1-style0-seed0"]["status"] == "done"
    assert any("1e+38" in line and "diverged" in line for line in lines)
    assert store.scan("metrics").filter(pl.col("trial") == bad["trial"]).collect().is_empty()


@pytest.mark.usefixtures("own_ray")
def test_a_gpu_that_is_not_there_is_not_waited_for(
    melodies: Path, shared: Store, tmp_path: Path
) -> None:
    execution = {"workers": 1, "results": str(tmp_path), "resources": {"trials": {"gpu": 0.5}}}
    config = furnish(tiny(melodies, tmp_path, execution=execution), shared)
    with pytest.raises(UserError, match=r"resources\.trials: no node has 1 CPU, 0\.5 GPU; ask"):
        run(config, Watch())
    assert not ray.is_initialized()


def test_a_cluster_that_is_not_there_is_named(melodies: Path, results: Path) -> None:
    execution = {"workers": 2, "results": str(results), "address": "127.0.0.1:1"}
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1.*execution\.address"):
        go(tiny(melodies, results, execution=execution))


def leave_out(patch: pytest.MonkeyPatch, named: Callable[[str], bool]) -> None:
    """Draw figures so named, but don't write them: that takes longest, seconds for each."""

    def write(figure: Figure, stem: Path) -> list[AnyPath]:
        if named(stem.name):
            return [stem.with_name(stem.name + suffix) for suffix in (".svg", ".png")]
        return save(figure, stem)

    patch.setattr(findings, "save", write)


def test_figures_come_from_parquet_alone(
    undisturbed: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, lines = undisturbed
    # Figures of the other axes are made by the same functions.
    leave_out(monkeypatch, lambda name: name.endswith((DEPLOYED_AXES[1], *POSTER_AXES)))
    copy = tmp_path / "copy"
    for table in TABLES.keys() - {"latents", "rungs", "failures"}:
        shutil.copytree(folder(store) / table, copy / table)
    shutil.copy(folder(store) / "study.json", copy)
    drawn = {path.name: path for path in draw(Store(copy))}
    axes = (*DEPLOYED_AXES, *POSTER_AXES)
    named = [f"{kind}-{axis}" for kind in ("frontier", "iterations") for axis in axes]
    named += ["attainment", "attainment-difference", "cost", "search", "song-distances", "styles"]
    named += ["likeness", "transitions", "verdicts", "verdicts-poster"]
    assert set(drawn) == {f"{name}{suffix}" for name in named for suffix in (".svg", ".png")}
    # A run draws them all from its own records.
    assert str(store.root / "figures") in lines
    assert sum(path.exists() for path in drawn.values()) == len(drawn) - 2 * 2 * 3
    # And they are the same each time.
    name, figure = next(findings._figures(store))
    for path in save(figure, tmp_path / name):
        assert path.read_bytes() == drawn[path.name].read_bytes()


def assert_close(found: pl.Series, wanted: pl.Series | float) -> None:
    """Outcomes are written in single precision."""
    assert np.allclose(found, wanted, atol=2e-5, equal_nan=True)


def test_metrics_of_some_pairs_are_those_of_their_outcomes(undisturbed: Study) -> None:
    store, _, _ = undisturbed
    metrics, influences = findings.read_finished_metrics(store), store.scan("influences")
    bins = findings.count_bins(store)
    again = measure_again(metrics, store.outcomes, influences, bins)
    keys = ["trial", "lambda", "iteration", "source", "metric"]
    both = again.join(metrics, on=keys, nulls_equal=True, suffix="_stored", validate="1:1")
    told = [*STATISTICS, *LIKENESS, *OF_PAIRS, *AXES]
    stored = metrics.filter(pl.col("metric").is_in(told), ~pl.col("method").is_in(LEVELS))
    assert again.height == both.height == stored.height
    assert_close(both["value"], both["value_stored"])
    assert both["n"].equals(both["n_stored"])
    # How real pairs bear on likeness is in the tables for whole pairs of scored sources alone.
    fixed = ~pl.col("metric").str.starts_with("indistinguishable")
    scored = (pl.col("metric") == "indistinguishable") & pl.col("source").is_in([*CHOSEN_ON])
    spread = both.filter(fixed | scored)
    known = spread.drop_nulls(["low", "low_stored"])
    for name in ("low", "high"):
        assert_close(known[name], known[f"{name}_stored"])
    # Where only one gives an interval, all songs have the same mean.
    none = spread.filter(pl.col("low").is_null() != pl.col("low_stored").is_null())
    widths = none.select((pl.col(f"high{x}") - pl.col(f"low{x}")).abs() for x in ("", "_stored"))
    assert_close(widths.select(pl.max_horizontal(pl.all())).to_series(), 0.0)
    # Of every other pair, as if the others had another meter.
    some = store.outcomes.filter((pl.col("pair") % 2 == 0) | (pl.col("method") == REAL))
    rows = some.filter(trial="lp-eta0.3", source="test", iteration=5).collect()
    real = some.filter(method=REAL, source="test").collect()
    found = measure_again(metrics, some, influences, bins).filter(
        trial="lp-eta0.3", source="test", iteration=5
    )
    value = dict(found.select("metric", "value").iter_rows())
    assert value["edit_distance"] == pytest.approx(rows["edit_distance"].mean())
    far = np.quantile(rows["larger_edit_distance"].to_numpy(), 0.9)
    assert value["larger_edit_distance_q90"] == pytest.approx(far)
    ours, theirs = (
        transition_matrix(*take_bins(table, "note_count"), bins["note_count"]).ravel()
        for table in (rows, real)
    )
    assert value["note_count"] == pytest.approx(np.corrcoef(ours, theirs)[0, 1])
    assert set(found["n"]) <= {rows.height, *range(rows.height)}


def test_figures_and_verdicts_of_one_meter(
    undisturbed: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, _ = undisturbed
    leave_out(monkeypatch, lambda name: name != "likeness")
    for table in TABLES.keys() - {"latents", "rungs", "failures"}:
        shutil.copytree(folder(store) / table, tmp_path / table)
    shutil.copy(folder(store) / "study.json", tmp_path)
    copy = Store(tmp_path)
    with pytest.raises(ConfigError, match=r"meter: 6/8: the study has no pairs in it .* from 4/4$"):
        next(iter(draw(copy, "6/8")))
    written = [str(path) for path in draw(copy, "4/4")]
    assert all(path.startswith(str(tmp_path / "figures" / "4-4")) for path in written)
    assert {Path(path).stem for path in written} >= {"likeness", "frontier-z_distance", "verdicts"}
    assert (tmp_path / "figures" / "4-4" / "likeness.svg").exists()
    # All pairs of this study are in one meter.
    own, whole = pl.read_csv(written[0]), copy.scan("verdicts").collect()
    assert own.height == whole.height
    assert_close(own["difference"], whole["difference"])


def test_influences_on_all_pairs_are_not_taken_for_those_of_a_meter(
    undisturbed: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, config, _ = undisturbed
    is_even = pl.col("pair") % 2 == 0
    meter = pl.when(is_even).then(pl.lit("4/4")).otherwise(pl.lit("3/4"))
    outcomes = store.outcomes.with_columns(meter=meter)
    songs = [
        outcomes.filter(own, pl.col("method") == REAL).select("left_song").unique().collect()
        for own in (is_even, True)
    ]
    assert songs[0].height == songs[1].height  # all songs are in both meters
    monkeypatch.setattr(Store, "outcomes", outcomes)
    found, _ = findings._measure_meter(store, config, "4/4")
    finished, none = findings.read_finished_metrics(store), store.scan("influences").clear()
    own = outcomes.filter(is_even)
    fixed = measure_again(finished, own, none, findings.count_bins(store))
    assert found.equals(fixed)


def test_a_meter_needs_inputs_of_every_source_and_real_pairs() -> None:
    whole = [("identity", source) for source in SOURCES] + [(REAL, "test"), (REAL, "validation")]
    rows = [("4/4", *one) for one in whole]
    for meter, missing in (("2/2", (REAL, "validation")), ("6/8", ("identity", "prior"))):
        rows += [(meter, *one) for one in whole if one != missing]
    table = pl.LazyFrame(rows, ["meter", "method", "source"], orient="row")
    assert findings._list_meters(cast("Store", SimpleNamespace(outcomes=table))) == ["4/4"]


def test_verdicts_are_those_of_the_tables(undisturbed: Study) -> None:
    store, _, lines = undisturbed
    found = store.scan("verdicts").collect()
    rivals = {"identity", "lp", "gradient", "cmaes", "best_of_n", "slerp", "retrieval", "rewriting"}
    keys = found.select("rival", "axis", "source", "metric")
    panels = [(axis, *panel) for axis in POSTER_AXES for panel in PANELS]
    panels += list(product(DEPLOYED_AXES, CHOSEN_ON, (*COHERENCY, *LIKENESS)))
    assert set(keys.iter_rows()) == {(rival, *panel) for rival in rivals for panel in panels}
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
        for axis, way in (
            ("larger_edit_distance_q90", "one point for each edit distance"),
            ("edit_distance", "the best point for each panel"),
        ):
            counted = found.filter(rival=rival, axis=axis, source="test")
            wins = counted.filter(verdict="win").height
            assert any(f"against {rival}, {way}: {wins} wins" in line for line in lines)
    # One point serves all panels of a distance.
    chosen = matched.filter(pl.col("axis").is_in(DEPLOYED_AXES)).group_by(
        "rival", "axis", "method", "distance"
    )
    kinds = chosen.agg(pl.struct("configuration", "lambda", "iteration").n_unique().alias("n"))
    assert kinds["n"].unique().to_list() == [1]


def test_the_summary_says_where_a_method_has_no_points_and_why(undisturbed: Study) -> None:
    store, _, lines = undisturbed
    (line,) = [line for line in lines if "the inputs stand in for it" in line]
    told = line.partition("stand in for it: ")[2]
    assert "(real pairs of other songs are never very near)" in told
    matched = store.scan("matched").filter(pl.col("rival") != "identity").collect()
    for (method,), own in matched.group_by("method"):
        share = own["configuration"].to_list().count("identity") / own.height
        limits = getattr(list_rivals().get(str(method)), "limits", "")
        expected = f"{method} {10 * share:.1f}" + (f" ({limits})" if limits else "")
        assert (expected in told) == (share > 0)


def test_the_summary_tells_how_far_the_halves_are_apart(undisturbed: Study) -> None:
    store, _, lines = undisturbed
    (line,) = [line for line in lines if "halves to each other" in line]
    outcomes = store.scan("outcomes").filter(pl.col("source") == "test").collect()
    chosen = (
        store.scan("matched")
        .filter(
            axis="larger_edit_distance_q90",
            source="test",
            metric="indistinguishable",
            rival="lp",
        )
        .collect()
        .sort("distance")
    )
    for method in ("ours", "lp"):
        configuration, lambda_, count = (
            chosen.filter(method=method).select("configuration", "lambda", "iteration").row(-1)
        )
        pairs = outcomes.filter(
            pl.col("lambda").eq_missing(lambda_),
            configuration=configuration,
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
    for table in ("metrics", "outcomes", "influences", "trials"):
        for part in (copy / table).glob("*-seed1.1.parquet"):
            part.unlink()
    tabulate(Store(copy), config.evaluation)
    found = Store(copy).scan("verdicts").collect()
    assert found["difference"].is_finite().any()
    for column in ("low", "high", "p", "p_holm", "verdict"):
        assert found[column].null_count() == found.height
    assert any("ahead in" in line for line in say_verdicts(Store(copy)))


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
        patch.setattr("study.run.save", lambda *_: [])
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


def test_models_are_not_rated_by_the_songs_of_another_corpus(undisturbed: Study) -> None:
    finished, config, _ = undisturbed
    other = replace(find_corpus(config, Watch()), content_hash="another")
    with pytest.raises(ConfigError, match=r"other settings \(corpus: "):
        prepare(config, other, finished, Watch())


def test_what_a_pack_leaves_undone_is_recorded_and_nothing_else(
    undisturbed: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial is done already, one can't be evaluated, one ends as it should."""
    finished, config, _ = undisturbed
    trials = list_first_trials(config)[:3]
    store = Store(tmp_path / "tiny")
    shutil.copytree(folder(finished), folder(store))
    for trial in trials[1:]:
        (store.root / "trials" / f"{trial.id}.1.parquet").unlink()
    bench = prepare(config, find_corpus(config, Watch()), store, Watch())
    write = Recorder.write_outputs

    def fail(recorder: Recorder, part: str, *rest: Any) -> Any:
        if part == trials[1].id:
            raise ValueError("no room")
        return write(recorder, part, *rest)

    monkeypatch.setattr(Recorder, "write_outputs", fail)
    attempts = {trial.id: 2 for trial in trials}
    pack = tuple(trials)
    with pytest.raises(ValueError, match="no room"):
        list(run_job(PackSpec(pack, pack[1:]), bench, store, attempts))
    over = store.scan("trials").filter(pl.col("trial").is_in([trial.id for trial in trials]))
    rows = {row["trial"]: row for row in over.collect().to_dicts()}
    assert [rows[trial.id]["status"] for trial in trials] == ["done", "failed", "done"]
    assert [rows[trial.id]["attempt"] for trial in trials] == [1, 2, 2]
    assert rows[trials[1].id]["reason"] == "ValueError: no room"
    (failure,) = list_failures(store, trials[1].id).to_dicts()
    assert (failure["attempt"], failure["reason"]) == (2, "ValueError: no room")
    assert failure["traceback"].startswith("Traceback (most recent call last):")
    assert 'raise ValueError("no room")' in failure["traceback"]


def test_readme_tells_what_is_printed(undisturbed: Study, tmp_path: Path) -> None:
    store, _, lines = undisturbed
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "quickstart").symlink_to(folder(store))
    text = readme.README.read_text(encoding="utf-8")
    asked = [
        one
        for one in readme.list_examples(text)
        if one.command.startswith(("cf-study query quickstart", "cf-study select quickstart"))
    ]
    assert len(asked) == 2
    for example in asked:
        found = readme.run_command(example.command, tmp_path)
        told = {readme.mask(line) for line in example.lines}
        # Which methods are the best is another matter in a small study.
        told = {line for line in told if line != "..." and not line.startswith("│ TRIAL")}
        assert told <= {readme.mask(line) for line in found}, found
    summary = readme.find_summary(text)
    for key in {
        line.strip().partition(":")[0] for line in summary[1:] if not line.startswith("    ")
    }:
        assert any(line.startswith(f"{key}:") for line in lines), key
    (tables,) = (line for line in summary if line.strip().startswith("tables:"))
    assert tables.partition("{")[2].strip("}").split(",") == list(TABLES)


@pytest.mark.parametrize("name", ["store", "select", "ledger", "run", "config.loading"])
def test_examples_in_docstrings_run(
    undisturbed: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name in ("store", "select", "ledger"):  # the others say what happens before a run
        shutil.copytree(folder(undisturbed[0]), tmp_path / "results" / "quickstart")
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(import_module(f"study.{name}"), report=True)
    assert found.attempted > 0
    assert not found.failed


def test_reports_count_training_and_evaluation_up_to_the_whole(
    undisturbed: Study, tmp_path: Path
) -> None:
    finished, config, _ = undisturbed
    bench = prepare(config, find_corpus(config, Watch()), finished, Watch())
    store = Store(tmp_path / "tiny")
    store.claim(finished.record["identity"], finished.record["fingerprint"], "tiny")
    pack = tuple(trial for trial in list_first_trials(config) if trial.lambda_ == 0.1)[:2]
    jobs: list[Job] = [PackSpec(pack, pack), *plan_rivals(config.evaluation)]
    for job in jobs:
        attempts = {part.id: 1 for part in job.parts}
        reports = list(run_job(job, bench, store, attempts))
        total = estimate_work(job, bench)
        assert {report.total for report in reports} == {total}
        done = [report.done for report in reports]
        assert done == sorted(done)
        assert done[-1] == total
        if isinstance(job, PackSpec):
            trained = [report.done for report in reports if report.losses]
            assert trained[-1] == len(pack) * config.fusion.steps < total


@pytest.mark.usefixtures("own_ray")
def test_a_study_in_a_bucket_runs_stops_goes_on_and_is_compacted(
    shared: Store,
    melodies: Path,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(folder(shared).parent / ".corpora", tmp_path / "connective-fusion")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = tiny(
        melodies,
        tmp_path,
        search={"lambda": [0.1, "conditional"], "style_dim": [0], "seeds": [0]},
        evaluation=EVALUATION | {"latents": "scored"},
        execution={"workers": 1, "pack": 1, "results": f"{bucket}/small"},
    )
    furnish(config, shared)
    with pytest.raises(KeyboardInterrupt):
        go(config, ": finished (1 of 3)")
    assert len(Ledger(study.open(f"{bucket}/small/tiny")).list_statuses()) == 1
    store, lines = go(config, on_ray=True)
    assert "1 of 3 are already done" in lines
    assert str(store.root) == f"{bucket}/small/tiny"
    again = study.open(f"{bucket}/small/tiny")
    assert set(Ledger(again).list_statuses().values()) == {"done"}
    assert set(again.latents.collect()["source"]) == {"test", "prior"}
    before = {table: again.scan(table).collect() for table in TABLES}
    empty = {table for table, frame in before.items() if frame.is_empty()}
    assert empty == {"rungs", "importances", "failures"}
    assert load_bundle(again.root / "bundle").record["fingerprint"] == again.record["fingerprint"]
    assert (again.root / "example" / "outputs.wav").read_bytes().startswith(b"RIFF")
    csv = pl.read_csv((again.root / "verdicts.csv").read_bytes())
    assert csv.height == before["verdicts"].height
    assert len(list(again.compact())) > 0
    for table, frame in before.items():
        assert_frame_equal(again.scan(table).collect(), frame, check_row_order=False)
    _, lines = go(config)
    assert "3 of 3 are already done" in lines
    verdicts = again.verdicts.collect()
    assert_frame_equal(verdicts, before["verdicts"])


def test_what_is_kept_of_latents_changes_no_other_table(undisturbed: Study, tmp_path: Path) -> None:
    finished, config, _ = undisturbed
    own = pl.col("trial") == "slerp"
    (job,) = (job for job in plan_rivals(config.evaluation) if job.id == "slerp")
    bench = prepare(config, find_corpus(config, Watch()), finished, Watch())
    sources: dict[str, set[str]] = {}
    for latents in ("all", "scored", "none"):
        store = Store(tmp_path / latents)
        store.claim(finished.record["identity"], finished.record["fingerprint"], latents)
        kept = config.evaluation.model_copy(update={"latents": latents})
        list(run_job(job, replace(bench, plan=kept), store, {"slerp": 1}))
        sources[latents] = set(store.latents.collect()["source"])
        parts = store.trials.collect()["parts"][0].split(",")
        assert ("latents" in parts) == (latents != "none")
        assert Ledger(store).list_statuses() == {"slerp": "done"}
        for table in ("metrics", "outcomes", "costs"):
            ours, theirs = (
                drop_volatile(each.scan(table).filter(own).collect(), table)
                for each in (store, finished)
            )
            assert ours.equals(theirs, null_equal=True)
    assert sources == {"all": set(SOURCES), "scored": {"test", "prior"}, "none": set()}


def test_the_plan_tells_the_size_of_latents(melodies: Path, tmp_path: Path) -> None:
    """Three readings of each seed after two counts, and two points of LP; a row is 4 · 16 floats.

    In the scheme `heard` the first seed counts twice.
    """
    settings = tiny(melodies, tmp_path).evaluation.model_dump()
    rows = {"all": 2 * (50_000 + 20_000), "scored": 2 * 50_000, "none": 0}
    for (latents, pairs), scheme in product(rows.items(), ("poster", "heard")):
        changes = {"pairs": 50_000, "validation_pairs": 20_000, "rivals": ["lp"]}
        config = tiny(
            melodies,
            tmp_path,
            core={"latent_dim": 16},
            fusion={"scheme": scheme},
            search={"lambda": [0.1, "conditional"], "style_dim": [0], "seeds": [0, 1]},
            evaluation=settings | changes | {"latents": latents},
        )
        points = (1 + 2) * 2 * (3 if scheme == "heard" else 2) + 2
        size = f"{pairs * points * 256 / 1e9:.2f}"
        assert f"latents kept: {latents}, up to {size} GB" in plan(config).splitlines()


def test_the_notebook_answers_its_five_questions(undisturbed: Study) -> None:
    """Its numbers against the same ones in DuckDB's SQL, on the same files."""
    store, _, _ = undisturbed
    path = Path(__file__).parent.parent / "docs" / "notebook.py"
    _, found = runpy.run_path(str(path))["app"].run(
        defs={"results": str(store.root), "limit": 12.0}
    )
    sql = duckdb.connect()
    for table in TABLES.keys() - {"rungs", "failures"}:
        sql.sql(f"CREATE VIEW {table} AS FROM '{store.root}/{table}/*.parquet'")

    def ask(query: str, *values: Any) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = sql.execute(query, values).fetchall()
        return rows

    best = found["best"]
    ((highest,),) = ask(
        """
        SELECT max(likeness) FROM (
            SELECT avg(value) FILTER (metric = 'indistinguishable') AS likeness,
                avg(value) FILTER (metric = 'larger_edit_distance') AS distance
            FROM metrics WHERE source = 'validation' AND seed IS NOT NULL
            GROUP BY split_part(trial, '-seed', 1), "lambda", iteration
        ) WHERE distance <= 12
        """
    )
    assert best["indistinguishable"] == pytest.approx(highest)
    point = best["configuration"] + "-seed%", best["lambda"], best["iteration"]
    ((mean, deviation),) = ask(
        """
        SELECT avg(value), stddev_samp(value) FROM metrics WHERE metric = 'indistinguishable'
        AND source = 'test' AND trial LIKE ? AND "lambda" = ? AND iteration = ?
        """,
        *point,
    )
    assert best["test_value"] == pytest.approx(mean)
    # Student's t of one degree of freedom, for two seeds.
    assert best["high"] - mean == pytest.approx(12.7062 * deviation / 2**0.5, rel=1e-4)
    gains = ask(
        """
        SELECT distance, sum(CASE method WHEN 'ours' THEN value ELSE -value END) FROM matched
        WHERE rival = 'lp' AND axis = 'z_distance' AND source = 'test' AND metric = 'judge'
        GROUP BY distance ORDER BY distance
        """
    )
    np.testing.assert_allclose(found["gains"].select("distance", "gain").rows(), gains, atol=1e-12)
    for row in found["styles"].iter_rows(named=True):
        ((diversity,),) = ask(
            """
            SELECT avg(value) FROM metrics WHERE metric = 'style_diversity' AND source = 'test'
            AND style_dim > 0 AND "lambda" = ? AND iteration = 2
            """,
            row["lambda"],
        )
        assert row["2"] == pytest.approx(diversity)
    for row in found["songs"].iter_rows(named=True):
        ((gain, pairs),) = ask(
            """
            SELECT avg(a.judge - b.judge), count(*) FROM outcomes a JOIN outcomes b USING (pair)
            WHERE a.source = 'test' AND b.source = 'test' AND b.trial = 'identity'
            AND a.trial = ? AND a."lambda" = ? AND a.iteration = ?
            AND ? IN (a.left_song, a.right_song)
            """,
            best["trial"],
            *point[1:],
            row["song"],
        )
        assert (row["gain"], row["pairs"]) == (pytest.approx(gain, abs=1e-6), pairs)
    moved = ask(
        """
        SELECT avg(list_distance(a.z_left || a.z_right, b.z_left || b.z_right))
        FROM latents a JOIN latents b USING (trial, "lambda", source, pair)
        WHERE a.iteration = 1 AND b.iteration = 2 AND source = 'test'
        AND trial = ? AND "lambda" = ?
        """,
        best["trial"],
        best["lambda"],
    )
    assert found["moves"]["per_application"][1] == pytest.approx(moved[0][0], rel=1e-4)
