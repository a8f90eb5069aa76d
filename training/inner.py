"""The inner loop: K gradient steps on the auxiliary loss (Eq. 4 of Chi et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from edgeadapt.training.losses import loss_terms
from edgeadapt.training.network import DeblurNet, Outputs

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Adapted:
    """What the inner loop leaves behind."""

    parameters: Parameters  # theta~ after K steps, a function of the starting ones
    first_parameters: Parameters  # after the first step
    first_gradient: Parameters  # of the auxiliary loss at the starting parameters
    losses: list[Tensor]  # before each step, scalars


def adapt(
    network: DeblurNet,
    start: Mapping[str, Tensor],
    image: Tensor,
    step_sizes: Mapping[str, Tensor],
    steps: int,
    optimizer: str = "sgd",
    second_order: bool = False,
    loss: str = "l1",
) -> Adapted:
    """Take ``steps`` steps of every parameter on ``loss``, one of `edgeadapt.training.losses`, of
    ``image`` (N, 3, H, W).

    The result stays connected to ``start`` and ``step_sizes``; with ``second_order`` through the
    gradients as well, without it as if these were constants (first-order MAML).
    """
    update = Sgd() if optimizer == "sgd" else Adam()
    parameters = dict(start)
    first_parameters, first_gradient, losses = parameters, {}, []
    for step in range(steps):
        value = loss_terms(loss, network, partial(forward, network, parameters), image).sum()
        gradient = torch.autograd.grad(
            value, list(parameters.values()), create_graph=second_order, materialize_grads=True
        )
        moves = update.moves(dict(zip(parameters, gradient, strict=True)))
        parameters = {
            name: value - step_sizes[name] * moves[name] for name, value in parameters.items()
        }
        losses.append(value.detach())
        if step == 0:
            first_parameters = parameters
            first_gradient = dict(zip(parameters, gradient, strict=True))
    return Adapted(parameters, first_parameters, first_gradient, losses)


def forward(network: DeblurNet, parameters: Mapping[str, Tensor], image: Tensor) -> Outputs:
    """``network`` with other parameters."""
    outputs: Outputs = functional_call(network, dict(parameters), (image,))
    return outputs


class Sgd:
    """The plain step: the gradient itself."""

    def moves(self, gradient: Parameters) -> Parameters:
        """What is multiplied by the step size and taken away."""
        return gradient


@dataclass
class Adam:
    """Adam with fresh moments, in operations that can be differentiated again."""

    first: Parameters = field(default_factory=dict)
    second: Parameters = field(default_factory=dict)
    step: int = 0

    def moves(self, gradient: Parameters) -> Parameters:
        """m / (sqrt(v) + eps), both moments corrected for their start at 0 (Kingma, Ba 2015)."""
        self.step += 1
        return {name: self._move(name, value) for name, value in gradient.items()}

    def _move(self, name: str, gradient: Tensor) -> Tensor:
        zero = torch.zeros_like(gradient)
        beta1, beta2 = ADAM_BETAS
        first = beta1 * self.first.get(name, zero) + (1 - beta1) * gradient
        second = beta2 * self.second.get(name, zero) + (1 - beta2) * gradient * gradient
        self.first[name], self.second[name] = first, second
        corrected = second / (1 - beta2**self.step)
        # The slope of sqrt at 0 is infinite, and 0 * inf would be NaN in the second backward pass.
        positive = corrected > 0
        root = torch.where(positive, corrected, 1.0).sqrt() * positive
        return first / (1 - beta1**self.step) / (root + ADAM_EPS)
