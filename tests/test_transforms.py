"""Each transform against a slow literal loop, what it may know, and what it says that it took."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from cf_core.fusion import Generator
from cf_core.heard import Heard
from cf_core.losses import Pair
from cf_core.melody import MelodyFormat
from cf_core.nets import initialise
from cf_core.seeding import make_random
from cf_core.vae import MelodyVAE, VAESettings
from cf_core.writer import Writer, WriterSettings
from evaluation.classifier import ClassifierSettings, SearchClassifier
from evaluation.rivals import Rival, Tools
from evaluation.rivals.base import Bound
from evaluation.rivals.best_of_n import BestOfN
from evaluation.rivals.cmaes import CMAES
from evaluation.rivals.gradient import Gradient
from evaluation.rivals.lp import LP
from evaluation.rivals.retrieval import Retrieval
from evaluation.rivals.slerp import Slerp
from evaluation.rivals.transport import Transport, find_transport
from evaluation.rivals.transpose import Transpose
from evaluation.transforms import Fusion, Step, Transform

Z, ROWS = 3, 6
SIGMA = torch.tensor([0.2, 0.5, 1.0])
SIZES = torch.tensor([0.1, 0.5, 1.0, 0.2, 0.7, 0.3])
WEIGHTS = torch.tensor([0.0, 0.01, 0.1, 1.0, 0.03, 0.3])


def classifier() -> SearchClassifier:
    made = SearchClassifier(Z, ClassifierSettings(hidden=8))
    initialise(made, make_random(0, "classifier"))
    return made


CLASSIFIER = classifier()


def core() -> MelodyVAE:
    form = MelodyFormat(bars_per_segment=1, lowest=60, highest=83)
    made = MelodyVAE(form, VAESettings(latent_dim=Z, hidden=16, embedding=8))
    initialise(made, make_random(0, "core"))
    return made


CORE = core()


def pair(count: int = ROWS, name: str = "pair") -> Pair:
    left, right = torch.randn(2, count, Z, generator=make_random(0, name))
    return left, right


def style() -> Tensor:
    return torch.rand(ROWS, 2, generator=make_random(0, "style"))


def fused(*, conditional: bool = False) -> Generator:
    made = Generator(Z, 2, 8, 2, conditional=conditional)
    initialise(made, make_random(0, "G"))
    return made


def heard() -> Heard:
    writer = Writer(CORE.form, WriterSettings(hidden=8))
    initialise(writer, make_random(0, "writer"))
    return Heard(CORE, writer, price=1.5, drafts=2, imbalance=0.0, lead=0.5)


def run(transform: Transform, counts: Sequence[int], start: Pair | None = None) -> list[Step]:
    return list(transform(start or pair(), counts, make_random(0, "search")))


def joined(step: Step) -> Tensor:
    return torch.cat(step.outputs, 1)


@torch.no_grad()
def rate(z: Tensor) -> float:
    """The classifier's logit of one pair, halves joined."""
    return float(CLASSIFIER((z[None, :Z], z[None, Z:])))


def literal_objective(z: Tensor, start: Tensor, weight: float) -> float:
    total = math.log1p(math.exp(-rate(z)))
    for half in (slice(Z), slice(Z, None)):
        for a, b, sigma in zip(start[half].tolist(), z[half].tolist(), SIGMA.tolist(), strict=True):
            total += weight * math.log(1 + (b - a) ** 2) / sigma**2 / Z
    return total


def bound(
    rival: Rival,
    classifier: SearchClassifier | None = None,
    bank: Pair | None = None,
    **own: Tensor,
) -> Transform:
    """A rival with a value for each row."""
    classifier = classifier or CLASSIFIER
    sigma_bar = SIGMA.to(next(classifier.parameters()).dtype)
    named = {name.rstrip("_"): values for name, values in own.items()}
    bank = bank or pair(40, "bank")
    tools = Tools(classifier, sigma_bar, bank, CORE, np.zeros(len(bank[0]), np.int64))
    rows = len(next(iter(own.values()))) if own else ROWS
    return Bound(rival, named, np.zeros(rows, np.int64), tools)


def slerp(steps: int, rows: int = ROWS, *, straight: bool) -> Transform:
    return bound(Slerp(iterations=(steps,)), straight=torch.full((rows,), float(straight)))


