from __future__ import annotations

import copy
import json
import math
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from edgeadapt.bundle import MANIFEST, WEIGHTS, open_bundle, safetensors_layout
from edgeadapt.errors import BundleError
from edgeadapt.files import sha256
from support.tiny_bundle import SHAPES, random_parameters

Edit = Callable[[dict[str, Any]], object]


def rewrite(bundle: Path, edit: Edit = lambda document: None) -> None:
    """Edit the manifest with true hashes, as an attacker would: only the check meant can fail."""
    document = json.loads((bundle / MANIFEST).read_text())
    for file in bundle.iterdir():
        if file.name in document["files"]:
            document["files"][file.name] = sha256(file)
    edit(document)
    (bundle / MANIFEST).write_text(json.dumps(document))


def edit_graph(bundle: Path, name: str, edit: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(bundle / name, load_external_data=False)
    edit(model)
    (bundle / name).write_bytes(model.SerializeToString())
    rewrite(bundle)


def refused(bundle: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_weights_come_in_the_order_of_the_table(tiny: Path) -> None:
    bundle = open_bundle(tiny)
    flat, expected = bundle.weights(), random_parameters(0)
    assert flat.dtype == np.float32
    assert flat.size == sum(math.prod(shape) for shape in SHAPES.values())
    for name, part in bundle.offsets().items():
        assert np.array_equal(flat[part].reshape(SHAPES[name]), expected[name])
    flat[:] = 0.0  # a copy: the next one is not zero
    assert bundle.weights().any()


def test_the_parts_of_a_flat_array_are_views_by_name(tiny: Path) -> None:
    bundle = open_bundle(tiny)
    flat, expected = bundle.weights().astype(np.float64), random_parameters(0)
    found = bundle.named(flat)
    assert list(found) == [row.name for row in bundle.manifest.parameters]
    for name, part in found.items():
        assert np.shares_memory(part, flat)
        np.testing.assert_array_equal(part, expected[name])
        assert part.shape == SHAPES[name]
    heads = bundle.named(flat, "heads")
    assert tuple(heads) == bundle.scope("heads").parameters
    assert all(np.shares_memory(part, found[name]) for name, part in heads.items())


def test_a_scope_that_is_not_there_is_named_with_those_that_are(tiny: Path) -> None:
    with pytest.raises(BundleError, match=r"no adaptation scope 'tail'.*all, bias, heads"):
        open_bundle(tiny).scope("tail")


def test_the_layout_of_a_safetensors_file(tmp_path: Path) -> None:
    tensors = {"b": np.arange(3, dtype=np.float32), "a": np.arange(2, dtype=np.float64)}
    save_file(tensors, tmp_path / "x", {"note": "ignored"})
    content = (tmp_path / "x").read_bytes()
    for name, (offset, length) in safetensors_layout(tmp_path / "x").items():
        assert content[offset : offset + length] == tensors[name].tobytes()


def test_no_bundle_at_all(tmp_path: Path) -> None:
    refused(tmp_path, r"not a bundle, it has no manifest.json.*Hint:")
    refused(tmp_path / "absent", "not a bundle")


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "restore.onnx", "loss.onnx", "adapt.bias.onnx"]
)
def test_a_missing_file_and_a_changed_byte(tiny: Path, name: str) -> None:
    content = (tiny / name).read_bytes()
    for index in (0, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[index] ^= 1
        (tiny / name).write_bytes(changed)
        refused(tiny, f"{name}: its bytes are not the ones")
    (tiny / name).unlink()
    refused(tiny, f"{name} is missing")


def test_a_link_in_place_of_a_file(tiny: Path, tmp_path: Path) -> None:
    shutil.move(tiny / "loss.onnx", tmp_path / "outside.onnx")
    (tiny / "loss.onnx").symlink_to(tmp_path / "outside.onnx")
    refused(tiny, "loss.onnx is missing")


MANIFEST_EDITS: list[tuple[str, Edit, str]] = [
    ("newer", lambda d: d.update(format_version=2), "format 2 is newer.*upgrade edgeadapt"),
    ("no version", lambda d: d.pop("format_version"), "format_version must be a positive integer"),
    ("true", lambda d: d.update(format_version=True), "positive integer, got True"),
    ("unknown key", lambda d: d.update(extra=1), "extra"),
    ("missing key", lambda d: d.pop("image"), "image"),
    ("text for a number", lambda d: d["image"].update(size_multiple="4"), "expected int"),
    ("number for a text", lambda d: d["model"].update(name=5), "expected str, got 5"),
    ("text for a shape", lambda d: d["parameters"][0].update(shape="33"), "expected int"),
    ("multiple 0", lambda d: d["image"].update(size_multiple=0), "size_multiple must be from 1"),
    (
        "vast",
        lambda d: d["image"].update(size_multiple=10**12),
        "from 1 to 4096, got 1000000000000",
    ),
    ("one channel", lambda d: d["image"].update(channels=1), "RGB NCHW with 1 channels"),
    ("0 to 1", lambda d: d["image"].update(low=0.0), r"in \[0, 1\]"),
    ("steps", lambda d: d["adaptation"].update(steps=-1), "steps must be from 0 to 10000, got -1"),
    ("endless", lambda d: d["adaptation"].update(steps=10_001), "to 10000, got 10001"),
    ("lion", lambda d: d["adaptation"].update(optimizer="lion"), "sgd or adam, got 'lion'"),
    ("true", lambda d: d["adaptation"].update(steps=True), "expected int, got True"),
    ("nan", lambda d: d["adaptation"].update(step_size=math.nan), "finite number, got nan"),
    ("negative", lambda d: d["adaptation"].update(step_size=-1), "step size must be at least 0"),
    ("stranger", lambda d: d["adaptation"].update(step_sizes={"x": 1}), "unknown parameter 'x'"),
    ("twice", lambda d: d["parameters"].append(d["parameters"][0]), "is listed twice"),
    ("empty", lambda d: d.update(parameters=[], scopes=[]), "parameter table is empty"),
    ("scope twice", lambda d: d["scopes"].append(d["scopes"][0]), "scope 'all' is listed twice"),
    ("in scope", lambda d: d["scopes"][0]["parameters"].append("x"), "unknown parameter 'x'"),
    ("again", lambda d: d["scopes"][0]["parameters"].append("conv.bias"), "'conv.bias' twice"),
    ("no hash", lambda d: d["files"].pop("loss.onnx"), "no hash for 'loss.onnx'"),
    ("path", lambda d: d["files"].update({"../x": ""}), "'../x' is not the plain name"),
    ("nul", lambda d: d["files"].update({"x\0": ""}), "is not the plain name"),
    ("long", lambda d: d["files"].update({"x" * 300: ""}), "cannot be read"),
    ("shape", lambda d: d["parameters"][0].update(shape=[4]), "manifest.json says F32"),
    ("no side", lambda d: d["parameters"][0].update(shape=[-1, -3]), r"has the shape \(-1, -3\)"),
    ("order", lambda d: d["parameters"].reverse(), "not where the order of the table puts it"),
    ("fewer", lambda d: d["parameters"].pop(), "unknown parameter 'tail.bias'"),
]


@pytest.mark.parametrize(
    ("edit", "message"),
    [case[1:] for case in MANIFEST_EDITS],
    ids=[case[0] for case in MANIFEST_EDITS],
)
def test_a_manifest_that_does_not_hold(tiny: Path, edit: Edit, message: str) -> None:
    rewrite(tiny, edit)
    refused(tiny, message)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"format_version": 1}'])
