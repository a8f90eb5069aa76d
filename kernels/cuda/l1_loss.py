"""The sum of absolute differences of two images and its gradient: csrc/l1_loss.cu."""

from __future__ import annotations

import ctypes

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.launch import Launch, Work
from edgeadapt.kernels.cuda.tensors import DTYPES, ImageArgs, TensorArgs
from edgeadapt.kernels.cuda.walk import ChunksArgs, OperandArgs, image_tensor, in_chunks

_THREADS = 256
_TOGETHER = 4  # chunks of a thread
_SCRATCH_ALIGNMENT = 256


class L1LossArgs(ctypes.Structure):
    """`L1LossArgs` of csrc/l1_loss.cu."""

    _fields_ = (
        ("chunks", ChunksArgs),
        ("a", OperandArgs),
        ("b", OperandArgs),
        ("grad", OperandArgs),
        ("blocks", ctypes.c_int64),
        ("value_scale", ctypes.c_double),
        ("grad_scale", ctypes.c_double),
        ("value", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
    )


def l1_loss(
    a: ImageArgs,
    b: ImageArgs,
    value: TensorArgs,
    grad: ImageArgs | None = None,
    *,
    value_scale: float = 1.0,
    grad_scale: float = 1.0,
    scratch: int = 0,
) -> Work:
    """Write a loss and, if asked for, its gradient in ``a``, both with ``=``.

    ``value = value_scale * sum |a - b|``, ``grad = grad_scale * sign(a - b)``, 0 where a = b.

    The images are (1, C, H, W), float32, float16 or bfloat16 in any layout; ``value`` is one
    float32, ``grad`` may be left out, or be the memory of ``a`` or ``b`` with the same strides.

    Raises:
        ArrayError: if the sizes or types do not fit together.
    """
    images = {"a": a, "b": b} | ({} if grad is None else {"grad": grad})
    for name, image in images.items():
        if image.shape != a.shape or min(image.shape) < 1:
            raise ArrayError(
                f"l1_loss: {name} must be the size of a, (1, C, H, W), got {image.shape}."
            )
        if not image.elements.is_float(image.dtype):
            raise ArrayError(f"l1_loss: {name} must be float32, float16 or bfloat16, got bool.")
    if value.dtype != DTYPES["f32"] or any(value.shape[axis] != 1 for axis in range(value.rank)):
        raise ArrayError(
            f"l1_loss: value must be one float32, got type {value.dtype} and shape "
            f"{tuple(value.shape[: value.rank])}."
        )
    chunks, operands = in_chunks([image_tensor(image) for image in images.values()])
    blocks = -(-chunks.axes.count // (_THREADS * _TOGETHER))
    arguments = L1LossArgs(
        chunks=chunks, a=operands[0], b=operands[1],
        grad=OperandArgs() if grad is None else operands[2],
        blocks=blocks, value_scale=value_scale, grad_scale=grad_scale,
        value=value.data, scratch=scratch,
    )  # fmt: skip
    launches = (
        Launch("l1_loss", (blocks, 1, 1), (_THREADS, 1, 1), arguments),
        Launch("l1_loss_value", (1, 1, 1), (_THREADS, 1, 1), arguments),
    )
    return Work(launches, -(-4 * blocks // _SCRATCH_ALIGNMENT) * _SCRATCH_ALIGNMENT)
