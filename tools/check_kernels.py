"""Run the kernels' tests on another build of them.

    tools/check_kernels.py sanitize   with AddressSanitizer and UndefinedBehaviorSanitizer
    tools/check_kernels.py threads    with ThreadSanitizer, each call in a process without Python
    tools/check_kernels.py aarch64    compiled for 64-bit Arm and emulated by QEMU

What follows goes to pytest. The builds lie in build/sanitize, build/threads and build/aarch64. With
sanitizers, AVX2 and the best level of this CPU are taken: each takes minutes, and there is no code
that only another one has. EDGEADAPT_LEVELS=baseline,avx512 takes those named.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from edgeadapt.errors import BackendError
from edgeadapt.kernels import build as native
from edgeadapt.kernels.library import open_library

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests/kernels"
SYSROOT = "/usr/aarch64-linux-gnu"  # where Debian puts the other CPU's libraries
_NEEDS = {
    "sanitize": "This needs GCC. On Debian: apt-get install g++",
    "threads": "This needs GCC or Clang. On Debian: apt-get install g++",
    "aarch64": "This needs both: apt-get install g++-aarch64-linux-gnu qemu-user (on Debian)",
}


def sanitize() -> dict[str, str]:
    """Build with sanitizers; returns the variables that make the tests use it."""
    folder = ROOT / "build/sanitize"
    options = native.Options(levels=_some_levels(), sanitize="address,undefined")
    library = native.build(folder, folder / "objects", options)
    # Python itself has no sanitizer in it, so theirs must be there before anything else.
    compiler = native.find_compiler(options)
    preload = []
    for name in ("libasan.so", "libubsan.so"):
        command = [*compiler, f"-print-file-name={name}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(found).is_absolute():
            raise native.BuildError(f"{compiler[0]} has no {name}: this check needs GCC's")
        preload.append(found)
    return {
        "EDGEADAPT_LIBRARY": str(library),
        "EDGEADAPT_CUDA_SANITIZE": options.sanitize,  # the CUDA kernels, compiled for the host
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0:" + os.environ.get("ASAN_OPTIONS", ""),
        "PYTHONMALLOC": "malloc",
    }


def threads() -> dict[str, str]:
    """Build with ThreadSanitizer; Python would need one, so the runner makes the calls."""
    options = native.Options(levels=_some_levels(), sanitize="thread")
    # It wants memory where a kernel with random addresses does not always leave it.
    command = ["setarch", "-R"] if shutil.which("setarch") else []
    return _runner(command, ROOT / "build/threads", options)


def aarch64() -> dict[str, str]:
    """Build for 64-bit Arm; returns the variables that make the tests run there."""
    options = native.Options(target="aarch64")
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    native.find_compiler(options)
    if emulator is None:
        raise native.BuildError("no qemu-aarch64")
    return _runner([emulator, "-L", SYSROOT], ROOT / "build/aarch64", options)


def _some_levels() -> tuple[str, ...]:
    """Those to take if none are asked for."""
    if os.environ.get("EDGEADAPT_LEVELS"):
        return ()
    levels = open_library().levels
    return tuple(name for name in levels if name in ("avx2", levels[-1]))


def _runner(command: list[str], folder: Path, options: native.Options) -> dict[str, str]:
    """Build the library and the program that makes a call for a test."""
    library = native.build(folder, folder / "objects", options)
    source, runner = ROOT / "tests/support/kernel_runner.cpp", folder / "kernel_runner"
    compiler = [*native.find_compiler(options), "-std=c++17", "-O1", "-Wall", "-Wextra"]
    if options.sanitize:
        compiler.append(f"-fsanitize={options.sanitize}")
    compiler += ["-I", str(native.HERE / "csrc"), str(source), str(library)]
    subprocess.run([*compiler, "-Wl,-rpath,$ORIGIN", "-o", str(runner)], check=True)
    return {"EDGEADAPT_KERNEL_RUNNER": shlex.join([*command, str(runner)])}


def main() -> int:
    """Build, then run pytest."""
    checks = {"sanitize": sanitize, "threads": threads, "aarch64": aarch64}
    if len(sys.argv) < 2 or sys.argv[1] not in checks:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    try:
        variables = checks[sys.argv[1]]()
    except (native.BuildError, BackendError) as error:
        sys.stderr.write(f"NOT CHECKED: {error}\n")
        if str(error).startswith("no "):  # a program is missing; else it is what a compiler said
            sys.stderr.write(f"{_NEEDS[sys.argv[1]]}\n")
        return 1
    # A sanitizer ends the process: what it has to say must not wait in pytest's capture.
    command = [sys.executable, "-m", "pytest", "-n0", "--capture=sys", str(TESTS)]
    for name in ("test_build.py", "cuda/test_fatbin.py", "cuda/test_library.py"):
        command += ["--ignore", str(TESTS / name)]  # makes builds of its own
    return subprocess.run(
        [*command, *sys.argv[2:]], cwd=ROOT, env={**os.environ, **variables}, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
