"""What is proposed, from what, and what a search is told.

It is long, since all ways to propose share one small space.
"""

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
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
from cf_core.training import limit_threads
from study.conditions import Condition
from study.config import StudyConfig
from study.ledger import Outcome, State, Status
from study.search import (
    WARM_START,
    find_objective_point,
    fits,
    judge_batch,
    list_first_trials,
    make_optuna_study,
    measure_hypervolume,
    measure_importances,
    propose,
    rank_by_shortfall,
    write_journal,
)
from study.specs import Configuration

LAMBDA = {"low": 0.001, "high": 10.0, "log": True}
COMPLETE, PRUNED, FAIL = State.COMPLETE, State.PRUNED, State.FAIL
LIKE, FAR = "indistinguishable", "larger_edit_distance"

Objective = Callable[[Configuration], tuple[float, float]]


def config(**search: Any) -> StudyConfig:
    return StudyConfig.model_validate({"name": "s", "seed": 3, "search": search})


def searched(method: str, **search: Any) -> StudyConfig:
    space: dict[str, Any] = {"lambda": LAMBDA, "style_dim": [0]}
    return config(method=method, **{**space, **search})


def lambda_of(one: Configuration) -> float:
    assert one.lambda_ is not None
    return one.lambda_


def run(
    study: StudyConfig, objective: Objective, violation: Objective | None = None
) -> list[list[Outcome]]:
    """Ask and tell to the end; the outcomes by batch."""
    batches: list[list[Outcome]] = []
    past: list[Outcome] = []
    while proposed := propose(study, past):
        own = [
            Outcome(
                one,
                len(batches),
                COMPLETE,
                objective(one),
                () if violation is None else violation(one)[:1],
            )
            for one in proposed
        ]
        batches.append(own)
        past += own
    return batches


WIDE: dict[str, Any] = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "style_weight": {"low": 0.1, "high": 10.0, "log": True},
    "hidden": {"low": 16, "high": 256, "log": True},
}
"""With λ four parameters: with one alone, NSGA-II as Optuna has it does nothing but mutate."""


def places(one: Configuration) -> list[float]:
    """Where in its range each of the four parameters lies, 0…1."""
    own = {"lambda": lambda_of(one), **dict(one.changes)}
    return [
        math.log(own[name] / space["low"]) / math.log(space["high"] / space["low"])
        for name, space in {"lambda": LAMBDA, **WIDE}.items()
        if name in own
    ]


def off(one: Configuration) -> float:
    """Squared distance to the middle of the space."""
    return sum((place - 0.5) ** 2 for place in places(one))


def toy(one: Configuration) -> tuple[float, float]:
    """Best in the middle; no distance."""
    return 1.0 - off(one), 1.0


# ---- what is proposed ----------------------------------------------------------------------------


def test_a_grid_is_one_batch_of_everything_in_a_fixed_order() -> None:
    study = config(**{"lambda": ["conditional", 3, 0.03]}, style_dim=[4, 0], seeds=[7, 1])
    assert [trial.id for trial in list_first_trials(study)] == [
        "lambda0.03-style0-seed1",
        "lambda3.0-style0-seed1",
        "conditional-style0-seed1",
        "lambda0.03-style4-seed1",
        "lambda3.0-style4-seed1",
        "conditional-style4-seed1",
        "lambda0.03-style0-seed7",
        "lambda3.0-style0-seed7",
        "conditional-style0-seed7",
        "lambda0.03-style4-seed7",
        "lambda3.0-style4-seed7",
        "conditional-style4-seed7",
    ]
    done = [Outcome(one, 0, COMPLETE, (0.5, 1.0)) for one in propose(study, [])]
    assert propose(study, done) == {}


def test_a_grid_leaves_out_what_does_not_apply() -> None:
    study = config(
        **{"lambda": [1]},
        style_dim=[0, 4],
        style_weight=[0.5, 2],
        when={"style_weight": "style_dim > 0"},
    )
    assert [one.id for one in propose(study, [])] == [
        "lambda1.0-style0",
        "lambda1.0-style4-style_weight0.5",
        "lambda1.0-style4-style_weight2.0",
    ]


@pytest.mark.parametrize("method", ["random", "quasi_random"])
def test_draws_do_not_depend_on_how_they_are_batched(method: str) -> None:
    first = [{"lambda": 0.5, "style_dim": 0}]
    made = [
        [o.configuration for batch in run(study, toy) for o in batch]
        for study in (
            searched(method, configurations=30, batch=size, first=first) for size in (1, 7, 64)
        )
    ]
    assert made[0] == made[1] == made[2]
    assert len(set(made[0])) == 30
    assert made[0][0].id == "lambda0.5-style0"


