"""Lets cuDNN compute convolutions and their gradients, where it is there and faster."""

from __future__ import annotations

import os
from math import inf

from edgeadapt.errors import ConfigError
from edgeadapt.runtime.cuda.calls import OWN, Made, Makers
from edgeadapt.runtime.cuda.cudnn_choice import MODES, SECONDS, Engines
from edgeadapt.runtime.cuda.cudnn_conv import OPERANDS, Convolution, convolution
from edgeadapt.runtime.cuda.cudnn_measure import measure
from edgeadapt.runtime.cuda.cudnn_plans import BuiltPlan, open_cudnn
from edgeadapt.runtime.cuda.cudnn_work import Gradients, convolution_work, weight_grad_work
from edgeadapt.runtime.cuda.device import Device
from edgeadapt.runtime.cuda.memory import DeviceMemory
from edgeadapt.runtime.plan.ir import Op


def open_engines(device: Device) -> Engines | None:
    """cuDNN for a device; None where it is not installed, or $EDGEADAPT_CUDNN is "off".

    Raises:
        ConfigError: if it is something else than a mode, or $EDGEADAPT_CUDNN_SECONDS no time.
    """
    mode = os.environ.get("EDGEADAPT_CUDNN", MODES[0])
    if mode not in MODES:
        raise ConfigError(f"EDGEADAPT_CUDNN must be one of {', '.join(MODES)}, got {mode!r}.")
    text = os.environ.get("EDGEADAPT_CUDNN_SECONDS", str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < inf:
        raise ConfigError(f"EDGEADAPT_CUDNN_SECONDS must be a number of seconds, got {text!r}.")
    cudnn = None if mode == "off" else open_cudnn(device)
    return None if cudnn is None else Engines(cudnn, measure, mode, seconds=seconds)


def makers_with(engines: Engines) -> Makers:
    """Makers that take cuDNN's plan for what `Engines.choose` gave it."""

    def conv(op: Op, memory: DeviceMemory, scratch: int) -> Made:
        if (found := _plan(engines, op, memory)) is None:
            return OWN["conv"](op, memory, scratch)
        names = {"x": op.inputs["x0"], "y": op.outputs["y"]}
        names |= {r: op.inputs[r] for r in ("weight", "bias", *OPERANDS) if r in op.inputs}
        addresses = {role: memory.address(name) for role, name in names.items()}
        work = convolution_work(engines.cudnn, *found, addresses, scratch)
        return Made(work.calls, work.scratch_bytes)

    def conv_weight_grad(op: Op, memory: DeviceMemory, scratch: int) -> Made:
        if (found := _plan(engines, op, memory)) is None:
            return OWN["conv_weight_grad"](op, memory, scratch)
        images = {"x": op.inputs["x0"], "grad_y": op.inputs["grad_y"]}
        bias, of = op.outputs.get("bias"), found[0].bias_of
        gradients = Gradients(
            memory.tensor(op.outputs["weight"]),
            None if bias is None else memory.tensor(bias),
            None if bias is None else memory.image(images[of]),
            add_weight="sum_weight" in op.inputs,
            add_bias="sum_bias" in op.inputs,
        )
        addresses = {role: memory.address(name) for role, name in images.items()}
        work = weight_grad_work(engines.cudnn, *found, addresses, gradients, scratch)
        return Made(work.calls, work.scratch_bytes)

    return {**OWN, "conv": conv, "conv_weight_grad": conv_weight_grad}


def _plan(engines: Engines, op: Op, memory: DeviceMemory) -> tuple[Convolution, BuiltPlan] | None:
    """What cuDNN was given, and its plan; None if it was not."""
    if op.attributes.get("algorithm") != "cudnn":
        return None
    what = convolution(op, memory.program)
    plan = None if what is None else engines.plan(what)
    assert what is not None
    assert plan is not None, f"not chosen: {op}"
    return what, plan
