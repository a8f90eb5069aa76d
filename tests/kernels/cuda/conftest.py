"""CUDA kernels run on the host, on watched memory, twice: the order of threads must not matter.

def test_copy(run, guarded):
    x = guarded((1, 3, 5, 7), "nhwc", "f16", rng.standard_normal((1, 3, 5, 7)))
    y = guarded((1, 3, 5, 7), "strided", "f32")          # NaN
    run(lambda scratch: copy(TensorArgs.of(x), TensorArgs.of(y)))
    assert (wide(y) == wide(x)).all()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest

from edgeadapt.kernels.cuda.launch import Work
from support.cuda_memory import HostDevice
from support.strided import Layout

Array = npt.NDArray[Any]


class MakeGuarded(Protocol):
    """An array of "f32", "f16", "bf16" (its bits, uint16) or "bool" in watched memory.

    ``layout``: "nhwc" and "nchw" are without gaps, "strided" is NHWC with gaps behind every pixel
    and row; or any `Layout`. For what is not four-dimensional, "nhwc" is as "nchw". ``fill`` is a
    number or an array of numbers; without it, all is NaN.
    """

    def __call__(
        self,
        shape: tuple[int, ...],
        layout: str | Layout = "nhwc",
        dtype: str = "f32",
        fill: npt.ArrayLike | None = None,
    ) -> Array: ...


class RunWork(Protocol):
    """Run the work that ``make(scratch)`` describes; ``scratch`` is 0 to ask for its size, then the
    address of memory full of NaN. Arrays must be from `guarded`. Fails if anything else is written,
    or if results change when the last block and the last thread run first.
    """

    def __call__(self, make: Callable[[int], Work]) -> None: ...


@pytest.fixture
def device(guards) -> HostDevice:
    return HostDevice(guards)


@pytest.fixture
def guarded(device) -> MakeGuarded:
    return device.array


@pytest.fixture
def run(device) -> RunWork:
    return device.run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
