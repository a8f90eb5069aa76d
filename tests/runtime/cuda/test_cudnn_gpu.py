"""cuDNN on a GPU, against own kernels; skipped with the reason where one of the two is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.runtime.cuda.calls import run
from edgeadapt.runtime.cuda.cudnn_choice import Engines
from edgeadapt.runtime.cuda.cudnn_conv import Convolution, Layout, Pass
from edgeadapt.runtime.cuda.cudnn_measure import TOLERANCES, close, measure
from edgeadapt.runtime.cuda.cudnn_plans import Cudnn, open_cudnn
from edgeadapt.runtime.cuda.cudnn_trial import trial
from edgeadapt.runtime.cuda.device import Device

pytestmark = pytest.mark.gpu
OPERANDS = ("add0", "add1", "post", "mask")


@pytest.fixture
def cudnn(gpu: Device, request: pytest.FixtureRequest) -> Iterator[Cudnn]:
    found = open_cudnn(gpu)
    if found is None:
        if request.config.getoption("--require-gpu"):
            pytest.fail("cuDNN or its frontend is missing")
        pytest.skip("cuDNN or its frontend is missing")
    yield found
    found.close()


def wide(compute: str, kind: Pass, operands: tuple[str, ...] = ()) -> Convolution:
    """3x3 from 32 to 64 channels."""
    dtype: Any = "f32" if compute == "tf32" else compute
    result = "grad_y" if kind == "wgrad" else "y"
    shapes = {"x": 32, result: 64} | dict.fromkeys(operands, 64)
    images = {
        role: Layout((1, n, 40, 52), (40 * 52 * n, 1, 52 * n, n), dtype)
        for role, n in shapes.items()
    }
    filter_shape = (32, 64, 3, 3) if kind == "dgrad" else (64, 32, 3, 3)
    found = Convolution(
        kind, compute, filter_shape, ((1, 1), (1, 1)), (1, 1), (1, 1), tuple(images.items())
    )
    if kind == "wgrad":
        return replace(found, bias_of="grad_y")
    mask_slope = 0.5 if "mask" in operands else None
    return replace(found, bias=bool(operands), slope=0.1, mask_slope=mask_slope)


@pytest.mark.parametrize(
    ("kind", "operands"),
    [("fprop", ()), ("fprop", OPERANDS), ("dgrad", ()), ("dgrad", OPERANDS), ("wgrad", ())],
)
@pytest.mark.parametrize("compute", list(TOLERANCES))
def test_plans_give_what_the_own_kernel_gives_each_time(
    cudnn: Cudnn, compute: str, kind: Pass, operands: tuple[str, ...]
) -> None:
    what = wide(compute, kind, operands)
    plans = list(cudnn.candidates(what))
    right = 0
    with trial(cudnn, what, plans) as at:
        run(cudnn.device, at.own().launches)
        wanted = at.results()
        for plan in plans:
            results = []
            for _ in range(2):
                at.clear()
                run(cudnn.device, at.cudnn(cudnn, plan).calls)
                results.append(at.results())
            for first, second in zip(*results, strict=True):
                np.testing.assert_array_equal(first, second, err_msg=plan.name)
            right += all(close(a, b, what) for a, b in zip(results[0], wanted, strict=True))
    # Some of float32's round what is multiplied; measuring leaves them out.
    assert right == len(plans) or compute == "f32"


@pytest.mark.parametrize("kind", ["fprop", "dgrad", "wgrad"])
def test_a_plan_is_loaded_and_gives_the_same_bits(cudnn: Cudnn, kind: Pass) -> None:
    what = wide("f16", kind, () if kind == "wgrad" else OPERANDS)
    built = cudnn.find(what, next(cudnn.candidates(what)).name)
    data = cudnn.dump(built)
    assert data is not None
    loaded = cudnn.load(built.name, data)
    assert loaded.workspace_bytes == built.workspace_bytes
    results = []
    with trial(cudnn, what, [built, loaded]) as at:
        for plan in (built, loaded):
            at.clear()
            run(cudnn.device, at.cudnn(cudnn, plan).calls)
            results.append(at.results())
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("kind", ["fprop", "wgrad"])
def test_a_choice_is_measured_and_found_again(cudnn: Cudnn, tmp_path: Path, kind: Pass) -> None:
    what = wide("f16", kind)
    names = []
    for _ in range(2):
        plan = Engines(cudnn, measure, folder=tmp_path).plan(what)
        names.append(plan and plan.name)
    assert names[0] == names[1]
    assert len(list(tmp_path.iterdir())) == 1
