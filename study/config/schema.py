"""What a configuration may hold: every key with its type, default and meaning.

The keys of rivals come from `evaluation.rivals`, those of searched parameters from
`study.parameters`.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic_core import core_schema

from cf_core.errors import ConfigError, RecordsError
from cf_core.files import AnyPath, place
from cf_core.fusion import FusionSettings
from cf_core.melody import MelodyFormat
from cf_core.vae import VAESettings
from evaluation.classifier import ClassifierSettings
from evaluation.frontier import CHOSEN_ON
from evaluation.judge import JudgeSettings
from evaluation.metrics import METRICS, Better
from evaluation.rivals import Rival, Setting, find_rival, hash_source, list_rivals
from study.conditions import Condition, check_name
from study.parameters import PARAMETERS, SETTINGS, Parameter

Number = TypeVar("Number", int, float)


def _ascending(values: tuple[Number, ...]) -> tuple[Number, ...]:
    if len(set(values)) < len(values):
        raise ValueError("no value may be given twice")
    return tuple(sorted(values))


def _lambdas(values: tuple[float | str, ...]) -> tuple[float | str, ...]:
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


@dataclass(frozen=True)
class _On:
    """Makes `Condition` a type of pydantic: text in a file, parsed once, on some names only."""

    names: Mapping[str, Any]

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        write = core_schema.plain_serializer_function_ser_schema(str)
        return core_schema.no_info_plain_validator_function(self._read, serialization=write)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: Any) -> dict[str, Any]:
        return {"type": "string"}

    def _read(self, given: Any) -> Condition:
        if not isinstance(given, str | Condition):
            raise ValueError(f"must be a condition, got {json.dumps(given)}")  # noqa: TRY004
        return Condition.parse(str(given), self.names)


def _to_be_maximised(metric: str) -> str:
    check_name(metric, METRICS)
    if METRICS[metric].better == Better.LOWER:
        raise ValueError(f"{metric}: lower is better, so that it can't be maximised")
    return metric


def _or_word(kinds: str) -> WrapValidator:
    """Tell in one line what a number or a word must be."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"must be {kinds}, got {json.dumps(value)}") from None

    return WrapValidator(check)


Count = Annotated[int, Field(ge=1)]
Lambda = Annotated[
    Annotated[float, Field(ge=0)] | Literal["conditional"],
    _or_word("a number of at least 0, or conditional"),
]
Pack = Annotated[Count | Literal["auto"], _or_word("a whole number of at least 1, or auto")]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
MetricCondition = Annotated[Condition, _On(METRICS)]
ParameterCondition = Annotated[Condition, _On(PARAMETERS)]
Grid = Annotated[tuple[Number, ...], Field(min_length=1), AfterValidator(_ascending)]
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

        Raises `ConfigError` if `source` names an environment variable that is not set.
        """
        if self.source == "builtin":
            return None
        path = os.path.expandvars(self.source)
        if unset := re.search(r"\$(\w+|\{\w+\})", path):
            raise ConfigError(
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


class _SearchedFirst(_Section):
    method: Literal["grid", "random", "quasi_random", "tpe", "nsga2"] = "grid"
    """How configurations are chosen: all combinations of the values; at random; by a scrambled
    Sobol sequence; by Optuna's multivariate TPE or NSGA-II, from the objectives of those before."""
    lambda_: Annotated[
        Annotated[tuple[Lambda, ...], Field(min_length=1), AfterValidator(_lambdas), Tag("values")]
        | Annotated[Range, Tag("range")],
        Discriminator(_searched),
    ] = Field((0.03, 0.3, 3.0, "conditional"), alias="lambda")
    """λ, the weight of similarity against coherency (equation 4). `conditional` is one trial that
    learns all of `fusion.lambda_range` and is read at those of `evaluation.lambda`."""
    style_dim: Searched[Annotated[int, Field(ge=0)]] = (0, 4)
    """`S`, dimensions of the style; 0 is the control without style."""


def _setting(name: str) -> str:
    check_name(name, SETTINGS)
    return name


_LEAST = {"above 0": Field(gt=0), "at least 0": Field(ge=0), "at least 1": Field(ge=1)}


def _searched_field(parameter: Parameter) -> Any:
    """The type and default of a searched setting of fusion."""
    kind: Any = int if parameter.kind == "whole" else float
    limited: Any = Annotated[kind, _LEAST[parameter.least]]
    field: Any = Field(None, description=f"{parameter.about}; null leaves that of `fusion`.")
    return Searched[limited] | None, field  # type: ignore[misc]  # made at run time


