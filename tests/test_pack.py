"""Many trials at once against each of them alone, and one trial against its update written out.

It is long, since each equation and each way to stop is tried on one small pack.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cf_core import losses
from cf_core.batches import Batch, Member
from cf_core.fusion import FusionSettings, Generator, Latents
from cf_core.losses import Pair
from cf_core.pack import PackTrainer, Stack
from cf_core.seeding import make_random
from cf_core.training import Progress, train

Z = 3
EPSILON = torch.finfo(torch.float32).eps
# Of float32, 32 or more numbers are worked on at once, and what is left over one by one, by other
# code for exponentials. With batches of a multiple of 32, nothing is ever left over.
SETTINGS = FusionSettings(hidden=16, batch=32, steps=50)
SHORT = replace(SETTINGS, steps=40)
MIXED = (
    Member(lambda_=0.1, style_dim=1, seed=0, learning_rate=3e-4),
    Member(lambda_=None, style_dim=4, seed=0, learning_rate=3e-4),
    Member(lambda_=0.0, style_dim=0, seed=1, learning_rate=1e-3),
    Member(lambda_=3.0, style_dim=4, seed=1, learning_rate=1e-4),
)
"""Trials that differ in everything that trials may differ in."""


def latents(dtype: torch.dtype = torch.float32, count: int = 40) -> Latents:
    """Pairs whose halves are equal: what G must learn is to bring the halves together."""
    mean = torch.randn(count, Z, generator=make_random(0, "latents"))
    rows = torch.arange(0, count, 2)
    mean[1::2] = mean[::2]
    return Latents(
        mean.to(dtype),
        torch.full((count, Z), 0.1, dtype=dtype),
        torch.stack((rows, rows + 1), 1),
        torch.tensor([0.5, 1.0, 1.5], dtype=dtype),
        mean[:, :0].to(dtype),
    )


def pack(
    trials: Sequence[Member] = MIXED,
    dtype: torch.dtype = torch.float32,
    settings: FusionSettings = SETTINGS,
) -> PackTrainer:
    return PackTrainer(latents(dtype), settings, trials)


def draw(made: PackTrainer) -> list[Batch]:
    """What the trials of a pack see in its next step."""
    made.batches.draw(made.step)
    return made.batches.deal()


def finish(made: PackTrainer, every: int = 10) -> PackTrainer:
    for _ in train(made, every):
        pass
    return made


def rows_of(made: PackTrainer, place: int) -> dict[str, list[Tensor]]:
    """Weights and moments of one trial, without what the stacks pad it with."""
    trial, row = made.trials[place], made.alive.index(place)
    inputs = {"generator": made._inputs(trial), "discriminator": list(range(2 * Z))}
    if trial.lambda_ is None:
        inputs["discriminator"].append(2 * Z)
    found = {}
    for name, stack in (("generator", made.g), ("discriminator", made.d)):
        for kind, values in (("weights", stack.weights), ("moments", stack.moments)):
            first, *rest = (part.clone() for part in stack.split(values[row]))
            found[f"{name} {kind}"] = [first[inputs[name]], *rest]
    return found | {"average": list(made.take_generator(place).parameters())}


def furthest(one: Mapping[str, list[Tensor]], other: Mapping[str, list[Tensor]]) -> float:
    """The largest difference between any two numbers."""
    assert one.keys() == other.keys()
    return max(
        (a - b).abs().max().item()
        for name, parts in one.items()
        for a, b in zip(parts, other[name], strict=True)
    )


def assert_same_rows(one: PackTrainer, other: PackTrainer, places: Sequence[int]) -> None:
    """Of these trials, everything is equal bit for bit."""
    for place in places:
        assert furthest(rows_of(one, place), rows_of(other, place)) == 0


def losses_of(report: Progress, place: int) -> dict[str, float]:
    return {name: values[place] for name, values in report.losses.items()}


# A pack against its trials alone


@pytest.mark.slow
def test_a_pack_equals_its_trials_trained_alone() -> None:
    together = finish(pack(dtype=torch.float64))
    for place, trial in enumerate(MIXED):
        alone = finish(pack([trial], torch.float64))
        assert furthest(rows_of(together, place), rows_of(alone, 0)) < 1e-10
        for report, expected in zip(together.history, alone.history, strict=True):
            assert losses_of(report, place) == pytest.approx(losses_of(expected, 0), abs=1e-10)


@pytest.mark.slow
def test_in_single_precision_a_pack_equals_its_trials_alone_but_for_rounding() -> None:
    # Padding and batched products change the order of sums. Adam divides a gradient by the root
    # mean square of the last ten or so, so that an error of its relative size moves a weight by
    # no more than as large a part of the learning rate: for rates up to 1e-3 less than the
    # rounding of the weight itself. So each update adds about one rounding of a weight near 1.
    updates = SETTINGS.steps * SETTINGS.d_steps
    together = finish(pack())
    for place in (1, 2):
        alone = finish(pack([MIXED[place]]))
        assert furthest(rows_of(together, place), rows_of(alone, 0)) < updates * EPSILON


def test_the_averaged_map_of_a_trial_has_its_own_shape_and_takes_no_more_gradients() -> None:
    made = pack()
    for place, trial in enumerate(MIXED):
        alone = made.take_generator(place)
        assert (alone.style_dim, alone.conditional) == (trial.style_dim, trial.lambda_ is None)
        assert not any(parameter.requires_grad for parameter in alone.parameters())
        style = torch.zeros(2, trial.style_dim)
        # An untrained map stays near its input.
        pair = latents().prior(2, make_random(0, "pair"))
        moved = alone.iterate(pair, style, [1], lambda_=1.0)[1][0] - pair[0]
        assert moved.std() < 3 / (1 + math.exp(2))


# Trials taken out of packs and put together anew


def trained(
    trials: Sequence[Member], steps: int, dtype: torch.dtype = torch.float32
) -> PackTrainer:
    return finish(pack(trials, dtype, replace(SETTINGS, steps=steps)))


@pytest.mark.slow
def test_trials_joined_as_they_were_go_on_bit_for_bit() -> None:
    whole, half = trained(MIXED, 40), trained(MIXED, 20)
    joined = pack(settings=SHORT)
    joined.join([half.take_state(place) for place in range(len(MIXED))])
    before = half.state()
    assert joined.state().keys() == before.keys()
    for name, value in joined.state().items():
        assert torch.equal(value, before[name]), name
    finish(joined)
    assert joined.history == whole.history
    assert_same_rows(joined, whole, range(len(MIXED)))


@pytest.mark.slow
def test_survivors_of_two_packs_go_on_in_one_as_they_would_have() -> None:
    packs = [trained(MIXED[:2], 20, torch.float64), trained(MIXED[2:], 20, torch.float64)]
    survivors = [MIXED[3], MIXED[1]]
    repacked = pack(survivors, torch.float64, SHORT)
    repacked.join([packs[1].take_state(1), packs[0].take_state(1)])
    finish(repacked)
    undisturbed = trained(MIXED, 40, torch.float64)
    for place, trial in enumerate(survivors):
        was = MIXED.index(trial)
        found, expected = rows_of(repacked, place), rows_of(undisturbed, was)
        assert furthest(found, expected) < 1e-10
        for report, wanted in zip(repacked.history, undisturbed.history, strict=True):
            assert losses_of(report, place) == pytest.approx(losses_of(wanted, was), abs=1e-10)


def test_a_trial_alone_is_the_state_of_a_pack_of_one() -> None:
    half = trained(MIXED, 20, torch.float64)
    for place, trial in enumerate(MIXED):
        alone = pack([trial], torch.float64, SHORT)
        alone.restore(half.take_state(place))
        assert alone.history[-1].losses["eq4"] == (half.history[-1].losses["eq4"][place],)
        assert furthest(rows_of(alone, 0), rows_of(half, place)) == 0


# One trial against its update written out


def written_out_network(x: Tensor, network: list[Tensor]) -> Tensor:
    count = len(network) // 2
    for layer, (weight, bias) in enumerate(zip(network[:count], network[count:], strict=True)):
        x = x @ weight + bias
        if layer < count - 1:
            x = torch.where(x > 0, x, 0.2 * x)
    return x


def written_out_map(network: list[Tensor], pair: Tensor, extra: Tensor, *, gated: bool) -> Tensor:
    out = written_out_network(torch.cat((pair, extra), 1), network)
    if not gated:
        return pair + out
    gate = 1 / (1 + torch.exp(-out[:, : 2 * Z]))
    return (1 - gate) * pair + gate * out[:, 2 * Z :]


def written_out_distance(one: Tensor, other: Tensor, sigma_bar: Tensor) -> Tensor:
    terms = torch.log(1 + (other - one) ** 2) / torch.cat((sigma_bar, sigma_bar)) ** 2
    return terms.sum(1) / Z


class WrittenOut:
    """The update of one trial alone, with PyTorch's own optimisers and nothing stacked."""

    def __init__(self, twin: PackTrainer) -> None:
        self.twin, self.settings, (self.trial,) = twin, twin.settings, twin.trials
        rows = rows_of(twin, 0)
        self.g = [p.requires_grad_() for p in rows["generator weights"]]
        self.d = [p.requires_grad_() for p in rows["discriminator weights"]]
        self.average = [p.detach().clone() for p in self.g]
        self.optimisers = {
            name: torch.optim.Adam(network, self.trial.learning_rate, (0.0, 0.9), 1e-8)
            for name, network in (("g", self.g), ("d", self.d))
        }

    def update(self, step: int) -> dict[str, float]:
        self.twin.step = step
        *turns, last = draw(self.twin)
        for draws in turns:
            report = self.update_d(draws)
        report |= self.update_g(last)
        with torch.no_grad():
            for average, now in zip(self.average, self.g, strict=True):
                average.mul_(self.settings.ema).add_((1 - self.settings.ema) * now)
        return report

    def fuse(self, pair: Tensor, draws: Batch, style: Tensor, every: int = 1) -> Tensor:
        extra = torch.cat((draws.condition[0], style[0]), 1)[::every]
        return written_out_map(self.g, pair[::every], extra, gated=self.settings.gated)

    def judge(self, pair: Tensor, condition: Tensor) -> Tensor:
        logits = written_out_network(torch.cat((pair, condition), 1), self.d)[:, 0]
        return torch.sigmoid(logits)

    def update_d(self, draws: Batch) -> dict[str, float]:
        batch, inputs, condition = self.settings.batch, draws.inputs[0], draws.condition[0]
        fused = self.fuse(inputs, draws, draws.style).detach()
        real = draws.paired[0].clone().requires_grad_()
        eq2 = -torch.log(self.judge(real, condition[:batch])).mean()
        eq3 = torch.zeros((), dtype=torch.float64)
        for pair in (inputs, fused):
            for part in (slice(0, batch), slice(batch, 2 * batch)):
                eq3 = eq3 - torch.log(1 - self.judge(pair[part], condition[part])).mean()
        penalty = torch.zeros((), dtype=torch.float64)
        for row in range(batch):
            probability = self.judge(real[row : row + 1], condition[row : row + 1])
            logit = torch.log(probability / (1 - probability)).squeeze()
            (gradient,) = torch.autograd.grad(logit, real, create_graph=True)
            penalty = penalty + (gradient[row] ** 2).sum() / batch
        self.descend("d", self.d, eq2 + eq3 + self.settings.gradient_penalty * penalty)
        found = {"eq1": eq2 + eq3, "eq2": eq2, "eq3": eq3, "gradient_penalty": penalty}
        return {name: loss.item() for name, loss in found.items()}

    def update_g(self, draws: Batch) -> dict[str, float]:
        batch, inputs, condition = self.settings.batch, draws.inputs[0], draws.condition[0]
        sigma_bar = self.twin.latents.sigma_bar
        fused = self.fuse(inputs, draws, draws.style)
        loss = -torch.log(self.judge(fused, condition))
        eq5 = loss[:batch].mean() + loss[batch:].mean()
        moved = written_out_distance(inputs, fused, sigma_bar)
        eq6 = moved[:batch].mean() + moved[batch:].mean()
        weight: Tensor | float | None = self.trial.lambda_
        if weight is None:
            # λ as the networks see it, turned back.
            weight = 10 ** (2 * condition[:, 0] - 1)
        weighted = weight * moved
        eq4 = eq5 + weighted[:batch].mean() + weighted[batch:].mean()
        style = torch.zeros((), dtype=torch.float64)
        if self.trial.style_dim:
            # Of every fourth input: by how much the distance between two styles' outputs falls
            # short of its share of the distance to the input, which itself is not to grow.
            other = self.fuse(inputs, draws, draws.other_style, every=4)
            apart = written_out_distance(fused[::4], other, sigma_bar)
            share = apart / (moved[::4].detach() + 1e-3)
            style = torch.clamp(self.settings.style_share - share, min=0).mean()
        self.descend("g", self.g, eq4 + self.settings.style_weight * style)
        found = {"eq4": eq4, "eq5": eq5, "eq6": eq6, "style": style}
        return {name: loss.item() for name, loss in found.items()}

    def descend(self, name: str, network: list[Tensor], loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, network)
        for parameter, gradient in zip(network, gradients, strict=True):
            parameter.grad = gradient
        self.optimisers[name].step()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("weight", "style_dim"), [(0.3, 2), (None, 3), (0.0, 0)])
