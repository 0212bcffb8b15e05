"""A study as one YAML file, checked: what changes its results, and how it is run, apart.

`python -m study.config > docs/configuration.md` writes the reference of all keys.
"""

import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from cf_core.errors import UserError
from cf_core.files import AnyPath, place
from cf_core.fusion import FusionSettings
from cf_core.melody import MelodyFormat
from cf_core.vae import VAESettings
from evaluation.classifier import ClassifierSettings
from evaluation.frontier import CHOSEN_ON
from evaluation.judge import JudgeSettings
from evaluation.metrics import METRICS
from study import conditions

Number = TypeVar("Number", int, float)


PARAMETERS = ("lambda", "style_dim", "hidden", "learning_rate", "steps", "style_weight")
"""What a configuration may differ in, in the order in which it is chosen."""
WHOLE = ("style_dim", "hidden", "steps")
"""Those that are whole numbers."""


def _ascending(values: tuple[Number, ...]) -> tuple[Number, ...]:
    if len(set(values)) < len(values):
        raise ValueError("no value may be given twice")
    return tuple(sorted(values))


def _weights(values: tuple[float | str, ...]) -> tuple[float | str, ...]:
    numbers = _ascending(tuple(value for value in values if not isinstance(value, str)))
    words = tuple(value for value in values if isinstance(value, str))
    if len(words) > 1:
        raise ValueError("no value may be given twice")
    return numbers + words


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("no name may be given twice")
    return names


def _interval(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] >= bounds[1]:
        raise ValueError("the first number must be below the second")
    return bounds


def _searched(given: Any) -> str:
    return "range" if isinstance(given, dict | Range) else "values"


def _condition(text: str) -> str:
    try:
        conditions.Condition.parse(text)
    except UserError as error:
        raise ValueError(str(error)) from None
    return text


