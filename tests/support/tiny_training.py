"""The smallest network and run that have every part: two scales, two levels, both branches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from edgeadapt.training.config import (
    DataConfig,
    JointConfig,
    MetaConfig,
    RunConfig,
    SourceConfig,
    TrainingConfig,
)
from edgeadapt.training.network import DeblurNet
from edgeadapt.training.network_config import NetworkConfig

NETWORK = NetworkConfig(widths=(4, 6), n_scales=2, blocks=1, share_scales=True)
TOML = """
[network]
widths = [4, 6]
n_scales = 2
blocks = 1
share_scales = true
[data]
crop = 16
validation_size = 24
[[data.train]]
kind = "sharp"
path = "photos"
[[data.validation]]
kind = "sharp"
path = "photos"
count = 1
[joint]
iterations = 300
batch = 2
learning_rate = 3e-3
plateau_window = 7
plateau_patience = 1
[meta]
iterations = 4
batch = 2
steps = 2
step_size = 1e-2
learn_step_sizes = true
[run]
log_every = 10
checkpoint_every = 3
validate_every = 50
"""


def tiny_network(seed: int = 0, stop_gradient: bool = True) -> DeblurNet:
    """Random weights, biases too, in float64 so that derivatives can be checked by differences.

    For that ``stop_gradient`` must be off: differences see the path that it hides from autograd.
    """
    torch.manual_seed(seed)
    network = DeblurNet(replace(NETWORK, stop_gradient=stop_gradient)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def tiny_config(joint: dict[str, Any] | None = None, meta: dict[str, Any] | None = None) -> Any:
    """A configuration for `tiny_network`."""
    return TrainingConfig(
        NETWORK,
        DataConfig((SourceConfig("sharp", "photos"),), crop=16),
        replace(JointConfig(batch=2), **(joint or {})),
        replace(MetaConfig(batch=3, steps=2, step_size=0.05), **(meta or {})),
        RunConfig(),
    )


def images(seed: int, count: int, size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Random blurred and sharp images in [-1, 1], float64."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.rand(2, count, 3, size, size, generator=generator, dtype=torch.float64)
    return 2 * pair[0] - 1, 2 * pair[1] - 1


def alone(_: object) -> None:
    """The average over one process."""