SEARCHES: dict[str, Callable[[], Transform]] = {
    "fusion": lambda: Fusion(fused(), style()),
    "heard": lambda: Fusion(fused(), style(), 0.1, heard()),
    "lp": lambda: bound(LP(proposals=2, scaled=True), step_size=SIZES),
    "best_of_n": lambda: bound(BestOfN(), step_size=SIZES),
    "gradient": lambda: bound(Gradient(learning_rate=0.1), lambda_=WEIGHTS),
    "cmaes": lambda: bound(CMAES(step_size=0.5), lambda_=WEIGHTS),
    "slerp": lambda: slerp(10, straight=False),
    "transport": lambda: bound(Transport()),
    "transpose": lambda: bound(Transpose()),
    "retrieval": lambda: bound(Retrieval()),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_trajectory_passes_where_separate_runs_end(name: str) -> None:
    transform = SEARCHES[name]()
    steps = run(transform, (1, 5, 9))
    assert [step.iteration for step in steps] == [1, 5, 9]
    for step in steps:
        (alone,) = run(transform, (step.iteration,))
        assert torch.equal(joined(step), joined(alone))
        calls = (alone.classifier_calls, alone.decoder_calls)
        assert (step.classifier_calls, step.decoder_calls) == calls


@pytest.mark.parametrize("name", SEARCHES)
def test_a_row_that_is_not_finite_disturbs_no_other(name: str) -> None:
    start, broken = pair(), pair()
    broken[0][2, 1], broken[1][4, 0] = torch.nan, torch.inf
    whole, others = SEARCHES[name](), [0, 1, 3, 5]
    (expected,), (found,) = run(whole, (6,), start), run(whole, (6,), broken)
    torch.testing.assert_close(joined(found)[others], joined(expected)[others])
    assert joined(expected).isfinite().all()


@pytest.mark.parametrize("name", SEARCHES)
def test_inputs_are_left_as_they_were(name: str) -> None:
    start = pair()
    run(SEARCHES[name](), (1, 3), start)
    for half, kept in zip(start, pair(), strict=True):
        assert torch.equal(half, kept)


def test_fusion_feeds_outputs_back() -> None:
    made, expected, none = fused(), pair(), torch.empty(ROWS, 0)
    steps = {step.iteration: step for step in run(Fusion(made, style()), (2, 3))}
    with torch.no_grad():
        for count in (1, 2, 3):
            expected = made(expected, style(), none)
            if count in steps:
                assert torch.equal(joined(steps[count]), torch.cat(expected, 1))


def test_what_is_heard_is_as_its_scheme_has_it() -> None:
    """See tests/test_heard.py for what that is."""
    how, start = heard(), pair()
    steps = run(Fusion(fused(), style(), 0.1, how), (1, 3))
    chance = how.draw_chance(ROWS, make_random(0, "search"))
    found = how.fuse(fused(), start, style(), (1, 3), torch.full((ROWS,), 0.1), chance)
    for step, (count, outputs) in zip(steps, found, strict=True):
        assert step.iteration == count
        assert torch.equal(joined(step), torch.cat(outputs, 1))
        assert step.decoder_calls == 1 + count + 4
    with pytest.raises(ValueError, match="needs λ"):
        run(Fusion(fused(), style(), None, how), (1,))


@pytest.mark.parametrize("proposals", [1, 3])
@pytest.mark.parametrize("scaled", [False, True])
def test_latent_search_pair_by_pair(proposals: int, scaled: bool) -> None:
    steps = run(bound(LP(proposals=proposals, scaled=scaled), step_size=SIZES), (2, 9))
    random = make_random(0, "search")
    noise = [torch.randn(proposals, ROWS, 2 * Z, generator=random) for _ in range(9)]
    factor = torch.cat((SIGMA, SIGMA)) if scaled else torch.ones(2 * Z)
    for row in range(ROWS):
        z = torch.cat([half[row] for half in pair()])
        for count in range(9):
            tried = [z + SIZES[row] * factor * drawn[row] for drawn in noise[count]]
            z = max([z, *tried], key=rate)
            for step in steps:
                if step.iteration == count + 1:
                    torch.testing.assert_close(joined(step)[row], z)
    assert [step.classifier_calls for step in steps] == [1 + 2 * proposals, 1 + 9 * proposals]


def test_best_of_n_pair_by_pair() -> None:
    (step,) = run(bound(BestOfN(), step_size=SIZES), (20,))
    random = make_random(0, "search")
    noise = [torch.randn(ROWS, 2 * Z, generator=random) for _ in range(20)]
    for row in range(ROWS):
        z = torch.cat([half[row] for half in pair()])
        expected = max([z, *(z + SIZES[row] * drawn[row] for drawn in noise)], key=rate)
        torch.testing.assert_close(joined(step)[row], expected)
    assert step.classifier_calls == 21


@pytest.mark.parametrize("kind", [LP, BestOfN])
def test_search_never_lowers_the_classifier(kind: type[LP] | type[BestOfN]) -> None:
    start = pair(50)
    steps = run(bound(kind(), step_size=torch.full((50,), 0.3)), (1, 5, 40), start)
    with torch.no_grad():
        ratings = [CLASSIFIER(start), *(CLASSIFIER(step.outputs) for step in steps)]
    for before, after in pairwise(ratings):
        assert (after >= before - 1e-6).all()
    assert (ratings[-1] > ratings[0]).float().mean() > 0.9


def test_gradient_search_by_finite_differences() -> None:
    exact = classifier().double()
    transform = bound(Gradient(learning_rate=0.1), exact, lambda_=WEIGHTS.double())
    steps = run(transform, (1, 3), (pair()[0].double(), pair()[1].double()))

    def objective(z: Tensor, start: Tensor, weight: float) -> float:
        with torch.no_grad():
            logit = float(exact((z[None, :Z], z[None, Z:])))
        change = torch.log(1 + (z - start) ** 2) / SIGMA.double().repeat(2) ** 2 / Z
        return math.log1p(math.exp(-logit)) + weight * float(change.sum())

    for row in range(ROWS):
        start = torch.cat([half[row] for half in pair()]).double()
        z, mean, square = start.clone(), torch.zeros(2 * Z), torch.zeros(2 * Z)
        for count in range(1, 4):
            gradient = torch.tensor(
                [
                    (
                        objective(z + nudge, start, float(WEIGHTS[row]))
                        - objective(z - nudge, start, float(WEIGHTS[row]))
                    )
                    / 2e-6
                    for nudge in 1e-6 * torch.eye(2 * Z, dtype=torch.float64)
                ],
                dtype=torch.float64,
            )
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            root = (square / (1 - 0.999**count)).sqrt() + 1e-8
            z = z - 0.1 * mean / (1 - 0.9**count) / root
            for step in steps:
                if step.iteration == count:
                    torch.testing.assert_close(joined(step)[row], z, rtol=1e-4, atol=1e-5)
    assert [step.classifier_calls for step in steps] == [3, 9]
    assert all(parameter.grad is None for parameter in exact.parameters())


def test_cmaes_is_that_of_the_library_for_each_pair() -> None:
    from cmaes import SepCMA  # noqa: PLC0415

    (step,) = run(bound(CMAES(step_size=0.5), lambda_=WEIGHTS), (7,))
    seeds = torch.randint(2**31, (ROWS,), generator=make_random(0, "search")).tolist()
    for row, seed in enumerate(seeds):
        start = torch.cat([half[row] for half in pair()])
        best, weight = start, float(WEIGHTS[row])
        optimiser = SepCMA(start.double().numpy(), 0.5, seed=seed)
        for _ in range(7):
            asked = [optimiser.ask() for _ in range(optimiser.population_size)]
            tried = [torch.tensor(x, dtype=torch.float32) for x in asked]
            values = [literal_objective(z, start, weight) for z in tried]
            optimiser.tell(list(zip(asked, values, strict=True)))
            best = min([best, *tried], key=lambda z: literal_objective(z, start, weight))
        torch.testing.assert_close(joined(step)[row], best, rtol=1e-4, atol=1e-5)
    assert step.classifier_calls == 1 + 7 * (4 + math.floor(3 * math.log(2 * Z)))


class Quadratic(SearchClassifier):
    """Highest where all coordinates are 1."""

    def forward(self, pair: Pair, random: torch.Generator | None = None) -> Tensor:  # noqa: ARG002
        return 4 - ((torch.cat(pair, 1) - 1) ** 2).sum(1)


def test_cmaes_finds_the_top_of_a_hill() -> None:
    hill = Quadratic(Z, ClassifierSettings(hidden=8))
    steps = run(bound(CMAES(step_size=0.5), hill, lambda_=torch.zeros(ROWS)), (1, 60))
    assert ((joined(steps[1]) - 1).norm(dim=1) < 0.1).all()
    (still,) = run(bound(CMAES(step_size=0.5), hill, lambda_=torch.full((ROWS,), 1e4)), (20,))
    assert torch.equal(joined(still), torch.cat(pair(), 1))


@pytest.mark.parametrize("straight", [True, False])
def test_halves_meet_after_all_steps(straight: bool) -> None:
    last = run(slerp(4, straight=straight), (1, 2, 4))[-1]
    torch.testing.assert_close(last.outputs[0], last.outputs[1])


def test_interpolation_of_known_vectors() -> None:
    # Orthogonal, parallel, opposite, zero, at 60 degrees and of lengths 1 and 2.
    root = math.sqrt(0.75)
    left = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 0], [1, 0]])
    right = torch.tensor([[0.0, 1], [3, 0], [-1, 0], [2, 0], [1, 2 * root]])
    # One of 3 steps: a sixth of the way, or 15 degrees of 90.
    (round_step,) = run(slerp(3, 5, straight=False), (1,), (left, right))
    degree = math.pi / 180
    expected_left = [
        [math.cos(15 * degree), math.sin(15 * degree)],
        [1 + 2 / 6, 0],
        [1 - 2 / 6, 0],
        [2 / 6, 0],
    ]
    expected_right = [
        [math.sin(15 * degree), math.cos(15 * degree)],
        [3 - 2 / 6, 0],
        [-1 + 2 / 6, 0],
        [2 - 2 / 6, 0],
    ]
    torch.testing.assert_close(round_step.outputs[0][:4], torch.tensor(expected_left))
    torch.testing.assert_close(round_step.outputs[1][:4], torch.tensor(expected_right))
    # Of 60 degrees, the near end keeps sin 50° / sin 60° and the far one gives sin 10° / sin 60°.
    sines = [math.sin(50 * degree) / root, math.sin(10 * degree) / root]
    torch.testing.assert_close(
        round_step.outputs[0][4], torch.tensor([sines[0] + sines[1], sines[1] * 2 * root])
    )
    (straight,) = run(slerp(3, 5, straight=True), (1,), (left, right))
    torch.testing.assert_close(straight.outputs[0], left + (right - left) / 6)
    torch.testing.assert_close(straight.outputs[1], right + (left - right) / 6)


