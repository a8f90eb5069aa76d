"""Settings for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# A deadline measures how busy the machine is. On a server, runs repeat each other exactly: what one
# finds, the next one shows again.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI", "") not in ("", "0", "false") else "here")