def test_a_manifest_that_is_none(tiny: Path, text: str) -> None:
    (tiny / MANIFEST).write_text(text)
    refused(tiny, "manifest.json")


def test_weights_that_the_table_does_not_describe(tiny: Path) -> None:
    tensors = load_file(tiny / WEIGHTS)
    for changed, message in (
        ({**tensors, "zzz": np.zeros(1, np.float32)}, "holds 'zzz'"),
        ({**tensors, "tail.bias": np.zeros(3, np.int32)}, "is I32"),
        (
            {name: tensors[name] for name in tensors if name != "tail.bias"},
            "'tail.bias' is missing",
        ),
    ):
        save_file(changed, tiny / WEIGHTS)
        rewrite(tiny)
        refused(tiny, message)


def test_weights_cut_short_or_too_long(tiny: Path) -> None:
    content = (tiny / WEIGHTS).read_bytes()
    for changed in (content[:-4], content + b"\0", content[:4], b""):
        (tiny / WEIGHTS).write_bytes(changed)
        rewrite(tiny)
        refused(tiny, f"{WEIGHTS}: (not a safetensors file|.* bytes, expected)")


def test_a_weights_header_that_is_nested_without_end(tiny: Path) -> None:
    header = b"[" * 100_000
    (tiny / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)
    rewrite(tiny)
    refused(tiny, "not a safetensors file")


