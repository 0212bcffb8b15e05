"""Proposes configurations in batches, and judges the outcomes from which the next batch follows.

A batch depends only on the config and on the recorded outcomes of earlier batches, not on workers
or interruptions. Every batch creates a new sampler of Optuna and tells it all earlier outcomes with
their states: a stopped configuration counts as pruned, a failed one as failed.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import optuna
import polars as pl
from jaxtyping import Float64
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from cf_core.errors import ConfigError
from cf_core.files import AnyPath, replacing
from cf_core.seeding import derive
from evaluation.frontier import FUSIONS, hypervolume, shortfall
from study.conditions import all_hold, total_miss
from study.config import Range, Search, StudyConfig
from study.ledger import Outcome, State, Status
from study.parameters import PARAMETERS
from study.specs import Configuration, TrialSpec
from study.workbench import DECIDING

WARM_START = -1
"""Number of the batch that holds another study's outcomes."""

_DIGITS = 4
"""Significant digits of a drawn number; more would only make names long."""

_PATIENCE = 50
"""After this many repeated proposals in a row, a space counts as exhausted."""

Values = tuple[float | str, ...]
Point = Mapping[str, float | str]
"""Values by parameter; parameters that do not apply are absent."""
Pick = Callable[[str, Values | Range], float | str]


def propose(config: StudyConfig, past: Sequence[Outcome]) -> dict[Configuration, str]:
    """Propose the next batch: its configurations, each with its origin; empty when all are tried.

    Raises `ConfigError` for a configuration in `search.first` that is not in the space.
    """
    search = config.search
    tried = [outcome.configuration for outcome in past if outcome.batch != WARM_START]
    if search.method == "grid":
        return {} if tried else dict.fromkeys(_grid(search), "grid")
    first = [_given(search, point) for point in search.first]
    whole = min(len(tried) + search.batch, search.configurations)
    if search.method in ("random", "quasi_random"):
        more = _drawn(search, config.seed, whole + len(first))
    else:
        more = _asked(config, past, [*first, *tried], whole)
    known = set(tried)
    fresh = [c for c in dict.fromkeys([*first, *more]) if c not in known]
    return {c: "first" if c in first else search.method for c in fresh[: whole - len(tried)]}


def list_trials(config: StudyConfig, configurations: Sequence[Configuration]) -> list[TrialSpec]:
    """List all trials. Seeds vary slowest, so that a run cut short still has whole frontiers."""
    return [TrialSpec(one, seed) for seed, one in product(config.search.seeds, configurations)]


def list_first_trials(config: StudyConfig) -> list[TrialSpec]:
    """List the trials of the first batch, which are all trials of a grid."""
    return list_trials(config, list(propose(config, [])))


def _grid(search: Search) -> Iterator[Configuration]:
    """Yield all combinations; λ varies fastest."""
    lists: dict[str, Values] = {}
    for name in reversed(PARAMETERS):
        if isinstance(values := search.of(name), tuple):
            lists[name] = values
    for combination in product(*lists.values()):
        at = dict(zip(lists, combination, strict=True))
        yield _chosen(search, partial(_looked_up, at))


def _drawn(search: Search, seed: int, count: int) -> list[Configuration]:
    """Take the first `count` different configurations of a sequence in the unit cube."""
    random = np.random.default_rng(derive(seed, "search", search.method))
    names = [name for name in PARAMETERS if search.of(name) is not None]
    power = math.ceil(math.log2(count)) + 4
    if search.method == "random":
        cube = random.random((2**power, len(names)))
    else:
        from scipy.stats import qmc  # noqa: PLC0415  (slow, and one of many methods needs it)

        cube = qmc.Sobol(len(names), rng=random).random_base2(power)
    places = (dict(zip(names, row, strict=True)) for row in cube.tolist())
    found = dict.fromkeys(_chosen(search, partial(_placed, at)) for at in places)
    return list(found)[:count]


