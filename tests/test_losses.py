"""Equations 1-7 against literal, slow re-derivations in double precision."""

import math

import pytest
import torch
from torch import Tensor

from cf_core import losses
from cf_core.fusion import gradient_penalty
from cf_core.seeding import generator


def logits(purpose: str, count: int = 7) -> Tensor:
    drawn = torch.randn(count, generator=generator(0, purpose), dtype=torch.float64)
    return (3 * drawn).requires_grad_()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_equations_1_to_3_with_logarithms_written_out() -> None:
    real, unpaired, prior, fused, fused_prior = (logits(f"d{i}", 5 + i) for i in range(5))
    eq2 = mean([-math.log(sigmoid(x)) for x in real.tolist()])
    negatives = (unpaired, prior, fused, fused_prior)
    eq3 = sum(mean([-math.log(1 - sigmoid(x)) for x in part.tolist()]) for part in negatives)
    positive, negative = (
        losses.discriminator_positive(real),
        losses.discriminator_negative(*negatives),
    )
    assert positive.item() == pytest.approx(eq2, rel=1e-12)
    assert negative.item() == pytest.approx(eq3, rel=1e-12)
    assert losses.discriminator_loss(positive, negative).item() == pytest.approx(
        eq2 + eq3, rel=1e-12
    )


def test_equations_4_to_6_with_logarithms_written_out() -> None:
    fused, fused_prior = logits("g0"), logits("g1", 9)
    eq5 = mean([-math.log(sigmoid(x)) for x in fused.tolist()])
    eq5 += mean([-math.log(sigmoid(x)) for x in fused_prior.tolist()])
    first, second = logits("g2"), logits("g3", 9)
    eq6 = mean(first.tolist()) + mean(second.tolist())
    adversarial = losses.generator_adversarial(fused, fused_prior)
    similarity = losses.similarity_loss(first, second)
    assert adversarial.item() == pytest.approx(eq5, rel=1e-12)
    assert similarity.item() == pytest.approx(eq6, rel=1e-12)
    total = losses.generator_loss(adversarial, similarity, 0.3)
    assert total.item() == pytest.approx(eq5 + 0.3 * eq6, rel=1e-12)


def test_equation_7_worked_by_hand() -> None:
    # left: (1/2)(ln 2 / 0.25 + ln 5 / 1), right: (1/2)(0 + ln 10 / 1)
    before = (torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 2.0]]))
    after = (torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 5.0]]))
    expected = (4 * math.log(2) + math.log(5) + math.log(10)) / 2
    distance = losses.distance(before, after, torch.tensor([0.5, 1.0]))
    assert distance.tolist() == pytest.approx([expected], rel=1e-6)


def test_equation_7_is_zero_at_the_input_and_symmetric_in_the_halves() -> None:
    random = generator(0, "pairs")
    left, right, other = torch.randn(3, 4, 6, generator=random, dtype=torch.float64)
    sigma_bar = torch.rand(6, generator=random, dtype=torch.float64) + 0.1
    assert losses.distance((left, right), (left, right), sigma_bar).abs().max() == 0
    one = losses.distance((left, right), (other, right), sigma_bar)
    swapped = losses.distance((right, left), (right, other), sigma_bar)
    torch.testing.assert_close(one, swapped, rtol=0, atol=0)


def test_gradients_agree_with_finite_differences() -> None:
    real, fused = logits("a"), logits("b")
    assert torch.autograd.gradcheck(losses.discriminator_positive, (real,))
    assert torch.autograd.gradcheck(losses.discriminator_negative, (real, fused, fused, real))
    assert torch.autograd.gradcheck(losses.generator_adversarial, (real, fused))
    z = [logits(f"z{i}", 6).reshape(2, 3) for i in range(4)]
    sigma_bar = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)

    def distance(left: Tensor, right: Tensor, left_after: Tensor, right_after: Tensor) -> Tensor:
        return losses.distance((left, right), (left_after, right_after), sigma_bar)

    assert torch.autograd.gradcheck(distance, z)


def test_losses_stay_finite_where_sigmoids_saturate() -> None:
    far = torch.tensor([-200.0, 200.0])
    assert losses.positive(far).tolist() == pytest.approx([200.0, 0.0])
    assert losses.negative(far).tolist() == pytest.approx([0.0, 200.0])


def test_the_negative_loss_pulls_hardest_where_the_discriminator_is_fooled() -> None:
    # The printed -(1 - log D) does the reverse: its gradient by the logit is 1 - D.
    logit = torch.tensor([-5.0, 5.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.negative(logit).sum(), logit)
    assert gradient.tolist() == pytest.approx([sigmoid(-5), sigmoid(5)], rel=1e-5)


def test_the_gradient_penalty_of_a_linear_map_is_its_squared_norm() -> None:
    weight = torch.tensor([3.0, -4.0])
    inputs = torch.randn(5, 2, generator=generator(0, "inputs")).requires_grad_()
    assert gradient_penalty(inputs @ weight, inputs).item() == pytest.approx(25.0)
