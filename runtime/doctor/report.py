"""Findings as a table for people and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from edgeadapt.runtime import report
from edgeadapt.runtime.doctor.findings import STATES, Finding, exit_code
from edgeadapt.runtime.doctor.machine import Machine

SCHEMA = 1  # changes when a field changes its meaning or goes away
_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def document(machine: Machine, findings: list[Finding], seconds: float) -> dict[str, Any]:
    """For JSON; docs/doctor.md says what each field is."""
    target = machine.target
    return {
        "schema": SCHEMA,
        "device": target and {
            "name": target.name,
            "architecture": target.architecture,
            "present": target.present,
        },
        "would_use": machine.would_use,
        "exit_code": exit_code(findings),
        "findings": [asdict(finding) for finding in findings],
        "libraries": machine.read,
        "seconds": round(seconds, 3),
    }  # fmt: skip


def print_findings(machine: Machine, findings: list[Finding], seconds: float) -> None:
    """Print a line for each finding, with its fix below."""
    out = report.console()
    table = Table(box=None, show_header=False, pad_edge=False)
    for overflow in ("ignore", "ignore", "fold"):
        table.add_column(overflow=overflow, no_wrap=overflow == "ignore")
    for one in findings:
        text = Text(one.found)
        if one.fix and one.state != "ok":
            text.append(f"\n-> {one.fix}", style="bold")
        table.add_row(Text(one.state, style=_STYLES[one.state]), Text(one.check), text)
    out.print(table)
    counts = Counter(one.state for one in findings)
    summary = ", ".join(f"{counts[state]} {state}" for state in STATES)
    judge = f"judged by {machine.target.name}" if machine.target else "there is no GPU to judge by"
    out.print(Text(f"{summary}; {judge}; {seconds:.1f} s"), soft_wrap=True)
