from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import edgeadapt
from edgeadapt import cli
from edgeadapt.cli import COMMANDS, main
from edgeadapt.errors import ImageError

Output = pytest.CaptureFixture[str]


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `edgeadapt info x` raise ``error``."""

    @click.command()
    @click.argument("bundle")
    def info(bundle: str) -> None:
        raise error

    monkeypatch.setattr("edgeadapt.runtime.commands.info", info)


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys; from edgeadapt.cli import main; status = main(['--help']);"
        "heavy = {'onnx', 'onnxruntime', 'torch', 'numpy', 'PIL', 'rich'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, entry in COMMANDS.items():
        assert f"{name} " in done.stdout
        assert entry.help[:30] in done.stdout


def test_as_a_module_and_as_a_function_it_says_the_version(capsys: Output) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeadapt", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert main(["--version"]) == 0
    assert done.stdout == capsys.readouterr().out
    assert edgeadapt.__version__ in done.stdout


@pytest.mark.parametrize("name", ["info", "run", "demo"])
def test_a_command_of_the_device_prints_its_help(name: str, capsys: Output) -> None:
    assert main([name, "--help"]) == 0
    assert f"Usage: edgeadapt {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["foo"], "No such command 'foo'. Hint: see `edgeadapt --help`."),
        (["info", "x", "--foo"], "No such option '--foo'. Hint: see `edgeadapt info --help`."),
        (["run", "x", "y"], "Missing option '-o' / '--out'. Hint: see `edgeadapt run --help`."),
        (["run", "x", "y", "-o", "z", "--steps", "-1"], "Invalid value for '--steps'"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], message: str, capsys: Output) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("edgeadapt: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_no_command_prints_help(capsys: Output) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ImageError("x.png: bad.", "look\nagain."), 2, "x.png: bad. Hint: look again."),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"), 2, "No space left on device: 'x'"),
        (MemoryError(), 2, "out of memory. Hint:"),
        (KeyboardInterrupt(), 130, "interrupted."),
        (ZeroDivisionError("oops"), 1, "internal error, ZeroDivisionError: oops. Hint: run again"),
        (ModuleNotFoundError("", name="onnx.x"), 2, "`edgeadapt info` needs onnx, which is not"),
        (ModuleNotFoundError("no", name="edgeadapt.x"), 1, "internal error, ModuleNotFoundError"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: Output, error: BaseException, status: int, line: str
) -> None:
    monkeypatch.delenv("EDGEADAPT_DEBUG", raising=False)
    raising(monkeypatch, error)
    assert main(["info", "x"]) == status
    output = capsys.readouterr().err.lstrip("\n")  # click ends the line that ^C is on
    assert output.startswith("edgeadapt: error: ")
    assert line in output
    assert output.count("\n") == 1


@pytest.mark.parametrize(("value", "wanted"), [("1", True), ("0", False), ("", False)])
def test_the_traceback_is_there_for_who_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: Output, value: str, wanted: bool
) -> None:
    monkeypatch.setenv("EDGEADAPT_DEBUG", value)
    raising(monkeypatch, ZeroDivisionError("oops"))
    assert main(["info", "x"]) == 1
    assert ("Traceback" in capsys.readouterr().err) == wanted


@pytest.mark.parametrize("name", ["train", "export"])
def test_what_needs_torch_says_how_to_install_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def without_torch(module: str) -> Callable[..., object]:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli, "import_module", without_torch)
    assert main([name, "x"]) == 2
    expected = f"`edgeadapt {name}` needs torch, which is not installed. Hint: pip install"
    assert f"{expected} 'edgeadapt[{name}]'" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(tiny: Path) -> None:
    command = f"{sys.executable} -m edgeadapt info {tiny} --json | head -c 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
