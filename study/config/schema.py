"""What a configuration may hold: every key with its type, default and meaning.

The keys of rivals come from `evaluation.rivals`, those of searched parameters from
`study.parameters`.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from cf_core.continuation import ContinuationSettings
from cf_core.errors import ConfigError, CoreGateError, RecordsError
from cf_core.files import AnyPath, place
from cf_core.fusion import FusionSettings
from cf_core.melody import MelodyFormat
from cf_core.vae import VAESettings
from cf_core.writer import WriterSettings
from evaluation.classifier import ClassifierSettings
from evaluation.judge import JudgeSettings
from study.config.evaluation import RESTORING, EvaluationPlan
from study.config.search import NOT_FOR_GRIDS, Search
from study.config.types import (
    Count,
    MetricCondition,
    Pack,
    Positive,
    Range,
    Section,
    Seed,
    Share,
    check_maximised,
)
from study.parameters import PARAMETERS, SETTINGS


class CorpusSettings(Section):
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


class CoreGate(Section):
    """The least that the core must reach on validation songs before any trial is trained.

    With several meters, it must reach it in each.
    """

    token_accuracy: Share = 0.97
    """Share of grid steps decoded right."""
    onset_pitch_recall: Share = 0.93
    """Share of true onsets that come back at their step with their pitch."""
    exact_segments: Share = 0.6
    """Share of segments decoded without an error."""
    valid_prior: Share = 0.98
    """Share of prior samples that decode to a valid melody."""

    def check(self, report: Mapping[str, Any]) -> None:
        """Raise `CoreGateError` for the first limit that a core misses.

        `report` holds figures by the names of the limits: under "validation" over all songs, under
        "meters" in each meter, if there are several, and under "prior" of prior samples.
        """
        songs = {"validation songs": report["validation"]}
        songs |= {f"validation songs in {meter}": own for meter, own in report["meters"].items()}
        for name, least in self.model_dump().items():
            measured = {"prior samples": report["prior"]} if name in report["prior"] else songs
            for where, reached in measured.items():
                if reached[name] < least:
                    raise CoreGateError(
                        f"the core reaches {name} {reached[name]:.3f} on {where},"
                        f" {least - reached[name]:.3f} below core_gate.{name} {least}; lower the"
                        " gate, or train longer (core.steps) in a study of another name"
                    )


class Selection(Section):
    """Which trial is deployed, decided on validation songs."""

    maximise: Annotated[str, AfterValidator(check_maximised)] = "indistinguishable"
    """The metric whose highest value wins."""
    where: tuple[MetricCondition, ...] = ()
    """Conditions that a trial must meet, such as `edit_distance <= 12`."""


class Resources(Section):
    """What one worker needs."""

    cpu: Annotated[float, Field(ge=0)] = 1.0
    """CPUs."""
    gpu: Annotated[float, Field(ge=0)] = 0.0
    """GPUs; 0.5 lets two workers share one."""


class StageResources(Section):
    """What the workers of each stage need, as Ray counts it."""

    networks: Resources = Resources()
    """Those that train core, models of notes, classifiers and judges, on a GPU where they have one.
    """
    trials: Resources = Resources()
    """Those that train packs of trials and evaluate them; on a GPU where they have one."""
    rivals: Resources = Resources()
    """Those that run rivals and evaluate them; on a GPU where they have one, and then they also
    record the references."""


class Execution(Section):
    """How the study is run."""

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
    tf32: bool = False
    """Whether GPUs may multiply matrices with 10 bits of each factor's fraction in place of 23
    (TF32). The table `trials` says so beside the GPU's name."""
    trial_seconds: Positive | None = None
    """Longest that a trial may take, from its start to its records; what takes longer is stopped
    and recorded as failed. Null sets no limit."""
    memory_gb: Positive | None = None
    """Most memory of a worker, in 10⁹ bytes, above which what it does fails; null sets no limit."""


class StudyConfig(Section):
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
    continuation: ContinuationSettings = ContinuationSettings()
    """The autoregressive models of notes of the judges: one rates pairs, as their second opinion,
    and another, trained with other random draws, draws continuations as hard negatives."""
    writer: WriterSettings = WriterSettings()
    """The models of notes that write, trained only where a rival or the scheme needs them."""
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
    errors of `pack`, `tf32` and the device. GPUs also draw other random numbers than CPUs."""

    @field_validator("melody", mode="before")
    @classmethod
    def _common_meters_need_no_list(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        named = {"meters": ["common"]} if value.get("meters") == "common" else {}
        # What a validator of this kind returns is no longer YAML, whose lists are tuples here.
        return {
            name: tuple(each) if isinstance(each, list) else each
            for name, each in {**value, **named}.items()
        }

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
        for name in NOT_FOR_GRIDS if search.method == "grid" else ():
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
    def _searched_values_are_settings(self) -> Self:
        for name in SETTINGS:
            searched = self.search.of(name)
            ends = (searched.low, searched.high) if isinstance(searched, Range) else searched or ()
            for value in ends:
                kind = int if PARAMETERS[name].kind == "whole" else float
                setting: dict[str, Any] = {name: kind(value)}
                try:
                    replace(self.fusion, **setting)
                except ValueError as error:
                    raise ValueError(f"search.{error}") from None
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

    @model_validator(mode="after")
    def _region_bounds_objectives(self) -> Self:
        search = self.search
        signs = {search.maximise: ">", search.minimise: "<"}
        for condition in search.region:
            if condition.sign[0] != signs.pop(condition.name, None):
                raise ValueError(
                    f'search.region: "{condition}" is no bound of an objective; there may be one'
                    f' "{search.maximise} >= …" and one "{search.minimise} <= …"'
                )
        return self

    @property
    def writes(self) -> bool:
        """Whether the scheme or a rival needs the writer."""
        return self.fusion.scheme == "heard" or self.evaluation.writes

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
            return cls.model_validate_json(json.dumps(settings), strict=True, context=RESTORING)
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
        left_out = dict.fromkeys(("name", "corpus", "core_gate", "selection", "execution"), True)
        identity = self.model_dump(mode="json", exclude={**left_out, "search": {"region"}})
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
