"""A machine's peaks: sane, and not below what other libraries reach. Tight bounds are
`make check-profile`'s, which wants a quiet machine."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest

from edgeadapt.errors import BackendError
from edgeadapt.kernels import library
from edgeadapt.kernels.library import LANES, open_library
from edgeadapt.runtime.backend import usable_cores
from edgeadapt.runtime.profile.peaks import measure_peaks


def test_peaks_of_this_machine() -> None:
    found = measure_peaks(1, seconds=0.05)
    assert set(found.flops_per_second) == {"fp32", "bf16"}
    level = open_library().levels[-1]
    # From a core at 0.1 GHz with half a multiply-add a clock, in a machine that is busy with other
    # things, to one at 6 GHz with four.
    lowest, highest = (2 * LANES[level] * clock for clock in (0.05e9, 24e9))
    assert lowest < found.flops_per_second["fp32"] < highest
    assert found.flops_per_second["bf16"] >= 0.5 * found.flops_per_second["fp32"]
    assert 1e8 < found.bytes_per_second < 1e12
    assert found.threads == 1
    assert level in found.how


def test_no_library_is_faster() -> None:
    # One thread's peak for each core, because two threads are rarely left alone at the same time on
    # a machine that is busy. The best product of matrices is 80 to 90 % of that.
    a, b = np.random.default_rng(0).standard_normal((2, 384, 384)).astype(np.float32)
    reached = 0.0
    for _ in range(20):
        begin = perf_counter()
        np.matmul(a, b)
        reached = max(reached, 2 * 384**3 / (perf_counter() - begin))
    assert usable_cores() * measure_peaks(1, seconds=0.2).flops_per_second["fp32"] > 0.95 * reached


def test_without_a_library_nothing_is_measured(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEADAPT_LIBRARY", f"{tmp_path}/none.so")
    library.open_library.cache_clear()
    try:
        with pytest.raises(BackendError, match="the native engine was not built"):
            measure_peaks()
    finally:
        library.open_library.cache_clear()
