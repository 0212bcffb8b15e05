"""What is measured of every trial and rival: sections of the configuration, one for each rival."""

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    create_model,
    model_serializer,
    model_validator,
)

from cf_core.errors import ConfigError
from evaluation.frontier import CHOSEN_ON
from evaluation.rivals import Rival, Setting, find_rival, hash_source, list_rivals
from study.conditions import check_name
from study.config.types import Count, Grid, Interval, Positive, Section, check_each_once


class MatchedPlan(Section):
    """Smallest and largest distance at which methods are compared at matched similarity."""

    larger_edit_distance_q90: Interval = (4.0, 36.0)
    """What nine of ten pairs stay within: twice the larger half's edit distance, in tokens."""
    larger_z_distance_q90: Interval = (0.8, 7.5)
    """What nine of ten pairs stay within: twice the larger half's z-distance (equation 7)."""
    edit_distance: Interval = (0.15, 32.0)
    """The poster's way: mean edit distance, tokens of both halves."""
    z_distance: Interval = (0.03, 8.7)
    """The poster's way: mean z-distance (equation 7), of both halves."""


class _Measured(Section):
    pairs: Count = 1024
    """Input pairs of each source that is scored (test songs, prior)."""
    validation_pairs: Count = 512
    """Input pairs of each source on which is chosen (validation songs, prior)."""
    iterations: Grid[Count] = (1, 2, 4, 8, 16)
    """Numbers of applications of the fusion map after which outputs are kept."""
    lambda_: Grid[Positive] = Field((1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), alias="lambda")
    """λ at which conditional trials are read."""
    edits: Grid[Count] = (4, 8, 14, 20)
    """Numbers of edited grid steps, both halves together, for which conditional trials of the first
    seed are also read at another λ for each pair, in the scheme `heard`."""
    styles: Annotated[int, Field(ge=2)] = 4
    """Styles per input in the measure of style diversity."""
    latents: Literal["all", "scored", "none"] = "all"
    """Whose latents are kept as a table, by far the largest: `all` sources, only those that are
    `scored` (test songs, prior), or `none`. No figure and no verdict needs them."""
    rivals: Annotated[tuple[str, ...], AfterValidator(check_each_once)] = ("lp",)
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

RESTORING = {"restoring": True}
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
        unknown, restoring = dict(sections), info.context == RESTORING
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

    @property
    def writes(self) -> bool:
        """Whether a rival needs the study's writer."""
        return any(self.rival(name).writes for name in self.rivals)

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


def _say_in_one_line(error: ConfigError | ValidationError) -> str:
    if isinstance(error, ConfigError):
        return str(error)
    first = error.errors(include_url=False)[0]
    where = ".".join(str(place) for place in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{error.title}: {where + ': ' if where else ''}{message}"
