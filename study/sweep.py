"""Tries all configurations of a study, batch by batch and rung by rung."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import count, product
from typing import Any

import polars as pl

from cf_core.errors import ConfigError
from study import store as records
from study.config import StudyConfig
from study.dispatch import Dispatcher
from study.lease import Lease
from study.ledger import Ledger, Outcome, State, Status
from study.packs import plan_packs
from study.progress import Reporter
from study.ray_executor import RayExecutor
from study.recording import has_references, record_over
from study.search import (
    WARM_START,
    fits,
    judge_batch,
    list_first_trials,
    list_trials,
    measure_hypervolume,
    measure_importances,
    propose,
    rank_by_shortfall,
    write_journal,
)
from study.specs import Configuration, Job, TrialSpec, group_packs, plan_rivals
from study.store import Store
from study.workbench import DECIDING, Workbench, find_rung

_SAME = ("corpus", "melody", "core", "seed", "continuation", "selection_judge", "evaluation")
"""Sections of the config that an earlier study must share with one that learns from it."""

_SCHEME = ("scheme", "price", "drafts", "imbalance", "lead")
"""Settings of fusion that it must share, too: another writing gives other values."""

_OBJECTIVES = ("maximise", "minimise")
"""Settings of the search that it must share, too: by these its weakest were stopped at rungs."""


def sweep(
    config: StudyConfig, bench: Workbench, store: Store, reporter: Reporter, lease: Lease
) -> None:
    """Propose configurations and try them, until all are tried. Rivals run beside the first batch.

    Configurations and trials in the records are not proposed or tried again, except for failed
    trials: where one succeeds at last, later batches learn from it. Raises `UserError` for a search
    that is not possible.
    """
    ledger = Ledger(store)
    known = ledger.list_outcomes()
    past = [one for one in known if one.batch == WARM_START]
    if config.search.warm_start is not None and not past:
        past = _learn(config, store, reporter)
    rivals = plan_rivals(config.evaluation)
    with closing(RayExecutor(bench, store, config.execution, reporter)) as executor:
        dispatcher = Dispatcher(executor, bench, store, reporter, lease)
        for number in count():
            batch = ledger.list_proposed(number) or _propose(config, past, number, ledger)
            if not batch:
                break
            run = _Batch(config, number, batch, bench, store, reporter, executor, dispatcher)
            run.do(rivals if number == 0 else [])
            told = [one for one in known if one.batch == number]
            if not told or any(one.state == State.FAIL for one in told):
                told = run.conclude()
            past += told
            dispatcher.note = _front(config, past)
            reporter.say(f"batch {number + 1}: {_count_states(past, number)}; {dispatcher.note}")
        write_journal(config, past, store.root / "optuna.log")
        store.write("importances", "all", measure_importances(config, past))
        if config.execution.resources.rivals.gpu and not has_references(store):
            executor.record_references()


class _Batch:
    """The configurations that were proposed together."""

    def __init__(
        self,
        config: StudyConfig,
        number: int,
        configurations: Sequence[Configuration],
        bench: Workbench,
        store: Store,
        reporter: Reporter,
        executor: RayExecutor,
        dispatcher: Dispatcher,
    ) -> None:
        self._config, self._number, self._configurations = config, number, configurations
        self._bench, self._store, self._reporter = bench, store, reporter
        self._executor, self._dispatcher = executor, dispatcher
        self._ledger = Ledger(store)
        self._trials = list_trials(config, configurations)

    def do(self, others: Sequence[Job]) -> None:
        """Train and evaluate the trials, stopping the weakest at each rung; run `others` beside."""
        plan = plan_packs(
            self._trials,
            self._config.fusion,
            self._store,
            self._config.execution,
            self._executor.measure_packs,
            self._reporter,
        )
        going, start = self._trials, 0
        for until in (*self._config.search.rungs, None):
            packs = group_packs(
                going, plan.size, self._config.fusion, plan.workers, self._number, start, until
            )
            self._dispatcher.do([*packs, *others])
            others = []
            if until is not None:
                going, start = self._after(until, going), until
        statuses = self._ledger.list_statuses()
        for trial, rung in product(self._trials, self._config.search.rungs):
            # A failed trial continues from this checkpoint when it is tried again.
            if statuses.get(trial.id, Status.PENDING).is_final:
                find_rung(self._store, trial.id, rung).unlink(missing_ok=True)

    def conclude(self) -> list[Outcome]:
        """Record the batch's outcomes, which the search is told from now on."""
        names = [trial.id for trial in self._trials]
        metrics = self._store.metrics.filter(
            pl.col("source") == DECIDING, pl.col("trial").is_in(names)
        ).collect()
        told = judge_batch(
            self._config,
            self._number,
            self._configurations,
            self._config.search.seeds,
            self._ledger.list_statuses(),
            metrics,
        )
        self._ledger.conclude(f"batch{self._number:05d}", told)
        return told

    def _after(self, rung: int, going: Sequence[TrialSpec]) -> list[TrialSpec]:
        """Stop the weakest configurations at a rung, and return the trials that go on."""
        points = self._store.rungs.filter(
            pl.col("rung") == rung, pl.col("batch") <= self._number
        ).collect()
        reached = set(points["trial"])
        by_name: dict[str, list[TrialSpec]] = {}
        for trial in going:
            by_name.setdefault(trial.configuration.id, []).append(trial)
        whole = [
            name
            for name, trials in by_name.items()
            if reached.issuperset(trial.id for trial in trials)
        ]
        short = rank_by_shortfall(self._config.search, points, whole)
        kept = list(short)[: math.ceil(self._config.search.keep * len(by_name))]
        stopped = [trial for trial in going if trial.configuration.id not in kept]
        self._stop(rung, [trial for trial in stopped if trial.id in reached], short)
        self._reporter.say(f"step {rung}: {len(kept)} of {len(by_name)} configurations go on")
        return [trial for trial in going if trial.configuration.id in kept]

    def _stop(self, rung: int, trials: Sequence[TrialSpec], short: Mapping[str, float]) -> None:
        statuses, attempts = self._ledger.list_statuses(), self._ledger.count_attempts()
        for trial in trials:
            if statuses.get(trial.id, Status.PENDING).is_final:
                continue
            by = short.get(trial.configuration.id)
            why = "another seed failed" if by is None else _say_shortfall(by)
            reason = f"stopped after {rung} steps: {why}"
            record_over(
                trial, Status.PRUNED, self._bench, self._store, attempts[trial.id],
                reason=reason, steps=rung,
            )  # fmt: skip


