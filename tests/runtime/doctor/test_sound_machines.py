"""Machines without a fault: nothing is found wrong with them."""

from __future__ import annotations

import pytest

from edgeadapt.runtime.doctor.checks import examine
from edgeadapt.runtime.doctor.findings import exit_code
from support import recorded_machine
from support.recorded_machine import bare

SOUND = {
    name: getattr(recorded_machine, name) for name in ("bare", "server", "orin", "orin6", "thor")
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_machine_has_no_problem_and_nothing_to_note(name, tmp_path):
    findings = SOUND[name](tmp_path).findings()
    expected = [] if name != "bare" else ["kernels"]  # which nobody needs there
    assert [one.check for one in findings if one.state != "ok"] == expected, findings
    assert exit_code(findings) == 0


@pytest.mark.parametrize(
    ("name", "backend"), [("bare", "native"), ("server", "cuda"), ("orin6", "cuda")]
)
def test_the_backend_that_would_be_used(name, backend, tmp_path):
    machine = SOUND[name](tmp_path).machine_for()
    (said,) = [one for one in examine(machine) if one.check == "backend"]
    assert said.found == f"auto takes {backend}"
    assert machine.would_use == backend


def test_versions_are_named(tmp_path):
    found = " | ".join(one.found for one in SOUND["orin"](tmp_path).findings())
    for text in (
        "Python 3.12.3, glibc 2.39, aarch64", "Jetson Linux 39.2.0, JetPack 7.2",
        "knows CUDA 13.2", "CUDA runtime 13.2.48", "cuDNN 9.20.0.46", "cudnn-frontend 1.28.0",
        "TensorRT 10.16.2", "ONNX Runtime 1.31.1", "pycuda 2026.1, cuda-bindings 13.2.0",
        "sm_75, sm_87: sm_87 is there", "power mode 2 (MAXN_SUPER)", "VDD_IN 6.0 W",
        "GPU at 1020 MHz of 1020, locked", "governor is schedutil", "at most 51 C (tj-thermal)",
        "11.4 GiB of 15.6 GiB free",
    ):  # fmt: skip
        assert text in found, (text, found)


def test_a_jetson_in_a_container_is_known_by_its_package(tmp_path):
    (said,) = [one for one in SOUND["thor"](tmp_path).findings() if one.check == "jetpack"]
    assert said.found == "Jetson Linux 39.2.0, JetPack 7.2"


def test_of_a_device_that_is_only_named_libraries_are_judged_and_nothing_else(tmp_path):
    machine = bare(tmp_path)
    machine.own_kernels("87", "ptx87")
    assert exit_code(machine.findings("orin-nano")) == 0
    states = {one.check: one.state for one in machine.findings("orin-nano")}
    assert states["cuda engine"] == "note"
    assert states["kernels"] == "ok"
