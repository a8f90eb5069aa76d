"""The scripts of tools/, called as from a shell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def run_script(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it with bash; what it prints is text, and its exit status is for the test to judge."""
    command = [shutil.which("bash") or "bash", str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def assert_refused_in_one_line(done: subprocess.CompletedProcess[str], message: str) -> None:
    """It ended with 2, and one line on stderr says why."""
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert message in done.stderr, done.stderr


def assert_help_is_head(done: subprocess.CompletedProcess[str], option: str) -> None:
    """Its help is the comment at its head, with ``option``, and nothing of the code below."""
    assert done.returncode == 0, done.stderr
    assert option in done.stdout, done.stdout
    assert "set -uo" not in done.stdout, done.stdout