if TYPE_CHECKING:

    class _SearchedSettings(_SearchedFirst): ...

else:
    _SearchedSettings = create_model(
        "_SearchedSettings",
        __base__=_SearchedFirst,
        **{name: _searched_field(one) for name, one in SETTINGS.items()},
    )


class Search(_SearchedSettings):
    """The trials: configurations, each with every seed.

    A parameter is given as a list of values or, where the method is no grid, also as a range:
    `{low: 0.001, high: 10, log: true}`. The objectives are the highest `judge` and the least
    `z_distance`, means over seeds, on validation songs.
    """

    when: dict[Annotated[str, AfterValidator(_setting)], ParameterCondition] = {}  # noqa: RUF012
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
    objective_lambda: Positive | None = None
    """λ at which the objectives of conditional trials are taken; null takes the middle one of
    `evaluation.lambda`."""
    constraints: tuple[MetricCondition, ...] = ()
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


class MatchedPlan(_Section):
    """Smallest and largest distance at which methods are compared at matched similarity."""

    z_distance: Interval = (0.03, 8.7)
    """In z-distance (equation 7)."""
    edit_distance: Interval = (0.15, 32.0)
    """In decoded edit distance, tokens of both halves."""


class _Measured(_Section):
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
    rivals: Annotated[tuple[str, ...], AfterValidator(_each_once)] = ("lp",)
    """What fusion is compared with: names of the built-in rivals, whose options the sections below
    hold, or `package.module:Class` for a subclass of `evaluation.rivals.Rival` of your own, whose
    options are in the section of its `name`."""


if TYPE_CHECKING:

    class _RivalSections(_Measured): ...

else:
    _RivalSections = create_model(
        "_RivalSections",
        __base__=_Measured,
        **{
            name: (kind, Field(kind(), description=kind.__doc__.partition("\n")[0]))
            for name, kind in list_rivals().items()
        },
    )

_RESTORING = {"restoring": True}
"""Context in which settings are read back: code of the user's own need not be there."""


