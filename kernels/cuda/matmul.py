"""Products of matrices: csrc/matmul.cu."""

from __future__ import annotations

import ctypes
from math import prod

from edgeadapt.kernels.cuda.launch import Launch, Work
from edgeadapt.kernels.cuda.tensors import TensorArgs
from edgeadapt.kernels.matmul import check_matmul

_SIDE = 32  # of a block's tile
_THREADS = 256


class MatmulArgs(ctypes.Structure):
    """`MatmulArgs` of csrc/matmul.cu."""

    _fields_ = (("a", TensorArgs), ("b", TensorArgs), ("y", TensorArgs))


def matmul(a: TensorArgs, b: TensorArgs, y: TensorArgs, *, scratch: int = 0) -> Work:
    """Write ``a @ b`` to ``y``.

    ``a`` is (..., M, K), ``b`` (..., K, N), ``y`` (..., M, N), all of one rank from 2 to 6; a batch
    axis of ``a`` or ``b`` may be 1 and is repeated. Float32, float16 or bfloat16 with any strides;
    ``y`` must not be the memory of ``a`` or ``b``.

    Raises:
        ArrayError: if the shapes do not fit together or a type is bool.
    """
    shape = check_matmul(a, b, y)
    tiles = prod(-(-length // _SIDE) for length in shape[-2:])
    grid = (tiles * prod(shape[:-2]), 1, 1)
    return Work((Launch("matmul", grid, (_THREADS, 1, 1), MatmulArgs(a, b, y)),))
