"""The GPU that an engine is for: `sm_86`, or a device of `runtime/cuda/devices.json` by name."""

from __future__ import annotations

import re

from edgeadapt.errors import BackendError, ConfigError
from edgeadapt.runtime.cuda.device import DeviceInfo
from edgeadapt.runtime.cuda.devices import device_names, find_device
from edgeadapt.runtime.tensorrt.library import Capability, Library


def architecture(capability: Capability) -> str:
    """As compilers call it: "sm_86"."""
    major, minor = capability
    return f"sm_{major}{minor}"


def parse_target(text: str) -> Capability:
    """The compute capability that ``text`` names.

    Raises:
        ConfigError: if it is neither an architecture nor a device that is known.
    """
    found = re.fullmatch(r"sm_([1-9]\d?)(\d)", text)
    if found is not None:
        return int(found[1]), int(found[2])
    if text in device_names():
        return find_device(text).compute_capability
    raise ConfigError(
        f"target must be an architecture such as sm_86, or one of {', '.join(device_names())}; "
        f"got {text!r}."
    )


def check_target(library: Library, target: Capability, here: DeviceInfo | None) -> None:
    """Raise a BackendError if ``library`` cannot build for ``target`` on this machine.

    ``here`` is the GPU in the machine, None if there is none.
    """
    name = architecture(target)
    if library.builds_ahead:
        known = library.architectures()
        if target not in known:
            names = ", ".join(map(architecture, known))
            raise BackendError(
                f"{library.title} builds for {names}, not for {name}.",
                "on a Jetson or a data centre's GPU, build on the device itself with TensorRT.",
            )
    elif here is None or here.capability != target:
        machine = "no GPU" if here is None else f"{here.name} ({here.architecture})"
        raise BackendError(
            f"{library.title} builds on the device that runs the engine only: {name} was asked "
            f"for, and this machine has {machine}.",
            f"run the same command on the device, or name another library with --library "
            f"tensorrt-rtx: it builds ahead for {_ahead()}.",
        )


def _ahead() -> str:
    return "GeForce and RTX from sm_75 on, not for Jetsons"
