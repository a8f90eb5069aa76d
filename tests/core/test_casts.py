from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeadapt.bundle import WEIGHTS, Bundle, open_bundle
from edgeadapt.cast_rules import Precision
from edgeadapt.casts import cast_graph, cast_model, save_graph
from edgeadapt.errors import BundleError
from edgeadapt.graphs import read_graph
from support.rounding import HALVES, rounded, run, types
from support.tiny_bundle import random_parameters, write_tiny_bundle

PRECISIONS: list[Precision] = ["fp16", "bf16"]
SHIPPED = ["restore.onnx", "loss.onnx", "adapt.heads.onnx", "adapt.all.onnx"]
HEAD = 'ir_version: 9, opset_import: ["" : 18]'


@pytest.fixture(scope="module")
def nano() -> Bundle:
    return open_bundle("nano")


@cache
def shipped(graph: str, precision: Precision) -> onnx.ModelProto:
    """A graph of `nano`, cast once for all tests."""
    return cast_graph(open_bundle("nano"), graph, precision)


def signature(model: onnx.ModelProto) -> list[bytes]:
    """Names, types and shapes of what goes in and out, in order."""
    both = (*model.graph.input, *model.graph.output)
    return [value.SerializeToString(deterministic=True) for value in both]


def casts(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    kinds = types(model)
    return [
        node
        for node in model.graph.node
        if node.op_type == "Cast" and {kinds[node.input[0]], kinds[node.output[0]]} & set(HALVES)
    ]


def check_no_pointless_casts(model: onnx.ModelProto) -> None:
    """Every value is cast once, is read, and does not come out of another cast."""
    found = casts(model)
    made = {node.output[0] for node in found}
    read = {name for node in model.graph.node for name in node.input}
    read |= {value.name for value in model.graph.output}
    assert not [node.name for node in found if node.input[0] in made]
    assert not made - read
    assert max(Counter(node.input[0] for node in found).values(), default=1) == 1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("graph", SHIPPED)
def test_what_goes_in_and_out_is_the_same(nano: Bundle, graph: str, precision: Precision) -> None:
    before = read_graph(nano.path / graph)
    after = shipped(graph, precision)
    assert signature(after) == signature(before)
    assert not after.functions
    check_no_pointless_casts(after)  # also checks that every operator's types agree
    names = [node.name for node in after.graph.node]
    assert after.ir_version >= onnx.helper.find_min_ir_version_for(after.opset_import)
    assert len(set(names)) == len(names)  # engines and their profiles know nodes by them


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_convolution_with_weights_is_in_16_bits(precision: Precision) -> None:
    model = shipped("adapt.all.onnx", precision)
    kinds = types(model)
    found = Counter(
        (node.op_type, kinds[node.output[0]] in HALVES)
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose", "MatMul", "ReduceSum", "ReduceMean")
    )
    wide = {kind for (kind, half) in found if not half}
    assert wide == {"MatMul", "ReduceSum", "ReduceMean"}  # weights' gradients, biases', losses
    assert not [kind for (kind, half) in found if half and kind in wide]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_restoring_casts_images_only(nano: Bundle, precision: Precision) -> None:
    model = cast_graph(nano, "restore.onnx", precision)
    weights = {tensor.name for tensor in model.graph.initializer}
    activations = [node for node in casts(model) if node.input[0] not in weights]
    # Three scales: an image in, the one from below in, the residual out; none in from below at
    # the coarsest.
    assert len(activations) == 8
    assert {node.input[0] for node in casts(model)} >= {
        row.name for row in nano.manifest.parameters if row.name in weights
    }


def test_nothing_is_left_outside(nano: Bundle, tmp_path: Path) -> None:
    model = cast_graph(nano, "restore.onnx", "fp16")
    assert all(t.data_location != TensorProto.EXTERNAL for t in model.graph.initializer)
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights, offsets = nano.weights(), nano.offsets()
    names = [row.name for row in nano.manifest.parameters if row.name in held]
    assert names
    for name in names:
        np.testing.assert_array_equal(held[name].ravel(), weights[offsets[name]])
    file = tmp_path / "half.onnx"
    save_graph(model, file)
    assert onnx.load(file) == model
    assert [path.name for path in tmp_path.iterdir()] == ["half.onnx"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_outside_are_left_where_they_are(tmp_path: Path, precision: Precision) -> None:
    bundle = open_bundle(write_tiny_bundle(tmp_path / "x.bundle"))
    model = cast_model(read_graph(bundle.path / "restore.onnx"), precision)
    locations = [t.external_data[0].value for t in model.graph.initializer if t.external_data]
    assert locations == [WEIGHTS, WEIGHTS]
    save_graph(model, bundle.path / "half.onnx")
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 8, 12)).astype(np.float32)
    complete = cast_graph(bundle, "restore.onnx", precision)
    found = run(rounded(onnx.load(bundle.path / "half.onnx")), {"image": image})
    np.testing.assert_array_equal(
        found["restored"], run(rounded(complete), {"image": image})["restored"]
    )


