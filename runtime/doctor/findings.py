"""What a check says: one line on what was found, and one on how to repair it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

State = Literal["ok", "note", "problem"]
STATES: tuple[State, ...] = get_args(State)  # from good to bad


@dataclass(frozen=True)
class Finding:
    """One fact about the machine.

    A problem is something that was asked for and cannot work; a note is worth knowing, and nothing
    that is used needs it.
    """

    check: str
    state: State
    found: str
    fix: str = ""

    def __post_init__(self) -> None:
        if self.state == "problem" and not self.fix:
            raise ValueError(f"{self.check}: a problem needs a fix: {self.found}")


def ok(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "ok", found)


def note(check: str, found: str, fix: str = "") -> Finding:
    """Worth knowing."""
    return Finding(check, "note", found, fix)


def problem(check: str, found: str, fix: str) -> Finding:
    """Cannot work."""
    return Finding(check, "problem", found, fix)


def judged(serious: bool, check: str, found: str, fix: str) -> Finding:
    """A problem where what it hinders is wanted, else a note."""
    return problem(check, found, fix) if serious else note(check, found, fix)


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if there is a problem, else 0."""
    return int(any(finding.state == "problem" for finding in findings))
