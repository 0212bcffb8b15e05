"""All configurations of a study, batch by batch and rung by rung."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import count, product
from typing import Any

import polars as pl
from optuna.trial import TrialState

from cf_core.errors import UserError
from study import store as records
from study.config import PARAMETERS, Configuration, StudyConfig, TrialSpec
from study.jobs import FINAL, SOURCE, Workbench, record_over, rival_jobs, rung_path
from study.lease import Lease
from study.packs import pack_size, packed
from study.progress import Reporter
from study.search import (
    OBJECTIVES,
    WARM_START,
    Outcome,
    first_trials,
    fits,
    front_hypervolume,
    importances,
    judged,
    propose,
    shortfalls,
    trials_of,
    write_journal,
)
from study.store import Store
from study.workers import Workers

_SAME = ("corpus", "melody", "core", "seed", "selection_judge", "evaluation")
"""What an earlier study must share with one that learns from it."""


def sweep(
    config: StudyConfig, bench: Workbench, store: Store, reporter: Reporter, lease: Lease
) -> None:
    """Propose configurations and try them, until all are tried; the rivals beside the first.

    What the records hold already is neither proposed nor tried again, but for what failed: where
    that succeeds at last, later batches learn from it. Raises `UserError` for a search that can't
    be.
    """
    known = outcomes(store)
    past = [one for one in known if one.batch == WARM_START]
    if config.search.warm_start is not None and not past:
        past = _learned(config, store, reporter)
    rivals = rival_jobs(config.rivals())
    with closing(Workers(bench, store, config.execution, reporter, lease)) as workers:
        for number in count():
            batch = recorded(store, number) or _proposed(config, past, number, store)
            if not batch:
                break
            run = _Batch(config, number, batch, bench, store, reporter, workers)
            run.do(rivals if number == 0 else [])
            told = [one for one in known if one.batch == number]
            if not told or any(one.state == TrialState.FAIL for one in told):
                told = run.told()
            past += told
            workers.note = _front(config, past)
            reporter.say(f"batch {number + 1}: {_states(past, number)}; {workers.note}")
    write_journal(config, past, store.root / "optuna.log")
    store.write("importances", "all", importances(config, past))


class _Batch:
    """Configurations that were proposed together."""

    def __init__(
        self,
        config: StudyConfig,
        number: int,
        configurations: Sequence[Configuration],
        bench: Workbench,
        store: Store,
        reporter: Reporter,
        workers: Workers,
    ) -> None:
        self._config, self._number, self._configurations = config, number, configurations
        self._bench, self._store, self._reporter = bench, store, reporter
        self._workers = workers
        self._trials = trials_of(config, configurations)

    def do(self, others: Sequence[Any]) -> None:
        """Train and evaluate its trials, stopping the weakest at each rung, and `others` beside."""
        size = pack_size(
            self._trials,
            self._config.fusion,
            self._store,
            self._config.execution,
            self._workers.pack_rates,
            self._reporter,
        )
        going, start = self._trials, 0
        for until in (*self._config.search.rungs, None):
            packs = packed(going, size, self._config.fusion, self._number, start, until)
            self._workers.do([*packs, *others])
            others = []
            if until is not None:
                going, start = self._after(until, going), until
        statuses = self._store.done_trials()
        for trial, rung in product(self._trials, self._config.search.rungs):
            # What failed goes on from there when it is tried again.
            if statuses.get(trial.id) in FINAL:
                rung_path(self._store, trial.id, rung).unlink(missing_ok=True)

    def told(self) -> list[Outcome]:
        """Record what came of it all, as the search is told from now on."""
        names = [trial.id for trial in self._trials]
        metrics = self._store.metrics.filter(
            pl.col("source") == SOURCE, pl.col("trial").is_in(names)
        ).collect()
        statuses = self._store.done_trials()
        told = judged(self._config, self._number, self._configurations, statuses, metrics)
        _write_outcomes(self._store, f"batch{self._number:05d}", told)
        return told

    def _after(self, rung: int, going: Sequence[TrialSpec]) -> list[TrialSpec]:
        """Stop the weakest configurations at a rung; the trials that go on."""
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
        short = shortfalls(points, whole, self._config.search.constraints)
        kept = list(short)[: math.ceil(self._config.search.keep * len(by_name))]
        stopped = [trial for trial in going if trial.configuration.id not in kept]
        self._stop(rung, [trial for trial in stopped if trial.id in reached], short)
        self._reporter.say(f"step {rung}: {len(kept)} of {len(by_name)} configurations go on")
        return [trial for trial in going if trial.configuration.id in kept]

    def _stop(self, rung: int, trials: Sequence[TrialSpec], short: Mapping[str, float]) -> None:
        statuses, attempts = self._store.done_trials(), self._store.tried()
        for trial in trials:
            if statuses.get(trial.id) in FINAL:
                continue
            by = short.get(trial.configuration.id)
            why = "another seed failed" if by is None else _told(by)
            reason = f"stopped after {rung} steps: {why}"
            outcome = {"status": "pruned", "reason": reason, "steps": rung}
            record_over(trial, outcome, self._bench, self._store, attempts[trial.id])


def planned(config: StudyConfig, store: Store) -> list[TrialSpec]:
    """The trials that are proposed so far, or that will be first."""
    batches = store.configurations.filter(pl.col("batch") >= 0).collect()
    known = [_configuration(row) for row in batches.sort("batch", "number").iter_rows(named=True)]
    return trials_of(config, known) if known else first_trials(config)


def expected(config: StudyConfig) -> int:
    """How many configurations a study will try."""
    search = config.search
    return len(propose(config, [])) if search.method == "grid" else search.configurations


def conditional(config: StudyConfig) -> int:
    """How many of them learn all λ; at most, where that is not known beforehand."""
    if config.search.method == "grid":
        return sum(one.lambda_ is None for one in propose(config, []))
    weights = config.search.lambda_
    return expected(config) if isinstance(weights, tuple) and "conditional" in weights else 0


def recorded(store: Store, batch: int) -> list[Configuration]:
    """The configurations that a batch was recorded with; none where it was not."""
    rows = store.configurations.filter(pl.col("batch") == batch).sort("number").collect()
    return [_configuration(row) for row in rows.iter_rows(named=True)]


def outcomes(store: Store) -> list[Outcome]:
    """All that the search was told so far, in its order."""
    known = store.configurations.sort("batch", "number")
    told = store.objectives.drop("batch")
    rows = known.join(told, on="configuration", how="inner", maintain_order="left").collect()
    return [
        Outcome(
            _configuration(row),
            row["batch"],
            TrialState[row["state"]],
            () if row["judge"] is None else (row["judge"], row["z_distance"]),
            tuple(row["violations"]),
        )
        for row in rows.iter_rows(named=True)
    ]


def _proposed(
    config: StudyConfig, past: Sequence[Outcome], number: int, store: Store
) -> list[Configuration]:
    """The next batch, written down."""
    batch = propose(config, past)
    if batch:
        _write_configurations(store, f"batch{number:05d}", number, batch)
    return list(batch)


def _learned(config: StudyConfig, store: Store, reporter: Reporter) -> list[Outcome]:
    """Take over what an earlier study found, as far as it lies in the space of this one."""
    folder = config.search.warm_start or ""
    other = records.open(folder)
    theirs, ours = other.record["identity"], store.record["identity"]
    differing = [
        line
        for section in _SAME
        for line in records.differences({section: theirs[section]}, {section: ours[section]})
    ]
    if differing:
        raise UserError(
            f"search.warm_start: {folder}: its objectives can't be compared with this study's"
            f" ({'; '.join(differing[:3])})"
        )
    found = outcomes(other)
    kept = [
        Outcome(one.configuration, WARM_START, one.state, one.objectives)
        for one in found
        if fits(config.search, one.configuration)
    ]
    reporter.say(f"learning from {len(kept)} of {len(found)} configurations of {folder}")
    origins = dict.fromkeys((one.configuration for one in kept), "warm_start")
    _write_configurations(store, "warm_start", WARM_START, origins)
    _write_outcomes(store, "warm_start", kept)
    return kept


def _write_configurations(
    store: Store, part: str, batch: int, origins: Mapping[Configuration, str]
) -> None:
    rows = [
        {
            "configuration": one.id,
            "batch": batch,
            "number": number,
            "origin": origin,
            "lambda": one.lambda_,
            "style_dim": one.style_dim,
            **dict(one.changes),
        }
        for number, (one, origin) in enumerate(origins.items())
    ]
    store.write("configurations", part, rows)


def _write_outcomes(store: Store, part: str, told: Sequence[Outcome]) -> None:
    rows = [
        {
            "configuration": one.configuration.id,
            "batch": one.batch,
            "state": one.state.name,
            **dict(zip(OBJECTIVES, one.objectives, strict=False)),
            "violations": list(one.violations),
        }
        for one in told
    ]
    store.write("objectives", part, rows)


def _configuration(row: Mapping[str, Any]) -> Configuration:
    changes = ((name, row[name]) for name in PARAMETERS[2:] if row[name] is not None)
    return Configuration(row["lambda"], row["style_dim"], tuple(changes))


def _states(past: Sequence[Outcome], batch: int) -> str:
    states = Counter(one.state.name.lower() for one in past if one.batch == batch)
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"{told} configurations"


def _told(short: float) -> str:
    """How far a configuration falls short of the front, in words."""
    if short == math.inf:
        return "no point that counts"
    if short <= 0:
        return f"only {-short:.3f} beyond the front of the others"
    return f"{short:.3f} short of the front"


def _front(config: StudyConfig, past: Sequence[Outcome]) -> str:
    area = front_hypervolume(past, config.evaluation.matched.z_distance[1])
    return f"hypervolume so far {area:.3f}"
