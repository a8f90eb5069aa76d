"""What the operations of a program are there for, and what they are called."""

from __future__ import annotations

import pytest

from edgeadapt.bundle import open_bundle
from edgeadapt.runtime.cuda.plan import compile_graph as compile_for_cuda
from edgeadapt.runtime.cuda.show import cuda_target
from edgeadapt.runtime.plan.compile import Target, compile_graph
from edgeadapt.runtime.plan.cost import products
from edgeadapt.runtime.profile.grouping import Step, group_products
from edgeadapt.runtime.profile.operations import operations_of
from edgeadapt.runtime.profile.parts import Operation


def steps_of(text: str) -> list[Step]:
    """Lines "y = a * b + c": the two factors, the second perhaps a weight, and what is added; or "y
    = f a b" for anything that is no product."""
    steps = []
    for line in text.strip().splitlines():
        result, _, formula = line.strip().partition(" = ")
        product, *added = formula.split(" + ")
        if "*" in product:
            factors = product.split(" * ")
            steps.append(Step((*factors, *added), (result,), factors, factors))
        else:
            steps.append(Step(tuple(product.split()[1:]), (result,)))
    return steps


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A chain of two layers, forward and back.
        (
            """
            h = image * w0 + b0
            g = act h
            restored = g * w1
            loss = mean restored image
            grad_r = sign restored image
            grad.w1 = g * grad_r
            grad_g = grad_r * w1
            grad_h = mask grad_g h
            grad.w0 = image * grad_h
            """,
            ["forward", "forward", "weight-gradient", "input-gradient", "weight-gradient"],
        ),
        # The gradient of a weight that two places share is a sum: what was before is added to the
        # second, not multiplied, and stays the gradient of a weight.
        (
            """
            restored = image * w
            loss = mean restored
            grad_r = sign restored
            first = image * grad_r
            grad.w = image * grad_r + first
            """,
            ["forward", "weight-gradient", "weight-gradient"],
        ),
        # Attention: both factors are images, and what comes of their gradients is multiplied on.
        (
            """
            q = image * wq
            restored = q * image
            loss = mean restored
            grad_r = sign restored
            grad_q = grad_r * image
            grad.wq = image * grad_q
            """,
            ["forward", "forward", "input-gradient", "weight-gradient"],
        ),
        # The gradient of a bias alone: a product with weights, though no product follows.
        (
            """
            h = image * w0 + b0
            restored = h * w1
            loss = mean restored
            grad_r = sign restored
            grad_h = grad_r * w1
            grad.b0 = sum grad_h
            """,
            ["forward", "forward", "input-gradient"],
        ),
    ],
    ids=["chain", "shared weight", "attention", "bias"],
)
def test_products_by_structure(text: str, expected: list[str]) -> None:
    found = group_products(steps_of(text), ["loss", "restored"], ["image"])
    assert [group for group in found if group] == expected
    assert [group is None for group in found] == ["*" not in line for line in lines_of(text)]


def lines_of(text: str) -> list[str]:
    return text.strip().splitlines()


def every(graph: str = "adapt.all.onnx") -> list[Operation]:
    bundle = open_bundle("nano")
    sizes = dict.fromkeys(bundle.scope("all").parameters, 1e-5) if "adapt" in graph else None
    return operations_of(compile_graph(bundle, graph, 64, 96, Target(), sizes).program)


def test_kinds_and_groups_of_a_step() -> None:
    found: dict[str, set[str]] = {}
    for operation in every():
        found.setdefault(operation.kind, set()).add(operation.group)
    assert found.pop("conv") == {"forward", "input-gradient"}
    assert found.pop("conv_weight_grad") == {"weight-gradient"}
    assert found.pop("update_sgd") == {"optimizer"}
    assert found.pop("pack_weights") == {"other"}
    assert set.union(*found.values()) == {"pointwise"}


def test_a_restoration_is_forward() -> None:
    assert {o.group for o in every("restore.onnx")} == {"forward", "pointwise", "other"}


def test_names_are_unique_and_say_the_layer_and_the_size() -> None:
    operations = every()
    names = [operation.name for operation in operations]
    assert len(set(names)) == len(names)
    layer = "scales.0.shared.encode_2.open"  # 8 channels to 16, every second pixel, of 64 x 96
    found = [name.partition(" #")[0] for name in names if f" {layer} " in name and "@" in name]
    assert f"conv {layer} 8->16 3x3/2x2 @ 32x48" in found
    assert f"conv {layer} transposed 16->8 3x3/2x2 @ 64x96" in found
    assert f"conv_weight_grad {layer} 8->16 3x3/2x2 @ 32x48" in found
    packs = [name for name in names if name.startswith("pack_weights")]
    assert packs
    assert all(name.split()[1].startswith("scales.") for name in packs)


def test_precision_is_that_of_what_is_multiplied() -> None:
    bundle = open_bundle("nano")
    target = Target(precision="bf16")
    program = compile_graph(bundle, "adapt.all.onnx", 64, 96, target).program
    # The planner may leave a convolution in float32, where that is faster.
    names = {"bf16": "bf16", "f32": "fp32", None: "fp32"}
    found = operations_of(program)
    assert [o.compute for o in found] == [
        names[op.attributes.get("compute")] if op.kind in ("conv", "conv_weight_grad") else "fp32"
        for op in program.ops
    ]
    assert {"bf16", "fp32"} == {o.compute for o in found}


def test_layers_are_known_where_weights_are_packed_together() -> None:
    bundle = open_bundle("nano")
    names = bundle.scope("all").parameters
    plan = compile_for_cuda(
        bundle, "adapt.all.onnx", 64, 96, cuda_target("fp16", None), names, "adam"
    )
    operations = operations_of(plan.program)
    layers = {name.rpartition(".")[0] for name in names}
    for operation in operations:
        if operation.kind in ("conv", "conv_weight_grad"):
            assert operation.name.split()[1] in layers, operation.name
            assert operation.compute == "fp16"
    assert [o.group for o in operations if o.kind == "update_together"] == ["optimizer"]


def test_work_of_a_convolution_is_without_what_is_fused_with_it() -> None:
    bundle = open_bundle("nano")
    program = compile_graph(bundle, "restore.onnx", 64, 96, Target()).program
    for op, operation in zip(program.ops, operations_of(program), strict=True):
        main = products(op, program)
        assert (operation.flops == main) == (main is not None)
