"""Exported networks of the tests, each once in a process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

import support.spatial_networks  # noqa: F401  registers more of them
from edgeadapt.bundle import Bundle
from support.exporting import export
from support.pointwise_networks import NETWORKS
from support.user_networks import BODIES, LOSSES, Network, conv

MAKE: dict[str, Callable[[], nn.Module]] = {
    **NETWORKS,
    **{f"body: {name}": lambda make=make: Network(make()) for name, make in BODIES.items()},
    **{
        f"loss: {name}": lambda loss=loss: Network(conv(nn.Sigmoid()), loss)
        for name, loss in LOSSES.items()
    },
}
_FOLDER = TemporaryDirectory(prefix="edgeadapt-")  # removed at exit


@cache
def exported(name: str) -> Bundle:
    """The bundle of a network of `MAKE`."""
    torch.manual_seed(0)
    return export(MAKE[name](), Path(_FOLDER.name) / f"{len(name)}-{abs(hash(name))}.bundle")
