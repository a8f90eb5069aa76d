"""The machine as the checks see it: files below a root, installed packages, what commands say.

Checks read nothing else, so a folder of recorded files can stand for a machine.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import DistributionFinder, MetadataPathFinder
from importlib.resources import files
from pathlib import Path

Command = tuple[str, ...]
Runner = Callable[[Command], str]  # what it prints; "" if it is not there, fails or takes too long

COMMAND_SECONDS = 1.3  # a command that takes longer has said nothing
_MOST_BYTES = 32 * 2**20  # of a file that is read as text; a status of dpkg has some MB


@dataclass(frozen=True)
class Package:
    """An installed Python package, as its metadata says."""

    name: str
    version: str
    requires: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()  # of the wheel it came from

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the version: (1, 29, 0)."""
        return numbers(self.version)


@dataclass
class System:
    """A machine, or a recording of one."""

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    site: Sequence[Path] = field(default_factory=lambda: [Path(p) for p in sys.path if p])
    run: Runner = field(default_factory=lambda: run_command)
    machine: str = field(default_factory=platform.machine)
    python: str = field(default_factory=platform.python_version)
    libc: str = field(default_factory=lambda: " ".join(platform.libc_ver()))
    kernels: Path = field(default_factory=lambda: Path(str(files("edgeadapt.kernels"))))
    cache: Path | None = None  # a file in which slow readings are kept
    _said: dict[Command, Future[str]] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """A path of that machine; ``name`` starts at its root, with or without a slash."""
        return self.root / name.lstrip("/")

    def text(self, name: str | Path) -> str:
        """The text of a file, stripped; "" if there is none that can be read."""
        path = name if isinstance(name, Path) else self.path(name)
        try:
            with path.open("rb") as file:
                return file.read(_MOST_BYTES).decode("utf-8", "replace").strip("\0 \n\t")
        except (OSError, ValueError):
            return ""

    def number(self, name: str | Path) -> int | None:
        """The whole number that a file holds."""
        found = re.fullmatch(r"-?\d{1,18}", self.text(name))
        return int(found[0]) if found else None

    def glob(self, *patterns: str) -> list[Path]:
        """What matches, in order; patterns start at the root."""
        found: list[Path] = []
        for pattern in patterns:
            try:
                found += sorted(self.root.glob(pattern.lstrip("/")))
            except (OSError, ValueError):  # a folder that nobody may read
                continue
        return found

    def may_open(self, path: Path) -> bool:
        """Whether this user may read and write a file; a file that is gone may."""
        return os.access(path, os.R_OK | os.W_OK) or not path.exists()

    def start(self, commands: Sequence[Command]) -> None:
        """Run commands in the background; `said` waits for them."""
        waiting = [command for command in commands if command not in self._said]
        if waiting:
            pool = ThreadPoolExecutor(len(waiting))
            self._said.update({command: pool.submit(self.run, command) for command in waiting})
            pool.shutdown(wait=False)

    def said(self, command: Command) -> str:
        """What a command prints; it runs once."""
        self.start([command])
        return self._said[command].result()

    def package(self, name: str) -> Package | None:
        """An installed Python package, whatever its spelling."""
        context = DistributionFinder.Context(name=name, path=[str(path) for path in self.site])
        for found in MetadataPathFinder.find_distributions(context):
            version = (found.read_text("METADATA") or found.read_text("PKG-INFO") or "").strip()
            if not (match := re.search(r"^Version: *(\S+)", version, re.M)):
                continue  # what an uninstallation left behind
            tags = re.findall(r"^Tag: *(\S+)", found.read_text("WHEEL") or "", re.M)
            requires = re.findall(r"^Requires-Dist: *(.+?)\s*$", version, re.M)
            return Package(name, match[1], tuple(requires), tuple(tags))
        return None

    def packages(self, *names: str) -> list[Package]:
        """Those that are installed."""
        return [found for name in names if (found := self.package(name)) is not None]

    @cached_property
    def debian(self) -> Mapping[str, str]:
        """Installed Debian packages of NVIDIA's, with their versions."""
        found: dict[str, str] = {}
        for record in self.text("var/lib/dpkg/status").split("\n\n"):
            name = re.match(r"Package: *(nvidia-\S+|lib(?:cudnn|nvinfer)\S*|cuda-\S+|tensorrt)\n",
                            record)  # fmt: skip
            version = re.search(r"^Version: *(\S+)", record, re.M)
            if name and version and "\nStatus: install ok installed" in record:
                found[name[1]] = version[1]
        return found

    def which(self, program: str) -> Path | None:
        """A program on PATH."""
        for folder in self.environ.get("PATH", "").split(":"):
            path = self.path(folder) / program
            if folder and path.is_file():
                return path
        return None


def numbers(version: str) -> tuple[int, ...]:
    """(10, 3, 0, 26) of "10.3.0.26-1+cuda12.5"."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def run_command(command: Command) -> str:
    """What a command prints on stdout, even if it was cut short after `COMMAND_SECONDS`."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        return done.stdout.decode("utf-8", "replace")
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode("utf-8", "replace")
    except OSError:
        return ""