def test_an_update_is_as_written_out(gated: bool, weight: float | None, style_dim: int) -> None:
    settings = replace(
        SETTINGS,
        hidden=8,
        batch=6,
        gated=gated,
        gradient_penalty=0.7,
        style_weight=0.6,
        style_share=0.9,
        ema=0.8,
    )
    trial = Member(weight, style_dim, seed=5, learning_rate=2e-3)
    made = pack([trial], torch.float64, settings)
    expected = WrittenOut(pack([trial], torch.float64, settings))
    for step, report in zip(range(3), train(made, 1), strict=False):
        assert losses_of(report, 0) == pytest.approx(expected.update(step), abs=1e-10)
        assert (report.losses["style"][0] > 0.01) == (style_dim > 0)
    rows = rows_of(made, 0)
    for name, network in (("generator", expected.g), ("discriminator", expected.d)):
        moments = [expected.optimisers[name[0]].state[p]["exp_avg_sq"] for p in network]
        assert furthest({"": rows[f"{name} weights"]}, {"": network}) < 1e-10
        assert furthest({"": rows[f"{name} moments"]}, {"": moments}) < 1e-10
    assert furthest({"": rows["average"]}, {"": expected.average}) < 1e-10


def test_the_optimiser_is_adam_with_a_learning_rate_for_each_trial() -> None:
    rates = [1e-3, 3e-2, 0.5]
    stack = Stack(Generator(2, 1, 4, 2, trials=len(rates)).double())
    random = make_random(0, "adam")
    stack.weights.normal_(generator=random)
    alone = [row.clone().requires_grad_() for row in stack.weights]
    optimisers = [
        torch.optim.Adam([row], rate, (0.0, 0.9), 1e-8)
        for row, rate in zip(alone, rates, strict=True)
    ]
    scale = torch.logspace(-9, 2, stack.weights.shape[1], dtype=torch.float64)
    for _ in range(6):
        gradients = scale * torch.randn(stack.weights.shape, generator=random, dtype=torch.float64)
        for row, optimiser, gradient in zip(alone, optimisers, gradients, strict=True):
            row.grad = gradient.clone()
            optimiser.step()
        stack.collect(gradients.split([shape.numel() for shape in stack._shapes], 1))
        running = torch.ones(len(rates), dtype=torch.bool)
        stack.adam(running, torch.tensor([[rate] for rate in rates], dtype=torch.float64))
        torch.testing.assert_close(stack.weights, torch.stack(alone), rtol=1e-12, atol=1e-12)
    # The network's parameters are these weights.
    flat = torch.cat([p.detach().flatten(1) for p in stack.network.parameters()], 1)
    assert torch.equal(flat, stack.weights)


