"""Fetch the wheels that a package needs on 64-bit Arm, and say how large they are.

    tools/aarch64_wheels.py -d FOLDER --python 3.12 --glibc 2.39 --most 80 NAME.whl [NAME ...]

Ends with 1 if together they are larger than --most megabytes, or are more than wheels. pip chooses
them, as the machine configures it; what is there already is not fetched again.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OLDEST_GLIBC = 17  # 2.17 is the first that 64-bit Arm has wheels for
UNIT = 1e6  # bytes of a megabyte


@dataclass(frozen=True)
class Wheel:
    """A wheel and what it says of itself."""

    path: Path
    name: str
    version: str
    requires: tuple[Requirement, ...]

    @property
    def megabytes(self) -> float:
        """Of the file."""
        return self.path.stat().st_size / UNIT


def read_wheel(path: Path) -> Wheel:
    """What the metadata in a wheel says."""
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    requires = tuple(Requirement(text) for text in metadata.get_all("Requires-Dist", []))
    return Wheel(path, canonicalize_name(metadata["Name"]), metadata["Version"], requires)


def arm_environment(python: str) -> dict[str, str]:
    """What a requirement's conditions are judged by on the other machine."""
    found = {key: str(value) for key, value in default_environment().items()}
    return found | {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": "aarch64",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
    }


def closure(
    roots: Iterable[Requirement], wheels: dict[str, Wheel], environment: dict[str, str]
) -> tuple[list[Wheel], list[Requirement]]:
    """The wheels that ``roots`` come to, and requirements that none of them meets."""
    needed: dict[str, Wheel] = {}
    missing: dict[str, Requirement] = {}
    seen: set[tuple[str, str]] = set()
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        wheel = wheels.get(name)
        if wheel is None or not one.specifier.contains(wheel.version, prereleases=True):
            missing.setdefault(name, one)
            continue
        needed[name] = wheel
        for extra in {"", *one.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            given = {**environment, "extra": extra}
            waiting += [r for r in wheel.requires if r.marker is None or r.marker.evaluate(given)]
    return sorted(needed.values(), key=lambda w: -w.path.stat().st_size), list(missing.values())


def fetch(folder: Path, wanted: list[str], python: str, glibc: str) -> None:
    """Have pip download what is not there."""
    newest = int(glibc.partition(".")[2])
    platforms = [f"manylinux_2_{n}_aarch64" for n in range(newest, OLDEST_GLIBC - 1, -1)]
    platforms += ["manylinux2014_aarch64", "linux_aarch64", "any"]
    number = python.replace(".", "")
    command = [sys.executable, "-m", "pip", "download", "-qq", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "-d", str(folder), "--find-links", str(folder)]
    command += ["--python-version", python, "--implementation", "cp"]
    command += [f"--abi={abi}" for abi in (f"cp{number}", "abi3", "none")]
    command += [f"--platform={platform}" for platform in platforms]
    subprocess.run([*command, *wanted], check=True)


def collect(
    folder: Path, roots: list[str], python: str, glibc: str, offline: bool
) -> tuple[list[Wheel], list[str]]:
    """The wheels of ``roots``, fetched where ``folder`` lacks them, and what is missing."""
    environment, own = arm_environment(python), {}
    for root in roots:
        if root.endswith(".whl"):
            own[root] = read_wheel(Path(root))
    named = [Requirement(own[root].name if root in own else root) for root in roots]
    wanted, before = list(roots), ["at first"]
    while True:
        wheels = newest_of(folder, python) | {wheel.name: wheel for wheel in own.values()}
        found, requirements = closure(named, wheels, environment)
        missing = [f"{one.name}{one.specifier}" for one in requirements]
        if offline or missing in ([], before):
            return found, missing
        # pip judges conditions by the machine it runs on: what the other needs besides is named.
        wanted, before = list(dict.fromkeys([*wanted, *missing])), missing
        fetch(folder, wanted, python, glibc)


def newest_of(folder: Path, python: str) -> dict[str, Wheel]:
    """The wheels in a folder that this Python can install, by name; of two, the later one."""
    number = python.replace(".", "")
    found: dict[str, Wheel] = {}
    for path in sorted(folder.glob("*.whl"), key=lambda p: p.stat().st_mtime):
        interpreter, abi = path.stem.split("-")[-3:-1]
        own = f"cp{number}" in interpreter or abi == "abi3" or "py3" in interpreter.split(".")
        if own:
            wheel = read_wheel(path)
            found[wheel.name] = wheel
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="wheels for 64-bit Arm")
    parser.add_argument("-d", "--folder", type=Path, required=True)
    parser.add_argument("--python", required=True, metavar="3.12")
    parser.add_argument("--glibc", required=True, metavar="2.39")
    parser.add_argument("--most", type=float, metavar="MB", help="refuse more")
    parser.add_argument("--offline", action="store_true", help="what is there only")
    parser.add_argument("roots", nargs="+", metavar="WHEEL|REQUIREMENT")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    found, missing = collect(
        given.folder, given.roots, given.python, given.glibc, offline=given.offline
    )
    for wheel in found:
        print(f"{wheel.megabytes:8.2f} MB  {wheel.path.name}")
    total = sum(wheel.megabytes for wheel in found)
    limit = f", at most {given.most:g} are allowed" if given.most else ""
    print(f"{total:8.2f} MB  together, {len(found)} wheels for Python {given.python}{limit}")
    if missing:
        print(f"not to be had as wheels: {', '.join(missing)}", file=sys.stderr)
        return 1
    return int(bool(given.most) and total > given.most)


if __name__ == "__main__":
    sys.exit(main())
