"""Programs drawn at random, for properties that every plan must have."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from edgeadapt.runtime.plan.ir import Program
from support.programs import WINDOW, Builder

SIZES = [(1, 1, 3, 5), (1, 2, 4, 4), (1, 3, 8, 2)]
ADD = (("add", (("x", 0), ("x", 1))),)
SCALE = (("mul", (("x", 0), ("c", 1.5))),)


@st.composite
def programs(draw: DrawFn) -> Program:
    """Elementwise sums, convolutions with all their operands, views of a shared buffer and running
    sums, in any order; some results are outputs, some are never read."""
    b = Builder()
    for index, shape in enumerate(SIZES):
        b.constant(f"c{index}", np.random.default_rng(index).standard_normal(shape))
        b.constant(
            f"k{index}", np.random.default_rng(index).standard_normal((shape[1],) * 2 + (3, 3))
        )
    known: list[list[str]] = [[f"c{index}"] for index in range(len(SIZES))]
    sums: dict[int, str] = {}
    for step in range(draw(st.integers(3, 25))):
        size = draw(st.integers(0, len(SIZES) - 1))
        kind = draw(st.sampled_from(["add", "scale", "conv", "halves", "sum"]))
        operands = [draw(st.sampled_from(known[size])) for _ in range(3)]
        name = f"t{step}"
        if kind == "sum":
            sums[size] = _running_sum(b, name, size, operands, sums.get(size))
            continue
        b.tensor(name, SIZES[size])
        if kind == "add":
            b.pointwise(name, ADD, *operands[:2])
        elif kind == "scale":
            b.pointwise(name, SCALE, operands[0])
        elif kind == "conv":
            extra = dict(zip(("add0", "mask"), operands[1:], strict=True))
            b.conv(operands[0], f"k{size}", name, extra, slope=0.1, mask_slope=0.2)
        else:
            _two_halves(b, name, operands[:2])
        known[size].append(name)
    written = [name for names in known for name in names if name.startswith("t")]
    kept = draw(st.lists(st.sampled_from(written), max_size=3, unique=True)) if written else []
    return b.program(*kept, *sums.values())


def _running_sum(b: Builder, name: str, size: int, operands: list[str], before: str | None) -> str:
    channels = SIZES[size][1]
    b.tensor(name, (channels, channels, 3, 3))
    inputs = {"x0": operands[0], "grad_y": operands[1]}
    inputs |= {"sum_weight": before} if before else {}
    at = {"kernel": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    assert set(at) | {"group"} == set(WINDOW)
    return b.op("conv_weight_grad", inputs, {"weight": name}, group=1, bias_of="grad_y", **at)


def _two_halves(b: Builder, name: str, operands: list[str]) -> None:
    """Write the rows of ``name`` in two operations, each reading the same rows of its operand."""
    _, channels, height, width = b.tensors[name].shape
    plane, begin = height * width, 0
    for part, rows in enumerate((height // 2, height - height // 2)):
        shape, strides = (1, channels, rows, width), (channels * plane, plane, width, 1)
        window = {"offset": begin * width, "strides": strides}
        target = b.view(f"{name}.{part}", name, shape, **window)
        source = b.view(f"{name}.from{part}", operands[part], shape, **window)
        b.pointwise(target, SCALE, source)
        begin += rows
