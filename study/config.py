"""A study as one YAML file, checked: what changes its results, and how it is run, apart.

`python -m study.config > docs/configuration.md` writes the reference of all keys.
"""

import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from cf_core.errors import UserError
from cf_core.fusion import FusionSettings
from cf_core.melody import MelodyFormat
from cf_core.vae import VAESettings
from evaluation.classifier import ClassifierSettings
from evaluation.judge import JudgeSettings

Number = TypeVar("Number", int, float)


CONDITION = r"\s*(\w+)\s*(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)\s*"
"""A condition of the selection: a metric, a sign and a number."""


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


def _interval(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] >= bounds[1]:
        raise ValueError("the first number must be below the second")
    return bounds


def _condition(text: str) -> str:
    if not re.fullmatch(CONDITION, text, re.ASCII):
        raise ValueError(f'"{text}" must read like "z_distance <= 3.0"')
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


class SearchSpace(_Section):
    """The trials: every λ with every style dimension and every seed."""

    lambda_: Annotated[tuple[Weight, ...], Field(min_length=1), AfterValidator(_weights)] = Field(
        (0.03, 0.3, 3.0, "conditional"), alias="lambda"
    )
    """λ, the weight of similarity against coherency (equation 4). `conditional` is one trial that
    learns all of `fusion.lambda_range` and is read at those of `evaluation.lambda`."""
    style_dim: Grid[Annotated[int, Field(ge=0)]] = (0, 4)
    """`S`, dimensions of the style; 0 is the control without style."""
    seeds: Grid[Seed] = (0,)
    """Training seeds."""


class LPPlan(_Section):
    """The latent-search baseline."""

    step_sizes: Grid[Positive] = (0.1, 0.2, 0.4)
    """η, the standard deviation of a proposal."""
    iterations: Grid[Count] = (1, 3, 10, 30, 100, 300, 600, 1000)
    """Numbers of proposals after which outputs are kept."""


class MatchedPlan(_Section):
    """Smallest and largest distance at which methods are compared at matched similarity."""

    z_distance: Interval = (0.03, 8.7)
    """In z-distance (equation 7)."""
    edit_distance: Interval = (0.15, 32.0)
    """In decoded edit distance, tokens of both halves."""


class EvaluationPlan(_Section):
    """What is measured of every trial and baseline."""

    pairs: Count = 1024
    """Input pairs of each source."""
    iterations: Grid[Count] = (1, 2, 4, 8, 16)
    """Numbers of applications of the fusion map after which outputs are kept."""
    lambda_: Grid[Positive] = Field((1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), alias="lambda")
    """λ at which conditional trials are read."""
    styles: Annotated[int, Field(ge=2)] = 4
    """Styles per input in the measure of style diversity."""
    resamples: Count = 200
    """Bootstrap resamples behind an interval."""
    lp: LPPlan = LPPlan()
    """The latent-search baseline."""
    matched: MatchedPlan = MatchedPlan()
    """The range of distances of the comparison at matched similarity."""


class Selection(_Section):
    """Which trial is deployed, decided on validation songs."""

    maximise: Annotated[str, Field(min_length=1)] = "judge"
    """The metric whose highest value wins."""
    where: tuple[Condition, ...] = ("z_distance <= 3.0",)
    """Conditions that a trial must meet, such as `z_distance <= 3.0`."""


class Execution(_Section):
    """How the study is run. Never changes its results, but for the rounding errors of `pack`."""

    workers: Count = 2
    """Processes that train at one time, one thread each."""
    pack: Pack = "auto"
    """Trials that a process trains at once, their weights stacked; `auto` measures how many are
    worth it. Kept in `packs.json` from the first run on, since packs of another size differ by
    rounding errors; give a number to have two runs agree bit for bit."""
    results: Annotated[str, Field(min_length=1)] = "results"
    """Folder under which the study's own folder, named as the study, is kept."""
    address: str | None = None
    """Address of a Ray cluster; null starts one on this machine."""


@dataclass(frozen=True)
class TrialSpec:
    """One configuration with one seed: what is trained into one G and D."""

    lambda_: float | None
    """None for a conditional trial."""
    style_dim: int
    seed: int

    @property
    def method(self) -> str:
        """What the tables call its transform."""
        return "conditional" if self.lambda_ is None else "fusion"

    @property
    def id(self) -> str:
        """Name of the trial, such as "lambda0.03-style4-seed0"; different for different trials."""
        kind = "conditional" if self.lambda_ is None else f"lambda{self.lambda_!r}"
        return f"{kind}-style{self.style_dim}-seed{self.seed}"


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
    search: SearchSpace = SearchSpace()
    """The trials: every λ with every style dimension and every seed."""
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
        if "conditional" in self.search.lambda_ and not low <= read[0] <= read[-1] <= high:
            raise ValueError(
                f"evaluation.lambda: conditional trials are trained for fusion.lambda_range"
                f" {low:g} to {high:g} only, and can't be read outside of it"
            )
        return self

    def identity(self, corpus_hash: str) -> dict[str, Any]:
        """Everything that changes results, as JSON values.

        The corpus is known by the hash of its content, not by where it lies.
        """
        identity = self.model_dump(
            mode="json", exclude={"name", "corpus", "core_gate", "selection", "execution"}
        )
        return identity | {"corpus": corpus_hash}

    def fingerprint(self, corpus_hash: str) -> str:
        """SHA-256 of the identity as canonical JSON, in hexadecimal."""
        return sha256(json.dumps(self.identity(corpus_hash), sort_keys=True).encode()).hexdigest()

    def trials(self) -> list[TrialSpec]:
        """List the grid, seeds varying slowest: a run cut short then has whole frontiers."""
        space = self.search
        return [
            TrialSpec(None if isinstance(lambda_, str) else lambda_, style_dim, seed)
            for seed, style_dim, lambda_ in product(space.seeds, space.style_dim, space.lambda_)
        ]


def load(source: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read the study of a YAML file, or a built-in one by its name.

    An override is `dotted.key=value`, the value in YAML: `search.lambda=[0.1, 1]`.
    Raises `UserError` for whatever is wrong in either.
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
    try:
        # As JSON, since strict validation then still takes lists for tuples and 1 for 1.0.
        return StudyConfig.model_validate_json(json.dumps(settings, allow_nan=False), strict=True)
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(error)}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: holds what no setting can be: {error}") from None


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
    key, message, given = ".".join(map(str, first["loc"])), first["msg"], first["input"]
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
    return " ".join(schema["description"].split())


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "prefixItems" in schema:
        return f"[{', '.join(map(_type, schema['prefixItems']))}]"
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]}" for name, sign in signs.items() if name in schema]
    return " ".join([schema["type"], ", ".join(limits)]).strip()


if __name__ == "__main__":
    sys.stdout.write(reference())
