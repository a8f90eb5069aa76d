"""Lets cuDNN compute the convolutions of programs, where it is there and faster."""

from __future__ import annotations

import os

from edgeadapt.errors import ConfigError
from edgeadapt.runtime.cuda.calls import OWN, Made, Makers
from edgeadapt.runtime.cuda.cudnn_choice import MODES, Engines
from edgeadapt.runtime.cuda.cudnn_conv import OPERANDS, convolution
from edgeadapt.runtime.cuda.cudnn_measure import measure
from edgeadapt.runtime.cuda.cudnn_plans import open_cudnn
from edgeadapt.runtime.cuda.device import Device
from edgeadapt.runtime.cuda.memory import DeviceMemory
from edgeadapt.runtime.plan.ir import Op


def open_engines(device: Device) -> Engines | None:
    """cuDNN for a device; None where it is not installed, or $EDGEADAPT_CUDNN is "off".

    Raises:
        ConfigError: if it is something else than a mode.
    """
    mode = os.environ.get("EDGEADAPT_CUDNN", MODES[0])
    if mode not in MODES:
        raise ConfigError(f"EDGEADAPT_CUDNN must be one of {', '.join(MODES)}, got {mode!r}.")
    cudnn = None if mode == "off" else open_cudnn(device)
    return None if cudnn is None else Engines(cudnn, measure, mode)


def makers_with(engines: Engines) -> Makers:
    """Makers that take cuDNN's plan for each convolution that `Engines.choose` gave it."""

    def make(op: Op, memory: DeviceMemory, scratch: int) -> Made:
        if op.attributes.get("algorithm") != "cudnn":
            return OWN["conv"](op, memory, scratch)
        what = convolution(op, memory.program)
        plan = None if what is None else engines.plan(what)
        assert what is not None
        assert plan is not None, f"not chosen: {op}"
        names = {"x": op.inputs["x0"], "y": op.outputs["y"]}
        names |= {r: op.inputs[r] for r in ("weight", "bias", *OPERANDS) if r in op.inputs}
        addresses = {role: memory.address(name) for role, name in names.items()}
        call = engines.cudnn.call(what, plan, addresses, scratch)
        return Made((call,), plan.workspace_bytes)

    return {**OWN, "conv": make}