def _asked(
    config: StudyConfig, past: Sequence[Outcome], known: Sequence[Configuration], whole: int
) -> list[Configuration]:
    """Ask Optuna for configurations until `whole` different ones are known."""
    search, found, repeated = config.search, dict.fromkeys(known), 0
    seed = derive(config.seed, "search", search.method, len(past)) % 2**32
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler, chance = _sampler(search, seed), optuna.samplers.RandomSampler(seed)
        study = make_optuna_study(config, past, sampler)
        while len(found) < whole and repeated < _PATIENCE:
            # A repeated proposal stays a running trial, which tells the sampler to look elsewhere.
            # Gaussian processes do not, where few values are left: there a draw goes on.
            by_chance = search.method == "gp" and repeated > 0
            study.sampler = chance if by_chance else sampler
            configuration = _chosen(search, partial(_suggested, study.ask()))
            repeated = repeated + 1 if configuration in found else 0
            found[configuration] = None
    return list(found)


def _sampler(search: Search, seed: int) -> optuna.samplers.BaseSampler:
    if search.method == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
    if search.method == "gp":
        return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    return optuna.samplers.NSGAIISampler(population_size=_population(search), seed=seed)


def _population(search: Search) -> int:
    """Population of NSGA-II: the size of a batch, but at least the two that a crossover needs."""
    return max(2, search.batch)


def make_optuna_study(
    config: StudyConfig,
    past: Sequence[Outcome],
    sampler: optuna.samplers.BaseSampler | None = None,
    storage: BaseStorage | None = None,
) -> optuna.Study:
    """Make a study of Optuna that has been told all outcomes in their order."""
    with _quiet():
        study = optuna.create_study(
            study_name=config.name,
            directions=["maximize", "minimize"],
            sampler=sampler,
            storage=storage,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(config.search.objectives))
    study.add_trials(list(_told(config.search, past)))
    return study


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's messages, such as one about each study, and restore its level afterwards."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def _told(search: Search, past: Sequence[Outcome]) -> Iterator[FrozenTrial]:
    # NSGA-II stores the generation in each trial. A replay counts generations as Optuna does.
    generation, members, population = 0, 0, _population(search)
    key = optuna.samplers.NSGAIISampler._get_generation_key()
    batch = None
    for outcome in past:
        if outcome.batch != batch and members >= population:
            generation, members = generation + 1, 0
        batch = outcome.batch
        members += outcome.state == State.COMPLETE
        point = outcome.configuration.point
        told = zip(map(str, search.constraints), outcome.violations, strict=True)
        yield create_trial(
            state=TrialState[outcome.state],
            values=outcome.objectives if outcome.state == State.COMPLETE else None,
            params=dict(point),
            distributions={name: _distribution(name, search.of(name)) for name in point},
            constraints=dict(told) if outcome.violations else None,
            user_attrs={"configuration": outcome.configuration.id, "batch": outcome.batch},
            system_attrs={key: generation},
        )


def write_journal(config: StudyConfig, past: Sequence[Outcome], path: AnyPath) -> None:
    """Write the search as a journal that Optuna's plots and optuna-dashboard open."""
    with replacing(path) as temporary:
        make_optuna_study(config, past, storage=JournalStorage(JournalFileBackend(str(temporary))))