def test_quasi_random_draws_fill_the_space_evenly() -> None:
    study = searched("quasi_random", configurations=64, batch=64)
    places = [(math.log10(lambda_of(one)) + 3) / 4 for one in propose(study, [])]
    counts, _ = np.histogram(places, bins=64, range=(0, 1))
    # A scrambled Sobol sequence has one of its first 64 points in each 64th of a side; numbers
    # near an edge may cross it when they are rounded.
    assert counts.max() <= 2
    assert (counts == 1).sum() >= 58


@pytest.mark.parametrize(
    ("method", "count"),
    # Gaussian processes take a second for each after the first sixteen, which are drawn.
    [
        ("random", 40),
        ("quasi_random", 40),
        ("tpe", 40),
        ("nsga2", 40),
        pytest.param("gp", 18, marks=pytest.mark.slow),
    ],
)
def test_what_is_proposed_lies_in_the_space(method: str, count: int) -> None:
    study = searched(
        method,
        style_dim=[0, 2, 4],
        hidden={"low": 16, "high": 32},
        learning_rate={"low": 1e-4, "high": 0.0123456, "log": True},
        style_weight={"low": 0.0, "high": 2.0},
        when={"style_weight": "style_dim > 0", "learning_rate": "lambda < 1"},
        configurations=count,
    )
    proposed = [o.configuration for batch in run(study, toy) for o in batch]
    assert len(set(proposed)) == count
    for one in proposed:
        changes = dict(one.changes)
        assert fits(study.search, one)
        assert (one.style_dim > 0) == ("style_weight" in changes)
        assert (lambda_of(one) < 1) == ("learning_rate" in changes)
        assert changes["hidden"] in range(16, 33)
        for value in (lambda_of(one), changes.get("learning_rate", 1e-4)):
            assert value in (float(f"{value:.4g}"), 0.0123456)
    assert {one.style_dim for one in proposed} == {0, 2, 4}


def learned(objective: Objective, method: str, **search: Any) -> float:
    """How far from the middle the last batch is, over how far the first was."""
    batches = run(searched(method, configurations=80, batch=10, **WIDE, **search), objective)
    last, first = (np.median([off(o.configuration) for o in batches[at]]) for at in (-1, 0))
    return float(last / first)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tpe", "nsga2"])
def test_samplers_learn_which_way_is_better(method: str) -> None:
    assert learned(toy, method) < 1 / 3
    assert learned(lambda one: (0.5, off(one)), method) < 1 / 3
    assert learned(lambda one: (off(one), 1.0), method) > 1
    assert learned(lambda one: (0.5, -off(one)), method) > 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tpe", "nsga2"])
def test_samplers_keep_to_constraints(method: str) -> None:
    def greedy(one: Configuration) -> tuple[float, float]:
        return sum(places(one)), 1.0

    def above(one: Configuration) -> tuple[float, float]:
        return sum(places(one)) - 2.0, 0.0

    settings: dict[str, Any] = {"configurations": 80, "batch": 10, **WIDE}
    study = searched(method, constraints=["style_diversity >= 1"], **settings)
    held, free = (
        np.median([o.objectives[0] for o in run(one, greedy, violation)[-1]])
        for one, violation in ((study, above), (searched(method, **settings), None))
    )
    assert held == pytest.approx(2.0, abs=0.3)
    assert free > 2.6


@pytest.mark.parametrize("method", ["tpe", "nsga2"])
def test_a_batch_is_a_function_of_what_was_told(method: str) -> None:
    study = searched(method, configurations=40, batch=10, **WIDE)
    batches = run(study, toy)
    past = [o for batch in batches[:3] for o in batch]
    assert list(propose(study, past)) == [o.configuration for o in batches[3]]
    other = [Outcome(o.configuration, o.batch, o.state, (-o.objectives[0], 1.0)) for o in past]
    assert list(propose(study, other)) != list(propose(study, past))
    assert list(propose(study.model_copy(update={"seed": 4}), past)) != list(propose(study, past))


def drawn(objective: Objective, violation: Objective | None = None) -> list[Outcome]:
    """Outcomes of a dozen λ, from which Gaussian processes learn; two more came to nothing."""
    (batch,) = run(searched("quasi_random", configurations=14, batch=14), objective, violation)
    lost = [
        Outcome(o.configuration, 0, state) for o, state in zip(batch, (FAIL, PRUNED), strict=False)
    ]
    return [*lost, *batch[2:]]


