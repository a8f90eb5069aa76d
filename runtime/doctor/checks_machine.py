"""Checks of memory, power, clocks and temperature; all are read from files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edgeadapt.runtime.doctor import jetson
from edgeadapt.runtime.doctor.findings import Finding, note, ok
from edgeadapt.runtime.doctor.machine import Machine
from edgeadapt.runtime.doctor.system import Command, System
from edgeadapt.runtime.doctor.target import smi

GIB = 2**30
LITTLE_BYTES = 2 * GIB  # a step at 1280x720 takes about 0.6 GiB of them, Python and images more
HOT_CELSIUS = 85.0  # where a sensor says no limit of its own
_LIMITS = ("passive", "hot", "critical")  # kinds of trip points that slow the machine or stop it
TEGRASTATS: Command = ("tegrastats", "--interval", "100")


def check_memory(machine: Machine) -> Iterator[Finding]:
    """Free memory of the CPU and the GPU, and swap."""
    rows = re.findall(r"^(\w+): +(\d+) kB", machine.system.text("proc/meminfo"), re.M)
    sizes = {name: int(value) * 1024 for name, value in rows}
    free, total, swap = (sizes.get(k) for k in ("MemAvailable", "MemTotal", "SwapTotal"))
    if free is None or total is None:
        yield note("memory", "/proc/meminfo does not say how much is free")
        return
    limit = _container_limit(machine.system)
    if limit is not None and limit < total:
        total, free = limit, min(free, limit)
    found = f"{_gib(free)} of {_gib(total)} free, {_gib(swap) if swap else 'no'} swap"
    if free < LITTLE_BYTES:
        fix = "stop the desktop (systemctl isolate multi-user.target) and other programs"
        if not swap:
            fix += ", make a swap file (fallocate, mkswap, swapon)"
        yield note("memory", found, f"{fix}, or give --memory-budget")
    else:
        yield ok("memory", found)
    row = smi(machine.system)
    if row and row.free_bytes is not None and row.total_bytes is not None:
        text = f"{_gib(row.free_bytes)} of {_gib(row.total_bytes)} of the GPU free"
        if row.free_bytes < GIB:
            yield note("memory", text, "nvidia-smi shows which programs have the rest")
        else:
            yield ok("memory", text)


def _container_limit(system: System) -> int | None:
    return system.number("sys/fs/cgroup/memory.max")


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def check_power(machine: Machine) -> Iterator[Finding]:
    """A Jetson's power mode, and what its rails draw."""
    system = machine.system
    modes, default = jetson.parse_power_modes(system.text("etc/nvpmodel.conf"))
    status = jetson.parse_power_status(system.text("var/lib/nvpmodel/status"))
    number = default if status is None else status
    current = None if number is None else modes.get(number)
    if current is not None:
        best = max(modes.values(), key=lambda mode: (_gpu_hz(mode), mode.number == 0))
        found = f"power mode {current.number} ({current.name})"
        if _gpu_hz(current) < _gpu_hz(best):
            share = f"its GPU has {_gpu_hz(current) / _gpu_hz(best):.0%} of" if best.gpu_hz else (
                "its GPU has less than"
            )  # fmt: skip
            text = f"{found}: {share} the clock of mode {best.number} ({best.name})"
            yield note("power", text, f"sudo nvpmodel -m {best.number}")
        else:
            yield ok("power", found)
    rails = read_rails(system)
    if rails:
        text = ", ".join(f"{name} {watts:.1f} W" for name, watts in rails.items())
        yield ok("power", f"sensors: {text}")
    elif machine.release:
        yield note("power", "no power sensors in /sys: energy cannot be measured")


def _gpu_hz(mode: jetson.PowerMode) -> float:
    return mode.gpu_hz or float("inf")


def read_rails(system: System) -> dict[str, float]:
    """Watts that each rail draws, by its name, as the INA3221 measure them."""
    found: dict[str, float] = {}
    for chip in system.glob("sys/class/hwmon/hwmon*"):
        if system.text(chip / "name") != "ina3221":
            continue
        for channel in (1, 2, 3):
            name = system.text(chip / f"in{channel}_label")
            volts = system.number(chip / f"in{channel}_input")  # in thousandths, as all here
            amperes = system.number(chip / f"curr{channel}_input")
            if name and name != "NC" and volts is not None and amperes is not None:
                found[name] = volts * amperes / 1e6
    for chip in system.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*"):  # JetPack 4
        for channel in (0, 1, 2):
            watts = system.number(chip / f"in_power{channel}_input")
            if watts is not None:
                name = system.text(chip / f"rail_name_{channel}") or f"{chip.name} {channel}"
                found[name] = watts / 1e3
    return found


