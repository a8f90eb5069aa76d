"""Sums, products and extremes over axes: csrc/reduce.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.tensors import TensorArgs

# In the order of the enumerations in csrc/reduce.cpp.
HOW: Mapping[str, int] = {"sum": 0, "max": 1, "min": 2, "prod": 3}
BEFORE: Mapping[str | None, int] = {None: 0, "abs": 1, "square": 2}
AFTER: Mapping[str | None, int] = {None: 0, "sqrt": 1}


class ReduceArgs(ctypes.Structure):
    """`ReduceArgs` of csrc/reduce.cpp."""

    _fields_ = (
        ("x", TensorArgs),
        ("y", TensorArgs),
        ("how", ctypes.c_int64),
        ("before", ctypes.c_int64),
        ("axes", ctypes.c_int64),
        ("root", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("scratch", ctypes.c_void_p),
    )


def reduce(
    x: TensorArgs,
    y: TensorArgs,
    how: str,
    axes: Sequence[int],
    *,
    before: str | None = None,
    after: str | None = None,
    scale: float = 1.0,
) -> ReduceArgs:
    """Arguments of a call that writes ``after(scale * how(before(x)))`` over ``axes`` to ``y``.

    ``y`` has the axes of ``x``, of length 1 where reduced; without axes each element is its own
    result. Any strides and types; ``y`` must not be the memory of ``x``.

    Raises:
        ArrayError: if the shapes do not fit together or there is no such reduction.
    """
    shape = tuple(x.shape[: x.rank])
    check_reduction(shape, y, how, axes, before, after)
    return ReduceArgs(
        x=x,
        y=y,
        how=HOW[how],
        before=BEFORE[before],
        axes=sum(1 << axis for axis in set(axes)),
        root=AFTER[after],
        scale=scale,
    )


def check_reduction(
    shape: Sequence[int],
    y: TensorArgs,
    how: str,
    axes: Sequence[int],
    before: str | None,
    after: str | None,
) -> None:
    """Raise an `ArrayError` unless ``y`` can hold this reduction of a tensor of ``shape``."""
    for name, value, known in (
        ("how", how, HOW),
        ("before", before, BEFORE),
        ("after", after, AFTER),
    ):
        if value not in known:
            raise ArrayError(f"reduce: {name} must be one of {[*known]}, got {value!r}.")
    if 0 in shape:
        raise ArrayError(f"reduce: x must have elements, got shape {shape}.")
    if any(not 0 <= axis < len(shape) for axis in axes):
        raise ArrayError(f"reduce: axes must be of {len(shape)}, got {tuple(axes)}.")
    wanted = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    if tuple(y.shape[: y.rank]) != wanted:
        raise ArrayError(f"reduce: y must be {wanted}, got {tuple(y.shape[: y.rank])}.")
