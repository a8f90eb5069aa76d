"""No two tensors that are in use at the same time share a byte of the arena."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from edgeadapt.runtime.plan.lifetimes import live_bytes, pieces
from edgeadapt.runtime.plan.place import place
from support.interpret import run
from support.programs import PLAIN, Builder
from support.random_programs import ADD, programs
from support.training_program import random_weights, training_step

IMAGE = np.random.default_rng(0).standard_normal((1, 3, 8, 8))
SHAPE = (1, 3, 8, 8)
MAY_OVERWRITE = {"conv": {"add0", "add1", "post", "mask"}, "pointwise": {"x0", "x1", "x2"}}


def some_scratch(op, program):
    """A size for each operation that has nothing to do with its tensors."""
    return 100 * (len(op.origin) % 3) + 8 * len(op.inputs)


def bytes_of(program, offsets, name):
    """Which bytes of the arena a tensor occupies, one for one."""
    tensor = program.tensors[name]
    begin = offsets[tensor.base] // 4 + (tensor.view.offset if tensor.view else 0)
    index = np.zeros(tensor.shape, np.int64) + begin
    for axis, stride in enumerate(tensor.strides):
        index += stride * np.arange(tensor.shape[axis]).reshape(
            [-1] + [1] * (index.ndim - 1 - axis)
        )
    return (4 * index.reshape(-1)[:, None] + np.arange(4)).reshape(-1)


def check_owners(program, placement, scratch_bytes):
    """Run the program on a map that holds for each byte whose value it is."""
    owner = np.full(placement.arena_bytes, "", dtype="U40")
    in_arena = {n for n, t in program.tensors.items() if program.tensors[t.base].storage == "arena"}
    for op, begin in zip(program.ops, placement.scratch, strict=True):
        reads = {r: n for r, n in op.inputs.items() if n in in_arena}
        writes = {r: n for r, n in op.outputs.items() if n in in_arena}
        scratch = f"scratch of {op.origin}"
        owner[begin : begin + scratch_bytes(op, program)] = scratch
        for role, name in writes.items():
            place_of = bytes_of(program, placement.offsets, name)
            assert scratch not in owner[place_of], f"{name} is in the {scratch}"
            for other, operand in reads.items():
                shared = np.intersect1d(place_of, bytes_of(program, placement.offsets, operand))
                if len(shared) and not other.startswith("sum_"):
                    assert other in MAY_OVERWRITE[op.kind], f"{role} {name} overwrites {other}"
                    assert len(shared) == len(place_of), "in place is all or nothing"
                    assert program.tensors[operand].view is None
        for name in reads.values():
            found = set(owner[bytes_of(program, placement.offsets, name)])
            assert found == {program.base(name)}, f"{op.origin}: {name} holds {found}"
        for name in writes.values():
            owner[bytes_of(program, placement.offsets, name)] = program.base(name)
    for name in program.outputs:
        if name in in_arena:
            assert set(owner[bytes_of(program, placement.offsets, name)]) == {program.base(name)}


@given(programs())
def test_every_byte_belongs_to_who_reads_it(program):
    placement = place(program, some_scratch)
    check_owners(program, placement, some_scratch)
    assert all(offset % 64 == 0 for offset in (*placement.offsets.values(), *placement.scratch))
    assert placement.lower_bound_bytes == max(live_bytes(program, some_scratch))
    assert placement.lower_bound_bytes <= placement.arena_bytes
    assert placement.arena_bytes <= 1.3 * placement.lower_bound_bytes + 256
    assert place(program, some_scratch) == placement


@settings(max_examples=20)
@given(programs())
def test_a_program_computes_the_same_in_one_arena(program):
    apart, together = run(program, IMAGE, {}), run(program, IMAGE, {}, place(program).offsets)
    for name, values in apart.items():
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(together[name], values)


def test_a_training_step_fits_its_bound_and_computes_the_same():
    program = training_step()
    placement = place(program, some_scratch)
    check_owners(program, placement, some_scratch)
    assert placement.arena_bytes <= 1.02 * placement.lower_bound_bytes
    weights = random_weights(program)
    apart, together = run(program, IMAGE, weights), run(program, IMAGE, weights, placement.offsets)
    for name, values in apart.items():
        np.testing.assert_array_equal(together[name], values)


@pytest.mark.parametrize("blocks", [3, 14])
def test_a_large_step_fits_as_well(blocks):
    program = training_step((16, 32, 64), blocks, (720, 1280))
    placement = place(program, lambda op, program: 1 << 20)
    assert placement.arena_bytes <= 1.02 * placement.lower_bound_bytes


def chain(kind, operand, **at):
    """z -> y, where the operation that makes y reads z as ``operand``, and x besides."""
    b = Builder()
    b.constant("c", np.zeros(SHAPE)), b.constant("weight", np.zeros((3, 3, 3, 3)))
    for name in ("x", "z", "y"):
        b.tensor(name, SHAPE)
    for name in ("x", "z"):
        b.pointwise(name, ADD, "c", "c")
    if kind == "pointwise":
        b.pointwise("y", ADD, "z", "c")
    else:
        inputs = {"x0": "x", "weight": "weight", operand: "z"}
        b.op("conv", inputs, {"y": "y"}, **{**PLAIN, "slope": 0.1, "mask_slope": 0.1, **at})
    return b


def shared(b, *outputs):
    """Whether y took the place of z."""
    return any(piece.names == ["z", "y"] for piece in pieces(b.program("y", *outputs)))


@pytest.mark.parametrize("operand", ["add0", "add1", "post", "mask"])
def test_a_convolution_may_end_in_the_place_of_what_it_adds(operand):
    assert shared(chain("conv", operand))


def test_an_elementwise_result_may_take_the_place_of_an_operand():
    assert shared(chain("pointwise", "x0"))


def test_no_convolution_ends_in_the_place_of_what_it_convolves():
    assert not shared(chain("conv", "x1"))
    both = chain("conv", "add0")
    both.ops[-1] = both.ops[-1].with_inputs(x1="z")
    assert not shared(both)


def test_nothing_takes_the_place_of_what_is_read_later():
    assert not shared(chain("conv", "add0"), "z")
    later = chain("conv", "add0")
    later.pointwise(later.tensor("late", SHAPE), ADD, "z", "z")
    assert not shared(later)


def test_another_view_of_the_operand_forbids_its_place():
    # The reversed rows are read when some of them are overwritten.
    b = chain("pointwise", "x0")
    b.view("turned", "z", SHAPE, offset=7, strides=(192, 64, 8, -1))
    b.ops[-1] = b.ops[-1].with_inputs(x1="turned")
    assert not shared(b)


def test_another_type_or_shape_forbids_its_place():
    for change in ({"dtype": "bf16"}, {"shape": (1, 3, 4, 16)}):
        b = chain("pointwise", "x0")
        b.tensors["z"] = replace(b.tensors["z"], **change)
        assert not shared(b)


def test_a_sum_that_is_read_before_it_is_complete_is_our_mistake():
    b = chain("conv", "add0")
    for name in ("first", "second"):
        b.tensor(name, (3, 3, 3, 3))
        inputs = {"x0": "x", "grad_y": "z"}
        inputs |= {"sum_weight": "first"} if name == "second" else {}
        b.op("conv_weight_grad", inputs, {"weight": name})
    pieces(b.program("second"))
    with pytest.raises(ValueError, match="first must end in second"):
        pieces(b.program("first", "second"))


def test_reading_what_nobody_wrote_is_our_mistake():
    b = Builder()
    b.tensor("x", SHAPE), b.tensor("y", SHAPE)
    b.pointwise("y", ADD, "x", "x")
    with pytest.raises(ValueError, match="reads x before it is written"):
        place(b.program("y"))


def test_an_empty_program_needs_nothing():
    placement = place(Builder().program())
    assert (placement.arena_bytes, placement.lower_bound_bytes) == (0, 0)


def test_what_is_written_last_and_read_by_nobody_still_needs_its_place():
    # The second half of "whole" is written when its first half has been read for the last time.
    b = Builder()
    b.constant("c", np.zeros((2, 8)))
    b.tensor("whole", (4, 8)), b.tensor("y", (2, 8)), b.tensor("z", (2, 8))
    first, second = b.view("first", "whole", (2, 8)), b.view("second", "whole", (2, 8), offset=16)
    b.pointwise(first, ADD, "c", "c"), b.pointwise("y", ADD, first, "c")
    b.pointwise("z", ADD, "y", "c"), b.pointwise(second, ADD, "c", "c")
    assert [(p.names, p.begin, p.end) for p in pieces(b.program("z"))] == [
        (["whole"], 0, 3),
        (["y", "z"], 1, 4),
    ]


def test_a_sum_in_another_place_is_our_mistake():
    b = chain("conv", "add0")
    b.tensor("first", (3, 3, 3, 3), storage="gradients")
    b.tensor("second", (3, 3, 3, 3), storage="gradients")
    inputs = {"x0": "x", "grad_y": "z", "sum_weight": "first"}
    b.op("conv_weight_grad", inputs, {"weight": "second"})
    with pytest.raises(ValueError, match="first must end in second"):
        pieces(b.program("second"))
