"""Networks as users bring them, in the styles of the field: each is exported and held to PyTorch.

What matters is that a whole network goes through: its layers, their gradients, its own loss. The
operators one by one are in `test_lowerings.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeadapt.bundle import Adaptation, Model
from edgeadapt.errors import ExportError
from edgeadapt.export.check import compare, failures
from edgeadapt.export.exporter import ExportOptions, export_bundle
from edgeadapt.export.reference import Reference
from support.user_networks import BODIES, LOSSES, Network, conv


def assert_exported_as_pytorch(network: Network, folder: Path) -> None:
    model, adaptation = Model("other", "", "none:none", {}), Adaptation(2, "sgd", 1e-3)
    bundle = export_bundle(network, folder / "other.bundle", ExportOptions(model, adaptation))
    assert failures(compare(bundle, Reference(network))) == []


@pytest.mark.parametrize("name", BODIES)
def test_a_network_is_exported_as_pytorch_runs_it(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert_exported_as_pytorch(Network(BODIES[name]()), tmp_path)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_exported_as_pytorch_runs_it(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert_exported_as_pytorch(Network(conv(nn.Sigmoid()), LOSSES[name]), tmp_path)


def test_what_works_for_one_size_only_is_refused(tmp_path: Path) -> None:
    def spectrum(y: Tensor, x: Tensor) -> Tensor:
        return torch.fft.rfft2(y - x).abs().mean()

    with pytest.raises(ExportError, match="one image size only"):
        assert_exported_as_pytorch(Network(conv(), spectrum), tmp_path)


def test_a_batch_of_images_is_refused(tmp_path: Path) -> None:
    class Consistent(Network):
        def adaptation_loss(self, image: Tensor) -> Tensor:
            return super().adaptation_loss(torch.cat([image, image.flip(3)], 0))

    with pytest.raises(ExportError, match=r"one image at a time, got 2.*once for each image"):
        assert_exported_as_pytorch(Consistent(conv()), tmp_path)
