"""Products of matrices: csrc/matmul.cpp."""

from __future__ import annotations

import ctypes

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.tensors import TensorArgs


class MatmulArgs(ctypes.Structure):
    """`MatmulArgs` of csrc/matmul.cpp."""

    _fields_ = (
        ("a", TensorArgs),
        ("b", TensorArgs),
        ("y", TensorArgs),
        ("scratch", ctypes.c_void_p),
    )


def matmul(a: TensorArgs, b: TensorArgs, y: TensorArgs) -> MatmulArgs:
    """Arguments of a call that writes ``a @ b`` to ``y``.

    ``a`` is (..., M, K), ``b`` (..., K, N), ``y`` (..., M, N), all of one rank from 2 to 6; a batch
    axis of ``a`` or ``b`` may be 1 and is repeated. Float32 or bfloat16 with any strides; ``y``
    must not be the memory of ``a`` or ``b``.

    Raises:
        ArrayError: if the shapes do not fit together or a type is bool.
    """
    check_matmul(a, b, y)
    return MatmulArgs(a=a, b=b, y=y)


def check_matmul(a: TensorArgs, b: TensorArgs, y: TensorArgs) -> tuple[int, ...]:
    """Raise an `ArrayError` unless ``y`` can be ``a @ b``; returns the shape of ``y``."""
    shapes = [tuple(tensor.shape[: tensor.rank]) for tensor in (a, b, y)]
    for name, tensor, shape in zip("aby", (a, b, y), shapes, strict=True):
        if not tensor.elements.is_float(tensor.dtype):
            raise ArrayError(f"matmul: {name} must be {tensor.elements.floats}, got bool.")
        if len(shape) < 2 or len(shape) != a.rank or 0 in shape:
            raise ArrayError(
                f"matmul: {name} must have elements and the rank of a, 2 or more, got shape "
                f"{shape}."
            )
    first, second, result = shapes
    batch = tuple(max(pair) for pair in zip(first[:-2], second[:-2], strict=True))
    fits = all(
        size in (1, wanted)
        for shape in (first, second)
        for size, wanted in zip(shape[:-2], batch, strict=True)
    )
    if not fits or first[-1] != second[-2]:
        raise ArrayError(f"matmul: a and b must fit together, got {first} and {second}.")
    wanted = (*batch, first[-2], second[-1])
    if result != wanted:
        raise ArrayError(f"matmul: y must be {wanted}, got {result}.")
    return result