def asked(past: list[Outcome], count: int = 1, **search: Any) -> list[float]:
    """Where in its range λ lies in the next proposals of Gaussian processes."""
    study = searched("gp", configurations=len(past) + count, **search)
    return [place for one in propose(study, past) for place in places(one)]


def between(one: Configuration) -> tuple[float, float]:
    """No other λ is better in both objectives than those from 0.3 to 0.7 of its range."""
    (place,) = places(one)
    return -((place - 0.7) ** 2), (place - 0.3) ** 2


@pytest.mark.slow
def test_what_gaussian_processes_propose_follows_from_what_was_told(
    capfd: pytest.CaptureFixture[str],
) -> None:
    past = drawn(between)
    with warnings.catch_warnings(), limit_threads(2):
        warnings.simplefilter("error")
        first = asked(past, 2)
        assert torch.get_num_threads() == 2
    with limit_threads(1):
        assert asked(past) == first[:1]
    assert torch.get_default_dtype() == torch.float32
    assert not any(capfd.readouterr())
    assert asked(drawn(toy)) != first[:1]
    # What came to nothing has no values to learn from.
    assert asked([*past[2:], *past[:2]]) == first[:1]


@pytest.mark.slow
def test_gaussian_processes_learn_which_way_is_better_and_keep_to_constraints() -> None:
    def outside(one: Configuration) -> tuple[float, float]:
        value, distance = between(one)
        return -value, -distance

    def above(one: Configuration) -> tuple[float, float]:
        return places(one)[0] - 0.5, 0.0

    inside = asked(drawn(between), 2)
    assert all(0.25 < place < 0.75 for place in inside)
    assert max(inside) > 0.55
    assert all(abs(place - 0.5) > 0.35 for place in asked(drawn(outside), 2))
    held = asked(drawn(between, above), 2, constraints=["style_diversity >= 1"])
    assert all(0.25 < place < 0.55 for place in held)


def test_gaussian_processes_that_repeat_themselves_are_helped_by_chance() -> None:
    study = config(
        method="gp", **{"lambda": [0.1, 1, 10]}, style_dim=[0, 1, 2, 4], batch=10, configurations=12
    )
    proposed = [
        o.configuration
        for batch in run(study, lambda one: (lambda_of(one), one.style_dim))
        for o in batch
    ]
    assert len(set(proposed)) == 12


def test_generations_of_nsga2_are_those_of_a_study_that_was_never_interrupted() -> None:
    study = searched("nsga2", configurations=48, batch=8)
    batches = run(study, toy)
    sampler = optuna.samplers.NSGAIISampler(population_size=8, seed=0)
    straight = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for batch in batches:
        asked = [straight.ask() for _ in batch]
        for trial, outcome in zip(asked, batch, strict=True):
            trial.suggest_float("lambda", 0.001, 10, log=True)
            straight.tell(trial, outcome.objectives)
    key = "NSGAIISampler:generation"
    expected = [trial.system_attrs[key] for trial in straight.trials]
    replayed = make_optuna_study(study, [o for batch in batches for o in batch])
    assert [trial.system_attrs[key] for trial in replayed.trials] == expected


def test_a_space_that_is_exhausted_ends_the_search() -> None:
    for method in ("random", "quasi_random", "tpe", "nsga2", "gp"):
        study = config(method=method, **{"lambda": [0.1, "conditional"]}, style_dim=[0, 4], batch=3)
        past: list[Outcome] = []
        for number in range(10):
            proposed = propose(study, past)
            past += [Outcome(one, number, COMPLETE, (0.5, 1.0)) for one in proposed]
        assert sorted(o.configuration.id for o in past) == [
            "conditional-style0", "conditional-style4", "lambda0.1-style0", "lambda0.1-style4",
        ]  # fmt: skip


def test_points_to_try_first_come_first_and_are_checked() -> None:
    first = [{"lambda": 0.5, "style_dim": 0}, {"lambda": 2, "style_dim": 0}]
    proposed = propose(searched("tpe", first=first, batch=3), [])
    assert list(proposed.values()) == ["first", "first", "tpe"]
    assert [one.id for one in proposed][:2] == ["lambda0.5-style0", "lambda2.0-style0"]
    bad: list[tuple[dict[str, Any], str]] = [
        ({"lambda": 11, "style_dim": 0}, r"lambda is not in search\.lambda"),
        ({"lambda": "conditional", "style_dim": 0}, r"lambda is not in search\.lambda"),
        ({"lambda": 1}, "style_dim is missing"),
        ({"lambda": 1, "style_dim": 0, "hidden": 16}, "hidden does not apply there"),
        ({"lambda": 1, "style_dim": 0, "hiden": 16}, "hiden is not a parameter"),
    ]
    for point, message in bad:
        with pytest.raises(UserError, match=message):
            propose(searched("random", first=[point]), [])


