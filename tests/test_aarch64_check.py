"""tools/aarch64_check.sh, as far as it goes without the other system."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from support.scripts import assert_help_is_head, assert_refused_in_one_line, run_script
from support.tree import ROOT

SCRIPT = ROOT / "tools/aarch64_check.sh"


def test_its_stages_are_printed_and_nothing_is_done(tmp_path):
    done = run_script(SCRIPT, "--dry-run", "-w", str(tmp_path / "work"))
    assert done.returncode == 0, done.stderr
    stages = done.stdout.split("\n", 1)[1].split()
    assert stages == ["tools", "wheel", "system", "wheels", "install", "commands", "tests"]
    assert not (tmp_path / "work").exists()
    source = SCRIPT.read_text(encoding="utf-8")
    assert all(f"stage_{stage}() {{" in source for stage in stages)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nose", "1"], "there is no option --nose"),
        (["-w"], "-w needs a value"),
        (["--suite", "../etc", "--dry-run"], "--suite must be a name like bookworm, got ../etc"),
        (["--keyring", "/nowhere.gpg", "--dry-run"], "/nowhere.gpg: no such file"),
        (["--only", "tests lunch", "--dry-run"], "there is no stage lunch"),
    ],
)
def test_what_it_does_not_understand_is_one_line(arguments, message):
    assert_refused_in_one_line(run_script(SCRIPT, *arguments), message)


def test_its_help_is_its_head():
    assert_help_is_head(run_script(SCRIPT, "--help"), "--suite NAME")


@pytest.fixture(scope="module")
def wheels() -> ModuleType:
    pytest.importorskip("packaging")
    spec = importlib.util.spec_from_file_location("wheels", ROOT / "tools/aarch64_wheels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_wheel(
    folder: Path, name: str, version: str, *requires: str, tag: str = "py3-none-any", size: int = 0
) -> Path:
    path = folder / f"{name}-{version}-{tag}.whl"
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
        archive.writestr("content", b"\0" * size)
    return path


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Wheels of two Pythons, one of which needs another package besides."""
    root = ("one>=1", "old; python_version<'3.11'", "far; platform_machine=='x86_64'")
    write_wheel(tmp_path, "root", "1.0", *root, "extra_one; extra=='more'")
    write_wheel(tmp_path, "one", "1.5", "two", tag="cp310-cp310-manylinux_2_17_aarch64")
    write_wheel(tmp_path, "one", "2.5", "two", tag="cp312-cp312-manylinux_2_28_aarch64")
    write_wheel(tmp_path, "two", "0.1", "root", tag="cp38-abi3-manylinux2014_aarch64")  # a circle
    write_wheel(tmp_path, "unused", "9.9", size=10**6)
    return tmp_path


@pytest.mark.parametrize(
    ("python", "versions", "missing"),
    [
        ("3.10", {"root": "1.0", "one": "1.5", "two": "0.1"}, ["old"]),
        ("3.12", {"root": "1.0", "one": "2.5", "two": "0.1"}, []),
        ("3.13", {"root": "1.0"}, ["one>=1"]),
    ],
)
def test_what_a_package_comes_to_on_the_other_machine(wheels, shelf, python, versions, missing):
    found, lacking = wheels.collect(shelf, ["root"], python, "2.35", offline=True)
    assert {one.name: one.version for one in found} == versions
    assert lacking == missing


def test_an_extra_is_asked_for_by_name(wheels, shelf):
    _, lacking = wheels.collect(shelf, ["root[more]"], "3.12", "2.39", offline=True)
    assert lacking == ["extra_one"]


def test_what_only_the_other_machine_needs_is_fetched_by_name(wheels, shelf, monkeypatch):
    asked: list[list[str]] = []

    def fetch(folder: Path, wanted: list[str], python: str, glibc: str) -> None:
        asked.append(wanted)
        write_wheel(folder, "old", "3.0", "older>=2")  # which no index has

    monkeypatch.setattr(wheels, "fetch", fetch)
    found, lacking = wheels.collect(shelf, ["root"], "3.10", "2.35", offline=False)
    assert asked == [["root", "old"], ["root", "old", "older>=2"]]
    assert lacking == ["older>=2"]
    assert {one.name for one in found} == {"root", "one", "two", "old"}


@pytest.mark.parametrize(("most", "code"), [("0.9", 1), ("1.2", 0)])
def test_more_than_is_allowed_is_an_error(tmp_path, most, code):
    root = write_wheel(tmp_path, "root", "1.0", size=10**6)
    command = [sys.executable, str(ROOT / "tools/aarch64_wheels.py"), "-d", str(tmp_path)]
    command += ["--python", "3.12", "--glibc", "2.39", "--most", most, "--offline", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert f"1.00 MB  together, 1 wheels for Python 3.12, at most {most}" in done.stdout


def test_tests_that_import_torch_are_skipped_and_the_others_run(tmp_path):
    (tmp_path / "test_one.py").write_text("import torch\n\ndef test_one():\n    assert False\n")
    (tmp_path / "test_two.py").write_text("def test_two():\n    assert True\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "without", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-rs", "-c", "/dev/null", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "tools")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 1 skipped" in done.stdout
    assert "needs torch" in done.stdout