# What trials see


def test_trials_of_one_seed_see_the_same_batches() -> None:
    together = pack()
    draws, alone = draw(together)[1], [draw(pack([trial]))[1] for trial in MIXED]
    for name in ("inputs", "paired"):
        drawn = getattr(draws, name)
        assert torch.equal(drawn[0], drawn[1])
        assert torch.equal(drawn[2], drawn[3])
        assert not torch.isclose(drawn[0], drawn[2]).any()
        for row, single in enumerate(alone):
            assert torch.equal(drawn[row], getattr(single, name)[0])
    together.stop([0])
    left = draw(together)[1]
    for name in Batch.__dataclass_fields__:
        assert torch.equal(getattr(left, name), getattr(draws, name)[1:])


def test_draws_differ_by_turn_and_step_and_styles_from_each_other() -> None:
    made = pack()
    drawn = draw(made)
    assert len(drawn) == SETTINGS.d_steps + 1
    made.step = 1
    drawn += draw(made)
    for name in ("inputs", "paired", "style"):
        rows = torch.cat([getattr(draws, name)[1] for draws in drawn])
        assert len(rows.unique(dim=0)) == len(rows)
    for draws in drawn:
        assert not torch.isclose(draws.style[1], draws.other_style[1], atol=1e-6).all(-1).any()


