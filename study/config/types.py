"""Types of settings that several sections share: checked numbers, lists, ranges, conditions."""

import ast
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from textwrap import dedent
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import core_schema

from evaluation.metrics import METRICS, Better
from study.conditions import Condition, check_name
from study.parameters import PARAMETERS

Number = TypeVar("Number", int, float)


def sort_ascending(values: tuple[Number, ...]) -> tuple[Number, ...]:
    """Sort numbers; `ValueError` where one is given twice."""
    if len(set(values)) < len(values):
        raise ValueError("no value may be given twice")
    return tuple(sorted(values))


def sort_lambdas(values: tuple[float | str, ...]) -> tuple[float | str, ...]:
    """Sort λ, with `conditional` last; `ValueError` where one is given twice."""
    numbers = sort_ascending(tuple(value for value in values if not isinstance(value, str)))
    words = tuple(value for value in values if isinstance(value, str))
    if len(words) > 1:
        raise ValueError("no value may be given twice")
    return numbers + words


def check_each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    """Raise `ValueError` where a name is given twice."""
    if len(set(names)) < len(names):
        raise ValueError("no name may be given twice")
    return names


def check_interval(bounds: tuple[float, float]) -> tuple[float, float]:
    """Raise `ValueError` unless the first number is below the second."""
    if bounds[0] >= bounds[1]:
        raise ValueError("the first number must be below the second")
    return bounds


def name_kind(given: Any) -> str:
    """Name the kind of a searched parameter: `range` or `values`."""
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


def check_maximised(metric: str) -> str:
    """Raise `ValueError` for a metric that there is not, or of which lower is better."""
    check_name(metric, METRICS)
    if METRICS[metric].better == Better.LOWER:
        raise ValueError(f"{metric}: lower is better, so that it can't be maximised")
    return metric


def check_minimised(metric: str) -> str:
    """Raise `ValueError` for a metric that there is not, or of which lower is not better."""
    check_name(metric, METRICS)
    if METRICS[metric].better != Better.LOWER:
        raise ValueError(f"{metric}: lower is not better, so that it can't be minimised")
    return metric


def or_word(kinds: str) -> WrapValidator:
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
    or_word("a number of at least 0, or conditional"),
]
Pack = Annotated[Count | Literal["auto"], or_word("a whole number of at least 1, or auto")]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
MetricCondition = Annotated[Condition, _On(METRICS)]
ParameterCondition = Annotated[Condition, _On(PARAMETERS)]
Grid = Annotated[tuple[Number, ...], Field(min_length=1), AfterValidator(sort_ascending)]
Interval = Annotated[tuple[Positive, Positive], AfterValidator(check_interval)]


class Section(BaseModel):
    """A group of settings: frozen, without unknown keys, explained by its attribute docstrings."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        serialize_by_alias=True,
        defer_build=True,  # a worker is handed checked settings, and checks none
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core))
        for name, meaning in _read_meanings(cls).items():
            key = cls.model_fields[name].alias or name
            schema["properties"][key].setdefault("description", meaning)
        return schema


def _read_meanings(section: type[Section]) -> dict[str, str]:
    """Read the docstrings under the attributes of a section.

    Pydantic can (`use_attribute_docstrings`), but does so wherever the classes are made: in each
    process that starts, where it takes half a second. Only the reference page needs them.
    """
    found = {}
    for kind in section.__mro__[: section.__mro__.index(Section)][::-1]:
        body = ast.parse(dedent(inspect.getsource(kind))).body[0]
        assert isinstance(body, ast.ClassDef)  # noqa: S101
        for key, below in pairwise(body.body):
            match key, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(meaning))):
                    found[name] = inspect.cleandoc(meaning)
    return found


class Range(Section):
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


Values = Annotated[tuple[Number, ...], Field(min_length=1), AfterValidator(sort_ascending)]
Searched = Annotated[
    Annotated[Values[Number], Tag("values")] | Annotated[Range, Tag("range")],
    Discriminator(name_kind),
]
