"""What only the libraries themselves can say; run as a program of its own, which may crash.

    python -m edgeadapt.runtime.doctor.probe driver      the newest CUDA that the driver knows
    python -m edgeadapt.runtime.doctor.probe libraries   whether PyCUDA and cuda-bindings work

Prints one JSON object: {"cuda": [13, 2]} or {"error": ..., "hint": ...}.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

from edgeadapt.errors import BackendError, one_line
from edgeadapt.runtime.doctor.system import Command, System

_MODULE = "edgeadapt.runtime.doctor.probe"  # not __name__, which is __main__ there
DRIVER: Command = (sys.executable, "-m", _MODULE, "driver")
LIBRARIES: Command = (sys.executable, "-m", _MODULE, "libraries")


def driver() -> dict[str, Any]:
    """Ask libcuda, which need not be initialised for that."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        function = library.cuDriverGetVersion
    except (OSError, AttributeError) as error:
        return {"error": one_line(error)}
    function.argtypes, function.restype = [ctypes.POINTER(ctypes.c_int)], ctypes.c_int
    version = ctypes.c_int()
    code = function(ctypes.byref(version))
    if code:
        return {"error": f"cuDriverGetVersion: error {code}"}
    return {"cuda": [version.value // 1000, version.value % 1000 // 10]}


def libraries() -> dict[str, Any]:
    """Import what the CUDA engine does."""
    from edgeadapt.runtime.cuda.pycuda_import import import_libraries

    try:
        found = import_libraries()
    except BackendError as error:
        return {"error": error.message, "hint": error.hint}
    return {"cuda": list(found.knows)}


def asked(system: System, command: Command) -> dict[str, Any]:
    """What a probe found; {"error"} if it crashed or took too long."""
    try:
        found = json.loads(system.said(command) or "null")
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    return {"error": f"the process that asked (probe {command[-1]}) gave no answer"}


def driver_cuda(system: System) -> tuple[int, int] | None:
    """The newest CUDA that the installed driver knows."""
    found = asked(system, DRIVER).get("cuda")
    return (int(found[0]), int(found[1])) if isinstance(found, list) and len(found) == 2 else None


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"driver": driver, "libraries": libraries}[sys.argv[1]]()) + "\n")
