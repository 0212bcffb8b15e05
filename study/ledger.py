"""The ledger: what is planned, tried, over and failed. The records are the only truth about it.

Invariants, whatever dies at whatever moment:

- What is about to be tried is written down before it is tried, with the number of the attempt.
- A trial is over when its row of `trials` is written, which is the last of its rows. At a rung, it
  is over there when its part of `rungs` is written.
- Of several attempts the latest counts, table by table.
- A trial of which another table has lost its part has failed, and is tried again.
"""

import platform
import traceback
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import polars as pl

from study.specs import Configuration, Job, PackSpec
from study.store import Store


class Status(StrEnum):
    """How a trial or a setting of a rival stands."""

    DONE = "done"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    FAILED = "failed"
    PENDING = "pending"

    @property
    def is_final(self) -> bool:
        """Whether a rerun leaves it alone. What failed may have been the machine's fault."""
        return self in (Status.DONE, Status.PRUNED, Status.DIVERGED)


class State(StrEnum):
    """What came of a configuration, in the words of Optuna."""

    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Outcome:
    """What came of a configuration, as a search is told."""

    configuration: Configuration
    batch: int
    state: State
    objectives: tuple[float, ...] = ()
    """What is maximised and what is minimised, of complete configurations."""
    violations: tuple[float, ...] = ()
    """By how much each constraint is missed; 0 or less where it holds."""

    @property
    def feasible(self) -> bool:
        """Whether it is complete and misses no constraint."""
        return self.state == State.COMPLETE and all(by <= 0 for by in self.violations)


