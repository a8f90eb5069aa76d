"""cuDNN on a GPU, against own kernels; skipped with the reason where one of the two is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.runtime.cuda import cudnn_measure
from edgeadapt.runtime.cuda.cudnn_choice import Engines
from edgeadapt.runtime.cuda.cudnn_conv import Convolution, Layout
from edgeadapt.runtime.cuda.cudnn_measure import TOLERANCES, close, measure
from edgeadapt.runtime.cuda.cudnn_plans import Cudnn, open_cudnn
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


def wide(compute: str, transposed: bool, operands: tuple[str, ...] = ()) -> Convolution:
    """3x3 from 32 to 64 channels."""
    dtype: Any = "f32" if compute == "tf32" else compute
    shapes = {"x": 32, "y": 64} | dict.fromkeys(operands, 64)
    images = {
        role: Layout((1, n, 40, 52), (40 * 52 * n, 1, 52 * n, n), dtype)
        for role, n in shapes.items()
    }
    filter_shape = (32, 64, 3, 3) if transposed else (64, 32, 3, 3)
    return Convolution(
        transposed, compute, filter_shape, ((1, 1), (1, 1)), (1, 1), (1, 1),
        tuple(images.items()), bool(operands), 0.1, 0.5 if "mask" in operands else None,
    )  # fmt: skip


@pytest.mark.parametrize("operands", [(), OPERANDS])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("compute", list(TOLERANCES))
def test_plans_give_what_the_own_kernel_gives_each_time(
    cudnn: Cudnn, compute: str, transposed: bool, operands: tuple[str, ...]
) -> None:
    what = wide(compute, transposed, operands)
    plans = list(cudnn.candidates(what))
    right = 0
    with cudnn_measure._memory(cudnn.device, what, plans) as at:
        for launch in at.own(what).launches:
            cudnn.device.launch(launch)
        wanted = at.result(what)
        for plan in plans:
            results = []
            for _ in range(2):
                cudnn.device.call(cudnn.call(what, plan, at.addresses, at.workspace))
                results.append(at.result(what))
            np.testing.assert_array_equal(*results, err_msg=plan.name)
            right += close(results[0], wanted, what)
    # Some of float32's round what is multiplied; measuring leaves them out.
    assert right == len(plans) or compute == "f32"


def test_a_choice_is_measured_and_found_again(cudnn: Cudnn, tmp_path: Path) -> None:
    what = wide("f16", False, OPERANDS)
    names = []
    for _ in range(2):
        plan = Engines(cudnn, measure, folder=tmp_path).plan(what)
        names.append(plan and plan.name)
    assert names[0] == names[1]
    assert len(list(tmp_path.iterdir())) == 1
