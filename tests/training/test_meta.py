"""The outer gradient against differences, and Algorithm 1 against a plain transcription of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeadapt.errors import ConfigError
from edgeadapt.training.meta import MetaStage
from edgeadapt.training.network import DeblurNet, adaptation_terms, restoration_terms
from support.tiny_training import NETWORK, alone, images, tiny_config, tiny_network


def stage(network: DeblurNet, **meta: Any) -> MetaStage:
    return MetaStage(network, tiny_config(meta=meta))


def objective(
    network: DeblurNet, blurred: Tensor, sharp: Tensor, rate: float, steps: int, weight: float
) -> Tensor:
    """Eq. 5 for one sample with torch.optim.SGD, and ``weight`` times the loss without adaptation:
    nothing shared with the code under test.
    """
    other = copy.deepcopy(network)
    optimizer = torch.optim.SGD(other.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(adaptation_terms(other, other(blurred), blurred).sum())
        optimizer.step()
    adapted, plain = (restoration_terms(n, n(blurred), sharp).sum() for n in (other, network))
    return (adapted + weight * plain).detach()


def moved(network: DeblurNet, names: list[str], direction: list[Tensor], by: float) -> DeblurNet:
    other = copy.deepcopy(network)
    with torch.no_grad():
        for name, part in zip(names, direction, strict=True):
            other.get_parameter(name).add_(by * part)
    return other


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_second_order_gradient_is_the_slope_of_the_objective(weight: float) -> None:
    network = tiny_network(1, stop_gradient=False)
    blurred, sharp = images(2, 1)
    rate, steps = 0.05, 3
    settings = {"step_size": rate, "steps": steps, "unadapted_weight": weight}
    gradient = stage(network, **settings).gradients(blurred, sharp)[0]
    first = stage(network, **settings, order=1).gradients(blurred, sharp)[0]
    groups = network.parameter_groups()
    names = groups["shared"] + groups["primary"]
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = [
            torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in gradient
        ]
        # 1e-7 seldom carries a pixel across a kink of L1 or LeakyReLU; float64 leaves 1e-9 of noise
        values = [
            objective(moved(network, names, direction, by), blurred, sharp, rate, steps, weight)
            for by in (1e-7, -1e-7)
        ]
        slope = float(values[0] - values[1]) / 2e-7
        by_second = float(sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)))
        by_first = float(sum((g * d).sum() for g, d in zip(first, direction, strict=True)))
        assert by_second == pytest.approx(slope, rel=1e-4, abs=1e-6)
        assert by_first != pytest.approx(slope, rel=1e-3)  # so the second order is really there


@pytest.mark.parametrize("loss", ["l1", "psnr"])
def test_the_first_order_gradient_is_the_one_at_the_adapted_weights(loss: str) -> None:
    network = tiny_network(4)
    blurred, sharp = images(5, 2)
    own_way = {"order": 1, "aux_update": "outer", "restoration": loss}
    gradient = stage(network, **own_way).gradients(blurred, sharp)[0]
    expected: dict[str, Tensor] = {}
    for image, target in zip(blurred.split(1), sharp.split(1), strict=True):
        other = copy.deepcopy(network)
        optimizer = torch.optim.SGD(other.parameters(), lr=0.05)
        for _ in range(2):
            optimizer.zero_grad()
            torch.autograd.backward(other.adaptation_loss(image).sum())
            optimizer.step()
        optimizer.zero_grad()
        torch.autograd.backward(restoration_terms(other, other(image), target, loss).sum())
        for name, parameter in other.named_parameters():
            if parameter.grad is not None:
                expected[name] = expected.get(name, torch.zeros(())) + parameter.grad
        auxiliary = network.parameter_groups()["auxiliary"]
        own = torch.autograd.grad(
            network.adaptation_loss(image).sum(), [network.get_parameter(n) for n in auxiliary]
        )
        for name, part in zip(auxiliary, own, strict=True):
            expected[name] = expected.get(name, torch.zeros(())) * (name in expected) + part
    groups = network.parameter_groups()
    names = groups["shared"] + groups["primary"] + groups["auxiliary"]
    assert len(gradient) == len(names)
    for name, part in zip(names, gradient, strict=True):
        torch.testing.assert_close(part, expected[name], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("aux_update", ["literal", "copy_back"])
@pytest.mark.parametrize("outer_reduce", ["sum", "mean"])
def test_algorithm_1_line_by_line(aux_update: str, outer_reduce: str) -> None:
    network = tiny_network(6)
    blurred, sharp = images(7, 3)
    rate, outer_rate = 0.05, 0.1
    other = copy.deepcopy(network)
    auxiliary = other.parameter_groups()["auxiliary"]
    sums = {name: torch.zeros_like(p) for name, p in other.named_parameters()}
    for image, target in zip(blurred.split(1), sharp.split(1), strict=True):
        adapted = copy.deepcopy(other)
        optimizer = torch.optim.SGD(adapted.parameters(), lr=rate)
        for step in range(2):
            optimizer.zero_grad()
            torch.autograd.backward(adapted.adaptation_loss(image).sum())
            optimizer.step()
            if step == 0:
                after_one = {name: adapted.get_parameter(name).clone() for name in auxiliary}
        optimizer.zero_grad()
        torch.autograd.backward(restoration_terms(adapted, adapted(image), target).sum())
        for name, parameter in adapted.named_parameters():
            if parameter.grad is not None:
                sums[name] += parameter.grad
        with torch.no_grad():
            for name in auxiliary:
                kept = after_one[name] if aux_update == "literal" else adapted.get_parameter(name)
                other.get_parameter(name).copy_(kept)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name not in auxiliary:
                parameter.sub_(outer_rate * sums[name] / (3 if outer_reduce == "mean" else 1))

    options = {"outer_reduce": outer_reduce, "aux_update": aux_update, "order": 1}
    tested = stage(network, outer_optimizer="sgd", learning_rate=outer_rate, **options)
    tested.step(0, blurred, sharp, alone)
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(network.get_parameter(name), parameter, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_the_gradient_of_a_step_size_is_the_slope_of_the_objective(order: int) -> None:
    network = tiny_network(8, stop_gradient=False)
    blurred, sharp = images(9, 1)
    # one step: there the first-order gradient of a step size is exact as well
    tested = stage(network, order=order, learn_step_sizes=True, steps=1, step_size=0.03)
    gradient = tested.gradients(blurred, sharp)[0][-1]
    slope = [objective(network, blurred, sharp, 0.03 * (1 + by), 1, 0.0) for by in (1e-6, -1e-6)]
    # all step sizes grow by the same factor, so the slope is the sum over their logarithms.
    # The differences cross no kink of L1 or LeakyReLU, so only float64 noise is left
    assert float(gradient.sum()) == pytest.approx(float(slope[0] - slope[1]) / 2e-6, rel=1e-4)
    assert len(set(gradient.tolist())) > len(gradient) // 2


def test_learned_step_sizes_are_reported_by_name_and_restored() -> None:
    network = tiny_network(10)
    tested = stage(network, learn_step_sizes=True, step_sizes_rate=0.1)
    tested.step(0, *images(11, 3), alone)
    learned = tested.adaptation()
    assert set(learned.step_sizes) == {name for name, _ in network.named_parameters()}
    assert len(set(learned.step_sizes.values())) > 1
    again = stage(network, learn_step_sizes=True)
    again.load_state(tested.state())
    assert again.adaptation().step_sizes == learned.step_sizes
    assert stage(network).adaptation().step_sizes == {}


@pytest.mark.parametrize(("iteration", "share"), [(0, 1.0), (1, 0.853553), (3, 0.146447)])
def test_the_cosine_takes_both_outer_rates_down(iteration: int, share: float) -> None:
    moves = []
    for schedule in ("constant", "cosine"):
        network = tiny_network(14)
        before = [parameter.detach().clone() for parameter in network.parameters()]
        rates = {"learning_rate": 0.1, "step_sizes_rate": 0.2, "learn_step_sizes": True}
        way = {"schedule": schedule, "iterations": 4, "outer_optimizer": "sgd"}
        tested = stage(network, aux_update="outer", **rates, **way)
        tested.step(iteration, *images(15, 2), alone)
        moved = [p.detach() - b for p, b in zip(network.parameters(), before, strict=True)]
        sizes = torch.tensor([*tested.adaptation().step_sizes.values()], dtype=torch.float64)
        moves.append((torch.cat([part.reshape(-1) for part in moved]), (sizes / 0.05).log()))
    for constant, cosine in zip(*moves, strict=True):
        assert float(constant.norm()) > 0
        torch.testing.assert_close(cosine, share * constant, rtol=1e-5, atol=1e-9)


def test_validation_restores_with_the_k_steps() -> None:
    network = tiny_network(12)
    image = images(13, 1)[0]
    restored = stage(network).restore(image)
    other = copy.deepcopy(network)
    torch.testing.assert_close(restored["psnr_before"], other.restore(image))
    optimizer = torch.optim.SGD(other.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(other.adaptation_loss(image).sum())
        optimizer.step()
    torch.testing.assert_close(restored["psnr"], other.restore(image), rtol=1e-6, atol=1e-8)
    assert list(restored)[-1] == "psnr"


def test_a_network_without_auxiliary_branch_is_refused() -> None:
    config = tiny_config()
    alone_network = NETWORK.from_options({"preset": "nano", "aux_branch": False})
    with pytest.raises(ConfigError, match=r"must have network.aux_branch = true"):
        MetaStage(DeblurNet(alone_network), type(config)(alone_network, config.data))
