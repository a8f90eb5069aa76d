"""Convolutions that cuDNN computes: a fake of its frontend on host memory, against own kernels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.bundle import open_bundle
from edgeadapt.runtime.backend import EngineOptions, Frame
from edgeadapt.runtime.cuda import cudnn_plans
from edgeadapt.runtime.cuda.calls import packed_elements, run, scratch_asker
from edgeadapt.runtime.cuda.cudnn_cache import Choice
from edgeadapt.runtime.cuda.cudnn_calls import makers_with
from edgeadapt.runtime.cuda.cudnn_choice import Engines
from edgeadapt.runtime.cuda.cudnn_conv import Convolution, Layout
from edgeadapt.runtime.cuda.cudnn_measure import measure
from edgeadapt.runtime.cuda.cudnn_plans import Cudnn, CudnnError, open_cudnn
from edgeadapt.runtime.cuda.cudnn_trial import trial
from edgeadapt.runtime.cuda.plan import Target, compile_graph
from edgeadapt.runtime.cuda_backend import CudaBackend
from edgeadapt.testing import assert_gradient_close
from support.convolutions import image, plain, weight_grad
from support.cuda_steps import Steps
from support.fake_cudnn import FakeCudnn
from support.host_device import HostDevice


def every_operand(dtype: Any) -> dict[str, Layout]:
    return {role: image(16, 6, 5, dtype, 24) for role in ("add0", "add1", "post", "mask")}


CASES = {
    "plain": {},
    "bias and slope": {"bias": True, "slope": 0.1},
    "uneven pads": {"pads": ((2, 0), (0, 2))},
    "wide pixels": {"images": {"x": image(8, 6, 5, pitch=16), "y": image(16, 6, 5, pitch=32)}},
    "stride 2": {
        "strides": (2, 2), "images": {"y": image(16, 3, 3)}, "pads": ((1, 1), (0, 1)),
    },
    "dilated": {"dilations": (2, 1), "pads": ((2, 1), (2, 1))},
    "all in order": {
        "bias": True, "slope": 0.25, "mask_slope": 0.5, "images": every_operand("f32"),
    },
    "mask of a zero slope": {"mask_slope": 0.0, "images": {"mask": image(16, 6, 5)}},
    "transposed": {"kind": "dgrad", "filter": (8, 16, 3, 3)},
    "transposed by 2": {
        "kind": "dgrad", "filter": (8, 16, 4, 4), "strides": (2, 2), "bias": True, "slope": 0.1,
        "images": {"y": image(16, 12, 10)},
    },
}  # fmt: skip


def results(cudnn: Cudnn, what: Convolution, number: int = 0) -> tuple[Any, Any]:
    """Of the own kernel, then of one of cuDNN's plans."""
    plan = list(cudnn.candidates(what))[number]
    with trial(cudnn, what, [plan]) as at:
        run(cudnn.device, at.own().launches)
        wanted = at.results()
        at.clear()
        run(cudnn.device, at.cudnn(cudnn, plan).calls)
        return wanted, at.results()


@pytest.mark.parametrize("name", CASES)
def test_a_graph_computes_what_the_own_kernel_computes(cudnn: Cudnn, name: str) -> None:
    ((wanted,), (found,)) = results(cudnn, plain(**CASES[name]))
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


