"""What a search tries: sections of the configuration, one key for each searched parameter."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    create_model,
)

from study.conditions import check_name
from study.config.types import (
    Count,
    Grid,
    Lambda,
    MetricCondition,
    ParameterCondition,
    Positive,
    Range,
    Searched,
    Section,
    Seed,
    check_maximised,
    check_minimised,
    name_kind,
    sort_lambdas,
)
from study.parameters import SETTINGS, Parameter


class _SearchedFirst(Section):
    method: Literal["grid", "random", "quasi_random", "tpe", "nsga2", "gp"] = "grid"
    """How configurations are chosen: all combinations of the values; at random; by a scrambled
    Sobol sequence; from the objectives of those before, by Optuna's multivariate TPE, its NSGA-II,
    or its Gaussian processes."""
    lambda_: Annotated[
        Annotated[
            tuple[Lambda, ...], Field(min_length=1), AfterValidator(sort_lambdas), Tag("values")
        ]
        | Annotated[Range, Tag("range")],
        Discriminator(name_kind),
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
    `{low: 0.001, high: 10, log: true}`. There are two objectives, means over seeds, on validation
    songs: the highest `maximise` and the least `minimise`.
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
    maximise: Annotated[str, AfterValidator(check_maximised)] = "indistinguishable"
    """The metric that is to be high: the first objective."""
    minimise: Annotated[str, AfterValidator(check_minimised)] = "larger_edit_distance"
    """The metric that is to be low: the second objective, a distance to the inputs."""
    region: tuple[MetricCondition, ...] = ()
    """Bounds of the objectives within which points are of interest, such as
    `larger_edit_distance <= 12`. The hypervolume that a search reports is that within; without
    bounds, that above 0 and up to the farthest configuration. Not part of the identity."""
    iteration: Count | None = None
    """Iteration count at which the objectives are taken; null takes the middle one of
    `evaluation.iterations`."""
    objective_lambda: Positive | None = None
    """λ at which the objectives of conditional trials are taken; null takes the middle one of
    `evaluation.lambda`."""
    constraints: tuple[MetricCondition, ...] = ()
    """Conditions on metrics, such as `style_diversity >= 1`, taken as the objectives are: TPE,
    NSGA-II and Gaussian processes are to meet them, and at rungs points that miss one do not count.
    """
    first: tuple[dict[str, float | str], ...] = ()
    """Configurations to try before all others, such as `{lambda: 0.1, style_dim: 4}`."""
    warm_start: str | None = None
    """Folder of an earlier study with the same objectives, core, judge and evaluation (in the
    scheme `heard` with the same writer, too), whose outcomes TPE, NSGA-II and Gaussian processes
    learn from as well."""
    rungs: tuple[Count, ...] = ()
    """Training steps after which the weakest configurations of a batch are stopped (synchronous
    successive halving): those whose points fall furthest short of the front of all others there."""
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the configurations that goes on after a rung."""

    @property
    def objectives(self) -> tuple[str, str]:
        """The metric that is maximised, then the one that is minimised."""
        return self.maximise, self.minimise

    def of(self, name: str) -> "tuple[float | str, ...] | Range | None":
        """Values or range of one of `PARAMETERS`; None where it is not searched."""
        found: tuple[float | str, ...] | Range | None
        found = getattr(self, "lambda_" if name == "lambda" else name)
        return found


NOT_FOR_GRIDS = ("configurations", "batch", "first", "warm_start")
"""Settings of a search that takes what it tries from no list."""
