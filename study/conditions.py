"""Conditions in words of the tables, such as "z_distance <= 3.0"."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from cf_core.errors import UserError

_PATTERN = r"\s*(\w+)\s*(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)\s*"

_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Condition(NamedTuple):
    """A metric (or a parameter), a sign and a number."""

    metric: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read a condition. Raises `UserError` for what is none."""
        found = re.fullmatch(_PATTERN, text, re.ASCII)
        if found is None:
            raise UserError(f'"{text}": a condition must read like "z_distance <= 3.0"')
        return cls(found[1], found[2], float(found[3]))

    def holds(self) -> pl.Expr:
        """Whether it holds, where the metric is a column."""
        expression: pl.Expr = _SIGNS[self.sign](pl.col(self.metric), self.bound)
        return expression

    def holds_for(self, point: Mapping[str, Any]) -> bool:
        """Whether it holds for values by name; never for one that is absent or a word."""
        value = point.get(self.metric)
        return isinstance(value, int | float) and bool(_SIGNS[self.sign](value, self.bound))

    def excess(self, value: float) -> float:
        """By how much a value misses the bound; 0 or less where it does not."""
        return value - self.bound if self.sign.startswith("<") else self.bound - value

    def miss(self) -> pl.Expr:
        """By how much a point misses the condition, relative to the bound; 0 where it holds."""
        over = pl.col(self.metric) - self.bound
        over = over if self.sign.startswith("<") else -over
        return over.clip(lower_bound=0.0) / (abs(self.bound) or 1.0)


def all_hold(conditions: Sequence[Condition]) -> pl.Expr:
    """Whether all of some conditions hold, where their metrics are columns."""
    return pl.all_horizontal(pl.lit(True), *(condition.holds() for condition in conditions))


def total_miss(conditions: Sequence[Condition]) -> pl.Expr:
    """By how much a point misses some conditions, each relative to its bound; 0 where all hold."""
    return pl.sum_horizontal(pl.lit(0.0), *(condition.miss() for condition in conditions))
