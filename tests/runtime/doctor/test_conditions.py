"""Machines that are slow, hot or full: noted, and no reason to fail."""

from __future__ import annotations

from edgeadapt.runtime.doctor import checks_machine
from edgeadapt.runtime.doctor.target import NVIDIA_SMI
from support.recorded_machine import bare, orin, others, server, the


def test_a_low_power_mode(on):
    machine = on(orin)
    machine.file("var/lib/nvpmodel/status", "pmode:0000")
    found = machine.findings()
    the(found, "power", "power mode 0 (15W)", "2 (MAXN_SUPER)", "nvpmodel -m 2", state="note")
    machine.remove("var/lib/nvpmodel/status")  # never changed: the one it starts with
    the(machine.findings(), "power", "power mode 1 (25W)", state="note")
    assert others(found, "power") == []


def test_clocks_that_are_not_locked(on):
    machine = on(orin)
    machine.files("sys/class/devfreq/17000000.gpu", min_freq="306000000", cur_freq="306000000",
                  max_freq="612000000")  # fmt: skip
    found = machine.findings()
    the(found, "clocks", "306 MHz of 612, where 1020 exist, not locked", "jetson_clocks",
        state="note")  # fmt: skip
    assert others(found, "clocks") == []


def test_a_governor_that_saves_power(on):
    machine = on(orin)
    machine.file("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    the(machine.findings(), "clocks", "powersave", "cpupower", state="note")
    machine.file("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "intel_pstate\n")
    assert others(machine.findings()) == []  # there the word means something else


def test_little_memory_and_no_swap(on):
    machine = on(orin)
    rows = {"MemTotal": 7802868, "MemAvailable": 950000, "SwapTotal": 0}
    machine.file("proc/meminfo", "\n".join(f"{name}: {kb} kB" for name, kb in rows.items()))
    words = ("0.9 GiB of 7.4 GiB free, no swap", "swapon", "--memory-budget")
    the(machine.findings(), "memory", *words, state="note")


def test_a_container_with_little_memory(on):
    machine = on(bare)
    machine.file("sys/fs/cgroup/memory.max", str(2**30))
    the(machine.findings(), "memory", "1.0 GiB of 1.0 GiB free", state="note")
    machine.file("sys/fs/cgroup/memory.max", "max")
    assert others(machine.findings(), "kernels") == []


def test_a_gpu_whose_memory_others_have(on):
    machine = on(server)
    machine.commands[NVIDIA_SMI] = "NVIDIA H200, 9.0, 580.65.06, 312, 143771\n"
    the(machine.findings(), "memory", "0.3 GiB of 140.4 GiB of the GPU free", state="note")


def test_a_temperature_that_slows_it_down(on):
    machine = on(orin)
    machine.file("sys/class/thermal/thermal_zone0/temp", "99500\n")
    the(machine.findings(), "temperature", "tj-thermal has 100 C", "from 99 C", "fan", state="note")


def test_too_much_current(on):
    machine = on(orin)
    machine.file("sys/class/hwmon/hwmon2/oc1_event_cnt", "3\n")
    the(machine.findings(), "temperature", "3 times", "power supply", state="note")


def test_a_gpu_that_others_use(on):
    machine = on(orin)
    machine.commands[checks_machine.TEGRASTATS] = (
        "RAM 2016/7620MB GR3D_FREQ 97%@[1007]\nRAM 2017/7620MB"
    )
    the(machine.findings(), "load", "97%", "stop other programs", state="note")


def test_a_check_that_fails_is_noted_and_keeps_none_of_the_others(on, monkeypatch):
    def fail(system):
        raise RuntimeError("out of order")

    monkeypatch.setattr(checks_machine, "read_rails", fail)
    found = on(orin).findings()
    failed = [one for one in found if "could not be looked at (out of order)" in one.found]
    assert [(one.check, one.state) for one in failed] == [("power", "note")]
    assert others(found, "power") == []
