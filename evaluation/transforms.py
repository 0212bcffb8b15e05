"""Everything that maps pairs to pairs: fusion, and what it is compared with.

A transform is called with input latents, ascending iteration counts (1 or more) and a generator of
random numbers on the latents' device. It yields a `Step` at each count: the outputs so far and what
they cost. Rows never look at each other, so that one whose latents are not finite stays alone with
it, and settings given per row let many settings share a batch. None of them sees a judge.

Letters in shapes: `B` pairs, `Z` latent dimensions, `S` style dimensions, `K` proposals of a pair,
`P` pairs of a bank.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from cf_core.fusion import Generator
from cf_core.losses import Pair, distance, positive
from evaluation.classifier import SearchClassifier

if TYPE_CHECKING:
    from cmaes import SepCMA

DIFFERENCES = 2**23
"""Numbers of a temporary of retrieval, at most (unless a single pair needs more): 32 MiB."""


@dataclass(frozen=True)
class Step:
    """Outputs after `iteration` iterations, and what they took since the start.

    Calls are those for each pair; a gradient counts as three (a backward pass costs two forward
    passes). `seconds` are those of the whole batch, without what the caller did between two steps.
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
        """A step at each of `counts`. The inputs are left as they are."""
        device, seconds = pair[0].device, 0.0
        steps = self._steps(pair, counts, random)
        while True:
            start = time.perf_counter()
            with torch.no_grad():
                step = next(steps, None)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds += time.perf_counter() - start
            if step is None:
                return
            yield replace(step, seconds=seconds, device=device.type)

    @abstractmethod
    def _steps(
        self, pair: Pair, counts: Sequence[int], random: torch.Generator, /
    ) -> Iterator[Step]: ...


@dataclass(frozen=True)
class Identity(Transform):
    """The inputs themselves, as iteration 0, whatever the counts."""

    def _steps(
        self, pair: Pair, _counts: Sequence[int], _random: torch.Generator, /
    ) -> Iterator[Step]:
        yield Step(0, pair)


@dataclass(frozen=True)
class Fusion(Transform):
    """Iterated fusion: outputs fed back in with the same style.

    A conditional generator is read at λ = `weight`.
    """

    generator: Generator
    style: Float[Tensor, "B S"]
    weight: float | None = None

    def _steps(
        self, pair: Pair, counts: Sequence[int], _random: torch.Generator, /
    ) -> Iterator[Step]:
        done = 0
        for count in counts:
            more = count - done
            pair = self.generator.iterate(pair, self.style, [more], self.weight)[more]
            done = count
            yield Step(count, pair)


@dataclass(frozen=True)
class LatentSearch(Transform):
    """LP: iterated random search for a higher output of the search classifier.

    Each iteration proposes `z + η ε` `proposals` times, with η the row's `step_size` and
    `ε ~ N(0, 1)` over both halves, times `scale` (σ̄) where that is given. The best of the
    proposals is kept where the classifier rises.
    """

    classifier: SearchClassifier
    step_size: Float[Tensor, "B"]
    proposals: int = 1
    scale: Float[Tensor, "Z"] | None = None

    def _steps(
        self, pair: Pair, counts: Sequence[int], random: torch.Generator, /
    ) -> Iterator[Step]:
        start = torch.cat(pair, 1)
        scale = start.new_ones(start.shape[1]) if self.scale is None else self.scale.repeat(2)
        spread = torch.outer(self.step_size, scale)
        best = start.clone()
        return _random_search(self.classifier, best, best, spread, self.proposals, counts, random)


@dataclass(frozen=True)
class BestOfN(Transform):
    """The best by the classifier of the input and of N draws `z + η ε` around it; iteration = N.

    η is the row's `step_size`, and `ε ~ N(0, 1)`.
    """

    classifier: SearchClassifier
    step_size: Float[Tensor, "B"]

    def _steps(
        self, pair: Pair, counts: Sequence[int], random: torch.Generator, /
    ) -> Iterator[Step]:
        start = torch.cat(pair, 1)
        spread = self.step_size[:, None].expand_as(start)
        return _random_search(self.classifier, start.clone(), start, spread, 1, counts, random)


