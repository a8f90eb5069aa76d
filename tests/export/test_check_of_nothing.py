"""The check where there is nothing to divide by: a loss of zero, an image restored to itself."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeadapt.export import check
from edgeadapt.export.check import LOSS_BOUND, PSNR_BOUND, compare, failures
from edgeadapt.export.reference import Reference
from support.exporting import export


class Perfect(nn.Module):
    """Returns the image as it is, so the loss and all gradients are zero."""

    size_multiple = 2

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(3, 1, 1))

    def restore(self, image: Tensor) -> Tensor:
        return image + self.gain * image

    def adaptation_loss(self, image: Tensor) -> Tensor:
        return (self.restore(image) - image).square().mean()[None]

    def parameter_groups(self) -> dict[str, list[str]]:
        return {"shared": ["gain"]}


class Worse(Perfect):
    """The same but for a constant."""

    def restore(self, image: Tensor) -> Tensor:
        return super().restore(image) + 0.01


def test_a_network_that_returns_its_input_passes(tmp_path: Path):
    bundle = export(Perfect(), tmp_path / "x.bundle")
    findings = compare(bundle, Reference(Perfect()))
    assert failures(findings) == []
    assert len(findings) >= 8


def test_another_network_than_one_that_returns_its_input_fails(tmp_path: Path):
    bundle = export(Worse(), tmp_path / "x.bundle")
    wrong = {finding.what for finding in failures(compare(bundle, Reference(Perfect())))}
    assert {"restore: image", "loss: loss", "adapt.all: 1 gradients"} <= wrong
    assert {"2 steps of scope all: losses", "2 steps of scope all: image, dB"} <= wrong


@pytest.mark.parametrize(
    ("found", "exact", "ok"),
    [
        (0.0, 0.0, True),
        (1e-9, 0.0, True),
        (1e-7, 0.0, False),
        (1.00002, 1.0, False),
        (0.100002, 0.1, False),
        (math.nan, 0.0, False),
        (0.0, math.nan, False),
        (math.inf, 0.0, False),
    ],
)
def test_a_loss_is_compared_absolutely_near_zero(found: float, exact: float, ok: bool):
    assert (check._loss_error(np.float32(found), exact) <= LOSS_BOUND) is ok


@pytest.mark.parametrize(("error", "same"), [(0.0, True), (1e-7, True), (1e-4, False)])
def test_equal_images_are_0_db_apart(error: float, same: bool):
    image = np.full((1, 3, 2, 2), 0.5, np.float32)
    distance = abs(check._quality(image + np.float64(error), image) - check._quality(image, image))
    assert (distance <= PSNR_BOUND) is same
    assert math.isnan(check._quality(image * np.float32(math.nan), image))