def test_retrieval_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "evaluation.rivals.retrieval.DIFFERENCES", 40 * Z * 4
    )  # four pairs at a time
    bank = pair(40, "bank")
    steps = run(bound(Retrieval(), bank=bank), (1, 4, 40, 99))
    rows = torch.cat(bank, 1)
    for row in range(ROWS):
        start = torch.cat([half[row] for half in pair()])
        # Weight 1 less weight 0 of the objective is equation 7.
        far = [literal_objective(z, start, 1.0) - literal_objective(z, start, 0.0) for z in rows]
        order = sorted(range(40), key=far.__getitem__)
        for step in steps:
            best = max(order[: step.iteration], key=lambda place: rate(rows[place]))
            assert torch.equal(joined(step)[row], rows[best])
    assert [step.classifier_calls for step in steps] == [1, 4, 40, 40]


def test_the_scorer_is_the_classifier() -> None:
    wide = SearchClassifier(Z, ClassifierSettings(hidden=32, depth=3))
    initialise(wide, make_random(0, "wide"))
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=make_random(0, "gain")), alpha=0.1
            )
        rate_all = wide.scorer(ROWS)
        for name in ("one", "other"):
            some = pair(name=name)
            torch.testing.assert_close(rate_all(torch.cat(some, 1)), wide(some))


