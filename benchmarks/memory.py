"""The peak memory of one peer, in a process of its own.

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
from dataclasses import asdict, replace
from pathlib import Path

from edgeadapt.benchmarks.peers import Work, make_peer
from edgeadapt.bundle import open_bundle
from edgeadapt.errors import EdgeadaptError

_CALLS = 3  # an engine may grow in its second call; later ones repeat it
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mib(name: str, operation: str, work: Work) -> float:
    """MiB that ``operation``, "step" or "restore", of the peer ``name`` takes at its peak.

    Raises:
        EdgeadaptError: with the error of the process, if it fails.
    """
    order = json.dumps({"peer": name, "operation": operation, "work": asdict(work)})
    done = subprocess.run(
        [sys.executable, "-m", "edgeadapt.benchmarks.memory"],
        input=order,
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
    """Bytes at the peak of a few calls, less those before the peer was opened."""
    bundle = open_bundle(work.bundle)
    # Libraries import, start threads and make caches when they are first used.
    getattr(make_peer(name, bundle, replace(work, height=1, width=1)), operation)()
    gc.collect()
    before = _mark_bytes()
    peer = make_peer(name, bundle, work)
    for _ in range(_CALLS):
        getattr(peer, operation)()
    return _peak_bytes() - before


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
    found = measure(order["peer"], order["operation"], Work(**order["work"]))
    sys.stdout.write(json.dumps({"peak_bytes": found}) + "\n")


if __name__ == "__main__":
    main()
