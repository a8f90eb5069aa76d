"""Engines built by TensorRT-RTX without a GPU: NVIDIA's own parser and builder, no fake of them.

What they compute cannot be run here. What can be looked at is: that they are built, for which
architecture, what they take and give, and the types that the parsed network computes in.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.errors import BackendError
from edgeadapt.runtime.backend import Precision
from edgeadapt.runtime.tensorrt.build import Request, build_engine
from edgeadapt.runtime.tensorrt.library import Choices, Library, dtype_name, make_log
from edgeadapt.runtime.tensorrt.models import Weights, engine_model
from support.engines import SIZE, TARGETS, built, check_restoring
from support.tiny_bundle import write_tiny_bundle

TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def layers_by_type(bundle: Bundle, library: Library, request: Request) -> Counter[tuple[str, str]]:
    """(kind of layer, type of what it gives) in the network as the parser reads it."""
    module = library.module
    log = make_log(module)
    builder = module.Builder(log)
    network = builder.create_network(library._network_flags())
    model = engine_model(bundle, request.graph, request.size, request.precision, request.weights)
    library._parse(network, model.SerializeToString(), log)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return Counter((layer.type.name, dtype_name(layer.get_output(0).dtype)) for layer in layers)


@pytest.mark.parametrize("weights", ["inputs", "constant"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_restoring_with_nano_is_built_for_two_architectures(
    rtx: Library, bundle: Bundle, precision: Precision, weights: Weights
) -> None:
    assert bundle.manifest.model.name == "nano"
    check_restoring(bundle, rtx, precision, weights)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_parser_reads_the_precision_that_was_asked_for(
    rtx: Library, bundle: Bundle, precision: Precision
) -> None:
    found = layers_by_type(bundle, rtx, Request(SIZE, precision))
    convolutions = {kind: count for kind, count in found.items() if kind[0] == "CONVOLUTION"}
    assert set(convolutions) == {("CONVOLUTION", TYPES[precision])}
    assert convolutions[("CONVOLUTION", TYPES[precision])] > 100
    # A transposed convolution in bfloat16 is what the builder refuses.
    transposed = "float32" if precision == "bf16" else TYPES[precision]
    assert {kind for kind in found if kind[0] == "DECONVOLUTION"} == {("DECONVOLUTION", transposed)}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_step_is_built_with_all_its_gradients(
    rtx: Library, bundle: Bundle, precision: Precision, tmp_path: Path
) -> None:
    tiny = open_bundle(write_tiny_bundle(tmp_path / "tiny.bundle"))
    for network, graph in ((bundle, "adapt.heads"), (tiny, "adapt.all")):
        request = Request(SIZE, precision, "inputs", graph)
        engine = built(network, rtx, TARGETS[0], request)
        given = {t.name for t in engine.header.tensors if t.role == "output"}
        gradients = {f"grad.{n}" for n in network.scope(graph.removeprefix("adapt.")).parameters}
        assert given == {"loss", "loss_terms", "restored"} | gradients


def test_the_loss_is_built(rtx: Library, bundle: Bundle) -> None:
    engine = built(bundle, rtx, TARGETS[0], Request(SIZE, "fp16", "inputs", "loss"))
    given = {t.name: t.shape for t in engine.header.tensors if t.role == "output"}
    assert given == {"loss": (), "loss_terms": (5,), "restored": (1, 3, *SIZE)}


def test_exchangeable_weights_need_a_gpu_and_that_is_said(rtx: Library, bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"builds no engine .*on a GPU only.*--weights inputs"):
        build_engine(bundle, Request(SIZE, "fp32", "refit"), rtx, TARGETS[0])


def test_other_architectures_than_the_librarys_are_refused(rtx: Library, bundle: Bundle) -> None:
    assert {(7, 5), (8, 6), (8, 9), (12, 0)} <= set(rtx.architectures())
    with pytest.raises(BackendError, match=r"builds for sm_75.* not for sm_87.*on the device"):
        build_engine(bundle, Request(SIZE), rtx, (8, 7))


def test_what_the_parser_does_not_know_is_said_in_its_words(rtx: Library, bundle: Bundle) -> None:
    model = engine_model(bundle, "restore", SIZE, "fp32", "constant")
    model.graph.node[3].op_type = "NoSuchOperator"
    with pytest.raises(BackendError, match=r"ONNX parser of TensorRT-RTX .*NoSuchOperator"):
        rtx.build(model.SerializeToString(), Choices(TARGETS[0]))
