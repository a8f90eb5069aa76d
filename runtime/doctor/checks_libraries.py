"""Checks of the code that libraries hold, against the GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeadapt.kernels.cuda.build import FATBIN, RECORD, key_of
from edgeadapt.runtime.doctor import probe
from edgeadapt.runtime.doctor.coverage import Coverage, coverage, cuda_of
from edgeadapt.runtime.doctor.fatbin import Held
from edgeadapt.runtime.doctor.findings import Finding, judged, note, ok, problem
from edgeadapt.runtime.doctor.libraries import Installed, find_libraries, version_text
from edgeadapt.runtime.doctor.machine import Machine
from edgeadapt.runtime.doctor.system import System
from edgeadapt.runtime.doctor.target import Target

_FIXES = {
    "cuDNN": "use the cuDNN of JetPack (apt-get install nvidia-jetpack; pip uninstall "
    "nvidia-cudnn-cu12 nvidia-cudnn-cu13), elsewhere a release that names the GPU",
    "TensorRT": "install a TensorRT that knows it: on a Jetson that of its JetPack (for Orin on "
    "JetPack 7.2 that is 10.16, not 10.13), and undo what pins another",
    "ONNX Runtime": "pip uninstall onnxruntime-gpu && pip install onnxruntime for the CPU, or "
    "build it with CMAKE_CUDA_ARCHITECTURES={number}",
    "PyTorch": "nothing at run time uses it; for other uses take a build for this GPU",
}
_RELATED = "NVIDIA promises no sm_{family}x but sm_{number} there; up to CUDA 12 nothing else runs"


def check_code(machine: Machine) -> Iterator[Finding]:
    """Each installed library with GPU code against the GPU."""
    groups = {kind: find_libraries(machine.system, kind) for kind in _FIXES}
    read = machine.read_libraries([one for group in groups.values() for one in group])
    for kind in _FIXES:
        files = [(one, held) for one, held in read if one.kind == kind]
        if files:
            yield from _judge(machine, kind, files)


def _judge(machine: Machine, kind: str, files: list[tuple[Installed, Held]]) -> Iterator[Finding]:
    """One finding for a library of several files: that of its worst."""
    all_held = Held()
    for _, held in files:
        all_held.add(held)
    check, target = f"code of {kind}", machine.target
    if not all_held:
        if not all_held.complete:
            yield note(check, f"{files[0][0].path} cannot be read to its end", "install it again")
        return
    text = all_held.text()
    if target is None or target.capability is None:
        yield ok(check, f"{text}; there is no GPU to compare with")
        return
    # Where not all was read, the rest may hold what seems to be missing.
    order: tuple[Coverage, ...] = ("none", "related", "ptx", "sass")
    verdicts = [
        (order.index(coverage(held, target.capability)), f"{one.path.name}: {held.text()}")
        for one, held in files
        if held
    ]
    rank, found = min(verdicts)
    worst = order[rank]
    if worst == "sass":
        yield ok(check, f"{text}: {target.architecture} is there")
    elif not all_held.complete:
        yield note(check, f"{found}; there was no time for the rest", "run doctor again")
    else:
        yield _missing(machine, target, kind, worst, found)


def _missing(machine: Machine, target: Target, kind: str, worst: Coverage, found: str) -> Finding:
    """The finding about a library without machine code for the GPU."""
    check, number = f"code of {kind}", target.architecture.removeprefix("sm_")
    fix = _FIXES[kind].format(number=number)
    needs_sass = kind == "TensorRT"  # refuses a GPU that it has no code for, PTX or not
    if worst == "ptx" and not needs_sass:
        return note(check, f"{found}: PTX only for {target.architecture}; starting is slow", fix)
    missing = f"{found}: nothing for {target.architecture} ({target.name})"
    if worst == "related" and not needs_sass:
        missing += ". " + _RELATED.format(family=number[:-1], number=number)
        old = bool(machine.release) and machine.release < (38,)
        return judged(old, check, missing, fix)
    return judged(kind != "PyTorch", check, missing, fix)


def check_kernels(machine: Machine) -> Iterator[Finding]:
    """The CUDA engine's own kernels: there, current, and for this GPU."""
    folder, target = machine.system.kernels / "cuda", machine.target
    fatbin, wanted = folder / FATBIN, target is not None
    compiler = _compiler(machine.system)
    if not fatbin.is_file():
        yield judged(
            wanted and not compiler,
            "kernels",
            "the CUDA kernels were not compiled"
            + (f"; {compiler} does it at first use" if compiler else ", and there is no nvcc"),
            "make fatbin, or install edgeadapt where nvcc is: pip install 'edgeadapt[cuda-build]'",
        )
        return
    library = Installed("edgeadapt", fatbin, (), in_python=True)
    ((_, held),) = machine.read_libraries([library])
    stale = _stale(folder, machine.system.kernels / "csrc")
    if not held.complete or stale is None:
        yield judged(
            wanted, "kernels", f"{FATBIN} is damaged", "make fatbin, or install edgeadapt again"
        )
    elif stale:
        yield judged(
            wanted and not compiler,
            "kernels",
            f"{FATBIN} is older than {', '.join(stale[:3])}"
            + (f" and {len(stale) - 3} more" if len(stale) > 3 else ""),
            "make fatbin, or install edgeadapt again",
        )
    else:
        yield _own(machine, held, compiler)


def _own(machine: Machine, held: Held, compiler: str) -> Finding:
    target = machine.target
    if target is None or target.capability is None:
        return ok("kernels", f"{held.text()}; there is no GPU to compare with")
    found, knows = coverage(held, target.capability), probe.driver_cuda(machine.system)
    if found == "sass":
        return ok("kernels", f"{held.text()}: {target.architecture} is there")
    compile_it = f"EDGEADAPT_CUDA_ARCHITECTURES={target.architecture} make fatbin"
    if found == "ptx":
        needed = cuda_of(held.language)
        text = f"{held.text()}: PTX only for {target.architecture}"
        if knows and knows < needed:
            text += f", which needs a driver that knows CUDA {version_text(needed)}"
            fix = f"{compile_it}, or update the driver"
            return judged(target.present and not compiler, "kernels", text, fix)
        return note("kernels", text, compile_it)
    text = f"{held.text()}: nothing for {target.architecture} ({target.name})"
    if compiler:
        return note("kernels", f"{text}; {compiler} compiles it at first use", compile_it)
    return problem("kernels", text, compile_it)


def _stale(folder: Path, sources: Path) -> list[str] | None:
    """The files that have changed since; None if the record is damaged or cut off."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        modules = record["modules"]
        end = max(one["offset"] + one["bytes"] for one in modules.values())
        if end > (folder / FATBIN).stat().st_size:
            return None
        changed = [
            f"{name}.cu"
            for name, one in modules.items()
            if not (sources / f"{name}.cu").is_file()
            or key_of(sources / f"{name}.cu") != one["key"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    new = {source.stem for source in sources.glob("*.cu")} - modules.keys()
    return changed + sorted(f"{name}.cu" for name in new)


def _compiler(system: System) -> str:
    """What can compile kernels on this machine: "nvcc", "NVRTC" or ""."""
    if system.which("nvcc") or system.path("usr/local/cuda/bin/nvcc").is_file():
        return "nvcc"
    if any(list(site.glob("nvidia/cu*/bin/nvcc")) for site in system.site):
        return "nvcc"
    nvrtc = system.packages("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
    return "NVRTC" if nvrtc and system.package("cuda-bindings") else ""
