"""What cuDNN is offered of a plan, and why it is not offered the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgeadapt.bundle import open_bundle
from edgeadapt.kernels.reference.conv import conv
from edgeadapt.runtime.cuda.cudnn_conv import Convolution, asked
from edgeadapt.runtime.cuda.cudnn_offer import offers, offers_document, offers_line, offers_table
from edgeadapt.runtime.cuda.plan import compile_graph
from edgeadapt.runtime.cuda.show import cuda_target
from edgeadapt.runtime.plan.ir import Program, Tensor, View
from support.programs import Builder


def program() -> Program:
    """A convolution with everything that may follow it, and a weight gradient."""
    b = Builder()
    for name in ("x", "y", "add0", "mask", "grad_y", "z"):
        b.tensor(name, (1, 8, 6, 5))
    b.tensor("w", (8, 8, 3, 3), storage="weights")
    b.tensor("b", (8,), storage="weights")
    for name in ("gw", "gb"):
        b.tensor(name, (8, 8, 3, 3) if name == "gw" else (8,), storage="gradients")
    inputs = {"bias": "b", "add0": "add0", "mask": "mask"}
    at = {"slope": 0.1, "mask_slope": 0.2, "out_channels": (0, 8)}
    b.conv("x", "w", "y", inputs, **at)
    same = {"kernel": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    b.op(
        "conv_weight_grad", {"x0": "x", "grad_y": "grad_y"}, {"weight": "gw", "bias": "gb"},
        **same, group=1, bias_of="grad_y",
    )  # fmt: skip
    found = b.program("y")
    tensors = {
        name: replace(tensor, channels_last=len(tensor.shape) == 4 and tensor.storage == "arena")
        for name, tensor in found.tensors.items()
    }
    return replace(found, tensors=tensors)


def test_a_convolution_and_its_weight_gradient_are_offered() -> None:
    forward, gradient = (asked(op, program()) for op in program())
    assert isinstance(forward, Convolution)
    assert isinstance(gradient, Convolution)
    assert (forward.kind, forward.bias, forward.slope, forward.mask_slope) == (
        "fprop", True, 0.1, 0.2,
    )  # fmt: skip
    assert forward.roles == ("x", "weight", "bias", "add0", "mask", "y")
    assert (gradient.kind, gradient.bias_of, gradient.bias) == ("wgrad", "grad_y", False)
    assert gradient.roles == ("x", "weight", "grad_y")


def changed(program: Program, name: str, **changes: Any) -> Program:
    tensors = {**program.tensors, name: replace(program.tensors[name], **changes)}
    return replace(program, tensors=tensors)


def within(offset: int, strides: tuple[int, ...]) -> dict[str, Any]:
    return {"view": View("whole", offset, strides)}


Change = Callable[[Program], Program]
WHOLE = Tensor("whole", (1, 64, 6, 5), channels_last=True)
# What is changed, which operation is looked at, and why it is not offered.
REASONS: dict[str, tuple[Change, int, str]] = {
    "groups": (lambda p: attributes(p, group=2), 0, "2 groups"),
    "two sources": (lambda p: inputs(p, x1="add0"), 0, "it reads 2 images as one"),
    "two sources of a gradient": (lambda p: inputs(p, x1="add0"), 1, "it reads 2 images as one"),
    "scaled sums": (lambda p: attributes(p, scale=2.0), 1, "its sums are scaled"),
    "negative pads": (lambda p: attributes(p, pads=(-1, 1, 1, 1)), 0, "negative pads"),
    "planar input": (
        lambda p: changed(p, "x", channels_last=False), 0, "its input is not channels last",
    ),
    "planar gradient": (
        lambda p: changed(p, "grad_y", channels_last=False),
        1,
        "the gradient it reads is not channels last",
    ),
    "planar mask": (
        lambda p: changed(p, "mask", channels_last=False), 0, "its mask is not channels last",
    ),
    "odd channels": (
        lambda p: changed(p, "add0", shape=(1, 7, 6, 5)),
        0,
        "a summand has 7 channels, 4 are 16 bytes",
    ),
    "8 bytes": (
        lambda p: changed(p, "y", dtype="bf16", shape=(1, 4, 6, 5)),
        0,
        "its result has 4 channels, 8 are 16 bytes",
    ),
    "half an input": (
        lambda p: changed(p, "x", dtype="f16"), 0, "its input is f16, its products are f32",
    ),
    "half a gradient": (
        lambda p: changed(p, "grad_y", dtype="f16"),
        1,
        "the gradient it reads is f16, its products are f32",
    ),
    "a view between": (
        lambda p: changed(p, "x", **within(2, (1920, 1, 320, 64))),
        0,
        "its input begins between 16 bytes",
    ),
    "wide steps": (
        lambda p: changed(p, "x", **within(0, (1920, 2, 320, 64))),
        0,
        "its input is not channels last",
    ),
    "a bias between": (
        lambda p: changed(p, "b", storage="arena", **within(3, (1,))),
        0,
        "its bias begins between 16 bytes",
    ),
    "a constant": (
        lambda p: changed(p, "mask", storage="constant"), 0, "its mask is f32, a constant",
    ),
    "too much": (
        lambda p: changed(p, "x", shape=(1, 8, 2**15, 2**13)),
        0,
        "its input has 2^31 elements or more",
    ),
}  # fmt: skip


def attributes(program: Program, **changes: Any) -> Program:
    return replace(program, ops=tuple(op.with_attributes(**changes) for op in program.ops))


def inputs(program: Program, **changes: str) -> Program:
    return replace(program, ops=tuple(op.with_inputs(**changes) for op in program.ops))


@pytest.mark.parametrize("name", REASONS)
def test_what_is_not_offered_says_why(name: str) -> None:
    change, number, reason = REASONS[name]
    found = change(replace(program(), tensors={**program().tensors, "whole": WHOLE}))
    assert asked(found.ops[number], found) == reason
    (offer,) = [offer for offer in offers(found) if number in offer.operations]
    assert (offer.offered, offer.reason) == (False, reason)


def test_what_lies_within_wider_pixels_is_offered() -> None:
    found = replace(program(), tensors={**program().tensors, "whole": WHOLE})
    found = changed(found, "x", **within(8, (1920, 1, 320, 64)))
    what = asked(found.ops[0], found)
    assert isinstance(what, Convolution)
    assert what.image("x").strides == (1920, 1, 320, 64)


PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    result=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=PAIRS,
    strides=PAIRS,
    dilations=PAIRS,
    pads=st.tuples(*[st.integers(-1, 3)] * 4),
    transposed=st.booleans(),
)
def test_pads_lead_from_one_size_to_the_other_and_change_nothing(
    size: Any, result: Any, kernel: Any, strides: Any, dilations: Any, pads: Any, transposed: bool
) -> None:
    base = changed(program(), "x", shape=(1, 8, *size))
    base = inputs(changed(base, "y", shape=(1, 8, *result)), add0=None, mask=None)  # type: ignore[arg-type]
    geometry = {"strides": strides, "pads": pads, "dilations": dilations}
    base = attributes(base, **geometry, kernel=kernel, transposed=transposed)
    what = asked(base.ops[0], base)
    large, small = (result, size) if transposed else (size, result)
    if isinstance(what, str):
        # Without pads behind there is more of the image than the result wants, by a whole stride.
        over = [
            (large[a] + pads[a] - (kernel[a] - 1) * dilations[a] - 1) // strides[a] + 1 - small[a]
            for a in (0, 1)
        ]
        negative = min(pads[:2]) < 0
        assert what == ("negative pads" if negative else "it leaves rows or columns out")
        assert negative or max(over) > 0
        return
    (top, left), after = what.pads
    assert (top, left) == pads[:2]
    assert min(*after, top, left) >= 0
    for axis in (0, 1):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        whole = large[axis] + what.pads[0][axis] + after[axis]
        assert (whole - reach) // strides[axis] + 1 == small[axis]
    assume(not transposed)
    # The reference reads zeros behind the image as far as it must.
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 1, *size)), rng.standard_normal((1, 1, *kernel))
    wanted = conv(x, weight, result, strides=strides, pads=pads, dilations=dilations)
    padded = np.pad(x, ((0, 0), (0, 0), (top, after[0]), (left, after[1])))
    found = conv(padded, weight, result, strides=strides, pads=(0, 0, 0, 0), dilations=dilations)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_every_convolution_of_the_default_network_is_listed_once() -> None:
    bundle = open_bundle("nano")
    plan = compile_graph(bundle, bundle.scope("all").graph, 64, 96, cuda_target("fp16", None))
    listed = offers(plan.program)
    positions = sorted(position for offer in listed for position in offer.operations)
    products = [op.kind in ("conv", "conv_weight_grad") for op in plan.program]
    assert positions == [position for position, yes in enumerate(products) if yes]
    offered = {offer.what for offer in listed if offer.offered}
    assert offered == {"convolution", "gradient of input", "gradient of weight"}
    # Wherever 16 bytes of channels are one image: the rest are the image's 3 and concatenations.
    assert {offer.reason.split(" ")[0] for offer in listed if not offer.offered} == {
        "it",
        "its",
        "the",
    }
    count = sum(len(offer.operations) for offer in listed if offer.offered)
    assert count > 0.8 * len(positions)
    assert f"offered {count} of {len(positions)} convolutions" in offers_line(listed)
    assert offers_table(listed).row_count == len(listed) == len(offers_document(plan.program))
    (leaky, *_) = [offer for offer in listed if "leaky" in offer.fused]
    assert leaky.fused == "bias leaky"
