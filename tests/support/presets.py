"""Bundles of the networks of the presets, with random weights, each exported once in a process."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from edgeadapt.bundle import Bundle
from edgeadapt.training.network import build
from support.exporting import export, randomise

_FOLDER = TemporaryDirectory(prefix="edgeadapt-")  # removed at exit


@cache
def preset_bundle(preset: str) -> Bundle:
    """The bundle of ``preset``; it can be adapted in scope "heads"."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = build(preset=preset)
        randomise(network)
        return export(network, Path(_FOLDER.name) / f"{preset}.bundle", {"heads": "heads"})
    finally:
        torch.set_num_threads(before)
