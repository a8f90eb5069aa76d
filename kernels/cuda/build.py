"""Compile csrc/*.cu with nvcc into one file for all GPUs, and record what each kernel takes of one.

    python -m edgeadapt.kernels.cuda.build      beside library.py, where it is looked for first
    make fatbin                                 likewise, in a clone and without the package

No GPU is needed, and of Python only the standard library: setup.py loads this file before anything
is installed. A second run compiles what changed. Each .cu file becomes a fatbin of its own, which a
driver loads as a module; the file that ships is all of them in a row, and the record beside it says
where each begins.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"
FATBIN, RECORD = "_kernels.fatbin", "_kernels.json"
# Orin; H100 and H200; Thor; the GeForce and RTX of the Blackwell generation. The lowest comes as
# PTX too, which a driver compiles for what is newer than it and not listed.
ARCHITECTURES = ("sm_87", "sm_90", "sm_110", "sm_120")
FLAGS = ("-std=c++17", "-O3")  # both compilers take them, and so does NVRTC the first
_NVCC_FLAGS = (*FLAGS, "-Xptxas=-v", "-Xfatbin=-compress-all")


class BuildError(Exception):
    """There is no nvcc, or it refuses a file, or a kernel spills; the text says which."""


@dataclass(frozen=True)
class Options:
    """How to build."""

    nvcc: str = ""  # empty: as `find_nvcc` finds it
    architectures: tuple[str, ...] = ()  # empty: $EDGEADAPT_CUDA_ARCHITECTURES, or all it knows
    only: tuple[str, ...] | None = None  # files, "conv"; None takes all
    sources: Path = CSRC
    jobs: int = os.cpu_count() or 1
    say: Callable[[str], object] = lambda text: sys.stderr.write(text + "\n")


def build(place: Path, objects: Path, options: Options | None = None) -> Path:
    """Write ``place/_kernels.fatbin`` and its record by way of ``objects``; returns the former.

    Raises:
        BuildError: if there is no nvcc, it refuses a file, or a kernel does not fit into registers.
    """
    options = options or Options()
    nvcc = find_nvcc(options.nvcc)
    version = nvcc_version(nvcc)
    architectures = _architectures(nvcc, options)
    for folder in (place, objects):
        folder.mkdir(parents=True, exist_ok=True)
    with (objects / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever builds in here at the same time waits
        made = _compile_all(nvcc, version, architectures, objects, options)
        check_spills(made)
        record = {"nvcc": version, "architectures": list(architectures)}
        record["ptx"] = _lowest(architectures).replace("sm", "compute")
        return _assemble(place, objects, record, made)


def find_nvcc(given: str = "") -> list[str]:
    """The command that compiles: ``given``, $NVCC, nvcc on PATH, of $CUDA_HOME, of pip's package
    nvidia-cuda-nvcc, or where NVIDIA's installers put it.

    Raises:
        BuildError: if there is none.
    """
    given = given or os.environ.get("NVCC", "")
    if given:
        command = shlex.split(given)
        if shutil.which(command[0]):
            return command
        raise BuildError(f"no CUDA compiler: there is no {command[0]}")
    packages = {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
    places = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places += [cuda for folder in sorted(packages) for cuda in sorted(folder.glob("nvidia/cu*"))]
    found = shutil.which("nvcc") or next(
        (path for place in [*places, Path("/usr/local/cuda")] if (path := _nvcc_in(place))), None
    )
    if found is None:
        raise BuildError(
            "no CUDA compiler: nvcc is not on PATH and $NVCC and $CUDA_HOME name none. "
            "It comes with the CUDA toolkit, or with pip install edgeadapt[cuda-build]"
        )
    return [found]


def _nvcc_in(place: Path) -> str | None:
    return shutil.which(str(place / "bin/nvcc"))


def nvcc_version(nvcc: list[str]) -> str:
    """As "13.0.88"."""
    found = re.search(r"\bV(\d+\.\d+\.\d+)", _run([*nvcc, "--version"]))
    if found is None:
        raise BuildError(f"{shlex.join(nvcc)} does not say its version: is it nvcc?")
    return found[1]


def _architectures(nvcc: list[str], options: Options) -> tuple[str, ...]:
    """Those asked for, less those that the compiler does not know."""
    given = os.environ.get("EDGEADAPT_CUDA_ARCHITECTURES", "")
    wanted = options.architectures or tuple(one for one in given.split(",") if one)
    if wanted == ("none",):
        raise BuildError("$EDGEADAPT_CUDA_ARCHITECTURES asks for none")
    known = _run([*nvcc, "--list-gpu-arch"]).replace("compute", "sm").split()
    missing = [one for one in wanted or ARCHITECTURES if one not in known]
    if missing and (wanted or len(missing) == len(ARCHITECTURES)):
        raise BuildError(f"{shlex.join(nvcc)} does not know {', '.join(missing)}")
    if missing:
        options.say(f"{shlex.join(nvcc)} is too old for {', '.join(missing)}: left out")
    return tuple(one for one in wanted or ARCHITECTURES if one not in missing)


def _lowest(architectures: Sequence[str]) -> str:
    return min(architectures, key=number)


def number(architecture: str) -> int:
    """87 of "sm_87" and "compute_87"."""
    return int(architecture.rpartition("_")[2])


def key_of(source: Path) -> str:
    """Changes with a .cu file, with what it includes, and with how they are compiled."""
    parts = [" ".join(FLAGS).encode()]
    waiting, seen = [source], {source}
    while waiting:
        text = waiting.pop().read_bytes()
        parts.append(text)
        for name in re.findall(rb'^#include "([^"]+)"', text, re.M):
            file = source.parent / name.decode()
            if file not in seen:
                seen.add(file)
                waiting.append(file)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _compile_all(
    nvcc: list[str],
    version: str,
    architectures: Sequence[str],
    objects: Path,
    options: Options,
) -> dict[str, Any]:
    """Compile every file; returns what is recorded of each, by its stem."""
    sources = sorted(options.sources.glob("*.cu"))
    if options.only is not None:
        sources = [source for source in sources if source.stem in options.only]
    codes = []
    for one in architectures:
        virtual = one.replace("sm", "compute")
        also = f",{virtual}" if one == _lowest(architectures) else ""
        codes += ["-gencode", f"arch={virtual},code=[{one}{also}]"]
    command = [*nvcc, *_NVCC_FLAGS, *codes, "-fatbin"]

    def compiled(source: Path) -> dict[str, Any]:
        made = objects / f"{source.stem}.fatbin"
        key = key_of(source)
        mark = hashlib.sha256(f"{key} {version} {shlex.join(command)}".encode()).hexdigest()
        record = made.with_suffix(".json")
        if made.is_file() and record.is_file():
            kept = json.loads(record.read_text())
            if kept["mark"] == mark:
                return {"key": key, "kernels": kept["kernels"]}
        options.say(f"compiling {source.name}")
        record.unlink(missing_ok=True)
        said = _run([*command, str(source), "-o", str(made)])
        kernels = parse_resources(said)
        record.write_text(json.dumps({"mark": mark, "kernels": kernels}))
        return {"key": key, "kernels": kernels}

    with ThreadPoolExecutor(max(options.jobs, 1)) as pool:
        made = dict(zip([s.stem for s in sources], pool.map(compiled, sources), strict=True))
    names = [name for record in made.values() for name in record["kernels"]]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BuildError(f"more than one file has a kernel {', '.join(twice)}")
    return made


def parse_resources(said: str) -> dict[str, dict[str, dict[str, int]]]:
    """What ptxas says of each kernel, by its name and by architecture: registers of a thread,
    shared_bytes of a block, and of a thread's memory stack_bytes (arrays that registers cannot
    hold) and spill_bytes (registers that were too few), with the functions it calls."""
    result: dict[str, dict[str, dict[str, int]]] = {}
    record: dict[str, int] = {}
    for line in said.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)' for '(sm_\w+)'", line):
            record = {"registers": 0, "shared_bytes": 0, "stack_bytes": 0, "spill_bytes": 0}
            result.setdefault(entry[1], {})[entry[2]] = record
        elif memory := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            record["stack_bytes"] += int(memory[1])
            record["spill_bytes"] += int(memory[2]) + int(memory[3])
        elif used := re.search(r"Used (\d+) registers", line):
            record["registers"] = int(used[1])
            shared = re.search(r"(\d+) bytes smem", line)
            record["shared_bytes"] = int(shared[1]) if shared else 0
    return result


def check_spills(made: dict[str, Any]) -> None:
    """Refuse kernels that keep registers in memory.

    Raises:
        BuildError: with their names, if there are any.
    """
    spills = [
        f"{stem}.cu: {name} spills {taken['spill_bytes']} bytes on {architecture} "
        f"({taken['registers']} registers)"
        for stem, record in made.items()
        for name, all_taken in record["kernels"].items()
        for architecture, taken in all_taken.items()
        if taken["spill_bytes"]
    ]
    if spills:
        raise BuildError("\n".join(spills))


def _assemble(place: Path, objects: Path, record: dict[str, Any], made: dict[str, Any]) -> Path:
    """Put the fatbins in a row; readers see the old files or the new ones."""
    fatbin = place / FATBIN
    modules, offset = {}, 0
    fresh = [path.with_name(f"{path.name}.{os.getpid()}") for path in (fatbin, place / RECORD)]
    with fresh[0].open("wb") as file:
        for stem, parts in made.items():
            part = (objects / f"{stem}.fatbin").read_bytes()
            part += bytes(-len(part) % 16)  # each begins aligned, as its header wants to be
            file.write(part)
            modules[stem] = {"offset": offset, "bytes": len(part), **parts}
            offset += len(part)
    fresh[1].write_text(json.dumps({**record, "modules": modules}, indent=1) + "\n")
    fresh[0].replace(fatbin)
    fresh[1].replace(place / RECORD)
    return fatbin


def compile_cubin(nvcc: list[str], source: Path, architecture: str) -> bytes:
    """One file for one architecture, whatever it spills.

    Raises:
        BuildError: if the compiler refuses it.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.cubin"
        _run([*nvcc, *FLAGS, f"-arch={architecture}", "-cubin", str(source), "-o", str(made)])
        return made.read_bytes()


