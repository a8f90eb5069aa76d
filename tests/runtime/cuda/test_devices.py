from __future__ import annotations

import dataclasses

import pytest

from edgeadapt.errors import ConfigError
from edgeadapt.runtime.cuda.devices import GIB, STANDINGS, device_names, find_device

NAMES = ("orin-nano", "orin-nano-super", "orin-nx-16", "agx-orin-64", "thor-t5000", "h200")
RATES = {"fp32": 256, "tf32": 1024, "fp16": 2048, "bf16": 2048}  # of an Ampere multiprocessor


def test_there_are_these_devices():
    assert device_names() == NAMES


@pytest.mark.parametrize("key", NAMES)
def test_figures_are_plausible_and_say_where_they_come_from(key):
    device = find_device(key)
    assert device.key == key
    assert device.name
    rates = device.flops_per_second
    assert rates["fp32"] < rates["tf32"] < rates["fp16"] == rates["bf16"]
    assert rates["fp16"] == pytest.approx(2 * rates["tf32"], rel=0.01)
    # 128 lanes that multiply and add; figures are rounded to two or three digits.
    of_cores = 256 * device.multiprocessors * device.clock_hz
    assert rates["fp32"] == pytest.approx(of_cores, rel=0.01)
    assert GIB < device.usable_bytes < device.memory_bytes
    assert {"clock_mhz", "bandwidth_gb_s", "fp32_tflops", "tf32_tflops", "fp16_tflops",
            "compute_capability", "multiprocessors", "memory_gib",
            "usable_gib"} == set(device.origins)  # fmt: skip
    for origin in device.origins.values():
        assert origin.standing in STANDINGS
        assert len(origin.source) > 10


@pytest.mark.parametrize("key", NAMES[:4])
def test_derived_rates_follow_from_clock_and_multiprocessors(key):
    device = find_device(key)
    assert device.compute_capability == (8, 7)
    for precision, rate in device.flops_per_second.items():
        expected = RATES[precision] * device.multiprocessors * device.clock_hz
        assert rate == pytest.approx(expected, rel=0.005)
        name = "fp16" if precision == "bf16" else precision
        assert device.origins[f"{name}_tflops"].standing == "derived"


def test_some_figures_by_hand():
    h200, thor = find_device("h200"), find_device("thor-t5000")
    assert h200.compute_capability == (9, 0)
    assert h200.bytes_per_second == 4.8e12
    assert h200.memory_bytes == 141 * 2**30
    assert thor.compute_capability == (11, 0)
    assert thor.clock_hz == 1.57e9
    assert thor.origins["clock_mhz"].standing == "unverified"


def test_figures_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        find_device("h200").clock_hz = 1.0  # type: ignore[misc]


def test_an_unknown_device_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"device must be one of orin-nano, .*, got 'xavier'\."):
        find_device("xavier")
