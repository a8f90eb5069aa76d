"""Steps of SGD and Adam over flat arrays (csrc/update.cpp)."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import ArrayError

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


class Segments(NamedTuple):
    """Runs of elements with one step size each; elements in none stay as they are."""

    begins: I64
    counts: I64
    step_sizes: npt.NDArray[np.float64]


class SegmentsArgs(ctypes.Structure):
    """`Segments` of csrc/update.cpp."""

    _fields_ = (
        ("begins", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("step_sizes", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("end", ctypes.c_int64),
    )


class SgdArgs(ctypes.Structure):
    """Of the kernel "sgd"."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("gradients", ctypes.c_void_p),
        ("segments", SegmentsArgs),
    )


class AdamArgs(ctypes.Structure):
    """Of the kernel "adam"."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("gradients", ctypes.c_void_p),
        ("mean", ctypes.c_void_p),
        ("square", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("segments", SegmentsArgs),
        ("beta1", ctypes.c_double),
        ("beta2", ctypes.c_double),
        ("epsilon", ctypes.c_double),
    )


def segments_of(step_sizes: F32) -> Segments:
    """The runs of equal step sizes in an array with one for every element; zeros are in none."""
    edges = np.flatnonzero(np.diff(step_sizes)) + 1
    begins = np.concatenate([[0], edges])[: step_sizes.size].astype(np.int64)
    counts = np.diff(np.append(begins, step_sizes.size))
    used = step_sizes[begins] != 0
    return Segments(begins[used], counts[used], step_sizes[begins[used]].astype(np.float64))


def sgd_arguments(weights: F32, gradients: F32, segments: Segments) -> SgdArgs:
    """weights <- weights - step_size * gradients, in place, one call a step.

    Raises:
        ArrayError: if an array is not flat float32, or a segment reaches outside of them.
    """
    _check_flat("sgd", {"weights": weights, "gradients": gradients})
    return SgdArgs(
        weights.ctypes.data, gradients.ctypes.data, _segments_args("sgd", segments, weights.size)
    )


def adam_arguments(
    weights: F32,
    gradients: F32,
    mean: F32,
    square: F32,
    steps: I64,
    segments: Segments,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> AdamArgs:
    """`torch.optim.Adam` in place, one call a step.

    ``mean``, ``square`` and ``steps`` (one element) are its state: zeros before the first step.

    Raises:
        ArrayError: if an array is not flat float32, ``steps`` not one int64, or a segment reaches
            outside of them.
    """
    flat: dict[str, npt.NDArray[Any]] = {"weights": weights, "gradients": gradients}
    flat |= {"mean": mean, "square": square}
    _check_flat("adam", flat)
    if steps.shape != (1,) or steps.dtype != np.int64:
        raise ArrayError(f"adam: steps must be one int64, got {steps.dtype} {steps.shape}.")
    return AdamArgs(
        *(array.ctypes.data for array in flat.values()),
        steps.ctypes.data,
        _segments_args("adam", segments, weights.size),
        *betas,
        epsilon,
    )


def _check_flat(kernel: str, arrays: dict[str, npt.NDArray[Any]]) -> None:
    size = arrays["weights"].size
    for name, array in arrays.items():
        if array.shape != (size,) or array.dtype != np.float32 or not array.flags.c_contiguous:
            raise ArrayError(
                f"{kernel}: {name} must be contiguous float32 ({size},), got {array.dtype} "
                f"{array.shape} with strides {array.strides}."
            )


def _segments_args(kernel: str, segments: Segments, size: int) -> SegmentsArgs:
    begins, counts, step_sizes = segments
    arrays: tuple[npt.NDArray[Any], ...] = (begins, counts, step_sizes)
    types = (np.int64, np.int64, np.float64)
    for name, array, dtype in zip(Segments._fields, arrays, types, strict=True):
        if array.shape != begins.shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise ArrayError(
                f"{kernel}: {name} must be contiguous {np.dtype(dtype)} {begins.shape}, got "
                f"{array.dtype} {array.shape}."
            )
    ends = begins + counts
    if begins.min(initial=0) < 0 or counts.min(initial=0) < 0 or ends.max(initial=0) > size:
        raise ArrayError(f"{kernel}: a segment reaches outside of {size} weights: {segments}.")
    order = np.argsort(begins, kind="stable")
    if (ends[order][:-1] > begins[order][1:]).any():
        raise ArrayError(f"{kernel}: segments overlap: {segments}.")
    return SegmentsArgs(
        *(array.ctypes.data for array in arrays), len(begins), int(ends.max(initial=0))
    )
