"""Checks of versions: system, driver, CUDA's libraries, and whether they fit together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from edgeadapt.runtime.cuda.pycuda_import import OLDEST_DRIVER
from edgeadapt.runtime.doctor import jetson, probe
from edgeadapt.runtime.doctor.findings import Finding, judged, note, ok, problem
from edgeadapt.runtime.doctor.libraries import Installed, find_libraries, version_text
from edgeadapt.runtime.doctor.machine import Machine
from edgeadapt.runtime.doctor.system import numbers
from edgeadapt.runtime.doctor.target import has_gpu, smi

_CUDA_WHEELS = ("nvidia-cudnn", "nvidia-cublas", "nvidia-cuda-runtime", "nvidia-cuda-nvrtc")


def check_python(machine: Machine) -> Iterator[Finding]:
    """Python and the C library."""
    system = machine.system
    found = f"Python {system.python}, {system.libc or 'a C library that is not glibc'}, "
    found += system.machine
    if numbers(system.python) < (3, 10):
        yield problem("python", found, "use Python 3.10 or newer")
    else:
        yield ok("python", found)


def check_jetpack(machine: Machine) -> Iterator[Finding]:
    """Jetson Linux and JetPack; silent elsewhere."""
    release, debian = machine.release, machine.system.debian
    here = jetson.capability_of(machine.system.text("proc/device-tree/compatible"))
    if not release:
        if here is not None:
            yield note(
                "jetpack",
                "a Jetson, but nothing says which release of Jetson Linux this is",
                "in a container, mount /etc/nv_tegra_release; else install nvidia-l4t-core",
            )
        return
    named = debian.get("nvidia-jetpack", "").partition("-")[0] or jetson.jetpack_of(release)
    found = f"Jetson Linux {version_text(release)}, JetPack {named or 'unknown'}"
    if release < (36,):
        yield problem(
            "jetpack", f"{found}: its Python and CUDA are too old", "flash JetPack 6.1 or newer"
        )
        return
    if here == (11, 0) and release < (38,):
        yield problem("jetpack", f"{found} does not know this GPU", "flash JetPack 7 or newer")
        return
    yield ok("jetpack", found)
    wheels = machine.system.packages(*(f"{name}-cu{n}" for name in _CUDA_WHEELS for n in (12, 13)))
    if release < (38,) and wheels:
        yield problem(
            "jetpack",
            f"JetPack {named} with {', '.join(one.name for one in wheels)} from pip, which is made "
            "for servers (SBSA) and does not run on it",
            f"pip uninstall {' '.join(one.name for one in wheels)}; "
            "apt-get install nvidia-jetpack brings JetPack's own",
        )


def check_driver(machine: Machine) -> Iterator[Finding]:
    """NVIDIA's driver, and the newest CUDA that it knows."""
    system = machine.system
    row, knows = smi(system), probe.driver_cuda(system)
    text = system.text("proc/driver/nvidia/version")
    match = re.search(r"Kernel Module\s+(?:for \w+\s+)?([\d.]+)", text)
    version = match[1] if match else row.driver if row else system.text("sys/module/nvidia/version")
    if not (version or knows or has_gpu(system)):
        cards = [path for path in system.glob("sys/bus/pci/devices/*/vendor")
                 if system.text(path) == "0x10de"]  # fmt: skip
        if cards:
            fix = "install NVIDIA's driver to use it"
            yield note("driver", "an NVIDIA card, but no driver", fix)
        else:
            yield ok("driver", "no NVIDIA GPU and no driver: nothing of CUDA is used here")
        return
    if knows is None:
        reason = probe.asked(system, probe.DRIVER).get("error", "")
        yield judged(
            has_gpu(system),
            "driver",
            f"driver {version or 'of unknown version'}, but libcuda cannot be used ({reason})",
            "start the container with --gpus all, on a Jetson with --runtime nvidia; "
            "outside of one, install the driver again",
        )
        return
    found = f"driver {version or 'of unknown version'}, knows CUDA {version_text(knows)}"
    if knows < OLDEST_DRIVER:
        fix = f"update the driver to one that knows CUDA {version_text(OLDEST_DRIVER)}"
        yield judged(machine.gpu_here, "driver", found, fix)
    else:
        yield ok("driver", found)


def check_cuda(machine: Machine) -> Iterator[Finding]:
    """CUDA runtimes: which, how many, and whether the driver is new enough."""
    system = machine.system
    runtimes = _one_of_each(find_libraries(system, "CUDA runtime"))
    if not runtimes:
        yield ok("cuda", "no CUDA runtime; the CUDA engine needs the driver only")
        return
    texts = [f"{version_text(one.version)} ({one.path.parent})" for one in runtimes]
    yield ok("cuda", f"CUDA runtime {', '.join(texts)}")
    majors = sorted({one.version[0] for one in runtimes if one.version})
    if len(majors) > 1:
        yield note(
            "cuda",
            f"CUDA runtimes of {len(majors)} major versions: {', '.join(map(str, majors))}",
            "keep the one that the driver knows: libraries of the other fail when both are loaded",
        )
    knows = probe.driver_cuda(system)
    newer = [one for one in runtimes if knows and one.version[:1] > knows[:1]]
    if newer and knows:
        found = f"CUDA runtime {version_text(newer[0].version)}, but the driver knows CUDA "
        yield judged(
            machine.gpu_here and len(newer) == len(runtimes),
            "cuda",
            found + f"{version_text(knows)} only",
            f"update the driver, or install libraries for CUDA {knows[0]}",
        )


