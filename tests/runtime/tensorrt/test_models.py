"""The models that engines are built of compute what the bundle's graphs compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from edgeadapt.bundle import Bundle
from edgeadapt.errors import BundleError, ConfigError
from edgeadapt.runtime.tensorrt.models import (
    engine_model,
    graph_names,
    used_parameters,
)
from edgeadapt.testing import assert_gradient_close

Array = npt.NDArray[Any]
SIZE = (32, 48)


def image() -> Array:
    return np.random.default_rng(0).uniform(-1, 1, (1, 3, *SIZE)).astype(np.float32)


def run(model: onnx.ModelProto | str, feeds: dict[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    source = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def parameters(bundle: Bundle, seed: int | None = None) -> dict[str, Array]:
    """The bundle's own, or others near them."""
    flat = bundle.weights()
    if seed is not None:
        noise = np.random.default_rng(seed).standard_normal(flat.shape)
        flat = (flat + 0.1 * np.abs(flat).mean() * noise).astype(np.float32)
    return bundle.named(flat)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-6), ("tf32", 1e-6), ("fp16", 1e-2)])
def test_with_weights_as_inputs_it_restores_with_those_it_is_given(
    bundle: Bundle, precision: Any, bound: float
) -> None:
    model = engine_model(bundle, "restore", SIZE, precision, "inputs")
    given = parameters(bundle, seed=1)
    taken = {name: given[name] for name in used_parameters(bundle, model)}
    assert [value.name for value in model.graph.input] == ["image", *taken]
    assert 0 < len(taken) < len(given)  # the loss alone uses the others
    found = run(model, {"image": image(), **taken})["restored"]
    expected = run(str(bundle.path / "loss.onnx"), {"image": image(), **given})["restored"]
    assert found.dtype == np.float32
    assert_gradient_close(found, expected, bound)


@pytest.mark.parametrize("weights", ["refit", "constant"])
def test_with_weights_inside_it_restores_with_the_bundles(bundle: Bundle, weights: Any) -> None:
    model = engine_model(bundle, "restore", SIZE, "fp32", weights)
    assert [value.name for value in model.graph.input] == ["image"]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    expected = run(str(bundle.path / "restore.onnx"), {"image": image()})["restored"]
    assert_gradient_close(run(model, {"image": image()})["restored"], expected, 1e-6)


def test_in_bfloat16_transposed_convolutions_alone_compute_in_float32(bundle: Bundle) -> None:
    """ONNX Runtime's CPU has no convolution in bfloat16, so types are looked at, not values."""
    model = engine_model(bundle, "restore", SIZE, "bf16", "inputs")
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.value_info, *inferred.output, *inferred.input)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    found: dict[str, set[int]] = {"Conv": set(), "ConvTranspose": set()}
    for node in inferred.node:
        if node.op_type in found:
            found[node.op_type] |= {types[name] for name in (*node.input, *node.output)}
    bfloat16, float32 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    assert found == {"Conv": {bfloat16}, "ConvTranspose": {float32}}


def test_a_step_gives_what_the_bundles_graph_gives(bundle: Bundle) -> None:
    model = engine_model(bundle, "adapt.heads", SIZE, "fp32", "inputs")
    feeds = {"image": image(), **parameters(bundle, seed=2)}
    found, expected = (run(m, feeds) for m in (model, str(bundle.path / "adapt.heads.onnx")))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_gradient_close(found[name], value, 1e-5, name)


def test_sizes_are_fixed(bundle: Bundle) -> None:
    graph = engine_model(bundle, "loss", SIZE, "fp32", "inputs").graph
    values = {value.name: value for value in (*graph.input, *graph.output)}
    for name in ("image", "restored"):
        sides = values[name].type.tensor_type.shape.dim
        assert [side.dim_value for side in sides] == [1, 3, *SIZE]
        assert not any(side.dim_param for side in sides)


def test_what_cannot_be_had_is_refused(bundle: Bundle) -> None:
    names = "restore, loss, adapt.all, adapt.heads, adapt.bias"
    assert ", ".join(graph_names(bundle)) == names
    with pytest.raises(ConfigError, match=f"graph must be one of {names}, got 'nothing'"):
        engine_model(bundle, "nothing", SIZE, "fp32", "inputs")
    with pytest.raises(BundleError, match="no adaptation scope 'none'"):
        engine_model(bundle, "adapt.none", SIZE, "fp32", "inputs")
    with pytest.raises(ConfigError, match=r"weights must be inputs for the graph loss, got 'refit"):
        engine_model(bundle, "loss", SIZE, "fp32", "refit")
    with pytest.raises(ConfigError, match=r"multiples of 16 .* got 50x32.* padded to 64x32"):
        engine_model(bundle, "restore", (32, 50), "fp32", "inputs")