def test_inputs_are_unpaired_latents_then_the_prior_and_real_ones_are_paired() -> None:
    settings, data = replace(SETTINGS, batch=2000), latents()
    far = replace(data, mean=data.mean + 100)
    draws = draw(PackTrainer(far, settings, [MIXED[0]]))[0]
    unpaired, prior = draws.inputs[0].chunk(2)
    assert (unpaired > 50).all()
    assert prior.mean().abs() < 0.1
    assert prior.std().item() == pytest.approx(1, abs=0.05)
    left, right = draws.paired[0].chunk(2, -1)
    # Halves of a pair differ by nothing but the deviation of 0.1.
    assert (left - right).std().item() == pytest.approx(0.1 * math.sqrt(2), rel=0.1)
    assert (unpaired[:, :Z] - unpaired[:, Z:]).std() > 1


def test_styles_are_uniform_and_weights_log_uniform_over_their_range() -> None:
    settings = replace(SETTINGS, batch=2000, lambda_range=(1e-2, 1.0))
    draws = draw(pack(settings=settings))[0]
    for style in (draws.style[1], draws.other_style[1]):
        assert 0 <= style.min() < 0.01
        assert 0.99 < style.max() <= 1
        assert style.mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.03)
    weight = draws.lambda_[1].log10()
    assert -2 <= weight.min() < -1.99
    assert -0.01 < weight.max() <= 0
    assert weight.mean().item() == pytest.approx(-1, abs=0.03)
    torch.testing.assert_close(draws.condition[1, :, 0], (1 + weight) / 2)
    for place in (0, 2, 3):
        assert (draws.lambda_[place] == (MIXED[place].lambda_ or 0.0)).all()


