"""Another order of the same operations, with the same results in less memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.plan.schedule import peak_bytes, schedule
from support.fusing import assert_same, random_values
from support.interpret import run
from support.programs import PLAIN, WINDOW, Builder
from support.random_programs import programs
from support.training_program import training_step

EXP = (("exp", (("x", 0),)),)
ADD = (("add", (("x", 0), ("x", 1))),)
SHAPE = (1, 2, 8, 8)  # 512 bytes


def labels(program: Program) -> list[str]:
    return [next(iter(op.outputs.values())) for op in program]


def test_what_is_large_is_made_just_before_it_is_needed():
    b = Builder()
    b.tensor("image", (1, 2, 4, 4), storage="image")
    for name in ("up1", "up2", "y1", "y2", "y"):
        small = name[0] == "y"
        b.tensor(name, (1, 2, 1, 1) if small else SHAPE)
    at = {"how": "sum", "axes": (2, 3), "before": None, "after": None, "scale": 1.0}
    for name in ("up1", "up2"):
        b.op("resize", {"x": "image"}, {"y": name}, mode="linear", scale=2)
    b.op("reduce", {"x": "up1"}, {"y": "y1"}, **at)
    b.op("reduce", {"x": "up2"}, {"y": "y2"}, **at)
    b.pointwise("y", ADD, "y1", "y2")
    ordered = assert_same(b.program("y"), schedule(b.program("y")))
    assert labels(ordered) == ["up1", "y1", "up2", "y2", "y"]
    assert (peak_bytes(b.program("y")), peak_bytes(ordered)) == (2 * 512 + 256, 512 + 2 * 256)


def test_weight_gradients_run_as_soon_as_they_can_so_that_activations_die():
    b = Builder()
    b.tensor("image", SHAPE, storage="image")
    b.tensor("w", (2, 2, 3, 3), storage="weights")
    for name in ("a", "g1", "g2"):
        b.tensor(name, SHAPE)
    b.pointwise("a", EXP, "image")
    b.conv("image", "w", "g1", {})
    b.conv("g1", "w", "g2", {"mask": "a"}, mask_slope=0.1)
    b.tensor("grad.1", (2, 2, 3, 3), storage="gradients")
    b.tensor("grad.2", (2, 2, 3, 3), storage="gradients")
    at = {**{name: PLAIN[name] for name in WINDOW}, "bias_of": "grad_y"}
    b.op("conv_weight_grad", {"x0": "image", "grad_y": "g2"}, {"weight": "grad.1"}, **at)
    b.op("conv_weight_grad", {"x0": "a", "grad_y": "g1"}, {"weight": "grad.2"}, **at)
    ordered = assert_same(b.program("grad.1", "grad.2"), schedule(b.program("grad.1", "grad.2")))
    # g2 may take the place of its mask, a, only once nothing else reads a.
    assert labels(ordered) == ["a", "g1", "grad.2", "g2", "grad.1"]


def test_what_frees_more_than_it_takes_runs_at_once():
    b = Builder()
    b.tensor("image", SHAPE, storage="image")
    for name in ("t1", "t2", "t3"):
        b.tensor(name, SHAPE)
    for name in ("y1", "y3"):
        b.tensor(name, (1, 2, 1, 1))
    at = {"how": "sum", "axes": (2, 3), "before": None, "after": None, "scale": 1.0}
    b.pointwise("t1", EXP, "image")
    b.op("pad", {"x": "t1"}, {"y": "t2"}, pads=(0,) * 8, mode="constant", value=0.0)
    b.op("pad", {"x": "t2"}, {"y": "t3"}, pads=(0,) * 8, mode="constant", value=0.0)
    b.op("reduce", {"x": "t3"}, {"y": "y3"}, **at)
    b.op("reduce", {"x": "t1"}, {"y": "y1"}, **at)
    ordered = assert_same(b.program("y1", "y3"), schedule(b.program("y1", "y3")))
    assert labels(ordered) == ["t1", "t2", "y1", "t3", "y3"]


def test_an_order_that_cannot_be_bettered_is_kept():
    program = training_step()
    ordered = schedule(program)
    assert schedule(ordered).ops == ordered.ops


@settings(max_examples=60)
@given(programs())
def test_any_program_computes_the_same_in_no_more_memory(program: Program):
    ordered = schedule(program)
    assert sorted(labels(ordered)) == sorted(labels(program))
    assert peak_bytes(ordered) <= peak_bytes(program)
    image, weights = random_values(program)
    found, expected = run(ordered, image, weights), run(program, image, weights)
    for name, value in expected.items():  # to the last bit: no sum is taken in another order
        np.testing.assert_array_equal(found[name], value)


def test_the_order_is_the_same_each_time():
    program = training_step()
    assert len({tuple(labels(schedule(program))) for _ in range(3)}) == 1


def test_a_value_is_read_before_the_running_sum_takes_its_place():
    b = Builder()
    b.tensor("image", SHAPE, storage="image")
    at = {**{name: PLAIN[name] for name in WINDOW}, "bias_of": "grad_y"}
    b.tensor("grad", (2, 2, 3, 3), storage="gradients")
    b.tensor("old", (2, 2, 3, 3))
    for name in ("sum1", "sum2"):
        b.view(name, "grad", (2, 2, 3, 3))
    b.op("conv_weight_grad", {"x0": "image", "grad_y": "image"}, {"weight": "sum1"}, **at)
    b.pointwise("old", EXP, "sum1")
    inputs = {"x0": "image", "grad_y": "image", "sum_weight": "sum1"}
    b.op("conv_weight_grad", inputs, {"weight": "sum2"}, **at)
    # The running sum needs no memory, what reads it does, and still comes first.
    assert labels(schedule(b.program("old", "sum2"))) == ["sum1", "old", "sum2"]


def test_an_update_waits_for_all_that_read_the_old_weight():
    b = Builder()
    b.tensor("image", SHAPE, storage="image")
    b.tensor("w", (2, 2, 3, 3), storage="weights")
    b.tensor("grad", (2, 2, 3, 3), storage="gradients")
    b.same_place("w.new", "w")
    b.tensor("y", SHAPE)
    at = {**{name: PLAIN[name] for name in WINDOW}, "bias_of": "grad_y"}
    b.op("conv_weight_grad", {"x0": "image", "grad_y": "image"}, {"weight": "grad"}, **at)
    b.conv("image", "w", "y", {})
    b.op("update_sgd", {"weight": "w", "grad": "grad"}, {"weight_new": "w.new"}, step_size=0.1)
    assert labels(schedule(b.program("y", "w.new")))[-1] == "w.new"


@pytest.mark.parametrize("count", [0, 1])
def test_programs_of_nothing_and_of_one_operation(count: int):
    b = Builder()
    b.tensor("image", SHAPE, storage="image")
    b.tensor("y", SHAPE)
    if count:
        b.pointwise("y", EXP, "image")
    program = b.program("y") if count else b.program("image")
    assert schedule(program) == program
    assert peak_bytes(program) == 512 * count
