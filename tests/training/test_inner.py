"""The inner loop against PyTorch's own optimisers."""

from __future__ import annotations

import copy

import pytest
import torch

from edgeadapt.training.inner import Adam, adapt
from support.tiny_training import images, tiny_network


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("second_order", [False, True])
def test_k_steps_are_those_of_torch_optim(optimizer: str, second_order: bool) -> None:
    network = tiny_network(1)
    image = images(2, 1)[0]
    rate = 0.02
    sizes = {
        name: torch.tensor(rate, dtype=torch.float64) for name, _ in network.named_parameters()
    }
    start = dict(network.named_parameters())
    adapted = adapt(network, start, image, sizes, 4, optimizer, second_order)

    other = copy.deepcopy(network)
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    steps = kind(other.parameters(), lr=rate)
    losses, first = [], {}
    for step in range(4):
        steps.zero_grad()
        loss = other.adaptation_loss(image).sum()
        torch.autograd.backward(loss)
        if step == 0:
            first = {name: p.grad for name, p in other.named_parameters()}
        steps.step()
        losses.append(loss.detach())
    assert losses[-1] < losses[0]
    # float64, and a few hundred operations a value; Adam divides by gradients that may be small
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(adapted.parameters[name], parameter, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(adapted.first_gradient[name], first[name], rtol=1e-9, atol=1e-12)
        expected = start[name] - rate * first[name] if optimizer == "sgd" else None
        if expected is not None:
            torch.testing.assert_close(adapted.first_parameters[name], expected)
    torch.testing.assert_close(torch.stack(adapted.losses), torch.stack(losses))


def test_every_parameter_has_its_own_step_size() -> None:
    network = tiny_network(3)
    image = images(4, 1)[0]
    start = dict(network.named_parameters())
    sizes = {
        name: torch.tensor(0.01 * (1 + i), dtype=torch.float64) for i, name in enumerate(start)
    }
    adapted = adapt(network, start, image, sizes, 1)
    gradients = torch.autograd.grad(network.adaptation_loss(image).sum(), list(start.values()))
    for (name, parameter), gradient in zip(start.items(), gradients, strict=True):
        expected = parameter - sizes[name] * gradient
        torch.testing.assert_close(adapted.parameters[name], expected)


def test_adam_can_be_differentiated_where_a_gradient_is_zero() -> None:
    # what no pixel depends on has a gradient that is zero, and still part of the graph
    x = torch.tensor([0.0, 2.0], dtype=torch.float64, requires_grad=True)
    adam = Adam()
    moves = [adam.moves({"x": 3 * x})["x"] for _ in range(2)]
    for move in moves:
        torch.testing.assert_close(move.detach(), torch.tensor([0.0, 1.0], dtype=torch.float64))
    (slope,) = torch.autograd.grad(moves[0].sum() + moves[1].sum(), x)
    assert bool(torch.isfinite(slope).all())
