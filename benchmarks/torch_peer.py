"""PyTorch as a peer: eager in either memory layout, or compiled, in float32 or in 16 bits."""

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
        device: of PyTorch's, "cpu" or "cuda".
        fp16: as ``bf16`` in float16, with gradients scaled so that they do not vanish in it.
        mode: of the compiler.
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
        device: str = "cpu",
        fp16: bool = False,
        mode: str = "default",
    ) -> None:
        torch.set_num_threads(threads)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        network: Any = build(factory, bundle.manifest.model.options).eval()
        _load(network, bundle)
        network.to(device, memory_format=layout)
        names = set(bundle.scope(scope).parameters)
        self._parameters = {n: p for n, p in network.named_parameters() if n in names}
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in names)
        kind = torch.float16 if fp16 else torch.bfloat16
        self._autocast = torch.autocast(device, kind, enabled=bf16 or fp16)
        # The loss is a mean: a power of two that leaves some 2^-11 of the gradient of a pixel.
        self._scale = 2.0 ** max(image.size.bit_length() - 12, 0) if fp16 else 1.0
        self._image = torch.from_numpy(image).to(device, memory_format=layout)
        self._optimizer = _optimizer(bundle, self._parameters, capturable=device == "cuda")
        self._loss, self._restore = network.adaptation_loss, network.restore
        if compiled:
            # For this size alone: that is quickest, and with symbolic ones the compiler can fail.
            self._loss = torch.compile(self._loss, dynamic=False, mode=mode)
            self._restore = torch.compile(self._restore, dynamic=False, mode=mode)

    def step(self) -> float:
        """Forward, loss, backward and update."""
        return self._take_step().item()

    def restore(self) -> F32:
        """The restored image, without a graph."""
        restored: F32 = self._restored().float().cpu().numpy()
        return restored

    def gradients(self) -> Mapping[str, F32]:
        """Those of the last step."""
        found = {name: value.grad for name, value in self._parameters.items()}
        return {name: grad.cpu().numpy() for name, grad in found.items() if grad is not None}

    def _take_step(self) -> Tensor:
        """The loss before the step; nothing waits for it."""
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast:
            loss: Tensor = self._loss(self._image).sum()
        torch.autograd.backward(loss * self._scale if self._scale != 1.0 else loss)
        if self._scale != 1.0:
            grads = [p.grad for p in self._parameters.values() if p.grad is not None]
            torch._foreach_mul_(grads, 1 / self._scale)  # pyright: ignore[reportPrivateImportUsage]
        self._optimizer.step()
        return loss.detach()

    def _restored(self) -> Tensor:
        with torch.no_grad(), self._autocast:
            restored: Tensor = self._restore(self._image)
        return restored


def _load(network: Any, bundle: Bundle) -> None:
    flat, offsets = torch.from_numpy(bundle.weights()), bundle.offsets()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(flat[offsets[name]].reshape(parameter.shape))


def _optimizer(
    bundle: Bundle, parameters: Mapping[str, Tensor], capturable: bool
) -> torch.optim.Optimizer:
    """PyTorch's own, with as few groups as there are step sizes: a group costs time."""
    adaptation = bundle.manifest.adaptation
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in parameters.items():
        size = adaptation.step_sizes.get(name, adaptation.step_size)
        groups.setdefault(size, []).append(parameter)
    listed = [{"params": group, "lr": size} for size, group in groups.items()]
    if adaptation.optimizer == "sgd":
        return torch.optim.SGD(listed, lr=adaptation.step_size)
    return torch.optim.Adam(listed, lr=adaptation.step_size, capturable=capturable)
