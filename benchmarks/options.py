"""What several commands take, and how they say how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgeadapt.benchmarks.samples import AUTO
from edgeadapt.layouts import LAYOUTS
from edgeadapt.runtime.options import (
    Command,
    ImageSize,
    Option,
    backend_option,
    precision_option,
    scope_option,
    step_size_option,
    threads_option,
)
from edgeadapt.runtime.report import console


def largest_size_option(command: Command) -> Command:
    """--size: how much of each image is measured; None is all of it."""
    option = click.option(
        "--size",
        type=ImageSize(),
        metavar="WIDTHxHEIGHT",
        help="Only the middle of each image, at most so large.  [all of it]",
    )
    return option(command)


def layout_options(command: Command) -> Command:
    """How the folder of --data is arranged."""
    return _with(
        command,
        click.option(
            "--layout", type=click.Choice([AUTO, *LAYOUTS]), default=AUTO, show_default=True
        ),
        click.option(
            "--blur", default="", help="Folders of blurred images.  [blur, else blur_gamma]"
        ),
        click.option(
            "--sharp", default="sharp", show_default=True, help="Folders of sharp images."
        ),
    )


def adaptation_options(least_steps: int) -> Option:
    """How each bundle is adapted, and by what: the fields of `quality.Settings`."""
    steps = click.IntRange(least_steps)

    def decorate(command: Command) -> Command:
        return _with(
            command,
            click.option("--steps", type=steps, help="Gradient steps K.  [each bundle's]"),
            scope_option(),
            step_size_option("Step size of every parameter.  [each bundle's]"),
            backend_option(None),
            threads_option(),
            precision_option(),
        )

    return decorate


def _with(command: Command, *options: Option) -> Command:
    """The help lists them in this order."""
    for option in reversed(options):
        command = option(command)
    return command


@contextmanager
def progress(what: str, total: int, lines: bool = False) -> Iterator[Callable[[], None]]:
    """A bar on stderr if that is a terminal; gives the function that moves it.

    With ``lines`` a file gets a line for each tenth of the work.
    """
    out = console(stderr=True)
    if lines and not out.is_terminal:
        yield _line_writer(what, total, out)
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal or total == 0) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


def _line_writer(what: str, total: int, out: Console) -> Callable[[], None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done == total or 10 * done // total > 10 * (done - 1) // total:
            out.print(f"{what}: {done} of {total}", markup=False, highlight=False)

    return advance
