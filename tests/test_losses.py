"""Equations 1-7 against literal, slow re-derivations in double precision."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from cf_core import losses
from cf_core.nets import MLP, initialise
from cf_core.pack import gradient_penalty
from cf_core.seeding import make_random

SHAPES = [(), (3,)]
"""One trial, and three side by side."""


def logits(purpose: str, *shape: int) -> Tensor:
    drawn = torch.randn(shape or (7,), generator=make_random(0, purpose), dtype=torch.float64)
    return (3 * drawn).requires_grad_()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def rows(values: Tensor) -> list[list[float]]:
    """One list of numbers for each trial."""
    listed: list[list[float]] = values.reshape(-1, values.shape[-1]).tolist()
    return listed


def each(values: Tensor) -> list[float]:
    """One number for each trial."""
    listed: list[float] = values.reshape(-1).tolist()
    return listed


@pytest.mark.parametrize("stack", SHAPES)
def test_equations_1_to_3_with_logarithms_written_out(stack: tuple[int, ...]) -> None:
    real, *negatives = (logits(f"d{i}", *stack, 5 + i) for i in range(5))
    eq2 = losses.discriminator_positive(real)
    eq3 = losses.discriminator_negative(*negatives)
    eq1 = losses.discriminator_loss(eq2, eq3)
    assert eq1.shape == eq2.shape == eq3.shape == stack
    for trial in range(math.prod(stack)):
        positive = mean([-math.log(sigmoid(x)) for x in rows(real)[trial]])
        negative = sum(
            mean([-math.log(1 - sigmoid(x)) for x in rows(part)[trial]]) for part in negatives
        )
        assert each(eq2)[trial] == pytest.approx(positive, rel=1e-12)
        assert each(eq3)[trial] == pytest.approx(negative, rel=1e-12)
        assert each(eq1)[trial] == pytest.approx(positive + negative, rel=1e-12)


@pytest.mark.parametrize("stack", SHAPES)
def test_equations_4_to_6_with_logarithms_written_out(stack: tuple[int, ...]) -> None:
    fused = logits("g0", *stack, 7), logits("g1", *stack, 9)
    distances = logits("g2", *stack, 7).abs(), logits("g3", *stack, 9).abs()
    eq5 = losses.generator_adversarial(*fused)
    eq6 = losses.similarity_loss(*distances)
    weight = 0.3
    weighted = losses.similarity_loss(*(weight * part for part in distances))
    eq4 = losses.generator_loss(eq5, weighted)
    assert eq4.shape == eq5.shape == eq6.shape == stack
    for trial in range(math.prod(stack)):
        adversarial = sum(mean([-math.log(sigmoid(x)) for x in rows(p)[trial]]) for p in fused)
        similarity = sum(mean(rows(part)[trial]) for part in distances)
        assert each(eq5)[trial] == pytest.approx(adversarial, rel=1e-12)
        assert each(eq6)[trial] == pytest.approx(similarity, rel=1e-12)
        assert each(eq4)[trial] == pytest.approx(adversarial + weight * similarity, rel=1e-12)


@pytest.mark.parametrize("stack", SHAPES)
def test_equation_7_written_out(stack: tuple[int, ...]) -> None:
    count, size = 4, 3
    before, after = (
        (logits(f"{name}l", *stack, count, size), logits(f"{name}r", *stack, count, size))
        for name in ("before", "after")
    )
    sigma_bar = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    distances = losses.distance(before, after, sigma_bar)
    assert distances.shape == (*stack, count)
    flat = [part.reshape(-1, size).tolist() for part in (*before, *after)]
    for row, (left, right, left_after, right_after) in enumerate(zip(*flat, strict=True)):
        expected = 0.0
        for half, half_after in ((left, left_after), (right, right_after)):
            for z, z_after, sigma in zip(half, half_after, sigma_bar.tolist(), strict=True):
                expected += abs(math.log(1 + (z_after - z) ** 2) / sigma**2) / size
        assert each(distances)[row] == pytest.approx(expected, rel=1e-12)


def test_equation_7_worked_by_hand() -> None:
    # left: (1/2)(ln 2 / 0.25 + ln 5 / 1), right: (1/2)(0 + ln 10 / 1)
    before = (torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 2.0]]))
    after = (torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 5.0]]))
    expected = (4 * math.log(2) + math.log(5) + math.log(10)) / 2
    distance = losses.distance(before, after, torch.tensor([0.5, 1.0]))
    assert distance.tolist() == pytest.approx([expected], rel=1e-6)


def test_equation_7_is_zero_at_the_input_and_symmetric_in_the_halves() -> None:
    random = make_random(0, "pairs")
    left, right, other = torch.randn(3, 4, 6, generator=random, dtype=torch.float64)
    sigma_bar = torch.rand(6, generator=random, dtype=torch.float64) + 0.1
    assert losses.distance((left, right), (left, right), sigma_bar).abs().max() == 0
    one = losses.distance((left, right), (other, right), sigma_bar)
    swapped = losses.distance((right, left), (right, other), sigma_bar)
    torch.testing.assert_close(one, swapped, rtol=0, atol=0)


@pytest.mark.parametrize("stack", SHAPES)
def test_gradients_agree_with_finite_differences(stack: tuple[int, ...]) -> None:
    a, b, c, d = (logits(name, *stack, 4 + i) for i, name in enumerate("abcd"))
    assert torch.autograd.gradcheck(losses.positive, (a,))
    assert torch.autograd.gradcheck(losses.negative, (a,))
    assert torch.autograd.gradcheck(losses.discriminator_positive, (a,))
    assert torch.autograd.gradcheck(losses.discriminator_negative, (a, b, c, d))
    assert torch.autograd.gradcheck(losses.generator_adversarial, (a, b))
    assert torch.autograd.gradcheck(losses.similarity_loss, (a, b))
    parts = a.detach().sum(-1).requires_grad_(), b.detach().sum(-1).requires_grad_()
    assert torch.autograd.gradcheck(losses.discriminator_loss, parts)
    assert torch.autograd.gradcheck(losses.generator_loss, parts)
    sigma_bar = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)

    def distance(left: Tensor, right: Tensor, left_after: Tensor, right_after: Tensor) -> Tensor:
        return losses.distance((left, right), (left_after, right_after), sigma_bar)

    assert torch.autograd.gradcheck(distance, [logits(f"z{i}", *stack, 2, 3) for i in range(4)])


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
    inputs = torch.randn(5, 2, generator=make_random(0, "inputs")).requires_grad_()
    assert gradient_penalty(inputs @ weight, inputs).item() == pytest.approx(25.0)


def small_network(stack: tuple[int, ...]) -> MLP:
    made = MLP(3, 4, 1, 2, *stack).double()
    initialise(made, make_random(0, "network"))
    for bias in made.biases:
        bias.data.normal_(generator=make_random(0, "bias"))
    return made


@pytest.mark.parametrize("stack", SHAPES)
def test_the_gradient_penalty_row_by_row(stack: tuple[int, ...]) -> None:
    network, inputs = small_network(stack), logits("inputs", *stack, 5, 3)
    penalty = gradient_penalty(network(inputs).squeeze(-1), inputs)
    assert penalty.shape == stack
    weights = [w.detach().reshape(-1, *w.shape[-2:]) for w in network.weights]
    biases = [b.detach().reshape(-1, 1, b.shape[-1]) for b in network.biases]
    for trial, batch in enumerate(inputs.detach().reshape(-1, 5, 3)):
        norms = []
        for row in batch:
            # By the chain rule: a product of the weights, each scaled by its rectifier's slope.
            jacobian, hidden = torch.eye(3, dtype=torch.float64), row
            for weight, bias in zip(weights[:2], biases[:2], strict=True):
                hidden = hidden @ weight[trial] + bias[trial, 0]
                slope = 0.2 + 0.8 * (hidden > 0).double()
                hidden, jacobian = hidden * slope, jacobian @ weight[trial] * slope
            jacobian = jacobian @ weights[2][trial]
            norms.append(sum(value**2 for value in jacobian[:, 0].tolist()))
        assert each(penalty)[trial] == pytest.approx(mean(norms), rel=1e-12)


@pytest.mark.parametrize("stack", SHAPES)
def test_the_gradient_penalty_s_own_gradient_by_the_weights(stack: tuple[int, ...]) -> None:
    network, inputs = small_network(stack), logits("inputs", *stack, 5, 3)
    names = [name for name, _ in network.named_parameters()]

    def penalty(*weights: Tensor) -> Tensor:
        outputs = functional_call(network, dict(zip(names, weights, strict=True)), (inputs,))
        return gradient_penalty(outputs.squeeze(-1), inputs)

    assert torch.autograd.gradcheck(penalty, tuple(network.parameters()))
