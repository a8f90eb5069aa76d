from __future__ import annotations

import json
import time

import pytest

from edgeadapt.runtime.doctor import libraries
from edgeadapt.runtime.doctor.libraries import find_libraries, read_libraries
from edgeadapt.runtime.doctor.system import System
from support.gpu_code import fatbin, library, library_for
from support.recorded_machine import orin

LIB = "usr/lib/aarch64-linux-gnu"


@pytest.fixture
def machine(tmp_path):
    return orin(tmp_path)


def test_a_file_with_several_names_counts_once_by_the_longest(machine):
    found = find_libraries(machine.machine_for().system, "cuDNN")
    assert sorted(one.path.resolve().name for one in found) == [
        "libcudnn.so.9.20.0",
        "libcudnn_engines_precompiled.so.9.20.0",
        "libcudnn_ops.so.9.20.0",
    ]
    assert {one.version for one in found} == {(9, 20, 0)}


def test_libraries_are_found_where_the_loader_and_python_look(machine):
    machine.file("opt/more/libcudnn.so.8.9.7", library_for("87"))
    machine.file("site-packages/nvidia/cudnn/lib/libcudnn_adv.so.9", library_for("87"))
    machine.environ["LD_LIBRARY_PATH"] = "/opt/more:/nowhere"
    found = {one.path.name: one for one in find_libraries(machine.machine_for().system, "cuDNN")}
    assert found["libcudnn.so.8.9.7"].version == (8, 9, 7)
    assert found["libcudnn_adv.so.9"].in_python
    assert not found["libcudnn.so.8.9.7"].in_python


def test_a_link_to_nowhere_is_passed_over(machine):
    (machine.root / LIB / "libcudnn_cnn.so.9").symlink_to("libcudnn_cnn.so.9.20.0")
    assert len(find_libraries(machine.machine_for().system, "cuDNN")) == 3


def cached(machine, tmp_path) -> System:
    system = machine.machine_for().system
    system.cache = tmp_path / "cache/doctor.json"
    return system


def test_readings_are_kept_until_the_file_changes(machine, tmp_path, monkeypatch):
    system = cached(machine, tmp_path)
    found = find_libraries(system, "TensorRT")
    first = read_libraries(system, found)
    monkeypatch.setattr(libraries, "read_file", lambda path, deadline: pytest.fail("read again"))
    assert read_libraries(system, found) == first
    monkeypatch.undo()
    found[0].path.write_bytes(library_for("87", "90", "100"))
    ((_, held),) = read_libraries(system, found)
    assert held.sass == {"87": 1, "90": 1, "100": 1}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 1, "files": 3}', '{"version": 1, "files": {"a": {"sass": 1}}}',
     '{"version": 1, "files": {"a": {"sass": {"x": 1}, "ptx": {}, "ptx_version": [0, 0]}}}'],
)  # fmt: skip
def test_a_damaged_cache_is_written_anew(machine, tmp_path, text):
    system = cached(machine, tmp_path)
    assert system.cache is not None
    system.cache.parent.mkdir()
    system.cache.write_text(text)
    found = find_libraries(system, "TensorRT")
    assert read_libraries(system, found)[0][1].sass == {"87": 1, "75": 1}
    assert len(json.loads(system.cache.read_text())["files"]) == 1


def test_a_cache_that_cannot_be_written_does_not_matter(machine, tmp_path):
    system = cached(machine, tmp_path)
    (tmp_path / "cache").write_text("a file")
    found = find_libraries(system, "TensorRT")
    assert read_libraries(system, found)[0][1].sass == {"87": 1, "75": 1}


def test_where_time_runs_out_nothing_is_said_to_be_missing(machine, tmp_path, monkeypatch):
    machine.file(f"{LIB}/libnvinfer.so.10.16.2", library(fatbin(["90"] * 3000 + ["87"])))
    monkeypatch.setattr(libraries, "READ_SECONDS", -1.0)
    said = [one for one in machine.findings() if one.check == "code of TensorRT"]
    assert [(one.state, "no time for the rest" in one.found) for one in said] == [("note", True)]
    system = cached(machine, tmp_path)
    read_libraries(system, find_libraries(system, "TensorRT"))
    monkeypatch.undo()
    ((_, held),) = read_libraries(system, find_libraries(system, "TensorRT"))
    assert held.complete  # half a reading was not kept
    assert held.sass["87"] == 1


def test_large_libraries_do_not_take_longer_than_they_may(machine):
    # Nearly empty files of the size of the largest there are.
    for index in range(6):
        place = machine.root / f"{LIB}/libcudnn_part{index}.so.9"
        part = library(b"".join(fatbin(["80", "87"]) for _ in range(2000)))
        place.write_bytes(part)
        with place.open("r+b") as file:
            file.truncate(600_000_000)
    system = machine.machine_for().system
    began = time.process_time()
    found = read_libraries(system, find_libraries(system, "cuDNN"))
    assert time.process_time() - began < 1.0
    assert sum(held.sass["87"] for _, held in found) == 3 + 6 * 2000


def test_a_file_that_cannot_be_read_is_noted(machine):
    machine.file(f"{LIB}/libnvinfer.so.10.16.2", b"\x7fELF\x02\x01")
    (said,) = [one for one in machine.findings() if one.check == "code of TensorRT"]
    assert (said.state, "cannot be read" in said.found) == ("note", True)
