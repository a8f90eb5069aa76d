"""The sum of absolute differences of two images and its gradient: csrc/l1_loss.cpp."""

from __future__ import annotations

import ctypes

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.tensors import BOOL, F32, PlaneArgs, TensorArgs


class L1LossArgs(ctypes.Structure):
    """`L1LossArgs` of csrc/l1_loss.cpp."""

    _fields_ = (
        ("a", PlaneArgs),
        ("b", PlaneArgs),
        ("grad", PlaneArgs),
        ("value", ctypes.c_void_p),
        ("value_scale", ctypes.c_double),
        ("grad_scale", ctypes.c_double),
        ("scratch", ctypes.c_void_p),
    )


def l1_loss(
    a: PlaneArgs,
    b: PlaneArgs,
    value: TensorArgs,
    grad: PlaneArgs | None = None,
    *,
    value_scale: float = 1.0,
    grad_scale: float = 1.0,
) -> L1LossArgs:
    """Arguments of a call that writes a loss and, if asked for, its gradient in ``a``.

    ``value = value_scale * sum |a - b|``, ``grad = grad_scale * sign(a - b)``, 0 where a = b.

    The images are (1, C, H, W), float32 or bfloat16; ``value`` is one float32, ``grad`` may be left
    out or be the memory of ``a`` or ``b``. Both are written with ``=``.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    images = {"a": a, "b": b} | ({} if grad is None else {"grad": grad})
    size = (a.channels, a.height, a.width)
    for name, image in images.items():
        found = (image.channels, image.height, image.width)
        if found != size or min(found) < 1:
            raise ArrayError(
                f"l1_loss: {name} must be the size of a, (1, C, H, W), got {(1, *found)}."
            )
        if image.dtype == BOOL:
            raise ArrayError(f"l1_loss: {name} must be float32 or bfloat16, got bool.")
    if value.dtype != F32 or any(value.shape[axis] != 1 for axis in range(value.rank)):
        raise ArrayError(
            f"l1_loss: value must be one float32, got type {value.dtype} and shape "
            f"{tuple(value.shape[: value.rank])}."
        )
    return L1LossArgs(
        a=a,
        b=b,
        grad=PlaneArgs() if grad is None else grad,
        value=value.data,
        value_scale=value_scale,
        grad_scale=grad_scale,
    )
