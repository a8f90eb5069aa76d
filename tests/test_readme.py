"""What the README shows works as shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from edgeadapt.testing import photo
from support.tree import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:<!-- not run: (.+?) -->\n)?```(\w+)\n(.*?)```", README, re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for reason, kind, text in BLOCKS if kind == language and not reason]


def run(command: list[str], folder: Path) -> str:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": programs},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    """A folder with the photo that the README speaks of, in a size that no network likes."""
    Image.fromarray(photo(5, 67, 93)).save(tmp_path / "blurred.png")
    return tmp_path


def test_every_block_is_run_or_says_why_not():
    kinds = {kind for _, kind, _ in BLOCKS}
    assert kinds == {"sh", "python"}
    assert blocks("sh")
    assert blocks("python")
    assert README.count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize("block", blocks("sh"))
def test_the_commands_run(block, folder):
    run(["bash", "-euc", block], folder)


def test_the_commands_that_are_not_run_have_the_options_they_show(folder):
    text = "\n".join(text for reason, kind, text in BLOCKS if kind == "sh" and reason)
    lines = [line.split("#")[0].split() for line in text.splitlines() if "edgeadapt " in line]
    assert lines
    for words in lines:
        names = words[1:3] if words[1] == "train" else words[1:2]
        shown = run(["edgeadapt", *names, "--help"], folder)
        options = {word for word in words if word.startswith("-")}
        assert options <= set(re.findall(r"-{1,2}[a-z][a-z-]*", shown)), words


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_runs(block, folder):
    printed = run([sys.executable, "-W", "error", "-c", block], folder)
    losses = re.findall(r"'(\d\.\d{6})'", printed)
    assert len(losses) == 6  # before each of five steps and after the last
    # Whether the steps of this network help this image is not the README's: that it says so is.
    assert printed.endswith(" adapted\n") == (float(losses[-1]) <= float(losses[0]))
    with Image.open(folder / "restored.png") as restored:
        assert restored.size == (93, 67)
