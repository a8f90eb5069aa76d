"""The PyTorch side of a comparison: loss, gradients and a K-step trajectory in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeadapt.bundle import Adaptation
from edgeadapt.export.kinks import KINKS

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

# Deviations of an input, in units of their root mean square over the tensor, that count as "within
# rounding".
_ROUNDING = 4.0


@dataclass(frozen=True)
class Step:
    """One evaluation at fixed weights."""

    loss: float
    restored: F64  # (1, 3, H, W)
    gradients: dict[str, F64]


class Reference:
    """A network in float64 whose weights can be set and stepped."""

    def __init__(self, network: nn.Module) -> None:
        self.network: Any = copy.deepcopy(network).double().eval()

    def load(self, weights: Mapping[str, F32]) -> None:
        """Set every parameter, by name."""
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(torch.from_numpy(weights[name].astype(np.float64)))

    def weights(self) -> dict[str, F64]:
        """Every parameter, by name."""
        return {
            name: value.detach().numpy().copy() for name, value in self.network.named_parameters()
        }

    def evaluate(self, image: F32, names: Sequence[str]) -> Step:
        """Loss, restored image and the gradients of the parameters ``names`` for ``image`` (1, 3,
        H, W).
        """
        x = torch.from_numpy(image).double()
        parameters = dict(self.network.named_parameters())
        loss = self.network.adaptation_loss(x).sum()
        gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
        with torch.no_grad():
            restored = self.network.restore(x).numpy()
        found = {name: gradient.numpy() for name, gradient in zip(names, gradients, strict=True)}
        return Step(loss.item(), restored, found)

    def step(
        self, optimizer: torch.optim.Optimizer, gradients: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        """Apply one update of an optimizer made by `make_optimizer` for this network."""
        apply_step(optimizer, dict(self.network.named_parameters()), gradients)


def make_optimizer(
    parameters: Mapping[str, Tensor], adaptation: Adaptation, names: Sequence[str]
) -> torch.optim.Optimizer:
    """PyTorch's own optimizer with the bundle's step sizes, one group a parameter."""
    groups = [
        {"params": [parameters[name]], "lr": adaptation.step_sizes.get(name, adaptation.step_size)}
        for name in names
    ]
    kind = torch.optim.SGD if adaptation.optimizer == "sgd" else torch.optim.Adam
    return kind(groups, lr=adaptation.step_size)


def apply_step(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, npt.NDArray[Any]],
) -> None:
    """One update with given gradients."""
    for name, gradient in gradients.items():
        parameters[name].grad = torch.from_numpy(gradient).to(parameters[name].dtype)
    optimizer.step()


def count_kinks(reference: Reference, image: F32) -> int:
    """How many values lie within rounding of a kink: the zero of a LeakyReLU or of an absolute
    value, the bounds of a clamp, the two largest values of a pooling and the like.

    Comparisons in the network's own code, `floor` and `round` are not looked at.

    There the sign, and with it the derivative, is decided by rounding: one flipped pixel of an L1
    loss moves a gradient by about 2 / sqrt(pixels), and no float32 engine can be held to float64.
    The rounding is measured: the network is run in float32 too, and a value counts if it is within
    4 root-mean-square differences of zero."""
    single = copy.deepcopy(reference.network).float()
    x = torch.from_numpy(image)
    with torch.no_grad(), _recorded() as exact:
        reference.network.adaptation_loss(x.double())
    with torch.no_grad(), _recorded() as rounded:
        single.adaptation_loss(x)
    count = 0
    for a, b in zip(exact, rounded, strict=True):
        rounding = float((a - b.double()).square().nanmean().sqrt())
        count += int((a.abs() < _ROUNDING * rounding).sum())
    return count


@contextmanager
def _recorded() -> Iterator[list[Tensor]]:
    inputs: list[Tensor] = []

    class Record(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if str(func) in KINKS:
                inputs.extend(x.clone() for x in KINKS[str(func)](*args, **(kwargs or {})))
            return func(*args, **(kwargs or {}))

    with Record():  # type: ignore[no-untyped-call]
        yield inputs
