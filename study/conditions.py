"""Conditions on metrics or parameters, such as "z_distance <= 3"."""

import operator
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import polars as pl

_PATTERN = re.compile(
    r"\s*(\w+)\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*", re.ASCII
)

_ALIKE = 0.7
"""How alike names must be for one to be offered in place of another; "nope" is no "copied"."""

_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Condition:
    """A name (of a metric or a parameter), a sign and a number."""

    name: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str, names: Collection[str]) -> "Condition":
        """Read a condition on one of `names`.

        Raises `ValueError`, which says what is wrong, for any other text.
        """
        found = _PATTERN.fullmatch(text)
        if found is None:
            raise ValueError(f'"{text}": a condition must read like "z_distance <= 3.0"')
        check_name(found[1], names)
        return cls(found[1], found[2], float(found[3]))

    def __str__(self) -> str:
        """As it is written in a configuration; equal conditions have equal texts."""
        return f"{self.name} {self.sign} {repr(self.bound).removesuffix('.0')}"

    def holds(self) -> pl.Expr:
        """Whether it holds, as an expression over a column of that name."""
        expression: pl.Expr = _SIGNS[self.sign](pl.col(self.name), self.bound)
        return expression

    def holds_for(self, point: Mapping[str, Any]) -> bool:
        """Whether it holds for values by name; never for one that is absent or a word."""
        value = point.get(self.name)
        return isinstance(value, int | float) and bool(_SIGNS[self.sign](value, self.bound))

    def excess(self, value: float) -> float:
        """By how much a value misses the bound; 0 or less where it does not.

        A bound that is not to be reached is missed by the least there is.
        """
        over = value - self.bound if self.sign.startswith("<") else self.bound - value
        return over if over or self.sign.endswith("=") else sys.float_info.min

    def miss(self) -> pl.Expr:
        """By how much a point misses the condition, relative to the bound.

        It is 0 where the condition holds, and at the bound itself.
        """
        over = pl.col(self.name) - self.bound
        over = over if self.sign.startswith("<") else -over
        return over.clip(lower_bound=0.0) / (abs(self.bound) or 1.0)


def check_name(name: str, names: Collection[str]) -> None:
    """Raise `ValueError`, with the nearest name, where `name` is none of `names`."""
    if name not in names:
        near = get_close_matches(name, names, 1, cutoff=_ALIKE)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise ValueError(f"{name}: no such name; {hint}")


def all_hold(conditions: Sequence[Condition]) -> pl.Expr:
    """Whether all of some conditions hold, where their metrics are columns."""
    return pl.all_horizontal(pl.lit(True), *(condition.holds() for condition in conditions))


def total_miss(conditions: Sequence[Condition]) -> pl.Expr:
    """By how much a point misses some conditions, each relative to its bound; 0 where all hold."""
    return pl.sum_horizontal(pl.lit(0.0), *(condition.miss() for condition in conditions))