@pytest.mark.slow
def test_padding_never_enters() -> None:
    made = finish(pack())
    for trial, row in zip(MIXED, range(4), strict=True):
        padded = sorted(set(range(2 * Z + 1 + 4)) - set(made._inputs(trial)))
        assert len(padded) == (trial.lambda_ is not None) + 4 - trial.style_dim
        for values in (made.g.weights[row], made.g.moments[row], made.average[row]):
            assert made.g.split(values)[0][padded].abs().sum() == 0
        if trial.lambda_ is not None:
            for values in (made.d.weights[row], made.d.moments[row]):
                assert made.d.split(values)[0][2 * Z].abs().sum() == 0
        draws = draw(made)[0]
        for style in (draws.style, draws.other_style):
            assert style[row, :, trial.style_dim :].abs().sum() == 0
        assert (draws.condition[row].abs().sum() == 0) == (trial.lambda_ is not None)


# Trials that leave


class Poisoned(PackTrainer):
    """In step 13, a weight of trial 1 goes bad."""

    poison, stack = math.nan, "g"

    def update(self) -> dict[str, Tensor]:
        if self.step == 13:
            getattr(self, self.stack).weights[1, 0] = self.poison
        return super().update()


@pytest.mark.slow
@pytest.mark.parametrize(("poison", "stack"), [(math.nan, "g"), (math.inf, "d"), (1e30, "g")])
def test_a_poisoned_trial_leaves_and_the_others_never_notice(poison: float, stack: str) -> None:
    clean, made = pack(settings=SHORT), Poisoned(latents(), SHORT, MIXED)
    made.poison, made.stack = poison, stack
    others = (0, 2, 3)
    for report, expected in zip(train(made, 10), train(clean, 10), strict=True):
        for place in others:
            assert losses_of(report, place) == losses_of(expected, place)
        if report.step == 10:
            assert made.diverged == {}
            assert losses_of(report, 1) == losses_of(expected, 1)
        else:
            assert made.diverged == {1: 13}
            assert made.alive == [0, 2, 3]
            assert all(math.isnan(loss) for loss in losses_of(report, 1).values())
        assert_same_rows(made, clean, others)
    with pytest.raises(ValueError, match="1"):
        made.take_generator(1)


