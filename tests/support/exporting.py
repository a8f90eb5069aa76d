"""Exporting small networks and holding what comes out to PyTorch in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgeadapt.bundle import RESTORE_GRAPH, Adaptation, Bundle, Model
from edgeadapt.export.check import Graphs, smooth_image
from edgeadapt.export.exporter import ExportOptions, export_bundle
from edgeadapt.export.reference import Reference
from edgeadapt.testing import assert_gradient_close

Array = npt.NDArray[Any]
# Of the norm: float32 rounds to 6e-8, and the errors of a chain of twenty layers add up to a few
# 1e-7, to 3e-6 where a gradient is what is left of large terms of both signs.
BOUND = 1e-5


class Around(nn.Module):
    """A piece of a network between two convolutions; the loss is smooth, and has two terms.

    ``piece`` takes and gives (N, channels, H, W), or gives ``after`` channels.
    """

    size_multiple = 8

    def __init__(
        self, piece: Callable[[Tensor], Tensor], channels: int = 6, after: int | None = None
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.piece = piece
        self.last = nn.Conv2d(channels if after is None else after, 3, 3, padding=1)
        self.auxiliary = nn.Conv2d(6, 3, 1)
        randomise(self)

    def restore(self, image: Tensor) -> Tensor:
        return image + 0.3 * self.last(self.piece(self.first(image)))

    def adaptation_loss(self, image: Tensor) -> Tensor:
        restored = self.restore(image)
        error = self.auxiliary(torch.cat([restored, image], 1)) - image
        return torch.stack([error.square().mean(), 0.1 * restored.square().mean()])

    def parameter_groups(self) -> dict[str, list[str]]:
        names = [name for name, _ in self.named_parameters()]
        heads = {
            head: [name for name in names if name.startswith(head)]
            for head in ("last", "auxiliary")
        }
        return {"shared": [n for n in names if not n.startswith(("last", "auxiliary"))], **heads}


class Sum(nn.Module):
    """The sum of pieces, each with a gain of its own, so that every forward and backward counts."""

    def __init__(self, *pieces: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.zeros(len(pieces)))
        self.pieces = pieces
        self.modules_among_them = nn.ModuleList(p for p in pieces if isinstance(p, nn.Module))

    def forward(self, x: Tensor) -> Tensor:
        results = [piece(x) for piece in self.pieces]
        return sum((self.gains[i] * y for i, y in enumerate(results)), torch.zeros_like(results[0]))


def randomise(network: nn.Module, seed: int = 0) -> None:
    """Random values for every parameter, biases too: zeros and ones would hide half the formulas.

    About the size that keeps the values of a layer near 1.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            inputs = value[0].numel() if value.dim() > 1 else 4
            value.normal_(0.0, 1.0 / inputs**0.5, generator=generator)
            if value.dim() <= 1:
                value.add_(0.4)


def export(
    network: Any, path: Path, scopes: Mapping[str, str] | None = None, **options: Any
) -> Bundle:
    """Export with scope "all" only, unless others are named."""
    settings = ExportOptions(
        Model("small", "for a test", "nowhere:small", {}),
        Adaptation(2, "sgd", 1e-2, options.pop("step_sizes", {})),
        {"all": "all"} if scopes is None else scopes,
    )
    return export_bundle(network, path, settings, **options)


def float32_weights(network: nn.Module) -> dict[str, Array]:
    """Every parameter by name."""
    return {name: value.detach().numpy().copy() for name, value in network.named_parameters()}


def differentiate(network: Any, image: Array) -> tuple[Array, Array, dict[str, Array | None]]:
    """Terms of the loss, restored image and every gradient, by PyTorch in float64."""
    exact = copy.deepcopy(network).double().eval()
    x = torch.from_numpy(image).double()
    terms = exact.adaptation_loss(x)
    terms.sum().backward()
    with torch.no_grad():
        restored = exact.restore(x).numpy()
    gradients = {
        name: None if value.grad is None else value.grad.numpy()
        for name, value in exact.named_parameters()
    }
    return terms.detach().numpy(), restored, gradients


def assert_exported(
    network: Any, path: Path, sizes: Sequence[tuple[int, int]] = ((1, 2), (3, 1))
) -> Bundle:
    """Export ``network`` and compare restored image, loss and every gradient with PyTorch in
    float64, at images of ``sizes`` times the network's multiple.

    The step graph is compared at other weights than were exported: it must use its inputs.
    """
    bundle = export(network, path)
    graphs, multiple = Graphs(bundle), network.size_multiple
    other = copy.deepcopy(network)
    randomise(other, seed=1)
    for rows, columns in sizes:
        image, kinks = smooth_image(Reference(other), rows * multiple, columns * multiple)
        assert kinks == 0, "choose other parameters: a kink lets a gradient jump"
        _, restored, _ = differentiate(network, image)
        assert_gradient_close(graphs.run(RESTORE_GRAPH, image)["restored"], restored, BOUND)
        found = graphs.run("adapt.all.onnx", image, float32_weights(other))
        assert any(key.startswith("grad.") for key in found)
        assert_step(found, other, image)
    return bundle


def assert_step(found: Mapping[str, Array], network: Any, image: Array) -> None:
    """Compare the outputs of a graph at the weights of ``network`` with float64; the restored image
    is always among them.
    """
    terms, restored, gradients = differentiate(network, image)
    assert_gradient_close(found["restored"], restored, BOUND, "restored")
    if "loss" in found:
        np.testing.assert_allclose(found["loss_terms"], terms, rtol=BOUND)
        np.testing.assert_allclose(found["loss"], terms.sum(), rtol=BOUND)
    compared = 0
    for name, gradient in gradients.items():
        if f"grad.{name}" in found:
            assert gradient is not None, f"{name} has a gradient that PyTorch does not know"
            assert np.linalg.norm(gradient) > 0, f"{name}: nothing is compared"
            assert_gradient_close(found[f"grad.{name}"], gradient, BOUND, name)
            compared += 1
    assert compared == sum(key.startswith("grad.") for key in found)
