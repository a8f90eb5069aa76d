"""What 16 bits cost on photographs: `nano`, and images blurred by a camera's motion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import skimage.data

from edgeadapt.blur import synthesize_blur
from edgeadapt.blur_parameters import draw_parameters
from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.cast_rules import Precision
from edgeadapt.casts import cast_graph
from edgeadapt.image import from_network, to_network
from edgeadapt.runtime.quality import measure
from edgeadapt.runtime.session import Session
from support.rounding import rounded, run

BOUND_DB = 0.05
Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle("nano")


def pair(name: str) -> Pair:
    """A photograph that scikit-image carries, blurred and sharp, uint8 (160, 192, 3)."""
    sharp = getattr(skimage.data, name)()
    parameters = replace(draw_parameters(3), objects=())
    blurred, sharp = synthesize_blur(sharp, parameters)
    part = slice(32, 192), slice(128, 320)
    return blurred[part], sharp[part]


@pytest.fixture(scope="module", params=["astronaut", "coffee"])
def photograph(request: pytest.FixtureRequest) -> Pair:
    return pair(request.param)


def test_restoring_in_fp16_is_within_a_twentieth_of_a_decibel(
    bundle: Bundle, photograph: Pair
) -> None:
    blurred, sharp = photograph
    found = {}
    for precision in ("fp32", "fp16"):
        with Session(bundle, "onnxruntime", threads=1, precision=precision) as session:
            found[precision] = measure(session.restore(blurred), sharp).psnr
    assert found["fp32"] > measure(blurred, sharp).psnr
    assert abs(found["fp16"] - found["fp32"]) < BOUND_DB


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_so_it_is_where_every_result_is_rounded(
    bundle: Bundle, photograph: Pair, precision: Precision
) -> None:
    blurred, sharp = photograph
    image = to_network(blurred, bundle.manifest.image.size_multiple)
    height, width = blurred.shape[:2]
    exact = run(cast_graph(bundle, "restore.onnx", "fp32"), {"image": image})["restored"]
    half = run(rounded(cast_graph(bundle, "restore.onnx", precision)), {"image": image})["restored"]
    assert not np.array_equal(exact, half)
    quality = [measure(from_network(one, height, width), sharp).psnr for one in (exact, half)]
    assert abs(quality[1] - quality[0]) < BOUND_DB


def test_an_adaptation_in_fp16_ends_where_that_in_fp32_does(bundle: Bundle) -> None:
    blurred, sharp = pair("astronaut")
    found, losses = {}, {}
    for precision in ("fp32", "fp16"):
        with Session(bundle, "onnxruntime", threads=1, precision=precision) as session:
            adaptation = session.adapt(blurred, steps=2, scope="heads")
            assert not adaptation.reverted
            losses[precision] = adaptation.losses
            found[precision] = measure(session.restore(blurred), sharp).psnr
    assert abs(found["fp16"] - found["fp32"]) < BOUND_DB
    # An engine that stores the network's three images in float16, as on Arm, is off by at most half
    # of the last place of 1 in each pixel.
    np.testing.assert_allclose(losses["fp16"], losses["fp32"], rtol=0, atol=3 * 2.0**-12)
    # What a step gains is 1e-3 of the loss here: a loss in float16 could not tell.
    gained = {precision: np.subtract(each[0], each) for precision, each in losses.items()}
    np.testing.assert_allclose(gained["fp16"], gained["fp32"], rtol=0, atol=gained["fp32"][-1] / 4)
