"""The command `edgeadapt`; a subcommand is imported when it is asked for."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TextIO

import click

from edgeadapt import __version__
from edgeadapt.errors import EdgeadaptError, EngineWarning

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
REFUSED = 2
BROKEN = 1


@dataclass(frozen=True)
class Entry:
    """One subcommand: where it is, what it does, and the extra that installs what it needs."""

    target: str
    help: str
    extra: str = ""


COMMANDS = {
    "train": Entry(
        "edgeadapt.training.commands:train", "Train a network: joint, then meta.", "train"
    ),
    "export": Entry(
        "edgeadapt.export.commands:export", "Turn a PyTorch network into a bundle.", "export"
    ),
    "check": Entry(
        "edgeadapt.export.commands:check",
        "Check a bundle, against PyTorch if it is there.",
        "export",
    ),
    "info": Entry("edgeadapt.runtime.commands:info", "Say what is in a bundle."),
    "run": Entry("edgeadapt.runtime.commands:run", "Adapt to images and restore them.", "demo"),
    "demo": Entry(
        "edgeadapt.runtime.commands:demo", "Blur a photograph, adapt to it, restore it.", "demo"
    ),
    "build": Entry(
        "edgeadapt.runtime.tensorrt.command:build",
        "Build an engine of TensorRT or TensorRT-RTX.",
    ),
    "profile": Entry(
        "edgeadapt.runtime.profile.command:profile",
        "Say where the time goes, and what the machine could do.",
        "bench",
    ),
    "doctor": Entry(
        "edgeadapt.runtime.doctor.command:doctor", "Say what is wrong with this machine."
    ),
    "bench": Entry(
        "edgeadapt.benchmarks.commands:bench", "Measure quality, speed and memory.", "bench"
    ),
}


class LazyGroup(click.Group):
    """A group that knows its subcommands by `COMMANDS` and imports the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, attribute = entry.target.split(":")
        try:
            command: click.Command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise _not_installed(cmd_name, error) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; a library that it misses on the way is named with its extra."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise _not_installed(ctx.invoked_subcommand or "", error) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeadapt")
def cli() -> None:
    """Adapt an image restoration network to the image it is given, without PyTorch.

    EDGEADAPT_DEBUG=1 shows the whole traceback of an error.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the result is the exit status, and an error is one line on stderr."""
    shown, warnings.showwarning = warnings.showwarning, _show_warning
    try:
        status = cli.main(args=arguments, prog_name="edgeadapt", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return REFUSED
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "edgeadapt"
        return _fail(f"{error.format_message()} Hint: see `{command} --help`.", REFUSED)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted.", INTERRUPTED)
    except EdgeadaptError as error:
        return _fail(str(error), REFUSED)
    except BrokenPipeError:
        sys.stdout = None  # whoever read it has gone: nothing is left to flush
        return BROKEN
    except OSError as error:
        hint = "Hint: look at the path, its permissions and the free space."
        return _fail(f"{error}. {hint}", REFUSED)
    except MemoryError:
        return _fail("out of memory. Hint: give a smaller image or a smaller scope.", REFUSED)
    except Exception as error:  # noqa: BLE001 - a fault of ours: one line, unless it is asked for
        name = type(error).__name__
        hint = "Hint: run again with EDGEADAPT_DEBUG=1 and report what it prints."
        return _fail(f"internal error, {name}: {error}. {hint}", BROKEN)
    finally:
        warnings.showwarning = shown
    return status if isinstance(status, int) else 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of ours as one line; others as Python prints them."""
    if issubclass(category, EngineWarning):
        click.echo(f"edgeadapt: note: {' '.join(str(message).split())}", err=True)
    else:
        click.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True)


def debug() -> bool:
    """Whether tracebacks are wanted: EDGEADAPT_DEBUG is set, and not to 0."""
    return os.environ.get("EDGEADAPT_DEBUG", "0") not in ("", "0")


def _fail(message: str, status: int) -> int:
    """Print one line (called while the error is being handled) and return ``status``."""
    if debug():
        traceback.print_exc()
    click.echo(f"edgeadapt: error: {' '.join(message.split())}", err=True)
    return status


def _not_installed(
    command: str, error: ModuleNotFoundError
) -> EdgeadaptError | ModuleNotFoundError:
    """What to say about a missing module; one of our own is no matter of installing."""
    package = (error.name or "").split(".")[0]
    if package in ("", "edgeadapt"):
        return error
    extra = COMMANDS[command].extra if command in COMMANDS else ""
    target = f"edgeadapt[{extra}]" if extra else "edgeadapt"
    return EdgeadaptError(
        f"`edgeadapt {command}` needs {package}, which is not installed.",
        f"pip install '{target}'",
    )


if __name__ == "__main__":
    sys.exit(main())
