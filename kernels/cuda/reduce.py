"""Sums, products and extremes over axes: csrc/reduce.cu."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

from edgeadapt.kernels.cuda.launch import Launch, Work
from edgeadapt.kernels.cuda.tensors import TensorArgs
from edgeadapt.kernels.cuda.walk import AxesArgs, Longs, Merged, merge_axes
from edgeadapt.kernels.reduce import AFTER, BEFORE, HOW, check_reduction

_THREADS = 256
_WARP = 32
_OF_LANE = 64  # the most elements that one thread joins before a tree goes on
_SCRATCH_ALIGNMENT = 256


class ReduceArgs(ctypes.Structure):
    """`ReduceArgs` of csrc/reduce.cu."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("x_dtype", ctypes.c_int64),
        ("y_dtype", ctypes.c_int64),
        ("kept", AxesArgs),
        ("reduced", AxesArgs),
        ("x_kept", Longs),
        ("x_reduced", Longs),
        ("y_kept", Longs),
        ("how", ctypes.c_int64),
        ("before", ctypes.c_int64),
        ("root", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("lanes", ctypes.c_int64),
        ("across", ctypes.c_int64),
        ("parts", ctypes.c_int64),
        ("part_size", ctypes.c_int64),
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
    scratch: int = 0,
) -> Work:
    """Write ``after(scale * how(before(x)))`` over ``axes`` to ``y``.

    ``y`` has the axes of ``x``, of length 1 where reduced; without axes each element is its own
    result. Any strides and types; ``y`` must not be the memory of ``x``.

    Raises:
        ArrayError: if the shapes do not fit together or there is no such reduction.
    """
    shape = tuple(x.shape[: x.rank])
    check_reduction(shape, y, how, axes, before, after)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    outer = merge_axes([shape[a] for a in kept], [[t.strides[a] for a in kept] for t in (x, y)])
    gone = [axis for axis in range(len(shape)) if axis in axes]
    inner = merge_axes([shape[a] for a in gone], [[x.strides[a] for a in gone]])
    arguments = ReduceArgs(
        x=x.data, y=y.data, x_dtype=x.dtype, y_dtype=y.dtype,
        kept=AxesArgs.of(outer.shape), reduced=AxesArgs.of(inner.shape),
        x_kept=Longs(*outer.strides[0]), y_kept=Longs(*outer.strides[1]),
        x_reduced=Longs(*inner.strides[0]),
        how=HOW[how], before=BEFORE[before], root=AFTER[after], scale=scale, scratch=scratch,
    )  # fmt: skip
    return _launches(arguments, _share(outer, inner, arguments))


class _Share(NamedTuple):
    """How the threads of a block are shared out; depends on sizes and strides alone."""

    lanes: int  # threads for one result
    across: bool  # neighbouring threads have neighbouring results


def _share(outer: Merged, inner: Merged, arguments: ReduceArgs) -> _Share:
    """Neighbouring threads read neighbours in memory, and few threads have nothing to do."""
    lanes = min(_THREADS, _power_of_two(-(-arguments.reduced.count // 8)))
    along = abs(inner.strides[0][-1]) if inner.shape else 2**62
    across = (abs(outer.strides[0][-1]) if outer.shape else 2**62) < along
    if across:  # a warp for results that lie side by side
        lanes = min(lanes, _THREADS // min(_WARP, _power_of_two(arguments.kept.count)))
    return _Share(lanes, across)


def _launches(arguments: ReduceArgs, share: _Share) -> Work:
    results, count = arguments.kept.count, arguments.reduced.count
    arguments.lanes, arguments.across = share
    arguments.part_size = min(count, share.lanes * _OF_LANE)
    arguments.parts = -(-count // arguments.part_size)
    groups = -(-results // (_THREADS // share.lanes))
    grid = (groups * arguments.parts, 1, 1)
    launches = [Launch("reduce", grid, (_THREADS, 1, 1), arguments)]
    if arguments.parts == 1:
        return Work(tuple(launches))
    nbytes = -(-4 * results * arguments.parts // _SCRATCH_ALIGNMENT) * _SCRATCH_ALIGNMENT
    joined = ReduceArgs.from_buffer_copy(arguments)
    joined.across = True  # those of one part lie side by side
    most = _THREADS // min(_WARP, _power_of_two(results))
    joined.lanes = min(most, _power_of_two(-(-arguments.parts // 4)))
    groups = -(-results // (_THREADS // joined.lanes))
    launches.append(Launch("reduce_parts", (groups, 1, 1), (_THREADS, 1, 1), joined))
    return Work(tuple(launches), nbytes)


def _power_of_two(number: int) -> int:
    """The smallest that is not smaller."""
    return 1 << (number - 1).bit_length()
