"""What a measurement was made on and with."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

_PACKAGES = ("edgeadapt", "numpy", "onnxruntime", "torch")


def describe() -> dict[str, str]:
    """Processor, commit, date in UTC, and versions, as the columns of a table of results."""
    return {
        "cpu": _processor(),
        "commit": _commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


# What nvidia-smi is asked for -> the column; clocks in MHz.
_ASKED = {
    "name": "gpu",
    "driver_version": "driver",
    "clocks.sm": "sm_mhz",
    "clocks.max.sm": "sm_max_mhz",
    "clocks.mem": "memory_mhz",
    "power.limit": "power_limit_w",
}
_CUDA_PACKAGES = ("pycuda", "cuda-bindings", "nvidia-cudnn-frontend")
GPU_COLUMNS = (*_ASKED.values(), *_CUDA_PACKAGES)


def describe_gpu() -> dict[str, str]:
    """The first GPU, its driver and its clocks now, as columns; what is not known is empty."""
    found = dict.fromkeys(_ASKED.values(), "")
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(_ASKED)}"]
    command.append("--format=csv,noheader,nounits")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # Jetsons have none
        done = None
    if done is not None and done.returncode == 0 and done.stdout.strip():
        values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
        found |= dict(zip(_ASKED.values(), values, strict=False))
    return found | {name: _version(name) for name in _CUDA_PACKAGES}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """$EDGEADAPT_COMMIT, where a copy has no history; else that of the checkout that the package
    lies in, with "-dirty" if it was changed; else ""."""
    given = os.environ.get("EDGEADAPT_COMMIT", "")
    if given:
        return given
    place = str(files("edgeadapt"))
    try:
        done = subprocess.run(
            ["git", "-C", place, "describe", "--always", "--dirty", "--exclude", "*"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
