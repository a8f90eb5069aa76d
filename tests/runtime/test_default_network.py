"""The network that "default" stands for, on the engines of any machine: it restores and it adapts.

Its weights are exchanged from version to version: nothing here holds for certain ones only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edgeadapt import Session
from edgeadapt.blur import synthesize_blur
from edgeadapt.blur_parameters import draw_parameters
from edgeadapt.bundle import open_bundle
from edgeadapt.cli import main
from edgeadapt.testing import photo, psnr

U8 = npt.NDArray[np.uint8]
ENGINES = ("native", "onnxruntime")


@pytest.fixture(scope="module")
def blurred() -> U8:
    """A photograph with the blur of a moving camera, uint8 (111, 77, 3)."""
    return synthesize_blur(photo(0, 111, 77), draw_parameters(0)).blurred


@pytest.mark.parametrize("engine", ENGINES)
def test_a_small_step_lowers_the_loss_and_the_trained_ones_change_what_is_restored(
    engine: str, blurred: U8
) -> None:
    with Session("default", engine) as session:
        plain = session.restore(blurred)
        assert plain.shape == blurred.shape
        assert plain.dtype == np.uint8
        assert psnr(plain, blurred) > 15.0  # the photograph, and not noise
        # So small that the gradient alone decides, whatever the weights: the bundle's own step
        # size may raise the loss first, since Adam's first step moves every weight by all of it.
        done = session.adapt(blurred, steps=1, step_size=1e-6)
        assert done.losses[1] < done.losses[0]
        session.reset()
        done = session.adapt(blurred)
        assert done.steps == open_bundle("edge").manifest.adaptation.steps
        assert np.isfinite(done.losses).all()
        assert done.reverted or not np.array_equal(session.restore(blurred), plain)
        session.reset()
        np.testing.assert_array_equal(session.restore(blurred), plain)


def test_the_engines_agree(blurred: U8) -> None:
    losses, images = [], []
    for engine in ENGINES:
        with Session("default", engine) as session:
            losses.append(session.adapt(blurred, steps=1).losses)
            images.append(session.restore(blurred))
    # Of float32 sums in another order; a step of Adam turns gradients near zero into whole steps.
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    assert psnr(images[0], images[1]) > 45.0


def test_info_says_which_network_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "default"]) == 0
    shown = capsys.readouterr().out
    assert main(["info", "edge"]) == 0
    assert capsys.readouterr().out == shown
    assert open_bundle("edge").manifest.model.description in shown