@dataclass(frozen=True)
class Failure:
    """Why a job did not come to its end."""

    reason: str
    traceback: str | None = None
    died: bool = False
    """Whether its worker went away without a word, so that the machine may be at fault."""

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """The failure that an error is."""
        return cls(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


Over = frozenset[tuple[str, int | None]]
"""Trials and settings that are over (None), and trials that are at rungs."""


class Ledger:
    """Reads and writes how the trials of a study stand."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # ---- planned -------------------------------------------------------------------------------

    def propose(self, part: str, batch: int, origins: Mapping[Configuration, str]) -> None:
        """Write down the configurations of a batch, and where each comes from."""
        rows = [
            {
                "configuration": one.id,
                "batch": batch,
                "number": number,
                "origin": origin,
                **one.point,
                "lambda": one.lambda_,
            }
            for number, (one, origin) in enumerate(origins.items())
        ]
        self._store.write("configurations", part, rows)

    def list_proposed(self, batch: int | None = None) -> list[Configuration]:
        """The configurations of one batch, or of all; without another study's."""
        own = pl.col("batch") >= 0 if batch is None else pl.col("batch") == batch
        rows = self._store.configurations.filter(own).sort("batch", "number").collect()
        return [Configuration.at(row) for row in rows.iter_rows(named=True)]

    def conclude(self, part: str, told: Sequence[Outcome]) -> None:
        """Write down what came of configurations, as the search is told from now on."""
        rows = []
        for one in told:
            maximised, minimised = one.objectives or (None, None)
            rows.append(
                {
                    "configuration": one.configuration.id,
                    "batch": one.batch,
                    "state": str(one.state),
                    "maximised": maximised,
                    "minimised": minimised,
                    "violations": list(one.violations),
                }
            )
        self._store.write("objectives", part, rows)

    def list_outcomes(self) -> list[Outcome]:
        """All that the search was told so far, in its order."""
        known = self._store.configurations.sort("batch", "number")
        told = self._store.objectives.drop("batch")
        rows = known.join(told, on="configuration", how="inner", maintain_order="left").collect()
        return [
            Outcome(
                Configuration.at(row),
                row["batch"],
                State(row["state"]),
                () if row["maximised"] is None else (row["maximised"], row["minimised"]),
                tuple(row["violations"]),
            )
            for row in rows.iter_rows(named=True)
        ]

    # ---- tried ---------------------------------------------------------------------------------

    def count_attempts(self) -> dict[str, int]:
        """How often each trial and setting was handed to a worker, by its name."""
        tried = self._store.attempts.group_by("trial").agg(pl.col("attempt").max())
        return dict(tried.collect().iter_rows())

    def begin(self, names: Iterable[str]) -> dict[str, int]:
        """Write down what is about to be tried; by name, the number of this attempt."""
        earlier = self.count_attempts()
        attempts = {name: earlier.get(name, 0) + 1 for name in names}
        last = self._store.attempts.select(pl.col("wave").max()).collect().item()
        wave, now = (last or 0) + 1, datetime.now(UTC)
        rows = [
            {"wave": wave, "trial": name, "attempt": attempt, "started_at": now}
            for name, attempt in attempts.items()
        ]
        self._store.write("attempts", f"wave{wave:05d}", rows)
        return attempts

    # ---- over ----------------------------------------------------------------------------------

    def list_over(self) -> pl.DataFrame:
        """The table `trials`, where a trial of which other tables have lost their part has failed.

        So the next run tries it again. Only `latents` may be removed as a whole, to make room.
        """
        trials = self._store.scan("trials").collect()
        parts = trials.select("trial", "parts")
        kept = {trial: tables.split(",") if tables else [] for trial, tables in parts.iter_rows()}
        written = {table: self._store.list_parts(table) for table in set().union(*kept.values())}
        if not written.get("latents"):
            kept = {trial: [t for t in tables if t != "latents"] for trial, tables in kept.items()}
        lost = {
            trial: f"its part of {', '.join(gone)} is lost"
            for trial, tables in kept.items()
            if (gone := [table for table in tables if trial not in written[table]])
        }
        if not lost:
            return trials
        again = pl.col("trial").is_in(list(lost))
        return trials.with_columns(
            status=pl.when(again).then(pl.lit(str(Status.FAILED))).otherwise("status"),
            reason=pl.when(again)
            .then(pl.col("trial").replace_strict(lost, default=None, return_dtype=pl.String))
            .otherwise("reason"),
        )

    def list_statuses(self) -> dict[str, Status]:
        """Status of each trial and setting that is over, by its name."""
        rows = self.list_over().select("trial", "status").iter_rows()
        return {name: Status(status) for name, status in rows}

    def list_done(self) -> list[str]:
        """Names of the trials and settings that are done."""
        return [name for name, status in self.list_statuses().items() if status == Status.DONE]

    def find_over(self, attempts: Mapping[str, int] | None = None) -> Over:
        """What came to its end. What failed counts only if that was in one of `attempts`."""
        rows = self.list_over().select("trial", "status", "attempt")
        over: set[tuple[str, int | None]] = {
            (name, None)
            for name, status, attempt in rows.iter_rows()
            if Status(status).is_final or (attempts or {}).get(name) == attempt
        }
        rungs = self._store.rungs.select("trial", "rung").unique().collect()
        return frozenset(over | {(name, rung) for name, rung in rungs.iter_rows()})

    # ---- failed --------------------------------------------------------------------------------

    def note_failure(
        self, names: Iterable[str], failure: Failure, attempts: Mapping[str, int]
    ) -> None:
        """Keep a failure of some trials or settings, whether they are tried again or not."""
        for name in names:
            row = {
                "trial": name,
                "attempt": attempts[name],
                "reason": failure.reason,
                "traceback": failure.traceback,
                "host": platform.node(),
                "failed_at": datetime.now(UTC),
            }
            self._store.write("failures", f"{name}-attempt{attempts[name]}", [row])


def list_failures(store: Store, trial: str) -> pl.DataFrame:
    """All failures of a trial or a setting, the first first: rows of the table `failures`.

    >>> import study
    >>> failures = list_failures(study.open("results/quickstart"), "conditional-style4-seed0")
    >>> for row in failures.iter_rows(named=True):
    ...     print(row["attempt"], row["traceback"])
    """
    return store.failures.filter(pl.col("trial") == trial).sort("attempt").collect()


def is_over(job: Job, part: str, over: Collection[tuple[str, int | None]]) -> bool:
    """Whether a part of a job came to its end, or to that of a job that ends at a rung."""
    return (part, None) in over or (isinstance(job, PackSpec) and (part, job.until) in over)
