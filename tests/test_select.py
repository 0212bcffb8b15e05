import math
from datetime import UTC, datetime
from pathlib import Path
from shutil import copyfile
from typing import Any

import polars as pl
import pytest
import torch

from cf_core.bundle import load_bundle
from cf_core.errors import SelectionError, UserError
from cf_core.fusion import Generator
from cf_core.nets import initialise
from cf_core.training import collect_weights, save_tensors
from cf_core.vae import MelodyVAE
from study.config import Selection, StudyConfig
from study.search import list_first_trials
from study.select import list_jobs, rank_candidates, read_rule, select
from study.specs import TrialSpec
from study.store import Store
from study.workbench import find_generator
from tests.conftest import folder

CONFIG = StudyConfig.model_validate(
    {
        "name": "tiny",
        "core": {"latent_dim": 8, "hidden": 16, "embedding": 8, "depth": 1},
        "fusion": {"scheme": "poster", "hidden": 16, "depth": 2},
        "search": {"lambda": (0.1, 1.0), "style_dim": (0, 2), "seeds": (0,)},
        "evaluation": {"lp": {"step_sizes": (0.1,)}},
    }
)
A, B, C, D = (spec.id for spec in list_first_trials(CONFIG))
SE = 0.2 / (2 * 1.96)
"""Standard error of every metric below."""
RULE = ["z_distance <= 3"]


def rule(where: list[str], maximise: str = "judge") -> Selection:
    return Selection.model_validate({"maximise": maximise, "where": where})


# trial, iteration, judge, z-distance: all on validation songs.
POINTS = [
    (A, 1, 0.50, 1.0),
    (A, 2, 0.70, 2.9),
    (A, 4, 0.90, 3.1),
    (B, 1, 0.70, 2.5),
    (B, 2, 0.70, 2.9),
    (C, 1, math.nan, 0.5),
    (C, 2, 0.60, math.nan),
    (D, 1, 0.99, 0.1),
]
TOKENS = 4.0
"""Edits of the larger half, twice, for each unit of z-distance."""
DIVERSITY = {A: 0.0, B: 4.0, C: 2.0, D: 9.0}


def _spec(trial: str) -> TrialSpec:
    return next(spec for spec in list_first_trials(CONFIG) if spec.id == trial)


def _label(trial: str) -> dict[str, Any]:
    spec = _spec(trial)
    return spec.label


def _metric(trial: str, iteration: int, name: str, value: float, source: str) -> dict[str, Any]:
    interval = {"low": value - 0.1, "high": value + 0.1}
    row = {"source": source, "iteration": iteration, "metric": name, "value": value}
    return {**_label(trial), **row, **interval, "n": 8, "excluded": 0}


def _values(judge: float, distance: float) -> dict[str, float]:
    return {"judge": judge, "z_distance": distance, "larger_edit_distance": TOKENS * distance}


