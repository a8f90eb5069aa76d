"""The peak memory of one peer or one session, in a process of its own.

    python -m edgeadapt.benchmarks.memory < work.json

What counts is what comes on top of the libraries, which have done the same on a tiny image before:
weights, engine, image, and all that a step holds.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.benchmarks.peers import Work, make_peer
from edgeadapt.benchmarks.tradeoff import Setup, restore_with
from edgeadapt.bundle import open_bundle
from edgeadapt.errors import EdgeadaptError
from edgeadapt.runtime.session import Session
from edgeadapt.testing import photo

U8 = npt.NDArray[np.uint8]
_TILE = 64
_CALLS = 3  # an engine may grow in its second call; later ones repeat it
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mib(name: str, operation: str, work: Work) -> float:
    """MiB that ``operation``, "step" or "restore", of the peer ``name`` takes at its peak.

    Raises:
        EdgeadaptError: with the error of the process, if it fails.
    """
    return _ask(name, {"peer": name, "operation": operation, "work": asdict(work)})


def session_peak_mib(setup: Setup, bundle: Path) -> float:
    """MiB that an adaptation and restoration as ``setup`` says take at their peak.

    Raises:
        EdgeadaptError: with the error of the process, if it fails.
    """
    name = f"{setup.bundle} on {setup.backend}"
    return _ask(name, {"setup": asdict(setup), "bundle": str(bundle)})


def _ask(name: str, order: dict[str, Any]) -> float:
    """Have another process measure; MiB."""
    done = subprocess.run(
        [sys.executable, "-m", "edgeadapt.benchmarks.memory"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    if done.returncode != 0:
        reason = _reason(done.stderr) or f"the process ended with {done.returncode}"
        raise EdgeadaptError(
            f"the memory of {name} could not be measured ({reason}).",
            "--no-memory measures time alone.",
        )
    return float(json.loads(done.stdout)["peak_bytes"]) / 2**20


def measure(name: str, operation: str, work: Work) -> int:
    """Bytes at the peak of a few steps or restorations, less those before the peer was opened."""
    bundle = open_bundle(work.bundle)

    def opened(height: int, width: int) -> Callable[[], Any]:
        smaller = replace(work, height=height, width=width)
        peer = make_peer(name, bundle, smaller, picture=_picture(height, width))
        return getattr(peer, operation)

    return _peak_of(opened, work.height, work.width)


def measure_session(setup: Setup, bundle: str) -> int:
    """Bytes at the peak of a few adaptations, less those before the session was opened."""

    def opened(height: int, width: int) -> Callable[[], Any]:
        session = Session(bundle, setup.backend, setup.threads, setup.precision)
        image = _picture(height, width)

        def call() -> None:
            restore_with(session, setup, image)
            session.reset()

        return call

    return _peak_of(opened, setup.height, setup.width)


def _peak_of(opened: Callable[[int, int], Callable[[], Any]], height: int, width: int) -> int:
    """``opened`` gives, for a size, what is called."""
    # Libraries import, start threads and make caches when they are first used.
    opened(1, 1)()
    gc.collect()
    before = _mark_bytes()
    call = opened(height, width)
    for _ in range(_CALLS):
        call()
    return _peak_bytes() - before


def _picture(height: int, width: int) -> U8:
    """A photo again and again: to draw a large one takes more memory than some engines."""
    tile = photo(0, _TILE, _TILE)
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    return np.tile(tile, (rows, columns, 1))[:height, :width].copy()


def _reason(traceback: str) -> str:
    """The line that names the exception; some libraries print advice below it."""
    lines = traceback.strip().splitlines()
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return (named or lines or [""])[-1].rstrip(".")[:300]


def _mark_bytes() -> int:
    """Resident bytes now. Forgets, where the system can, that there were ever more."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")
    return _peak_bytes()


def _peak_bytes() -> int:
    """The largest size this process has had."""
    if _STATUS.exists():
        # Not ru_maxrss: on Linux that remembers the process that started this one.
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Read an order on stdin, print the peak on stdout."""
    order = json.load(sys.stdin)
    if "setup" in order:
        found = measure_session(Setup(**order["setup"]), order["bundle"])
    else:
        found = measure(order["peer"], order["operation"], Work(**order["work"]))
    sys.stdout.write(json.dumps({"peak_bytes": found}) + "\n")


if __name__ == "__main__":
    main()
