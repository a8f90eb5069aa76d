"""Networks as users bring them, brought to 16 bits without a look at their names."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.cast_rules import Precision
from edgeadapt.casts import cast_graph
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.image import to_network
from edgeadapt.testing import compare_gradients, photo
from support.exported import MAKE, exported
from support.rounding import HALVES, rounded, run, types
from support.user_networks import BODIES, LOSSES

NAMES = [f"body: {name}" for name in BODIES] + [f"loss: {name}" for name in LOSSES]
# Those that differ most in what a cast has to see; the others are exported for this alone, which
# takes longer than ten seconds together.
FIRST = ["simple gates", "transposed attention", "resampling", "group norm", "max pooling"]
FIRST = [f"body: {name}" for name in FIRST] + ["loss: L1", "loss: Huber and total variation"]
# Each of up to ten layers rounds weights and activations once, and a few signs near zero differ.
BITS: dict[Precision, float] = {"fp16": 2.0**-11, "bf16": 2.0**-8}


def test_the_list_is_that_of_the_networks() -> None:
    assert set(FIRST) <= set(NAMES) <= set(MAKE)


@pytest.mark.parametrize(
    "name",
    [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_a_network_adapts_in_16_bits_as_in_float32(name: str) -> None:
    bundle = exported(name)
    feeds = bundle.named(bundle.weights())
    feeds["image"] = to_network(photo(3, 48, 64), bundle.manifest.image.size_multiple)
    graph = bundle.scope("all").graph
    expected = run(cast_graph(bundle, graph, "fp32"), feeds)
    gradients = [key for key in expected if key.startswith(GRADIENT_PREFIX)]
    for precision, bit in BITS.items():
        model = cast_graph(bundle, graph, precision)
        kinds = types(model)
        convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
        assert any(kinds[node.output[0]] in HALVES for node in convolutions)
        found = run(rounded(model), feeds)
        assert abs(found["loss"] - expected["loss"]) <= bit * expected["loss"]
        restored = compare_gradients(found["restored"], expected["restored"])
        assert restored.relative_l2 <= 2 * bit, restored
        flat_found, flat_expected = (
            np.concatenate([one[key].ravel() for key in gradients]) for one in (found, expected)
        )
        report = compare_gradients(flat_found, flat_expected)
        assert report.relative_l2 <= 4 * bit, report
