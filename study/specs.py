"""What is to be done: configurations, trials, and the jobs that workers are handed."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from cf_core.fusion import FusionSettings
from evaluation.rivals import Setting
from study.config import EvaluationPlan
from study.parameters import SETTINGS


@dataclass(frozen=True)
class Configuration:
    """What a search proposes: everything that a trial may differ in but its seed."""

    lambda_: float | None
    """None for a conditional trial."""
    style_dim: int
    changes: tuple[tuple[str, float], ...] = ()
    """Settings of fusion that are searched, by name."""

    @property
    def method(self) -> str:
        """What the tables call its transform."""
        return "conditional" if self.lambda_ is None else "fusion"

    @property
    def id(self) -> str:
        """Name, such as "lambda0.03-style4"; different for different configurations."""
        kind = "conditional" if self.lambda_ is None else f"lambda{self.lambda_!r}"
        changes = (f"{name}{value!r}" for name, value in self.changes)
        return "-".join([kind, f"style{self.style_dim}", *changes])

    @property
    def point(self) -> dict[str, float | str]:
        """Its values by parameter, as a search gives and takes them."""
        lambda_ = "conditional" if self.lambda_ is None else self.lambda_
        return {"lambda": lambda_, "style_dim": self.style_dim, **dict(self.changes)}

    @classmethod
    def at(cls, point: Mapping[str, float | str | None]) -> "Configuration":
        """The configuration of such values; null and "conditional" are the same λ."""
        lambda_, style_dim = point["lambda"], point["style_dim"]
        changes = ((name, point.get(name)) for name in SETTINGS)
        return cls(
            float(lambda_) if isinstance(lambda_, int | float) else None,
            int(style_dim or 0),
            tuple((name, value) for name, value in changes if isinstance(value, int | float)),
        )

    def settings(self, fusion: FusionSettings) -> FusionSettings:
        """Those of fusion, with its own in their places."""
        changes: dict[str, Any] = dict(self.changes)
        return replace(fusion, **changes)


@dataclass(frozen=True)
class TrialSpec:
    """One configuration with one seed: what is trained into one G and D."""

    configuration: Configuration
    seed: int

    @property
    def lambda_(self) -> float | None:
        """None for a conditional trial."""
        return self.configuration.lambda_

    @property
    def style_dim(self) -> int:
        """Dimensions of its style."""
        return self.configuration.style_dim

    @property
    def id(self) -> str:
        """Name of the trial, such as "lambda0.03-style4-seed0"; different for different trials."""
        return f"{self.configuration.id}-seed{self.seed}"

    @property
    def label(self) -> dict[str, Any]:
        """The columns of the tables that say which trial a row is of."""
        own = self.configuration
        return {
            "trial": self.id,
            "configuration": own.id,
            "method": own.method,
            "lambda": own.lambda_,
            "style_dim": own.style_dim,
            "seed": self.seed,
        }


def label_setting(setting: Setting) -> dict[str, Any]:
    """The columns of the tables that say which setting of a rival a row is of."""
    return {
        "trial": setting.id,
        "configuration": setting.id,
        "method": setting.method,
        "lambda": setting.value("lambda"),
        "step_size": setting.value("step_size"),
    }


def name_beside(trial: str, method: str) -> str:
    """What the tables call a trial where its outputs are recorded as those of another method.

    `POSTER` are those in the scheme of the poster, `BY_EDITS` those with a λ for each pair.
    """
    return f"{method}-{trial}"


@dataclass(frozen=True)
class PackSpec:
    """Trials that are trained together, and which of them are to be recorded.

    Those that were trained with others before go on from where each stood after `start` steps, at
    a rung; a pack with a rung `until` ends there.
    """

    trials: tuple[TrialSpec, ...]
    wanted: tuple[TrialSpec, ...]
    batch: int = 0
    start: int = 0
    until: int | None = None

    @property
    def id(self) -> str:
        """Name of the job: its first trial, how many more there are, and where it ends."""
        more = len(self.wanted) - 1
        to = "" if self.until is None else f" to step {self.until}"
        return self.wanted[0].id + (f" and {more} more" if more else "") + to

    @property
    def parts(self) -> tuple[TrialSpec, ...]:
        """What is recorded by itself."""
        return self.wanted

    @property
    def alone(self) -> "list[PackSpec]":
        """A job for each of its trials."""
        return [replace(self, wanted=(trial,)) for trial in self.wanted]

    def only(self, names: Collection[str]) -> "PackSpec":
        """The job without the trials that are not named."""
        return replace(self, wanted=tuple(t for t in self.wanted if t.id in names))

    @property
    def checkpoint(self) -> str:
        """Name of the file that keeps its training while it is going on."""
        names = [*(trial.id for trial in self.trials), str(self.start), str(self.until)]
        return sha256("\n".join(names).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class RivalJob:
    """Settings of one rival that run in one batch."""

    settings: tuple[Setting, ...]
    rival: str
    """As `evaluation.rivals` names it."""

    @property
    def id(self) -> str:
        """Name of the method, or of the one setting."""
        return self.settings[0].id if len(self.settings) == 1 else self.settings[0].method

    @property
    def parts(self) -> tuple[Setting, ...]:
        """What is recorded by itself."""
        return self.settings

    @property
    def alone(self) -> "list[RivalJob]":
        """The whole job again."""
        return [self]

    def only(self, names: Collection[str]) -> "RivalJob":  # noqa: ARG002
        """The whole job: all its settings share their random draws."""
        return self


Job = PackSpec | RivalJob


def plan_rivals(plan: EvaluationPlan) -> list[RivalJob]:
    """List the jobs that run all rivals: one for each that runs its settings together."""
    jobs = []
    for name in plan.rivals:
        rival = plan.rival(name)
        settings = rival.settings()
        groups = [settings] if rival.together else [[setting] for setting in settings]
        jobs += [RivalJob(tuple(group), name) for group in groups]
    return jobs


def group_packs(
    trials: Sequence[TrialSpec],
    size: int,
    fusion: FusionSettings,
    workers: int = 1,
    batch: int = 0,
    start: int = 0,
    until: int | None = None,
) -> list[PackSpec]:
    """Group trials into packs of one shape and budget, in their order; a function of these alone.

    A pack holds `size` trials at most. It holds fewer where there would be less packs than
    `workers`, so that none of them idles while another trains several trials.
    """
    free = {name: getattr(fusion, name) for name, one in SETTINGS.items() if one.within_pack}
    alike: dict[FusionSettings, list[TrialSpec]] = defaultdict(list)
    for trial in trials:
        alike[replace(trial.configuration.settings(fusion), **free)].append(trial)
    least = min(workers, len(trials))
    while size > 1 and sum(math.ceil(len(group) / size) for group in alike.values()) < least:
        size -= 1
    return [
        PackSpec(pack, pack, batch, start, until)
        for group in alike.values()
        for pack in (tuple(group[at : at + size]) for at in range(0, len(group), size))
    ]
