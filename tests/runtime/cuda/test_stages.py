"""The stages that only CUDA has, against the program they came from, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.cuda.layout import to_channels_last
from edgeadapt.runtime.cuda.pack import pack_together
from edgeadapt.runtime.cuda.plan import Target, compile_graph, in_precision
from edgeadapt.runtime.cuda.update import update_together
from edgeadapt.runtime.plan.check import check
from edgeadapt.runtime.plan.fuse import fuse
from edgeadapt.runtime.plan.ir import BYTES, Op, Program, Shape, View, contiguous
from edgeadapt.runtime.plan.lifetimes import no_scratch, pieces
from edgeadapt.runtime.plan.read import read
from edgeadapt.runtime.plan.schedule import schedule
from support.exported import MAKE, exported
from support.fusing import assert_same, kinds
from support.interpret import run
from support.programs import Builder

NETWORKS = ["nano", *MAKE]
ADD = (("add", (("x", 0), ("x", 1))),)


def bundle_of(name: str) -> Bundle:
    return open_bundle("nano") if name == "nano" else exported(name)


def read_fused(name: str) -> Program:
    bundle = bundle_of(name)
    multiple = bundle.manifest.image.size_multiple
    return fuse(read(bundle, bundle.scope("all").graph, 2 * multiple, 3 * multiple))


def elements(op: Op, program: Program) -> int:
    """As if every weight took a bit more when it is packed."""
    return program.tensors[op.inputs["weight"]].size + 3


@pytest.mark.parametrize("name", NETWORKS)
def test_no_stage_changes_what_is_computed(name: str) -> None:
    program = schedule(read_fused(name))
    moved = assert_same(program, to_channels_last(program))
    assert_same(moved, pack_together(moved, elements))


def test_images_of_the_default_network_lie_channels_last() -> None:
    program = to_channels_last(read_fused("nano"))
    images = [
        tensor
        for tensor in program.tensors.values()
        if len(tensor.shape) == 4 and tensor.storage == "arena" and tensor.view is None
        if tensor.shape[1] > 1 and tensor.shape[2] * tensor.shape[3] > 1
    ]
    assert len(images) > 100
    for image in images:
        channels, width = image.shape[1], image.shape[3]
        assert image.channels_last
        assert image.strides[1:] == (1, width * channels, channels)
    for storage in ("image", "restored", "weights", "gradients"):
        own = [t for t in program.tensors.values() if t.storage == storage]
        assert own
        assert not any(tensor.channels_last for tensor in own)


VIEWS: dict[str, tuple[Shape, int, Shape, tuple[int, Shape] | None]] = {
    # of (1, 6, 4, 5): shape, offset, strides; and what becomes of offset and strides
    "channels": ((1, 2, 4, 5), 40, (120, 20, 5, 1), (2, (6, 1, 30, 6))),
    "every second channel backwards": ((1, 3, 4, 5), 100, (0, -40, 5, 1), (5, (0, -2, 30, 6))),
    "a window": ((1, 6, 2, 3), 6, (120, 20, 5, 1), (36, (6, 1, 30, 6))),
    "turned": ((1, 6, 5, 4), 0, (120, 20, 1, 5), (0, (6, 1, 6, 30))),
    "pixels in a row": ((6, 20), 0, (20, 1), (0, (1, 6))),
    "one pixel everywhere": ((1, 6, 4, 5), 7, (120, 20, 0, 0), (42, (6, 1, 0, 0))),
    "all in a row": ((120,), 0, (1,), None),
    "from one channel into the next": ((2, 15), 0, (20, 5), None),
    "just into the next channel": ((5,), 0, (5,), None),
    "backwards out of a channel": ((3, 4), 21, (20, -1), None),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_name_the_same_elements(name: str) -> None:
    shape, offset, strides, expected = VIEWS[name]
    b = Builder()
    b.tensor("image", (1, 6, 4, 5), storage="image")
    b.tensor("base", (1, 6, 4, 5))
    b.pointwise("base", (("neg", (("x", 0),)),), "image")
    b.view("part", "base", shape, offset, strides)
    b.tensor("y", shape)
    b.pointwise("y", (("copy", (("x", 0),)),), "part")
    program = b.program("y")
    moved = to_channels_last(program)
    if expected is None:
        assert moved.tensors["part"] == program.tensors["part"]
        assert not moved.tensors["base"].channels_last
        return
    assert moved.tensors["part"].view == View("base", *expected)
    assert_same(program, moved)


def test_a_result_takes_the_place_of_an_operand_only_in_the_same_layout() -> None:
    b = Builder()
    b.tensor("image", (1, 6, 4, 5), storage="image")
    for name in ("planar", "other", "y"):
        b.tensor(name, (1, 6, 4, 5))
    b.view("row", "planar", (120,))
    b.pointwise("planar", (("neg", (("x", 0),)),), "image")
    b.tensor("copied", (120,))
    b.pointwise("copied", (("copy", (("x", 0),)),), "row")
    b.pointwise("other", (("abs", (("x", 0),)),), "image")
    b.pointwise("y", ADD, "planar", "other")
    program = to_channels_last(b.program("y", "copied"))
    assert not program.tensors["planar"].channels_last
    shared = [piece.names for piece in pieces(program) if len(piece.names) > 1]
    assert shared == [["other", "y"]]


def test_packing_is_one_operation_whose_parts_do_not_overlap() -> None:
    program = to_channels_last(schedule(read_fused("nano")))
    for precision, nbytes in (("fp32", 4), ("tf32", 4), ("fp16", 2), ("bf16", 2)):
        packed = pack_together(in_precision(program, precision), elements)
        check(packed)
        (op,) = [op for op in packed if op.kind == "pack_together"]
        assert packed.ops[0] is op
        ends = [0]
        for part in op.attributes["parts"]:
            assert part["offset"] * nbytes % 256 == 0
            assert part["offset"] >= ends[-1]
            ends.append(part["offset"] + part["count"])
        whole = packed.tensors[op.outputs["y"]]
        assert BYTES[whole.dtype] == nbytes
        assert ends[-1] <= whole.size
        shared = kinds(program)["conv"] / len(op.attributes["parts"])
        assert shared > 2  # three scales


def test_biases_that_a_library_cannot_read_where_they_are_are_copied_together() -> None:
    b = Builder()
    b.tensor("image", (1, 2, 4, 4), storage="image")
    names = ("odd", "even", "own")
    for number, name in enumerate(names):
        if name != "own":
            b.tensor(f"{name}.before", (1,), storage="weights")
        b.tensor(f"{name}.weight", (2, 2, 1, 1), storage="weights")
        b.tensor(f"{name}.bias", (2,), storage="weights")
        b.tensor(name, (1, 2, 4, 4))
        at = {"out_channels": (0, 2), "kernel": (1, 1), "pads": (0, 0, 0, 0)}
        at |= {} if name == "own" else {"algorithm": "cudnn"}
        x = "image" if number == 0 else names[number - 1]
        b.conv(x, f"{name}.weight", name, {"bias": f"{name}.bias"}, **at)
    b.tensor("again", (1, 2, 4, 4))
    b.conv("own", "odd.weight", "again", {"bias": "odd.bias"}, **at, algorithm="cudnn")
    program = b.program("again")
    found = assert_same(program, pack_together(program, elements))
    _, biases, *convs = found.ops
    assert biases.kind == "pack_together"
    assert [part["count"] for part in biases.attributes["parts"]] == [2]
    read = [op.inputs["bias"] for op in convs]
    assert read == ["odd.bias..aligned", "even.bias", "own.bias", "odd.bias..aligned"]


def test_a_weight_that_is_computed_is_packed_before_it_is_read() -> None:
    b = Builder()
    b.tensor("image", (1, 2, 4, 4), storage="image")
    b.tensor("w", (2, 2, 3, 3), storage="weights")
    b.tensor("twice", (2, 2, 3, 3))
    for name in ("y", "z"):
        b.tensor(name, (1, 2, 4, 4))
    b.pointwise("twice", ADD, "w", "w")
    at = {"out_channels": (0, 2)}
    b.conv("image", "w", "y", {}, **at)
    b.conv("y", "twice", "z", {}, **at)
    program = b.program("z")
    found = assert_same(program, pack_together(program, elements))
    kinds = [op.kind for op in found]
    assert kinds == ["pack_together", "pointwise", "conv", "pack_together", "conv"]


def test_one_update_ends_the_program() -> None:
    program = schedule(read_fused("nano"))
    names = bundle_of("nano").scope("heads").parameters
    updated = update_together(program, names, "adam", 4.0)
    check(updated)
    op = updated.ops[-1]
    assert op.kind == "update_together"
    assert len(op.outputs) == len(names)
    for number, name in enumerate(names):
        roles = (op.inputs[f"weight{number}"], op.inputs[f"grad{number}"])
        assert roles == (name, GRADIENT_PREFIX + name)
        places = [updated.tensors[n].offset for n in (name, op.outputs[f"weight_new{number}"])]
        assert places[0] == places[1]
    assert update_together(program, (), "sgd") is program


def test_precisions_store_and_multiply_as_they_say() -> None:
    program = schedule(read_fused("nano"))
    for precision, compute, dtype in (
        ("fp32", None, "f32"), ("tf32", "tf32", "f32"), ("fp16", "f16", "f16"),
        ("bf16", "bf16", "bf16"),
    ):  # fmt: skip
        found = in_precision(program, precision)  # type: ignore[arg-type]
        check(found)
        for op in found:
            if op.kind in ("conv", "conv_weight_grad"):
                assert op.attributes.get("compute") == compute
                if found.tensors[op.inputs["x0"]].storage == "arena":
                    assert found.tensors[op.inputs["x0"]].dtype == dtype


@pytest.mark.parametrize("budget", [None, 0.7])
def test_a_plan_computes_what_the_graph_says(budget: float | None) -> None:
    bundle = bundle_of("nano")
    graph = bundle.scope("all").graph
    target: dict[str, Any] = {"packed_elements": elements, "scratch_bytes": no_scratch}
    plan = compile_graph(bundle, graph, 64, 48, Target(**target))
    if budget is not None:
        target["memory_budget"] = int(plan.placement.arena_bytes * budget)
        plan = compile_graph(bundle, graph, 64, 48, Target(**target))
        assert plan.placement.arena_bytes <= target["memory_budget"]
    check(plan.program)
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (1, 3, 64, 48))
    weights = bundle.named(bundle.weights())
    expected = run(read(bundle, graph, 64, 48), image, weights)
    found = run(plan.program, image, weights, plan.placement.offsets)
    assert list(found) == list(expected)
    for name, value in expected.items():
        # The arena of the memory plan holds an element's bytes as one number: nothing is rounded.
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_contiguous_tensor_is_not_one_that_is_channels_last() -> None:
    program = to_channels_last(read_fused("nano"))
    tensor = next(t for t in program.tensors.values() if t.channels_last and t.view is None)
    assert tensor.strides != contiguous(tensor.shape)
