from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.runtime.doctor.jetson import (
    PowerMode,
    capability_of,
    jetpack_of,
    parse_power_modes,
    parse_power_status,
    parse_release,
    parse_tegrastats,
)
from support.recorded_machine import POWER_MODES

ORIN_LINE = (
    "11-21-2026 09:00:01 RAM 2016/7620MB (lfb 148x4MB) SWAP 12/3810MB (cached 3MB) "
    "CPU [3%@1510,off,99%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 37%@[1007] NVDEC off "
    "cpu@50.031C soc2@49.75C gpu@52.031C cv0@-256C tj@52.5C "
    "VDD_IN 4860mW/4911mW VDD_CPU_GPU_CV 560mW/612mW VDD_SOC 1480mW/1490mW"
)
MIB = 2**20


def test_a_line_of_tegrastats():
    said = parse_tegrastats(ORIN_LINE)
    assert (said.ram_bytes, said.ram_total_bytes) == (2016 * MIB, 7620 * MIB)
    assert (said.swap_bytes, said.swap_total_bytes) == (12 * MIB, 3810 * MIB)
    assert (said.gpu_load, said.gpu_hz) == (37, 1_007_000_000)
    assert said.cpu_loads == (3, None, 99, 0)
    assert said.temperatures == {
        "cpu": 50.031, "soc2": 49.75, "gpu": 52.031, "cv0": -256.0, "tj": 52.5
    }  # fmt: skip
    assert said.watts == {"VDD_IN": 4.86, "VDD_CPU_GPU_CV": 0.56, "VDD_SOC": 1.48}


def test_older_and_shorter_lines_of_tegrastats():
    said = parse_tegrastats("RAM 10/20MB CPU [1%@1] GR3D_FREQ 0%@76 GPU@38C")
    assert (said.gpu_load, said.gpu_hz, said.swap_bytes) == (0, 76_000_000, None)
    assert parse_tegrastats("GR3D_FREQ 5%").gpu_hz is None
    assert parse_tegrastats("").cpu_loads == ()


def test_power_modes():
    modes, default = parse_power_modes(POWER_MODES)
    assert modes == {
        0: PowerMode(0, "15W", 612_000_000),
        1: PowerMode(1, "25W", 918_000_000),
        2: PowerMode(2, "MAXN_SUPER"),
    }
    assert default == 1
    assert parse_power_status("pmode:0002\n") == 2
    assert parse_power_status("") is None


@pytest.mark.parametrize(
    ("text", "release", "jetpack"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic", (36, 4, 3), "6.2"),
        ("# R36 (release), REVISION: 3.0, GCID: 1", (36, 3, 0), "6.0"),
        ("# R36 (release), REVISION: 5.0", (36, 5, 0), "6.2.2"),
        ("# R38 (release), REVISION: 2.1", (38, 2, 1), "7.0"),
        ("# R39 (release), REVISION: 2.0", (39, 2, 0), "7.2"),
        ("# R32 (release), REVISION: 7.1", (32, 7, 1), ""),
        ("something else", (), ""),
    ],
)
def test_releases(text, release, jetpack):
    assert parse_release(text) == release
    assert jetpack_of(release) == jetpack


def test_processors():
    assert capability_of("nvidia,p3767-0005\0nvidia,tegra234") == (8, 7)
    assert capability_of("nvidia,tegra264\0") == (11, 0)
    assert capability_of("nvidia,tegra26x") == (11, 0)
    assert capability_of("raspberrypi,5-model-b\0brcm,bcm2712") is None


@given(st.text())
def test_any_text_is_read_without_failing(text):
    for parse in (parse_tegrastats, parse_power_modes, parse_power_status, parse_release):
        parse(text)
        parse(ORIN_LINE + text + POWER_MODES)  # type: ignore[operator]
    capability_of(text)