def test_fp32_changes_nothing(nano: Bundle) -> None:
    model = read_graph(nano.path / "adapt.heads.onnx")
    same = cast_model(model, "fp32")
    assert same == model
    assert same is not model


def test_what_is_given_stays_as_it_was(nano: Bundle) -> None:
    model = read_graph(nano.path / "adapt.heads.onnx")
    before = model.SerializeToString()
    assert cast_model(model, "bf16") != model
    assert model.SerializeToString() == before


def test_an_operator_without_16_bits_in_the_standard_stays_in_float32() -> None:
    model = onnx.parser.parse_model(
        f"""<{HEAD}> g (float[1,3,8,8] image, float[2,3,1,1] weight) => (float[1,2,8,8] y) {{
            f = Conv(image, weight)
            length = Constant<value_ints=[8]>()
            back = ReverseSequence<batch_axis=0, time_axis=2>(f, length)
            y = Tanh(back)
        }}"""
    )
    kinds = types(cast_model(model, "bf16"))  # fails where types do not agree
    assert kinds["f.bf16"] == TensorProto.BFLOAT16
    assert "back.bf16" not in kinds  # no release of ONNX has it in bfloat16
    assert "back.fp16" in types(cast_model(model, "fp16"))


def test_an_operator_of_another_domain_is_left_alone_whatever_its_name() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18, "elsewhere" : 1]>
            g (float[1,3,8,8] image, float[3,3,1,1] weight) => (float[1,3,8,8] y)
            <float[1,3,8,8] turned, float[1,3,8,8] theirs> {
            turned = Transpose<perm=[0,1,3,2]>(image)
            theirs = elsewhere.Conv(turned, weight)
            y = Conv(theirs, weight)
        }"""
    )
    nodes = {node.op_type: node for node in cast_model(model, "fp16").graph.node}
    assert list(nodes["Transpose"].output) == ["turned"]
    (theirs,) = (n for n in cast_model(model, "fp16").graph.node if n.domain == "elsewhere")
    assert list(theirs.input) == ["turned", "weight"]


def test_an_output_that_is_also_read_in_16_bits_is_not_rounded() -> None:
    model = onnx.parser.parse_model(
        f"""<{HEAD}> g (float[1,3,8,8] image, float[2,3,1,1] weight)
            => (float[1,3,8,8] turned, float[1,2,8,8] y) {{
            turned = Transpose<perm=[0,1,3,2]>(image)
            y = Conv(turned, weight)
        }}"""
    )
    rng = np.random.default_rng(0)
    feeds = {
        "image": rng.uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32),
        "weight": rng.uniform(-1, 1, (2, 3, 1, 1)).astype(np.float32),
    }
    found = run(rounded(cast_model(model, "fp16")), feeds)
    np.testing.assert_array_equal(found["turned"], feeds["image"].transpose(0, 1, 3, 2))


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(BundleError, match="names 0 versions of ONNX's operators"):
        cast_model(onnx.ModelProto(), "fp16")
    old = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 8]> g (float[1,3,8,8] image) => (float[1,3,4,4] y)
        { y = MaxUnpool<kernel_shape=[2,2]>(image) }"""
    )
    with pytest.raises(BundleError, match=r"cannot be brought to bf16 .*MaxUnpool"):
        cast_model(old, "bf16")


@pytest.mark.parametrize("graph", ["restore.onnx", "adapt.all.onnx"])
def test_another_implementation_of_16_bits_agrees(tiny: Path, graph: str) -> None:
    """`rounded`, by which the other tests judge, against numpy's own float16."""
    bundle = open_bundle(tiny)
    model = cast_graph(bundle, graph, "fp16")
    rng = np.random.default_rng(0)
    feeds = {"image": rng.uniform(-1, 1, (1, 3, 8, 12)).astype(np.float32)}
    if graph != "restore.onnx":
        feeds |= random_parameters(seed=5)
    names = [output.name for output in model.graph.output]
    numpys = ReferenceEvaluator(model).run(names, feeds)
    for name, expected in zip(names, numpys, strict=True):
        actual = run(rounded(model), feeds)[name]
        # numpy rounds after each of 28 additions, a GPU and `rounded` once.
        assert np.abs(actual - expected).max() <= 28 * 2.0**-11 * np.abs(expected).max(), name


