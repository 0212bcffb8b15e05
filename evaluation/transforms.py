"""Transforms map pairs to pairs. Fusion is here, all others are in `evaluation.rivals`.

A transform is called with input latents, ascending iteration counts (1 or more) and a generator of
random numbers on the latents' device. It yields a `Step` at each count: the outputs so far and what
they cost. Rows are independent, so latents that are not finite affect no other row, and settings
given per row let many settings share a batch. No transform sees a judge.

Letters in shapes: `B` pairs, `Z` latent dimensions, `S` style dimensions, `K` proposals of a pair,
`P` pairs of a bank.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cf_core.distance import count_edits
from cf_core.fusion import Generator
from cf_core.heard import Heard, choose_by_edits
from cf_core.losses import Pair


@dataclass(frozen=True)
class Step:
    """Outputs after `iteration` iterations, and their cost since the start.

    Calls are counted for each pair; a call with its gradient counts as three (a backward pass costs
    two forward passes). `seconds` is the time of the whole batch, without the caller's own time
    between two steps.
    """

    iteration: int
    outputs: Pair
    classifier_calls: int = 0
    decoder_calls: int = 0
    seconds: float = 0.0
    device: str = "cpu"


class Transform(ABC):
    """Maps pairs to pairs without gradients, and times itself."""

    def __call__(
        self, pair: Pair, counts: Sequence[int], random: torch.Generator
    ) -> Iterator[Step]:
        """Yield a step at each of `counts`. The inputs are not changed."""
        device, seconds = pair[0].device, 0.0
        steps = self._steps(pair, counts, random)
        while True:
            start = time.perf_counter()
            with torch.no_grad():
                step = next(steps, None)
            torch.get_device_module(device).synchronize()
            seconds += time.perf_counter() - start
            if step is None:
                return
            yield replace(step, seconds=seconds, device=device.type)

    @abstractmethod
    def _steps(
        self, pair: Pair, counts: Sequence[int], random: torch.Generator, /
    ) -> Iterator[Step]: ...


@dataclass(frozen=True)
class Fusion(Transform):
    """Iterated fusion: outputs are fed back in with the same style.

    A conditional generator is used at λ = `lambda_`. With `heard`, which needs λ for every
    generator, what is fed back in and what becomes of the outputs is as `Heard.fuse` says.
    """

    generator: Generator
    style: Float[Tensor, "B S"]
    lambda_: float | Float[Tensor, "B"] | None = None
    heard: Heard | None = None
    kinds: Int64[np.ndarray, "B"] | None = None
    """The kind of the bars of each pair; it may be left out where there is only one."""
    chance: Float[Tensor, "D B 2 T"] | None = None
    """What decides what the writer draws (`Heard.draw_chance`); if left out, it is drawn."""

    @property
    def lambdas(self) -> Float[Tensor, "B"] | None:
        """λ of every pair, where there is one."""
        if self.lambda_ is None:
            return None
        own = torch.as_tensor(self.lambda_, dtype=self.style.dtype, device=self.style.device)
        return own.expand(len(self.style))

    def _steps(
        self, pair: Pair, counts: Sequence[int], random: torch.Generator, /
    ) -> Iterator[Step]:
        if self.heard is not None:
            yield from self._hear(self.heard, pair, counts, random)
            return
        done = 0
        kinds = None if self.kinds is None else torch.from_numpy(self.kinds).to(pair[0].device)
        for count in counts:
            more = count - done
            pair = self.generator.iterate(pair, self.style, [more], self.lambda_, kinds)[more]
            done = count
            yield Step(count, pair)

    def _hear(
        self, heard: Heard, pair: Pair, counts: Sequence[int], random: torch.Generator
    ) -> Iterator[Step]:
        lambda_ = self.lambdas
        if lambda_ is None:
            raise ValueError("lambda_: the scheme heard needs λ")
        chance = heard.draw_chance(len(self.style), random) if self.chance is None else self.chance
        outputs = heard.fuse(self.generator, pair, self.style, counts, lambda_, chance, self.kinds)
        for count, after in outputs:
            # The inputs, each proposal, and each draft is decoded; each draft is encoded, too.
            yield Step(count, after, decoder_calls=1 + count + 2 * heard.drafts)


def take_by_edits(
    heard: Heard,
    source: tuple[Pair, Int64[np.ndarray, "B"]],
    outputs: Sequence[Step],
    edits: Sequence[int],
) -> list[Step]:
    """For each number of edits, of each pair the outputs at the λ that suits it.

    `source` holds the inputs and the kinds of their bars, `outputs` those at each λ, the largest
    first. They are chosen as `fuse --edits` does (`choose_by_edits`, with J as the score). The
    `iteration` of a step is the number of edits that was asked for. All λ have to be tried, so
    costs add up.
    """
    inputs, kinds = source[0], torch.from_numpy(source[1]).to(source[0][0].device)
    before = heard.decode(inputs, kinds)
    tried = [heard.decode(step.outputs, kinds) for step in outputs]
    score = torch.stack([heard.rate(tokens, before) for tokens in tried]).cpu().numpy()
    rows = torch.stack([before] * len(tried)).flatten(0, 2), torch.stack(tried).flatten(0, 2)
    changed = count_edits(*rows).view(len(tried), -1, 2).sum(2).cpu().numpy()
    every = torch.arange(len(kinds), device=kinds.device)
    lefts, rights = (torch.stack([step.outputs[half] for step in outputs]) for half in (0, 1))
    costs = {
        name: sum(getattr(step, name) for step in outputs)
        for name in ("classifier_calls", "decoder_calls", "seconds")
    }
    steps = []
    for asked in edits:
        chosen = torch.from_numpy(choose_by_edits(changed, score, asked)).to(kinds.device)
        pair = lefts[chosen, every], rights[chosen, every]
        steps.append(replace(outputs[0], iteration=asked, outputs=pair, **costs))
    return steps


_TOGETHER = 16_384
"""Most pairs that a GPU fuses at one time; its memory limits them."""


@dataclass(frozen=True)
class Given:
    """A fusion, the pairs that it is to be applied to, and its random numbers."""

    fusion: Fusion
    pair: Pair
    random: torch.Generator


def fuse_all(given: Sequence[Given], counts: Sequence[int]) -> Iterator[list[Step]]:
    """Yield the steps of each of these fusions, all of one generator and one scheme, in order.

    A GPU applies them together, since there each kernel costs its launch, however few the pairs. A
    CPU applies one after another.
    """
    if given[0].pair[0].device.type == "cpu":
        yield from (list(each.fusion(each.pair, counts, each.random)) for each in given)
        return
    begun: list[Given] = []
    for each in given:
        if begun and sum(len(one.pair[0]) for one in [*begun, each]) > _TOGETHER:
            yield from _fuse_together(begun, counts)
            begun = []
        begun.append(each)
    yield from _fuse_together(begun, counts)


def _fuse_together(given: Sequence[Given], counts: Sequence[int]) -> list[list[Step]]:
    own = [each.fusion for each in given]
    heard, sizes = own[0].heard, [len(each.style) for each in own]
    lambdas = [each.lambdas for each in own if each.lambdas is not None]
    kinds = [each.kinds for each in own if each.kinds is not None]
    draws = zip(sizes, given, strict=True)
    chances = [heard.draw_chance(size, each.random) for size, each in draws] if heard else []
    whole = Fusion(
        own[0].generator,
        torch.cat([each.style for each in own]),
        torch.cat(lambdas) if lambdas else None,
        heard,
        np.concatenate(kinds) if kinds else None,
        torch.cat(chances, 1) if chances else None,
    )
    pair = tuple(torch.cat([each.pair[half] for each in given]) for half in (0, 1))
    parts: list[list[Step]] = [[] for _ in given]
    for step in whole((pair[0], pair[1]), counts, given[0].random):
        halves = zip(*(half.split(sizes) for half in step.outputs), strict=True)
        for part, outputs, size in zip(parts, halves, sizes, strict=True):
            part.append(replace(step, outputs=outputs, seconds=step.seconds * size / sum(sizes)))
    return parts
