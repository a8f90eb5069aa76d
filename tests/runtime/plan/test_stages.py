"""The stages between fusion and placement: update, precision, packing, algorithms."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.kernels.conv import Vectors
from edgeadapt.runtime.plan.algorithm import choose_algorithms
from edgeadapt.runtime.plan.bind import packed_elements
from edgeadapt.runtime.plan.check import check
from edgeadapt.runtime.plan.compile import CHEAP_WORK, LITTLE_BYTES, Target, compile_graph
from edgeadapt.runtime.plan.cost import total_flops
from edgeadapt.runtime.plan.fuse import fuse
from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.plan.pack import pack
from edgeadapt.runtime.plan.precision import to_half
from edgeadapt.runtime.plan.read import read
from edgeadapt.runtime.plan.schedule import peak_bytes, schedule
from edgeadapt.runtime.plan.update import update_weights
from support.fusing import kinds


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle("nano")


@pytest.fixture(scope="module")
def program(bundle: Bundle) -> Program:
    return schedule(fuse(read(bundle, bundle.scope("all").graph, 64, 96)))


def packed(program: Program) -> Program:
    return pack(program, packed_elements)


def test_a_weight_is_packed_once_for_all_scales_that_share_it(program: Program) -> None:
    result = packed(program)
    check(result)
    packs = [op for op in result.ops if op.kind == "pack_weights"]
    keys = {(op.inputs["weight"], *map(str, op.attributes.values())) for op in packs}
    assert len(keys) == len(packs)
    convs = [op for op in program.ops if op.kind == "conv"]
    assert len(packs) < len(convs) / 2
    first_use = {}
    for position, op in enumerate(result.ops):
        if op.kind == "conv":
            first_use.setdefault(op.inputs["weight"], position)
    for position, op in enumerate(result.ops):
        if op.kind == "pack_weights":
            assert first_use[op.outputs["y"]] == position + 1


def test_different_algorithms_get_different_packings(program: Program) -> None:
    chosen = choose_algorithms(program, Vectors(16, bf16=True))
    used = {op.attributes.get("algorithm", "direct") for op in chosen.ops if op.kind == "conv"}
    assert used == {"direct", "winograd"}
    result = packed(chosen)
    check(result)
    of = {op.outputs["y"]: op for op in result.ops if op.kind == "pack_weights"}
    for op in result.ops:
        if op.kind == "conv":
            own = of[op.inputs["weight"]].attributes.get("algorithm", "direct")
            assert own == op.attributes.get("algorithm", "direct")


def test_every_parameter_moves_after_its_gradient_and_its_last_reader(program: Program) -> None:
    result = packed(program)
    names = [n.removeprefix(GRADIENT_PREFIX) for n in program.outputs if n.startswith("grad.")]
    sizes = {name: 0.5 + number for number, name in enumerate(names)}
    updated = update_weights(result, sizes)
    check(updated)
    places = {name: (t.storage, t.offset) for name, t in updated.tensors.items()}
    moved = {}
    for position, op in enumerate(updated.ops):
        if op.kind == "update_sgd":
            moved[op.inputs["weight"]] = position
            assert op.attributes["step_size"] == sizes[op.inputs["weight"]]
    assert set(moved) == set(names)
    for position, op in enumerate(updated.ops):
        if op.kind == "update_sgd":
            continue
        for name in op.inputs.values():
            base = updated.base(name)
            if base in moved:
                assert position < moved[base], (op.kind, name)
        for name in op.outputs.values():
            for parameter, at in moved.items():
                if places[updated.base(name)] == places[GRADIENT_PREFIX + parameter]:
                    assert position < at
    # Not all at the end: most are complete before the last operation of the backward pass.
    last = max(p for p, op in enumerate(updated.ops) if op.kind == "conv_weight_grad")
    assert sum(position < last for position in moved.values()) > len(names) / 2


def test_bf16_holds_images_and_nothing_else(program: Program) -> None:
    result = to_half(program)
    check(result)
    halves = {name for name, tensor in result.tensors.items() if tensor.dtype == "bf16"}
    assert halves
    for name in halves:
        tensor = result.tensors[name]
        assert tensor.storage == "arena"
        assert len(tensor.shape) == 4
        assert tensor.shape[2] * tensor.shape[3] > 1
    bytes_before = sum(t.nbytes for t in program.tensors.values() if t.storage == "arena")
    bytes_after = sum(t.nbytes for t in result.tensors.values() if t.storage == "arena")
    assert bytes_after < 0.51 * bytes_before
    for op in result.ops:
        if op.kind in ("conv", "conv_weight_grad"):
            assert op.attributes["compute"] == "bf16"
    assert kinds(result) == kinds(program)


def test_bf16_leaves_what_kernels_cannot_read_in_float32(program: Program) -> None:
    name = next(op.outputs["y"] for op in program.ops if op.kind == "conv")
    ops = tuple(op.with_inputs(x=name) if op.kind == "reduce" else op for op in program.ops)
    barred = to_half(Program(program.tensors, ops, program.outputs, program.constants))
    assert barred.tensors[program.base(name)].dtype == "f32"
    assert to_half(program).tensors[program.base(name)].dtype == "bf16"


def test_packed_weights_have_room_for_what_the_kernel_writes(program: Program) -> None:
    result = packed(choose_algorithms(program, Vectors(16, bf16=True)))
    for op in result.ops:
        if op.kind == "pack_weights":
            weight = result.tensors[op.inputs["weight"]]
            share = op.attributes["out_channels"][1] / (
                weight.shape[1] if op.attributes["transposed"] else weight.shape[0]
            )
            products = 36 / 9 if op.attributes.get("algorithm") == "winograd" else 1.0
            size = result.tensors[op.outputs["y"]].size
            assert size == pytest.approx(share * products * np.prod(weight.shape))


def test_without_a_budget_much_is_halved_where_that_is_cheap(bundle: Bundle) -> None:
    graph = bundle.scope("all").graph
    whole = schedule(fuse(read(bundle, graph, 720, 1280)))
    plan = compile_graph(bundle, graph, 720, 1280, Target())
    assert LITTLE_BYTES < plan.placement.arena_bytes <= peak_bytes(whole) // 2
    assert total_flops(whole) < total_flops(plan.program) <= CHEAP_WORK * total_flops(whole)


def test_without_a_budget_little_is_left_alone(bundle: Bundle) -> None:
    graph = bundle.scope("all").graph
    whole = schedule(fuse(read(bundle, graph, 256, 256)))
    plan = compile_graph(bundle, graph, 256, 256, Target())
    assert plan.placement.arena_bytes < LITTLE_BYTES
    assert kinds(plan.program)["conv"] == kinds(whole)["conv"]


def test_what_would_be_dear_is_kept(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeadapt.runtime.plan.compile.CHEAP_WORK", 1.01)
    graph = bundle.scope("all").graph
    plan = compile_graph(bundle, graph, 720, 1280, Target())
    assert plan.placement.arena_bytes > 2 * LITTLE_BYTES
