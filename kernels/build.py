"""Compile csrc/ into one shared library, every kernel once for each instruction set.

    python -m edgeadapt.kernels.build     beside library.py, where it is looked for first
    python kernels/build.py -o FOLDER     elsewhere, without the package

Needs a C++17 compiler (GCC or Clang) and nothing but the standard library: setup.py loads this
file before anything is installed. A second run compiles what changed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARY = "_native.so"
ONCE = ("library", "team")  # compiled for the baseline only; may contain instructions of no level
TABLE = "table"

# Best last. cpu_has() in library.cpp asks the CPU for what the flags let the compiler use.
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (
    *_AVX2,
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
)
LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "baseline": (),
        "avx2": _AVX2,
        "avx512": _AVX512,
        "avx512_bf16": (*_AVX512, "-mavx512bf16"),
    },
    "aarch64": {"neon": (), "neon_bf16": ("-march=armv8.2-a+bf16",)},
}
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-pthread", "-fno-exceptions", "-fno-rtti"),
    *("-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
WARNINGS = ("-Wall", "-Wextra", "-Wno-unused-function")  # a header offers more than a kernel takes


class BuildError(Exception):
    """There is no compiler, or it refuses a file; the text is what it said."""


@dataclass(frozen=True)
class Options:
    """How to build."""

    compiler: str = ""  # empty: $CXX, g++, c++ or clang++, whichever there is first
    target: str = ""  # empty: this machine's; else "aarch64" or "x86_64" and a compiler for it
    levels: tuple[str, ...] = ()  # empty: $EDGEADAPT_LEVELS, "avx2,avx512", or all
    only: tuple[str, ...] | None = None  # kernel files, "conv"; None takes all
    sanitize: str = ""  # "address,undefined", "thread"
    flags: tuple[str, ...] = WARNINGS
    jobs: int = os.cpu_count() or 1
    say: Callable[[str], object] = lambda text: sys.stderr.write(text + "\n")


def build(place: Path, objects: Path, options: Options | None = None) -> Path:
    """Write ``place/_native.so`` by way of ``objects``; returns its path.

    Raises:
        BuildError: if there is no compiler, or it refuses a file.
    """
    options = options or Options()
    compiler = find_compiler(options)
    place.mkdir(parents=True, exist_ok=True)
    objects.mkdir(parents=True, exist_ok=True)
    library = place / LIBRARY
    with (objects / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever builds in here at the same time waits
        made = compile_all(compiler, objects, options)
        # A process may have the old one open: another file takes its place.
        fresh = library.with_name(f"{LIBRARY}.{os.getpid()}")
        link = ["-shared", "-pthread", "-static-libgcc", "-Wl,--as-needed"]
        run_compiler([*compiler, *link, *_sanitize(options), *map(str, made), "-o", str(fresh)])
        fresh.replace(library)
    return library


def compile_all(compiler: list[str], objects: Path, options: Options) -> list[Path]:
    """Compile every file for every level; returns the object files.

    Raises:
        BuildError: if the compiler refuses a file.
    """
    levels = _levels(compiler, options)
    if not levels:
        raise BuildError(f"{shlex.join(compiler)} knows none of the instruction sets asked for")
    sources = HERE / "csrc"
    stems = sorted(p.stem for p in sources.glob("*.cpp") if p.stem not in (*ONCE, TABLE))
    if options.only is not None:
        stems = [stem for stem in stems if stem in options.only]
    _write(objects / "operations.h", "".join(f"EA_OPERATION({stem})\n" for stem in stems))
    _write(objects / "levels.h", "".join(f"EA_HOLDS({level})\n" for level in levels))
    common = [*compiler, *FLAGS, *_sanitize(options), *options.flags]
    common += ["-I", str(objects), "-I", str(sources)]
    work = [(sources / f"{stem}.cpp", objects / f"{stem}.o", common) for stem in ONCE]
    for level, flags in levels.items():
        command = [*common, *flags, f"-DEA_LEVEL={level}"]
        work += [
            (sources / f"{stem}.cpp", objects / f"{stem}.{level}.o", command)
            for stem in (TABLE, *stems)
        ]
    with ThreadPoolExecutor(max(options.jobs, 1)) as pool:
        return list(pool.map(lambda one: compile_file(one[0], one[1], one[2], options.say), work))


def find_compiler(options: Options) -> list[str]:
    """The command that compiles for the target.

    Raises:
        BuildError: if there is none.
    """
    prefix = f"{options.target}-linux-gnu-" if options.target not in ("", _machine()) else ""
    usual = [f"{prefix}{name}" for name in ("g++", "c++", "clang++")]
    given = options.compiler or ("" if prefix else os.environ.get("CXX", ""))
    for name in [given] if given else usual:
        command = shlex.split(name)
        if shutil.which(command[0]):
            return command
    raise BuildError(f"no C++ compiler: found none of {', '.join([given] if given else usual)}")


def _machine() -> str:
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def _levels(compiler: list[str], options: Options) -> dict[str, tuple[str, ...]]:
    """The levels asked for, less those whose flags the compiler does not know."""
    known = LEVELS.get(options.target or _machine(), {"baseline": ()})
    given = os.environ.get("EDGEADAPT_LEVELS", "")
    wanted = options.levels or tuple(name for name in given.split(",") if name) or tuple(known)
    for name in wanted:
        if name not in known:
            raise BuildError(f"no level {name!r}; there are {', '.join(known)}")
    found = {}
    for name, flags in known.items():
        if name not in wanted:
            continue
        probe = [*compiler, *flags, "-x", "c++", "-fsyntax-only", os.devnull]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            found[name] = flags
        else:
            options.say(f"{compiler[0]} is too old for {name}: left out")
    return found


def _sanitize(options: Options) -> list[str]:
    if not options.sanitize:
        return []
    return [f"-fsanitize={options.sanitize}", "-fno-sanitize-recover=all", "-g1", "-O1"]


def compile_file(
    source: Path, made: Path, command: list[str], say: Callable[[str], object]
) -> Path:
    """Compile one file unless its object is newer than all it was made of, by the same command."""
    mark = hashlib.sha256("\0".join(command).encode()).hexdigest()
    needs, marked = made.with_suffix(".d"), made.with_suffix(".command")
    if needs.is_file() and marked.is_file() and marked.read_text() == mark:
        # "conv.o: conv.cpp simd.h \" in the syntax of make
        names = needs.read_text().partition(":")[2].replace("\\\n", " ")
        if _newer(made, [Path(name) for name in shlex.split(names)]):
            return made
    say(f"compiling {made.stem}")
    marked.unlink(missing_ok=True)
    run_compiler([*command, "-MMD", "-MF", str(needs), "-c", str(source), "-o", str(made)])
    marked.write_text(mark)
    return made


def _newer(made: Path, sources: Sequence[Path]) -> bool:
    if not made.is_file() or not all(source.is_file() for source in sources):
        return False
    return all(source.stat().st_mtime_ns <= made.stat().st_mtime_ns for source in sources)


def _write(place: Path, text: str) -> None:
    """Leave a file alone that says the same: what includes it need not be compiled again."""
    if not place.is_file() or place.read_text() != text:
        place.write_text(text)


def run_compiler(command: list[str]) -> None:
    """Run a command and show what it says; raises BuildError if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{done.stderr.strip()}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="compile the native engine")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help=f"where {LIBRARY} goes")
    parser.add_argument("--objects", type=Path, help="keep object files here, for the next time")
    parser.add_argument("--only", type=lambda text: tuple(text.split(",")), help="kernel files")
    parser.add_argument("--compiler", default="")
    parser.add_argument("--target", default="", choices=["", *LEVELS])
    parser.add_argument("--levels", type=lambda text: tuple(text.split(",")), default=())
    parser.add_argument("--sanitize", default="", metavar="address,undefined")
    parser.add_argument("--flags", type=shlex.split, default=WARNINGS, help="further ones")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    options = Options(
        *(given.compiler, given.target, given.levels, given.only, given.sanitize),
        *(tuple(given.flags), given.jobs),
    )
    # In a clone, next to what setuptools leaves there; an installed package keeps nothing.
    tree = HERE.parent / "build/native" if (HERE.parent / "pyproject.toml").is_file() else None
    with tempfile.TemporaryDirectory() as scratch:
        try:
            library = build(given.output, given.objects or tree or Path(scratch), options)
        except BuildError as error:
            sys.stderr.write(f"{error}\n")
            return 1
    sys.stderr.write(f"{library}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
