"""Stacked networks against separate ones, and how weights begin."""

import pytest
import torch
from torch import Tensor

from cf_core.nets import MLP, initialise
from cf_core.seeding import make_random


def draws(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=make_random(0, "draws", *shape), dtype=torch.float64)


def test_the_perceptron_is_as_written() -> None:
    made = MLP(2, 3, 1, 1)
    with torch.no_grad():
        made.weights[0].copy_(torch.tensor([[1.0, -1.0, 2.0], [0.0, 1.0, -3.0]]))
        made.biases[0].copy_(torch.tensor([[0.5, 0.0, 1.0]]))
        made.weights[1].copy_(torch.tensor([[1.0], [10.0], [100.0]]))
        made.biases[1].fill_(0.25)
    # Hidden sums of (1, 2): 1.5, 1 and -3, of which the last leaks a fifth.
    output = made(torch.tensor([[1.0, 2.0]])).item()
    assert output == pytest.approx(1.5 + 10 - 60 + 0.25)


def test_stacked_perceptrons_equal_separate_ones_and_so_do_their_gradients() -> None:
    trials = 3
    stacked = MLP(4, 5, 2, 3, trials).double()
    initialise(stacked, make_random(0, "stacked"))
    for bias in stacked.biases:
        bias.data.normal_(generator=make_random(0, "bias"))
    inputs = draws(trials, 6, 4)
    outputs = stacked(inputs)
    outputs.square().sum().backward()
    for row in range(trials):
        alone = MLP(4, 5, 2, 3).double()
        for parameter, stack in zip(alone.parameters(), stacked.parameters(), strict=True):
            parameter.data.copy_(stack[row])
        expected = alone(inputs[row])
        expected.square().sum().backward()
        torch.testing.assert_close(outputs[row], expected, rtol=1e-12, atol=1e-12)
        for parameter, stack in zip(alone.parameters(), stacked.parameters(), strict=True):
            assert stack.grad is not None
            torch.testing.assert_close(stack.grad[row], parameter.grad, rtol=1e-12, atol=1e-12)


def test_initial_weights_have_the_spread_of_their_inputs_and_no_bias() -> None:
    made = MLP(400, 100, 200, 2)
    initialise(made, make_random(0, "wide"))
    for weight, fan_in in zip(made.weights, (400, 100, 100), strict=True):
        spread = weight.std().item() * fan_in**0.5
        assert abs(spread - 1) < 4 / (2 * weight.numel()) ** 0.5
    assert all(bias.abs().max() == 0 for bias in made.biases)


def test_initialising_depends_on_the_generator_alone() -> None:
    made = []
    for other in (1, 2):
        torch.manual_seed(other)
        made.append(MLP(3, 4, 2, 2))
        initialise(made[-1], make_random(0, "g"))
    assert all(map(torch.equal, made[0].parameters(), made[1].parameters()))
