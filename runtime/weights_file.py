"""Adapted weights on disk: a safetensors file tied to the bundle it came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edgeadapt.bundle import WEIGHTS, Bundle
from edgeadapt.errors import WeightsError
from edgeadapt.files import atomic_file
from edgeadapt.runtime.optimizer import F32

ORIGIN = "edgeadapt.bundle_weights_sha256"


def save_weights(path: Path, bundle: Bundle, weights: F32) -> None:
    """Write flat ``weights`` under their names and shapes; the file appears whole or not at all.

    Raises:
        WeightsError: if the file cannot be written.
    """
    tensors = bundle.named(weights)
    metadata = {ORIGIN: bundle.manifest.files[WEIGHTS], "model": bundle.manifest.model.name}
    try:
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path}: cannot be written ({error}).", "choose a folder you may write to."
        ) from error


def load_weights(path: Path, bundle: Bundle) -> F32:
    """Read a file of `save_weights` into a new flat array, ordered as the parameter table.

    Raises:
        WeightsError: if the file is unreadable, comes from other bundle weights, or does not fit
            the table.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            origin = (file.metadata() or {}).get(ORIGIN)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: cannot be read as a safetensors file ({error}).",
            "give a file that Session.save_weights wrote.",
        ) from error
    if origin != bundle.manifest.files[WEIGHTS]:
        came = "does not say which bundle it comes from" if origin is None else "comes from another"
        raise WeightsError(
            f"{path}: {came}, expected weights adapted from {bundle.path}.",
            "open the bundle that these weights were adapted from.",
        )
    return _flat(path, bundle, tensors)


def _flat(path: Path, bundle: Bundle, tensors: dict[str, F32]) -> F32:
    shapes = {row.name: row.shape for row in bundle.manifest.parameters}
    if tensors.keys() != shapes.keys():
        odd = min(tensors.keys() ^ shapes.keys())
        raise WeightsError(
            f"{path}: parameter {odd!r} is in only one of the file and the bundle.",
            "give a file that Session.save_weights wrote for this bundle.",
        )
    parts = []
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise WeightsError(
                f"{path}: parameter {name!r} must be finite float32 {shape}, "
                f"got {tensor.dtype} {tensor.shape}.",
                "give a file that Session.save_weights wrote for this bundle.",
            )
        parts.append(tensor.ravel())
    return np.concatenate(parts)
