from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgeadapt.errors import BackendError
from edgeadapt.kernels import library as module
from edgeadapt.kernels.build import LEVELS
from edgeadapt.kernels.library import Call, Library, library_path, open_library
from edgeadapt.kernels.update import AdamArgs, SgdArgs, segments_of, sgd_arguments
from support.tree import ROOT


@pytest.fixture
def opened() -> Library:
    return open_library()


def test_the_levels_are_some_of_those_that_are_built_and_in_order(opened):
    known = [name for levels in LEVELS.values() for name in levels]
    assert list(opened.levels) == [name for name in known if name in opened.levels]
    assert opened.levels


def test_the_cpu_has_the_levels_it_says(opened):
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        pytest.skip("only Linux tells what the CPU has")
    text = cpuinfo.read_text()
    flags = {"avx2": "avx2", "avx512": "avx512vl", "avx512_bf16": "avx512_bf16"}
    flags["neon_bf16"] = "bf16"
    for level in opened.levels:
        assert level not in flags or f" {flags[level]} " in text.replace("\n", " ")


def test_every_level_has_the_same_kernels(opened):
    names = {opened.names(level) for level in opened.levels}
    assert len(names) == 1
    assert {"sgd", "adam"} <= set(*names)


def test_what_the_library_does_not_have_is_refused(opened):
    level = opened.levels[0]
    with pytest.raises(BackendError, match=f"has no kernel 'fold' at level '{level}'.*build it"):
        opened.kernel(level, "fold", SgdArgs)
    with pytest.raises(BackendError, match="no level 'mmx' on this machine; there are"):
        opened.kernel("mmx", "sgd", SgdArgs)
    with pytest.raises(BackendError, match=r"sgd: AdamArgs has 104 bytes, .* expects 56"):
        opened.kernel(level, "sgd", AdamArgs)
    with pytest.raises(BackendError, match="cannot start a team of 0 threads"):
        opened.team(0)


def test_a_library_that_is_not_there_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEADAPT_LIBRARY", str(tmp_path / "none.so"))
    assert library_path() == tmp_path / "none.so"
    with pytest.raises(BackendError, match=r"not built: there is no .*none\.so.*C\+\+ compiler"):
        open_library.__wrapped__()
    (tmp_path / "none.so").write_text("no library")
    with pytest.raises(BackendError, match=r"cannot be opened: .*none\.so.*kernels\.build"):
        open_library.__wrapped__()
    monkeypatch.setenv("EDGEADAPT_LIBRARY", "")
    assert library_path() == Path(str(module.__file__)).with_name("_native.so")


def program(calls: int) -> tuple[object, list[object]]:
    """Calls that each subtract 1 from all of 30,000 weights, and what must be kept of them."""
    opened = open_library()
    kernel = opened.kernel(opened.levels[-1], "sgd", SgdArgs)
    weights, ones = np.zeros(30000, np.float32), np.ones(30000, np.float32)
    segments = segments_of(ones)
    arguments = sgd_arguments(weights, ones, segments)
    return (Call * calls)(*[kernel.call(arguments)] * calls), [weights, ones, segments, arguments]


def test_without_the_library_one_word_takes_the_place_of_failing_tests(tmp_path):
    variables = {"EDGEADAPT_LIBRARY": str(tmp_path / "none.so"), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", "tests/core"],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stdout == ""
    assert "ERROR: the tests cannot run: the native engine was not built" in done.stderr


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_program_runs_all_its_calls_also_after_the_threads_fell_asleep(opened, threads):
    team = opened.team(threads)
    calls, (weights, *_kept) = program(200)
    times = (ctypes.c_int64 * 200)()
    for rounds in (1, 2, 3):
        opened.run(calls, team, times)
        assert (weights == -200 * rounds).all()
        assert all(0 < nanoseconds < 1e10 for nanoseconds in times)
        time.sleep(0.002)  # they wait actively for 20 microseconds
    with pytest.raises(ValueError, match="200 calls need as many times, not 3"):
        opened.run(calls, team, (ctypes.c_int64 * 3)())


def test_a_team_ends_its_threads(opened):
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir())) if sys.platform == "linux" else 0

    before = threads()
    team = opened.team(4)
    assert threads() in (before + 3, 0)
    team.close()
    team.close()
    until = time.monotonic() + 10  # one that was joined may be listed a moment longer
    while threads() != before and time.monotonic() < until:
        time.sleep(0.01)
    assert threads() == before
    with pytest.raises(BackendError, match="the team is closed"):
        opened.run(program(1)[0], team)
    opened.team(3)  # nobody keeps it
    assert threads() == before


LEAVING = """
import threading, time
import numpy as np
from edgeadapt.kernels.library import Call, open_library
from edgeadapt.kernels.update import SgdArgs, segments_of, sgd_arguments

opened, ones = open_library(), np.ones(30000, np.float32)
segments = segments_of(ones)
weights = np.zeros_like(ones)
arguments = sgd_arguments(weights, ones, segments)
kernel, team = opened.kernel(opened.levels[-1], "sgd", SgdArgs), opened.team(2)
calls, running = (Call * 1000)(*[kernel.call(arguments)] * 1000), threading.Event()

def work(*kept):  # globals are dropped while the process ends, what a running thread holds is not
    while True:
        opened.run(calls, team)
        running.set()

threading.Thread(target=work, args=(weights, ones, segments, arguments), daemon=True).start()
running.wait()
"""


def test_a_process_can_end_while_a_daemon_thread_runs_a_program():
    for _ in range(3):  # it crashes in nearly every run if the team is destroyed at the end
        subprocess.run([sys.executable, "-c", LEAVING], check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process.* is multi-threaded:DeprecationWarning")
def test_a_fork_can_drop_a_team_whose_threads_it_does_not_have(opened):
    team = opened.team(2)
    child = os.fork()
    if child == 0:
        team.close()  # would wait forever
        os._exit(7)
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 7
