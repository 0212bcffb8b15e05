"""The fusion map and its training."""

import math

import pytest
import torch
from torch import Tensor, nn

from cf_core import losses
from cf_core.fusion import FusionSettings, FusionTrainer, Generator, Latents
from cf_core.nets import initialise
from cf_core.seeding import generator
from cf_core.training import train

Z = 3


def small_generator(style_dim: int) -> Generator:
    made = Generator(Z, style_dim, 8, 2)
    initialise(made, generator(0, "g"))
    return made


def draws(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "draws", *shape))


def latents(count: int = 40) -> Latents:
    """Pairs whose halves are equal: what G must learn is to bring the halves together."""
    mean = draws(count, Z)
    rows = torch.arange(0, count, 2)
    mean[1::2] = mean[::2]
    deviation = torch.full((count, Z), 0.1)
    return Latents(mean, deviation, torch.stack((rows, rows + 1), 1), torch.ones(Z))


def trainer(weight: float = 0.1, style_dim: int = 2, seed: int = 0, **kwargs: int) -> FusionTrainer:
    settings = FusionSettings(hidden=16, batch=16, **{"steps": 30, **kwargs})
    return FusionTrainer(latents(), settings, weight, style_dim, seed)


def test_the_map_is_a_gated_residual_as_written() -> None:
    made = small_generator(2)
    left, right, style = draws(5, Z), draws(5, Z).flip(0), torch.rand(5, 2)
    out = made.net(torch.cat((left, right, style), 1))
    for half, z, result in ((0, left, 0), (1, right, 1)):
        gate_logit = out[:, half * Z : (half + 1) * Z]
        delta = out[:, (2 + half) * Z : (3 + half) * Z]
        g = 1 / (1 + torch.exp(-gate_logit))
        expected = (1 - g) * z + g * delta
        torch.testing.assert_close(made((left, right), style)[result], expected)


def test_iterating_feeds_outputs_back_with_the_same_style() -> None:
    made = small_generator(2)
    pair, style = (draws(4, Z), draws(4, Z).flip(1)), torch.rand(4, 2)
    kept = made.iterate(pair, style, [1, 3])
    once = made(pair, style)
    thrice = made(made(once, style), style)
    assert list(kept) == [1, 3]
    for expected, got in ((once, kept[1]), (thrice, kept[3])):
        assert torch.equal(expected[0], got[0])
        assert torch.equal(expected[1], got[1])


def test_without_style_dimensions_style_changes_nothing() -> None:
    made = small_generator(0)
    pair = (draws(4, Z), draws(4, Z))
    assert torch.equal(made(pair, torch.rand(4, 0))[0], made(pair, torch.rand(4, 0))[0])


def test_paired_draws_are_adjacent_and_unpaired_ones_independent() -> None:
    data = latents()
    left, right = data.paired(4000, generator(0, "p"))
    assert ((left - right) ** 2).mean().item() == pytest.approx(2 * 0.1**2, rel=0.1)
    left, right = data.unpaired(4000, generator(0, "u"))
    correlation = torch.corrcoef(torch.stack((left[:, 0], right[:, 0])))[0, 1]
    assert abs(correlation.item()) < 4 / math.sqrt(4000)
    left, right = data.prior(4000, generator(0, "q"))
    assert left.std().item() == pytest.approx(1.0, abs=0.03)
    assert not torch.equal(left, right)


def test_trials_of_one_seed_see_the_same_batches() -> None:
    drawn = [
        (*made._draw(0)[:2], made._draw_paired(0)) for made in (trainer(0.0, 0), trainer(3.0, 4))
    ]
    one, other = drawn
    for pair, same in zip(one, other, strict=True):
        assert torch.equal(pair[0], same[0])
        assert torch.equal(pair[1], same[1])
    assert not torch.equal(trainer(0.0, 0, seed=1)._draw(0)[0][0], one[0][0])


def test_each_network_learns_from_its_own_loss_alone() -> None:
    made = trainer()
    before = {
        name: [parameter.detach().clone() for parameter in network.parameters()]
        for name, network in made.networks.items()
    }
    made._update_generator()
    assert all(map(torch.equal, before["discriminator"], made.discriminator.parameters()))
    assert not any(map(torch.equal, before["generator"], made.generator.parameters()))
    now = [p.detach().clone() for p in made.generator.parameters()]
    made._update_discriminator(0)
    assert all(map(torch.equal, now, made.generator.parameters()))
    assert not all(map(torch.equal, before["discriminator"], made.discriminator.parameters()))


def test_the_reported_losses_are_the_equations() -> None:
    made = trainer(weight=0.7)
    unpaired, prior, style = made._draw("generator")
    split = len(unpaired[0])
    fused = made.generator(unpaired, style[:split])
    fused_prior = made.generator(prior, style[split:])
    eq5 = losses.generator_adversarial(made.discriminator(fused), made.discriminator(fused_prior))
    sigma_bar = made.latents.sigma_bar
    eq6 = losses.similarity_loss(
        losses.distance(unpaired, fused, sigma_bar), losses.distance(prior, fused_prior, sigma_bar)
    )
    report = made._update_generator()
    torch.testing.assert_close(report["eq5"], eq5.detach())
    torch.testing.assert_close(report["eq6"], eq6.detach())
    torch.testing.assert_close(report["eq4"], (eq5 + 0.7 * eq6).detach())


def test_the_average_is_an_exponential_one() -> None:
    made = trainer(steps=3)
    expected = [p.detach().clone() for p in made.generator.parameters()]
    for _ in train(made, 1):
        for average, now in zip(expected, made.generator.parameters(), strict=True):
            average.mul_(0.995).add_(0.005 * now.detach())
    for average, got in zip(expected, made.averaged.parameters(), strict=True):
        torch.testing.assert_close(average, got)


def test_training_brings_the_halves_together_and_weight_holds_it_back() -> None:
    pair = latents().unpaired(200, generator(0, "test"))
    apart = (pair[0] - pair[1]).square().mean().item()
    gaps, moves = {}, {}
    for weight in (0.0, 30.0):
        settings = FusionSettings(hidden=32, batch=32, steps=400, learning_rate=1e-3, ema=0.9)
        made = FusionTrainer(latents(), settings, weight, 0, 0)
        list(train(made, 400))
        with torch.no_grad():
            fused = made.averaged.iterate(pair, torch.zeros(200, 0), [1])[1]
        gaps[weight] = (fused[0] - fused[1]).square().mean().item()
        moves[weight] = losses.distance(pair, fused, torch.ones(Z)).mean().item()
    assert gaps[0.0] < 0.1 * apart
    assert moves[30.0] < 0.05 * moves[0.0]


def test_a_fresh_map_stays_near_its_input() -> None:
    made = trainer()
    pair = (draws(50, Z), draws(50, Z).flip(0))
    with torch.no_grad():
        left, _ = made.generator(pair, torch.rand(50, 2))
    gate = torch.sigmoid(torch.tensor(-2.0))
    assert (left - pair[0]).std() < 3 * gate


def test_initialising_depends_on_the_generator_alone() -> None:
    torch.manual_seed(1)
    one = small_generator(2)
    torch.manual_seed(2)
    other = small_generator(2)
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert all(m.bias.abs().max() == 0 for m in one.modules() if isinstance(m, nn.Linear))