def _or_word(kinds: str) -> WrapValidator:
    """Tell in one line what a number or a word must be."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"must be {kinds}, got {json.dumps(value)}") from None

    return WrapValidator(check)


Count = Annotated[int, Field(ge=1)]
Weight = Annotated[
    Annotated[float, Field(ge=0)] | Literal["conditional"],
    _or_word("a number of at least 0, or conditional"),
]
Pack = Annotated[Count | Literal["auto"], _or_word("a whole number of at least 1, or auto")]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Condition = Annotated[str, AfterValidator(_condition)]
Grid = Annotated[tuple[Number, ...], Field(min_length=1), AfterValidator(_ascending)]
Rival = Literal["lp", "gradient", "cmaes", "best_of_n", "slerp", "retrieval"]
Interval = Annotated[tuple[Positive, Positive], AfterValidator(_interval)]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
    )


class CorpusSettings(_Section):
    """The melodies."""

    source: Annotated[str, Field(min_length=1)] = "builtin"
    """`builtin`, or a path to a folder, zip or file of melodies, or to an ingested `.parquet`. `~`
    and environment variables such as `$CF_DATA` are expanded."""
    include: str | None = None
    """Glob on the names inside a folder or zip; null takes every melody."""

    @property
    def path(self) -> Path | None:
        """Where the melodies lie, expanded; None for the built-in corpus.

        Raises `UserError` if `source` names an environment variable that is not set.
        """
        if self.source == "builtin":
            return None
        path = os.path.expandvars(self.source)
        if unset := re.search(r"\$(\w+|\{\w+\})", path):
            raise UserError(
                f"corpus.source: {self.source}: the environment variable {unset[0]} is not set;"
                " set it, or write the path itself"
            )
        return Path(path).expanduser()


class CoreGate(_Section):
    """The least that the core must reach on validation songs before any trial is trained."""

    token_accuracy: Share = 0.97
    """Share of grid steps decoded right."""
    onset_pitch_recall: Share = 0.93
    """Share of true onsets that come back at their step with their pitch."""
    exact_segments: Share = 0.6
    """Share of segments decoded without an error."""
    valid_prior: Share = 0.98
    """Share of prior samples that decode to a valid melody."""


class Range(_Section):
    """Numbers between two, from which a search draws."""

    low: Annotated[float, Field(ge=0)]
    """Smallest number."""
    high: Positive
    """Largest number."""
    log: bool = False
    """Whether their logarithms are drawn evenly."""

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        if self.log and self.low == 0:
            raise ValueError("low must be above 0 where log is true")
        return self


Values = Annotated[tuple[Number, ...], Field(min_length=1), AfterValidator(_ascending)]
Searched = Annotated[
    Annotated[Values[Number], Tag("values")] | Annotated[Range, Tag("range")],
    Discriminator(_searched),
]


class Search(_Section):
    """The trials: configurations, each with every seed.

    A parameter is given as a list of values or, where the method is no grid, also as a range:
    `{low: 0.001, high: 10, log: true}`. The objectives are the highest `judge` and the least
    `z_distance`, means over seeds, on validation songs.
    """

    method: Literal["grid", "random", "quasi_random", "tpe", "nsga2"] = "grid"
    """How configurations are chosen: all combinations of the values; at random; by a scrambled
    Sobol sequence; by Optuna's multivariate TPE or NSGA-II, from the objectives of those before."""
    lambda_: Annotated[
        Annotated[tuple[Weight, ...], Field(min_length=1), AfterValidator(_weights), Tag("values")]
        | Annotated[Range, Tag("range")],
        Discriminator(_searched),
    ] = Field((0.03, 0.3, 3.0, "conditional"), alias="lambda")
    """λ, the weight of similarity against coherency (equation 4). `conditional` is one trial that
    learns all of `fusion.lambda_range` and is read at those of `evaluation.lambda`."""
    style_dim: Searched[Annotated[int, Field(ge=0)]] = (0, 4)
    """`S`, dimensions of the style; 0 is the control without style."""
    hidden: Searched[Count] | None = None
    """Width of G and D; null leaves that of `fusion`. So do the next three."""
    learning_rate: Searched[Positive] | None = None
    """Learning rate of G and D."""
    steps: Searched[Count] | None = None
    """Training budget: updates of G."""
    style_weight: Searched[Annotated[float, Field(ge=0)]] | None = None
    """Weight of the style loss."""
    when: dict[Literal["hidden", "learning_rate", "steps", "style_weight"], Condition] = {}
    """Parameters that are searched only where another has some value, such as
    `{style_weight: style_dim > 0}`; elsewhere that of `fusion` is taken. The other must come before
    in the order above."""
    seeds: Grid[Seed] = (0,)
    """Training seeds. Replicates: a configuration's value is the mean over them."""
    configurations: Count = 32
    """Configurations to try, where the method is no grid."""
    batch: Count = 8
    """Configurations proposed at one time, from the objectives of all batches before; the
    population of NSGA-II. What is proposed does not depend on how many workers there are."""
    iteration: Count | None = None
    """Iteration count at which the objectives are taken; null takes the middle one of
    `evaluation.iterations`."""
    weight: Positive | None = None
    """λ at which the objectives of conditional trials are taken; null takes the middle one of
    `evaluation.lambda`."""
    constraints: tuple[Condition, ...] = ()
    """Conditions on metrics, such as `style_diversity >= 1`, taken as the objectives are: TPE and
    NSGA-II are to meet them, and at rungs points that miss one do not count."""
    first: tuple[dict[str, float | str], ...] = ()
    """Configurations to try before all others, such as `{lambda: 0.1, style_dim: 4}`."""
    warm_start: str | None = None
    """Folder of an earlier study with the same core, judge and evaluation, whose outcomes TPE and
    NSGA-II learn from as well."""
    rungs: tuple[Count, ...] = ()
    """Training steps after which the weakest configurations of a batch are stopped (synchronous
    successive halving): those whose points fall furthest short of the front of all others there."""
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the configurations that goes on after a rung."""

    def of(self, name: str) -> "tuple[float | str, ...] | Range | None":
        """Values or range of one of `PARAMETERS`; None where it is not searched."""
        found: tuple[float | str, ...] | Range | None
        found = getattr(self, "lambda_" if name == "lambda" else name)
        return found


_NOT_FOR_GRIDS = ("configurations", "batch", "first", "warm_start")
"""Settings of a search that takes what it tries from no list."""


class LPPlan(_Section):
    """Latent search: proposals `z + η ε`, kept where the search classifier rises."""

    step_sizes: Grid[Positive] = (0.1, 0.2, 0.4)
    """η, the standard deviation of a proposal."""
    proposals: Count = 1
    """Proposals per iteration, of which the best counts."""
    scaled: bool = False
    """Whether proposals are scaled by σ̄, dimension by dimension."""
    iterations: Grid[Count] = (1, 3, 10, 30, 100, 300, 600, 1000)
    """Numbers of iterations after which outputs are kept."""


class GradientPlan(_Section):
    """Gradient search on the search classifier, with λ times equation 7 as penalty."""

    lambda_: Grid[Positive] = Field((1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), alias="lambda")
    """λ of the penalty."""
    learning_rate: Positive = 0.03
    """Learning rate of Adam on the latents."""
    iterations: Grid[Count] = (3, 10, 30, 100, 300)
    """Numbers of steps after which outputs are kept."""


class CMAESPlan(_Section):
    """CMA-ES (with a diagonal covariance) on the objective of the gradient search."""

    lambda_: Grid[Positive] = Field((0.003, 0.03, 0.3, 3.0), alias="lambda")
    """λ of the penalty."""
    step_size: Positive = 0.1
    """Standard deviation of the first generation."""
    iterations: Grid[Count] = (1, 2, 4, 8, 12, 20, 30, 45, 65, 100)
    """Numbers of generations after which outputs are kept."""


class BestOfNPlan(_Section):
    """The best by the search classifier of N draws around the input."""

    step_sizes: Grid[Positive] = (0.05, 0.1, 0.2, 0.4, 0.8)
    """η, the standard deviation of a draw."""
    iterations: Grid[Count] = (1, 3, 10, 30, 100, 300, 1000, 3000)
    """Numbers of draws."""


class SlerpPlan(_Section):
    """The halves moved towards each other, on the sphere and straight."""

    iterations: Grid[Count] = tuple(range(1, 21))
    """Numbers of steps after which outputs are kept; after the largest the halves meet."""


class RetrievalPlan(_Section):
    """A real adjacent pair of the training songs near the input."""

    iterations: Grid[Count] = (*range(1, 21), *range(25, 125, 5))
    """Numbers of nearest pairs, of which the best by the search classifier is taken."""


class MatchedPlan(_Section):
    """Smallest and largest distance at which methods are compared at matched similarity."""

    z_distance: Interval = (0.03, 8.7)
    """In z-distance (equation 7)."""
    edit_distance: Interval = (0.15, 32.0)
    """In decoded edit distance, tokens of both halves."""


class EvaluationPlan(_Section):
    """What is measured of every trial and baseline."""

    pairs: Count = 1024
    """Input pairs of each source that is scored (test songs, prior)."""
    validation_pairs: Count = 512
    """Input pairs of each source on which is chosen (validation songs, prior)."""
    iterations: Grid[Count] = (1, 2, 4, 8, 16)
    """Numbers of applications of the fusion map after which outputs are kept."""
    lambda_: Grid[Positive] = Field((1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), alias="lambda")
    """λ at which conditional trials are read."""
    styles: Annotated[int, Field(ge=2)] = 4
    """Styles per input in the measure of style diversity."""
    latents: Literal["all", "scored", "none"] = "all"
    """Whose latents are kept as a table, by far the largest: `all` sources, only those that are
    `scored` (test songs, prior), or `none`. No figure and no verdict needs them."""
    resamples: Annotated[int, Field(ge=2)] = 200
    """Bootstrap resamples behind an interval of a metric."""
    verdict_resamples: Annotated[int, Field(ge=2)] = 10_000
    """Bootstrap resamples behind a verdict."""
    rivals: Annotated[tuple[Rival, ...], AfterValidator(_each_once)] = ("lp",)
    """What fusion is compared with: `lp`, `gradient`, `cmaes`, `best_of_n`, `slerp`, `retrieval`.
    The sections below say how each is run; those not named here are not."""
    lp: LPPlan = LPPlan()
    """Latent search: proposals `z + η ε`, kept where the search classifier rises."""
    gradient: GradientPlan = GradientPlan()
    """Gradient search on the search classifier, with λ times equation 7 as penalty."""
    cmaes: CMAESPlan = CMAESPlan()
    """CMA-ES (with a diagonal covariance) on the objective of the gradient search."""
    best_of_n: BestOfNPlan = BestOfNPlan()
    """The best by the search classifier of N draws around the input."""
    slerp: SlerpPlan = SlerpPlan()
    """The halves moved towards each other, on the sphere and straight."""
    retrieval: RetrievalPlan = RetrievalPlan()
    """A real adjacent pair of the training songs near the input."""
    matched: MatchedPlan = MatchedPlan()
    """The range of distances of the comparison at matched similarity."""

    @property
    def latent_sources(self) -> tuple[str, ...]:
        """Names of the sources whose latents are kept."""
        scored, chosen_on = tuple(CHOSEN_ON), tuple(CHOSEN_ON.values())
        return {"all": (*scored, *chosen_on), "scored": scored, "none": ()}[self.latents]

    def counts(self, rival: str) -> tuple[int, ...]:
        """Iteration counts after which the outputs of a rival are kept."""
        kept: tuple[int, ...] = getattr(self, rival).iterations
        return kept


class Selection(_Section):
    """Which trial is deployed, decided on validation songs."""

    maximise: Annotated[str, Field(min_length=1)] = "judge"
    """The metric whose highest value wins."""
    where: tuple[Condition, ...] = ("z_distance <= 3.0",)
    """Conditions that a trial must meet, such as `z_distance <= 3.0`."""


class Resources(_Section):
    """What one worker needs."""

    cpu: Annotated[float, Field(ge=0)] = 1.0
    """CPUs."""
    gpu: Annotated[float, Field(ge=0)] = 0.0
    """GPUs; 0.5 lets two workers share one."""


class StageResources(_Section):
    """What the workers of each stage need, as Ray counts it."""

    trials: Resources = Resources()
    """Those that train packs of trials; on a GPU where they have one."""
    rivals: Resources = Resources()
    """Those that run rivals."""


class Execution(_Section):
    """How the study is run. Never changes its results, but for the rounding errors of `pack`."""

    workers: Count = 2
    """Processes that read melodies, or train, at one time, one thread each."""
    pack: Pack = "auto"
    """Trials that a process trains at once, their weights stacked; `auto` measures how many are
    worth it. Kept in `packs.json` from the first run on, since packs of another size differ by
    rounding errors; give a number to have two runs agree bit for bit."""
    results: Annotated[str, Field(min_length=1)] = "results"
    """Folder under which the study's own folder, named as the study, is kept: a path, or a URI that
    pyarrow opens, such as `s3://bucket/studies`."""
    address: str | None = None
    """Address of a Ray cluster; null starts one on this machine."""
    ship_code: bool = False
    """Whether the nodes of that cluster get this project's code by Ray's runtime environment; else
    the same wheel must be installed on all of them. The libraries must be there either way."""
    resources: StageResources = StageResources()
    """What the workers of each stage need."""
    trial_seconds: Positive | None = None
    """Longest that a trial may take, from its start to its records; what takes longer is stopped
    and recorded as failed. Null sets no limit."""
    memory_gb: Positive | None = None
    """Most memory of a worker, in 10⁹ bytes, above which what it does fails; null sets no limit."""


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
    def method(self) -> str:
        """What the tables call its transform."""
        return self.configuration.method

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


@dataclass(frozen=True)
class RivalSpec:
    """One setting of a rival: what the tables call a trial of it."""

    method: str
    step_size: float | None = None
    lambda_: float | None = None
    straight: bool = False
    """Whether interpolation goes straight and not on the sphere."""

    @property
    def id(self) -> str:
        """Name of the setting, such as "lp-eta0.1"."""
        marks = {"eta": self.step_size, "lambda": self.lambda_}
        parts = [f"{name}{value!r}" for name, value in marks.items() if value is not None]
        return "-".join([self.method, *parts, *(["straight"] if self.straight else [])])


class StudyConfig(_Section):
    """One study: its identity, and how it is run."""

    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,100}$")]
    """Name of the study and of its folder: letters, digits, `-` and `_`."""
    seed: Seed = 0
    """Seed of everything that trials share: split, core, classifiers, evaluation pairs."""
    corpus: CorpusSettings = CorpusSettings()
    """The melodies."""
    melody: MelodyFormat = MelodyFormat()
    """Which segments the model knows."""
    core: VAESettings = VAESettings()
    """The VAE that all trials share."""
    core_gate: CoreGate = CoreGate()
    """The least that the core must reach on validation songs before any trial is trained. Not part
    of the identity: it changes no result."""
    search_classifier: ClassifierSettings = ClassifierSettings()
    """The classifier of latents that latent search may climb."""
    selection_judge: JudgeSettings = JudgeSettings()
    """The judge that search and selection may use."""
    reporting_judge: JudgeSettings = JudgeSettings()
    """The sealed judge, which only figures and verdicts use."""
    fusion: FusionSettings = FusionSettings()
    """G and D, as far as all trials share them."""
    search: Search = Search()
    """The trials: configurations, each with every seed."""
    evaluation: EvaluationPlan = EvaluationPlan()
    """What is measured of every trial and baseline."""
    selection: Selection = Selection()
    """Which trial is deployed, decided on validation songs. Not part of the identity: another
    choice needs no new training."""
    execution: Execution = Execution()
    """How the study is run. Not part of the identity: changes no result, but for the rounding
    errors of `pack`."""

    @model_validator(mode="after")
    def _readings_were_trained_for(self) -> Self:
        low, high = self.fusion.lambda_range
        read = self.evaluation.lambda_
        weights = self.search.lambda_
        conditional = not isinstance(weights, Range) and "conditional" in weights
        if conditional and not low <= read[0] <= read[-1] <= high:
            raise ValueError(
                f"evaluation.lambda: conditional trials are trained for fusion.lambda_range"
                f" {low:g} to {high:g} only, and can't be read outside of it"
            )
        return self

    @model_validator(mode="after")
    def _parameters_can_be_searched(self) -> Self:
        search = self.search
        for name in PARAMETERS:
            if search.method == "grid" and isinstance(search.of(name), Range):
                raise ValueError(f"search.{name}: a grid needs a list of values, not a range")
        for name in _NOT_FOR_GRIDS if search.method == "grid" else ():
            if getattr(search, name) != Search.model_fields[name].default:
                raise ValueError(f"search.{name}: has no meaning where search.method is grid")
        for text in search.constraints:
            metric = conditions.Condition.parse(text).metric
            if metric not in METRICS:
                near = get_close_matches(metric, METRICS, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"search.constraints: {metric}: no such metric{hint}")
        for name, condition in search.when.items():
            if search.of(name) is None:
                raise ValueError(f"search.when.{name}: {name} is not searched")
            other = condition.split(maxsplit=1)[0]
            if other not in PARAMETERS[: PARAMETERS.index(name)]:
                raise ValueError(
                    f'search.when.{name}: "{condition}" must name a parameter before {name}'
                )
        return self

    @model_validator(mode="after")
    def _objectives_are_read(self) -> Self:
        search, evaluation = self.search, self.evaluation
        if search.iteration not in (None, *evaluation.iterations):
            raise ValueError("search.iteration: must be one of evaluation.iterations")
        if search.weight not in (None, *evaluation.lambda_):
            raise ValueError("search.weight: must be one of evaluation.lambda")
        least = self.fusion.steps
        if search.steps is not None:
            own = search.steps
            least = int(own.low if isinstance(own, Range) else own[0])
        if list(search.rungs) != sorted(set(search.rungs)):
            raise ValueError("search.rungs: must ascend")
        if search.rungs and search.rungs[-1] >= least:
            raise ValueError(f"search.rungs: must be below the {least} steps of training")
        return self

    @classmethod
    def restored(cls, record: Mapping[str, Any]) -> Self:
        """Settings that records belong to, as `study.json` holds them.

        Those outside the identity are defaults. Raises `UserError` for settings of another release.
        """
        settings = {**record["identity"], "name": record["name"], "corpus": {}}
        try:
            return cls.model_validate_json(json.dumps(settings), strict=True)
        except ValidationError as error:
            raise UserError(
                f"study.json of {record['name']}: holds settings that this release does not know;"
                " read it with the release that wrote it"
            ) from error

    def identity(self, corpus_hash: str) -> dict[str, Any]:
        """Everything that changes results, as JSON values.

        The corpus is known by the hash of its content and an earlier study by its fingerprint, not
        by where they lie. Raises `UserError` where the earlier study can't be read.
        """
        identity = self.model_dump(
            mode="json", exclude={"name", "corpus", "core_gate", "selection", "execution"}
        )
        if self.search.warm_start is not None:
            identity["search"]["warm_start"] = _fingerprint_of(place(self.search.warm_start))
        return identity | {"corpus": corpus_hash}

    def fingerprint(self, corpus_hash: str) -> str:
        """SHA-256 of the identity as canonical JSON, in hexadecimal."""
        return sha256(json.dumps(self.identity(corpus_hash), sort_keys=True).encode()).hexdigest()

    def rivals(self) -> list[RivalSpec]:
        """List every setting of every rival."""
        plan = self.evaluation
        settings = {
            "lp": [RivalSpec("lp", step_size=size) for size in plan.lp.step_sizes],
            "gradient": [RivalSpec("gradient", lambda_=x) for x in plan.gradient.lambda_],
            "cmaes": [RivalSpec("cmaes", lambda_=x) for x in plan.cmaes.lambda_],
            "best_of_n": [RivalSpec("best_of_n", step_size=x) for x in plan.best_of_n.step_sizes],
            "slerp": [RivalSpec("slerp", straight=straight) for straight in (False, True)],
            "retrieval": [RivalSpec("retrieval")],
        }
        return [setting for name in plan.rivals for setting in settings[name]]


def load(source: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read the study of a YAML file, or a built-in one by its name.

    An override is `dotted.key=value`, the value in YAML: `search.lambda=[0.1, 1]`.
    Raises `UserError` for whatever is wrong in either, and for a file that asks for the study of
    several corpora.
    """
    studies = load_all(source, overrides)
    if len(studies) > 1:
        names = ", ".join(study.name for study in studies)
        raise UserError(f"{source}: holds the studies of several corpora ({names}), not of one")
    return studies[0]


