"""A bundle of 90 parameters written by hand, and the same network in numpy float64.

    r = conv(x, weight) + bias      y = x + r (restored)      e = gain y - x
    loss = mean e^2 + mean r^2 / 10

Its gradients are derived on paper and written below in standard ONNX operators, so the runtime can
be tested without PyTorch and without the exporter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
from safetensors.numpy import save_file

from edgeadapt.bundle import (
    LOSS_GRAPH,
    RESTORE_GRAPH,
    WEIGHTS,
    Adaptation,
    ImageContract,
    Manifest,
    Model,
    Parameter,
    Scope,
    safetensors_layout,
    write_manifest,
)

F64 = npt.NDArray[np.float64]

SHAPES = {"conv.weight": (3, 3, 3, 3), "conv.bias": (3,), "head.gain": (3, 1, 1), "tail.bias": (3,)}
GROUPS = {"conv.weight": "shared", "conv.bias": "shared", "head.gain": "aux", "tail.bias": "aux"}
SCOPES = {"all": tuple(sorted(SHAPES)), "bias": ("conv.bias", "tail.bias"), "heads": ("head.gain",)}
MULTIPLE = 4

_INPUTS = "float[1,3,H,W] image, " + ", ".join(
    f'float[{",".join(map(str, SHAPES[name]))}] "{name}"' for name in sorted(SHAPES)
)
_RESTORE = """
    r = Conv<pads=[1,1,1,1]>(image, "conv.weight", "conv.bias")
    restored = Add(image, r)
"""
_LOSS = """
    gained = Mul("head.gain", restored)
    axes = Constant<value_ints=[0,2,3]>()
    last = Constant<value_ints=[1,2]>()
    tail = Unsqueeze("tail.bias", last)
    reconstructed = Add(gained, tail)
    e = Sub(reconstructed, image)
    e2 = Mul(e, e)
    r2 = Mul(r, r)
    first = ReduceMean<keepdims=0>(e2)
    mean_r2 = ReduceMean<keepdims=0>(r2)
    tenth = Constant<value_float=0.1>()
    second = Mul(mean_r2, tenth)
    zero = Constant<value_ints=[0]>()
    first1 = Unsqueeze(first, zero)
    second1 = Unsqueeze(second, zero)
    loss_terms = Concat<axis=0>(first1, second1)
    loss = Add(first, second)
"""
_BACKWARD = """
    count_i = Size(image)
    count = Cast<to=1>(count_i)
    two = Constant<value_float=2.0>()
    scale = Div(two, count)
    grad_reconstructed = Mul(e, scale)
    "grad.tail.bias" = ReduceSum<keepdims=0>(grad_reconstructed, axes)
    by_y = Mul(grad_reconstructed, restored)
    gain4 = ReduceSum<keepdims=1>(by_y, axes)
    "grad.head.gain" = Squeeze(gain4, zero)
    grad_y = Mul(grad_reconstructed, "head.gain")
    r_scaled = Mul(r, scale)
    grad_r_direct = Mul(r_scaled, tenth)
    grad_r = Add(grad_y, grad_r_direct)
    "grad.conv.bias" = ReduceSum<keepdims=0>(grad_r, axes)
    image_t = Transpose<perm=[1,0,2,3]>(image)
    grad_r_t = Transpose<perm=[1,0,2,3]>(grad_r)
    grad_weight_t = Conv<pads=[1,1,1,1]>(image_t, grad_r_t)
    "grad.conv.weight" = Transpose<perm=[1,0,2,3]>(grad_weight_t)
