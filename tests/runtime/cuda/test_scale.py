"""The factor in front of the gradients, held to the program without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeadapt.bundle import Bundle, open_bundle
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.cuda.scale import MixedError, scale_gradients
from edgeadapt.runtime.plan.check import check
from edgeadapt.runtime.plan.fuse import fuse
from edgeadapt.runtime.plan.ir import Program
from edgeadapt.runtime.plan.read import read
from support.exported import MAKE, exported
from support.fusing import random_values
from support.interpret import run
from support.programs import Builder

SHAPE = (1, 2, 4, 4)


def fused(bundle: Bundle, graph: str) -> Program:
    multiple = bundle.manifest.image.size_multiple
    return fuse(read(bundle, graph, 2 * multiple, 3 * multiple))


@pytest.mark.parametrize("name", ["nano", *MAKE])
def test_every_gradient_is_multiplied_and_nothing_else_is(name: str) -> None:
    bundle = open_bundle("nano") if name == "nano" else exported(name)
    program = fused(bundle, bundle.scope("all").graph)
    scaled, factor = scale_gradients(program)
    check(scaled)
    assert factor > 1.0
    assert np.log2(factor) == round(np.log2(factor))
    image, weights = random_values(program)
    expected, found = run(program, image, weights), run(scaled, image, weights)
    for output, value in expected.items():
        times = factor if output.startswith(GRADIENT_PREFIX) else 1.0
        np.testing.assert_array_equal(found[output], times * value, err_msg=output)


def test_without_gradients_there_is_no_factor() -> None:
    bundle = open_bundle("nano")
    program = fused(bundle, "loss.onnx")
    assert scale_gradients(program) == (program, 1.0)


def made(expression: Any, *inputs: str) -> Program:
    """A program whose one gradient is an expression of the loss's gradient "g" and the image."""
    b = Builder()
    b.tensor("image", SHAPE, storage="image")
    b.tensor("b", SHAPE)
    b.pointwise("b", (("neg", (("x", 0),)),), "image")
    b.tensor("value", (1,))
    b.tensor("g", SHAPE)
    outputs = {"value": "value", "grad": "g"}
    b.op("l1_loss", {"a": "image", "b": "b"}, outputs, value_scale=1.0, grad_scale=2.0**-20)
    b.tensor(GRADIENT_PREFIX + "w", SHAPE, storage="gradients")
    b.pointwise(GRADIENT_PREFIX + "w", expression, *inputs)
    return b.program(GRADIENT_PREFIX + "w")


LINEAR: dict[str, Any] = {
    "twice": (("add", (("x", 0), ("x", 0))),),
    "times": (("mul", (("x", 0), ("c", -3.0))),),
    "by": (("div", (("x", 0), ("c", 3.0))),),
    "plus nothing": (("add", (("x", 0), ("c", 0.0))),),
    "its size": (("abs", (("x", 0),)),),
    "the positive part": (
        ("gt", (("x", 0), ("c", 0.0))), ("where", (("t", 0), ("x", 0), ("c", 0.0))),
    ),
    "leaky": (("leaky", (("x", 0), ("c", 0.1))),),
}  # fmt: skip
MIXED: dict[str, Any] = {
    "plus one": (("add", (("x", 0), ("c", 1.0))),),
    "its square": (("mul", (("x", 0), ("x", 0))),),
    "a root": (("sqrt", (("x", 0),)),),
    "compared with one": (("gt", (("x", 0), ("c", 1.0))),),
    "one by it": (("div", (("c", 1.0), ("x", 0))),),
    "its sign": (("sign", (("x", 0),)),),
    "where not": (("where", (("x", 0), ("x", 0), ("c", 1.0))),),
}


@pytest.mark.parametrize("name", LINEAR)
def test_what_is_linear_is_known(name: str) -> None:
    program = made(LINEAR[name], "g")
    scaled, factor = scale_gradients(program)
    assert factor == 2.0**19
    image, weights = random_values(program)
    (expected,), (found,) = (run(p, image, weights).values() for p in (program, scaled))
    np.testing.assert_array_equal(found, factor * expected)


@pytest.mark.parametrize("name", MIXED)
def test_what_is_not_linear_is_refused(name: str) -> None:
    with pytest.raises(MixedError):
        scale_gradients(made(MIXED[name], "g"))


def test_a_gradient_of_something_else_is_refused() -> None:
    with pytest.raises(MixedError, match=r"grad\.w does not come from a loss"):
        scale_gradients(made(LINEAR["times"], "image"))
    with pytest.raises(MixedError, match="adds"):
        scale_gradients(made((("add", (("x", 0), ("x", 1))),), "g", "image"))
