"""Training on other devices than the CPU: one that is pretended, and a GPU where there is one.

Packs take the CPU's random numbers on both, since GPUs draw others. The networks that trials share
are trained on the pretended device alone.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor

from cf_core.pack import PackTrainer
from cf_core.seeding import make_random
from cf_core.training import Trainer
from evaluation import transforms
from evaluation.rivals import Tools
from evaluation.rivals.base import Bound
from evaluation.rivals.lp import LP
from evaluation.transforms import Fusion, Given, Step, fuse_all
from tests import pretended
from tests.test_pack import MIXED, SETTINGS, latents
from tests.test_training import classifier, continuation, judge, vae
from tests.test_transforms import (
    CLASSIFIER,
    CORE,
    ROWS,
    SIGMA,
    SIZES,
    fused,
    heard,
    pair,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
KINDS = np.zeros(ROWS, np.int64)


@pytest.fixture(params=[pretended.NAME, pytest.param("cuda", marks=needs_gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with pretended.device() if request.param == pretended.NAME else nullcontext():
        yield request.param


def make(device: str, kind: type[PackTrainer] = PackTrainer, *, eager: bool = False) -> PackTrainer:
    return kind(latents(torch.float64), SETTINGS, MIXED, device, eager=eager)


def advance(cpu: PackTrainer, other: PackTrainer, steps: int) -> None:
    """Take steps in both, on the same random numbers, and compare the losses."""
    for _ in range(steps):
        expected = cpu.update()
        for name in ("_noise", "_chance", "_styles"):
            getattr(other.batches, name).copy_(getattr(cpu.batches, name))
        found = {name: loss.cpu() for name, loss in take_step(other).items()}
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True)
        cpu.step += 1
        other.step += 1


def take_step(made: PackTrainer) -> dict[str, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(made.batches), "draw", lambda *_: None)
        return made.update()


def assert_equal(cpu: PackTrainer, other: PackTrainer) -> None:
    found = {name: tensor.cpu() for name, tensor in other.state().items()}
    torch.testing.assert_close(found, cpu.state(), rtol=1e-9, atol=1e-9)


def compare(cpu: PackTrainer, other: PackTrainer, steps: int) -> None:
    """Take steps in both, and compare the losses and what they end with."""
    advance(cpu, other, steps)
    assert_equal(cpu, other)


@pytest.mark.parametrize("eager", [True, False])
def test_a_pack_trains_as_on_the_cpu(device: str, eager: bool) -> None:
    cpu, other = make("cpu"), make(device, eager=eager)
    compare(cpu, other, 12 if device == pretended.NAME else 50)
    assert (other._graph._graph is None) == eager


def test_graphs_are_captured_anew_when_trials_leave_join_and_are_restored(device: str) -> None:
    cpu, other = make("cpu"), make(device)
    advance(cpu, other, 6)
    begun = other.state()
    for made in (cpu, other):
        made.stop([1])
    compare(cpu, other, 6)
    cpu, again = make("cpu"), make(device)
    again.restore(begun)
    cpu.restore({name: tensor.cpu() for name, tensor in begun.items()})
    compare(cpu, again, 6)
    joined = make(device)
    joined.join([again.take_state(place) for place in range(len(MIXED))])
    compare(cpu, joined, 6)
    for place in range(len(MIXED)):
        expected = cpu.take_generator(place).state_dict()
        torch.testing.assert_close(joined.take_generator(place).state_dict(), expected)


def test_a_trial_that_diverges_is_frozen(device: str) -> None:
    made = []
    for where in ("cpu", device):
        one = make(where)
        one.g.weights[1, :5].fill_(float("inf"))
        made.append(one)
    cpu, other = made
    advance(cpu, other, 6)
    assert other.diverged == cpu.diverged == {1: 0}


def test_no_step_makes_the_host_wait_and_all_tensors_stay_where_they_are() -> None:
    with pretended.device() as log:
        made = make(pretended.NAME, eager=True)
        made.update()  # the first one groups the segments by kind
        log.waits.clear()
        buffers = {**made.list_tensors(), **vars(made.batches), "gradients": made.g.gradients}
        where = {
            name: tensor.inner.data_ptr()
            for name, tensor in buffers.items()
            if isinstance(tensor, pretended.OnDevice)
        }
        assert len(where) > 12
        for _ in range(3):
            made.step += 1
            made.update()
        assert log.waits == []
        buffers = {**made.list_tensors(), **vars(made.batches), "gradients": made.g.gradients}
        assert {name: buffers[name].inner.data_ptr() for name in where} == where


@pytest.mark.parametrize("network", [vae, classifier, judge, continuation])
def test_networks_train_as_on_the_cpu_and_stop_and_go_on(
    network: Callable[[str], Trainer],
) -> None:
    def advance(trainer: Trainer) -> None:
        for _ in range(trainer.steps // 2):
            trainer.update()
            trainer.step += 1

    cpu = network("cpu")
    advance(cpu)
    halfway = cpu.state()
    advance(cpu)
    with pretended.device():
        first, second = network(pretended.NAME), network(pretended.NAME)
        for one in first.networks.values():
            assert {parameter.device.type for parameter in one.parameters()} == {pretended.NAME}
        advance(first)
        saved = {name: tensor.cpu() for name, tensor in first.state().items()}
        second.restore(saved)
        advance(second)
        found = {name: tensor.cpu() for name, tensor in second.state().items()}
    torch.testing.assert_close(saved, halfway, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, cpu.state(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("proposals", [1, 3])
def test_no_iteration_of_a_search_makes_the_host_wait(proposals: int) -> None:
    def count_waits(iterations: int) -> int:
        with pretended.device() as log:
            own = {"step_size": SIZES}
            left, right = (half.to(pretended.NAME) for half in pair())
            tools = Tools(
                deepcopy(CLASSIFIER).to(pretended.NAME), SIGMA.to(pretended.NAME), (left, right),
                CORE, KINDS,
            )  # fmt: skip
            search = Bound(LP(proposals=proposals), own, KINDS, tools)
            log.waits.clear()
            random = make_random(0, "search", device=pretended.NAME)
            list(search((left, right), [iterations], random))
            return len(log.waits)

    assert count_waits(2) == count_waits(7)


def test_notes_of_many_pairs_are_drawn_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cf_core.continuation._AHEAD", 1)  # as if there were many
    how = deepcopy(heard())
    tokens = how.decode(pair(), torch.zeros(ROWS, dtype=torch.int64))
    price, chance = torch.full((ROWS, 2), 1.0), how.draw_chance(ROWS, make_random(0, "drafts"))[0]
    expected = how.writer.rewrite((tokens[:, 0], tokens[:, 1]), price, chance)
    with pretended.device() as log:
        writer = how.writer.to(pretended.NAME)
        left, right, cost, drawn = (
            each.to(pretended.NAME) for each in (tokens[:, 0], tokens[:, 1], price, chance)
        )
        writer.rewrite((left, right), cost, drawn)  # the form's tables are copied once
        log.waits.clear()
        found = writer.rewrite((left, right), cost, drawn)
        assert log.waits == []
        assert not torch.equal(expected[1], tokens[:, 1])
        for own, wanted in zip(found, expected, strict=True):
            assert torch.equal(own.cpu(), wanted)


@pytest.mark.parametrize("most", [2 * ROWS, 100])
@pytest.mark.parametrize("scheme", ["poster", "heard"])
def test_fusions_together_are_those_of_each_by_itself(
    scheme: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms, "_TOGETHER", most)
    counts, asked = (1, 3), [(0.03, "one", ROWS), (1.0, "one", ROWS), (0.2, "two", ROWS - 2)]

    def fuse(where: str) -> list[list[Step]]:
        how, generator = deepcopy(heard()), fused(conditional=True).to(where)
        how.core.to(where)
        how.writer.to(where)
        given = []
        for lambda_, name, size in asked:
            own = None if scheme == "poster" else how
            drawn = torch.rand(size, 2, generator=make_random(0, "style", str(lambda_)))
            fusion = Fusion(generator, drawn.to(where), lambda_, own, KINDS[:size])
            left, right = (half.to(where) for half in pair(size, name))
            random = make_random(0, "writing", name, device=where)
            given.append(Given(fusion, (left, right), random))
        return list(fuse_all(given, counts))

    expected = fuse("cpu")
    with pretended.device():
        found = fuse(pretended.NAME)
    assert len(found) == len(expected) == len(asked)
    for own, other in zip(found, expected, strict=True):
        assert [step.iteration for step in own] == [*counts]
        for one, two in zip(own, other, strict=True):
            assert one.decoder_calls == two.decoder_calls
            assert one.seconds > 0
            for half, wanted in zip(one.outputs, two.outputs, strict=True):
                torch.testing.assert_close(half.cpu(), wanted)


class Asks(PackTrainer):
    """Asks for a number in the middle of a step."""

    def _step(self) -> dict[str, Tensor]:
        report = super()._step()
        assert report["eq1"][0].item() != 1
        return report


class Selects(PackTrainer):
    """Takes rows by a mask, so that the host has to know how many there are."""

    def _step(self) -> dict[str, Tensor]:
        report = super()._step()
        assert len(self.average[self._running]) == len(self.average)
        return report


class Forgets(PackTrainer):
    """Leaves a tensor on the CPU."""

    def _step(self) -> dict[str, Tensor]:
        self.average *= torch.ones(self.average.shape)
        return super()._step()


class Counts(PackTrainer):
    """Takes a number from Python that changes from step to step."""

    def _step(self) -> dict[str, Tensor]:
        self.g.weights.mul_(1 - self.step / 1000)
        return super()._step()


class Replaces(PackTrainer):
    """Puts what it changes into another place."""

    def _step(self) -> dict[str, Tensor]:
        report = super()._step()
        self.average = self.average * 0.5
        return report


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Asks, pretended.WaitedError),
        (Selects, pretended.WaitedError),
        (Forgets, pretended.MixedError),
        (Counts, AssertionError),
        (Replaces, AssertionError),
    ],
)
def test_mistakes_that_only_a_gpu_would_show_are_found(
    kind: type[PackTrainer], expected: type[Exception]
) -> None:
    with pretended.device():
        made = make("cpu", kind), make(pretended.NAME, kind)
        with pytest.raises(expected):
            compare(*made, 8)
