"""The deblurring network with every switch, exported and held to PyTorch in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgeadapt.errors import ExportError
from edgeadapt.export.check import Graphs, smooth_image
from edgeadapt.export.reference import Reference
from edgeadapt.export.trace import trace
from edgeadapt.training.network import build
from support.exporting import assert_step, export, float32_weights

SMALL: dict[str, Any] = {"widths": [4, 6], "n_scales": 2, "blocks": 1, "share_scales": True}
SWITCHES: dict[str, dict[str, Any]] = {
    "one scale": {"n_scales": 1},
    "three scales, three levels": {"n_scales": 3, "widths": [4, 6, 8]},
    "weights for each scale": {"share_scales": False},
    "no recurrence of features": {"feature_recurrence": False},
    "branches part in the encoder": {"share_until": "half_encoder", "widths": [4, 6, 8]},
    "branches part after the encoder": {"share_until": "encoder"},
    "branches part in the decoder": {"share_until": "deconv2", "share_scales": False},
    "no residual to the auxiliary branch": {"residual_to_aux": False},
    "kernel 5": {"kernel": 5},
    "three blocks": {"blocks": 3, "n_scales": 1},
    "skips added": {"skip": "add"},
    "gradient through the coarse estimate": {"stop_gradient": False},
    "recurrence starts at zeros": {"recurrence_start": "zeros"},
    "gaussian pyramid": {"pyramid": "gaussian"},
    "stem of stride 2": {"stem_stride": 2},
    "stem of stride 4, weights for each scale": {"stem_stride": 4, "share_scales": False},
    "stem, no residual to the auxiliary branch": {"stem_stride": 2, "residual_to_aux": False},
    "three levels": {"widths": [4, 6, 8]},
    "four levels": {"widths": [3, 4, 5, 6], "n_scales": 1},
    "slope 0": {"slope": 0.0},
    "slope 0.3": {"slope": 0.3},
}
# Their pruned graphs are cut from the same values as that of "all": two networks are enough.
WITH_EVERY_SCOPE = ("three scales, three levels", "weights for each scale")
SIZES = ((1, 2), (3, 1))  # unequal sides, and a feature of one row at the coarsest level


def random_network(options: dict[str, Any], seed: int = 0) -> Any:
    """With random biases too: zeros would hide half the formulas."""
    torch.manual_seed(seed)
    network = build(**SMALL | options)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("bias"):
                value.uniform_(-0.1, 0.1)
    return network


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_gradient(switch: str, tmp_path: Path):
    network = random_network(SWITCHES[switch])
    names = ("all", "heads", "bias") if switch in WITH_EVERY_SCOPE else ("all",)
    scopes = {name: name for name in names}
    bundle = export(network, tmp_path / "x.bundle", scopes)
    graphs, multiple = Graphs(bundle), network.size_multiple
    assert multiple == bundle.manifest.image.size_multiple
    for rows, columns in SIZES:
        image, kinks = smooth_image(Reference(network), rows * multiple, columns * multiple)
        assert kinks == 0, "choose other parameters: a kink lets a gradient jump"
        assert_step(graphs.run("restore.onnx", image), network, image)
        for name in ("loss", *(f"adapt.{scope}" for scope in names)):
            found = graphs.run(f"{name}.onnx", image, float32_weights(network))
            assert_step(found, network, image)


def test_a_network_without_auxiliary_branch_is_refused(tmp_path: Path):
    with pytest.raises(ExportError, match="aux_branch = false"):
        trace(build(**SMALL, aux_branch=False))
