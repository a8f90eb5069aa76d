"""The GPU that everything is compared with: the one in the machine, or one that was named."""

from __future__ import annotations

from dataclasses import dataclass

from edgeadapt.runtime.cuda.devices import find_device
from edgeadapt.runtime.doctor import jetson
from edgeadapt.runtime.doctor.system import Command, System

# What the drivers of GPUs, of Jetsons and of Windows' Linux put into /dev.
_GPU_FILES = ("dev/nvidia[0-9]*", "dev/nvhost-gpu", "dev/nvgpu", "dev/dxg")
NVIDIA_SMI: Command = (
    "nvidia-smi",
    "--query-gpu=name,compute_cap,driver_version,memory.free,memory.total",
    "--format=csv,noheader,nounits",
)


@dataclass(frozen=True)
class Target:
    """A GPU."""

    name: str
    capability: tuple[int, int] | None  # None: it does not say
    present: bool  # in this machine, not only named
    tegra: bool

    @property
    def architecture(self) -> str:
        """As "sm_87"; "" if it is not known."""
        return "" if self.capability is None else "sm_{}{}".format(*self.capability)


@dataclass(frozen=True)
class SmiRow:
    """The first GPU in what nvidia-smi says."""

    name: str
    capability: tuple[int, int] | None
    driver: str
    free_bytes: int | None
    total_bytes: int | None


def has_gpu(system: System) -> bool:
    """Whether a driver has made a GPU's file."""
    return bool(system.glob(*_GPU_FILES))


def smi(system: System) -> SmiRow | None:
    """None if nvidia-smi is not there or finds no GPU."""
    rows = [[part.strip() for part in row.split(",")] for row in
            system.said(NVIDIA_SMI).splitlines()]  # fmt: skip
    rows = [row for row in rows if len(row) == 5 and row[0]]
    if not rows:
        return None
    name, capability, driver, free, total = rows[0]
    major, _, minor = capability.partition(".")
    known = major.isdecimal() and minor.isdecimal()
    return SmiRow(
        name,
        (int(major), int(minor)) if known else None,
        driver,
        *(int(text) * 2**20 if text.isdecimal() else None for text in (free, total)),
    )


def find_target(system: System, named: str = "") -> Target | None:
    """The device called ``named``, else the GPU of this machine, if it has one.

    Raises:
        ConfigError: if no device is called so.
    """
    here = _here(system)
    if not named:
        return here
    figures = find_device(named)
    capability = figures.compute_capability
    tegra = capability in jetson.CAPABILITIES.values()
    same = here is not None and here.capability == capability
    return Target(figures.name, capability, same, tegra)


def _here(system: System) -> Target | None:
    capability = jetson.capability_of(system.text("proc/device-tree/compatible"))
    if capability is not None:
        name = system.text("proc/device-tree/model") or "Jetson"
        return Target(name, capability, present=True, tegra=True)
    if not has_gpu(system):
        return None
    row = smi(system)
    if row is None:
        return Target("NVIDIA GPU", None, present=True, tegra=False)
    return Target(row.name, row.capability, present=True, tegra=False)