def _run(command: list[str]) -> str:
    """What a command says on either channel."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except OSError as error:
        raise BuildError(f"no CUDA compiler: {error}") from None
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{done.stdout.strip()}")
    return done.stdout


def summary(record: dict[str, Any]) -> str:
    """One line for each architecture."""
    kernels = [k for module in record["modules"].values() for k in module["kernels"].values()]
    return "\n".join(
        f"{one}: {len(kernels)} kernels, up to {max(k[one]['registers'] for k in kernels)} "
        f"registers and {max(k[one]['shared_bytes'] for k in kernels)} bytes of shared memory, "
        f"{sum(k[one]['stack_bytes'] > 0 for k in kernels)} with arrays in memory, no spills"
        for one in record["architectures"]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="compile the CUDA kernels")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help=f"where {FATBIN} goes")
    parser.add_argument("--objects", type=Path, help="keep parts here, for the next time")
    parser.add_argument("--only", type=lambda text: tuple(text.split(",")), help="kernel files")
    parser.add_argument("--nvcc", default="")
    parser.add_argument("--architectures", type=lambda text: tuple(text.split(",")), default=())
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    options = Options(given.nvcc, given.architectures, given.only, jobs=given.jobs)
    # In a clone, next to what setuptools leaves there; an installed package keeps nothing.
    root = HERE.parent.parent
    tree = root / "build/cuda" if (root / "pyproject.toml").is_file() else None
    with tempfile.TemporaryDirectory() as scratch:
        try:
            fatbin = build(given.output, given.objects or tree or Path(scratch), options)
        except BuildError as error:
            sys.stderr.write(f"{error}\n")
            return 1
    record = json.loads(fatbin.with_name(RECORD).read_text())
    sys.stderr.write(f"{summary(record)}\n{fatbin}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