def test_a_trial_that_diverges_is_frozen_at_once_and_so_is_its_opponent() -> None:
    # Its first update throws D so far that the second has no finite gradients.
    wild = replace(MIXED[1], learning_rate=1e30)
    made, tame = pack([MIXED[0], wild, *MIXED[2:]]), pack()
    before = rows_of(made, 1)
    for _ in range(3):
        reported = made.update()
        expected = tame.update()
        made.step += 1
        tame.step += 1
        for name, values in reported.items():
            assert values.isnan().tolist() == [False, True, False, False], name
            assert torch.equal(values[[0, 2, 3]], expected[name][[0, 2, 3]])
    assert made.diverged == {1: 0}
    after = rows_of(made, 1)
    assert furthest({"": before["generator weights"]}, {"": after["generator weights"]}) == 0
    assert all(part.isfinite().all() for part in after["discriminator weights"])
    assert max(part.abs().max().item() for part in after["discriminator weights"]) > 1e29
    assert_same_rows(made, tame, (0, 2, 3))


def test_a_pack_whose_only_trial_diverges_is_over() -> None:
    made = pack([replace(MIXED[0], learning_rate=1e30)])
    reports = list(train(made, 10))
    assert [report.step for report in reports] == [10]
    assert made.over
    assert made.diverged == {0: 0}


@pytest.mark.slow
@pytest.mark.parametrize("gone", [[3], [0, 2]])
def test_stopping_a_trial_leaves_the_others_unchanged(gone: list[int]) -> None:
    whole, made = pack(settings=SHORT), pack(settings=SHORT)
    left = [place for place in range(4) if place not in gone]
    for report, expected in zip(train(made, 10), train(whole, 10), strict=True):
        for place in left:
            assert losses_of(report, place) == losses_of(expected, place)
        assert_same_rows(made, whole, left)
        if report.step > 20:
            assert all(math.isnan(x) for place in gone for x in losses_of(report, place).values())
        if report.step == 20:
            made.stop(gone)
            assert made.alive == left
    assert made.diverged == {}


@pytest.mark.slow
def test_the_last_trial_left_is_unchanged_but_for_rounding() -> None:
    # Products of one matrix are computed by other code than those of several.
    whole, made = finish(pack(settings=SHORT)), pack(settings=SHORT)
    for report in train(made, 10):
        if report.step == 20:
            made.stop([0, 1, 2])
    updates = SETTINGS.steps * SETTINGS.d_steps
    assert furthest(rows_of(made, 3), rows_of(whole, 3)) < updates * EPSILON


