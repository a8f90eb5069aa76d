"""What NVIDIA's Jetsons say of themselves, as text: release, power modes, tegrastats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# The GPU of a Tegra processor, by the word in its device tree.
CAPABILITIES = {
    "tegra210": (5, 3),
    "tegra186": (6, 2),
    "tegra194": (7, 2),
    "tegra234": (8, 7),
    "tegra264": (11, 0),
}
# Since which Jetson Linux (L4T) a JetPack is what it is.
_JETPACKS = {
    (35, 1): "5",
    (36, 2): "6.0",
    (36, 4): "6.1",
    (36, 4, 3): "6.2",
    (36, 4, 4): "6.2.1",
    (36, 5): "6.2.2",
    (38, 2): "7.0",
    (38, 4): "7.1",
    (39, 2): "7.2",
}


def capability_of(compatible: str) -> tuple[int, int] | None:
    """Of a device tree's word for the processor; None if it is no Tegra that is known."""
    for word in re.findall(r"nvidia,(tegra\d\d[\dx])", compatible):
        if word in CAPABILITIES:
            return CAPABILITIES[word]
        if word.startswith("tegra26"):  # Thor's
            return CAPABILITIES["tegra264"]
    return None


def parse_release(text: str) -> tuple[int, ...]:
    """(36, 4, 3) of the first line of nv_tegra_release; () if that is not one."""
    found = re.search(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in found.groups() if part) if found else ()


def jetpack_of(release: tuple[int, ...]) -> str:
    """The JetPack that a Jetson Linux belongs to; "" if it is older than all that are known."""
    known = [name for since, name in sorted(_JETPACKS.items()) if since <= release]
    return known[-1] if known else ""


@dataclass(frozen=True)
class PowerMode:
    """One of nvpmodel's modes, and the most that it allows the GPU."""

    number: int
    name: str
    gpu_hz: int | None = None  # None: no limit, or none that is given


def parse_power_modes(text: str) -> tuple[Mapping[int, PowerMode], int | None]:
    """The modes of an nvpmodel.conf, and the number of the one that it starts with."""
    modes: dict[int, PowerMode] = {}
    default = current = None
    for line in (line.strip() for line in text.splitlines()):
        if head := re.match(r"<\s*(\w+)\s*(.*?)>", line):
            given = dict(re.findall(r"(\w+)=(\S+)", head[2]))
            current = None
            if head[1] == "POWER_MODEL" and given.get("ID", "").isdecimal():
                current = int(given["ID"])
                modes[current] = PowerMode(current, given.get("NAME", ""))
            elif head[1] == "PM_CONFIG" and given.get("DEFAULT", "").isdecimal():
                default = int(given["DEFAULT"])
        elif current is not None and (limit := re.match(r"GPU\w*\s+MAX_FREQ\s+(\d+)\b", line)):
            modes[current] = PowerMode(current, modes[current].name, int(limit[1]))
    return modes, default


def parse_power_status(text: str) -> int | None:
    """The number of the mode in use, of /var/lib/nvpmodel/status."""
    found = re.search(r"pmode:0*(\d+)", text)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Tegrastats:
    """One line of tegrastats; None or empty is what it does not say."""

    ram_bytes: int | None = None  # in use
    ram_total_bytes: int | None = None
    swap_bytes: int | None = None
    swap_total_bytes: int | None = None
    gpu_load: int | None = None  # in percent
    gpu_hz: int | None = None
    cpu_loads: tuple[int | None, ...] = ()  # in percent; None: switched off
    temperatures: Mapping[str, float] | None = None  # in degrees Celsius, by sensor
    watts: Mapping[str, float] | None = None  # now, by rail


def parse_tegrastats(line: str) -> Tegrastats:
    """Read a line of tegrastats, of any release; what is not there stays empty."""
    mebi = 2**20

    def pair(name: str) -> tuple[int | None, int | None]:
        found = re.search(rf"\b{name} (\d+)/(\d+)MB", line)
        return (int(found[1]) * mebi, int(found[2]) * mebi) if found else (None, None)

    gpu = re.search(r"\bGR3D_FREQ (\d+)%(?:@\[?(\d+))?", line)
    cores = re.search(r"\bCPU \[([^\]]*)\]", line)
    loads = [re.match(r"(\d+)%", core) for core in cores[1].split(",")] if cores else []
    rails = re.findall(r"\b([A-Z][A-Z0-9_]+) (\d+)mW/\d+mW", line)
    ram, swap = pair("RAM"), pair("SWAP")
    return Tegrastats(
        *ram,
        *swap,
        gpu_load=int(gpu[1]) if gpu else None,
        gpu_hz=int(gpu[2]) * 10**6 if gpu and gpu[2] else None,
        cpu_loads=tuple(int(load[1]) if load else None for load in loads),
        temperatures={
            name: float(value) for name, value in re.findall(r"\b(\w+)@(-?\d+(?:\.\d+)?)C", line)
        },
        watts={name: int(value) / 1000 for name, value in rails},
    )
