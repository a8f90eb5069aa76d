"""FLOPs of plans against PyTorch's flop counter: equal, to the last one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.export.source import build as build_source
from edgeadapt.runtime.plan.compile import Target, compile_graph
from edgeadapt.runtime.profile.operations import operations_of
from edgeadapt.training.network import build
from support.exported import MAKE, exported
from support.flop_counts import Counts, count
from support.presets import preset_bundle

GROUPED = ("convolutions", "strided_and_transposed_convolutions", "body: simple gates")
NETWORKS = (
    *GROUPED,
    "attention_over_channels",
    "body: transposed attention",
    "body: squeeze and excite",
    "body: resampling",
    "body: reflection",
    "body: same padding",
    "body: more padding than a kernel reaches",
)
# Networks built by `around` end in a 1x1 convolution of the restored image beside the image, 6 to 3
# channels: PyTorch computes the gradient of the three channels that nobody asked for.
AROUND = [name for name in NETWORKS if ":" not in name]


def planned(bundle: Bundle, graph: str, height: int, width: int) -> Mapping[str, int]:
    """FLOPs of products, by group."""
    program = compile_graph(bundle, graph, height, width, Target()).program
    found: Counter[str] = Counter()
    for operation in operations_of(program):
        if operation.kind in ("conv", "conv_weight_grad", "matmul"):
            assert operation.flops is not None
            found[operation.group] += operation.flops
    return found


def counted(found: Mapping[str, int]) -> Counts:
    return Counts(found["forward"], found["input-gradient"] + found["weight-gradient"])


@pytest.mark.parametrize("scope", ["all", "heads", "bias"])
def test_nano(scope: str) -> None:
    bundle = open_bundle("nano")
    multiple = bundle.manifest.image.size_multiple
    height, width = 3 * multiple, 5 * multiple
    found = planned(bundle, bundle.scope(scope).graph, height, width)
    network = build_source(bundle.manifest.model.factory, bundle.manifest.model.options)
    assert counted(found) == count(network, height, width, bundle.scope(scope).parameters)
    # Biases alone need no gradient of a weight.
    assert (found["weight-gradient"] > 0) == (scope != "bias")


def test_edge() -> None:
    bundle = preset_bundle("edge")
    found = planned(bundle, "adapt.heads.onnx", 48, 80)
    network = build(preset="edge")
    assert counted(found) == count(network, 48, 80, bundle.scope("heads").parameters)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_users(name: str) -> None:
    bundle, network = exported(name), MAKE[name]()
    multiple = bundle.manifest.image.size_multiple
    height, width = 3 * multiple, 2 * multiple
    names = bundle.scope("all").parameters
    expected = count(network, height, width, names, grouped=name in GROUPED)
    if name in AROUND:
        skipped = 2 * height * width * 3 * 3
        expected = expected._replace(backward=expected.backward - skipped)
    assert counted(planned(bundle, "adapt.all.onnx", height, width)) == expected


@pytest.mark.parametrize("name", GROUPED)
def test_pytorch_takes_a_gradient_by_groups_for_dense(name: str) -> None:
    # What `grouped` is there for; once PyTorch counts otherwise, this fails and it can go.
    bundle, network = exported(name), MAKE[name]()
    names = bundle.scope("all").parameters
    dense = count(network, 24, 16, names)
    assert dense.backward > count(network, 24, 16, names, grouped=True).backward


def test_what_is_computed_again_is_told_apart() -> None:
    bundle = open_bundle("nano")
    target = Target()
    whole = compile_graph(bundle, "adapt.all.onnx", 64, 96, target)
    half = replace(target, memory_budget=whole.placement.arena_bytes * 6 // 10)
    program = compile_graph(bundle, "adapt.all.onnx", 64, 96, half).program
    operations = operations_of(program)
    again = [operation for operation in operations if operation.again]
    assert again
    assert {"forward"} <= {operation.group for operation in again}
    assert not {"input-gradient", "weight-gradient"} & {operation.group for operation in again}
    once: Counter[str] = Counter()
    for operation in operations:
        if operation.kind in ("conv", "conv_weight_grad") and not operation.again:
            once[operation.group] += operation.flops or 0
    assert once == planned(bundle, "adapt.all.onnx", 64, 96)
