"""The command `edgeadapt doctor`."""

from __future__ import annotations

import time

import click

from edgeadapt.kernels.cuda.library import cache_folder
from edgeadapt.runtime import report as documents
from edgeadapt.runtime.cuda.devices import device_names
from edgeadapt.runtime.doctor import report
from edgeadapt.runtime.doctor.checks import examine
from edgeadapt.runtime.doctor.findings import exit_code
from edgeadapt.runtime.doctor.machine import Machine
from edgeadapt.runtime.doctor.system import System
from edgeadapt.runtime.doctor.target import find_target
from edgeadapt.runtime.options import json_option


@click.command()
@click.argument("bundle", required=False, default="")
@click.option(
    "--device", type=click.Choice(device_names()), help="Judge by this GPU.  [the machine's]"
)
@json_option()
@click.pass_context
def doctor(context: click.Context, bundle: str, device: str | None, as_json: bool) -> None:
    """Say what this machine has, what of it fits, and how to repair what does not.

    With BUNDLE also whether it is sound and what would run it. The exit code is 1 if something that
    was asked for, or the GPU of this machine, cannot work.
    """
    began = time.monotonic()
    system = System(cache=cache_folder() / "doctor.json")
    machine = Machine(system, find_target(system, device or ""), bundle)
    findings = examine(machine)
    seconds = time.monotonic() - began
    if as_json:
        documents.print_json(report.document(machine, findings, seconds))
    else:
        report.print_findings(machine, findings, seconds)
    context.exit(exit_code(findings))
