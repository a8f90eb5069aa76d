"""Several processes, one gradient: averaged here, as no backward pass of DDP makes meta's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor

VALIDATION_LIMIT = timedelta(hours=2)  # the other processes wait while the first one validates


def open_fabric(accelerator: str = "cpu") -> Fabric:
    """A Fabric that has joined the processes which torchrun started, if any."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    total = int(os.environ.get("WORLD_SIZE", "1"))
    if total == 1:
        return Fabric(accelerator=accelerator, devices=1)
    strategy = DDPStrategy(timeout=VALIDATION_LIMIT)
    fabric = Fabric(
        accelerator=accelerator, devices=local, num_nodes=total // local, strategy=strategy
    )
    fabric.launch()
    return fabric


def average_over(fabric: Fabric, tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all processes: one message, not one a tensor."""
    if fabric.world_size == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    reduced = fabric.all_reduce(flat, reduce_op="mean")
    assert isinstance(reduced, Tensor)
    for tensor, part in zip(
        tensors, torch.split(reduced, [t.numel() for t in tensors]), strict=True
    ):
        tensor.detach().copy_(part.view_as(tensor))


def any_process(fabric: Fabric, flag: bool) -> bool:
    """Whether ``flag`` holds in some process, so that all stop in the same iteration."""
    if fabric.world_size == 1:
        return flag
    count = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return bool(count)
