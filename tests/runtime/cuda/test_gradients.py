"""Gradients of `nano`, from CUDA's kernels on the host, against float64.

As tests/runtime/test_bf16_gradients.py has it: float64 is given the signs that the engine found,
and everything else must agree. Every tensor keeps a place of its own, so that signs can be read
when all is done.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgeadapt.bundle import open_bundle
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.cuda.calls import OWN, run
from edgeadapt.runtime.cuda.plan import DevicePlan, compile_graph
from edgeadapt.runtime.cuda.show import cuda_target
from edgeadapt.runtime.plan.fuse import fuse
from edgeadapt.runtime.plan.lifetimes import aligned
from edgeadapt.runtime.plan.place import Placement
from edgeadapt.runtime.plan.read import read
from edgeadapt.testing import compare_gradients, photo
from support.cuda_steps import Steps
from support.interpret import Memory as Float64
from support.signs import follow, initialised

# float32 sums of up to a thousand products; 11 and 8 bits of what is stored and multiplied, over
# the 60 layers of three scales, on the way forward and back, partly cancelling.
BOUNDS = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1e-2}


@pytest.mark.slow
@pytest.mark.parametrize("precision", BOUNDS)
def test_every_gradient_is_within_the_bound(precision: Any) -> None:
    bundle = open_bundle("nano")
    side = 4 * bundle.manifest.image.size_multiple
    graph, weights = bundle.scope("all").graph, initialised(bundle)
    image = photo(0, side, side).astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    plan = compile_graph(bundle, graph, side, side, cuda_target(precision, None))
    steps = Steps(apart(plan), OWN, image, weights)
    for calls in steps.calls:
        run(steps.device, calls)
    program = fuse(read(bundle, graph, side, side))
    expected = Float64(program, image, bundle.named(weights))
    for op in program.ops:
        follow(op, program, expected, steps, plan.gradient_factor)
    errors = {
        name: compare_gradients(
            steps.read(GRADIENT_PREFIX + name) / plan.gradient_factor,
            expected.read(GRADIENT_PREFIX + name),
        ).relative_l2
        for name in bundle.scope("all").parameters
    }
    assert max(errors.values()) < BOUNDS[precision], sorted(errors.items(), key=lambda e: -e[1])[:5]
    assert max(errors.values()) > BOUNDS[precision] / 1000


def apart(plan: DevicePlan) -> DevicePlan:
    """The same with nothing in the place of anything else; scratch behind all of it."""
    offsets, top = {}, 0
    for name, tensor in plan.program.tensors.items():
        if tensor.storage == "arena" and tensor.view is None:
            offsets[name] = top
            top += aligned(tensor.nbytes)
    ask = cuda_target("fp32", None).scratch_bytes
    room = max(ask(op, plan.program) for op in plan.program.ops)
    scratch = (top,) * len(plan.program.ops)
    return replace(plan, placement=Placement(offsets, scratch, top + room, top))