def _one_of_each(libraries: Sequence[Installed]) -> list[Installed]:
    """One library of each version."""
    return list({one.version: one for one in libraries}.values())


def check_cudnn(machine: Machine) -> Iterator[Finding]:
    """CuDNN's library and its frontend."""
    system = machine.system
    main = [one for one in find_libraries(system, "cuDNN") if one.path.name.startswith("libcudnn.")]
    wheels = system.packages("nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
    debian = [v.partition("-")[0] for k, v in system.debian.items() if re.match(r"libcudnn\d", k)]
    versions = [version_text(one.version) for one in main if not one.in_python]
    named = [*(f"{one.name} {one.version}" for one in wheels), *(debian or versions)]
    if main:
        texts = dict.fromkeys(named or [version_text(main[0].version)])
        yield ok("cudnn", f"cuDNN {', '.join(texts)}")
    else:
        yield ok("cudnn", "no cuDNN: the CUDA engine uses its own kernels for convolutions")
    majors = sorted({one.version[0] for one in main if one.version})
    if len(majors) > 1:
        yield judged(
            machine.gpu_here,
            "cudnn",
            f"cuDNN {' and '.join(map(str, majors))}: its parts are loaded from both",
            f"remove cuDNN {majors[0]}, or take its folder out of LD_LIBRARY_PATH",
        )
    if len(wheels) > 1:
        yield judged(
            machine.gpu_here,
            "cudnn",
            f"{wheels[0].name} and {wheels[1].name} share a folder: one has overwritten the other",
            "pip uninstall both, then install the one for the driver's CUDA",
        )
    yield from _frontend(machine, bool(main))


def _frontend(machine: Machine, has_library: bool) -> Iterator[Finding]:
    frontend = machine.system.package("nvidia-cudnn-frontend")
    if frontend is None:
        if has_library and machine.gpu_here:
            fix = 'pip install "nvidia-cudnn-frontend>=1.22,<1.29"'
            yield note("cudnn", "no cudnn-frontend: cuDNN is not used", fix)
        return
    heavy = sum("cutlass-dsl" in one or "tvm-ffi" in one for one in frontend.requires)
    if frontend.numbers >= (1, 29) or heavy:
        yield note(
            "cudnn",
            f"cudnn-frontend {frontend.version} requires cutlass-dsl and tvm-ffi, which nothing "
            "here uses",
            'pip install "nvidia-cudnn-frontend>=1.22,<1.29"',
        )
    elif not has_library:
        fix = "pip install nvidia-cudnn-cu13; on a Jetson apt-get install nvidia-jetpack"
        yield note("cudnn", f"cudnn-frontend {frontend.version} without cuDNN's library", fix)
    else:
        yield ok("cudnn", f"cudnn-frontend {frontend.version}")


def check_tensorrt(machine: Machine) -> Iterator[Finding]:
    """TensorRT's library and its Python bindings."""
    system = machine.system
    libraries = _one_of_each(find_libraries(system, "TensorRT"))
    names = ("tensorrt", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings")
    bindings = system.packages(*names)
    if bindings and not libraries:
        yield problem(
            "tensorrt",
            f"{bindings[-1].name} {bindings[-1].version} from pip without TensorRT's library",
            f"pip uninstall {bindings[-1].name}, or install the library: on a Jetson "
            "apt-get install tensorrt python3-libnvinfer",
        )
        return
    if not libraries:
        yield ok("tensorrt", "no TensorRT; only --backend tensorrt needs it")
        return
    texts = ", ".join(version_text(one.version) for one in libraries)
    yield ok("tensorrt", f"TensorRT {texts}")
    major = {one.version[0] for one in libraries if one.version}
    if bindings and bindings[-1].numbers[:1] and bindings[-1].numbers[0] not in major:
        yield problem(
            "tensorrt",
            f"{bindings[-1].name} {bindings[-1].version} does not fit TensorRT {texts}",
            f'pip install "{bindings[-1].name}=={max(major, default=10)}.*"',
        )


def check_onnxruntime(machine: Machine) -> Iterator[Finding]:
    """ONNX Runtime, and NumPy with it."""
    system = machine.system
    found = system.packages("onnxruntime", "onnxruntime-gpu")
    numpy = system.package("numpy")
    if not found:
        fix = "pip install onnxruntime"
        yield note("onnxruntime", "no ONNX Runtime: no second engine to fall back on", fix)
        return
    yield ok("onnxruntime", "ONNX Runtime " + ", ".join(f"{p.version} ({p.name})" for p in found))
    if len(found) > 1:
        yield note(
            "onnxruntime",
            "onnxruntime and onnxruntime-gpu share a folder: one has overwritten the other",
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them",
        )
    if numpy and numpy.numbers >= (2,) and min(p.numbers for p in found) < (1, 19):
        yield problem(
            "onnxruntime",
            f"ONNX Runtime {found[0].version} was built for NumPy 1, there is {numpy.version}",
            'pip install --upgrade "onnxruntime>=1.20"',
        )
