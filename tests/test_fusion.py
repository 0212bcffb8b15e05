"""The fusion map, the discriminator, and the latents that they are trained on."""

import math

import pytest
import torch
from torch import Tensor, nn

from cf_core.fusion import Discriminator, Generator, Latents, condition_on
from cf_core.losses import Pair
from cf_core.nets import initialise
from cf_core.seeding import make_random

Z = 3
NO_CONDITION = torch.empty(5, 0)


def small_generator(
    style_dim: int = 2, *, gated: bool = True, conditional: bool = False
) -> Generator:
    made = Generator(Z, style_dim, 8, 2, gated=gated, conditional=conditional)
    initialise(made, make_random(0, "g"))
    return made.requires_grad_(requires_grad=False)


def draws(purpose: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=make_random(0, purpose))


def pair_of(count: int = 5) -> Pair:
    return draws("left", count, Z), draws("right", count, Z)


def style_of(style_dim: int, count: int = 5) -> Tensor:
    return torch.rand(count, style_dim, generator=make_random(0, "style"))


def latents(count: int = 40) -> Latents:
    mean = draws("mean", count, Z)
    rows = torch.arange(0, count, 2)
    mean[1::2] = mean[::2]
    deviation = torch.full((count, Z), 0.1)
    return Latents(mean, deviation, torch.stack((rows, rows + 1), 1), torch.ones(Z), mean[:, :0])


def assert_same(one: Pair, other: Pair) -> None:
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


def test_the_map_is_a_gated_residual_as_written() -> None:
    made, (left, right), style = small_generator(), pair_of(), style_of(2)
    out = made.net(torch.cat((left, right, style), 1))
    for half, z in enumerate((left, right)):
        g = 1 / (1 + torch.exp(-out[:, half * Z : (half + 1) * Z]))
        delta = out[:, (2 + half) * Z : (3 + half) * Z]
        result = made((left, right), style, NO_CONDITION)[half]
        torch.testing.assert_close(result, (1 - g) * z + g * delta)


def test_without_gates_the_map_adds() -> None:
    made, (left, right), style = small_generator(gated=False), pair_of(), style_of(2)
    delta = made.net(torch.cat((left, right, style), 1))
    assert delta.shape == (5, 2 * Z)
    assert_same(
        made((left, right), style, NO_CONDITION), (left + delta[:, :Z], right + delta[:, Z:])
    )


@pytest.mark.parametrize("gated", [True, False])
def test_iterating_feeds_outputs_back_with_the_same_style(gated: bool) -> None:
    made, pair, style = small_generator(gated=gated), pair_of(), style_of(2)
    kept = made.iterate(pair, style, [3, 1])
    once = made(pair, style, NO_CONDITION)
    thrice = made(made(once, style, NO_CONDITION), style, NO_CONDITION)
    assert kept.keys() == {1, 3}
    assert_same(kept[1], once)
    assert_same(kept[3], thrice)
    assert_same(made.iterate(pair, style, [1], lambda_=0.5)[1], once)


def test_a_conditional_map_iterates_with_its_weight() -> None:
    made, pair, style = small_generator(conditional=True), pair_of(), style_of(2)
    # (1 + log10 λ) / 2 of λ = 0.001 is -1.
    given = torch.full((5, 1), -1.0)
    twice = made(made(pair, style, given), style, given)
    kept = made.iterate(pair, style, [2], lambda_=1e-3)[2]
    torch.testing.assert_close(kept, twice)
    assert not torch.equal(made.iterate(pair, style, [2], lambda_=1.0)[2][0], kept[0])


def test_a_conditional_map_needs_its_weight() -> None:
    with pytest.raises(ValueError, match="λ above 0"):
        small_generator(conditional=True).iterate(pair_of(), style_of(2), [1])


def test_weights_as_conditional_networks_see_them() -> None:
    seen = condition_on(torch.tensor([[1e-3, 0.1], [1.0, 10.0]], dtype=torch.float64))
    torch.testing.assert_close(
        seen, torch.tensor([[[-1.0], [0.0]], [[0.5], [1.0]]], dtype=torch.float64)
    )


def test_without_style_dimensions_the_map_takes_none() -> None:
    made, pair = small_generator(0), pair_of()
    out = made.net(torch.cat(pair, 1))
    assert out.shape == (5, 4 * Z)
    assert_same(made(pair, style_of(0), NO_CONDITION), made.iterate(pair, style_of(0), [1])[1])


def set_rows(stacked: nn.Module, separate: list[nn.Module]) -> None:
    for row, alone in enumerate(separate):
        initialise(alone, make_random(row, "alone"))
        for stack, parameter in zip(stacked.parameters(), alone.parameters(), strict=True):
            stack.data[row] = parameter.data


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("conditional", [True, False])
def test_stacked_maps_and_discriminators_equal_separate_ones(
    gated: bool, conditional: bool
) -> None:
    trials, kind = 3, {"gated": gated, "conditional": conditional}
    maps = [Generator(Z, 2, 8, 2, **kind).double() for _ in range(trials)]
    stacked = Generator(Z, 2, 8, 2, **kind, trials=trials).double()
    set_rows(stacked, [*maps])
    judges = [Discriminator(Z, 8, 2, conditional=conditional).double() for _ in range(trials)]
    stacked_judge = Discriminator(Z, 8, 2, conditional=conditional, trials=trials).double()
    set_rows(stacked_judge, [*judges])
    left, right = draws("stack", 2, trials, 5, Z).double()
    style = draws("style", trials, 5, 2).double()
    condition = draws("condition", trials, 5, int(conditional)).double()
    fused = stacked((left, right), style, condition)
    logits = stacked_judge((left, right), condition)
    assert logits.shape == (trials, 5)
    for row in range(trials):
        alone = maps[row]((left[row], right[row]), style[row], condition[row])
        torch.testing.assert_close((fused[0][row], fused[1][row]), alone, rtol=0, atol=1e-12)
        logit = judges[row]((left[row], right[row]), condition[row])
        torch.testing.assert_close(logits[row], logit, rtol=0, atol=1e-12)


def test_paired_draws_are_adjacent_and_unpaired_ones_independent() -> None:
    data = latents()
    left, right = data.paired(4000, make_random(0, "p"))
    assert ((left - right) ** 2).mean().item() == pytest.approx(2 * 0.1**2, rel=0.1)
    left, right = data.unpaired(4000, make_random(0, "u"))
    correlation = torch.corrcoef(torch.stack((left[:, 0], right[:, 0])))[0, 1]
    assert abs(correlation.item()) < 4 / math.sqrt(4000)
    left, right = data.prior(4000, make_random(0, "q"))
    assert left.std().item() == pytest.approx(1.0, abs=0.03)
    assert not torch.equal(left, right)


def test_paired_draws_come_in_their_order() -> None:
    # Left latents are all 0, right ones all 1.
    mean = torch.tensor([[0.0], [1.0]])
    data = Latents(mean, torch.zeros(2, 1), torch.tensor([[0, 1]]), torch.ones(1), mean[:, :0])
    left, right = data.paired(7, make_random(0, "p"))
    assert left.tolist() == [[0.0]] * 7
    assert right.tolist() == [[1.0]] * 7


def test_draws_have_the_precision_of_the_latents() -> None:
    data = latents()
    double = Latents(
        data.mean.double(),
        data.deviation.double(),
        data.pairs,
        data.sigma_bar.double(),
        data.code.double(),
    )
    for made, dtype in ((data, torch.float32), (double, torch.float64)):
        for draw in (made.paired, made.unpaired, made.prior):
            assert draw(2, make_random(0, "p"))[0].dtype == dtype
