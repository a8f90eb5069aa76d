"""Every kernel test runs once for each level of this CPU, on memory that is watched.

With EDGEADAPT_KERNEL_RUNNER the calls run in another process, which may be of another CPU, and
tests that make no calls are left out.
"""

from __future__ import annotations

import ctypes
from typing import Protocol

import pytest

from edgeadapt.kernels.library import Call, open_library
from support.guarded import Guards
from support.kernel_runner import RUNNER, run_elsewhere, runner_levels


class CallKernel(Protocol):
    """Run the kernel ``name`` once with ``threads`` threads; its scratch memory starts as NaN."""

    def __call__(self, name: str, arguments: ctypes.Structure, threads: int = 1) -> None: ...


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "level" in metafunc.fixturenames:
        metafunc.parametrize("level", runner_levels() if RUNNER else open_library().levels)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [
        item for item in items if RUNNER and "call" not in getattr(item, "fixturenames", ())
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def guards():
    guards = Guards()
    yield guards
    guards.check()
    guards.close()


@pytest.fixture
def call(level, guards) -> CallKernel:
    def run(name: str, arguments: ctypes.Structure, threads: int = 1) -> None:
        if RUNNER:
            run_elsewhere(level, name, arguments, threads, guards)
        else:
            run_here(level, name, arguments, threads, guards)
        guards.check()

    return run


def run_here(
    level: str, name: str, arguments: ctypes.Structure, threads: int, guards: Guards
) -> None:
    library = open_library()
    kernel = library.kernel(level, name, type(arguments))
    size = kernel.scratch_bytes(arguments, threads)
    if size:
        arguments.scratch = guards.empty((size,), "uint8").ctypes.data
    team = library.team(threads)
    library.run((Call * 1)(kernel.call(arguments)), team)
    team.close()
