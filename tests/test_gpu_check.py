"""tools/gpu_check.sh, as far as it goes without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.scripts import assert_help_is_head, assert_refused_in_one_line, run_script
from support.tree import ROOT

SCRIPT = ROOT / "tools/gpu_check.sh"
SUITE = '<testsuites><testsuite name="pytest" tests="{}" failures="{}" errors="0" skipped="{}"/>'


def test_its_stages_are_printed_and_nothing_is_done(tmp_path):
    done = run_script(SCRIPT, "--dry-run", "-o", str(tmp_path / "results"))
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
    assert_refused_in_one_line(run_script(SCRIPT, *arguments), message)


def test_its_help_is_its_head():
    assert_help_is_head(run_script(SCRIPT, "--help"), "--dry-run")


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
