"""tools/gpu_check.sh, as far as it goes without a GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.tree import ROOT

SCRIPT = ROOT / "tools/gpu_check.sh"
SUITE = '<testsuites><testsuite name="pytest" tests="{}" failures="{}" errors="0" skipped="{}"/>'


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("bash") or "bash", str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_its_stages_are_printed_and_nothing_is_done(tmp_path):
    done = run("--dry-run", "-o", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    stages = done.stdout.split()[-8:]
    assert stages == [
        "machine",
        "environment",
        "pycuda",
        "install",
        "smoke",
        "tests",
        "bench",
        "sanitizer",
    ]
    assert not (tmp_path / "results").exists()
    source = SCRIPT.read_text(encoding="utf-8")
    assert all(f"stage_{stage}() {{" in source for stage in stages)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nose", "1"], "there is no option --nose"),
        (["--minutes", "soon"], "--minutes must be a whole number"),
        (["-w", "/nowhere", "--dry-run"], "/nowhere: no such folder"),
        (["-o"], "-o needs a value"),
    ],
)
def test_what_it_does_not_understand_is_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_its_help_is_its_head():
    done = run("--help")
    assert done.returncode == 0
    assert "--dry-run" in done.stdout
    assert "set -uo" not in done.stdout


def merged(tmp_path: Path, *suites: str) -> tuple[int, str]:
    for number, suite in enumerate(suites):
        (tmp_path / f"{number}.xml").write_text(suite)
    done = subprocess.run(
        [sys.executable, ROOT / "tools/gpu_results.py", tmp_path / "all" / "x.xml", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize(
    ("counts", "code"), [((3, 0, 1), 0), ((3, 1, 0), 1), ((3, 0, 3), 1), ((0, 0, 0), 1)]
)
def test_results_of_many_files_are_one(tmp_path, counts, code):
    (tmp_path / "all").mkdir()
    whole = SUITE.format(*counts) + "</testsuites>"
    found = merged(tmp_path, whole, whole)
    expected = [2 * count for count in counts]
    assert found == (code, "{} tests, {} failures, 0 errors, {} skipped".format(*expected))
    assert (tmp_path / "all/x.xml").read_text().count("<testsuite ") == 2


def test_a_file_that_was_cut_off_is_an_error(tmp_path):
    (tmp_path / "all").mkdir()
    whole = SUITE.format(3, 0, 0) + "</testsuites>"
    code, text = merged(tmp_path, whole, SUITE.format(1, 0, 0))
    assert (code, text) == (1, "3 tests, 0 failures, 1 errors, 0 skipped")
