"""The convolution of csrc/conv.cpp with weights packed by csrc/pack_weights.cpp."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np
import pytest
import torch

from edgeadapt.kernels.conv import ConvSpec, conv, pack_weights
from edgeadapt.kernels.reference import conv as reference
from edgeadapt.kernels.tensors import PlaneArgs, TensorArgs


@dataclass(frozen=True)
class Case:
    """Sources' channels, output channels, size of x and what else is unusual."""

    inputs: tuple[int, ...]
    outputs: int
    size: tuple[int, int]
    spec: ConvSpec = field(default_factory=lambda: same(3))
    y_size: tuple[int, int] | None = None  # None: as ConvTranspose2d or Conv2d without more padding

    def output_size(self) -> tuple[int, int]:
        return self.y_size or tuple(  # type: ignore[return-value]
            (n - 1) * s + d * (k - 1) + 1 - 2 * p
            if self.spec.transposed
            else (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, s, d, k, p in zip(
                self.size,
                self.spec.strides,
                self.spec.dilations,
                self.spec.kernel,
                self.spec.pads,
                strict=False,
            )
        )


def same(kernel: int, **others) -> ConvSpec:
    return ConvSpec((kernel, kernel), pads=(kernel // 2, kernel // 2), **others)


TRANSPOSED = ConvSpec((4, 4), (2, 2), (1, 1), transposed=True)
CASES = {
    "one pixel": Case((1,), 1, (1, 1)),
    "one row": Case((3,), 5, (1, 37)),
    "one column": Case((2,), 7, (41, 1)),
    "whole vectors": Case((8,), 16, (12, 64)),
    "odd": Case((7,), 13, (17, 35)),
    "an image": Case((6,), 11, (19, 50)),
    "two output channels": Case((5,), 2, (9, 70)),
    "nine output channels": Case((4,), 9, (6, 21)),
    "four sources": Case((3, 8, 1, 5), 8, (11, 29)),
    "many channels": Case((33, 32), 21, (9, 18)),
    "several bands": Case((24,), 8, (70, 90)),
    "several blocks across": Case((64,), 3, (12, 530)),
    "1x1": Case((9,), 6, (5, 33), same(1)),
    "5x5": Case((2,), 8, (13, 31), same(5)),
    "kernel larger than the image": Case((2,), 3, (2, 3), same(7)),
    "not square": Case((3,), 4, (10, 20), ConvSpec((1, 5), pads=(0, 2))),
    "asymmetric pads": Case((3,), 4, (10, 20), ConvSpec((3, 3), pads=(2, 0, 0, 1)), (10, 19)),
    "cut": Case((3,), 4, (10, 20), ConvSpec((3, 3), pads=(-1, -2)), (6, 14)),
    "far outside": Case((3,), 4, (4, 5), ConvSpec((3, 3), pads=(40, 70)), (82, 140)),
    "dilation": Case((4,), 8, (16, 40), same(3, dilations=(2, 3))),
    "stride 2": Case((6,), 8, (21, 45), same(3, strides=(2, 2))),
    "stride 2 of a 1x1": Case((6,), 8, (20, 45), same(1, strides=(2, 2))),
    "stride 2 down only": Case((6,), 8, (20, 45), same(3, strides=(2, 1))),
    "stride 4": Case((3,), 4, (9, 143), same(5, strides=(4, 4))),
    "stride 3 and dilation": Case((2,), 3, (31, 47), same(5, strides=(3, 3), dilations=(2, 2))),
    "depthwise": Case((6,), 6, (9, 20), same(3, group=6)),
    "groups": Case((4, 5), 6, (9, 20), same(3, group=3)),
    "transposed": Case((7,), 10, (8, 21), TRANSPOSED),
    "transposed, several bands": Case((32,), 8, (60, 70), TRANSPOSED),
    "transposed, odd size": Case((3,), 4, (8, 21), TRANSPOSED, (17, 43)),
    "transposed, stride 1": Case((3,), 4, (8, 21), same(3, transposed=True)),
    "transposed, stride 1, cut": Case(
        (9,), 11, (9, 40), ConvSpec((3, 3), pads=(0, 3), transposed=True), (10, 35)
    ),
    "transposed, stride 3": Case(
        (3,), 4, (8, 9), ConvSpec((4, 5), (3, 3), (1, 2), (2, 1), transposed=True)
    ),
    "transposed, gaps": Case((3,), 4, (8, 9), ConvSpec((1, 2), (3, 4), transposed=True), (24, 37)),
    "transposed, cut": Case(
        (3,), 4, (8, 9), ConvSpec((3, 3), (2, 2), (-2, 3), transposed=True), (20, 11)
    ),
    "transposed, groups": Case(
        (4,), 6, (8, 9), ConvSpec((4, 4), (2, 2), (1, 1), group=2, transposed=True)
    ),
}

WINOGRAD = {name: case for name, case in CASES.items() if case.spec.winograd_fits()}


def bits(values):
    """float32 -> the bits of bfloat16, to nearest even."""
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype(np.uint16)


def value(array):
    """What an array of float32 or of bfloat16 bits means, in float64."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


class Problem:
    """Random arrays for a case; every image of the types asked for, in turn."""

    def __init__(self, case, guards, compute="f32", types="f", offset=1, algorithm="direct"):
        self.case, self.guards, self.types, self.offset = case, guards, types, offset
        changed = {"compute": compute, "algorithm": algorithm}
        self.spec = ConvSpec(**{**vars(case.spec), **changed})
        self.rng = np.random.default_rng(0)
        self.made = 0
        self.x = [self.image((1, c, *case.size)) for c in case.inputs]
        inputs, outputs = sum(case.inputs), case.outputs
        ends = (inputs, outputs) if self.spec.transposed else (outputs, inputs)
        shape = (ends[0], ends[1] // self.spec.group, *self.spec.kernel)
        self.weight = guards.copy(self.rng.standard_normal(shape, np.float32), 1)
        self.bias = guards.copy(self.rng.standard_normal(outputs, np.float32), 3)
        self.y = self.image((1, outputs, *case.output_size()), empty=True)

    def image(self, shape, empty=False):
        """A view of a larger image, so that neither rows nor channels follow each other."""
        half = self.types[self.made % len(self.types)] == "h"
        self.made += 1
        larger = (1, shape[1], shape[2], shape[3] + self.offset)
        if empty:
            made = self.guards.empty(larger, np.uint16 if half else np.float32, self.offset)
        else:
            made = self.rng.standard_normal(larger, np.float32)
            made = self.guards.copy(bits(made) if half else made, self.offset)
        if empty:
            self.padded_y = made
        return made[..., : shape[3]]

    def run(self, call, threads=1, **operands):
        """Pack and convolve; checks that nothing between the rows of y was written."""
        weights = self.guards.empty(
            (self.spec.packed_size(sum(self.case.inputs), self.case.outputs),)
        )
        packed = TensorArgs.of(weights)
        call(
            self.spec.kernels[0],
            pack_weights(self.spec, TensorArgs.of(self.weight), packed),
            threads,
        )
        images = {
            name: PlaneArgs.of(each) if name in ("add0", "add1", "post", "mask") else each
            for name, each in operands.items()
        }
        images["bias"] = TensorArgs.of(operands["bias"]) if "bias" in operands else None
        x = [PlaneArgs.of(each) for each in self.x]
        call(
            self.spec.kernels[1],
            conv(self.spec, x, packed, PlaneArgs.of(self.y), **images),
            threads,
        )
        between = self.padded_y[..., self.y.shape[3] :]
        assert (np.ascontiguousarray(between).view(np.uint8) == 0xFF).all(), "written between rows"
        return self.y

    def expected(self, x_of=lambda x: x, **operands):
        """The reference's result; ``x_of`` is applied to what is multiplied."""
        round_ = self.spec.compute == "bf16"
        x = np.concatenate([value(bits(value(e)) if round_ else e) for e in self.x], axis=1)
        weight = value(bits(self.weight) if round_ else self.weight)
        names = ("strides", "pads", "dilations", "group", "transposed")
        sums = reference.conv(
            x_of(x), x_of(weight), self.y.shape[2:], **{n: getattr(self.spec, n) for n in names}
        )
        operands = {k: value(v) if isinstance(v, np.ndarray) else v for k, v in operands.items()}
        return reference.finish(sums, **operands)

    def check(self, **operands):
        """Each sum of n rounded products is within n / 2 ulp of the sum of their magnitudes."""
        expected = self.expected(**operands)
        size = np.maximum(self.expected(np.abs), 1e-30)
        for name in ("bias", "add0", "add1", "post"):
            if name in operands:
                each = np.abs(value(operands[name]))
                size = size + (each[:, None, None] if name == "bias" else each)
        error = np.abs(value(self.y) - expected)
        terms = sum(self.case.inputs) * prod(self.spec.kernel) + 8
        if self.spec.algorithm == "winograd":
            # A square's outputs share their products' errors: no bound for each element alone.
            size = np.full_like(size, size.max())
            if self.y.dtype == np.float32:
                assert np.linalg.norm(error) <= 2e-6 * np.linalg.norm(expected)
        bound = 2.0**-24 * terms * size * max(1.0, abs(operands.get("slope") or 0.0))
        if self.y.dtype == np.uint16:
            bound = bound + 2.0**-8 * np.abs(expected)
        assert (error <= bound).all(), f"{np.nanmax(error / bound):.1f} times the bound"


def several(problem):
    """Every operand that a convolution may have."""
    shape = problem.y.shape
    images = {name: problem.image(shape) for name in ("add0", "add1", "post", "mask")}
    return {"bias": problem.bias, "slope": 0.1, "mask_slope": 0.2, **images}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_kernel_equals_the_reference(case, call, guards):
    problem = Problem(case, guards)
    problem.run(call, bias=problem.bias)
    problem.check(bias=problem.bias)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_products_of_bfloat16_equal_the_reference(case, call, guards):
    problem = Problem(case, guards, "bf16", "hhf")
    operands = several(problem)
    problem.run(call, **operands)
    problem.check(**operands)


@pytest.mark.parametrize("case", WINOGRAD.values(), ids=WINOGRAD)
@pytest.mark.parametrize("types", ["f", "h", "ffh"])
def test_winograd_equals_the_reference(case, types, call, guards):
    problem = Problem(case, guards, "f32", types, algorithm="winograd")
    operands = several(problem)
    problem.run(call, **operands)
    problem.check(**operands)


@pytest.mark.parametrize("name", ["many channels", "transposed, stride 1", "several bands"])
def test_threads_do_not_change_the_result_of_winograd(name, call, guards):
    results = []
    for threads in (1, 2, 5):
        problem = Problem(CASES[name], guards, algorithm="winograd")
        results.append(problem.run(call, threads, bias=problem.bias))
    problem.check(bias=problem.bias)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize(
    ("types", "algorithm"), [("f", "winograd"), ("h", "winograd"), ("f", "direct")]
)
def test_a_result_too_large_for_the_caches_is_the_same(types, algorithm, call, guards):
    # Only where lines of memory and vectors begin together it is written past them.
    case = Case((1,), 8 if types == "f" else 16, (519, 512))
    problem = Problem(case, guards, "f32", types, 0, algorithm)
    alone = {"bias": problem.bias}
    masked = {**alone, "mask": problem.image(problem.y.shape)}
    large = [problem.run(call, 2, **operands).copy() for operands in (alone, masked)]
    problem.offset = 1
    problem.y = problem.image(problem.y.shape, empty=True)
    for operands, expected in zip((alone, masked), large, strict=True):
        np.testing.assert_array_equal(problem.run(call, **operands), expected)


@pytest.mark.parametrize("types", ["f", "h", "fh", "hf", "ffh"])
@pytest.mark.parametrize("compute", ["f32", "bf16"])
@pytest.mark.parametrize("name", ["four sources", "transposed, odd size", "stride 2"])
def test_every_image_has_its_own_type(name, compute, types, call, guards):
    problem = Problem(CASES[name], guards, compute, types)
    operands = several(problem)
    problem.run(call, **operands)
    problem.check(**operands)


@pytest.mark.parametrize("name", ["bias", "add0", "add1", "slope", "post", "mask"])
@pytest.mark.parametrize("case", [CASES["odd"], CASES["whole vectors"], CASES["transposed"]])
def test_each_operand_alone(case, name, call, guards):
    problem = Problem(case, guards, offset=3)
    operands = several(problem)
    chosen = {k: v for k, v in operands.items() if k == name or (name, k) == ("mask", "mask_slope")}
    if name == "slope":
        chosen["slope"] = -1.5  # not the larger of v and slope * v
    problem.run(call, **chosen)
    problem.check(**chosen)


@pytest.mark.parametrize("place", ["add0", "add1", "post", "mask"])
@pytest.mark.parametrize("name", ["odd", "transposed, odd size", "several bands"])
def test_y_may_be_the_memory_of_an_operand(name, place, call, guards):
    problem = Problem(CASES[name], guards)
    operands = several(problem)
    expected = Problem(CASES[name], guards)
    problem.y[...] = operands[place]
    expected.run(call, **operands)
    problem.run(call, **{**operands, place: problem.y}, threads=2)
    np.testing.assert_array_equal(problem.y, expected.y)


@pytest.mark.parametrize("name", ["several bands", "transposed", "groups", "one pixel", "odd"])
def test_threads_do_not_change_the_result(name, call, guards):
    results = []
    for threads in (1, 2, 3, 7):
        problem = Problem(CASES[name], guards)
        results.append(problem.run(call, threads, bias=problem.bias))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("transposed", [False, True])
def test_a_part_of_the_output_channels_has_packed_weights_of_its_own(transposed, call, guards):
    case = Case((5,), 12, (6, 18), same(3, transposed=transposed))
    whole, part = Problem(case, guards), Problem(Case((5,), 7, (6, 18), case.spec), guards)
    whole.run(call)
    part.x, packed = whole.x, guards.empty((part.spec.packed_size(5, 7),))
    weight = TensorArgs.of(whole.weight)
    call("pack_weights", pack_weights(part.spec, weight, TensorArgs.of(packed), (3, 7)))
    x = [PlaneArgs.of(each) for each in part.x]
    call("conv", conv(part.spec, x, TensorArgs.of(packed), PlaneArgs.of(part.y)))
    np.testing.assert_allclose(part.y, whole.y[:, 3:10], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_reference_is_what_torch_computes(case):
    # torch has symmetric pads that are not negative, and settles the size itself.
    spec = case.spec
    if min(spec.pads) < 0 or len(spec.pads) > 2 or case.y_size:
        pytest.skip("torch has no such convolution")
    rng = np.random.default_rng(0)
    inputs, outputs = sum(case.inputs), case.outputs
    ends = (inputs, outputs) if spec.transposed else (outputs, inputs)
    x = rng.standard_normal((1, inputs, *case.size))
    weight = rng.standard_normal((ends[0], ends[1] // spec.group, *spec.kernel))
    function = (
        torch.nn.functional.conv_transpose2d if spec.transposed else torch.nn.functional.conv2d
    )
    expected = function(
        torch.from_numpy(x),
        torch.from_numpy(weight),
        stride=spec.strides,
        padding=spec.pads,
        dilation=spec.dilations,
        groups=spec.group,
    ).numpy()
    names = ("strides", "pads", "dilations", "group", "transposed")
    got = reference.conv(
        x, weight, case.output_size(), **{name: getattr(spec, name) for name in names}
    )
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)
