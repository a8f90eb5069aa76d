"""Runs a program for CUDA on the host, one operation after the other, each held to float64.

What an operation gives is compared with what float64 makes of the very operands that lay in memory,
so that a rounding early on is no difference later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgeadapt.runtime.cuda.calls import Makers, bind, run
from edgeadapt.runtime.cuda.memory import DeviceMemory
from edgeadapt.runtime.plan.compile import Plan
from edgeadapt.runtime.plan.ir import BYTES, Op, Program, Storage, numpy_dtype
from edgeadapt.runtime.plan.memory import hold_constants
from support.host_device import HostDevice
from support.interpret import packings
from support.interpret_kinds import COMPUTE, packed_part
from support.strided import wide

Array = npt.NDArray[Any]

# Relative to the norm of the result: sums of float32 products, what a result is rounded to, and
# what is multiplied.
FLOAT32, STORED, MULTIPLIED = (
    2e-6,
    {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8},
    {"f32": 0.0, "tf32": 2.0**-10, "f16": 2.0**-11, "bf16": 2.0**-8},
)


class Steps:
    """A plan bound to memory of its own on a `HostDevice`, or what is like one."""

    def __init__(
        self, plan: Plan, makers: Makers, image: Array, weights: Array, device: Any = None
    ) -> None:
        self.program, self.device = plan.program, device or HostDevice(lazy=False)
        self._at: dict[Storage, int] = {
            "arena": self.device.allocate(plan.placement.arena_bytes),
            "image": self._held(np.ascontiguousarray(image, np.float32)),
            "restored": self._held(np.full(image.shape, np.nan, np.float32)),
            "weights": self._held(np.ascontiguousarray(weights, np.float32)),
            "gradients": self._held(np.full(weights.shape, np.nan, np.float32)),
        }
        constants = {n: self._held(a) for n, a in hold_constants(self.program).items()}
        offsets = plan.placement.offsets
        self.memory = DeviceMemory(self.program, self._at, offsets, constants, self._held)
        scratch = [self._at["arena"] + offset for offset in plan.placement.scratch]
        self._weights: dict[str, Array] = {}  # what was packed
        self.calls = bind(self.program, makers, self.memory, scratch)

    def check(self) -> dict[str, float]:
        """Run every operation; the largest error of each kind, in units of what is allowed."""
        worst: dict[str, float] = {}
        for op, calls in zip(self.program.ops, self.calls, strict=True):
            before = {role: self.read(name) for role, name in op.inputs.items()}
            run(self.device, calls)
            self._weights |= {op.inputs[r]: v for r, v in before.items() if r[:6] == "weight"}
            if op.kind == "pack_together":  # seen in the convolutions that read it
                continue
            for role, expected in self._expected(op, before).items():
                found = self.read(op.outputs[role])
                sums = _sums(op, role, before)
                error = _error(found, expected, sums) / _allowed(op, role, self.program)
                assert error <= 1.0, f"{op.kind} ({op.origin}) {role}: {error:.3g} times too far"
                worst[op.kind] = max(worst.get(op.kind, 0.0), error)
        self.device.memory.check_guards("the program")
        return worst

    def read(self, name: str) -> Array:
        """A tensor's values in float64."""
        tensor = self.program.tensors[name]
        base = self.program.tensors[tensor.base]
        begin = self.memory.address(base.name)
        flat = self.device.array(begin, (base.size,), numpy_dtype(base.dtype))
        first = tensor.view.offset if tensor.view else 0
        strides = [stride * BYTES[base.dtype] for stride in tensor.strides]
        if not tensor.size:
            return np.zeros(tensor.shape)
        values = np.lib.stride_tricks.as_strided(flat[first:], tensor.shape, strides)
        return wide(values).astype(np.float64)

    def _expected(self, op: Op, before: Mapping[str, Array]) -> dict[str, Array]:
        inputs = {role: torch.from_numpy(value) for role, value in before.items()}
        if op.kind == "conv":
            (name, attributes), *_ = packings(self.program, op.inputs["weight"])
            inputs["weight"] = packed_part(torch.from_numpy(self._weights[name]), attributes)
        shapes = {role: self.program.tensors[name].shape for role, name in op.outputs.items()}
        results = COMPUTE[op.kind](inputs, shapes, op.attributes)
        return {role: results[role].numpy() for role in op.outputs}

    def _held(self, array: Array) -> int:
        address = self.device.allocate(max(array.nbytes, 1))
        if array.nbytes:
            self.device.upload(address, np.ascontiguousarray(array))
        return address


def _sums(op: Op, role: str, before: Mapping[str, Array]) -> float:
    """How large terms are that may cancel: a bias's gradient in front of a normalisation is 0."""
    if (op.kind, role) != ("conv_weight_grad", "bias"):
        return 0.0
    of = ["grad_y"] if op.attributes["bias_of"] == "grad_y" else ["x0", "x1", "x2", "x3"]
    terms = [np.abs(before[role]).sum((0, 2, 3)) for role in of if role in before]
    return float(np.linalg.norm(np.concatenate(terms)))


def _error(found: Array, expected: Array, sums: float) -> float:
    assert np.isfinite(found).all(), "not all of it was written"
    size = max(float(np.linalg.norm(expected)), 0.05 * sums)
    return float(np.linalg.norm(found - expected)) / (size or 1.0)


def _allowed(op: Op, role: str, program: Program) -> float:
    stored = STORED.get(program.tensors[op.outputs[role]].dtype, 0.0)
    return FLOAT32 + stored + 2 * MULTIPLIED[op.attributes.get("compute", "f32")]
