"""Settings for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from edgeadapt.errors import BackendError
from edgeadapt.kernels.library import open_library
from support.kernel_runner import RUNNER

if TYPE_CHECKING:
    from edgeadapt.runtime.cuda.device import Device

# A deadline measures how busy the machine is. On a server, runs repeat each other exactly: what one
# finds, the next one shows again.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI", "") not in ("", "0", "false") else "here")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu", action="store_true", help="fail the tests that need a GPU if there is none"
    )


def pytest_configure() -> None:
    if RUNNER:  # kernels of another CPU, and no other tests
        return
    try:
        open_library()
    except BackendError as error:  # rather once than in some thousand tests
        raise pytest.UsageError(f"the tests cannot run: {error}") from None


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> Iterator[Device]:
    """A GPU of this machine, for a test marked `gpu`; skips with the reason if there is none."""
    from edgeadapt.runtime.cuda.pycuda_device import open_device

    try:
        device = open_device()
    except BackendError as error:
        if request.config.getoption("--require-gpu"):
            raise
        pytest.skip(str(error))
    yield device
    device.close()
