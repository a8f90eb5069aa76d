"""Options that several commands take, with one default and one check each.

Each factory gives a decorator; ``text`` is its line in the help, where a command has one of its
own to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol, TypeVar

import click

from edgeadapt.runtime.backend import PRECISIONS
from edgeadapt.runtime.backends import AUTO, BACKENDS

Command = TypeVar("Command", bound=Callable[..., object])


class Option(Protocol):
    """Gives a command one option more, or several."""

    def __call__(self, command: Command, /) -> Command: ...


class Mebibytes(click.ParamType[int]):
    """A number of MiB on the command line, bytes in the program."""

    name = "MiB"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Refuse what is no number above 0."""
        try:
            mebibytes = float(str(value))
        except ValueError:
            mebibytes = 0.0
        if not 0.0 < mebibytes < 2.0**40:
            self.fail(f"{value!r} is no number of MiB above 0.", param, ctx)
        return round(mebibytes * 2**20)


class ImageSize(click.ParamType[tuple[int, int]]):
    """WIDTHxHEIGHT on the command line, (height, width) in the program."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Refuse what is not two numbers from 1 to 99999."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})", str(value))
        if found is None:
            wanted = "WIDTHxHEIGHT in pixels, such as 1280x720; each from 1 to 99999"
            self.fail(f"{value!r} is no {wanted}.", param, ctx)
        return int(found[2]), int(found[1])


def scope_option(text: str = "Which parameters may change.") -> Option:
    """--scope NAME; "all" unless it is given."""
    return click.option("--scope", default="all", show_default=True, help=text)


def step_size_option(text: str) -> Option:
    """--step-size: one for every parameter; None: those of the bundle."""
    return click.option("--step-size", type=float, help=text)


def backend_option(text: str | None = "What computes.") -> Option:
    """--backend: one of those there are, or "auto"."""
    return click.option(
        "--backend",
        type=click.Choice([AUTO, *BACKENDS]),
        default=AUTO,
        show_default=True,
        help=text,
    )


def threads_option(text: str = "CPU threads; the engine's choice.") -> Option:
    """--threads: at least 1, or None."""
    return click.option("--threads", type=click.IntRange(1), help=text)


def precision_option(
    text: str = "Of activations; weights and gradients stay float32.",
) -> Option:
    """--precision: "fp32" unless it is given."""
    return click.option(
        "--precision",
        type=click.Choice(list(PRECISIONS)),
        default="fp32",
        show_default=True,
        help=text,
    )


def budget_option(text: str) -> Option:
    """--memory-budget MIB: bytes, or None."""
    return click.option("--memory-budget", type=Mebibytes(), metavar="MIB", help=text)


def json_option() -> Option:
    """--json: whether to print one JSON document, as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