def load_all(source: str | Path, overrides: Sequence[str] = ()) -> list[StudyConfig]:
    """Read the studies of a YAML file: one, or one for each of its `corpora`.

    `corpora` maps names to the settings that differ; the study of each is named so, and kept in the
    folder that the file's `name` says. Arguments and errors are those of `load`.
    """
    path = _find(source)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    settings = _parse(text, str(path))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f'override "{override}": write dotted.key=value')
        parsed = _parse(value.encode(), f'override "{override}"')
        settings = _replaced(settings, key.strip().split("."), parsed)
    if not isinstance(settings, dict) or "corpora" not in settings:
        return [_checked(settings, str(path))]
    corpora = settings.pop("corpora")
    if not isinstance(corpora, dict) or not corpora:
        raise UserError(f"{path}: corpora: must be a mapping of names to settings")
    for name, own in corpora.items():
        if own is not None and not isinstance(own, dict):
            raise UserError(f"{path}: corpora.{name}: must be a mapping, got {json.dumps(own)}")
    whole = _checked(settings, str(path))
    below = {"results": str(place(whole.execution.results) / whole.name)}
    return [
        _checked(
            _merged(_merged(settings, own or {}), {"name": name, "execution": below}),
            f"{path}: corpora.{name}",
        )
        for name, own in corpora.items()
    ]