WEIGHT_GRADS = {
    "plain": {},
    "without a bias": {"bias_of": ""},
    "bias of x": {"bias_of": "x"},
    "wide pixels": {"images": {"x": image(8, 6, 5, pitch=16)}},
    "stride 2": {
        "strides": (2, 2), "images": {"grad_y": image(16, 3, 3)}, "pads": ((1, 1), (0, 1)),
    },
    "4x4 and dilated": {
        "filter": (16, 8, 4, 4), "dilations": (1, 2), "pads": ((2, 1), (1, 5)),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHT_GRADS)
def test_a_weight_gradient_comes_out_in_the_order_of_the_parameter(cudnn: Cudnn, name: str) -> None:
    what = weight_grad(**WEIGHT_GRADS[name])
    for number, _ in enumerate(cudnn.candidates(what)):
        wanted, found = results(cudnn, what, number)
        assert len(wanted) == len(found) == 1 + bool(what.bias_of)
        for own, other in zip(wanted, found, strict=True):
            assert np.abs(own).max() > 0.1
            np.testing.assert_allclose(other, own, atol=2e-5 * np.abs(own).max())


def test_engines_that_round_a_weight_gradient_to_its_inputs_are_led_around(
    cudnn: Cudnn, fake_cudnn: FakeCudnn
) -> None:
    names = [plan.name for plan in cudnn.candidates(weight_grad("f16"))]
    assert names == ["eng1", "eng3", "eng1 identity", "eng3 identity"]
    fake_cudnn.late_only = True
    names = [plan.name for plan in cudnn.candidates(weight_grad("f16"))]
    assert names == ["eng1 identity", "eng3 identity"]
    assert cudnn.find(weight_grad("f16"), names[1]).name == names[1]
    with pytest.raises(CudnnError):
        cudnn.find(weight_grad("f16"), "eng1")
    wanted, found = results(cudnn, weight_grad("f16"))
    for own, other in zip(wanted, found, strict=True):
        assert_gradient_close(other, own, 2e-6)


@pytest.mark.parametrize(("dtype", "least"), [("f16", 2e-3), ("bf16", 1.6e-2)])
def test_sixteen_bits_go_in_and_out(cudnn: Cudnn, dtype: Any, least: float) -> None:
    what = plain(dtype, bias=True, mask_slope=0.5, images={"mask": image(16, 6, 5, dtype)})
    ((wanted,), (found,)) = results(cudnn, what)
    assert np.linalg.norm(found - wanted) < least * np.linalg.norm(wanted)


def test_engines_that_repeat_nothing_or_round_products_are_left_out(cudnn: Cudnn) -> None:
    assert [plan.name for plan in cudnn.candidates(plain())] == ["eng1"]
    tensor_cores = cudnn.candidates(plain(compute="tf32"))
    assert [plan.name for plan in tensor_cores] == ["eng1", "eng3"]


def test_much_working_memory_is_refused(cudnn: Cudnn, fake_cudnn: FakeCudnn) -> None:
    fake_cudnn.workspaces["eng1"] = 2**40
    assert list(cudnn.candidates(plain())) == []


def test_building_ends_when_it_has_taken_long(
    cudnn: Cudnn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cudnn_plans, "BUILD_SECONDS", -1.0)
    assert [plan.name for plan in cudnn.candidates(plain(compute="tf32"))] == ["eng1"]


def test_a_plan_is_loaded_without_being_built(cudnn: Cudnn, fake_cudnn: FakeCudnn) -> None:
    fake_cudnn.workspaces["eng1"] = 512
    what = plain("f16", bias=True, slope=0.1)
    plans = {plan.name: plan for plan in cudnn.candidates(what)}
    assert set(plans) == {"eng1", "eng3"}
    data = cudnn.dump(plans["eng1"])  # not the last that was built
    assert data is not None
    fake_cudnn.builds.clear()
    plan = cudnn.load("eng1", data)
    assert (plan.name, plan.workspace_bytes, fake_cudnn.builds) == ("eng1", 512, [])
    with trial(cudnn, what, [plan]) as at:
        run(cudnn.device, at.own().launches)
        (wanted,) = at.results()
        run(cudnn.device, at.cudnn(cudnn, plan).calls)
        assert_gradient_close(at.results()[0], wanted, 2e-3)
    assert fake_cudnn.executed == ["eng1"]


@pytest.mark.parametrize("data", [b"", b"?", b"7 92800", b"0 1"])
def test_what_is_no_plan_is_not_loaded(cudnn: Cudnn, data: bytes) -> None:
    assert cudnn.dump(cudnn.find(plain(), "eng1")) == b"0 92800"
    with pytest.raises(CudnnError):
        cudnn.load("eng1", data)


def test_a_loaded_plan_takes_no_more_working_memory_than_another(
    cudnn: Cudnn, fake_cudnn: FakeCudnn
) -> None:
    data = cudnn.dump(cudnn.find(plain(), "eng1"))
    assert data is not None
    fake_cudnn.workspaces["eng1"] = 2**40
    with pytest.raises(CudnnError, match="working memory"):
        cudnn.load("eng1", data)


def test_without_cudnn_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", None)
    assert open_cudnn(HostDevice()) is None


def test_the_handle_is_given_back(cudnn: Cudnn, fake_cudnn: FakeCudnn) -> None:
    Engines(cudnn, measure).close()
    assert fake_cudnn.handle is None
    cudnn.close()


def first_of(cudnn: Cudnn, folder: Path) -> tuple[Engines, list[Convolution]]:
    """Engines that take the first plan for everything, and what they were asked."""
    asked: list[Convolution] = []

    def first(_: Cudnn, what: Convolution) -> Any:
        asked.append(what)
        return Choice("eng1", 2.0, 1.0), next(cudnn.candidates(what))

    return Engines(cudnn, first, folder=folder), asked


def test_a_network_computes_the_same_with_cudnn(
    cudnn: Cudnn, fake_cudnn: FakeCudnn, tmp_path: Path
) -> None:
    made, asked = first_of(cudnn, tmp_path)
    fake_cudnn.workspaces["eng1"] = 512
    bundle, found = open_bundle("nano"), []
    rows = columns = 2 * bundle.manifest.image.size_multiple
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, rows, columns)).astype(np.float32)
    scope = bundle.manifest.scopes[0].name
    for choice in ({}, {"makers": makers_with(made), "choose": made.choose}):
        weights, gradients = bundle.weights(), np.zeros_like(bundle.weights())
        device = cudnn.device if choice else HostDevice()
        engine = CudaBackend(bundle, weights, gradients, EngineOptions(1), device, **choice)
        frame = Frame(x, np.full_like(x, np.nan))
        engine.gradients(scope, frame)
        found.append((gradients, frame.restored))
    assert len(fake_cudnn.executed) > len(asked)
    assert {what.kind for what in asked} == {"fprop", "dgrad", "wgrad"}
    for own, other in zip(*found, strict=True):
        assert_gradient_close(other, own, 1e-5)


@pytest.mark.slow
def test_every_operation_of_a_network_is_right_with_cudnn_in_fp16(
    fake_cudnn: FakeCudnn, tmp_path: Path
) -> None:
    # The results as a whole are not compared: what is near zero has another sign now and then.
    cudnn = open_cudnn(HostDevice(lazy=False))
    assert cudnn is not None
    made, asked = first_of(cudnn, tmp_path)
    makers, bundle = makers_with(made), open_bundle("nano")
    target = Target(packed_elements, scratch_asker(makers), "fp16", choose=made.choose)
    side = 2 * bundle.manifest.image.size_multiple
    plan = compile_graph(bundle, bundle.manifest.scopes[0].graph, side, side, target)
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, side, side))
    Steps(plan, makers, x, bundle.weights(), cudnn.device).check()
    assert len(fake_cudnn.executed) > len(asked)
    assert {what.kind for what in asked} == {"fprop", "dgrad", "wgrad"}
