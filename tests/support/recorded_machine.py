"""Machines as small trees of files: what `doctor` reads, without the machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeadapt.kernels.cuda.build import FATBIN, RECORD, key_of
from edgeadapt.kernels.library import library_path
from edgeadapt.runtime.doctor import probe
from edgeadapt.runtime.doctor.checks import examine
from edgeadapt.runtime.doctor.findings import Finding, exit_code
from edgeadapt.runtime.doctor.machine import Machine
from edgeadapt.runtime.doctor.system import Command, System
from edgeadapt.runtime.doctor.target import NVIDIA_SMI, find_target
from support.gpu_code import fatbin, library_for

ARM, X86 = "aarch64", "x86_64"
OWN = ("87", "90", "110", "120", "ptx87")

POWER_MODES = """
< PARAM TYPE=CLOCK NAME=GPU >
FREQ_TABLE /sys/devices/platform/17000000.gpu/devfreq_dev/available_frequencies
MAX_FREQ /sys/devices/platform/17000000.gpu/devfreq_dev/max_freq

< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
GPU MIN_FREQ 0
GPU MAX_FREQ 612000000
EMC MAX_FREQ 2133000000

< POWER_MODEL ID=1 NAME=25W >
GPU MAX_FREQ 918000000

< POWER_MODEL ID=2 NAME=MAXN_SUPER >
GPU MAX_FREQ -1

