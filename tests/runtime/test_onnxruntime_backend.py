from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.errors import BackendError
from edgeadapt.runtime.backend import EngineOptions, Frame
from edgeadapt.runtime.onnxruntime_backend import OnnxRuntimeBackend
from support.tiny_bundle import SCOPES, SHAPES, evaluate, random_parameters, write_tiny_bundle

# Values up to 4 are sums of 28 products in float32, and means of up to 500 such squares.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}


class Opened:
    """A backend on weights that are not the bundle's, with gradients that start as NaN."""

    def __init__(self, bundle: Bundle) -> None:
        self.offsets = bundle.offsets()
        self.parameters = random_parameters(seed=5)
        self.weights = np.empty_like(bundle.weights())
        self.set(self.parameters)
        self.gradients = np.full_like(self.weights, np.nan)
        self.backend = OnnxRuntimeBackend(bundle, self.weights, self.gradients, EngineOptions(1))

    def set(self, parameters: dict[str, np.ndarray]) -> None:
        for name, part in self.offsets.items():
            self.weights[part] = parameters[name].ravel()

    def gradient(self, name: str) -> np.ndarray:
        return self.gradients[self.offsets[name]].reshape(SHAPES[name])


@pytest.fixture
def opened(tiny: Path) -> Opened:
    return Opened(open_bundle(tiny))


def frame(height: int = 8, width: int = 20, seed: int = 0) -> Frame:
    image = np.random.default_rng(seed).uniform(-1, 1, (1, 3, height, width)).astype(np.float32)
    return Frame(image, np.full_like(image, np.nan))


@pytest.mark.parametrize("scope", sorted(SCOPES))
def test_gradients_land_in_the_flat_array_and_nowhere_else(opened: Opened, scope: str) -> None:
    at = frame()
    loss = opened.backend.gradients(scope, at)
    expected = evaluate(opened.parameters, at.image)
    assert math.isclose(loss, expected.loss, rel_tol=1e-5)
    np.testing.assert_allclose(at.restored, expected.restored, **TOLERANCE)
    for name in SHAPES:
        if name in SCOPES[scope]:
            np.testing.assert_allclose(opened.gradient(name), expected.gradients[name], **TOLERANCE)
        else:
            assert np.isnan(opened.gradient(name)).all()


def test_the_reference_gradient_is_the_derivative_of_the_reference_loss() -> None:
    image, parameters = frame().image, random_parameters(seed=5)
    gradients = evaluate(parameters, image).gradients
    rng = np.random.default_rng(0)
    for name, value in parameters.items():
        direction = rng.standard_normal(value.shape)
        losses = [
            evaluate({**parameters, name: value + sign * 1e-4 * direction}, image).loss
            for sign in (1.0, -1.0)
        ]
        slope = (losses[0] - losses[1]) / 2e-4
        # The loss is a polynomial of degree at most four: the difference errs by about 1e-8.
        assert math.isclose(slope, float((gradients[name] * direction).sum()), rel_tol=1e-6)


def test_the_loss_and_the_restored_image_follow_the_weights(opened: Opened) -> None:
    at = frame()
    for seed in (5, 6):
        opened.set(random_parameters(seed))
        expected = evaluate(random_parameters(seed), at.image)
        assert math.isclose(opened.backend.loss(at), expected.loss, rel_tol=1e-5)
        np.testing.assert_allclose(at.restored, expected.restored, **TOLERANCE)
        at.restored.fill(np.nan)
        opened.backend.restore_adapted(at)
        np.testing.assert_allclose(at.restored, expected.restored, **TOLERANCE)


def test_plain_restoration_uses_the_bundles_weights(opened: Opened) -> None:
    at = frame()
    opened.backend.restore(at)
    expected = evaluate(random_parameters(seed=0), at.image).restored
    np.testing.assert_allclose(at.restored, expected, **TOLERANCE)


def test_frames_of_several_sizes_take_turns(opened: Opened) -> None:
    frames = [frame(8, 20), frame(4, 4), frame(12, 8), frame(8, 20, seed=1)]
    for at in [*frames, *reversed(frames)]:
        at.restored.fill(np.nan)
        opened.backend.gradients("bias", at)
        expected = evaluate(opened.parameters, at.image)
        np.testing.assert_allclose(at.restored, expected.restored, **TOLERANCE)


def test_a_call_makes_no_array(opened: Opened) -> None:
    at = frame(256, 256)
    opened.backend.gradients("all", at)
    opened.backend.loss(at)
    tracemalloc.start()
    opened.backend.gradients("all", at)
    opened.backend.loss(at)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000  # the image alone would be 786,432


def test_a_graph_the_engine_cannot_open_is_one_error(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "x.bundle")
    bundle = open_bundle(folder)
    model = onnx.load(folder / "loss.onnx")
    model.graph.node[0].op_type = "Convolve"
    onnx.save(model, folder / "loss.onnx")
    with pytest.raises(BackendError, match=r"cannot open .*loss.onnx.*Convolve") as caught:
        Opened(bundle).backend.loss(frame())
    assert "\n" not in str(caught.value)


def test_a_gradient_of_another_shape_does_not_write_past_its_place(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "x.bundle")
    bundle = open_bundle(folder)
    model = onnx.load(folder / "adapt.heads.onnx")
    for node in model.graph.node:
        if node.output[0] == "grad.head.gain":  # (3, 1, 1) becomes (1, 3, H, W)
            node.op_type, node.input[0] = "Identity", "by_y"
            del node.input[1:]
    model.graph.output[3].type.tensor_type.ClearField("shape")
    onnx.save(model, folder / "adapt.heads.onnx")
    opened = Opened(bundle)
    with pytest.raises(BackendError, match="failed on an image of 20x8"):
        opened.backend.gradients("heads", frame())
    for name in ("conv.weight", "conv.bias", "tail.bias"):
        assert np.isnan(opened.gradient(name)).all()
