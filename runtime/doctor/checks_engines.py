"""Checks of this package's engines: what each lacks, and which one a bundle would get."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.errors import BackendError, EdgeadaptError
from edgeadapt.kernels.library import Library
from edgeadapt.runtime.backends import AUTOMATIC
from edgeadapt.runtime.doctor import probe
from edgeadapt.runtime.doctor.findings import Finding, judged, note, ok, problem
from edgeadapt.runtime.doctor.machine import Machine
from edgeadapt.runtime.doctor.target import has_gpu
from edgeadapt.runtime.plan.compile import check_rules


def check_cuda_engine(machine: Machine) -> Iterator[Finding]:
    """PyCUDA and cuda-bindings."""
    packages = machine.system.packages("pycuda", "cuda-bindings")
    versions = ", ".join(f"{one.name} {one.version}" for one in packages)
    reason, fix = _cuda_reason(machine)
    if not reason:
        yield ok("cuda engine", f"ready: {versions}")
    elif has_gpu(machine.system):
        yield problem("cuda engine", reason, fix)
    else:
        text = f"not used without a GPU ({reason.rstrip('.')})"
        yield note("cuda engine", text, fix) if machine.target else ok("cuda engine", text)


def _cuda_reason(machine: Machine) -> tuple[str, str]:
    """Why the CUDA engine cannot start, in the words it would use, and what to do; or nothing."""
    found = probe.asked(machine.system, probe.LIBRARIES)
    if "error" not in found:
        return "", ""
    if "hint" not in found and machine.system.package("pycuda") is None:
        # A busy machine may not answer in time; what is not there needs no answer.
        found = {"error": "PyCUDA is not installed", "hint": "pip install pycuda"}
    fix = str(found.get("hint") or "run edgeadapt with --backend cuda to see what it says")
    nvcc = machine.system.which("nvcc")
    if "PyCUDA is not installed" in str(found["error"]) and nvcc is None:
        fix = f"put the folder of nvcc on PATH, which is not there, then {fix}"
    return str(found["error"]), fix


def check_native_engine(machine: Machine) -> Iterator[Finding]:
    """The compiled kernels for CPUs."""
    library, reason = _library(machine)
    if library is not None:
        yield ok("native engine", f"compiled; would use the level {library.levels[-1]}")
        return
    fix = "python -m edgeadapt.kernels.build"
    if not any(map(machine.system.which, ("g++", "c++", "clang++"))):
        fix = f"install a C++ compiler (on Debian: apt-get install g++), then {fix}"
    yield note("native engine", reason, fix)


def _library(machine: Machine) -> tuple[Library | None, str]:
    given = machine.system.environ.get("EDGEADAPT_LIBRARY", "")
    path = Path(given) if given else machine.system.kernels / "_native.so"
    if not path.is_file():
        return None, f"was not built: there is no {path.name}"
    try:
        library = Library(path)
    except BackendError as error:
        return None, error.message
    if not library.levels:
        return None, f"{path.name} holds nothing that this CPU can run"
    return library, ""


def check_choice(machine: Machine) -> Iterator[Finding]:
    """The bundle, and the backend that `auto` takes."""
    bundle: Bundle | None = None
    if machine.bundle:
        try:
            bundle = open_bundle(machine.bundle)
        except EdgeadaptError as error:
            yield problem("bundle", error.message, error.hint or "export the bundle again")
            return
        manifest = bundle.manifest
        count = len(manifest.files)
        found = f"{manifest.model.name}, format {manifest.format_version}, {count} files unchanged"
        yield ok("bundle", found)
    reasons = {name: _reason(machine, name, bundle) for name in AUTOMATIC}
    chosen = next((name for name, reason in reasons.items() if not reason), "")
    machine.would_use = chosen
    if not chosen:
        text = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        fix = "pip install onnxruntime, or build our own: python -m edgeadapt.kernels.build"
        yield problem("backend", f"none can run: {text}", fix)
        return
    before = list(reasons.items())[: list(reasons).index(chosen)]
    skipped = [f"{name}: {reason}" for name, reason in before if name != "cuda" or machine.gpu_here]
    text = f"auto takes {chosen}" + (f", for {'; '.join(skipped)}" if skipped else "")
    # A missing engine has a finding of its own; here it is only what follows from it.
    yield judged(False, "backend", text, "see above") if skipped else ok("backend", text)


def _reason(machine: Machine, name: str, bundle: Bundle | None) -> str:
    """Why a backend cannot run the bundle; "" if it can."""
    if name == "cuda":
        reason = _cuda_reason(machine)[0] if has_gpu(machine.system) else "there is no GPU"
    elif name == "native":
        reason = _library(machine)[1]
    else:
        found = machine.system.packages("onnxruntime", "onnxruntime-gpu")
        return "" if found else "ONNX Runtime is not installed"
    if reason or bundle is None:
        return reason
    try:
        check_rules(bundle)
    except EdgeadaptError as error:
        return error.message
    return ""
