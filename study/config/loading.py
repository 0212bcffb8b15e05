"""Reading configurations from YAML files, with errors that say which key is wrong."""

import json
import re
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cf_core.errors import ConfigError
from cf_core.files import place
from study.config.reference import list_keys
from study.config.schema import StudyConfig


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read the study of a YAML file, or a built-in one by its name.

    An override is `dotted.key=value`, the value in YAML:

        >>> config = load_config("quickstart", ["search.seeds=[0, 1]", "name=mine"])
        >>> config.name, config.search.seeds
        ('mine', (0, 1))

    Raises `ConfigError` for whatever is wrong in either, and for a file that asks for the study of
    several corpora.
    """
    studies = load_configs(source, overrides)
    if len(studies) > 1:
        names = ", ".join(study.name for study in studies)
        raise ConfigError(f"{source}: holds the studies of several corpora ({names}), not of one")
    return studies[0]


def load_configs(source: str | Path, overrides: Sequence[str] = ()) -> list[StudyConfig]:
    """Read the studies of a YAML file: one, or one for each of its `corpora`.

    `corpora` maps names to the settings that differ; the study of each is named so, and kept in the
    folder that the file's `name` says. Arguments and errors are those of `load_config`.
    """
    path = _find(source)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    settings = _parse(text, str(path))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f'override "{override}": write dotted.key=value')
        parsed = _parse(value.encode(), f'override "{override}"')
        settings = _replace(settings, key.strip().split("."), parsed)
    if not isinstance(settings, dict) or "corpora" not in settings:
        return [_check(settings, str(path))]
    corpora = settings.pop("corpora")
    if not isinstance(corpora, dict) or not corpora:
        raise ConfigError(f"{path}: corpora: must be a mapping of names to settings")
    for name, own in corpora.items():
        if own is not None and not isinstance(own, dict):
            raise ConfigError(f"{path}: corpora.{name}: must be a mapping, got {json.dumps(own)}")
    whole = _check(settings, str(path))
    below = {"results": str(place(whole.execution.results) / whole.name)}
    return [
        _check(
            _merge(_merge(settings, own or {}), {"name": name, "execution": below}),
            f"{path}: corpora.{name}",
        )
        for name, own in corpora.items()
    ]


def _check(settings: Any, where: str) -> StudyConfig:
    try:
        # As JSON, since strict validation then still takes lists for tuples and 1 for 1.0.
        return StudyConfig.model_validate_json(json.dumps(settings, allow_nan=False), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_problem(error)}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: holds what no setting can be: {error}") from None


def _merge(settings: Any, own: Any) -> Any:
    """The settings with those of `own` in their places, mapping by mapping."""
    if not isinstance(settings, dict) or not isinstance(own, dict):
        return own
    return settings | {key: _merge(settings.get(key), value) for key, value in own.items()}


def list_builtin() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in _find_builtin_folder().glob("*.yaml"))


def _find_builtin_folder() -> Path:
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _find(source: str | Path) -> Path:
    if (path := Path(source)).is_file():
        return path
    if str(source) in list_builtin():
        return _find_builtin_folder() / f"{source}.yaml"
    names = ", ".join(list_builtin())
    raise ConfigError(f"{source}: no such file, and no built-in study; those are: {names}")


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
        raise ConfigError(f"{where}: is not YAML{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is not YAML: {' '.join(str(error).split())}") from None


def _replace(settings: Any, keys: list[str], value: Any) -> dict[str, Any]:
    # A new mapping at each level: YAML aliases make two sections one object.
    first, *rest = keys
    level = settings if isinstance(settings, dict) else {}
    return {**level, first: _replace(level.get(first), rest, value) if rest else value}


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first, more = problems[0], len(problems) - 1
    # The tags of `Searched` are no keys.
    places = [str(place) for place in first["loc"] if place not in ("values", "range")]
    key, message, given = ".".join(places), first["msg"], first["input"]
    match first["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            near = get_close_matches(key, [known for known, _, _ in list_keys()], 1)
            problem = f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")
        case "missing":
            problem = f"{key} is required"
        case "value_error":
            text = message.removeprefix("Value error, ")
            problem = f"{key}: {text}" if key else text
        case _:
            must = re.sub(r"^(Input|String|List|Tuple) should", "must", message)
            must = must.partition(" after validation")[0]
            must = must.replace("an object", "a mapping").replace("array", "list")
            shown = "a mapping" if isinstance(given, dict) else json.dumps(given)
            problem = f"{key or 'the file'}: {must}, got {textwrap.shorten(shown, 60)}"
    return problem + (f" (and {more} more)" if more else "")
