"""PyTorch network -> bundle -> Session, against PyTorch's autograd and optimisers in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgeadapt import Session
from edgeadapt.bundle import Adaptation, Model, open_bundle
from edgeadapt.export.exporter import ExportOptions, export_bundle
from edgeadapt.export.reference import Reference, count_kinks
from edgeadapt.testing import photo, psnr
from edgeadapt.training.network import build

STEPS = 5
SMALL = {"widths": [4, 6, 8], "share_scales": True, "blocks": 1}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """In networks this small, PyTorch's threads wait for each other and little else."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_network() -> Any:
    """A small three-scale network with random biases too: zeros would hide half the formulas."""
    torch.manual_seed(7)
    network = build(**SMALL)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("bias"):
                value.uniform_(-0.1, 0.1)
    return network


def export(folder: Path, optimizer: str, step_size: float) -> tuple[Path, Any]:
    network = random_network()
    # Unequal step sizes, so that one applied to the wrong parameter shows.
    names = sorted(name for name, _ in network.named_parameters())
    sizes = {name: step_size * (1 + 0.1 * index) for index, name in enumerate(names)}
    model = Model("small", "a test", "edgeadapt.training.network:build", SMALL)
    adaptation = Adaptation(STEPS, optimizer, step_size, sizes)
    bundle = export_bundle(
        network, folder / f"{optimizer}.bundle", ExportOptions(model, adaptation)
    )
    return bundle.path, network


@pytest.fixture(scope="module", params=[("sgd", 1e-3), ("adam", 1e-4)], ids=["sgd", "adam"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    return export(tmp_path_factory.mktemp("end_to_end"), *request.param)


def padded(image: npt.NDArray[np.uint8], multiple: int) -> npt.NDArray[np.float32]:
    """The network's input, made by numpy alone."""
    height, width = image.shape[:2]
    right, bottom = -width % multiple, -height % multiple
    whole = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="reflect")
    return (whole.transpose(2, 0, 1)[None] / 127.5 - 1).astype(np.float32)


def follow(
    path: Path, network: Any, image: npt.NDArray[np.uint8], scope: str
) -> tuple[list[float], npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Losses, weights in the order of the table, and the restored image, by PyTorch in float64.

    None if a value of the network comes within rounding of a kink on the way: there float32 may
    take another slope, and Adam makes a large step of a small difference.
    """
    manifest = open_bundle(path).manifest
    adaptation = manifest.adaptation
    names = next(row.parameters for row in manifest.scopes if row.name == scope)
    reference = Reference(network)
    parameters = dict(reference.network.named_parameters())
    groups = [{"params": [parameters[name]], "lr": adaptation.step_sizes[name]} for name in names]
    kind = torch.optim.SGD if adaptation.optimizer == "sgd" else torch.optim.Adam
    optimizer = kind(groups, lr=1.0)
    x = torch.from_numpy(padded(image, network.size_multiple)).double()
    losses = []
    for _ in range(STEPS):
        if count_kinks(reference, padded(image, network.size_multiple)):
            return None
        optimizer.zero_grad()
        loss = reference.network.adaptation_loss(x).sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    with torch.no_grad():
        losses.append(reference.network.adaptation_loss(x).sum().item())
        restored = reference.network.restore(x).numpy()
    ends = [parameters[row.name].detach().numpy().ravel() for row in manifest.parameters]
    height, width = image.shape[:2]
    return losses, np.concatenate(ends), restored[0, :, :height, :width].transpose(1, 2, 0)


@pytest.mark.parametrize("size", [(37, 53), (48, 16), (16, 64)], ids=str)
@pytest.mark.parametrize("scope", ["all", "heads", "bias"])
def test_five_steps_follow_pytorch(
    exported: tuple[Path, Any], scope: str, size: tuple[int, int]
) -> None:
    path, network = exported
    image, (losses, weights, restored) = next(
        (image, found)
        for image in (photo(seed, *size) for seed in range(100))
        if (found := follow(path, network, image, scope)) is not None
    )
    with Session(path) as session:
        adaptation = session.adapt(image, scope=scope)
        result = session.restore(image)
        # The bounds; float32 sums over these sizes err by a few 1e-7.
        np.testing.assert_allclose(adaptation.losses, losses, rtol=1e-5)
        np.testing.assert_allclose(session.weights, weights, rtol=0, atol=1e-6)
    assert losses[-1] < losses[0], "the steps must lower the loss, or nothing was tested"
    exact = np.clip((restored + 1) * 127.5, 0, 255)
    # 8-bit rounding alone moves the two by up to half a grey level from each other.
    assert np.abs(result - exact).max() <= 0.5 + 1e-3
    assert abs(psnr(result, image) - psnr(np.rint(exact), image)) < 0.01


def test_the_same_call_after_reset_gives_the_same_bits(exported: tuple[Path, Any]) -> None:
    path, _ = exported
    image = photo(3, 45, 61)
    with Session(path) as session:
        first = session.adapt(image), session.weights.tobytes(), session.restore(image).tobytes()
        session.reset()
        second = session.adapt(image), session.weights.tobytes(), session.restore(image).tobytes()
    assert first[0].losses == second[0].losses
    assert first[1:] == second[1:]


def test_an_image_of_one_row_is_restored_as_pytorch_restores_it(
    exported: tuple[Path, Any],
) -> None:
    path, network = exported
    image = photo(1, 1, 200)
    rows = np.repeat(image, network.size_multiple, axis=0)  # a row can only reflect itself
    reference = Reference(network)
    with torch.no_grad():
        x = torch.from_numpy(padded(rows, network.size_multiple)).double()
        exact = reference.network.restore(x).numpy()[0, :, :1, :200].transpose(1, 2, 0)
    with Session(path) as session:
        result = session.restore(image)
    assert np.abs(result - np.clip((exact + 1) * 127.5, 0, 255)).max() <= 0.5 + 1e-3