# ---- what is told --------------------------------------------------------------------------------


def outcome(value: float, state: State = COMPLETE, batch: int = 0) -> Outcome:
    told = (value, value) if state == COMPLETE else ()
    return Outcome(Configuration(value, 0), batch, state, told)


def test_states_are_told_as_they_are(tmp_path: Path) -> None:
    study = searched("tpe")
    past = [outcome(0.1), outcome(0.2, PRUNED), outcome(0.3, FAIL), outcome(0.4)]
    told = make_optuna_study(study, past)
    assert [trial.state.name for trial in told.trials] == [COMPLETE, PRUNED, FAIL, COMPLETE]
    assert [trial.number for trial in told.best_trials] == [0, 3]
    path = tmp_path / "optuna.log"
    write_journal(study, past, path)
    storage = JournalStorage(JournalFileBackend(str(path)))
    opened = optuna.load_study(study_name="s", storage=storage)
    for mine, theirs in zip(told.trials, opened.trials, strict=True):
        assert (mine.state, mine.params, mine.user_attrs, mine.distributions) == (
            theirs.state, theirs.params, theirs.user_attrs, theirs.distributions,
        )  # fmt: skip
        assert mine.state != TrialState.COMPLETE or mine.values == theirs.values
    assert opened.metric_names == [LIKE, FAR]
    write_journal(study, past[:1], path)
    storage = JournalStorage(JournalFileBackend(str(path)))
    assert len(optuna.load_study(study_name="s", storage=storage).trials) == 1


READINGS = [
    ("lambda0.1-style0-seed0", 0.1, "fusion", 4, LIKE, 0.6),
    ("lambda0.1-style0-seed1", 0.1, "fusion", 4, LIKE, 0.8),
    ("lambda0.1-style0-seed0", 0.1, "fusion", 4, FAR, 1.0),
    ("lambda0.1-style0-seed1", 0.1, "fusion", 4, FAR, 2.0),
    ("lambda0.1-style0-seed0", 0.1, "fusion", 4, "style_diversity", 0.5),
    ("lambda0.1-style0-seed1", 0.1, "fusion", 4, "style_diversity", 1.0),
    ("lambda0.1-style0-seed0", 0.1, "fusion", 2, LIKE, 9.0),
    ("conditional-style0-seed0", 0.3, "conditional", 4, LIKE, 0.5),
    ("conditional-style0-seed1", 0.3, "conditional", 4, LIKE, 0.5),
    ("conditional-style0-seed0", 0.1, "conditional", 4, LIKE, 9.0),
    ("conditional-style0-seed0", 0.3, "conditional", 4, FAR, 3.0),
    ("conditional-style0-seed1", 0.3, "conditional", 4, FAR, 3.0),
    ("conditional-style0-seed0", 0.3, "conditional", 4, "style_diversity", 3.0),
    ("conditional-style0-seed1", 0.3, "conditional", 4, "style_diversity", 3.0),
    ("lambda3.0-style0-seed0", 3.0, "fusion", 4, LIKE, math.nan),
    ("lambda3.0-style0-seed1", 3.0, "fusion", 4, LIKE, 0.5),
]


