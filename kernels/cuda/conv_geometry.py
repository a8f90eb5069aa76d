"""Which positions, taps and windows the tiled convolution kernels of csrc/conv.cuh work on."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from math import prod

from edgeadapt.errors import ArrayError

MAX_PHASES = 4  # along an axis, as in csrc/conv.cuh
# What is multiplied -> how packed weights are stored.
COMPUTE = {"f32": "f32", "tf32": "f32", "f16": "f16", "bf16": "bf16"}


@dataclass(frozen=True)
class ConvSpec:
    """What kind of convolution it is, the same for its weights' packing and for each call.

    ``pads`` begins with top and left; what follows does not matter, the size of y does. ``compute``
    is what is multiplied, "f32", "tf32", "f16" or "bf16"; sums are float32.

    Raises:
        ArrayError: if a number is out of range.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, ...] = (0, 0)
    dilations: tuple[int, int] = (1, 1)
    group: int = 1
    transposed: bool = False
    compute: str = "f32"

    def __post_init__(self) -> None:
        for name in ("kernel", "strides", "dilations"):
            if len(getattr(self, name)) != 2 or min(getattr(self, name)) < 1:
                raise ArrayError(
                    f"conv: {name} must be two positive numbers, got {getattr(self, name)}."
                )
        if len(self.pads) < 2 or self.group < 1:
            raise ArrayError(
                f"conv: pads must begin with top and left and group be positive, got {self.pads} "
                f"and {self.group}."
            )
        if self.compute not in COMPUTE:
            raise ArrayError(
                f"conv: compute must be one of {', '.join(COMPUTE)}, got {self.compute!r}."
            )

    @property
    def weights_dtype(self) -> str:
        """Of packed weights."""
        return COMPUTE[self.compute]

    def packed_size(self, inputs: int, outputs: int) -> int:
        """How many elements the packed weights have that lead from ``inputs`` to ``outputs``.

        They are (group, u, v, inputs / group, outputs / group padded with zeros to 8 n).
        """
        of_group = inputs // self.group * padded(outputs // self.group)
        return self.group * prod(self.kernel) * of_group


def padded(channels: int) -> int:
    """How many output channels of a group packed weights have."""
    return -(-channels // 8) * 8


class AxisArgs(ctypes.Structure):
    """`ConvAxis` of csrc/conv.cuh: one axis of one phase."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            "taps", "first_tap", "tap_step", "offset", "offset_step", "first", "count",
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution as `ConvArgs` has it.

    A position sees ``span`` pixels of the input from ``origin + position * step`` on.
    """

    phases: tuple[AxisArgs, ...]
    step: int
    out_step: int
    origin: int
    span: int

    @property
    def positions(self) -> int:
        """Of the phase that has most."""
        return max(int(phase.count) for phase in self.phases)

    @property
    def taps(self) -> int:
        """Of the phase that has most."""
        return max(int(phase.taps) for phase in self.phases)

    def three_neighbours(self) -> bool:
        """Whether there are three taps, and both they and the positions are a pixel apart."""
        only = self.phases[0]
        steps = (self.step, only.taps, only.offset_step)
        return len(self.phases) == 1 and steps == (1, 3, 1)


def axis(spec: ConvSpec, of: int, extent: int) -> Axis:
    """Axis ``of`` (0: rows, 1: columns) for an output of ``extent`` pixels."""
    kernel, stride = spec.kernel[of], spec.strides[of]
    pad, dilation = spec.pads[of], spec.dilations[of]
    if not spec.transposed:
        phase = AxisArgs(kernel, 0, 1, 0, dilation, 0, extent)
        return Axis((phase,), stride, 1, -pad, (kernel - 1) * dilation + 1)
    # Pixel first + m * stride of y sees pixel m + offset through a tap, where first + pad =
    # tap * dilation + offset * stride.
    seen = [
        [
            ((first + pad - tap * dilation) // stride, tap)
            for tap in reversed(range(kernel))
            if (first + pad - tap * dilation) % stride == 0
        ]
        for first in range(stride)
    ]
    offsets = [offset for phase in seen for offset, _ in phase] or [0]
    origin = min(offsets)
    phases = tuple(
        _phase(taps, origin, first, -(-(extent - first) // stride))
        for first, taps in enumerate(seen)
    )
    return Axis(phases, 1, stride, origin, max(offsets) - origin + 1)


def _phase(seen: list[tuple[int, int]], origin: int, first: int, count: int) -> AxisArgs:
    """Of taps (offset, number) in the order of their offsets, which are equally far apart."""
    if not seen:
        return AxisArgs(0, 0, 0, 0, 0, first, count)
    offset, tap = seen[0]
    next_offset, next_tap = seen[1] if len(seen) > 1 else seen[0]
    steps = (next_tap - tap, next_offset - offset)
    return AxisArgs(len(seen), tap, steps[0], offset - origin, steps[1], first, count)