def test_seconds_are_those_of_the_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Slow(Transform):
        def _steps(
            self, pair: Pair, counts: Sequence[int], _random: torch.Generator, /
        ) -> Iterator[Step]:
            nonlocal now
            for count in counts:
                now += count
                yield Step(count, pair)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    seconds = []
    for step in Slow()(pair(), (1, 5, 9), make_random(0, "search")):
        now += 1000.0
        seconds.append(step.seconds)
    assert seconds == [1.0, 6.0, 15.0]
    assert step.device == "cpu"


def test_gradients_are_as_they_were_between_steps() -> None:
    for make in SEARCHES.values():
        for _ in make()(pair(), (1, 2), make_random(0, "search")):
            assert torch.is_grad_enabled()


def related(rows: int) -> Pair:
    """Halves that have much in common, and a mean of their own."""
    left, right, shared = torch.randn(3, rows, Z, generator=make_random(0, "related"))
    turn = torch.tensor([[2.0, 0, 0], [1, 1, 0], [0, 0.5, 1]])
    return (left + shared) @ turn + 3, (right + shared) @ turn.T - 1


def covariance(pair: Pair) -> Tensor:
    return torch.cov(torch.cat(pair, 1).double().T)


def test_transport_is_the_one_map_that_is_optimal() -> None:
    """Of all linear maps from S0 to S1, only the symmetric positive one is optimal (Brenier)."""
    mean, matrix = find_transport(related(5000))
    joint = covariance(related(5000))
    apart = torch.block_diag(joint[:Z, :Z], joint[Z:, Z:])
    exact = matrix.double()
    torch.testing.assert_close(exact, exact.T, rtol=0, atol=1e-5)
    assert torch.linalg.eigvalsh(exact).min() > 0
    torch.testing.assert_close(exact @ apart @ exact.T, joint, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(mean, torch.cat(related(5000), 1).mean(0))


def test_transport_relates_halves_that_were_unrelated() -> None:
    left, right = related(5000)
    inputs = left, right.roll(1, 0)
    transform = bound(Transport(step=0.5), bank=(left, right))
    half, whole, twice = (step.outputs for step in run(transform, (1, 2, 4), inputs))
    torch.testing.assert_close(covariance(whole), covariance((left, right)), rtol=0.1, atol=0.15)
    for side in (0, 1):
        moved = whole[side] - inputs[side]
        torch.testing.assert_close(half[side], inputs[side] + moved / 2, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(twice[side], inputs[side] + 2 * moved, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(moved.mean(0), torch.zeros(Z), rtol=0, atol=1e-4)
