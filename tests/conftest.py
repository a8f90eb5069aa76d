"""Settings for all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from edgeadapt.errors import BackendError
from edgeadapt.kernels.library import open_library
from support.kernel_runner import RUNNER

# A deadline measures how busy the machine is. On a server, runs repeat each other exactly: what one
# finds, the next one shows again.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI", "") not in ("", "0", "false") else "here")


def pytest_configure() -> None:
    if RUNNER:  # kernels of another CPU, and no other tests
        return
    try:
        open_library()
    except BackendError as error:  # rather once than in some thousand tests
        raise pytest.UsageError(f"the tests cannot run: {error}") from None
