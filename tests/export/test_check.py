"""`edgeadapt.export.check`: a sound bundle passes, and every planted fault is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeadapt.bundle import Adaptation, Bundle, open_bundle
from edgeadapt.errors import BundleError
from edgeadapt.export import check
from edgeadapt.export.check import (
    Finding,
    Graphs,
    compare,
    failures,
    largest_drift,
    same_weights,
    smooth_image,
)
from edgeadapt.export.reference import Reference, apply_step, count_kinks, make_optimizer
from edgeadapt.files import sha256
from edgeadapt.training.network import build
from support.exporting import export

SMALL: dict[str, Any] = {"widths": [4, 6], "n_scales": 2, "blocks": 1, "share_scales": True}


def network(**options: Any) -> Any:
    torch.manual_seed(3)
    return build(**SMALL | options)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    scopes = {"all": "all", "bias": "bias"}
    return export(network(), tmp_path_factory.mktemp("check") / "sound.bundle", scopes)


@pytest.fixture
def copied(sound: Bundle, tmp_path: Path) -> Path:
    """A bundle of its own, so that it may be changed."""
    return Path(shutil.copytree(sound.path, tmp_path / "copied.bundle"))


def rewrite(bundle: Path, graph: str, change: Callable[[onnx.ModelProto], None]) -> Bundle:
    """Change a graph, and its hash in the manifest too."""
    model = onnx.load(bundle / graph, load_external_data=False)
    before = model.SerializeToString()
    change(model)
    assert model.SerializeToString() != before
    (bundle / graph).write_bytes(model.SerializeToString())
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][graph] = sha256(bundle / graph)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return open_bundle(bundle)


def found(bundle: Bundle, other: nn.Module | None = None) -> set[str]:
    """What a check finds out of bounds."""
    return {finding.what for finding in failures(compare(bundle, Reference(other or network())))}


def test_a_sound_bundle_passes(sound: Bundle):
    stages: list[str] = []
    findings = compare(sound, Reference(network()), stages.append)
    assert failures(findings) == []
    assert {finding.what for finding in findings} >= {
        "restore: image",
        "loss: loss",
        "adapt.all: 34 gradients",
        "adapt.bias: image",
        "2 steps of scope all: losses",
        "2 steps of scope bias: weights",
        "2 steps of scope all: image, dB",
    }
    # Were they all zero, nothing would have been compared.
    assert all(finding.value > 0 for finding in findings if "gradients" in finding.what)
    assert "comparing at 12x8" in stages
    assert "comparing a trajectory of scope bias" in stages


def test_a_network_of_another_weight_is_loaded_with_the_bundles(sound: Bundle):
    torch.manual_seed(99)
    assert found(sound, build(**SMALL)) == set()


@pytest.mark.parametrize(
    "options", [{"slope": 0.2}, {"stop_gradient": False}, {"recurrence_start": "zeros"}], ids=str
)
def test_another_network_of_the_same_parameters_is_found(sound: Bundle, options: dict[str, Any]):
    wrong = found(sound, network(**options))
    assert "adapt.all: 34 gradients" in wrong
    # Where the gradient is stopped is no matter of restoring.
    assert ("restore: image" in wrong) == ("stop_gradient" not in options)


def function_node(model: onnx.ModelProto, function: str, kind: str) -> onnx.NodeProto:
    """The first node of this kind in the body of a local function."""
    body = next(f.node for f in model.functions if f.name.startswith(function))
    return next(node for node in body if node.op_type == kind)


def swap_branches(model: onnx.ModelProto) -> None:
    node = function_node(model, "LeakyReluGrad", "Where")
    node.input[1], node.input[2] = node.input[2], node.input[1]


def change_slope(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "LeakyReluGrad")
    node.attribute[0].f *= 1.001


def move_padding(model: onnx.ModelProto) -> None:
    node = function_node(model, "ConvInputGrad_k3x3_s1x1", "Conv")
    pads = next(attribute for attribute in node.attribute if attribute.name == "pads")
    pads.ints[:] = [2, 0, 0, 2]


def scale_resize(model: onnx.ModelProto) -> None:
    node = function_node(model, "ResizeGrad", "Add")
    node.op_type = "Sub"


@pytest.mark.parametrize("change", [swap_branches, change_slope, move_padding, scale_resize])
def test_a_changed_backward_pass_is_found(copied: Path, change: Callable[..., None]):
    wrong = found(rewrite(copied, "adapt.all.onnx", change))
    assert "adapt.all: 34 gradients" in wrong
    assert not any(what.startswith(("restore", "loss", "adapt.bias")) for what in wrong)


def test_a_weight_taken_from_a_wrong_place_is_found(copied: Path):
    def shift(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        entry = next(e for e in tensor.external_data if e.key == "offset")
        entry.value = str(int(entry.value) + 4)

    assert found(rewrite(copied, "restore.onnx", shift)) == {"restore: image"}


def make_nan(output: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.output[0] == output)
        node.output[0] = "inner"
        nothing = onnx.helper.make_node("Sub", ["inner", "inner"], ["nothing"])
        nan = onnx.helper.make_node("Div", ["nothing", "nothing"], [output])
        for other in model.graph.node:
            other.input[:] = ["inner" if name == output else name for name in other.input]
        model.graph.node.extend([nothing, nan])

    return change


@pytest.mark.parametrize("which", [0, 7, -1])
def test_a_gradient_that_is_not_a_number_is_found(copied: Path, which: int):
    # NaN compares as false with everything, so the place in the list must not matter.
    name = open_bundle(copied).manifest.parameters[which].name
    wrong = found(rewrite(copied, "adapt.all.onnx", make_nan(f"grad.{name}")))
    assert {"adapt.all: 34 gradients", "2 steps of scope all: weights"} <= wrong


@pytest.mark.parametrize(("optimizer", "doubtful"), [("sgd", 0), ("adam", 3)])
def test_adam_may_leave_one_weight_in_a_thousand_elsewhere(optimizer: str, doubtful: int):
    exact = {"a": np.linspace(-1, 1, 2400), "b": np.zeros((2, 50))}
    moved = {name: value.astype(np.float32) for name, value in exact.items()}
    rounding = max(float(np.abs(moved[name] - exact[name]).max()) for name in exact)
    for count in range(5):
        worst = largest_drift(moved, exact, optimizer)
        assert 0 < worst <= rounding if count <= doubtful else worst == pytest.approx(1e-3)
        moved["b"][1, count] = 1e-3
    assert largest_drift({}, {}, optimizer) == 0.0
    moved["b"][0, 0] = np.nan
    assert np.isnan(largest_drift(moved, exact, optimizer))


@pytest.mark.parametrize("output", ["loss", "restored"])
def test_a_result_that_is_not_a_number_is_found(copied: Path, output: str):
    wrong = found(rewrite(copied, "loss.onnx", make_nan(output)))
    what = "losses" if output == "loss" else "image, dB"
    labels = {"loss": "loss: loss", "restored": "loss: image"}
    assert wrong == {
        labels[output],
        f"2 steps of scope all: {what}",
        f"2 steps of scope bias: {what}",
    }


def test_a_loss_off_by_a_little_is_found(copied: Path):
    def add(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.output[0] == "loss")
        node.output[0] = "inner"
        constant = onnx.numpy_helper.from_array(np.float32(1.0001), "factor")
        model.graph.initializer.append(constant)
        model.graph.node.append(onnx.helper.make_node("Mul", ["inner", "factor"], ["loss"]))

    assert found(rewrite(copied, "loss.onnx", add)) == {
        "loss: loss",
        "2 steps of scope all: losses",
        "2 steps of scope bias: losses",
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_trajectory_takes_the_bundles_step_sizes(optimizer: str):
    adaptation = Adaptation(1, optimizer, 0.5, {"b": 0.25})
    tensors = {name: torch.zeros(2) for name in ("a", "b", "c")}
    made = make_optimizer(tensors, adaptation, ("a", "b"))
    assert type(made) is {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    apply_step(made, tensors, {"a": np.full(2, 2.0), "b": np.full(2, 2.0)})
    # Adam's first step is the step size, whatever the gradient.
    expected = {"sgd": (-1.0, -0.5), "adam": (-0.5, -0.25)}[optimizer]
    assert tensors["a"].tolist() == pytest.approx([expected[0]] * 2)
    assert tensors["b"].tolist() == pytest.approx([expected[1]] * 2)
    assert tensors["c"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("values", [(1.0, 2.0, np.nan), (np.nan, 2.0, 1.0), (1.0, np.nan, 2.0)])
def test_of_several_sizes_the_worst_is_reported(values: tuple[float, ...]):
    findings = [Finding("x", value, 1.0, note=str(value)) for value in values]
    (worst,) = check._worst([*findings, Finding("x", 1.5, 1.0)])
    assert np.isnan(worst.value)
    (worst,) = check._worst([Finding("x", 1.5, 1.0), Finding("x", 2.5, 1.0)])
    assert worst.value == 2.5


def test_a_graph_that_does_not_open_is_named(copied: Path):
    def rename(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "Convolve"

    with pytest.raises(BundleError, match=r"loss\.onnx: ONNX Runtime cannot open it"):
        Graphs(rewrite(copied, "loss.onnx", rename))


def test_the_name_of_a_weight_that_differs(sound: Bundle):
    state = network().state_dict()
    assert same_weights(sound, state) == ""
    state["scales.0.primary.head.bias"][1] += 1e-7
    assert same_weights(sound, state) == "scales.0.primary.head.bias"
    del state["scales.0.primary.head.bias"]
    assert same_weights(sound, state) == "scales.0.primary.head.bias"


@pytest.mark.parametrize(
    ("value", "ok"), [(0.0, True), (1e-5, True), (1.1e-5, False), (np.nan, False), (np.inf, False)]
)
def test_a_finding_is_within_its_bound(value: float, ok: bool):
    assert Finding("x", value, 1e-5).ok is ok


class Kinked(nn.Module):
    """A function of the image alone, whose kinks the image therefore places."""

    size_multiple = 1

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def adaptation_loss(self, image: Tensor) -> Tensor:
        # Two operations that round, so that there is a rounding to measure.
        return self.function((image * 0.7 + 0.1) / 0.7 - 0.1 / 0.7).mean()[None]


def largest_of_pairs(x: Tensor, other: float) -> Tensor:
    """Each value against ``other``, as windows of 1x2; what ceil_mode adds are values alone."""
    pairs = torch.stack([x, torch.full_like(x, other)], -1).flatten(-2)
    pairs = torch.cat([pairs, torch.full_like(pairs[..., -1:], 1e-9)], -1)
    return F.max_pool2d(pairs, (1, 2), ceil_mode=True)


KINKS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "relu": (F.relu, 0.0),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), 0.0),
    "abs": (torch.abs, 0.0),
    "l1_loss": (lambda x: F.l1_loss(x, torch.full_like(x, 0.25)), 0.25),
    "clamp": (lambda x: x.clamp(-0.5, 0.5), 0.5),
    "clamp, from below": (lambda x: x.clamp(min=-0.5), -0.5),
    "clamp_min": (lambda x: x.clamp_min(-0.25), -0.25),
    "clamp_max": (lambda x: x.clamp_max(0.25), 0.25),
    "relu6": (F.relu6, 0.0),
    "hardtanh": (lambda x: F.hardtanh(x, -0.75, 0.5), -0.75),
    "hardswish": (lambda x: F.hardswish(4 * x), -0.75),
    "hardsigmoid": (lambda x: F.hardsigmoid(4 * x), 0.75),
    "maximum": (lambda x: torch.maximum(x, torch.full_like(x, 0.5)), 0.5),
    "minimum": (lambda x: torch.minimum(x, -x), 0.0),
    # The constant is off by less than float32 shows: equal values are no kink.
    "amax": (lambda x: torch.stack([x, torch.full_like(x, 0.3 + 1e-9)]).amax(0), 0.3),
    "amin": (lambda x: torch.stack([x, torch.full_like(x, 0.3 + 1e-9), x + 9]).amin(0), 0.3),
    "max_pool": (lambda x: largest_of_pairs(x, 0.3 + 1e-9), 0.3),
    "prelu": (lambda x: F.prelu(x, x.new_tensor([0.3])), 0.0),
}


@pytest.mark.parametrize("case", KINKS.values(), ids=KINKS.keys())
@pytest.mark.parametrize("count", [0, 1, 5])
def test_values_at_a_kink_are_counted(case: tuple[Callable[[Tensor], Tensor], float], count: int):
    function, kink = case
    # Multiples of 1/16 and a half: none within a thirtieth of a kink.
    image = (np.random.default_rng(0).integers(-16, 16, (1, 3, 5, 6)) + 0.5) / 16
    image.reshape(-1)[3 : 3 + 7 * count : 7] = kink
    assert count_kinks(Reference(Kinked(function)), image.astype(np.float32)) == count


def test_values_that_are_equal_without_rounding_are_no_kink():
    image = np.zeros((1, 3, 5, 4), np.float32)
    image[..., 1::2, :] = 0.5
    image[0, 0] = np.linspace(-1, 1, 20).reshape(5, 4)  # there is a rounding to measure
    pool = Kinked(lambda x: F.max_pool2d(torch.tanh(x), 3, 2, 1))
    assert count_kinks(Reference(pool), image) == 0


def test_a_smooth_function_has_no_kinks():
    image = np.zeros((1, 3, 4, 4), np.float32)
    assert count_kinks(Reference(Kinked(torch.tanh)), image) == 0


def rounding_only(x: Tensor) -> Tensor:
    """Zero but for rounding: every value is at a kink of what takes its absolute value."""
    return (x + 3.0) * (1.0 / 3.0) * 0.7 - (x + 3.0) * 0.7 / 3.0


def test_an_image_with_values_at_a_kink_is_passed_over():
    class Rough(Kinked):
        refused = np.inf  # the sum of an image that has many

        def adaptation_loss(self, image: Tensor) -> Tensor:
            at_kink = abs(float(image.double().sum()) - self.refused) < 1e-6
            return (rounding_only(image) if at_kink else image + 3.0).abs().mean()[None]

    rough = Rough(torch.abs)
    first, kinks = smooth_image(Reference(rough), 6, 5)
    assert kinks == 0
    rough.refused = float(first.astype(np.float64).sum())
    assert count_kinks(Reference(rough), first) > 0
    second, kinks = smooth_image(Reference(rough), 6, 5)
    assert kinks == 0
    assert not np.array_equal(first, second)
    assert first.shape == second.shape == (1, 3, 6, 5)
    assert first.dtype == np.float32
    assert np.abs(first).max() <= 1.05


def test_the_best_image_is_returned_if_all_have_values_at_a_kink():
    _, kinks = smooth_image(Reference(Kinked(lambda x: rounding_only(x).abs())), 2, 3)
    assert kinks > 0