def test_a_graph_within_a_node_is_refused(tiny: Path) -> None:
    model = onnx.parser.parse_model(
        f"""<{HEAD}> g (float[1,3,H,W] image, bool b) => (float[1,3,H,W] restored) {{
            restored = If (b) <
                then_branch = t () => (float[1,3,H,W] p) {{ p = Identity(image) }},
                else_branch = e () => (float[1,3,H,W] q) {{ q = Neg(image) }}
            >
        }}"""
    )
    with pytest.raises(BundleError, match=r"If 'restored' has a graph of its own"):
        cast_model(model, "fp16")
    bundle = open_bundle(tiny)
    damaged = Bundle(bundle.path, bundle.manifest)
    with pytest.raises(BundleError, match=r"nothing\.onnx"):
        cast_graph(damaged, "nothing.onnx", "fp16")


def test_an_operator_of_unknown_type_is_refused_with_the_file(tmp_path: Path) -> None:
    bundle = open_bundle(write_tiny_bundle(tmp_path / "x.bundle"))
    model = onnx.load(bundle.path / "loss.onnx")
    model.graph.node[0].op_type, model.graph.node[0].domain = "Convolve", "elsewhere"
    model.opset_import.add(domain="elsewhere", version=1)
    onnx.save(model, bundle.path / "loss.onnx")
    with pytest.raises(BundleError, match=r"loss\.onnx: the type of 'r' \(Convolve\)") as caught:
        cast_graph(bundle, "loss.onnx", "fp16")
    assert "use fp32" in str(caught.value)


# Operators of one and of two arguments that keep the shape of images of four channels.
UNARY = {
    "conv": "Conv<pads=[1,1,1,1]>({0}, weight)",
    "leaky": "LeakyRelu<alpha=0.2>({0})",
    "tanh": "Tanh({0})",
    "erf": "Erf({0})",
    "slices": "Transpose<perm=[0,1,3,2]>({0})",
    "pool": "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>({0})",
    "scaled": "Mul({0}, scale)",
    "sized": "Div({0}, number)",
}
BINARY = {"add": "Add({0}, {1})", "sub": "Sub({0}, {1})", "max": "Max({0}, {1})"}


@st.composite
def bodies(draw: st.DrawFn) -> str:
    """Nodes that each read one or two of the values before them; all ends are outputs."""
    values = ["start"]
    lines = []
    for index in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from([*UNARY, *BINARY]))
        read = [draw(st.sampled_from(values[-3:])) for _ in range(2)]
        lines.append(f"v{index} = " + {**UNARY, **BINARY}[kind].format(*read))
        values.append(f"v{index}")
    lines.append(f"y = Concat<axis=1>({', '.join(values[-2:])})")
    return "\n".join(lines)


@settings(max_examples=60, deadline=None)
@given(bodies(), st.sampled_from(PRECISIONS))
def test_any_graph_is_typed_and_close(body: str, precision: Precision) -> None:
    model = onnx.parser.parse_model(
        f"""<{HEAD}> g (float[1,3,8,8] image, float[4,4,3,3] weight, float[1,4,1,1] scale)
            => (float[1,8,8,8] y) {{
            channels = Constant<value_ints=[1]>()
            grey = ReduceMean(image, channels)
            start = Concat<axis=1>(image, grey)
            size = Size(image)
            number = Cast<to=1>(size)
            {body}
        }}"""
    )
    rng = np.random.default_rng(0)
    feeds = {
        "image": rng.uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32),
        "weight": rng.uniform(-0.2, 0.2, (4, 4, 3, 3)).astype(np.float32),
        "scale": rng.uniform(0.5, 1.5, (1, 4, 1, 1)).astype(np.float32),
    }
    cast = cast_model(model, precision)
    check_no_pointless_casts(cast)
    expected, actual = run(model, feeds)["y"], run(rounded(cast), feeds)["y"]
    # Twelve roundings, of weights and of activations, and what a difference may leave of them.
    bound = 64 * {"fp16": 2.0**-11, "bf16": 2.0**-8}[precision]
    assert np.abs(actual - expected).max() <= bound * max(1.0, float(np.abs(expected).max()))