def _checked(settings: Any, where: str) -> StudyConfig:
    try:
        # As JSON, since strict validation then still takes lists for tuples and 1 for 1.0.
        return StudyConfig.model_validate_json(json.dumps(settings, allow_nan=False), strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_problem(error)}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: holds what no setting can be: {error}") from None


def _fingerprint_of(folder: AnyPath) -> str:
    try:
        return str(json.loads((folder / "study.json").read_bytes())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"search.warm_start: {folder}: is not the folder of a study") from None


def _merged(settings: Any, own: Any) -> Any:
    """The settings with those of `own` in their places, mapping by mapping."""
    if not isinstance(settings, dict) or not isinstance(own, dict):
        return own
    return settings | {key: _merged(settings.get(key), value) for key, value in own.items()}


def builtin_names() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in _builtin_folder().glob("*.yaml"))


def reference() -> str:
    """Every key with its type, default and meaning, as Markdown."""
    lines = [
        "# Configuration",
        "",
        "A study is one YAML file. Only `name` is required. Unknown keys are refused. Numbers and"
        " words are those of YAML 1.2 (`1e-3` is a number, `on` is a word). Any key can be set from"
        " the command line as `dotted.key=value`.",
        "",
        "A file may ask for the studies of several corpora: `corpora` then maps their names to the"
        " settings in which they differ (`corpora: {jigs: {corpus: {source: jigs.zip}}}`). The"
        " study of each is kept in a folder of its name below that of the file's `name`, where"
        " their verdicts are joined.",
        "",
        "A study's identity is everything but `name`, `core_gate`, `selection` and `execution`,"
        " with the corpus known by its content and not by its path.",
        "",
        *_HEADER,
    ]
    for key, schema, required in _keys():
        if "properties" in schema and "." not in key:
            lines += ["", f"## {key}", "", _text(schema), "", *_HEADER]
        elif "properties" not in schema:
            default = "required" if required else f"`{json.dumps(schema.get('default'))}`"
            lines.append(f"| `{key}` | {_type(schema)} | {default} | {_text(schema)} |")
    return "\n".join(lines) + "\n"


