"""Checks of what is installed and still cannot be reached: libraries, bindings, device files."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgeadapt.runtime.doctor.findings import Finding, judged, note, ok, problem
from edgeadapt.runtime.doctor.libraries import find_libraries, loader_folders, version_text
from edgeadapt.runtime.doctor.machine import Machine
from edgeadapt.runtime.doctor.needs import needed
from edgeadapt.runtime.doctor.system import System, numbers

# Of CUDA and TensorRT; libcuda is the driver's, which has a check of its own.
_OF_NVIDIA = re.compile(r"lib(?:cublas|cudart|cudnn|cufft|curand|nvinfer|nvonnxparser|nvrtc)")
_SYSTEM_PACKAGES = "usr/lib/python3*/dist-packages"


def check_providers(machine: Machine) -> Iterator[Finding]:
    """What ONNX Runtime's providers for GPUs need: without it they are left out, silently."""
    system = machine.system
    for name in ("cuda", "tensorrt"):
        file = f"onnxruntime/capi/libonnxruntime_providers_{name}.so"
        path = next((site / file for site in system.site if (site / file).is_file()), None)
        if path is None:
            continue
        try:
            wanted = [one for one in needed(path) if _OF_NVIDIA.match(one)]
        except OSError:
            continue  # an unreadable file is what the check of its code speaks of
        missing = [one for one in wanted if not _is_there(system, one)]
        if missing:
            yield judged(
                machine.gpu_here and name == "cuda",
                "onnxruntime",
                f"its {name} provider needs {', '.join(missing)}: not found, so it would "
                "compute on the CPU without a word",
                "pip install onnxruntime for the CPU; or install these libraries in these "
                "versions and name their folder in LD_LIBRARY_PATH",
            )


def _is_there(system: System, name: str) -> bool:
    if any((folder / name).exists() for folder in loader_folders(system)):
        return True
    patterns = (f"nvidia/*/lib/{name}", f"tensorrt_libs/{name}")
    return any(next(site.glob(p), None) for site in system.site for p in patterns)


def check_bindings(machine: Machine) -> Iterator[Finding]:
    """JetPack's Python bindings of TensorRT, which an environment may not see."""
    system = machine.system
    libraries = find_libraries(system, "TensorRT")
    if not libraries or system.packages(
        "tensorrt", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings"
    ):
        return
    elsewhere = system.glob(f"{_SYSTEM_PACKAGES}/tensorrt/__init__.py")
    if any((site / "tensorrt/__init__.py").is_file() for site in system.site):
        return
    version = version_text(libraries[0].version)
    if not elsewhere:
        fix = "apt-get install python3-libnvinfer, which is for the system's Python"
        text = f"TensorRT {version} has no Python bindings here: --backend tensorrt cannot use it"
        yield note("tensorrt", text, fix)
        return
    yield note(
        "tensorrt",
        f"TensorRT {version} has Python bindings in {elsewhere[0].parent.parent}, which this "
        f"Python {system.python} does not look into",
        "make the environment with the system's Python: python3 -m venv --system-site-packages",
    )


def check_rtx(machine: Machine) -> Iterator[Finding]:
    """TensorRT-RTX, which builds engines without a GPU and runs them on GeForce and RTX."""
    found = machine.system.packages("tensorrt-rtx")
    if not found:
        return
    text = f"TensorRT-RTX {found[0].version}"
    pattern = "tensorrt_rtx_libs/libtensorrt_rtx.so.*"
    if not any(next(site.glob(pattern), None) for site in machine.system.site):
        yield note("tensorrt", f"{text} without its library", "pip install --force-reinstall "
                   "tensorrt-rtx")  # fmt: skip
    elif machine.target is not None and machine.target.tegra:
        fix = "build engines on the Jetson, with the TensorRT of its JetPack"
        yield note("tensorrt", f"{text} has nothing for {machine.target.name}", fix)
    else:
        yield ok("tensorrt", text)


def check_device_files(machine: Machine) -> Iterator[Finding]:
    """The files through which a driver is spoken to: whether this user may open them."""
    system = machine.system
    files = system.glob(*_DEVICE_FILES)
    closed = [path for path in files if not system.may_open(path)]
    if closed:
        names = ", ".join(f"/{path.relative_to(system.root)}" for path in closed[:3])
        yield problem(
            "driver",
            f"this user may not open {names}: CUDA says there is no device",
            "sudo usermod -aG video,render $USER, then log in again; in a container give its user "
            "these groups",
        )


# Those that CUDA opens first, on Jetsons and elsewhere.
_DEVICE_FILES = ("dev/nvidia[0-9]*", "dev/nvidiactl", "dev/nvidia-uvm", "dev/nvmap",
                 "dev/nvhost-gpu", "dev/nvhost-ctrl-gpu", "dev/nvgpu/*/ctrl")  # fmt: skip


def check_releases(machine: Machine) -> Iterator[Finding]:
    """Packages of Jetson Linux of more than one release: half an upgrade."""
    if not machine.release:
        return
    releases: dict[tuple[int, ...], list[str]] = {}
    for name, version in machine.system.debian.items():
        if name.startswith("nvidia-l4t-"):
            releases.setdefault(numbers(version)[:3], []).append(name)
    if len(releases) > 1:
        few = min(releases.values(), key=len)
        yield note(
            "jetpack",
            f"packages of Jetson Linux {' and '.join(map(version_text, sorted(releases)))} "
            f"together ({', '.join(sorted(few)[:3])} alone): half an upgrade",
            "sudo apt-get update && sudo apt-get full-upgrade, then restart",
        )