def _over(trial: str, state: str, reason: str | None = None) -> dict[str, Any]:
    done = {"status": state, "reason": reason, "steps": 9, "checkpoint": "c", "fingerprint": "f"}
    run = {
        "seconds": 12.3,
        "attempt": 1,
        "host": "h",
        "hardware": "c",
        "device": "cpu",
        "versions": '{"torch": "2"}',
        "hidden": 16,
    }
    return {
        **_label(trial),
        **done,
        **run,
        "finished_at": datetime(2026, 1, 1, tzinfo=UTC),
        "parts": "",
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A, B and C are done, D failed after its metrics were written."""
    store = Store(tmp_path / "tiny")
    store.claim(CONFIG.identity("abc"), CONFIG.fingerprint("abc"), CONFIG.name)
    for trial in (A, B, C, D):
        rows = [
            _metric(trial, iteration, name, value, "validation")
            for owner, iteration, judge, distance in POINTS
            for name, value in _values(judge, distance).items()
            if owner == trial
        ]
        rows.append(_metric(trial, 1, "style_diversity", DIVERSITY[trial], "validation"))
        # On test songs A looks best by far; nobody may look there.
        rows.append(_metric(trial, 1, "judge", 1.0 if trial == A else 0.0, "test"))
        store.write("metrics", trial, rows)
        failed = trial == D
        over = _over(trial, "failed" if failed else "done", "out of memory" if failed else None)
        store.write("trials", trial, [over])
    return store


@pytest.fixture
def trained(store: Store) -> Store:
    """With weights, too."""
    core = MelodyVAE(CONFIG.melody, CONFIG.core)
    initialise(core, torch.Generator().manual_seed(1))
    save_tensors(collect_weights(core), store.root / "core" / "core.safetensors")
    for trial in (A, B, C):
        generator = Generator(8, _spec(trial).style_dim, 16, 2)
        initialise(generator, torch.Generator().manual_seed(2))
        save_tensors(collect_weights(generator), find_generator(store, trial))
    return store


def _points(ranked: pl.DataFrame) -> list[tuple[str, int]]:
    """Trials by their whole name again; all have seed 0."""
    return [
        (f"{configuration}-seed0", count)
        for configuration, count in ranked.select("configuration", "iteration").rows()
    ]


def test_ranking_worked_by_hand(store: Store) -> None:
    ranked = rank_candidates(store, rule(RULE))
    # Three points of 0.7: the nearest first, then by trial. 0.5 is more than a standard error
    # below. A after 4 is too far, C has no finite judge or distance, D failed.
    assert _points(ranked) == [(B, 1), (A, 2), (B, 2), (A, 1)]
    assert ranked["judge"].to_list() == [0.7, 0.7, 0.7, 0.5]
    assert ranked["low"].to_list() == pytest.approx([0.6, 0.6, 0.6, 0.4])
    assert ranked["high"].to_list() == pytest.approx([0.8, 0.8, 0.8, 0.6])
    assert ranked["lambda"].to_list() == [_spec(B).lambda_, 0.1, _spec(B).lambda_, 0.1]


@pytest.mark.parametrize(
    ("where", "best"),
    [
        ([], (A, 4)),
        (["z_distance < 3.1"], (B, 1)),
        (["z_distance<=3.1"], (A, 4)),
        (["z_distance <= 3", "z_distance > 2.5"], (A, 2)),
        (["z_distance <= 3", "z_distance >= 2.5"], (B, 1)),
        (["judge < 0.6"], (A, 1)),
    ],
)
def test_each_sign_of_a_condition(store: Store, where: list[str], best: tuple[str, int]) -> None:
    assert _points(rank_candidates(store, rule(where)))[0] == best


def test_a_point_without_the_metric_of_a_condition_does_not_meet_it(store: Store) -> None:
    ranked = rank_candidates(store, rule(["style_diversity >= 1.0"]))
    assert _points(ranked) == [(B, 1)]
    assert _points(rank_candidates(store, rule(RULE, "style_diversity")))[0] == (B, 1)


@pytest.mark.parametrize(
    ("maximise", "where", "message"),
    [
        ("jugde", RULE, r"jugde: no such name; did you mean judge\?"),
        ("judge", ["z_distanc <= 1"], r"did you mean z_distance\?"),
        ("nope", RULE, r"nope: no such name; there are judge, search_"),
        ("judge", ["beauty > 1"], r"beauty: no such name; there are judge, search_"),
        ("judge", ["z_distance"], r'"z_distance": a condition must read like'),
        ("judge", ["z_distance <= much"], r"a condition must read like"),
        ("judge", ["z_distance == 1"], r"a condition must read like"),
    ],
)
def test_rules_that_make_no_sense(
    store: Store, maximise: str, where: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_rule(store, maximise=maximise, where=where)


def test_the_nearest_miss_is_named(store: Store) -> None:
    with pytest.raises(UserError) as caught:
        rank_candidates(store, rule(["z_distance >= 30", "judge <= 0.3"]))
    # Relative to the bounds, A after 1 misses by 29/30 + 0.2/0.3, A after 4 by 26.9/30 + 0.6/0.3;
    # unscaled, the latter would be nearer.
    named = f"the nearest is {A.removesuffix('-seed0')} at λ 0.1, iterations 1,"
    assert f"{named} with z_distance 1, judge 0.5" in str(caught.value)


def test_the_bundle_holds_the_chosen_weights(trained: Store, tmp_path: Path) -> None:
    choice = select(trained, rule(RULE), tmp_path / "bundle")
    assert (choice.trial, choice.iterations) == (B, 1)
    told = choice.lines()
    assert told[1] == (
        f"chosen: {B.removesuffix('-seed0')}, λ 1, iterations 1: judge 0.700"
        " (95 % 0.600 to 0.800), larger_edit_distance 10.0 tokens"
    )
    assert [line.partition(":")[0] for line in told[2:-1]] == ["runner-up"] * 3
    # Nobody ran the setting of LP; D failed, which is an end as well.
    assert told[-1] == "not finished: lp-eta0.1; run the study to the end"
    bundle = load_bundle(choice.bundle)
    assert bundle.iterations == 1
    assert bundle.form == CONFIG.melody
    expected = Generator(8, _spec(B).style_dim, 16, 2)
    initialise(expected, torch.Generator().manual_seed(2))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(bundle.generator.state_dict()[name], tensor)
    record = bundle.record
    assert (record["study"], record["trial"], record["seed"]) == ("tiny", B, 0)
    assert record["fingerprint"] == CONFIG.fingerprint("abc")
    assert record["rule"] == {
        "maximise": "judge",
        "where": RULE,
        "then": "the nearest by larger_edit_distance within one standard error of the highest",
    }
    assert record["standard_error"] == pytest.approx(SE)
    assert (record["value"], record["highest"]) == (0.7, 0.7)
    assert record["interval"] == pytest.approx([0.6, 0.8])
    assert record["versions"] == {"torch": "2"}
    assert record["of_seed"] == {"judge": 0.7, "larger_edit_distance": 10.0, "z_distance": 2.5}
    runners_up = [(f"{r['configuration']}-seed0", r["iteration"]) for r in record["runners_up"]]
    assert runners_up == [(A, 2), (B, 2), (A, 1)]
    assert [r["low"] for r in record["runners_up"]] == pytest.approx([0.6, 0.6, 0.4])


def test_the_nearest_within_one_standard_error_is_chosen(store: Store) -> None:
    values = {
        1: (0.70, 0.9),
        2: (0.80 - 1.01 * SE, 0.5),
        3: (0.80 - 0.99 * SE, 1.5),
        4: (0.80, 2.9),
    }
    _rewrite(store, A, [(0, count, *point) for count, point in values.items()])
    ranked = rank_candidates(store, rule(["z_distance <= 3.0", "judge >= 0.7"]))
    assert [count for trial, count in _points(ranked) if trial == A] == [3, 4, 2, 1]
    assert ranked["se"][0] == pytest.approx(SE)


def test_near_is_what_changes_neither_half_much(store: Store) -> None:
    # B after 1 has the least z-distance of the three points of 0.7.
    store.write(
        "metrics",
        B,
        [
            _metric(B, 1, name, value, "validation")
            for name, value in (_values(0.7, 2.5) | {"larger_edit_distance": 11.7}).items()
        ],
    )
    ranked = rank_candidates(store, rule(RULE))
    assert _points(ranked) == [(A, 2), (B, 1), (A, 1)]


def test_the_rule_of_a_study_is_likeness_and_nothing_else_unless_it_says_so(store: Store) -> None:
    recorded = read_rule(store)
    assert (recorded.maximise, recorded.where) == ("indistinguishable", ())
    with pytest.raises(UserError, match="have no values of indistinguishable"):
        rank_candidates(store, recorded)
    for trial, value in ((A, 0.7), (B, 0.4), (C, 0.9)):
        rows = [_metric(trial, 1, "indistinguishable", value, "validation")]
        store.write("metrics", f"{trial}-more", [row | {"low": None, "high": None} for row in rows])
    # C is the best, but nobody knows how far it goes.
    store.write(
        "metrics", f"{C}-far", [_metric(C, 1, "larger_edit_distance", math.nan, "validation")]
    )
    assert _points(rank_candidates(store, recorded)) == [(A, 1), (B, 1)]


def test_seeds_are_replicates_of_one_configuration(store: Store) -> None:
    # Seeds 0 and 1 give 0.9 and 0.7 at z 1 and 5: mean 0.8 at z 3.
    _rewrite(store, A, [(0, 1, 0.7, 5.0), (1, 1, 0.9, 1.0)])
    # All others have one seed only, and are not finished.
    (row,) = rank_candidates(store, rule(RULE)).to_dicts()
    assert (row["judge"], row["z_distance"]) == pytest.approx((0.8, 3.0))
    assert row["seeds"] == 2
    # s² of (0.7, 0.9) is 0.02, and the songs are the same for both.
    assert row["se"] == pytest.approx(math.sqrt(SE**2 + 0.02 / 2))
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * row["se"])
    with pytest.raises(UserError, match="the nearest is"):
        rank_candidates(store, rule(["z_distance < 3.0"]))


@pytest.mark.parametrize(
    ("points", "where", "seed"),
    [
        # By z-distance seed 1 misses the condition that the mean meets, though its judge is higher.
        ([(0, 1, 0.7, 2.0), (1, 1, 0.9, 3.5), (2, 1, 0.6, 1.0)], ["z_distance <= 3.0"], 0),
        ([(0, 1, 0.7, 2.0), (1, 1, 0.9, 3.5), (2, 1, 0.6, 1.0)], [], 1),
        # Where none of all seeds meets what their mean does, the best is taken.
        ([(0, 1, 0.7, 1.0), (1, 1, 0.8, 5.0)], ["z_distance > 2", "z_distance < 4"], 1),
    ],
)
def test_the_deployed_seed_meets_the_rule_itself_where_one_does(
    trained: Store,
    tmp_path: Path,
    points: list[tuple[int, int, float, float]],
    where: list[str],
    seed: int,
) -> None:
    _rewrite(trained, B, points)
    own = find_generator(trained, B)
    for number in {point[0] for point in points} - {0}:
        copyfile(str(own), str(find_generator(trained, B.replace("seed0", f"seed{number}"))))
    choice = select(trained, rule(where), tmp_path / "bundle")
    assert choice.trial == B.replace("seed0", f"seed{seed}")
    record = load_bundle(choice.bundle).record
    judge, distance = next(point[2:] for point in points if point[0] == seed)
    assert record["seed"] == seed
    assert record["of_seed"].items() <= _values(judge, distance).items()
    far = TOKENS * distance
    told = f"deployed: {choice.trial}, by itself judge {judge:.3f}, larger_edit_distance {far:.3f}"
    assert any(line.startswith(told) for line in choice.lines())


def test_a_metric_without_interval_is_chosen_by_its_value_alone(store: Store) -> None:
    rows = [
        _metric(A, count, "coverage", value, "validation") | {"low": None, "high": None}
        for count, value in ((1, 0.5), (2, 0.6))
    ]
    store.write("metrics", "coverage", rows)
    ranked = rank_candidates(store, rule(RULE, "coverage"))
    assert _points(ranked) == [(A, 2), (A, 1)]
    assert ranked["se"].to_list() == [0.0, 0.0]


@pytest.mark.parametrize("value", [0.97, 0.02])
def test_an_interval_cut_at_a_limit_is_no_narrower(value: float, store: Store) -> None:
    cut = {"low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1)}
    row = _metric(A, 1, "seam", value, "validation") | cut
    store.write("metrics", "seam", [row])
    assert rank_candidates(store, rule(RULE, "seam"))["se"].item() == pytest.approx(SE)


def _rewrite(store: Store, trial: str, points: list[tuple[int, int, float, float]]) -> None:
    """Give a trial other points: seed, iteration, judge, z-distance."""
    (store.root / "metrics" / f"{trial}.1.parquet").unlink()
    for seed in {point[0] for point in points}:
        name = trial.replace("seed0", f"seed{seed}")
        rows = [
            _metric(trial, count, metric, value, "validation") | {"trial": name, "seed": seed}
            for own, count, *values in points
            for metric, value in _values(*values).items()
            if own == seed
        ]
        store.write("metrics", name, rows)
        store.write("trials", name, [_over(trial, "done") | {"trial": name, "seed": seed}])


def test_a_conditional_trial_is_chosen_at_one_of_its_weights(tmp_path: Path) -> None:
    space = CONFIG.search.model_copy(update={"lambda_": ("conditional",), "style_dim": (2,)})
    config = CONFIG.model_copy(update={"search": space})
    (spec,) = list_first_trials(config)
    store = Store(tmp_path / "tiny")
    store.claim(config.identity("abc"), config.fingerprint("abc"), config.name)
    label = {name: value for name, value in spec.label.items() if name != "lambda"}
    point = {"source": "validation", "iteration": 1, "n": 8, "excluded": 0}
    readings = {0.1: (0.8, 4.0), 1.0: (0.7, 2.0), 3.0: (0.6, 1.0)}
    store.write(
        "metrics",
        "a",
        [
            {**label, **point, "lambda": weight, "metric": metric, "value": value}
            for weight, values in readings.items()
            for metric, value in _values(*values).items()
        ],
    )
    over = _over(A, "done") | {**label, "lambda": None}
    store.write("trials", "a", [over])
    core = MelodyVAE(config.melody, config.core)
    save_tensors(collect_weights(core), store.root / "core" / "core.safetensors")
    generator = Generator(8, 2, 16, 2, conditional=True)
    initialise(generator, torch.Generator().manual_seed(2))
    save_tensors(collect_weights(generator), find_generator(store, spec.id))
    choice = select(store, rule(RULE), tmp_path / "bundle")
    assert (choice.trial, choice.lambda_, choice.iterations) == (spec.id, 1.0, 1)
    bundle = load_bundle(choice.bundle)
    assert (bundle.lambda_, bundle.lambda_range) == (1.0, config.fusion.lambda_range)
    assert torch.equal(bundle.generator.net.weights[0], generator.net.weights[0])
    assert [row["lambda"] for row in bundle.record["runners_up"]] == [3.0]


@pytest.mark.parametrize("state", ["missing", "damaged", "of another shape"])
def test_weights_that_cannot_be_used(trained: Store, tmp_path: Path, state: str) -> None:
    path = folder(trained) / "generators" / f"{B}.safetensors"
    if state == "missing":
        path.unlink()
    elif state == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    else:
        save_tensors(collect_weights(Generator(8, 3, 16, 2)), path)
    with pytest.raises(UserError, match=state):
        select(trained, rule(RULE), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_status_lists_every_planned_job(store: Store) -> None:
    (store.root / "trials" / f"{C}.1.parquet").unlink()
    jobs = list_jobs(store)
    assert jobs.select("trial", "status", "reason").rows() == [
        (A, "done", None),
        (B, "done", None),
        (C, "pending", None),
        (D, "failed", "out of memory"),
        ("lp-eta0.1", "pending", None),
    ]


def test_the_rule_recorded_with_the_study_is_the_default(trained: Store) -> None:
    recorded = rule(["z_distance > 2.5"], "judge")
    trained.claim(
        CONFIG.identity("abc"),
        CONFIG.fingerprint("abc"),
        CONFIG.name,
        recorded.model_dump(mode="json"),
    )
    assert read_rule(trained) == recorded
    assert read_rule(trained, where=["judge < 0.6"]) == rule(["judge < 0.6"])
    first = select(trained)
    assert (first.trial, first.iterations) == (A, 4)
    assert first.bundle == trained.root / "bundle"
    assert first.replaced is None
    # The same rule replaces its own bundle without a word; another one says so.
    assert select(trained).replaced is None
    other = select(trained, rule(RULE))
    assert other.replaced == "highest judge with z_distance > 2.5"
    assert any("replaced" in line and "z_distance > 2.5" in line for line in other.lines())


def test_a_study_without_a_finished_trial_says_what_is_missing(store: Store) -> None:
    for trial in (A, B, C):
        (store.root / "trials" / f"{trial}.1.parquet").unlink()
    with pytest.raises(SelectionError, match=r"no trial is done yet \(.*4 pending"):
        select(store)
