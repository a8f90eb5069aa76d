"""What cannot be exported is refused in one sentence that names it, with a hint."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeadapt.errors import ExportError
from edgeadapt.export.lowering import lower
from edgeadapt.export.trace import trace
from support.exporting import Around, export


def with_methods(**methods: Any) -> nn.Module:
    """A sound network, but for ``methods``."""
    return type("Changed", (Around,), methods)(torch.tanh)


def without(name: str) -> nn.Module:
    """A network that keeps the contract but for one part."""
    kept = {
        "size_multiple": 8,
        "restore": lambda self, image: image,
        "adaptation_loss": lambda self, image: image.mean()[None],
        "parameter_groups": lambda self: {},
    }
    del kept[name]
    return type("Incomplete", (nn.Module,), kept)()


def refusal(network: Any) -> ExportError:
    """The error with which the export of ``network`` ends: one sentence or two, and a hint."""
    with pytest.raises(ExportError) as caught:
        lower(trace(network))
    assert "\n" not in caught.value.message
    assert caught.value.message.endswith(".")
    return caught.value


def test_a_sound_network_is_not_refused():
    traced = trace(with_methods())
    assert traced.terms == 2
    assert {"loss", "loss_terms", "restored", "first.weight"} < traced.outputs.keys()
    lower(traced)


@pytest.mark.parametrize(
    "name", ["size_multiple", "restore", "adaptation_loss", "parameter_groups"]
)
def test_a_missing_part_of_the_contract_is_named(name: str):
    error = refusal(without(name))
    assert error.message == f"Incomplete cannot be exported: it has no {name}."
    assert "docs/architecture.md" in error.hint


def test_what_is_no_module_is_refused():
    with pytest.raises(ExportError, match="str cannot be exported: it has no size_multiple"):
        trace("a network")  # type: ignore[arg-type]


def groups(change: Callable[[dict[str, list[str]]], object]) -> nn.Module:
    def parameter_groups(self: Around) -> dict[str, list[str]]:
        found = Around.parameter_groups(self)
        change(found)
        return found

    return with_methods(parameter_groups=parameter_groups)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda found: found["last"].remove("last.bias"), "last.bias"),
        (lambda found: found["shared"].append("last.bias"), "last.bias"),
        (lambda found: found["shared"].append("shared.unknown"), "shared.unknown"),
        (lambda found: found["shared"].append("first.bias"), "first.bias"),
    ],
    ids=["in no group", "in two groups", "not of the network", "twice in a group"],
)
def test_every_parameter_is_in_one_group(change: Callable[[Any], object], named: str):
    assert f"{named!r} must be a parameter of the network" in refusal(groups(change)).message


@pytest.mark.parametrize("name", ["image", "loss", "loss_terms", "restored"])
def test_a_parameter_must_not_have_the_name_of_another_value_of_the_graph(name: str):
    network = with_methods()
    setattr(network, name, nn.Parameter(torch.zeros(1)))
    assert repr(name) in refusal(network).message


def test_float64_is_refused():
    error = refusal(with_methods().double())
    assert "first.weight must be float32, got float64" in error.message
    assert ".float()" in error.hint


def test_a_buffer_of_half_precision_is_refused():
    network = with_methods()
    network.register_buffer("scale", torch.ones(3, dtype=torch.float16))
    assert "scale must be float32, got float16" in refusal(network).message


@pytest.mark.parametrize("shape", [(), (2, 1)], ids=["a number", "a matrix"])
def test_the_loss_is_a_vector_of_terms(shape: tuple[int, ...]):
    def adaptation_loss(self: Around, image: Tensor) -> Tensor:
        terms = Around.adaptation_loss(self, image)
        return terms.sum() if shape == () else terms[:, None]

    error = refusal(with_methods(adaptation_loss=adaptation_loss))
    assert f"adaptation_loss must return a tensor of shape (terms,), got {shape}." in error.message
    assert "torch.stack" in error.hint


RESTORES: dict[str, Callable[[Tensor], Tensor]] = {
    "half the size": lambda image: F.avg_pool2d(image, 2),
    "a pixel less": lambda image: image[:, :, 1:],
    "a row less on the right": lambda image: image[..., 1:],
    "one channel": lambda image: image[:, :1],
    "no batch": lambda image: image[0],
}


@pytest.mark.parametrize("restore", RESTORES.values(), ids=RESTORES.keys())
def test_the_restored_image_has_the_shape_of_the_image(restore: Callable[[Tensor], Tensor]):
    # The loss is computed from something else, or it would fail first.
    changed = with_methods(
        restore=lambda self, image: restore(self.first(image)[:, :3]),
        adaptation_loss=lambda self, image: self.first(image).square().mean()[None],
    )
    assert "restore must return the shape of the image" in refusal(changed).message


def piece(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return Around(function)


FIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "int of a size": lambda x: x / int(x.shape[2]),
    "float of a size": lambda x: x * float(x.shape[3]) ** -1,
    "a branch on the size": lambda x: x if x.shape[2] == 80 else 2 * x,
    "parts of 8 rows": lambda x: torch.cat(x.split(8, 2)[::-1], 2),
    "Fourier transform": lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[2:]),
}


@pytest.mark.parametrize("function", FIXED.values(), ids=FIXED.keys())
def test_code_that_fixes_the_size_is_refused(function: Callable[[Tensor], Tensor]):
    error = refusal(piece(function))
    assert "one image size only" in error.message or "no ONNX lowering" in error.message
    assert error.hint


def larger_is_doubled(x: Tensor) -> Tensor:
    return 2 * x if x.shape[2] > 64 else x


PATHS: dict[str, Callable[[Tensor], Tensor]] = {
    "a branch on the size": larger_is_doubled,
    "the last 20 rows": lambda x: x * x[:, :, -20:].mean(),
}


@pytest.mark.parametrize("function", PATHS.values(), ids=PATHS.keys())
def test_a_path_that_only_some_sizes_take_is_refused(function: Callable[[Tensor], Tensor]):
    # The trace is right for its example size, and would be wrong at others without a word.
    error = refusal(piece(function))
    assert "takes a path that holds only for images with" in error.message
    if function is larger_is_doubled:
        assert "> 64 (" in error.message
        assert "in larger_is_doubled)" in error.message


def test_a_branch_on_pixels_is_refused():
    error = refusal(piece(lambda x: x if x.mean() > 0 else -x))
    assert "Around cannot be traced" in error.message
    assert "must not branch on pixel values" in error.hint


def test_leaving_pytorch_is_refused():
    error = refusal(piece(lambda x: x * torch.from_numpy(x.detach().numpy())))
    assert "Around cannot be traced" in error.message
    assert "leave PyTorch" in error.hint
    error = refusal(piece(lambda x: x * x.mean().item()))
    assert "aten._local_scalar_dense.default (at" in error.message


RESIZES: dict[str, dict[str, Any]] = {
    "a fixed size": {"size": (80, 104)},
    "bicubic": {"scale_factor": 2, "mode": "bicubic"},
    "aligned corners": {"scale_factor": 2, "mode": "bilinear", "align_corners": True},
    "antialiased": {"scale_factor": 0.5, "mode": "bilinear", "antialias": True},
    "a fraction": {"scale_factor": 1.5, "mode": "bilinear"},
    "one third": {"scale_factor": 1 / 3, "mode": "bilinear"},
    "two factors": {"scale_factor": (2, 1)},
    "two sizes": {"size": (7, 8)},
}


@pytest.mark.parametrize("options", RESIZES.values(), ids=RESIZES.keys())
def test_a_resize_without_lowering_is_named(options: dict[str, Any]):
    error = refusal(piece(lambda x: x * F.interpolate(x, **options).mean()))
    assert error.message.startswith("F.interpolate(") or "one image size only" in error.message


def test_an_operator_without_lowering_is_named_with_its_line():
    def forward(x: Tensor) -> Tensor:
        return torch.lgamma(x.abs() + 1) + torch.special.bessel_j0(x).detach()

    error = refusal(piece(forward))
    line = forward.__code__.co_firstlineno + 1
    place = f"(at {Path(__file__)}:{line}, in forward)"
    assert f"aten.lgamma.default {place}" in error.message
    assert f"aten.special_bessel_j0.default {place}" in error.message, "not only the first"
    assert f"aten.digamma.default {place}" in error.message, "the backward pass has a line too"
    assert "docs/operators.md" in error.hint


PARTLY: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "1-D convolution": (
        "convolution",
        lambda x: x * F.conv1d(x.flatten(2), torch.ones(6, 6, 1)).mean(),
    ),
    "pooling by ceil": (
        "avg_pool2d",
        lambda x: x * F.avg_pool2d(x, 3, 2, 1, ceil_mode=True).mean(),
    ),
    "padding left out of the mean": (
        "avg_pool2d",
        lambda x: x * F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    ),
    "a divisor": ("avg_pool2d", lambda x: x * F.avg_pool2d(x, 2, divisor_override=3).mean()),
    "third norm": ("linalg_vector_norm", lambda x: x * torch.linalg.vector_norm(x, 3)),
    "rolled as a vector": ("roll", lambda x: x.roll(3)),
}


@pytest.mark.parametrize("case", PARTLY.values(), ids=PARTLY.keys())
def test_arguments_without_lowering_are_named_with_their_line(case: Any):
    operator, function = case
    message = refusal(piece(function)).message
    line = function.__code__.co_firstlineno
    assert re.match(rf"aten\.{operator}\.\w+ \(at .*test_trace\.py:{line}, in <lambda>\)", message)


def test_a_loss_without_parameters_is_refused(tmp_path: Path):
    network = with_methods(adaptation_loss=lambda self, image: image.square().mean()[None])
    with pytest.raises(ExportError, match="adaptation_loss does not depend on any parameter"):
        export(network, tmp_path / "x.bundle")
    assert list(tmp_path.iterdir()) == []


def test_the_tracer_leaves_the_network_as_it_was():
    network = Around(nn.Dropout(0.5))
    network.train()
    network.first.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trace(network)
    assert network.training
    assert network.piece.training
    assert not network.first.weight.requires_grad
    assert network.first.bias.grad is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_parameters_the_loss_does_not_reach_have_no_gradient():
    network = with_methods()
    network.unused = nn.Parameter(torch.ones(2))
    traced = trace(network)
    assert "unused" not in traced.outputs
    assert "unused" in traced.inputs.values()
