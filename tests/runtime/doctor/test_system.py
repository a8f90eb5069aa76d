from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from edgeadapt.errors import ConfigError
from edgeadapt.runtime.doctor import probe, system
from edgeadapt.runtime.doctor.checks_machine import read_rails
from edgeadapt.runtime.doctor.findings import Finding
from edgeadapt.runtime.doctor.system import run_command
from edgeadapt.runtime.doctor.target import find_target, smi
from support.recorded_machine import bare, orin, server


def test_what_a_command_prints():
    assert run_command((sys.executable, "-c", "print('said')")) == "said\n"
    assert run_command(("no-such-program-anywhere",)) == ""


def test_a_command_that_takes_too_long_is_cut_short(monkeypatch):
    monkeypatch.setattr(system, "COMMAND_SECONDS", 1.0)
    began = time.monotonic()
    program = "import time; print('first', flush=True); time.sleep(600)"
    assert run_command((sys.executable, "-c", program)) in ("first\n", "")
    assert time.monotonic() - began < 60


def test_commands_run_at_the_same_time_and_once(tmp_path):
    asked: list[tuple[str, ...]] = []
    made = bare(tmp_path).machine_for().system
    made.run = lambda command: asked.append(command) or command[0]  # type: ignore[func-returns-value]
    made.start([("a",), ("b",)])
    assert [made.said(("a",)), made.said(("b",)), made.said(("a",))] == ["a", "b", "a"]
    assert sorted(asked) == [("a",), ("b",)]


def test_packages_are_found_whatever_their_spelling(tmp_path):
    machine = bare(tmp_path)
    machine.package("NVIDIA.cudnn_frontend", "1.29.0rc1", ["numpy"], "cp312-cp312-linux_aarch64")
    found = machine.machine_for().system.package("nvidia-cudnn-frontend")
    assert found is not None
    assert found.numbers == (1, 29, 0)
    assert found.requires == ("numpy",)
    assert found.tags == ("cp312-cp312-linux_aarch64",)
    (next(machine.site.glob("NVIDIA*")) / "METADATA").write_text("")
    assert machine.machine_for().system.package("nvidia-cudnn-frontend") is None


def test_debian_packages_that_were_removed_do_not_count(tmp_path):
    machine = bare(tmp_path)
    machine.debian(nvidia_jetpack="7.2-b100", libcudnn9_cuda_13="9.20.0.46-1", bash="5.2")
    status = (tmp_path / "var/lib/dpkg/status").read_text()
    status += "\nPackage: tensorrt\nStatus: deinstall ok config-files\nVersion: 8.6\n"
    machine.file("var/lib/dpkg/status", status)
    assert machine.machine_for().system.debian == {
        "nvidia-jetpack": "7.2-b100",
        "libcudnn9-cuda-13": "9.20.0.46-1",
    }


def test_files_that_are_not_there_or_not_text(tmp_path):
    made = bare(tmp_path).machine_for().system
    (tmp_path / "odd").write_bytes(b"\xff\xfe7\0")
    assert made.text("nowhere") == ""
    assert made.text("proc") == ""  # a folder
    assert "7" in made.text("odd")
    assert made.number("odd") is None
    assert made.glob("nowhere/*") == []


def test_the_gpu_of_a_machine(tmp_path):
    assert find_target(bare(tmp_path / "bare").machine_for().system) is None
    jetson = find_target(orin(tmp_path / "orin").machine_for().system)
    assert jetson is not None
    assert (jetson.architecture, jetson.present, jetson.tegra) == ("sm_87", True, True)
    card = find_target(server(tmp_path / "server").machine_for().system)
    assert card is not None
    assert (card.name, card.architecture, card.tegra) == ("NVIDIA H200", "sm_90", False)
    none = bare(tmp_path / "none").machine_for().system
    named = find_target(none, "thor-t5000")
    assert named is not None
    assert (named.architecture, named.present, named.tegra) == ("sm_110", False, True)
    with pytest.raises(ConfigError, match="device must be one of"):
        find_target(none, "xavier")


def test_a_gpu_that_does_not_say_what_it_is(tmp_path):
    machine = server(tmp_path)
    machine.commands.clear()
    machine.driver((13, 0))
    target = find_target(machine.machine_for().system)
    assert target is not None
    assert (target.capability, target.architecture) == (None, "")
    assert [one.check for one in machine.findings() if one.state == "problem"] == []


@pytest.mark.parametrize(
    "text", ["", "No devices were found", "a,b\n", ", , , ,", "x, N/A, 1, ?, ?"]
)
def test_odd_words_of_nvidia_smi(tmp_path, text):
    machine = server(tmp_path)
    machine.commands = dict.fromkeys(machine.commands, text)
    row = smi(machine.machine_for().system)
    assert row is None or (row.name, row.capability, row.free_bytes) == ("x", None, None)
    machine.findings()


def test_rails_of_older_kernels(tmp_path):
    machine = bare(tmp_path)
    machine.files("sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0", in_power0_input="5250",
                  rail_name_0="POM_5V_IN", in_power1_input="410")  # fmt: skip
    assert read_rails(machine.machine_for().system) == {
        "POM_5V_IN": 5.25,
        "iio:device0 1": 0.41,
    }


def test_the_probes_answer_on_this_machine():
    for command in (probe.DRIVER, probe.LIBRARIES):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
        assert "cuda" in answer or answer["error"]


def test_a_problem_without_a_fix_is_no_finding():
    with pytest.raises(ValueError, match="needs a fix"):
        Finding("driver", "problem", "broken")
