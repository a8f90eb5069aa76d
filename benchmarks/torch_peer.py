"""PyTorch as a peer: eager in either memory layout, or compiled, in float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgeadapt.bundle import Bundle
from edgeadapt.export.source import build

F32 = npt.NDArray[np.float32]


class TorchPeer:
    """The bundle's network in PyTorch with the bundle's weights and PyTorch's optimizer.

    Sets the number of PyTorch's threads for the whole process.

    Args:
        bundle: gives weights, parameters in the scope and step sizes.
        image: (1, 3, H, W) in [-1, 1].
        scope: the other parameters need no gradient.
        threads: of the CPU.
        factory: called with the bundle's options, gives the network.
        channels_last: layout of image and weights.
        compiled: by `torch.compile`, when it is first called.
        bf16: forward pass and loss under autocast to bfloat16; weights and gradients are float32.
    """

    def __init__(
        self,
        bundle: Bundle,
        image: F32,
        scope: str,
        threads: int,
        factory: str,
        channels_last: bool = False,
        compiled: bool = False,
        bf16: bool = False,
    ) -> None:
        torch.set_num_threads(threads)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        network: Any = build(factory, bundle.manifest.model.options).eval()
        _load(network, bundle)
        network.to(memory_format=layout)
        names = set(bundle.scope(scope).parameters)
        self._parameters = {n: p for n, p in network.named_parameters() if n in names}
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in names)
        self._autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
        self._image = torch.from_numpy(image).to(memory_format=layout)
        self._optimizer = _optimizer(bundle, self._parameters)
        self._loss, self._restore = network.adaptation_loss, network.restore
        if compiled:
            # For this size alone: that is quickest, and with symbolic ones the compiler can fail.
            self._loss = torch.compile(self._loss, dynamic=False)
            self._restore = torch.compile(self._restore, dynamic=False)

    def step(self) -> float:
        """Forward, loss, backward and update."""
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast:
            loss: Tensor = self._loss(self._image).sum()
        torch.autograd.backward(loss)
        self._optimizer.step()
        return loss.item()

    def restore(self) -> F32:
        """The restored image, without a graph."""
        with torch.no_grad(), self._autocast:
            restored: F32 = self._restore(self._image).float().numpy()
        return restored

    def gradients(self) -> Mapping[str, F32]:
        """Those of the last step."""
        found = {name: value.grad for name, value in self._parameters.items()}
        return {name: grad.numpy() for name, grad in found.items() if grad is not None}


def _load(network: Any, bundle: Bundle) -> None:
    flat, offsets = torch.from_numpy(bundle.weights()), bundle.offsets()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(flat[offsets[name]].reshape(parameter.shape))


def _optimizer(bundle: Bundle, parameters: Mapping[str, Tensor]) -> torch.optim.Optimizer:
    """PyTorch's own, with as few groups as there are step sizes: a group costs time."""
    adaptation = bundle.manifest.adaptation
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in parameters.items():
        size = adaptation.step_sizes.get(name, adaptation.step_size)
        groups.setdefault(size, []).append(parameter)
    kind = torch.optim.SGD if adaptation.optimizer == "sgd" else torch.optim.Adam
    return kind([{"params": g, "lr": size} for size, g in groups.items()], lr=adaptation.step_size)
