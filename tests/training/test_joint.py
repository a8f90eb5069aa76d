"""Stage 1: the loss of Eq. 3, Adam, and the ways the rate falls."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from edgeadapt.training.config import JointConfig
from edgeadapt.training.joint import JointStage, Plateau, cosine_rate, warmed
from edgeadapt.training.network import restoration_terms
from support.tiny_training import alone, images, tiny_config, tiny_network


def own_restoration_loss(kind: str, target: Tensor, output: Tensor) -> Tensor:
    if kind == "l1":
        return F.l1_loss(target, output)
    squares = [F.mse_loss(*pair) for pair in zip(target, output, strict=True)]
    return torch.stack(squares).add(1e-5).log().mean() / 40


@pytest.mark.parametrize(("weight", "kind"), [(1.0, "l1"), (0.05, "l1"), (1.0, "psnr")])
def test_a_step_is_adam_on_the_weighted_sum_of_both_losses(weight: float, kind: str) -> None:
    network = tiny_network(1)
    other = copy.deepcopy(network)
    joint = {"learning_rate": 1e-2, "schedule": "constant", "adaptation_weight": weight}
    stage = JointStage(network, tiny_config(joint=joint | {"restoration": kind}))
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-2)
    for iteration in range(3):
        blurred, sharp = images(iteration, 2)
        values = stage.step(iteration, blurred, sharp, alone)
        optimizer.zero_grad()
        outputs = other(blurred)
        loss = torch.zeros((), dtype=torch.float64)
        for z in range(2):
            restored, again = outputs.restored[z], outputs.reconstructed[z]
            loss = loss + own_restoration_loss(kind, other.pyramid(sharp)[z], restored)
            loss = loss + weight * F.l1_loss(other.pyramid(blurred)[z], again)
        torch.autograd.backward(loss)
        optimizer.step()
        torch.testing.assert_close(values["loss"], loss.detach())
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(network.get_parameter(name), parameter, rtol=1e-9, atol=1e-11)


def test_a_teacher_takes_the_place_of_the_sharp_images() -> None:
    network, teacher = tiny_network(1), tiny_network(2)
    taught, shown = copy.deepcopy(network), copy.deepcopy(network)
    config = tiny_config()
    stage, plain = JointStage(taught, config, teacher), JointStage(shown, config)
    before = copy.deepcopy(teacher.state_dict())
    for iteration in range(2):
        blurred, sharp = images(iteration, 2)
        values = stage.step(iteration, blurred, torch.full_like(sharp, torch.nan), alone)
        with torch.no_grad():
            target = teacher(blurred).restored[0]
        same = plain.step(iteration, blurred, target, alone)
        assert torch.equal(values["loss"], same["loss"])
    for name, parameter in taught.named_parameters():
        assert torch.equal(parameter, shown.get_parameter(name))
        assert not torch.equal(parameter, network.get_parameter(name))
    for name, weight in before.items():
        assert torch.equal(teacher.state_dict()[name], weight)


def test_the_psnr_loss_is_the_mean_psnr_of_the_images() -> None:
    network = tiny_network(3)
    blurred, sharp = images(4, 3)
    restored = network.pyramid(sharp + torch.tensor([0.3, 0.03, 0.003]).reshape(3, 1, 1, 1))
    terms = restoration_terms(network, network(blurred)._replace(restored=restored), sharp, "psnr")
    for term, target, output in zip(terms, network.pyramid(sharp), restored, strict=True):
        pairs = zip(target.numpy(), output.numpy(), strict=True)
        mean = np.mean([peak_signal_noise_ratio(*pair, data_range=2) for pair in pairs])
        decibels = -10 / math.log(10) * 40 * float(term) + 10 * math.log10(2**2)
        # 1e-5 is added to squares of 9e-6 and more: up to 3.2 dB on the last image, 0.05 before
        added = [10 * math.log10(1 + 1e-5 / shift**2) for shift in (0.3, 0.03, 0.003)]
        assert decibels == pytest.approx(mean - np.mean(added), abs=1e-6)


def test_gradients_are_clipped_to_the_norm_asked_for() -> None:
    network = tiny_network(2)
    stage = JointStage(network, tiny_config(joint={"clip_norm": 1e-3}))
    stage.step(0, *images(3, 2), alone)
    norm = torch.cat(
        [p.grad.reshape(-1) for p in network.parameters() if p.grad is not None]
    ).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-4)


def test_the_plateau_halves_the_rate_when_the_loss_stops_falling() -> None:
    config = JointConfig(learning_rate=1.0, plateau_window=2, plateau_patience=2, final_rate=0.2)
    plateau = Plateau(config)
    rates = []
    for mean in (5.0, 4.0, 4.5, 4.1, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0):
        plateau.add(mean + 1)
        plateau.add(mean - 1)
        rates.append(plateau.rate)
    # means 4.5 and 4.1 are two windows without a better one; then 3.0 is better, and then no more
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]
    plateau.add(7.0)  # half a window
    again = Plateau(config)
    again.load_state(plateau.state())
    assert again.state() == plateau.state() != Plateau(config).state()
    assert again.state()["sum"] == 7.0


def test_the_cosine_runs_from_the_first_rate_to_the_last() -> None:
    config = JointConfig(iterations=100, learning_rate=1.0, final_rate=0.1)
    assert cosine_rate(config, 0) == 1.0
    assert cosine_rate(config, 50) == pytest.approx(0.55)
    assert cosine_rate(config, 25) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert cosine_rate(config, 100) == pytest.approx(0.1)
    assert cosine_rate(config, 200) == pytest.approx(0.1)


def test_warm_up_rises_in_equal_steps() -> None:
    assert [warmed(1.0, i, 3) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert warmed(1.0, 0, 0) == 1.0


def test_bfloat16_keeps_the_weights_in_float32() -> None:
    network = tiny_network(4).float()
    config = tiny_config(joint={"schedule": "constant"})
    bf16 = tiny_config(joint={"schedule": "constant", "precision": "bf16"})
    blurred, sharp = (image.float() for image in images(5, 2))
    exact = JointStage(copy.deepcopy(network), config).step(0, blurred, sharp, alone)["loss"]
    rough = JointStage(network, bf16).step(0, blurred, sharp, alone)["loss"]
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    # bfloat16 keeps 8 bits: 0.4 % an operation; equal values would mean that it was not used
    assert float(rough) == pytest.approx(float(exact), rel=0.02)
    assert float(rough) != float(exact)
