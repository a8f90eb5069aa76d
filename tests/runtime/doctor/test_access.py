"""What is installed and cannot be reached: recorded machines on which people lost days."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from edgeadapt.runtime.doctor.findings import exit_code
from edgeadapt.runtime.doctor.needs import needed
from edgeadapt.runtime.doctor.system import System
from support.gpu_code import library, library_for
from support.recorded_machine import bare, orin, orin6, others, server, the, thor

CAPI = "site-packages/onnxruntime/capi"
CUDA_NEEDS = ("libcublasLt.so.13", "libcudart.so.13", "libcuda.so.1", "libc.so.6")  # of 1.31.1
TENSORRT_NEEDS = ("libcudart.so.13", "libnvinfer.so.10", "libcudnn.so.9", "libc.so.6")


def asks_for(*names: str) -> bytes:
    """A library without code, with a dynamic section that names other libraries."""
    strings, entries = b"\0", b""
    for name in names:
        entries += struct.pack("<QQ", 1, len(strings))
        strings += name.encode() + b"\0"
    entries += struct.pack("<QQQQ", 5, 4096, 0, 0)  # DT_STRTAB, as another kind; the end
    at = 64
    rows = [(3, at, len(strings), 0), (6, at + len(strings), len(entries), 0)]
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", 0, kind, 0, 0, begin, size, link, 0, 8, 0)
        for kind, begin, size, link in rows
    )
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    body = strings + entries
    head += struct.pack("<HHIQQQIHHHHHH", 3, 183, 1, 0, 0, at + len(body), 0, 64, 0, 0, 64, 2, 0)
    return head + body + table


def test_a_provider_whose_libraries_are_not_found(on):
    machine = on(orin6)  # has CUDA 12.6
    machine.file(f"{CAPI}/libonnxruntime_providers_cuda.so", asks_for(*CUDA_NEEDS))
    found = machine.findings()
    said = the(found, "onnxruntime", "libcublasLt.so.13, libcudart.so.13", "on the CPU", "LD_LIBR")
    assert "libcuda.so" not in said.found
    assert "libc.so" not in said.found
    assert others(found, "onnxruntime") == []


def test_a_provider_that_is_not_asked_for_is_noted(on):
    machine = on(server)
    machine.file(f"{CAPI}/libonnxruntime_providers_tensorrt.so", asks_for(*TENSORRT_NEEDS))
    found = machine.findings()
    said = the(found, "onnxruntime", "tensorrt provider needs", "libnvinfer.so.10", state="note")
    assert "libcudnn.so.9" not in said.found  # which is there
    assert exit_code(found) == 0


@pytest.mark.parametrize("place", ["site-packages/nvidia/cu13/lib", "usr/local/cuda/lib64", "opt"])
def test_libraries_of_pip_and_of_the_system_are_found(on, place):
    machine = on(server)
    machine.environ["LD_LIBRARY_PATH"] = "/opt"
    machine.file(f"{CAPI}/libonnxruntime_providers_cuda.so", asks_for("libcublasLt.so.13"))
    assert others(machine.findings()) == ["onnxruntime"]
    machine.file(f"{place}/libcublasLt.so.13")
    assert others(machine.findings()) == []


def test_needs_are_those_that_the_loader_sees(tmp_path):
    path = tmp_path / "one.so"
    path.write_bytes(asks_for(*CUDA_NEEDS))
    assert needed(path) == CUDA_NEEDS


@pytest.mark.parametrize("content", [b"", b"text" * 40, library(b"")])
def test_what_names_no_libraries_needs_none(tmp_path, content):
    path = tmp_path / "one"
    path.write_bytes(content)
    assert needed(path) == ()


def test_a_damaged_library_needs_at_most_what_it_did(tmp_path):
    whole, path = asks_for(*CUDA_NEEDS), tmp_path / "one.so"
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut] + b"\xff" * (len(whole) - cut))
        assert isinstance(needed(path), tuple)
        path.write_bytes(whole[:cut])
        assert set(needed(path)) <= {*CUDA_NEEDS, ""}


def test_an_environment_does_not_see_the_bindings_of_jetpack(on):
    machine = on(orin)
    machine.remove("site-packages/tensorrt")
    machine.file("usr/lib/python3.12/dist-packages/tensorrt/__init__.py")
    found = machine.findings()
    the(found, "tensorrt", "dist-packages", "3.12.3", "--system-site-packages", state="note")
    assert others(found, "tensorrt") == []


def test_a_tensorrt_without_bindings(on):
    machine = on(orin)
    machine.remove("site-packages/tensorrt")
    the(machine.findings(), "tensorrt", "10.16.2", "python3-libnvinfer", state="note")


def test_tensorrt_rtx_is_not_for_jetsons(tmp_path):
    for make, state in ((thor, "note"), (server, "ok")):
        machine = make(tmp_path / state)
        machine.package("tensorrt-rtx", "1.7.1.116")
        machine.file("site-packages/tensorrt_rtx_libs/libtensorrt_rtx.so.1", library_for("75"))
        said = [one for one in machine.findings() if "RTX" in one.found]
        assert [one.state for one in said] == [state]
        assert "1.7.1.116" in said[0].found


def test_tensorrt_rtx_without_its_library(on):
    machine = on(bare)
    machine.package("tensorrt-rtx", "1.7.1.116")
    the(machine.findings(), "tensorrt", "without its library", "--force-reinstall", state="note")


def test_what_is_not_installed_is_known_without_an_answer(on):
    machine = on(bare)
    machine.commands.clear()  # a machine too busy to start a process in time
    (said,) = [one for one in machine.findings() if one.check == "cuda engine"]
    assert said.found == "not used without a GPU (PyCUDA is not installed)"


def test_a_user_who_may_not_open_the_gpu(on, monkeypatch):
    machine = on(orin)
    machine.file("dev/nvmap")
    # Tests may run as root, whom no mode of a file keeps out.
    monkeypatch.setattr(System, "may_open", lambda _, path: path.name != "nvmap")
    found = machine.findings()
    the(found, "driver", "may not open /dev/nvmap", "usermod -aG video,render")
    assert others(found, "driver") == []


def test_a_file_may_be_opened_unless_its_mode_says_no(tmp_path, monkeypatch):
    path, asked = tmp_path / "nvmap", []
    path.touch()
    assert System().may_open(path)
    assert System().may_open(tmp_path / "gone")
    monkeypatch.setattr("os.access", lambda name, mode: asked.append((Path(name), mode)))
    assert not System().may_open(path)
    assert asked == [(path, 6)]


def test_half_an_upgrade_of_jetson_linux(on):
    machine = on(orin6)
    machine.debian(nvidia_l4t_core="36.4.4-20250616085344", nvidia_l4t_cuda="36.4.4-20250616085344",
                   nvidia_l4t_gstreamer="36.4.7-20250918154033")  # fmt: skip
    found = machine.findings()
    the(found, "jetpack", "36.4.4 and 36.4.7", "nvidia-l4t-gstreamer alone", "full-upgrade",
        state="note")  # fmt: skip
    assert others(found, "jetpack") == []
