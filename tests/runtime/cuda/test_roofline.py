"""The roofline, by hand for a step of three operations, and what holds for every one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeadapt.runtime.backend import PRECISIONS
from edgeadapt.runtime.cuda.devices import DeviceFigures, device_names, find_device
from edgeadapt.runtime.cuda.roofline import roofline
from edgeadapt.runtime.plan.cost import total_flops, traffic
from edgeadapt.runtime.plan.ir import Program
from support.programs import PLAIN, Builder

# 1000 bytes, 100 operations in float32 and 800 in 16 bits a second.
SLOW = replace(
    find_device("orin-nano"),
    bytes_per_second=1e3,
    flops_per_second={"fp32": 100.0, "tf32": 400.0, "fp16": 800.0, "bf16": 800.0},
)


def step(channels: int = 2, height: int = 3, width: int = 5) -> Program:
    """A convolution, something on every element, and a weight gradient."""
    b = Builder()
    shape, weight = (1, channels, height, width), (channels, channels, 3, 3)
    b.tensor("x", shape, storage="image")
    b.tensor("w", weight, storage="weights")
    b.tensor("y", shape)
    b.tensor("z", shape)
    b.tensor("g", weight, storage="gradients")
    b.conv("x", "w", "y", {})
    b.pointwise("z", (("add", (("x", 0), ("c", 1.0))),), "y")
    b.op("conv_weight_grad", {"x0": "x", "grad_y": "z"}, {"weight": "g"}, bias_of="grad_y",
         **{name: PLAIN[name] for name in ("kernel", "strides", "pads", "dilations",
                                           "group")})  # fmt: skip
    return b.program("g")


def test_by_hand():
    """2 x 3 x 5 = 30 elements, 2 x 2 x 3 x 3 = 36 weights, each of 4 bytes."""
    multiplied, moved = 2 * 30 * 2 * 9, 4 * (30 + 36 + 30)
    found = roofline(step(), SLOW, "fp16")
    assert [op.kind for op in found.ops] == ["conv", "pointwise", "conv_weight_grad"]
    assert [op.flops for op in found.ops] == [multiplied, 30, multiplied]
    assert [op.moved_bytes for op in found.ops] == [moved, 240, moved]
    # Both convolutions wait for arithmetic in 16 bits, the addition, though in float32, too.
    assert [op.flop_seconds for op in found.ops] == pytest.approx([1.35, 0.3, 1.35])
    assert [op.byte_seconds for op in found.ops] == pytest.approx([0.384, 0.24, 0.384])
    assert found.seconds == pytest.approx(3.0)
    assert found.flop_seconds == pytest.approx(3.0)
    assert found.byte_seconds == pytest.approx(1.008)
    assert found.memory_bound_seconds == 0
    assert (found.flops, found.moved_bytes, found.launches) == (2 * multiplied + 30, 1008, 3)


def test_each_operation_waits_for_what_is_slower_there():
    faster = replace(SLOW, flops_per_second={**SLOW.flops_per_second, "fp32": 200.0, "tf32": 1e4})
    found = roofline(step(), faster, "tf32", launches=7)
    assert [op.bound_by_memory for op in found.ops] == [True, True, True]
    assert found.seconds == pytest.approx(0.384 + 0.24 + 0.384)
    found = roofline(step(), faster, "fp32")
    assert [op.bound_by_memory for op in found.ops] == [False, True, False]
    assert found.seconds == pytest.approx(5.4 + 0.24 + 5.4)
    assert found.memory_bound_seconds == pytest.approx(0.24)


def test_launches_are_those_of_the_operations_unless_said_otherwise():
    assert roofline(step(), SLOW, "fp32").launches == 3
    assert roofline(step(), SLOW, "fp32", launches=7).launches == 7


devices = st.sampled_from([find_device(key) for key in device_names()])
sizes = st.tuples(st.integers(1, 64), st.integers(1, 40), st.integers(1, 40))
factors = st.floats(1, 100)


def scaled(device: DeviceFigures, memory: float, arithmetic: float) -> DeviceFigures:
    rates = {name: rate * arithmetic for name, rate in device.flops_per_second.items()}
    memory *= device.bytes_per_second
    return replace(device, bytes_per_second=memory, flops_per_second=rates)


@settings(deadline=None, max_examples=40)
@given(devices, st.sampled_from(PRECISIONS), sizes, factors, factors)
def test_more_of_anything_never_takes_longer(device, precision, size, memory, arithmetic):
    program = step(*size)
    before = roofline(program, device, precision)
    after = roofline(program, scaled(device, memory, arithmetic), precision)
    assert after.seconds <= before.seconds
    assert after.byte_seconds == pytest.approx(before.byte_seconds / memory)
    assert after.flop_seconds == pytest.approx(before.flop_seconds / arithmetic)
    both = roofline(program, scaled(device, memory, memory), precision)
    assert both.seconds == pytest.approx(before.seconds / memory)


@settings(deadline=None, max_examples=40)
@given(devices, st.sampled_from(PRECISIONS), sizes)
def test_a_program_takes_as_long_as_the_slower_and_at_most_both(device, precision, size):
    program = step(*size)
    found = roofline(program, device, precision)
    assert max(found.flop_seconds, found.byte_seconds) <= found.seconds * (1 + 1e-12)
    assert found.seconds <= found.flop_seconds + found.byte_seconds
    assert 0 <= found.memory_bound_seconds <= found.seconds
    assert found.flops == total_flops(program)
    assert found.moved_bytes == sum(traffic(op, program) for op in program.ops)
    assert found.seconds <= roofline(program, device, "fp32").seconds
