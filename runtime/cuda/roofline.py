"""The least time a program can take on a device: each operation at its slower of two limits."""

from __future__ import annotations

from dataclasses import dataclass

from edgeadapt.runtime.backend import Precision
from edgeadapt.runtime.cuda.devices import DeviceFigures
from edgeadapt.runtime.plan.cost import flops, traffic
from edgeadapt.runtime.plan.ir import Op, Program

TENSOR_CORES = ("conv", "conv_weight_grad")  # kinds that multiply on them


@dataclass(frozen=True)
class OpTime:
    """What one operation takes at least."""

    kind: str
    flops: int
    moved_bytes: int  # if each operand crosses to memory once
    flop_seconds: float
    byte_seconds: float

    @property
    def seconds(self) -> float:
        """Arithmetic and traffic overlap within an operation, so the longer of the two."""
        return max(self.flop_seconds, self.byte_seconds)

    @property
    def bound_by_memory(self) -> bool:
        """Whether it is the traffic."""
        return self.byte_seconds >= self.flop_seconds


@dataclass(frozen=True)
class Roofline:
    """What a program takes at least, its operations running one after the other."""

    ops: tuple[OpTime, ...]
    launches: int

    @property
    def seconds(self) -> float:
        """The sum over the operations; launching them is not in it."""
        return sum(op.seconds for op in self.ops)

    @property
    def flop_seconds(self) -> float:
        """With memory infinitely fast."""
        return sum(op.flop_seconds for op in self.ops)

    @property
    def byte_seconds(self) -> float:
        """With arithmetic infinitely fast."""
        return sum(op.byte_seconds for op in self.ops)

    @property
    def memory_bound_seconds(self) -> float:
        """The part of ``seconds`` in operations that wait for memory."""
        return sum(op.seconds for op in self.ops if op.bound_by_memory)

    @property
    def flops(self) -> int:
        """Of all operations."""
        return sum(op.flops for op in self.ops)

    @property
    def moved_bytes(self) -> int:
        """Of all operations."""
        return sum(op.moved_bytes for op in self.ops)


def roofline(
    program: Program, device: DeviceFigures, precision: Precision, launches: int | None = None
) -> Roofline:
    """The least time of ``program`` on ``device``.

    Convolutions and their gradients multiply at the rate of ``precision``, everything else computes
    in float32. What is in a cache is counted as if it were not. ``launches`` is what the operations
    become; None: one each.
    """
    ops = tuple(_time_of(op, program, device, precision) for op in program.ops)
    return Roofline(ops, len(ops) if launches is None else launches)


def _time_of(op: Op, program: Program, device: DeviceFigures, precision: Precision) -> OpTime:
    work, moved = flops(op, program), traffic(op, program)
    rate = device.flops_per_second[precision if op.kind in TENSOR_CORES else "fp32"]
    return OpTime(op.kind, work, moved, work / rate, moved / device.bytes_per_second)