class EvaluationPlan(_RivalSections):
    """What is measured of every trial and rival."""

    model_config = ConfigDict(extra="allow")  # sections of the user's own rivals

    matched: MatchedPlan = MatchedPlan()
    """The range of distances of the comparison at matched similarity."""

    @property
    def latent_sources(self) -> tuple[str, ...]:
        """Names of the sources whose latents are kept."""
        scored, chosen_on = tuple(CHOSEN_ON), tuple(CHOSEN_ON.values())
        return {"all": (*scored, *chosen_on), "scored": scored, "none": ()}[self.latents]

    @model_validator(mode="after")
    def _read_own(self, info: ValidationInfo) -> Self:
        """Turn the sections of the user's own rivals into these, and refuse all others."""
        if (sections := self.__pydantic_extra__) is None:
            return self
        unknown, restoring = dict(sections), info.context == _RESTORING
        for name in self.rivals:
            if ":" not in name:
                check_name(name, list_rivals())
                continue
            try:
                kind = find_rival(name)
                options = json.dumps(unknown.pop(kind.name, {}))
                sections[kind.name] = TypeAdapter(kind).validate_json(options, strict=True)
            except (ConfigError, ValidationError) as error:
                if restoring:
                    continue
                raise ValueError(_say_in_one_line(error)) from None
        for key, value in () if restoring else unknown.items():
            raise ValidationError.from_exception_data(
                "EvaluationPlan", [{"type": "extra_forbidden", "loc": (key,), "input": value}]
            )
        return self

    @model_serializer(mode="wrap")
    def _write_own(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        own = {
            name: TypeAdapter(type(rival)).dump_python(rival, mode="json", by_alias=True)
            for name, rival in (self.__pydantic_extra__ or {}).items()
        }
        data: dict[str, Any] = write(self)
        return data | own

    def rival(self, name: str) -> Rival:
        """A rival with its options, by what `rivals` or the tables call it.

        Raises `ConfigError` where the code of a rival of the user's own is not there.
        """
        found: Rival | None = getattr(self, name, None) or getattr(
            self, find_rival(name).name, None
        )
        if found is None:
            raise ConfigError(f"{name}: the study has no such rival")
        return found

    def settings(self, *, known_only: bool = False) -> list[Setting]:
        """List every setting of every rival.

        Raises as `rival` does, or leaves out rivals of the user's own whose code is not there.
        """
        settings = []
        for name in self.rivals:
            try:
                settings += self.rival(name).settings()
            except ConfigError:
                if not known_only:
                    raise
        return settings

    def hash_own(self) -> dict[str, str]:
        """SHA-256 of the source of each rival of the user's own, by `package.module:Class`."""
        return {name: hash_source(find_rival(name)) for name in self.rivals if ":" in name}


class Selection(_Section):
    """Which trial is deployed, decided on validation songs."""

    maximise: Annotated[str, AfterValidator(_to_be_maximised)] = "judge"
    """The metric whose highest value wins."""
    where: tuple[MetricCondition, ...] = Field(("z_distance <= 3",), validate_default=True)
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
        searched = self.search.lambda_
        conditional = not isinstance(searched, Range) and "conditional" in searched
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
        order = list(PARAMETERS)
        for name, condition in search.when.items():
            if search.of(name) is None:
                raise ValueError(f"search.when.{name}: {name} is not searched")
            if order.index(condition.name) >= order.index(name):
                raise ValueError(
                    f'search.when.{name}: "{condition}" must name a parameter before {name}'
                    f" ({', '.join(order[: order.index(name)])})"
                )
        return self

    @model_validator(mode="after")
    def _objectives_are_read(self) -> Self:
        search, evaluation = self.search, self.evaluation
        if search.iteration not in (None, *evaluation.iterations):
            raise ValueError("search.iteration: must be one of evaluation.iterations")
        if search.objective_lambda not in (None, *evaluation.lambda_):
            raise ValueError("search.objective_lambda: must be one of evaluation.lambda")
        least = self.fusion.steps
        if (own := search.of("steps")) is not None:
            least = int(own.low if isinstance(own, Range) else own[0])
        if list(search.rungs) != sorted(set(search.rungs)):
            raise ValueError("search.rungs: must ascend")
        if search.rungs and search.rungs[-1] >= least:
            raise ValueError(f"search.rungs: must be below the {least} steps of training")
        return self

    @classmethod
    def restored(cls, record: Mapping[str, Any]) -> Self:
        """Settings that records belong to, as `study.json` holds them.

        Those outside the identity are defaults, but for the selection, which is recorded too.
        Raises `RecordsError` for settings of another release.
        """
        identity = {key: record["identity"][key] for key in record["identity"].keys() - {"code"}}
        settings = (
            identity
            | {"name": record["name"], "corpus": {}}
            | {key: record[key] for key in ("selection",) if key in record}
        )
        try:
            return cls.model_validate_json(json.dumps(settings), strict=True, context=_RESTORING)
        except ValidationError as error:
            raise RecordsError(
                f"study.json of {record['name']}: holds settings that this release does not know;"
                " read it with the release that wrote it"
            ) from error

    def identity(self, corpus_hash: str) -> dict[str, Any]:
        """Everything that changes results, as JSON values.

        The corpus is known by the hash of its content, an earlier study by its fingerprint, and a
        rival of the user's own by that of its source, not by where they lie. Raises `ConfigError`
        where the earlier study can't be read.
        """
        identity = self.model_dump(
            mode="json", exclude={"name", "corpus", "core_gate", "selection", "execution"}
        )
        if self.search.warm_start is not None:
            identity["search"]["warm_start"] = _fingerprint_of(place(self.search.warm_start))
        code = self.evaluation.hash_own()
        return identity | {"corpus": corpus_hash} | ({"code": code} if code else {})

    def fingerprint(self, corpus_hash: str) -> str:
        """SHA-256 of the identity as canonical JSON, in hexadecimal."""
        return sha256(json.dumps(self.identity(corpus_hash), sort_keys=True).encode()).hexdigest()


def _fingerprint_of(folder: AnyPath) -> str:
    try:
        return str(json.loads((folder / "study.json").read_bytes())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"search.warm_start: {folder}: is not the folder of a study") from None


def _say_in_one_line(error: ConfigError | ValidationError) -> str:
    if isinstance(error, ConfigError):
        return str(error)
    first = error.errors(include_url=False)[0]
    where = ".".join(str(place) for place in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{error.title}: {where + ': ' if where else ''}{message}"