@pytest.mark.parametrize("objectives", [(LIKE, FAR), ("judge", "z_distance")])
def test_outcomes_are_means_over_seeds_at_the_reading(objectives: tuple[str, str]) -> None:
    study = config(
        **{"lambda": [0.1, 3, 10, "conditional"]},
        style_dim=[0],
        seeds=[0, 1],
        constraints=["style_diversity >= 1"],
        maximise=objectives[0],
        minimise=objectives[1],
    )
    assert find_objective_point(study) == (4, 0.3)
    names = ("trial", "lambda", "method", "iteration", "metric", "value")
    rows = [dict(zip(names, row, strict=True)) | {"source": "validation"} for row in READINGS]
    rows = [row | {"configuration": str(row["trial"]).rpartition("-seed")[0]} for row in rows]
    # Other songs and baselines must not count.
    rows += [row | {"source": "test", "value": 7.0} for row in rows]
    named = dict(zip((LIKE, FAR), objectives, strict=True))
    metrics = pl.DataFrame(rows).with_columns(pl.col("metric").replace(named))
    proposed = list(propose(study, []))
    done = {f"{one.id}-seed{seed}": Status.DONE for one in proposed for seed in (0, 1)}
    stopped = dict.fromkeys((f"lambda10.0-style0-seed{seed}" for seed in (0, 1)), Status.PRUNED)
    judged = judge_batch(study, 2, proposed, (0, 1), done | stopped, metrics)
    told = {one.configuration.id: one for one in judged}
    assert told["lambda0.1-style0"].objectives == pytest.approx((0.7, 1.5))
    assert told["lambda0.1-style0"].violations == pytest.approx((0.25,))
    assert told["conditional-style0"].objectives == (0.5, 3.0)
    assert told["conditional-style0"].violations == (-2.0,)
    assert told["lambda3.0-style0"].state == FAIL
    assert told["lambda10.0-style0"].state == PRUNED
    assert {o.batch for o in told.values()} == {2}
    # One seed that is not done makes the whole configuration fail.
    for status in (Status.FAILED, Status.DIVERGED, Status.PRUNED):
        (lost, *_) = judge_batch(
            study, 0, proposed, (0, 1), done | {"lambda0.1-style0-seed1": status}, metrics
        )
        assert (lost.state, lost.objectives) == (FAIL, ())


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize(("sign", "holding"), [
    ("<", [-1.0]), ("<=", [-1.0, 0.0]), (">", [1.0]), (">=", [0.0, 1.0]),
])  # fmt: skip
def test_a_constraint_is_met_where_its_condition_holds(
    sign: str, holding: list[float], value: float
) -> None:
    condition = Condition.parse(f"style_diversity {sign} 0", ["style_diversity"])
    point = pl.DataFrame({"style_diversity": [value]})
    assert point.select(condition.holds()).item() == (value in holding)
    missed = (condition.excess(value),)
    outcome = Outcome(Configuration.at({"lambda": 1.0, "style_dim": 0}), 0, COMPLETE, (), missed)
    assert outcome.feasible == (value in holding)


def test_importances_name_what_matters_to_either_objective() -> None:
    study = searched(
        "random", learning_rate={"low": 1e-4, "high": 1e-2, "log": True}, configurations=64
    )

    def split(one: Configuration) -> tuple[float, float]:
        # Likeness is high in a narrow band at the low end; what is low says nothing.
        rate = dict(one.changes)["learning_rate"]
        return math.exp(-20 * (math.log10(lambda_of(one)) + 2.5) ** 2), rate

    past = [o for batch in run(study, split) for o in batch]
    found = {
        (row["objective"], row["parameter"]): row["importance"]
        for row in measure_importances(study, past)
    }
    assert found[LIKE, "lambda"] > 0.8
    assert found[FAR, "learning_rate"] > 0.8
    assert measure_importances(study, past[:3]) == []
    mine = [Outcome(o.configuration, WARM_START, o.state, o.objectives) for o in past]
    assert measure_importances(study, mine) == []


def test_the_hypervolume_so_far_is_that_of_complete_configurations() -> None:
    past = [
        Outcome(Configuration(0.1, 0), 0, COMPLETE, (0.5, 2.0)),
        Outcome(Configuration(0.2, 0), 0, COMPLETE, (0.8, 4.0)),
        Outcome(Configuration(0.3, 0), 0, FAIL),
    ]
    search = config(region=[f"{FAR} <= 5"]).search
    assert measure_hypervolume(search, past) == pytest.approx(0.5 * 3 + 0.3 * 1)
    assert measure_hypervolume(search, past[2:]) == 0.0
    areas = [measure_hypervolume(search, past[:count]) for count in range(4)]
    assert all(one <= other for one, other in pairwise(areas))
    missing = Outcome(Configuration(0.4, 0), 0, COMPLETE, (0.9, 1.0), (-1.0, 0.1))
    assert measure_hypervolume(search, [*past, missing]) == areas[-1]


