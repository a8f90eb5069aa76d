"""What 16 bits cost the gradients of each network, whatever the engine: see docs/engine.md.

A rounding to bfloat16 is off by up to 2^-8, 1.6e-3 in the root mean square, and a product of two
such numbers by 2.3e-3 already. To float16 all of this is an eighth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.backend import Precision
from edgeadapt.runtime.cuda.plan import in_precision, in_range
from edgeadapt.runtime.plan.fuse import fuse
from edgeadapt.runtime.plan.read import read
from edgeadapt.testing import compare_gradients, photo
from edgeadapt.training.network import build
from support.exporting import export
from support.interpret import Memory
from support.rounded import Rounded
from support.signs import follow, initialised

SIDE = 64
# Of the worst parameter: the least and the most.
BOUNDS: dict[Precision, tuple[float, float]] = {"fp16": (2e-4, 2e-3), "bf16": (2e-3, 1.6e-2)}


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["nano", "edge"])
def test_a_parameters_gradient_is_off_by_roundings(preset: str, tmp_path: Path) -> None:
    bundle = export(build(preset=preset), tmp_path / "network.bundle")
    scope, weights = bundle.scope("all"), bundle.named(initialised(bundle))
    image = photo(0, SIDE, SIDE).astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    exact = fuse(read(bundle, scope.graph, SIDE, SIDE))
    for precision, (least, most) in BOUNDS.items():
        scaled, factor = in_range(exact, precision)
        found = Rounded(in_precision(scaled, precision), image, weights)
        found.run()
        expected = Memory(exact, image, weights)
        for op in exact.ops:
            follow(op, exact, expected, found, factor)
        errors = {
            name: compare_gradients(
                found.read(GRADIENT_PREFIX + name) / factor, expected.read(GRADIENT_PREFIX + name)
            ).relative_l2
            for name in scope.parameters
        }
        worst = sorted(errors.items(), key=lambda error: -error[1])[:5]
        assert least < worst[0][1] < most, (precision, worst)