< PM_CONFIG DEFAULT=1 >
"""


@dataclass
class Recording:
    """A machine in a folder. Functions below make sound ones; a test then breaks something."""

    root: Path
    machine: str
    commands: dict[Command, str] = field(default_factory=dict)
    environ: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/bin:/usr/local/cuda/bin"}
    )

    @property
    def site(self) -> Path:
        return self.root / "site-packages"

    @property
    def kernels(self) -> Path:
        return self.site / "edgeadapt/kernels"

    def file(self, name: str, content: str | bytes = "") -> None:
        """Write a file; a text is stripped of nothing."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def files(self, folder: str, **contents: str) -> None:
        for name, content in contents.items():
            self.file(f"{folder}/{name}", content)

    def remove(self, *names: str) -> None:
        """Files, links or folders."""
        for name in names:
            path = self.root / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def package(
        self, name: str, version: str, requires: Sequence[str] = (), tag: str = "py3-none-any"
    ) -> None:
        """Install a Python package, in place of another version."""
        stem = name.replace("-", "_")
        for old in self.site.glob(f"{stem}-*.dist-info"):
            shutil.rmtree(old)
        folder = f"site-packages/{stem}-{version}.dist-info"
        lines = [f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {one}" for one in requires]
        self.file(f"{folder}/METADATA", "\n".join(["Metadata-Version: 2.1", *lines, ""]))
        self.file(f"{folder}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")

    def debian(self, **packages: str) -> None:
        """Install Debian packages; underscores in names stand for hyphens."""
        path = self.root / "var/lib/dpkg/status"
        old = path.read_text() if path.is_file() else ""
        rows = [
            f"Package: {name.replace('_', '-')}\nStatus: install ok installed\nVersion: {version}\n"
            for name, version in packages.items()
        ]
        self.file("var/lib/dpkg/status", old + "\n" + "\n".join(rows))

    def driver(self, knows: tuple[int, int] | None, error: str = "", hint: str = "") -> None:
        """What the probes say: a driver's CUDA, and why PyCUDA does not work, if so."""
        text = "libcuda.so.1: cannot open shared object file: No such file or directory"
        said: dict[str, Any] = {"cuda": list(knows)} if knows else {"error": text}
        self.commands[probe.DRIVER] = json.dumps(said)
        both = {"error": error, "hint": hint} if error else said
        self.commands[probe.LIBRARIES] = json.dumps(both)

    def own_kernels(self, *names: str) -> None:
        """Compile this package's CUDA kernels, as it were."""
        self.file("site-packages/edgeadapt/kernels/csrc/copy.cu", "// one kernel\n")
        content = fatbin(names)
        key = key_of(self.kernels / "csrc/copy.cu")
        record = {"modules": {"copy": {"offset": 0, "bytes": len(content), "key": key}}}
        self.file(f"site-packages/edgeadapt/kernels/cuda/{FATBIN}", content)
        self.file(f"site-packages/edgeadapt/kernels/cuda/{RECORD}", json.dumps(record))

    def machine_for(self, device: str = "", bundle: str = "") -> Machine:
        system = System(
            root=self.root,
            environ=self.environ,
            site=[self.site],
            run=lambda command: self.commands.get(command, ""),
            machine=self.machine,
            python="3.12.3",
            libc="glibc 2.39",
            kernels=self.kernels,
        )
        return Machine(system, find_target(system, device), bundle)

    def findings(self, device: str = "", bundle: str = "") -> list[Finding]:
        """What doctor says."""
        return examine(self.machine_for(device, bundle))


def bare(root: Path, machine: str = X86) -> Recording:
    """No GPU; the base install."""
    made = Recording(root, machine)
    rows = {"MemTotal": 16384000, "MemAvailable": 12000000, "SwapTotal": 4096}
    made.file("proc/meminfo", "\n".join(f"{name}: {kb} kB" for name, kb in rows.items()))
    made.package("numpy", "2.3.1")
    made.package("onnxruntime", "1.31.1")
    made.file("usr/bin/g++")
    made.kernels.mkdir(parents=True)
    (made.kernels / "_native.so").symlink_to(library_path())
    made.driver(None, "PyCUDA is not installed.", "`pip install pycuda`.")
    return made


def _with_cuda(made: Recording, knows: tuple[int, int], own: str, bindings: str) -> Recording:
    """CUDA's libraries, with code for ``own``, and all that the CUDA engine needs."""
    folder = f"usr/lib/{made.machine}-linux-gnu"
    for name in ("libcudnn", "libcudnn_ops", "libcudnn_engines_precompiled"):
        made.file(f"{folder}/{name}.so.9.20.0", library_for(own, "80"))
        (made.root / folder / f"{name}.so.9").symlink_to(f"{name}.so.9.20.0")
    made.file(f"{folder}/libnvinfer.so.10.16.2", library_for(own, "75"))
    made.file("site-packages/tensorrt/__init__.py")
    cudart = "{}.{}".format(*knows)
    made.file(f"usr/local/cuda/lib64/libcudart.so.{cudart}.48")
    made.file("usr/local/cuda/bin/nvcc")
    made.package("pycuda", "2026.1")
    made.package("cuda-bindings", bindings)
    made.package("nvidia-cudnn-frontend", "1.28.0")
    made.own_kernels(*OWN)
    made.driver(knows)
    return made


def server(root: Path) -> Recording:
    """An H200."""
    made = _with_cuda(bare(root), (13, 0), "90", "13.0.3")
    made.file("dev/nvidia0")
    made.file(
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2025\nGCC version:",
    )
    made.commands[NVIDIA_SMI] = "NVIDIA H200, 9.0, 580.65.06, 140000, 143771\n"
    return made


def _jetson(root: Path, compatible: str, model: str) -> Recording:
    made = bare(root, ARM)
    made.file("dev/nvgpu/igpu0/ctrl")
    made.file("proc/device-tree/compatible", compatible)
    made.file("proc/device-tree/model", f"{model}\0")
    made.file("etc/nvpmodel.conf", POWER_MODES)
    made.file("var/lib/nvpmodel/status", "pmode:0002")
    made.files(
        "sys/class/hwmon/hwmon1", name="ina3221\n", in1_label="VDD_IN\n", in1_input="5040\n",
        curr1_input="1200\n", in2_label="NC", in2_input="0", curr2_input="0",
    )  # fmt: skip
    made.files(
        "sys/class/devfreq/17000000.gpu", cur_freq="1020000000", min_freq="1020000000",
        max_freq="1020000000", available_frequencies="306000000 612000000 1020000000",
    )  # fmt: skip
    made.files(
        "sys/class/thermal/thermal_zone0", type="tj-thermal", temp="51250",
        trip_point_0_type="passive", trip_point_0_temp="99000",
        trip_point_1_type="active", trip_point_1_temp="45000",
    )  # fmt: skip
    made.files("sys/devices/system/cpu/cpu0/cpufreq", scaling_governor="schedutil",
               scaling_driver="tegra194-cpufreq")  # fmt: skip
    made.file("usr/bin/tegrastats")
    return made


def orin(root: Path) -> Recording:
    """An Orin Nano with JetPack 7.2."""
    words = "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0"
    made = _jetson(root, words, "NVIDIA Jetson Orin Nano Developer Kit Super")
    made.file(
        "etc/nv_tegra_release",
        "# R39 (release), REVISION: 2.0, GCID: 45000000, BOARD: generic, EABI: aarch64\n",
    )
    made.debian(nvidia_jetpack="7.2-b100", libcudnn9_cuda_13="9.20.0.46-1")
    return _with_cuda(made, (13, 2), "87", "13.2.0")


def orin6(root: Path) -> Recording:
    """The same with JetPack 6.2."""
    made = orin(root)
    made.remove("var/lib/dpkg/status", "usr/local/cuda/lib64/libcudart.so.13.2.48")
    made.file("etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081\n")
    made.debian(nvidia_jetpack="6.2+b77", libcudnn9_cuda_12="9.3.0.75-1")
    made.file("usr/local/cuda/lib64/libcudart.so.12.6.68")
    made.package("cuda-bindings", "12.9.4")
    made.package("onnxruntime", "1.23.2")
    made.driver((12, 6))
    return made


def thor(root: Path) -> Recording:
    """An AGX Thor with JetPack 7.2, in a container that does not show Jetson Linux's release."""
    made = _jetson(root, "nvidia,p3971-0000\0nvidia,tegra264\0", "NVIDIA Jetson AGX Thor")
    made.debian(nvidia_l4t_core="39.2.0-20260609121314")
    return _with_cuda(made, (13, 2), "110", "13.2.0")


def the(findings: list[Finding], check: str, *words: str, state: str = "problem") -> Finding:
    """The one finding of a check that is in this state; it and its fix say ``words``."""
    found = [one for one in findings if (one.check, one.state) == (check, state)]
    assert len(found) == 1, findings
    text = f"{found[0].found} -> {found[0].fix}"
    assert found[0].fix
    for word in words:
        assert word in text
    assert exit_code(findings) == any(one.state == "problem" for one in findings)
    return found[0]


def others(findings: list[Finding], *checks: str) -> list[str]:
    """What else is wrong: a fault must not drag sound parts along."""
    return [one.check for one in findings if one.state != "ok" and one.check not in checks]