@dataclass(frozen=True)
class _Penalised(Transform):
    """What minimises `-log C(z') + λ L_dist(z, z')` for each row.

    C is the search classifier, λ the row's `weight`, and L_dist equation 7 to the input.
    """

    classifier: SearchClassifier
    sigma_bar: Float[Tensor, "Z"]
    weight: Float[Tensor, "B"]

    def _objective(
        self, before: Pair, after: Pair, weight: Float[Tensor, "B"]
    ) -> Float[Tensor, "B"]:
        realism = positive(self.classifier(after))
        return realism + weight * distance(before, after, self.sigma_bar)


@dataclass(frozen=True)
class GradientSearch(_Penalised):
    """Descent with Adam from the input, as in Latent Constraints (Engel et al. 2018).

    Its outputs are where it stands, not the best it has seen.
    """

    learning_rate: float

    def _steps(
        self, pair: Pair, counts: Sequence[int], _random: torch.Generator, /
    ) -> Iterator[Step]:
        z = torch.cat(pair, 1).requires_grad_()
        optimiser = torch.optim.Adam([z], self.learning_rate)  # elementwise: no row sees another
        for count in range(1, counts[-1] + 1):
            with torch.enable_grad():
                total = self._objective(pair, _halves(z), self.weight).sum()
            (z.grad,) = torch.autograd.grad(total, z)
            optimiser.step()
            if count in counts:
                yield Step(count, _halves(z.detach().clone()), 3 * count)


@dataclass(frozen=True)
class CMAES(_Penalised):
    """Separable CMA-ES (Ros & Hansen 2008) from the input; iteration = generations.

    Each row has its own optimiser, of initial standard deviation `step_size`. The output is the
    best of the input and all it asked for. One that says that it is over (converged, or diverged)
    stays as it is.
    """

    step_size: float

    def _steps(
        self, pair: Pair, counts: Sequence[int], random: torch.Generator, /
    ) -> Iterator[Step]:
        best, score = torch.cat(pair, 1), -self._objective(pair, pair, self.weight)
        running = self._optimisers(best, random)
        population = running[0].population_size
        inputs = _halves(best.repeat_interleave(population, 0))
        weight = self.weight.repeat_interleave(population)
        asked = np.repeat(best.cpu().numpy()[:, None], population, 1).astype(np.float64)
        for count in range(1, counts[-1] + 1):
            running = {row: own for row, own in running.items() if not own.should_stop()}
            for row, own in running.items():
                asked[row] = [own.ask() for _ in range(population)]
            z = torch.from_numpy(asked).to(best)
            values = self._objective(inputs, _halves(z.flatten(0, 1)), weight).view(z.shape[:2])
            told = values.tolist()
            for row, own in running.items():
                own.tell(list(zip(asked[row], told[row], strict=True)))
            _keep(best, score, z.transpose(0, 1), -values.T)
            if count in counts:
                yield Step(count, _halves(best.clone()), 1 + population * count)

    def _optimisers(self, z: Float[Tensor, "B Z2"], random: torch.Generator) -> "dict[int, SepCMA]":
        """One for each row. That of a row that is not finite starts at 0, and changes nothing."""
        from cmaes import SepCMA  # noqa: PLC0415  the other transforms need PyTorch alone

        means = z.nan_to_num(0.0, 0.0, 0.0).cpu().numpy().astype(np.float64)
        seeds = torch.randint(2**31, (len(z),), generator=random, device=z.device).tolist()
        return {
            row: SepCMA(mean, self.step_size, seed=seed)
            for row, (mean, seed) in enumerate(zip(means, seeds, strict=True))
        }


@dataclass(frozen=True)
class Interpolation(Transform):
    """The halves move towards each other, to meet after `steps` steps.

    After k of them each is k/(2 `steps`) of the way to the other's input: on the great circle
    (slerp; White 2016) where `spherical`, else straight.
    """

    steps: int
    spherical: bool

    def _steps(
        self, pair: Pair, counts: Sequence[int], _random: torch.Generator, /
    ) -> Iterator[Step]:
        left, right = pair
        between = _slerp if self.spherical else torch.lerp
        for count in counts:
            share = count / (2 * self.steps)
            yield Step(count, (between(left, right, share), between(right, left, share)))


