"""Every operation of whole programs, run by CUDA's kernels on the host, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeadapt.bundle import RESTORE_GRAPH, Bundle, open_bundle
from edgeadapt.runtime.cuda.calls import OWN, packed_elements, scratch_asker
from edgeadapt.runtime.cuda.plan import Target, compile_graph
from support.cuda_steps import Steps
from support.exported import MAKE, exported


def bundle_of(name: str) -> Bundle:
    return open_bundle("nano") if name == "nano" else exported(name)


def steps(bundle: Bundle, graph: str, precision: Any, rows: int = 2, columns: int = 3) -> Steps:
    multiple = bundle.manifest.image.size_multiple
    size = (rows * multiple, columns * multiple)
    target = Target(packed_elements, scratch_asker(OWN), precision)
    plan = compile_graph(bundle, graph, *size, target)
    rng, own = np.random.default_rng(0), bundle.weights()
    weights = own + 0.1 * np.abs(own).mean() * rng.standard_normal(own.shape)
    return Steps(plan, OWN, rng.uniform(-1, 1, (1, 3, *size)), weights.astype(np.float32))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_every_operation_of_the_default_network(precision: str) -> None:
    bundle = open_bundle("nano")
    worst = steps(bundle, bundle.scope("all").graph, precision).check()
    assert {"conv", "conv_weight_grad", "resize", "resize_grad", "l1_loss"} <= set(worst)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
def test_every_operation_of_other_networks(name: str) -> None:
    bundle = bundle_of(name)
    steps(bundle, bundle.scope("all").graph, "fp32").check()
    steps(bundle, RESTORE_GRAPH, "bf16").check()