def test_a_pack_with_every_trial_stopped_is_over(tmp_path: Path) -> None:
    file, made = tmp_path / "checkpoint.safetensors", pack()
    steps = []
    for report in train(made, 10, file):
        steps.append(report.step)
        if report.step == 10:
            made.stop([0, 3])
            made.stop([3])
            assert not made.over
        else:
            made.stop([1, 2])
    assert steps == [10, 20]
    assert made.over
    made.restore(made.state())
    resumed = pack()
    resumed.restore(made.state())
    assert resumed.over
    assert (resumed.alive, resumed.step) == ([], 20)


# Resuming


def uninterrupted(made: PackTrainer, file: Path | None = None) -> Iterator[Progress]:
    """Train with trial 1 diverging in step 13 and trial 2 stopped from outside at step 20."""
    for report in train(made, 10, file):
        if report.step >= 20:
            made.stop([2])
        yield report


@pytest.mark.slow
@pytest.mark.parametrize("broken_off", [10, 30])
def test_a_resumed_pack_equals_an_uninterrupted_one(broken_off: int, tmp_path: Path) -> None:
    whole = Poisoned(latents(), SHORT, MIXED)
    list(uninterrupted(whole))
    file, made = tmp_path / "checkpoint.safetensors", Poisoned(latents(), SHORT, MIXED)
    for report in uninterrupted(made, file):
        if report.step == broken_off:
            break
    resumed = Poisoned(latents(), SHORT, MIXED)
    reports = list(uninterrupted(resumed, file))
    assert [report.step for report in reports] == [s for s in (10, 20, 30, 40) if s > broken_off]
    assert (resumed.alive, resumed.diverged) == ([0, 3], {1: 13})
    one, other = resumed.state(), whole.state()
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True)


# What is learned

QUICK = FusionSettings(hidden=32, batch=32, steps=200, ema=0.9, style_share=0.2)


def moved_by(made: Generator, weight: float | None = None, style: float = 0.5) -> tuple[Pair, Pair]:
    pair = latents().unpaired(200, make_random(0, "test"))
    styles = torch.full((200, made.style_dim), style)
    return pair, made.iterate(pair, styles, [1], weight)[1]


def distance(one: Pair, other: Pair) -> float:
    return losses.distance(one, other, torch.ones(Z)).mean().item()


def gap(pair: Pair) -> float:
    return (pair[0] - pair[1]).square().mean().item()


@pytest.fixture(scope="module")
def learned() -> PackTrainer:
    trials = [
        Member(lambda_=0.0, style_dim=0, seed=0, learning_rate=1e-3),
        Member(lambda_=30.0, style_dim=0, seed=0, learning_rate=1e-3),
        Member(lambda_=None, style_dim=0, seed=0, learning_rate=1e-3),
        Member(lambda_=0.1, style_dim=1, seed=0, learning_rate=1e-3),
    ]
    return finish(pack(trials, settings=QUICK), 200)


@pytest.mark.slow
def test_training_brings_the_halves_together_and_weight_holds_it_back(
    learned: PackTrainer,
) -> None:
    pair, free = moved_by(learned.take_generator(0))
    _, held = moved_by(learned.take_generator(1))
    assert gap(free) < 0.1 * gap(pair)
    assert distance(pair, held) < 0.05 * distance(pair, free)


def test_one_conditional_map_moves_less_the_larger_the_weight(learned: PackTrainer) -> None:
    made = learned.take_generator(2)
    moves = [distance(*moved_by(made, weight)) for weight in (1e-3, 0.1, 1.0, 10.0)]
    assert moves == sorted(moves, reverse=True)
    assert moves[-1] < 0.5 * moves[0]


@pytest.mark.slow
def test_the_style_loss_makes_styles_matter(learned: PackTrainer) -> None:
    settings = replace(QUICK, style_weight=0.0)
    plain = finish(pack([learned.trials[3]], settings=settings), 200)
    shares = []
    for made in (plain.take_generator(0), learned.take_generator(3)):
        pair, low = moved_by(made, style=0.0)
        _, high = moved_by(made, style=1.0)
        shares.append(distance(low, high) / distance(pair, low))
    assert shares[1] > 2 * shares[0]
