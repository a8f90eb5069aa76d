"""Concatenations are read in parts, or written in parts; none is left."""

from __future__ import annotations

import pytest

from edgeadapt.runtime.plan.fuse_clean import drop_dead
from edgeadapt.runtime.plan.fuse_concat import read_parts, write_parts
from edgeadapt.runtime.plan.ir import Program
from support.fusing import assert_same, kinds, only
from support.programs import PLAIN, WINDOW, Builder

EXP = (("exp", (("x", 0),)),)


def read(program: Program) -> Program:
    return assert_same(program, drop_dead(read_parts(program)))


def joined(b: Builder, y: str, *parts: str, axis: int = 1) -> str:
    """The concatenation ``y`` of parts, which are given unless they are there already."""
    for name in parts:
        if name not in b.tensors:
            b.tensor(name, (1, 2, 6, 5), storage="weights")
    shape = list(b.tensors[parts[0]].shape)
    shape[axis] = sum(b.tensors[name].shape[axis] for name in parts)
    b.tensor(y, shape)
    return b.op("concat", {f"x{i}": n for i, n in enumerate(parts)}, {"y": y}, axis=axis)


def convolved(b: Builder, x: str, group: int = 1) -> str:
    """A convolution of x to three channels, or of each group to one."""
    shape, count = b.tensors[x].shape, 3 if group == 1 else group
    b.tensor("w", (count, shape[1] // group, 3, 3), storage="weights")
    b.tensor("y", (1, count, *shape[2:]))
    return b.conv(x, "w", "y", {}, group=group)


def test_a_convolution_and_its_weight_gradient_read_the_parts():
    b = Builder()
    convolved(b, joined(b, "c", "p", "q", "p"))
    b.tensor("grad", (3, 6, 3, 3), storage="gradients")
    at = {name: PLAIN[name] for name in WINDOW}
    b.op("conv_weight_grad", {"x0": "c", "grad_y": "y"}, {"weight": "grad"}, bias_of="y", **at)
    b.ops[-1] = b.ops[-1].with_attributes(bias_of="grad_y")
    fused = read(b.program("grad"))
    assert kinds(fused) == {"conv": 1, "conv_weight_grad": 1}
    for op in fused:
        assert [op.inputs[role] for role in ("x0", "x1", "x2")] == ["p", "q", "p"]


def test_nested_concatenations_are_flattened_as_far_as_four_sources_go():
    b = Builder()
    joined(b, "c", "p", "q")
    joined(b, "d", "r", "s", "t")
    convolved(b, joined(b, "e", "c", "d", "u"))
    fused = read(b.program("y"))
    op = only(fused, "conv")
    assert [op.inputs[f"x{i}"] for i in range(4)] == ["p", "q", "d", "u"]
    assert kinds(fused) == {"conv": 1, "concat": 1}


def five_parts(b: Builder) -> str:
    return convolved(b, joined(b, "c", "p", "q", "r", "s", "t"))


def another_axis(b: Builder) -> str:
    return convolved(b, joined(b, "c", "p", "q", axis=2))


def a_grouped_convolution(b: Builder) -> str:
    return convolved(b, joined(b, "c", "p", "q"), group=2)


def a_part_with_scattered_rows(b: Builder) -> str:
    b.tensor("wide", (1, 2, 6, 10), storage="weights")
    b.view("p", "wide", (1, 2, 6, 5), strides=(120, 60, 10, 2))
    return convolved(b, joined(b, "c", "p", "q"))


@pytest.mark.parametrize(
    "make", [five_parts, another_axis, a_grouped_convolution, a_part_with_scattered_rows]
)
def test_what_cannot_be_read_in_parts(make):
    b = Builder()
    program = b.program(make(b))
    assert kinds(read(program)) == kinds(program)


def written_in_parts(b: Builder, *outputs: str) -> Program:
    fused = assert_same(b.program(*outputs), write_parts(b.program(*outputs)))
    assert "concat" not in kinds(fused)
    return fused


def computed(b: Builder, *names: str) -> None:
    """The parts, computed from something given."""
    for name in names:
        b.tensor(f"{name}.x", (1, 2, 6, 5), storage="weights")
        b.tensor(name, (1, 2, 6, 5))
        b.pointwise(name, EXP, f"{name}.x")


def test_parts_that_only_the_concatenation_reads_are_computed_in_place():
    b = Builder()
    computed(b, "p", "q")
    joined(b, "c", "p", "q")
    fused = written_in_parts(b, "c")
    assert [op.outputs["y"] for op in fused] == ["p", "q"]
    assert [fused.tensors[name].view.offset for name in "pq"] == [0, 60]


def test_a_concatenation_within_another_is_computed_in_place_as_well():
    b = Builder()
    computed(b, "p", "q", "r")
    joined(b, "c", "p", "q")
    joined(b, "d", "c", "r")
    fused = written_in_parts(b, "d")
    assert kinds(fused) == {"pointwise": 3}
    assert {fused.base(name) for name in "pqr"} == {"d"}


def test_what_is_read_elsewhere_given_or_joined_twice_is_copied():
    b = Builder()
    computed(b, "p", "q", "r")
    b.tensor("s", (1, 2, 6, 5))
    joined(b, "c", "p", "q", "q", "given")
    b.pointwise("s", EXP, "p")
    fused = written_in_parts(b, "c", "s")
    copies = [op for op in fused if op.attributes["expression"][0][0] == "copy"]
    assert [op.inputs["x0"] for op in copies] == ["p", "q", "given"]


def test_parts_of_rows_are_copied_since_their_place_is_not_contiguous():
    b = Builder()
    computed(b, "p", "q")
    joined(b, "c", "p", "q", axis=2)
    assert kinds(written_in_parts(b, "c")) == {"pointwise": 4}
