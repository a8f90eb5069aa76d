"""Steps of SGD and Adam over flat arrays: csrc/update.cu."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Final

import numpy as np

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.launch import Launch, Work
from edgeadapt.kernels.cuda.segments import THREADS, Table, first_blocks
from edgeadapt.kernels.cuda.tensors import DTYPES, TensorArgs
from edgeadapt.kernels.update import Segments

STATE_BYTES: Final = 16  # of Adam's ``steps``
_ROW = np.dtype([("first_block", "i8"), ("begin", "i8"), ("count", "i8"), ("step_size", "f8")])


class SgdArgs(ctypes.Structure):
    """`SgdArgs` of csrc/update.cu."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("gradients", ctypes.c_void_p),
        ("segments", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    )


class AdamArgs(ctypes.Structure):
    """`AdamArgs` of csrc/update.cu."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("gradients", ctypes.c_void_p),
        ("mean", ctypes.c_void_p),
        ("square", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("segments", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("beta1", ctypes.c_double),
        ("beta2", ctypes.c_double),
        ("epsilon", ctypes.c_double),
    )


def step_table(segments: Segments, size: int) -> Table:
    """What a launch reads of the step sizes of an array of ``size`` elements.

    Raises:
        ArrayError: if a segment reaches outside of it, or two overlap.
    """
    begins, counts, step_sizes = segments
    ends = begins + counts
    if begins.min(initial=0) < 0 or counts.min(initial=0) < 0 or ends.max(initial=0) > size:
        raise ArrayError(f"update: a segment reaches outside of {size} weights: {segments}.")
    order = np.argsort(begins, kind="stable")
    if (ends[order][:-1] > begins[order][1:]).any():
        raise ArrayError(f"update: segments overlap: {segments}.")
    rows = np.zeros(begins.size, _ROW)
    rows["first_block"], blocks = first_blocks(counts.astype(np.int64))
    rows["begin"], rows["count"], rows["step_size"] = begins, counts, step_sizes
    return Table(rows, blocks)


def sgd(weights: TensorArgs, gradients: TensorArgs, table: Table, table_address: int) -> Work:
    """weights <- weights - step_size * gradients, in place; what is in no segment stays.

    ``table_address`` is where the rows of ``table`` are.

    Raises:
        ArrayError: if an array is not flat float32, or shorter than the segments.
    """
    _check("sgd", {"weights": weights, "gradients": gradients}, table)
    if not table.blocks:
        return Work(())
    arguments = SgdArgs(weights.data, gradients.data, table_address, len(table.rows))
    return Work((Launch("sgd", (table.blocks, 1, 1), (THREADS, 1, 1), arguments),))


def adam(
    weights: TensorArgs,
    gradients: TensorArgs,
    mean: TensorArgs,
    square: TensorArgs,
    steps: int,
    table: Table,
    table_address: int,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> Work:
    """`torch.optim.Adam` in place; what is in no segment stays, with its state.

    ``mean``, ``square`` and the `STATE_BYTES` at the address ``steps`` are its state: zeros before
    the first step. The number of steps taken is counted there, on the device, as an int64.

    Raises:
        ArrayError: if an array is not flat float32, or shorter than the segments.
    """
    arrays = {"weights": weights, "gradients": gradients, "mean": mean, "square": square}
    _check("adam", arrays, table)
    if not table.blocks:
        return Work(())
    arguments = AdamArgs(
        *(array.data for array in arrays.values()),
        steps,
        table_address,
        len(table.rows),
        *betas,
        epsilon,
    )
    return Work((Launch("adam", (table.blocks, 1, 1), (THREADS, 1, 1), arguments),))


def _check(kernel: str, arrays: Mapping[str, TensorArgs], table: Table) -> None:
    size = arrays["weights"].shape[0]
    for name, array in arrays.items():
        shape, stride = tuple(array.shape[: array.rank]), array.strides[0]
        if array.dtype != DTYPES["f32"] or shape != (size,) or (stride != 1 and size > 1):
            raise ArrayError(
                f"{kernel}: {name} must be contiguous float32 ({size},), got type {array.dtype}, "
                f"shape {shape}, strides {tuple(array.strides[: array.rank])}."
            )
    end = int((table.rows["begin"] + table.rows["count"]).max(initial=0))
    if end > size:
        raise ArrayError(f"{kernel}: a segment ends at {end}, there are {size} weights.")
