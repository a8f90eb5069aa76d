"""Energy from the sensors of the machine, sampled while something runs."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Protocol

from edgeadapt.runtime.doctor.checks_machine import read_rails
from edgeadapt.runtime.doctor.system import System

INTERVAL = 0.05  # seconds between two readings; INA3221 average over about as long
# Rails through which all others are fed, by their names on NVIDIA's boards. Where there is none,
# all are added up, and one of them may be fed through another.
_SUPPLIES_ALL = ("VDD_IN", "POM_5V_IN", "VIN")


@dataclass(frozen=True)
class Energy:
    """What a measurement took."""

    sensor: str
    joules: float
    watts: float
    joules_per_image: float
    readings: int


class Sensor(Protocol):
    """Something that says how much is used."""

    @property
    def name(self) -> str:
        """For people, with what it measures."""

    def read(self) -> float | None:
        """Joules since some moment, or watts now; None if it does not answer."""

    def joules(self, readings: Sequence[tuple[float, float]]) -> float:
        """Energy between the first and the last of several (seconds, what `read` gave)."""


class Rails:
    """The INA3221 of a Jetson: watts, of the whole board where a rail supplies it."""

    def __init__(self, system: System, rails: Mapping[str, float]) -> None:
        self._system = system
        whole = [name for name in _SUPPLIES_ALL if name in rails]
        self._rails = tuple(whole[:1] or sorted(rails))
        self.name = f"INA3221, {' + '.join(self._rails)}"

    def read(self) -> float | None:
        """Watts now."""
        found = read_rails(self._system)
        if any(rail not in found for rail in self._rails):
            return None
        return sum(found[rail] for rail in self._rails)

    def joules(self, readings: Sequence[tuple[float, float]]) -> float:
        """The area below the readings."""
        pairs = pairwise(readings)
        return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairs)


class Rapl:
    """The energy counters of x86 processors: of each package, without the memory's."""

    name = "RAPL, processor packages"

    def __init__(self, system: System, zones: Sequence[Path]) -> None:
        self._system, self._zones = system, tuple(zones)
        self._ranges = [system.number(zone / "max_energy_range_uj") or 0 for zone in zones]
        self._last: list[int | None] = [None] * len(self._zones)
        self._turns = [0] * len(self._zones)  # how often a counter began anew, in its own unit

    def read(self) -> float | None:
        """Joules since the first reading's zero; a counter that began anew is followed."""
        total = 0
        for index, zone in enumerate(self._zones):
            now = self._system.number(zone / "energy_uj")
            if now is None:
                return None
            last = self._last[index]
            if last is not None and now < last:
                self._turns[index] += self._ranges[index]
            self._last[index] = now
            total += self._turns[index] + now
        return total / 1e6

    def joules(self, readings: Sequence[tuple[float, float]]) -> float:
        """The counter's difference."""
        return readings[-1][1] - readings[0][1]


def find_sensor(system: System) -> Sensor | None:
    """The sensor of this machine that can be read, a board's before a processor's."""
    rails = read_rails(system)
    if rails:
        return Rails(system, rails)
    zones = [
        zone
        for zone in system.glob("sys/class/powercap/intel-rapl:*", "sys/class/powercap/amd-rapl:*")
        if system.text(zone / "name").startswith("package")
        and system.number(zone / "energy_uj") is not None
    ]
    return Rapl(system, zones) if zones else None


class Sampler:
    """Reads a sensor in a thread of its own as long as a block runs."""

    def __init__(self, sensor: Sensor, interval: float = INTERVAL) -> None:
        self._sensor, self._interval = sensor, interval
        self._readings: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="energy", daemon=True)

    def __enter__(self) -> Sampler:
        self._read()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self._read()

    def energy(self, images: int) -> Energy | None:
        """Of the block; None if the sensor gave fewer than two readings."""
        if len(self._readings) < 2:
            return None
        joules = self._sensor.joules(self._readings)
        seconds = self._readings[-1][0] - self._readings[0][0]
        count = len(self._readings)
        return Energy(self._sensor.name, joules, joules / seconds, joules / images, count)

    def _sample(self) -> None:
        while not self._done.wait(self._interval):
            self._read()

    def _read(self) -> None:
        found = self._sensor.read()
        if found is not None:
            self._readings.append((perf_counter(), found))
