"""Interpolation between the two halves."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from evaluation.rivals.base import Batch, Look, Rival, Setting
from evaluation.transforms import Step


@dataclass(frozen=True)
class Slerp(Rival):
    """The halves move towards each other, on the sphere or straight.

    After k of n steps each half is k/(2n) of the way to the other input: on the great circle
    (slerp; White 2016), or straight.
    """

    name = "slerp"
    look = Look("slerp", "#009E73", "+", "-.")
    limits = "it ends where both halves are equal"
    together = False

    iterations: tuple[int, ...] = tuple(range(1, 21))
    """Numbers of steps after which outputs are kept. After the largest number the halves meet."""

    def settings(self) -> list[Setting]:
        """List two settings: on the sphere, and straight."""
        return [Setting(self.name, (("straight", straight),)) for straight in (False, True)]

    def steps(self, batch: Batch, /) -> Iterator[Step]:
        """As `Rival.steps` says."""
        left, right = batch.pair
        straight = batch.own["straight"][:, None] > 0
        for count in batch.counts:
            share = count / (2 * max(self.iterations))
            moved = [
                torch.where(straight, torch.lerp(one, other, share), _slerp(one, other, share))
                for one, other in ((left, right), (right, left))
            ]
            yield Step(count, (moved[0], moved[1]))


def _slerp(
    start: Float[Tensor, "B Z"], end: Float[Tensor, "B Z"], share: float
) -> Float[Tensor, "B Z"]:
    """Go `share` of the way on the great circle, or straight where the circle is not unique."""
    unit_start, unit_end = (functional.normalize(z, dim=1) for z in (start, end))
    # The angle is computed from its tangent, since the cosine of a small angle is imprecise.
    apart, together = (unit_end - unit_start).norm(dim=1), (unit_end + unit_start).norm(dim=1)
    angle = 2 * torch.atan2(apart, together)[:, None]
    circle = (((1 - share) * angle).sin() * start + (share * angle).sin() * end) / angle.sin()
    lengths = start.norm(dim=1, keepdim=True) * end.norm(dim=1, keepdim=True)
    unique = (angle.sin() > 1e-4) & (lengths > 0)
    return torch.where(unique, circle, torch.lerp(start, end, share))
