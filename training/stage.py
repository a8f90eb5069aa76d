"""What the training loop asks of a stage, and what both stages share."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edgeadapt.training.checkpoint import LearnedAdaptation
from edgeadapt.training.config import MetaConfig
from edgeadapt.training.network import DeblurNet

# Replaces each tensor by its mean over all processes; must be called by all of them with the same
# shapes.
Average = Callable[[Sequence[Tensor]], None]


class Stage(Protocol):
    """One way to train a network: joint or meta."""

    kind: str
    network: DeblurNet

    def step(
        self, iteration: int, blurred: Tensor, sharp: Tensor, average: Average
    ) -> dict[str, Tensor]:
        """Learn from a batch; return scalars to report, averaged over the processes."""

    def restore(self, image: Tensor) -> dict[str, Tensor]:
        """Ways to restore (1, 3, H, W), by the name their PSNR is reported as; ``psnr`` decides."""

    def state(self) -> dict[str, Any]:
        """All that must survive besides the weights, made of tensors and plain values."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""

    def adaptation(self) -> LearnedAdaptation:
        """How the network should be adapted, as learned so far."""


def precision(name: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast context that a stage's ``precision``, "fp32" or "bf16", asks for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16")


def precision_note(name: str, device: torch.device) -> str:
    """What to say of a ``precision`` that this machine only emulates; empty if it has it.

    Measured on an x86-64 CPU without AVX-512: 9 (nano) and 12 times (edge) slower than float32.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if name != "bf16" or device.type != "cpu" or capability not in ("AVX2", "DEFAULT"):
        return ""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ""
    return (
        'precision = "bf16": without AVX-512, PyTorch emulates bfloat16, about ten times slower '
        'than float32. Set precision = "fp32" in the configuration.'
    )


def set_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Put ``gradients`` where an optimiser looks for them."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def clip(parameters: Sequence[nn.Parameter], longest: float) -> None:
    """Scale the gradients down to a common norm of ``longest``; 0 leaves them as they are."""
    if longest > 0:
        nn.utils.clip_grad_norm_(parameters, longest)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use ``rate`` for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def half_cosine(done: float) -> float:
    """Half a cosine from 1 where ``done`` is 0 down to 0 where it is 1 or more."""
    return (1 + math.cos(math.pi * min(1.0, done))) / 2


def configured_adaptation(config: MetaConfig) -> LearnedAdaptation:
    """The adaptation as the configuration states it, with no learned step sizes."""
    return LearnedAdaptation(config.steps, config.inner_optimizer, config.step_size)
