"""Kinds of bars: how networks know them, and how segments of one kind are drawn.

Letters in shapes: `B` segments, `N` segments to draw from, `T` steps, `K` kinds of bars.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Integer, Shaped
from torch import Tensor

from cf_core.melody import MelodyFormat

_TABLES: dict[tuple[int, torch.device], tuple[np.ndarray, Tensor]] = {}
"""Copies on devices, each beside its table, so that no other table gets the same number."""


def find_kinds(tokens: Integer[Tensor, "B T"], form: MelodyFormat) -> Int64[Tensor, "B"]:
    """Index into `form.kinds` of each segment, which its last mark says."""
    if len(form.kinds) == 1:
        return torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
    return -1 - tokens[:, -1].long()


def split_kinds(
    kinds: Int64[Tensor, "B"], form: MelodyFormat
) -> Iterator[tuple[int, Int64[Tensor, "b"]]]:
    """Yield each kind that occurs, in order, and which rows have it."""
    if len(form.kinds) == 1:  # a device need not be asked
        if len(kinds):
            yield 0, torch.arange(len(kinds), device=kinds.device)
        return
    for kind in kinds.unique().tolist():
        yield kind, (kinds == kind).nonzero().squeeze(1)


def take_kinds(
    kinds: Integer[Tensor, "B"] | Integer[np.ndarray, "B"] | None, count: int, form: MelodyFormat
) -> Int64[Tensor, "B"]:
    """Kinds as they are given, or the only kind. Raises `ValueError` where none of several is."""
    if kinds is None:
        if len(form.kinds) > 1:
            raise ValueError(f"kinds: must say which of {', '.join(form.kinds)} each segment has")
        return torch.zeros(count, dtype=torch.int64)
    return torch.as_tensor(kinds).long()


def look_up(
    table: Shaped[np.ndarray, "K ..."], kinds: Int64[Tensor, "*B"]
) -> Shaped[Tensor, "..."]:
    """What a table of a format has for each of these kinds, on their device."""
    return on_device(table, kinds.device)[kinds]


def on_device(table: Shaped[np.ndarray, "..."], device: torch.device) -> Shaped[Tensor, "..."]:
    """A table of constants on a device. It is copied there once: the host waits for each copy."""
    if device.type == "cpu":
        return torch.from_numpy(table)
    key = id(table), device
    if key not in _TABLES:
        _TABLES[key] = table, torch.from_numpy(table).to(device)
    return _TABLES[key][1]


def encode_kinds(kinds: Int64[Tensor, "*B"], count: int) -> Float[Tensor, "*B K"]:
    """Kinds as inputs of networks: one is 1, or none for the first kind (dummy coding).

    So a network for a single kind has no such input. `count` is the number of kinds.
    """
    return torch.eye(count, device=kinds.device)[:, 1:][kinds]


def decode_kinds(code: Float[Tensor, "B K"]) -> Int64[Tensor, "B"]:
    """The kinds that `encode_kinds` made this of."""
    numbers = torch.arange(1, code.shape[1] + 1, device=code.device)
    return (code * numbers).sum(1).long()


def find_marks(kinds: Int64[Tensor, "B"], form: MelodyFormat) -> Bool[Tensor, "B T"]:
    """Where segments of these kinds have marks."""
    return look_up(form.marks, kinds)


class Groups(NamedTuple):
    """Segments (or pairs) by the kind of their bars, to draw partners of one kind."""

    kinds: Int64[Tensor, "N"]
    order: Int64[Tensor, "N"]
    """Rows, those of one kind together."""
    first: Int64[Tensor, "K"]
    """Where each kind begins in `order`."""
    size: Int64[Tensor, "K"]
    """How many rows each kind has."""

    @classmethod
    def of(cls, kinds: Int64[Tensor, "N"]) -> "Groups":
        """Group rows by these kinds."""
        size = kinds.bincount()
        return cls(kinds, kinds.argsort(stable=True), size.cumsum(0) - size, size)

    def match(self, chance: Float[Tensor, "*B"], like: Int64[Tensor, "*B"]) -> Int64[Tensor, "*B"]:
        """Draw a row of the same kind for each row in `like`, equally likely among all of it.

        `chance`, uniform in 0…1, decides which.
        """
        kind = self.kinds[like]
        size = self.size[kind]
        return self.order[self.first[kind] + (chance * size).long().minimum(size - 1)]
