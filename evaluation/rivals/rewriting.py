"""Notes drawn anew from models of notes, near those that are there."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from evaluation.rivals.base import Batch, Look, Rival, Setting
from evaluation.transforms import Step


@dataclass(frozen=True)
class Rewriting(Rival):
    """The decoded notes of both halves are drawn anew from models of notes (`cf_core.writer`).

    Every token that changes has a price. A high one leaves all notes that are not very unlikely
    beside the other half; at a low one both halves are replaced. A half with a new token is encoded
    to its posterior mean, any other stays as it is. More iterations than one change nothing. The
    judges hold a model of notes of the same class and may favour this rival; `indistinguishable`
    holds none.
    """

    name = "rewriting"
    look = Look("rewriting", "#117733", "P", (0.0, (6.0, 2.0)))
    writes = True

    prices: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0)
    """Prices of a changed token, in nats."""

    def settings(self) -> list[Setting]:
        """List one setting for each price."""
        return [Setting(self.name, (("price", price),)) for price in self.prices]

    def steps(self, batch: Batch, /) -> Iterator[Step]:
        """As `Rival.steps` says. Raises `ValueError` where the tools have no writer."""
        core, writer = batch.tools.core, batch.tools.writer
        if writer is None:
            raise ValueError("tools.writer: rewriting needs one")
        price = batch.own["price"][:, None].expand(-1, 2)
        shape = len(price), 2, core.form.steps
        chance = torch.rand(shape, generator=batch.random, device=price.device)
        left, right = (core.decode_notes(half, batch.kinds) for half in batch.pair)
        outputs = writer.write(core, batch.pair, (left, right), price, chance)
        for count in batch.counts:
            yield Step(count, outputs, decoder_calls=2)