def test_a_name_that_is_no_text(tiny: Path) -> None:
    content = (tiny / "loss.onnx").read_bytes()
    (tiny / "loss.onnx").write_bytes(content.replace(b"tail.bias", b"\xff\xfe\xfd.bias\xff"))
    rewrite(tiny)
    refused(tiny, "loss.onnx")


def external(name: str, location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, dims=[1], data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "unlisted.bin", ""])
@pytest.mark.parametrize(
    "place",
    ["initializer", "attribute", "subgraph", "function", "default", "training", "training start"],
)
def test_external_data_that_points_outside(tiny: Path, location: str, place: str) -> None:
    def edit(model: onnx.ModelProto) -> None:
        tensor = external("evil", location)
        constant = onnx.helper.make_node("Constant", [], ["unused"], value=tensor)
        if place == "initializer":
            model.graph.initializer.append(tensor)
        elif place == "attribute":
            model.graph.node.append(constant)
        elif place == "subgraph":
            inner = onnx.helper.make_graph([constant], "inner", [], [])
            node = onnx.helper.make_node("If", ["c"], ["u"], then_branch=inner, else_branch=inner)
            model.graph.node.append(node)
        elif place == "function":
            model.functions.append(onnx.FunctionProto(name="f", domain="d", node=[constant]))
        elif place == "default":
            default = onnx.helper.make_attribute("a", tensor)
            model.functions.append(onnx.FunctionProto(name="f", attribute_proto=[default]))
        elif place == "training":
            model.training_info.add().algorithm.initializer.append(tensor)
        else:
            model.training_info.add().initialization.node.append(constant)

    edit_graph(tiny, "adapt.all.onnx", edit)
    refused(tiny, r"tensor 'evil' refers to .* not a file of the bundle")


@pytest.mark.parametrize("locations", [("../secret", WEIGHTS), (WEIGHTS, "../secret")])
def test_external_data_with_two_locations(tiny: Path, locations: tuple[str, str]) -> None:
    def edit(model: onnx.ModelProto) -> None:
        tensor = external("evil", locations[0])
        tensor.external_data.add(key="location", value=locations[1])
        model.graph.initializer.append(tensor)

    edit_graph(tiny, "loss.onnx", edit)
    refused(tiny, "tensor 'evil'")


