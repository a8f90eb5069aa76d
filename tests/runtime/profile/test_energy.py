from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.runtime.doctor.system import System
from edgeadapt.runtime.profile.energy import Sampler, find_sensor

HWMON = "sys/class/hwmon/hwmon2"
RAPL = "sys/class/powercap/intel-rapl:0"


def write(root: Path, folder: str, **contents: object) -> None:
    path = root / folder
    path.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (path / name).write_text(f"{content}\n")


def ina3221(root: Path, milliamperes: int = 1000, **labels: str) -> None:
    """A sensor as an Orin Nano's kernel shows it: millivolts and milliamperes of three rails."""
    names = {"in1_label": "VDD_IN", "in2_label": "VDD_CPU_GPU_CV", "in3_label": "VDD_SOC"} | labels
    write(root, HWMON, name="ina3221", **names)
    for rail, share in ((1, 1.0), (2, 0.5), (3, 0.25)):
        now = {f"in{rail}_input": 5000, f"curr{rail}_input": round(milliamperes * share)}
        write(root, HWMON, **now)


def test_a_machine_without_a_sensor_has_none(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/hwmon/hwmon0", name="coretemp", temp1_input=40000)
    assert find_sensor(System(tmp_path)) is None


def test_the_rail_that_supplies_the_board_is_read_alone(tmp_path: Path) -> None:
    ina3221(tmp_path)
    sensor = find_sensor(System(tmp_path))
    assert sensor is not None
    assert sensor.name == "INA3221, VDD_IN"
    assert sensor.read() == pytest.approx(5.0)  # 5 V x 1 A
    assert sensor.joules([(10.0, 5.0), (11.0, 5.0), (13.0, 7.0)]) == pytest.approx(5 + 12)


def test_without_such_a_rail_all_are_added_up(tmp_path: Path) -> None:
    ina3221(tmp_path, in1_label="VDD_GPU_SOC", in2_label="VDD_CPU_CV", in3_label="VIN_SYS_5V0")
    sensor = find_sensor(System(tmp_path))
    assert sensor is not None
    assert sensor.name == "INA3221, VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0"
    assert sensor.read() == pytest.approx(8.75)


def test_a_rail_that_stops_answering_gives_no_reading(tmp_path: Path) -> None:
    ina3221(tmp_path)
    sensor = find_sensor(System(tmp_path))
    assert sensor is not None
    (tmp_path / HWMON / "curr1_input").unlink()
    assert sensor.read() is None


def rapl(root: Path, microjoules: int) -> None:
    write(root, RAPL, name="package-0", energy_uj=microjoules, max_energy_range_uj=1_000_000)
    # The memory's counter is a part of none of the packages'.
    write(root, f"{RAPL}/intel-rapl:0:0", name="core", energy_uj=7)


def test_a_counter_that_began_anew_is_followed(tmp_path: Path) -> None:
    rapl(tmp_path, 900_000)
    sensor = find_sensor(System(tmp_path))
    assert sensor is not None
    assert sensor.name == "RAPL, processor packages"
    readings = []
    for second, counter in enumerate([900_000, 100_000, 600_000, 50_000]):
        rapl(tmp_path, counter)
        found = sensor.read()
        assert found is not None
        readings.append((float(second), found))
    assert sensor.joules(readings) == pytest.approx(0.2 + 0.5 + 0.45)


def test_a_counter_that_nobody_may_read_is_no_sensor(tmp_path: Path) -> None:
    rapl(tmp_path, 1)
    (tmp_path / RAPL / "energy_uj").unlink()
    assert find_sensor(System(tmp_path)) is None


class Ramp:
    """Watts that grow with time, from a moment on."""

    name = "ramp"

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.threads: set[str] = set()

    def read(self) -> float | None:
        self.threads.add(threading.current_thread().name)
        return 3.0

    def joules(self, readings: list[tuple[float, float]]) -> float:
        return sum(watts for _, watts in readings[1:]) * 0.5


def test_readings_are_taken_in_a_thread_and_at_both_ends() -> None:
    sensor = Ramp()
    with Sampler(sensor, interval=0.001) as sampler:
        while len(sensor.threads) < 2:
            time.sleep(0.001)
    assert sensor.threads == {threading.current_thread().name, "energy"}
    found = sampler.energy(images=4)
    assert found is not None
    assert found.readings >= 3
    assert found.joules == pytest.approx((found.readings - 1) * 1.5)
    assert found.joules_per_image == pytest.approx(found.joules / 4)
    assert not [thread for thread in threading.enumerate() if thread.name == "energy"]


def test_a_sensor_that_says_nothing_gives_no_number() -> None:
    class Silent(Ramp):
        def read(self) -> float | None:
            return None

    with Sampler(Silent(), interval=0.001) as sampler:
        pass
    assert sampler.energy(images=1) is None


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 60)), min_size=2, max_size=30))
def test_the_area_lies_between_the_least_and_the_most_watts(
    steps: list[tuple[float, float]],
) -> None:
    from edgeadapt.runtime.profile.energy import Rails

    times = [sum(step for step, _ in steps[: index + 1]) for index in range(len(steps))]
    watts = [found for _, found in steps]
    sensor = Rails(System(Path("nowhere")), {"VDD_IN": 1.0})
    joules = sensor.joules(list(zip(times, watts, strict=True)))
    seconds = times[-1] - times[0]
    assert min(watts) * seconds - 1e-9 <= joules <= max(watts) * seconds + 1e-9