def list_planned(config: StudyConfig, store: Store) -> list[TrialSpec]:
    """List the trials proposed so far; before the first batch, list its trials."""
    known = Ledger(store).list_proposed()
    return list_trials(config, known) if known else list_first_trials(config)


def count_configurations(config: StudyConfig) -> int:
    """Count the configurations that a study will try."""
    search = config.search
    return len(propose(config, [])) if search.method == "grid" else search.configurations


def count_conditional(config: StudyConfig) -> int:
    """Count the conditional configurations that a study will try, or the most that it may try."""
    if config.search.method == "grid":
        return sum(one.lambda_ is None for one in propose(config, []))
    weights = config.search.lambda_
    return (
        count_configurations(config)
        if isinstance(weights, tuple) and "conditional" in weights
        else 0
    )


def _propose(
    config: StudyConfig, past: Sequence[Outcome], number: int, ledger: Ledger
) -> list[Configuration]:
    """Propose the next batch, and record it."""
    batch = propose(config, past)
    if batch:
        ledger.propose(f"batch{number:05d}", number, batch)
    return list(batch)


def _learn(config: StudyConfig, store: Store, reporter: Reporter) -> list[Outcome]:
    """Take over the configurations of an earlier study that lie in the space of this one.

    Objectives and constraints are computed again from its metrics, with this study's point and
    constraints, since its own may differ.
    """
    folder = config.search.warm_start or ""
    other = records.open(folder)
    theirs, ours = other.record["identity"], store.record["identity"]
    if differing := records.find_differences(_shared(theirs), _shared(ours)):
        raise ConfigError(
            f"search.warm_start: {folder}: its objectives can't be compared with this study's"
            f" ({'; '.join(differing[:3])}); use the same settings, or remove search.warm_start"
        )
    known, found = Ledger(other), Ledger(other).list_outcomes()
    fitting = [one.configuration for one in found if fits(config.search, one.configuration)]
    # The earlier study may have learned from another one, whose metrics it does not hold.
    own = set(known.list_proposed())
    learned = [one for one in fitting if one in own]
    kept = judge_batch(
        config,
        WARM_START,
        learned,
        StudyConfig.restored(other.record).search.seeds,
        known.list_statuses(),
        other.metrics.filter(pl.col("source") == DECIDING).collect(),
    )
    reporter.say(f"learning from {len(kept)} of {len(found)} configurations of {folder}")
    ledger = Ledger(store)
    ledger.propose("warm_start", WARM_START, dict.fromkeys(learned, "warm_start"))
    ledger.conclude("warm_start", kept)
    return kept


def _shared(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a study and one that learns from it must have in common."""
    objectives = {key: identity["search"].get(key) for key in _OBJECTIVES}
    fusion = {name: identity["fusion"].get(name) for name in _SCHEME}
    # The writer makes the outputs in this scheme alone.
    written = ("writer",) if identity["fusion"].get("scheme") == "heard" else ()
    return {section: identity[section] for section in (*_SAME, *written)} | {
        "search": objectives,
        "fusion": fusion,
    }


def _count_states(past: Sequence[Outcome], batch: int) -> str:
    states = Counter(one.state.name.lower() for one in past if one.batch == batch)
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"{told} configurations"


def _say_shortfall(short: float) -> str:
    """Say in words how far a configuration falls short of the front."""
    if short == math.inf:
        return "no finite point meets the constraints"
    if short <= 0:
        return f"only {abs(short):.3f} beyond the front of the others"
    return f"{short:.3f} short of the front"


def _front(config: StudyConfig, past: Sequence[Outcome]) -> str:
    area = measure_hypervolume(config.search, past)
    region = " and ".join(map(str, config.search.region))
    return f"hypervolume so far {area:.3f}" + (f" where {region}" if region else "")