def set_shape(value: onnx.ValueInfoProto, sides: list[int]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for side in sides:
        shape.dim.add(dim_value=side)


def drop_shape(value: onnx.ValueInfoProto) -> None:
    value.type.tensor_type.ClearField("shape")


def set_type(value: onnx.ValueInfoProto, kind: int) -> None:
    value.type.tensor_type.elem_type = kind


GRAPH_EDITS: list[tuple[str, Callable[[onnx.ModelProto], object], str]] = [
    ("input missing", lambda m: m.graph.input.pop(), "'nothing' in place of 'tail.bias'"),
    ("input more", lambda m: m.graph.input.add(name="x"), "'x' in place of 'nothing'"),
    ("output missing", lambda m: m.graph.output.pop(), "outputs do not match"),
    ("no graph", lambda m: m.ClearField("graph"), "'nothing' in place of 'image'"),
    (
        "parameter shape",
        lambda m: set_shape(m.graph.input[1], [4]),
        r"float32 \(3,\), got ONNX type 1 \(4,\)",
    ),
    ("one size", lambda m: set_shape(m.graph.input[0], [1, 3, 8, 8]), r"\(1, 3, 0, 0\)"),
    ("doubles", lambda m: set_type(m.graph.input[1], 11), "input .* got ONNX type 11"),
    ("double loss", lambda m: set_type(m.graph.output[0], 11), r"'loss' must .* \(\), got .* 11"),
    ("loss of a side", lambda m: set_shape(m.graph.output[0], [1]), "output 'loss' must be"),
    ("loss of any", lambda m: drop_shape(m.graph.output[0]), "'loss' .* without a shape"),
    ("no terms", lambda m: set_shape(m.graph.output[1], []), r"'loss_terms' .* \(terms,\), got"),
    ("terms of any", lambda m: set_shape(m.graph.output[1], [0]), "'loss_terms' must be"),
    ("terms by two", lambda m: set_shape(m.graph.output[1], [2, 1]), "'loss_terms' must be"),
    ("restored", lambda m: set_shape(m.graph.output[2], [1, 3, 8, 0]), "'restored' must be"),
    ("batch", lambda m: set_shape(m.graph.output[2], [2, 3, 0, 0]), "'restored' must be"),
    ("half restored", lambda m: set_type(m.graph.output[2], 10), "'restored' .* got ONNX type 10"),
    ("gradient", lambda m: set_shape(m.graph.output[-1], [4]), r"'grad.tail.bias' .* \(3,\), got"),
    ("gradients", lambda m: set_type(m.graph.output[-1], 7), "'grad.tail.bias' .* ONNX type 7"),
]


@pytest.mark.parametrize(
    ("edit", "message"),
    [case[1:] for case in GRAPH_EDITS],
    ids=[case[0] for case in GRAPH_EDITS],
)
def test_a_graph_that_does_not_fit(
    tiny: Path, edit: Callable[[onnx.ModelProto], object], message: str
) -> None:
    edit_graph(tiny, "adapt.all.onnx", edit)
    refused(tiny, message)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def paths(document: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document."""
    found = [prefix] if prefix else []
    items = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else []
    )
    for key, value in items:
        found += paths(value, (*prefix, key))
    return found


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(document)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


quick = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(data=st.data())
def test_any_value_anywhere_in_the_manifest_is_read_or_refused(
    tiny: Path, data: st.DataObject
) -> None:
    backup = tiny / "manifest.backup"
    if not backup.exists():
        shutil.copy(tiny / MANIFEST, backup)
    document = json.loads(backup.read_text())
    place = data.draw(st.sampled_from(paths(document)))
    changed = replaced(document, place, data.draw(json_values))
    (tiny / MANIFEST).write_text(json.dumps(changed))
    with suppress(BundleError):
        open_bundle(tiny)


@quick
@given(content=st.binary(max_size=200) | json_values.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_for_a_manifest_are_refused(tiny: Path, content: bytes) -> None:
    (tiny / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError):
        open_bundle(tiny)


@quick
@given(data=st.data())
def test_any_damage_behind_a_true_hash_is_read_or_refused(tiny: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([WEIGHTS, "restore.onnx", "adapt.heads.onnx"]))
    backup = tiny / f"{name}.backup"
    if not backup.exists():
        shutil.copy(tiny / name, backup)
    content = bytearray(backup.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tiny / name).write_bytes(content)
    rewrite(tiny)
    with suppress(BundleError):
        open_bundle(tiny)
    shutil.copy(backup, tiny / name)
