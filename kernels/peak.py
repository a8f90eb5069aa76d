"""What a machine can do at most: multiply-adds and copies that wait for nothing (csrc/peak.cpp)."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import ArrayError

F32 = npt.NDArray[np.float32]
CHAINS = 12  # operations under way side by side in each thread
# Multiplications and additions of one operation, for each lane of a vector.
WORK = {"peak_multiply": 2, "peak_dot": 4}
_LINE = 64  # bytes


class PeakChainsArgs(ctypes.Structure):
    """Of the kernels "peak_multiply" and "peak_dot"."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("tasks", ctypes.c_int64),
        ("rounds", ctypes.c_int64),
        ("factor", ctypes.c_double),
        ("term", ctypes.c_double),
    )


class PeakCopyArgs(ctypes.Structure):
    """Of the kernel "peak_copy"."""

    _fields_ = (
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("past_caches", ctypes.c_int64),
    )


def chains_arguments(values: F32, rounds: int, factor: float, term: float) -> PeakChainsArgs:
    """Each value ``rounds`` times: "peak_multiply" value * factor + term; "peak_dot" value + 2 *
    factor * term, these two rounded to bfloat16.

    ``values`` (tasks, CHAINS, lanes) of the level that runs it; a task is what one thread does.
    Changed in place.

    Raises:
        ArrayError: if ``values`` is not so, or ``rounds`` negative.
    """
    if values.dtype != np.float32 or values.ndim != 3 or not values.flags.c_contiguous:
        raise ArrayError(
            f"peak: values must be contiguous float32 (tasks, {CHAINS}, lanes), got "
            f"{values.dtype} {values.shape} with strides {values.strides}."
        )
    if values.shape[1] != CHAINS:
        raise ArrayError(f"peak: values must be (tasks, {CHAINS}, lanes), got {values.shape}.")
    if rounds < 0:
        raise ArrayError(f"peak: rounds must be at least 0, got {rounds}.")
    return PeakChainsArgs(values.ctypes.data, values.shape[0], rounds, factor, term)


def copy_arguments(source: F32, target: F32, past_caches: bool) -> PeakCopyArgs:
    """``target`` = ``source``: float32 of one size, in whole lines of 64 bytes.

    The two may be the same array. Of another array ``past_caches`` leaves out that a line is read
    before it is written.

    Raises:
        ArrayError: if an array is not contiguous float32, does not begin at a line or does not end
            with one, or if their sizes differ.
    """
    for name, array in (("source", source), ("target", target)):
        whole = array.ctypes.data % _LINE == 0 and array.nbytes % _LINE == 0
        if array.dtype != np.float32 or not array.flags.c_contiguous or not whole:
            raise ArrayError(
                f"peak_copy: {name} must be contiguous float32 in whole lines of {_LINE} bytes, "
                f"got {array.dtype} {array.shape} at {array.ctypes.data % _LINE} bytes behind one."
            )
    if source.size != target.size:
        raise ArrayError(f"peak_copy: target must have {source.size} elements, got {target.size}.")
    return PeakCopyArgs(source.ctypes.data, target.ctypes.data, source.size, past_caches)