_HEADER = ("| Key | Type | Default | Meaning |", "|---|---|---|---|")


def _builtin_folder() -> Path:
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _find(source: str | Path) -> Path:
    if (path := Path(source)).is_file():
        return path
    if str(source) in builtin_names():
        return _builtin_folder() / f"{source}.yaml"
    names = ", ".join(builtin_names())
    raise UserError(f"{source}: no such file, and no built-in study; those are: {names}")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: PyYAML's own takes 1e-3 for a word and 4:30 for a number."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"null|~|", [*"n~", ""]),
    ("bool", r"true|false", [*"tf"]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


def _parse(text: bytes, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        line = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}: is not YAML{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not YAML: {' '.join(str(error).split())}") from None


def _replaced(settings: Any, keys: list[str], value: Any) -> dict[str, Any]:
    # A new mapping at each level: YAML aliases make two sections one object.
    first, *rest = keys
    level = settings if isinstance(settings, dict) else {}
    return {**level, first: _replaced(level.get(first), rest, value) if rest else value}


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first, more = problems[0], len(problems) - 1
    # The tags of `Searched` are no keys.
    places = [str(place) for place in first["loc"] if place not in ("values", "range")]
    key, message, given = ".".join(places), first["msg"], first["input"]
    match first["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            near = get_close_matches(key, [known for known, _, _ in _keys()], 1)
            problem = f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")
        case "missing":
            problem = f"{key} is required"
        case "value_error":
            text = message.removeprefix("Value error, ")
            problem = f"{key}: {text}" if key else text
        case _:
            must = message.replace("Input should", "must").replace("String should", "must")
            must = must.replace("an object", "a mapping").replace("array", "list")
            shown = "a mapping" if isinstance(given, dict) else json.dumps(given)
            problem = f"{key or 'the file'}: {must}, got {textwrap.shorten(shown, 60)}"
    return problem + (f" (and {more} more)" if more else "")


def _keys() -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every dotted key, sections before what is in them: its JSON schema, and if it is required."""
    root = StudyConfig.model_json_schema()

    def below(schema: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
        for key, value in schema["properties"].items():
            # What a key says of itself goes before what its type says.
            target = root["$defs"][value["$ref"].rsplit("/")[-1]] if "$ref" in value else {}
            merged = {**target, **value}
            yield prefix + key, merged, key in schema.get("required", ())
            if "properties" in merged:
                yield from below(merged, f"{prefix}{key}.")

    return below(root, "")


def _text(schema: dict[str, Any]) -> str:
    # Fields that a section inherits have no text of their own; only readers inherit, from the VAE.
    return " ".join(schema.get("description", "As in `core`.").split())


def _type(schema: dict[str, Any]) -> str:
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(map(_type, choices))
    if "prefixItems" in schema:
        return f"[{', '.join(map(_type, schema['prefixItems']))}]"
    for container, content in (("list of", "items"), ("mapping to", "additionalProperties")):
        if content in schema:
            return f"{container} {_type(schema[content])}"
    if words := schema.get("enum") or [schema[key] for key in ("const",) if key in schema]:
        return " or ".join(f"`{word}`" for word in words)
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]}" for name, sign in signs.items() if name in schema]
    kind = schema.get("type") or schema["$ref"].rsplit("/")[-1].lower()
    return " ".join([kind, ", ".join(limits)]).strip()


if __name__ == "__main__":
    sys.stdout.write(reference())
