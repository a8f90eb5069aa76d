"""Padding of tensors and its adjoint: csrc/pad.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.tensors import BOOL, MAX_RANK, TensorArgs

MODES = {"constant": 0, "reflect": 1, "edge": 2}


class PadArgs(ctypes.Structure):
    """Of the kernels "pad" and "pad_grad", where x is grad_y."""

    _fields_ = (
        ("x", TensorArgs),
        ("y", TensorArgs),
        ("begins", ctypes.c_int64 * MAX_RANK),
        ("mode", ctypes.c_int64),
        ("value", ctypes.c_double),
        ("scratch", ctypes.c_void_p),
    )


def pad(
    x: TensorArgs,
    y: TensorArgs,
    *,
    pads: Sequence[int],
    mode: str = "constant",
    value: float = 0.0,
) -> PadArgs:
    """Arguments of a call that writes ``y``, which is ``x`` with ``pads`` at its ends, with ``=``.

    ``pads`` are what is added at the beginning of every axis, then at the end of every axis; a
    negative one cuts off. "constant" adds ``value``, "reflect" what lies behind the edge (up to one
    less than the size), "edge" the edge. Any type, the same for both; any strides.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    check_pads("pad", ("x", _shape(x)), ("y", _shape(y)), pads, mode)
    if x.dtype != y.dtype:
        raise ArrayError(f"pad: y must have x's type {x.dtype}, got {y.dtype}.")
    longs = ctypes.c_int64 * MAX_RANK
    return PadArgs(x, y, longs(*pads[: x.rank]), MODES[mode], value)


def pad_grad(grad_y: TensorArgs, y: TensorArgs, *, pads: Sequence[int], mode: str) -> PadArgs:
    """Arguments of a call that writes ``y``, the adjoint of `pad` at ``grad_y``, with ``=``.

    ``mode`` is "reflect" or "edge", no pad is negative, each tensor is float32 or bfloat16.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    if mode == "constant":
        raise ArrayError("pad_grad: mode must be reflect or edge: of a constant it is a slice.")
    check_pads("pad_grad", ("y", _shape(y)), ("grad_y", _shape(grad_y)), pads, mode)
    if min(pads) < 0:
        raise ArrayError(f"pad_grad: pads must not be negative, got {tuple(pads)}.")
    if BOOL in (grad_y.dtype, y.dtype):
        raise ArrayError("pad_grad: grad_y and y must be float32 or bfloat16, got bool.")
    longs = ctypes.c_int64 * MAX_RANK
    return PadArgs(grad_y, y, longs(*pads[: y.rank]), MODES[mode], 0.0)


def check_pads(
    kernel: str,
    inner: tuple[str, Sequence[int]],
    outer: tuple[str, Sequence[int]],
    pads: Sequence[int],
    mode: str,
) -> None:
    """Raise an `ArrayError` unless the shape ``outer`` is ``inner`` with ``pads`` around."""
    if mode not in MODES:
        raise ArrayError(f"{kernel}: mode must be one of {', '.join(MODES)}, got {mode!r}.")
    (name, sizes), (other, found) = inner, outer
    rank = len(sizes)
    if rank < 1 or len(found) != rank or len(pads) != 2 * rank:
        raise ArrayError(
            f"{kernel}: {name}, {other} and half of pads must have one number of axes from "
            f"1 up, got {rank}, {len(found)} and {len(pads) / 2:g}."
        )
    around = list(zip(pads[:rank], pads[rank:], strict=True))
    wanted = [size + sum(ends) for size, ends in zip(sizes, around, strict=True)]
    if list(found) != wanted or min(*sizes, *wanted) < 1:
        raise ArrayError(
            f"{kernel}: {name} {tuple(sizes)} with pads {tuple(pads)} cannot be "
            f"{other} {tuple(found)}."
        )
    if mode == "reflect":
        for size, ends in zip(sizes, around, strict=True):
            if max(ends) >= size and max(ends) > 0:
                raise ArrayError(
                    f"{kernel}: an axis of {size} can be mirrored by less than that, got {ends}."
                )


def _shape(tensor: TensorArgs) -> tuple[int, ...]:
    return tuple(tensor.shape[: tensor.rank])
