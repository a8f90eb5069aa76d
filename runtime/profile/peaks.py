"""What this machine can do at most: arithmetic in the native engine's vectors, and memory."""

from __future__ import annotations

import ctypes
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.kernels.library import LANES, Call, Library, Team, open_library
from edgeadapt.kernels.peak import CHAINS, WORK, chains_arguments, copy_arguments
from edgeadapt.runtime.backend import usable_cores
from edgeadapt.runtime.profile.parts import Peaks

COPY_BYTES = 128 * 2**20  # of each of two arrays: more than caches hold
_BURST = 2e-3  # seconds of a call of arithmetic: much longer than waking a thread takes
_FIRST_ROUNDS = 1000
_ALIGNMENT = 64  # bytes: a cache line


def measure_peaks(threads: int | None = None, seconds: float = 0.3) -> Peaks:
    """Measure with as many ``threads`` as an engine would use (None: one for each usable core).

    Each figure is the best of all calls within about ``seconds``: what disturbs a call makes it
    slower, nothing makes it faster. Arithmetic is multiply-adds on registers alone, in the widest
    vectors that the native engine has for this CPU; "bf16" is its instruction for products of
    bfloat16, or what "fp32" is where there is none. Memory is read and written to equal parts, in
    place or from one array to another past the caches, whichever is faster. Takes 256 MiB.

    Raises:
        BackendError: if the native engine was not built.
    """
    library = open_library()
    level = library.levels[-1]
    count = threads or usable_cores()
    team = library.team(count)
    bench = _Bench(library, level, team)
    try:
        rates = {"fp32": bench.arithmetic("peak_multiply", seconds)}
        has_dot = level.endswith("bf16")
        rates["bf16"] = bench.arithmetic("peak_dot", seconds) if has_dot else rates["fp32"]
        moved = bench.memory(seconds)
    finally:
        team.close()
    how = f"multiply-adds in registers at level {level}; {2 * COPY_BYTES >> 20} MiB of memory"
    return Peaks(rates, moved, count, how)


class _Bench:
    """Runs single kernels of a level on a team."""

    def __init__(self, library: Library, level: str, team: Team) -> None:
        self._library, self._level, self._team = library, level, team

    def arithmetic(self, name: str, seconds: float) -> float:
        """Operations per second of a kernel of chains."""
        shape = (self._team.threads, CHAINS, LANES[self._level])
        rounds, best = _FIRST_ROUNDS, 0.0
        end = perf_counter() + seconds
        while True:
            values = np.ones(shape, np.float32)
            # The values stay 1, or nearly so: they neither overflow nor become denormal.
            factor, term = (0.5, 0.5) if name == "peak_multiply" else (2.0**-15, 2.0**-15)
            taken = self._time(name, chains_arguments(values, rounds, factor, term))
            best = max(best, values.size * rounds * WORK[name] / taken)
            if perf_counter() > end and taken >= _BURST / 2:
                return best
            rounds = max(_FIRST_ROUNDS, int(rounds * min(_BURST / taken, 10)))

    def memory(self, seconds: float) -> float:
        """Bytes per second that are read and written, together."""
        whole = _line_aligned(2 * COPY_BYTES // 4)
        whole[:] = 1  # pages are there only once they were written to
        source, target = np.split(whole, 2)
        ways = [copy_arguments(whole, whole, False), copy_arguments(source, target, True)]
        best, end = 0.0, perf_counter() + seconds
        while True:
            for arguments in ways:
                moved = 2 * 4 * arguments.count
                best = max(best, moved / self._time("peak_copy", arguments))
            if perf_counter() > end:
                return best

    def _time(self, name: str, arguments: ctypes.Structure) -> float:
        kernel = self._library.kernel(self._level, name, type(arguments))
        calls: Any = (Call * 1)(kernel.call(arguments))
        taken = (ctypes.c_int64 * 1)()
        self._library.run(calls, self._team, taken)
        return max(taken[0], 1) * 1e-9


def _line_aligned(count: int) -> npt.NDArray[np.float32]:
    """Float32 that begin at a cache line."""
    raw = np.empty(4 * count + _ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % _ALIGNMENT
    result: npt.NDArray[np.float32] = raw[begin : begin + 4 * count].view(np.float32)
    return result