"""
_STEP_OUTPUTS = "float loss, float[2] loss_terms, float[1,3,H,W] restored"


@dataclass(frozen=True)
class Evaluation:
    """What the graphs of the bundle should give, in float64."""

    loss: float
    terms: tuple[float, float]
    restored: F64
    gradients: dict[str, F64]


def random_parameters(seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Parameters around a network that restores a little, none of them zero or one."""
    rng = np.random.default_rng(seed)
    weights = {
        name: (0.1 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    weights["head.gain"] += np.float32(0.9)
    return weights


def evaluate(weights: Mapping[str, npt.NDArray[np.floating]], image: npt.NDArray) -> Evaluation:
    """Loss, restored image and every gradient on ``image`` (1, 3, H, W), in float64."""
    p = {name: value.astype(np.float64) for name, value in weights.items()}
    x = image[0].astype(np.float64)
    height, width = x.shape[1:]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    patches = np.stack(
        [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=1
    ).reshape(27, -1)
    r = (p["conv.weight"].reshape(3, 27) @ patches).reshape(x.shape) + p["conv.bias"][:, None, None]
    y = x + r
    e = p["head.gain"] * y + p["tail.bias"][:, None, None] - x
    terms = (float(np.mean(e**2)), 0.1 * float(np.mean(r**2)))
    grad_e = 2.0 * e / e.size
    grad_r = grad_e * p["head.gain"] + 0.2 * r / r.size
    gradients = {
        "tail.bias": grad_e.sum(axis=(1, 2)),
        "head.gain": (grad_e * y).sum(axis=(1, 2)).reshape(3, 1, 1),
        "conv.bias": grad_r.sum(axis=(1, 2)),
        "conv.weight": (grad_r.reshape(3, -1) @ patches.T).reshape(3, 3, 3, 3),
    }
    return Evaluation(sum(terms), terms, y[None], gradients)


def write_tiny_bundle(
    folder: Path,
    seed: int = 0,
    *,
    parameters: Mapping[str, npt.NDArray[np.float32]] | None = None,
    optimizer: str = "sgd",
    step_size: float = 0.05,
    step_sizes: Mapping[str, float] | None = None,
    steps: int = 3,
) -> Path:
    """Write the bundle into a new ``folder`` and return it."""
    folder.mkdir(parents=True)
    save_file(dict(parameters or random_parameters(seed)), folder / WEIGHTS)
    layout = safetensors_layout(folder / WEIGHTS)
    _write_restore_graph(folder, layout)
    _write_graph(folder / LOSS_GRAPH, _INPUTS, _STEP_OUTPUTS, _RESTORE + _LOSS)
    scopes = tuple(_write_scope(folder, name) for name in SCOPES)
    manifest = Manifest(
        format_version=1,
        model=Model("tiny", "a residual convolution for tests", "nowhere:tiny", {}),
        image=ImageContract(size_multiple=MULTIPLE),
        adaptation=Adaptation(steps, optimizer, step_size, dict(step_sizes or {})),
        parameters=tuple(Parameter(name, SHAPES[name], GROUPS[name]) for name in layout),
        scopes=scopes,
        files={},
        tools={"onnx": onnx.__version__},
    )
    write_manifest(folder, manifest)
    return folder


def _write_scope(folder: Path, name: str) -> Scope:
    gradients = ", ".join(
        f'float[{",".join(map(str, SHAPES[row]))}] "grad.{row}"' for row in SCOPES[name]
    )
    graph = f"adapt.{name}.onnx"
    body = _RESTORE + _LOSS + _BACKWARD
    _write_graph(folder / graph, _INPUTS, f"{_STEP_OUTPUTS}, {gradients}", body)
    return Scope(name, graph, name, SCOPES[name])


def _write_graph(file: Path, inputs: str, outputs: str, body: str) -> None:
    text = f'<ir_version: 9, opset_import: ["" : 18]> tiny ({inputs}) => ({outputs}) {{{body}}}'
    onnx.save(onnx.parser.parse_model(text), file)


def _write_restore_graph(folder: Path, layout: Mapping[str, tuple[int, int]]) -> None:
    text = (
        '<ir_version: 9, opset_import: ["" : 18]> tiny (float[1,3,H,W] image) '
        f"=> (float[1,3,H,W] restored) {{{_RESTORE}}}"
    )
    model = onnx.parser.parse_model(text)
    for name in ("conv.weight", "conv.bias"):
        tensor = onnx.TensorProto(name=name, dims=SHAPES[name], data_type=onnx.TensorProto.FLOAT)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        offset, length = layout[name]
        for key, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(tensor)
    onnx.save(model, folder / RESTORE_GRAPH)
