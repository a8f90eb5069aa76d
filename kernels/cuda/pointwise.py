"""Small expressions evaluated for each element: csrc/pointwise.cu."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.launch import Launch, Work
from edgeadapt.kernels.cuda.steps import StepArgs, encode
from edgeadapt.kernels.cuda.tensors import TensorArgs
from edgeadapt.kernels.cuda.walk import (
    AxesArgs,
    ChunksArgs,
    Longs,
    OperandArgs,
    in_chunks,
    merge_axes,
)
from edgeadapt.kernels.pointwise import MAX_INPUTS, Step, check_expression

MAX_ENCODED = 32  # `max_steps` of csrc/pointwise.cu
_FEW_SLOTS = 2
_STEP_THREADS = 128
_MOST_SUMMED = 4
_THREADS = 256
_TOGETHER = 2  # chunks of a thread of the simple kernels, but for the long sum
_SIDE = 32  # of a tile of a transposing copy
_WORTH_A_TILE = 16  # a shorter side leaves most of a tile's threads without work


class PointwiseArgs(ctypes.Structure):
    """`PointwiseArgs` of csrc/pointwise.cu."""

    _fields_ = (
        ("chunks", ChunksArgs),
        ("y", OperandArgs),
        ("x", OperandArgs * MAX_INPUTS),
        ("steps", ctypes.c_int64),
        ("step", StepArgs * MAX_ENCODED),
    )


class SimpleArgs(ctypes.Structure):
    """`SimpleArgs` of csrc/pointwise.cu."""

    _fields_ = (
        ("chunks", ChunksArgs),
        ("y", OperandArgs),
        ("x", OperandArgs * _MOST_SUMMED),
        ("inputs", ctypes.c_int64),
        ("number", ctypes.c_double),
    )


class TransposeArgs(ctypes.Structure):
    """`TransposeArgs` of csrc/pointwise.cu."""

    _fields_ = (
        ("rest", AxesArgs),
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("x_dtype", ctypes.c_int64),
        ("y_dtype", ctypes.c_int64),
        ("x_length", ctypes.c_int64),
        ("y_length", ctypes.c_int64),
        ("x_stride", ctypes.c_int64),
        ("y_stride", ctypes.c_int64),
        ("x_rest", Longs),
        ("y_rest", Longs),
    )


def pointwise(
    x: Sequence[TensorArgs], y: TensorArgs, expression: Sequence[Step], *, scratch: int = 0
) -> Work:
    """Write the last step of ``expression`` to ``y``.

    All tensors have one shape of up to six axes, any strides (0 repeats) and any type; bool reads
    as 0 and 1. ``y`` is written with ``=`` and may be the memory of an input with the same strides.

    Raises:
        ArrayError: if shapes differ, y repeats an element, or the expression is none.
    """
    _check(x, y, expression)
    simple = _simple(expression)
    if simple is None:
        return Work((_evaluate(x, y, expression),))
    kernel, inputs, number = simple
    chosen = [x[i] for i in inputs]
    tiles = _transpose(chosen[0], y) if kernel == "pointwise_copy" else None
    return Work((tiles or _launch_simple(kernel, chosen, y, number),))


def _check(x: Sequence[TensorArgs], y: TensorArgs, expression: Sequence[Step]) -> None:
    shape = tuple(y.shape[: y.rank])
    if 0 in shape:
        raise ArrayError(f"pointwise: y must have elements, got shape {shape}.")
    if any(size > 1 and y.strides[axis] == 0 for axis, size in enumerate(shape)):
        raise ArrayError("pointwise: y must not repeat an element, got a stride of 0.")
    if len(x) > MAX_INPUTS:
        raise ArrayError(f"pointwise: x must be up to {MAX_INPUTS} tensors, got {len(x)}.")
    for position, tensor in enumerate(x):
        if tuple(tensor.shape[: tensor.rank]) != shape:
            raise ArrayError(
                f"pointwise: x{position} must have the shape of y, {shape}, got "
                f"{tuple(tensor.shape[: tensor.rank])}."
            )
    check_expression(expression, len(x))


def _simple(expression: Sequence[Step]) -> tuple[str, list[int], float] | None:
    """A kernel without steps that computes the expression, its inputs in order and its number."""
    function, operands = expression[0]
    places = "".join(place for place, _ in operands)
    values = [value for _, value in operands]
    summed = _summed(expression)
    if summed is not None:
        return "pointwise_sum" if len(summed) == 2 else "pointwise_long_sum", summed, 0.0
    if len(expression) > 1:
        return None
    if function == "mul" and places == "cx":
        places, values = "xc", values[::-1]
    match function, places:
        case "copy", "x":
            return "pointwise_copy", values, 0.0
        case "mul", "xc":
            return "pointwise_multiply", values[:1], values[1]
        case "leaky", "xc":
            return "pointwise_leaky", values[:1], values[1]
        case "leaky_grad", "xxc":
            return "pointwise_leaky_grad", values[:2], values[2]
    return None


def _summed(expression: Sequence[Step]) -> list[int] | None:
    """The inputs, if the expression adds up to four of them one after the other."""
    if len(expression) > _MOST_SUMMED - 1:
        return None
    inputs: list[int] = []
    for position, (function, operands) in enumerate(expression):
        given = [value for place, value in operands if place == "x"]
        running = [value for place, value in operands if place == "t"]
        # A sum of two does not depend on their order, so the running one may come second.
        wanted = [] if position == 0 else [position - 1]
        if function != "add" or running != wanted or len(given) + len(running) != 2:
            return None
        inputs += given
    return inputs


def _launch_simple(kernel: str, x: Sequence[TensorArgs], y: TensorArgs, number: float) -> Launch:
    chunks, operands = in_chunks([y, *x])
    arguments = SimpleArgs(chunks, operands[0], inputs=len(x), number=number)
    arguments.x[: len(x)] = operands[1:]
    together = 1 if kernel == "pointwise_long_sum" else _TOGETHER
    blocks = -(-chunks.axes.count // (_THREADS * together))
    return Launch(kernel, (blocks, 1, 1), (_THREADS, 1, 1), arguments)


def _evaluate(x: Sequence[TensorArgs], y: TensorArgs, expression: Sequence[Step]) -> Launch:
    chunks, operands = in_chunks([y, *x])
    program = encode(expression)
    arguments = PointwiseArgs(chunks, operands[0], steps=len(program.steps))
    arguments.x[: len(x)] = operands[1:]
    arguments.step[: len(program.steps)] = program.steps
    kernel = "pointwise" if program.slots <= _FEW_SLOTS else "pointwise_many_slots"
    blocks = -(-chunks.axes.count // _STEP_THREADS)
    return Launch(kernel, (blocks, 1, 1), (_STEP_THREADS, 1, 1), arguments)


def _transpose(x: TensorArgs, y: TensorArgs) -> Launch | None:
    """A copy in tiles, if x and y have their neighbours along two long axes."""
    merged = merge_axes(y.shape[: y.rank], [y.strides[: y.rank], x.strides[: x.rank]])
    lengths, (y_strides, x_strides) = merged
    if 1 not in x_strides or 1 not in y_strides:
        return None
    across, down = x_strides.index(1), y_strides.index(1)
    if across == down or min(lengths[across], lengths[down]) < _WORTH_A_TILE:
        return None
    rest = [axis for axis in range(len(lengths)) if axis not in (across, down)]
    axes = AxesArgs.of([lengths[axis] for axis in rest])
    arguments = TransposeArgs(
        axes, x.data, y.data, x.dtype, y.dtype, lengths[across], lengths[down],
        x_strides[down], y_strides[across],
        Longs(*(x_strides[axis] for axis in rest)), Longs(*(y_strides[axis] for axis in rest)),
    )  # fmt: skip
    tiles = -(-lengths[across] // _SIDE) * -(-lengths[down] // _SIDE)
    blocks = tiles * axes.count
    return Launch("pointwise_transpose", (blocks, 1, 1), (256, 1, 1), arguments)