def check_clocks(machine: Machine) -> Iterator[Finding]:
    """Clocks of a Jetson's GPU, and what governs the CPU's."""
    system = machine.system
    for folder in _gpu_clocks(system):
        now, low, high = (system.number(folder / f"{name}_freq") for name in ("cur", "min", "max"))
        if now is None or low is None or high is None:
            continue
        steps = [int(text) for text in system.text(folder / "available_frequencies").split()
                 if text.isdecimal()]  # fmt: skip
        found = f"GPU at {now / 1e6:.0f} MHz of {high / 1e6:.0f}"
        if steps and max(steps) > high:
            found += f", where {max(steps) / 1e6:.0f} exist"
        if low < high:
            fix = "for steady times: sudo jetson_clocks"
            yield note("clocks", f"{found}, not locked (from {low / 1e6:.0f})", fix)
        else:
            yield ok("clocks", f"{found}, locked")
    governors = {
        (system.text(path), system.text(path.with_name("scaling_driver")))
        for path in system.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    }
    # Drivers that choose the clock themselves call every choice below the top "powersave".
    slow = [name for name, driver in governors if name == "powersave" and "pstate" not in driver]
    if slow:
        fix = "sudo cpupower frequency-set -g schedutil; on a Jetson sudo jetson_clocks"
        yield note("clocks", "the CPU's governor is powersave: it stays at its lowest clock", fix)
    elif governors:
        yield ok("clocks", f"the CPU's governor is {', '.join(sorted(n for n, _ in governors))}")


def _gpu_clocks(system: System) -> list[Path]:
    names = re.compile(r".*\.(gpu|ga10b|gv11b|gp10b|gb10b)|gpu-gpc-\d+")
    return [path for path in system.glob("sys/class/devfreq/*") if names.fullmatch(path.name)]


def check_temperature(machine: Machine) -> Iterator[Finding]:
    """Sensors that have reached the temperature at which the machine slows down."""
    system, hottest = machine.system, (-274.0, "")
    for zone in system.glob("sys/class/thermal/thermal_zone*"):
        millis = system.number(zone / "temp")
        if millis is None:  # switched off
            continue
        celsius, name = millis / 1e3, system.text(zone / "type") or zone.name
        hottest = max(hottest, (celsius, name))
        limit = _limit(system, zone)
        if celsius >= limit:
            text = f"{name} has {celsius:.0f} C and slows down from {limit:.0f} C on"
            yield note("temperature", text, "cool it: the fan (nvfancontrol), the heat sink, air")
    if hottest[1]:
        yield ok("temperature", f"at most {hottest[0]:.0f} C ({hottest[1]})")
    for path in system.glob("sys/class/hwmon/hwmon*/oc*_event_cnt"):
        if system.number(path):
            text = f"{system.number(path)} times since the start too much current: clocks were cut"
            yield note("temperature", text, "a stronger power supply, or a lower power mode")
            return


def _limit(system: System, zone: Path) -> float:
    """Degrees Celsius of a zone's lowest trip point that matters."""
    found: list[float] = []
    for path in system.glob(f"{zone.relative_to(system.root)}/trip_point_*_type"):
        millis = system.number(path.with_name(path.name.replace("_type", "_temp")))
        if system.text(path) in _LIMITS and millis is not None and millis > 0:
            found.append(millis / 1e3)
    return min(found, default=HOT_CELSIUS)


def check_load(machine: Machine) -> Iterator[Finding]:
    """What tegrastats says, on a Jetson that has it."""
    if not (machine.release and machine.system.which("tegrastats")):
        return
    lines = machine.system.said(TEGRASTATS).splitlines()
    said = jetson.parse_tegrastats(lines[0] if lines else "")
    if said.gpu_load is None:
        return
    if said.gpu_load > 20:
        text = f"the GPU is in use ({said.gpu_load}%)"
        yield note("load", text, "stop other programs before anything is measured")
    else:
        yield ok("load", f"the GPU is idle ({said.gpu_load}%)")
