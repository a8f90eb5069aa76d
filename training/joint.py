"""Stage 1: restoration and reconstruction trained together (Eq. 3 of Chi et al., CVPR 2021)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edgeadapt.errors import CheckpointError
from edgeadapt.training.checkpoint import LearnedAdaptation
from edgeadapt.training.config import JointConfig, TrainingConfig
from edgeadapt.training.network import DeblurNet, adaptation_terms, restoration_terms
from edgeadapt.training.stage import (
    Average,
    clip,
    configured_adaptation,
    half_cosine,
    precision,
    set_rate,
)


class JointStage:
    """Adam on the sum of both losses, the second weighted.

    The paper's settings are the defaults of `JointConfig`. With a ``teacher``, what that network
    restores takes the place of the sharp images (distillation, Hinton et al. 2015): it has no
    detail that cannot be known from the blurred ones, so fewer images teach the same.
    """

    kind = "joint"

    def __init__(
        self, network: DeblurNet, config: TrainingConfig, teacher: DeblurNet | None = None
    ) -> None:
        self.network, self.config, self._teacher = network, config, teacher
        self._teacher_digest = "" if teacher is None else weights_digest(teacher)
        self._parameters = list(network.parameters())
        self._optimizer = torch.optim.Adam(self._parameters, lr=config.joint.learning_rate)
        self._plateau = Plateau(config.joint)

    def step(
        self, iteration: int, blurred: Tensor, sharp: Tensor, average: Average
    ) -> dict[str, Tensor]:
        """One step of Adam; returns the losses and the rate it was done with."""
        rate = self._rate(iteration)
        set_rate(self._optimizer, rate)
        self._optimizer.zero_grad()
        with precision(self.config.joint.precision, blurred.device):
            target = self._target(blurred, sharp)
            losses = joint_losses(self.network, blurred, target, self.config.joint.restoration)
        total = losses["restoration"]
        if "adaptation" in losses:
            total = total + self.config.joint.adaptation_weight * losses["adaptation"]
        torch.autograd.backward(total)
        values = {"loss": total.detach()} | {name: loss.detach() for name, loss in losses.items()}
        average([*(p.grad for p in self._parameters if p.grad is not None), *values.values()])
        clip(self._parameters, self.config.joint.clip_norm)
        self._optimizer.step()
        if self.config.joint.schedule == "plateau":
            self._plateau.add(float(values["loss"]))
        return values | {"learning_rate": torch.tensor(rate)}

    def restore(self, image: Tensor) -> dict[str, Tensor]:
        """The plain restoration, without adaptation."""
        with torch.no_grad(), precision(self.config.joint.precision, image.device):
            return {"psnr": self.network.restore(image)}

    def state(self) -> dict[str, Any]:
        """Adam's moments, the plateau's memory, and which network teaches."""
        taught = {"teacher": self._teacher_digest} if self._teacher_digest else {}
        return {
            "optimizer": self._optimizer.state_dict(),
            "plateau": self._plateau.state(),
        } | taught

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: if another network taught then, or none.
        """
        if state.get("teacher", "") != self._teacher_digest:
            raise CheckpointError(
                "this run had another teacher, or none.",
                "resume it with the --teacher that it was begun with.",
            )
        self._optimizer.load_state_dict(state["optimizer"])
        self._plateau.load_state(state["plateau"])

    def adaptation(self) -> LearnedAdaptation:
        """Nothing was learned about adaptation: what the [meta] section says."""
        return configured_adaptation(self.config.meta)

    def _target(self, blurred: Tensor, sharp: Tensor) -> Tensor:
        """What the restored images are held to, at the finest scale."""
        if self._teacher is None:
            return sharp
        with torch.no_grad():
            return self._teacher.restore(blurred)

    def _rate(self, iteration: int) -> float:
        config = self.config.joint
        if config.schedule == "plateau":
            return warmed(self._plateau.rate, iteration, config.warmup)
        if config.schedule == "constant":
            return warmed(config.learning_rate, iteration, config.warmup)
        return warmed(cosine_rate(config, iteration), iteration, config.warmup)


class Plateau:
    """Halves the rate when the loss has not fallen for ``plateau_patience`` windows."""

    def __init__(self, config: JointConfig) -> None:
        self._config = config
        self.rate = config.learning_rate
        self._best = math.inf
        self._waited = 0
        self._sum, self._count = 0.0, 0

    def add(self, loss: float) -> None:
        """Count one iteration's loss."""
        self._sum += loss
        self._count += 1
        if self._count < self._config.plateau_window:
            return
        mean = self._sum / self._count
        self._sum, self._count = 0.0, 0
        if mean < self._best:
            self._best, self._waited = mean, 0
            return
        self._waited += 1
        if self._waited >= self._config.plateau_patience:
            self.rate = max(self.rate / 2, self._config.final_rate)
            self._waited = 0

    def state(self) -> dict[str, float]:
        """All of it, as plain numbers."""
        return {
            "rate": self.rate,
            "best": self._best,
            "waited": self._waited,
            "sum": self._sum,
            "count": self._count,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.rate, self._best, self._waited = state["rate"], state["best"], state["waited"]
        self._sum, self._count = state["sum"], state["count"]


def joint_losses(
    network: DeblurNet, blurred: Tensor, sharp: Tensor, restoration: str
) -> dict[str, Tensor]:
    """The two sums of Eq. 3, scalars; without an auxiliary branch there is only the first."""
    outputs = network(blurred)
    losses = {"restoration": restoration_terms(network, outputs, sharp, restoration).sum()}
    if outputs.reconstructed:
        losses["adaptation"] = adaptation_terms(network, outputs, blurred).sum()
    return losses


def weights_digest(network: DeblurNet) -> str:
    """Hexadecimal SHA-256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def cosine_rate(config: JointConfig, iteration: int) -> float:
    """Half a cosine from ``learning_rate`` at 0 down to ``final_rate`` at ``iterations``."""
    span = config.learning_rate - config.final_rate
    return config.final_rate + span * half_cosine(iteration / config.iterations)


def warmed(rate: float, iteration: int, warmup: int) -> float:
    """``rate``, less during the first ``warmup`` iterations."""
    return rate * min(1.0, (iteration + 1) / (warmup + 1))