@pytest.mark.parametrize(
    ("region", "area"),
    [
        # Without bounds: above 0, and up to the farthest point.
        ([], 0.5 * 2),
        ([f"{FAR} < 5"], 0.5 * 3 + 0.3 * 1),
        # What lies beyond a bound counts for nothing, not even for what is within.
        ([f"{FAR} <= 3"], 0.5 * 1),
        ([f"{FAR} <= 2"], 0.0),
        ([f"{LIKE} >= 0.6"], 0.0),
        ([f"{LIKE} > 0.4", f"{FAR} <= 5"], 0.1 * 3 + 0.3 * 1),
        # Below 0 the points dominate more.
        ([f"{LIKE} >= -1", f"{FAR} <= 5"], 1.5 * 3 + 0.3 * 1),
    ],
)
def test_a_region_bounds_the_hypervolume(region: list[str], area: float) -> None:
    past = [
        Outcome(Configuration(0.1, 0), 0, COMPLETE, (0.5, 2.0)),
        Outcome(Configuration(0.2, 0), 0, COMPLETE, (0.8, 4.0)),
    ]
    assert measure_hypervolume(config(region=region).search, past) == pytest.approx(area)


# ---- who goes on ---------------------------------------------------------------------------------

SEARCH = config().search


def points(**of: list[tuple[float, ...]]) -> pl.DataFrame:
    """Rows of (distance, likeness, novelty) by configuration, one per iteration count; one seed."""
    rows = [
        {
            "trial": f"{name}-seed0",
            "configuration": name,
            "lambda": 0.1,
            "iteration": count,
            "metric": metric,
            "value": value,
        }
        for name, own in of.items()
        for count, values in enumerate(own)
        for metric, value in zip((FAR, LIKE, "novelty"), values, strict=False)
    ]
    return pl.DataFrame(rows)


def test_who_falls_furthest_short_of_the_front_comes_last() -> None:
    frame = points(
        a=[(0.0, 0.0), (2.0, 0.5)],
        b=[(1.0, 0.6), (4.0, 0.6)],
        c=[(4.0, 1.0)],
        d=[(4.0, 0.4), (3.0, 0.3)],
    )
    short = rank_by_shortfall(SEARCH, frame, ["a", "b", "c", "d"])
    # Ranges are 4 and 1. b's first point could lose 1/4 of the distance before a's second bettered
    # it in both; d's first lacks 0.2 of likeness to b's first, and 3/4 of the distance.
    assert short == pytest.approx({"c": -0.4, "a": -0.25, "b": -0.25, "d": 0.2})
    assert list(short) == ["c", "a", "b", "d"]


def test_points_are_means_over_seeds_and_what_is_not_finite_does_not_count() -> None:
    one = points(a=[(1.0, 0.5)], b=[(2.0, 0.4)], c=[(math.nan, 0.9)])
    better = pl.when(pl.col("metric") == LIKE).then(0.2).otherwise(0.0)
    two = one.with_columns(value=pl.col("value") + better, trial=pl.lit("other"))
    short = rank_by_shortfall(SEARCH, pl.concat([one, two]), ["a", "b", "c"])
    alone = rank_by_shortfall(SEARCH, one, ["a", "b"])
    assert {name: short[name] for name in "ab"} == pytest.approx(alone)
    assert short["c"] == math.inf


def test_a_configuration_is_compared_with_those_of_earlier_batches() -> None:
    frame = points(old=[(1.0, 0.9)], new=[(2.0, 0.5)], newer=[(0.5, 0.1)])
    assert list(rank_by_shortfall(SEARCH, frame, ["new", "newer"])) == ["newer", "new"]
    assert rank_by_shortfall(SEARCH, frame, ["new"])["new"] > 0


def test_points_that_miss_a_constraint_do_not_count() -> None:
    near, far = (1.0, 0.6, 5.0), (4.0, 1.0, 5.0)
    frame = points(
        a=[near, (0.5, 0.9, 2.9)],
        b=[(2.0, 0.5, 4.0)],
        c=[far],
        # All of these would be the best there are.
        nearly=[(0.1, 1.0, 2.0), (0.0, 1.0, 0.0)],
        never=[(0.1, 1.0, 1.0)],
        unknown=[(0.1, 1.0, math.nan)],
    )
    names = ["unknown", "never", "nearly", "c", "b", "a"]
    counted = points(a=[near], b=[(2.0, 0.5)], c=[far])
    constrained = config(constraints=["novelty >= 3", f"{FAR} <= 4.5"]).search
    short = rank_by_shortfall(constrained, frame, names)
    assert list(short) == ["c", "a", "b", "nearly", "never", "unknown"]
    assert {name: short[name] for name in "abc"} == rank_by_shortfall(
        SEARCH, counted, ["a", "b", "c"]
    )
    assert [short[name] for name in names[:3]] == [math.inf] * 3