def measure_importances(config: StudyConfig, past: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Measure how much each parameter matters to each objective, in shares (PED-ANOVA).

    Columns: `objective`, `parameter`, `importance`. Empty with fewer than four complete
    configurations, or with less than two parameters that vary.
    """
    complete = [o for o in past if o.state == State.COMPLETE and o.batch != WARM_START]
    points = [outcome.configuration.point for outcome in complete]
    varied = [name for name in PARAMETERS if len({point.get(name, None) for point in points}) > 1]
    shared = [name for name in varied if all(name in point for point in points)]
    if len(complete) < 4 or len(shared) < 2:
        return []
    study, rows = make_optuna_study(config, complete), []
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    for place, objective in enumerate(config.search.objectives):
        with warnings.catch_warnings():
            # It warns that low values count as good; `_cost` makes that true.
            warnings.simplefilter("ignore", UserWarning)
            found = optuna.importance.get_param_importances(
                study, evaluator=evaluator, params=shared, target=partial(_cost, place)
            )
        rows += [
            {"objective": objective, "parameter": name, "importance": found[name]}
            for name in shared
        ]
    return rows


def _cost(place: int, trial: FrozenTrial) -> float:
    """Return an objective as a cost, of which less is better."""
    return float(trial.values[place]) * (-1.0, 1.0)[place]


# ---- the space ---------------------------------------------------------------------------------


def _chosen(search: Search, pick: Pick) -> Configuration:
    """Pick a value for each parameter in turn, if it applies given the values before it."""
    point: dict[str, float | str] = {}
    for name, parameter in PARAMETERS.items():
        searched, condition = search.of(name), search.when.get(name)
        if searched is None or (condition and not condition.holds_for(point)):
            continue
        picked = pick(name, searched)
        if parameter.kind == "whole":
            picked = round(float(picked))
        elif isinstance(searched, Range):
            picked = min(max(float(f"{picked:.{_DIGITS}g}"), searched.low), searched.high)
        point[name] = picked
    return Configuration.at(point)


def _looked_up(point: Point, name: str, _: Values | Range) -> float | str:
    return point[name]


def _placed(at: Mapping[str, float], name: str, searched: Values | Range) -> float | str:
    """Return the value at a place 0 ≤ x < 1 of a list or a range."""
    if not isinstance(searched, Range):
        return searched[int(at[name] * len(searched))]
    if searched.log:
        return float(searched.low * (searched.high / searched.low) ** at[name])
    return searched.low + (searched.high - searched.low) * at[name]


def _suggested(trial: optuna.Trial, name: str, searched: Values | Range) -> float | str:
    if not isinstance(searched, Range):
        found = trial.suggest_categorical(name, searched)
        return found if isinstance(found, str) else float(found or 0)
    if PARAMETERS[name].kind == "whole":
        low, high = round(searched.low), round(searched.high)
        return trial.suggest_int(name, low, high, log=searched.log)
    return trial.suggest_float(name, searched.low, searched.high, log=searched.log)


def _distribution(name: str, searched: Values | Range | None) -> BaseDistribution:
    if not isinstance(searched, Range):
        return CategoricalDistribution(searched or ())
    if PARAMETERS[name].kind == "whole":
        return IntDistribution(round(searched.low), round(searched.high), log=searched.log)
    return FloatDistribution(searched.low, searched.high, log=searched.log)


def _given(search: Search, point: Point) -> Configuration:
    """Make the configuration that a person wrote down in `search.first`."""
    told, taken = f"search.first: {dict(point)}", []

    def pick(name: str, searched: Values | Range) -> float | str:
        taken.append(name)
        if name not in point:
            raise ConfigError(f"{told}: {name} is missing; give it a value of search.{name}")
        if not _contains(searched, point[name]):
            raise ConfigError(f"{told}: {name} is not in search.{name}; change one of the two")
        return point[name]

    configuration = _chosen(search, pick)
    if unknown := sorted(point.keys() - taken):
        why = "does not apply there" if unknown[0] in PARAMETERS else "is not a parameter"
        raise ConfigError(f"{told}: {unknown[0]} {why}; remove it")
    return configuration


def _contains(searched: Values | Range, value: float | str) -> bool:
    if not isinstance(searched, Range):
        return value in searched
    return not isinstance(value, str) and searched.low <= value <= searched.high


def fits(search: Search, configuration: Configuration) -> bool:
    """Whether a configuration, for instance of another study, lies in the space."""
    try:
        return _given(search, configuration.point) == configuration
    except ConfigError:
        return False


# ---- outcomes ----------------------------------------------------------------------------------


def find_objective_point(config: StudyConfig) -> tuple[int, float]:
    """Find the iteration count, and the λ of conditional trials, where objectives are measured."""
    search, plan = config.search, config.evaluation
    counts, lambdas = plan.iterations, plan.lambda_
    return (
        search.iteration or counts[len(counts) // 2],
        search.objective_lambda or lambdas[len(lambdas) // 2],
    )


def judge_batch(
    config: StudyConfig,
    batch: int,
    configurations: Sequence[Configuration],
    seeds: Sequence[int],
    statuses: Mapping[str, Status],
    metrics: pl.DataFrame,
) -> list[Outcome]:
    """Judge the outcomes of a finished batch whose trials were trained with these seeds.

    `statuses` holds the statuses of its trials, and `metrics` their rows on validation songs. A
    configuration is complete if all its seeds are done and all its objectives and constrained
    metrics are finite. It is pruned if it was stopped at a rung, and failed otherwise.
    """
    count, lambda_ = find_objective_point(config)
    objectives, constraints = config.search.objectives, config.search.constraints
    needed = [*objectives, *(condition.name for condition in constraints)]
    at = metrics.filter(
        pl.col("method").is_in(FUSIONS),
        pl.col("source") == DECIDING,
        pl.col("iteration") == count,
        (pl.col("method") != "conditional") | (pl.col("lambda") == lambda_),
    )
    means = at.group_by("configuration", "metric").agg(pl.col("value").mean())
    values = {(name, metric): value for name, metric, value in means.iter_rows()}
    outcomes = []
    for configuration in configurations:
        trials = [TrialSpec(configuration, seed).id for seed in seeds]
        kinds = {statuses.get(trial, Status.FAILED) for trial in trials}
        measured = [values.get((configuration.id, metric), math.nan) for metric in needed]
        state = State.FAIL
        if kinds == {Status.PRUNED}:
            state = State.PRUNED
        elif kinds == {Status.DONE} and all(map(math.isfinite, measured)):
            state = State.COMPLETE
        complete = state == State.COMPLETE
        constrained = zip(constraints, measured[len(objectives) :], strict=True)
        violations = tuple(condition.excess(value) for condition, value in constrained)
        outcomes.append(
            Outcome(
                configuration,
                batch,
                state,
                tuple(measured[: len(objectives)]) if complete else (),
                violations if complete else (),
            )
        )
    return outcomes


def measure_hypervolume(search: Search, past: Sequence[Outcome]) -> float:
    """Area within the region that is dominated by configurations that meet the constraints.

    Where `search.region` has no bound, the area is that above 0 of what is maximised, and up to the
    farthest of these configurations in what is minimised.
    """
    points = [outcome.objectives for outcome in past if outcome.feasible]
    value, distance = np.array(points, np.float64).reshape(-1, 2).T
    bounds = {condition.name: condition.bound for condition in search.region}
    farthest = bounds.get(search.minimise, float(distance.max(initial=0.0)))
    return hypervolume(distance, value, (farthest, bounds.get(search.maximise, 0.0)))


def rank_by_shortfall(
    search: Search, points: pl.DataFrame, names: Sequence[str]
) -> dict[str, float]:
    """Measure by how much each configuration falls short of the front of all others; best first.

    `points` has a row for every trial, λ, iteration count and metric, with `configuration` and
    `value`. The points of a configuration are means over its seeds. A point counts if objectives
    and constrained metrics are finite and all constraints hold. The shortfall is how much the best
    point would have to improve in both objectives, in units of their ranges, so that no other
    dominates it (`shortfall`); it is below 0 for a point on the front. A configuration without a
    point that counts has an infinite shortfall; of several such, the one that misses the
    constraints least comes first. Equal ones are sorted by name.
    """
    objectives, constraints = search.objectives, search.constraints
    needed = list(dict.fromkeys([*objectives, *(condition.name for condition in constraints)]))
    at = ["configuration", "lambda", "iteration"]
    finite = (
        points.group_by(at)
        .agg(pl.col("value").filter(pl.col("metric") == name).mean().alias(name) for name in needed)
        .filter(pl.all_horizontal(pl.col(needed).is_finite()))
        .sort(at)
    )
    least = finite.group_by("configuration").agg(total_miss(constraints).min())
    missed = dict(least.iter_rows())
    counting = finite.filter(all_hold(constraints))
    owners = counting["configuration"].to_numpy()
    value, distance = (counting[name].to_numpy() for name in objectives)
    scale = (_range(distance), _range(value))
    short = {}
    for name in names:
        own = owners == name
        points_of = (distance[own], value[own]), (distance[~own], value[~own])
        short[name] = shortfall(*points_of, scale) if own.any() else math.inf
    ranked = sorted(names, key=lambda name: (short[name], missed.get(name, math.inf), name))
    return {name: short[name] for name in ranked}


def _range(values: Float64[np.ndarray, "n"]) -> float:
    """Difference of the highest and the lowest value; 1 where it is 0 or there are no values."""
    return float(np.ptp(values)) or 1.0 if len(values) else 1.0
