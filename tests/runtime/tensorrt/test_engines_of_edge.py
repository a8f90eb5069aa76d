"""As test_engines.py, with the larger network and random weights."""

from __future__ import annotations

import pytest

from edgeadapt.runtime.backend import Precision
from edgeadapt.runtime.tensorrt.library import Library
from edgeadapt.runtime.tensorrt.models import Weights
from support.engines import check_restoring
from support.presets import preset_bundle


@pytest.mark.parametrize("weights", ["inputs", "constant"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_restoring_with_edge_is_built_for_two_architectures(
    rtx: Library, precision: Precision, weights: Weights
) -> None:
    check_restoring(preset_bundle("edge"), rtx, precision, weights)