@dataclass(frozen=True)
class Retrieval(Transform):
    """Of the k real pairs nearest in equation 7, the one that the classifier rates highest.

    iteration = k, or the size of the bank where that is smaller.
    """

    classifier: SearchClassifier
    bank: Pair
    sigma_bar: Float[Tensor, "Z"]

    def _steps(
        self, pair: Pair, counts: Sequence[int], _random: torch.Generator, /
    ) -> Iterator[Step]:
        bank, (left, right) = torch.cat(self.bank, 1), self.bank
        nearest = self._nearest(pair, min(counts[-1], len(left)))
        ratings = self.classifier((left, right))[nearest]
        for count in counts:
            best = ratings[:, :count].argmax(1, keepdim=True)
            chosen = nearest.gather(1, best).squeeze(1)
            yield Step(count, _halves(bank[chosen]), min(count, len(bank)))

    def _nearest(self, pair: Pair, count: int) -> Int64[Tensor, "B K"]:
        """Rows of the bank that are nearest to each pair, the nearest first."""
        rows = max(1, DIFFERENCES // self.bank[0].numel())
        nearest = []
        for left, right in zip(*(half.split(rows) for half in pair), strict=True):
            shape = len(left), *self.bank[0].shape
            before = left[:, None].expand(shape), right[:, None].expand(shape)
            after = self.bank[0].expand(shape), self.bank[1].expand(shape)
            distances = distance(before, after, self.sigma_bar)
            nearest.append(distances.topk(count, largest=False).indices)
        return torch.cat(nearest)


def _random_search(
    classifier: SearchClassifier,
    best: Float[Tensor, "B Z2"],
    centre: Float[Tensor, "B Z2"],
    spread: Float[Tensor, "B Z2"],
    proposals: int,
    counts: Sequence[int],
    random: torch.Generator,
) -> Iterator[Step]:
    """Propose around `centre` and keep in `best`, which may be the same tensor."""
    score, rate = classifier(_halves(best)), classifier.scorer(proposals * len(best))
    proposed = best.new_empty(proposals, *best.shape)
    for count in range(1, counts[-1] + 1):
        proposed.normal_(generator=random)
        torch.addcmul(centre, proposed, spread, out=proposed)
        _keep(best, score, proposed, rate(proposed.flatten(0, 1)).view(proposals, -1))
        if count in counts:
            yield Step(count, _halves(best.clone()), 1 + proposals * count)


def _keep(
    best: Float[Tensor, "B Z2"],
    score: Float[Tensor, "B"],
    proposed: Float[Tensor, "K B Z2"],
    scores: Float[Tensor, "K B"],
) -> None:
    """Replace each row of `best` by the best proposal for it where that has a higher score."""
    top, which = scores.max(0)
    rises = (top > score).nonzero().squeeze(1)  # never where a score is NaN
    best[rises] = proposed[which[rises], rises]
    score[rises] = top[rises]


def _halves(z: Float[Tensor, "B Z2"]) -> Pair:
    left, right = z.chunk(2, 1)
    return left, right


def _slerp(
    start: Float[Tensor, "B Z"], end: Float[Tensor, "B Z"], share: float
) -> Float[Tensor, "B Z"]:
    """`share` of the way on the great circle; straight where no one circle goes through both."""
    unit_start, unit_end = (functional.normalize(z, dim=1) for z in (start, end))
    # The angle by its tangent: its cosine says nothing of small ones.
    apart, together = (unit_end - unit_start).norm(dim=1), (unit_end + unit_start).norm(dim=1)
    angle = 2 * torch.atan2(apart, together)[:, None]
    circle = (((1 - share) * angle).sin() * start + (share * angle).sin() * end) / angle.sin()
    lengths = start.norm(dim=1, keepdim=True) * end.norm(dim=1, keepdim=True)
    unique = (angle.sin() > 1e-4) & (lengths > 0)
    return torch.where(unique, circle, torch.lerp(start, end, share))
