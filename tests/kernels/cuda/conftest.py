"""CUDA kernels run on the host, on watched memory, twice: the order of threads must not matter.

Where there is a GPU, or with --require-gpu, every test that takes `run`, `guarded` or `device` runs
there as well, marked `gpu`: on copies of the same memory, twice, to the same bits.

def test_copy(run, guarded):
    x = guarded((1, 3, 5, 7), "nhwc", "f16", rng.standard_normal((1, 3, 5, 7)))
    y = guarded((1, 3, 5, 7), "strided", "f32")          # NaN
    run(lambda scratch: copy(TensorArgs.of(x), TensorArgs.of(y)))
    assert (wide(y) == wide(x)).all()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest

from edgeadapt.errors import BackendError
from edgeadapt.kernels.cuda.launch import Work
from edgeadapt.runtime.backends import has_gpu
from edgeadapt.runtime.cuda.device import Device
from support.cuda_memory import HostDevice
from support.cuda_mirror import MirroredDevice
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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames and not getattr(metafunc.module, "HOST_ONLY", False):
        places: list[Any] = ["host"]
        if has_gpu() or metafunc.config.getoption("--require-gpu"):
            places.append(pytest.param("gpu", marks=pytest.mark.gpu))
        metafunc.parametrize("place", places, indirect=True)


@pytest.fixture
def place(request) -> str:
    """Where kernels run: "host" or "gpu"."""
    return str(getattr(request, "param", "host"))


@pytest.fixture(scope="session")
def opened_gpu(request) -> Iterator[Device | BackendError]:
    """A GPU that all tests share, or why there is none."""
    from edgeadapt.runtime.cuda.pycuda_device import open_device

    try:
        opened = open_device()
    except BackendError as error:
        yield error
        return
    yield opened
    opened.close()


@pytest.fixture
def device(request, guards, place) -> HostDevice:
    if place == "host":
        return HostDevice(guards)
    opened = request.getfixturevalue("opened_gpu")
    if not isinstance(opened, BackendError):
        return MirroredDevice(guards, opened)
    if request.config.getoption("--require-gpu"):
        raise opened
    pytest.skip(str(opened))


@pytest.fixture
def guarded(device) -> MakeGuarded:
    return device.array


@pytest.fixture
def run(device) -> RunWork:
    return device.run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
