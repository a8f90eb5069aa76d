"""Every kernel test runs once for each level of this CPU, on memory that is watched."""

from __future__ import annotations

import ctypes
from typing import Protocol

import pytest

from edgeadapt.errors import BackendError
from edgeadapt.kernels.library import Call, open_library
from support.guarded import Guards


class CallKernel(Protocol):
    """Run the kernel ``name`` once with ``threads`` threads; its scratch memory starts as NaN."""

    def __call__(self, name: str, arguments: ctypes.Structure, threads: int = 1) -> None: ...


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "level" in metafunc.fixturenames:
        try:
            levels = open_library().levels
        except BackendError:
            levels = ("missing",)  # so that the tests fail and say why
        metafunc.parametrize("level", levels)


@pytest.fixture
def guards():
    guards = Guards()
    yield guards
    guards.check()
    guards.close()


@pytest.fixture
def call(level, guards) -> CallKernel:
    library = open_library()

    def run(name: str, arguments: ctypes.Structure, threads: int = 1) -> None:
        kernel = library.kernel(level, name, type(arguments))
        size = kernel.scratch_bytes(arguments, threads)
        if size:
            arguments.scratch = guards.empty((size,), "uint8").ctypes.data
        team = library.team(threads)
        library.run((Call * 1)(kernel.call(arguments)), team)
        team.close()
        guards.check()

    return run
