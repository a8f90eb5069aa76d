"""Arithmetic on shapes and strides: what slices, reshapes, broadcasts and windows make of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from edgeadapt.runtime.plan.ir import Shape, Tensor, contiguous


def is_contiguous(tensor: Tensor) -> bool:
    """Whether the elements lie one after another, the last axis fastest."""
    axes = zip(tensor.shape, tensor.strides, contiguous(tensor.shape), strict=True)
    return all(n == 1 or have == want for n, have, want in axes)


def is_plane(tensor: Tensor) -> bool:
    """Whether it is (1, C, H, W) with rows whose pixels lie one after another."""
    shape = tensor.shape
    return len(shape) == 4 and shape[0] == 1 and (shape[3] == 1 or tensor.strides[3] == 1)


def is_image(tensor: Tensor) -> bool:
    """Whether it is (1, C, H, W) with contiguous rows, or lies in memory that is channels last."""
    any_strides = tensor.channels_last and len(tensor.shape) == 4 and tensor.shape[0] == 1
    return any_strides or is_plane(tensor)


def reach(offset: int, shape: Shape, strides: Shape) -> tuple[int, int]:
    """The lowest and the highest place of an array that is not empty and begins at ``offset``."""
    steps = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
    return offset + sum(min(s, 0) for s in steps), offset + sum(max(s, 0) for s in steps)


def broadcast(*shapes: Shape) -> Shape:
    """The shape that all of them expand to, by the rules numpy and ONNX share.

    Raises:
        ValueError: if there is none.
    """
    rank = max(len(shape) for shape in shapes)
    result = [1] * rank
    for shape in shapes:
        for axis, length in enumerate(shape, rank - len(shape)):
            if length != 1 and result[axis] not in (1, length):
                raise ValueError(f"shapes {shapes} do not broadcast")
            result[axis] = length if result[axis] == 1 else result[axis]
    return tuple(result)


def expanded(shape: Shape, strides: Shape, wanted: Shape) -> Shape:
    """Strides with which an array repeats itself to the shape ``wanted``."""
    missing = len(wanted) - len(shape)
    repeated = (
        0 if have == 1 and want != 1 else stride
        for have, stride, want in zip(shape, strides, wanted[missing:], strict=True)
    )
    return (*(0,) * missing, *repeated)


def reshaped(shape: Shape, strides: Shape, wanted: Shape) -> Shape | None:
    """Strides of the same memory seen as ``wanted``; None if that takes a copy."""
    old = [(n, stride) for n, stride in zip(shape, strides, strict=True) if n != 1]
    if prod(shape) == 0:
        return contiguous(wanted)
    runs: list[tuple[int, int]] = []  # axes that continue one another, merged
    for n, stride in old:
        if runs and runs[-1][1] == n * stride:
            runs[-1] = (runs[-1][0] * n, stride)
        else:
            runs.append((n, stride))
    result: list[int] = []
    left, step = 1, 1  # of the run that is being split, from its end
    for n in reversed(wanted):
        if n == 1:
            result.append(step)
            continue
        if left == 1:
            left, step = runs.pop()
        if left % n:
            return None
        result.append(step)
        left, step = left // n, step * n
    return tuple(reversed(result))


def resolve(shape: Shape, wanted: Sequence[int], zero_copies: bool) -> Shape:
    """The shape that ONNX's Reshape means: 0 copies a length, -1 is what is left."""
    lengths = [shape[axis] if n == 0 and zero_copies else int(n) for axis, n in enumerate(wanted)]
    if -1 in lengths:
        rest = prod(n for n in lengths if n != -1)
        lengths[lengths.index(-1)] = prod(shape) // rest if rest else 0
    if prod(lengths) != prod(shape):
        raise ValueError(f"{shape} cannot be reshaped to {tuple(wanted)}")
    return tuple(lengths)


def sliced(length: int, start: int, end: int, step: int) -> tuple[int, int]:
    """First index and number of elements of an ONNX slice of an axis; bounds are clamped."""
    back = step < 0  # then the first may be the last element, and the end is the place before 0
    first = min(max(start + length if start < 0 else start, 0), length - back)
    last = min(max(end + length if end < 0 else end, -back), length - back)
    count = max(0, -((first - last) // step))
    return (first, count) if count else (0, 0)


def windows(
    length: int, kernel: int, stride: int, padding: int, dilation: int = 1, ceil: bool = False
) -> int:
    """How often a window fits into an axis with ``padding`` (of both ends together)."""
    room = length + padding - dilation * (kernel - 1) - 1
    return (-(-room // stride) if ceil else room // stride) + 1


def spread(length: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """The least length into which a window fits ``length`` times: of a transposed convolution."""
    return (length - 1) * stride + dilation * (kernel - 1) + 1 - padding
