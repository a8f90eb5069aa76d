"""All checks, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgeadapt.errors import one_line
from edgeadapt.runtime.doctor import (
    checks_access,
    checks_engines,
    checks_libraries,
    checks_machine,
    checks_versions,
    probe,
)
from edgeadapt.runtime.doctor.findings import Finding, note
from edgeadapt.runtime.doctor.machine import Machine
from edgeadapt.runtime.doctor.target import NVIDIA_SMI

Check = Callable[[Machine], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    checks_versions.check_python,
    checks_versions.check_jetpack,
    checks_access.check_releases,
    checks_versions.check_driver,
    checks_access.check_device_files,
    checks_versions.check_cuda,
    checks_versions.check_cudnn,
    checks_versions.check_tensorrt,
    checks_access.check_bindings,
    checks_access.check_rtx,
    checks_versions.check_onnxruntime,
    checks_access.check_providers,
    checks_libraries.check_code,
    checks_libraries.check_kernels,
    checks_engines.check_cuda_engine,
    checks_engines.check_native_engine,
    checks_machine.check_memory,
    checks_machine.check_power,
    checks_machine.check_clocks,
    checks_machine.check_temperature,
    checks_machine.check_load,
    checks_engines.check_choice,
)


def examine(machine: Machine) -> list[Finding]:
    """What all checks find; one that fails on something unforeseen does not keep the others."""
    start_commands(machine)
    found: list[Finding] = []
    for check in CHECKS:
        try:
            found += check(machine)
        except Exception as error:  # noqa: BLE001 - of files that nobody has seen yet
            name = check.__name__.removeprefix("check_").replace("_", " ")
            found.append(note(name, f"could not be looked at ({one_line(error)})"))
    return found


def start_commands(machine: Machine) -> None:
    """Everything that takes time of its own, all at once."""
    commands = [NVIDIA_SMI, probe.DRIVER, probe.LIBRARIES]
    if machine.release and machine.system.which("tegrastats"):
        commands.append(checks_machine.TEGRASTATS)
    machine.system.start(commands)
