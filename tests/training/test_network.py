"""The network as PyTorch runs it: sizes, and which weights the adaptation loss reaches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgeadapt.training.network import build

SMALL: dict[str, Any] = {"widths": (4, 6), "blocks": 1, "feature_recurrence": False}
HEAD = "scales.0.primary.head.weight"


@pytest.mark.parametrize("n_scales", [1, 2])
@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_images_leave_as_large_as_they_came(stem_stride: int, n_scales: int) -> None:
    torch.manual_seed(stem_stride)
    network = build(**SMALL, stem_stride=stem_stride, n_scales=n_scales)
    assert network.size_multiple == 2 * stem_stride * 2 ** (n_scales - 1)
    size = (3 * network.size_multiple, network.size_multiple)
    inside: list[torch.Size] = []
    unit = network.scales[0].shared["decode_1"]
    handle = unit.register_forward_hook(lambda *call: inside.append(call[-1].shape[2:]))
    outputs = network(torch.rand(2, 3, *size))
    handle.remove()
    for images in outputs:
        assert [tuple(image.shape) for image in images] == [
            (2, 3, size[0] >> z, size[1] >> z) for z in range(n_scales)
        ]
    assert inside[-1] == (size[0] // stem_stride, size[1] // stem_stride)


@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize("passed", [True, False])
def test_the_adaptation_loss_reaches_the_primary_head_through_the_residual_alone(
    stem_stride: int, passed: bool
) -> None:
    torch.manual_seed(7)
    options = SMALL | {"stem_stride": stem_stride, "n_scales": 1, "residual_to_aux": passed}
    network = build(**options)
    network.adaptation_loss(torch.rand(1, 3, 16, 16)).sum().backward()
    gradient = network.get_parameter(HEAD).grad
    assert (gradient is not None) == passed
    assert gradient is None or bool((gradient != 0).any())
    idle = {name for name, value in network.named_parameters() if value.grad is None}
    assert idle == (set() if passed else {HEAD, HEAD.replace("weight", "bias")})
