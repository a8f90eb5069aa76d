"""The convolutions of csrc/conv_*.cu, on the host, against numpy in float64."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import cycle
from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeadapt.kernels.cuda.conv import ConvSpec, conv
from edgeadapt.kernels.cuda.tensors import ImageArgs, TensorArgs
from edgeadapt.kernels.reference import conv as reference
from support.cuda_close import check_close
from support.strided import Layout, to_bf16, wide


@dataclass(frozen=True)
class Case:
    """Sources' channels, output channels, size of x and what else is unusual."""

    inputs: tuple[int, ...]
    outputs: int
    size: tuple[int, int]
    spec: ConvSpec = field(default_factory=lambda: same(3))
    y_size: tuple[int, int] | None = None  # None: as ConvTranspose2d or Conv2d without more padding

    def output_size(self) -> tuple[int, ...]:
        spec = self.spec
        axes = zip(self.size, spec.strides, spec.dilations, spec.kernel, spec.pads, strict=False)
        return self.y_size or tuple(
            (n - 1) * s + d * (k - 1) + 1 - 2 * p
            if spec.transposed
            else (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, s, d, k, p in axes
        )


def same(kernel: int, **others) -> ConvSpec:
    return ConvSpec((kernel, kernel), pads=(kernel // 2, kernel // 2), **others)


TRANSPOSED = ConvSpec((4, 4), (2, 2), (1, 1), transposed=True)
CASES = {
    "one pixel": Case((8,), 8, (1, 1)),
    "one row": Case((8,), 16, (1, 19)),
    "one column": Case((16,), 8, (9, 1)),
    "a tile and a pixel": Case((16,), 16, (5, 17)),
    "many channels": Case((24, 16), 40, (5, 9)),
    "sources that are no vectors": Case((3, 8, 1, 7), 19, (5, 9)),
    "narrow": Case((3,), 3, (5, 34)),
    "narrow to wide": Case((6,), 16, (6, 11)),
    "wide to narrow": Case((16,), 3, (5, 11)),
    "odd": Case((11,), 19, (7, 18)),
    "1x1": Case((19,), 11, (3, 17), same(1)),
    "5x5": Case((9,), 8, (6, 11), same(5)),
    "kernel larger than the image": Case((8,), 8, (2, 3), same(7)),
    "not square": Case((8,), 8, (5, 20), ConvSpec((1, 3), pads=(0, 1))),
    "a column": Case((8,), 8, (7, 6), ConvSpec((3, 1), pads=(1, 0))),
    "asymmetric pads": Case((8,), 9, (6, 10), ConvSpec((3, 3), pads=(2, 0, 0, 1)), (6, 9)),
    "cut": Case((8,), 8, (9, 10), ConvSpec((3, 3), pads=(-1, -2)), (5, 4)),
    "far outside": Case((8,), 8, (2, 2), ConvSpec((3, 3), pads=(7, 20)), (14, 40)),
    "dilation": Case((8,), 8, (8, 11), same(3, dilations=(2, 3))),
    "stride 2": Case((16,), 16, (9, 35), same(3, strides=(2, 2))),
    "stride 2, 4x4": Case((8,), 8, (8, 18), ConvSpec((4, 4), (2, 2), (1, 1))),
    "stride 2 down only": Case((8,), 8, (8, 11), same(3, strides=(2, 1))),
    "stride 2 across only": Case((8,), 8, (8, 11), same(3, strides=(1, 2))),
    "stride 5": Case((8,), 8, (9, 23), same(5, strides=(5, 5))),
    "depthwise": Case((6,), 6, (5, 9), same(3, group=6)),
    "groups": Case((16, 8), 24, (4, 9), same(3, group=3)),
    "odd groups": Case((4, 20), 10, (4, 9), same(3, group=2)),
    "transposed": Case((16,), 16, (4, 9), TRANSPOSED),
    "transposed, many channels": Case((24,), 40, (3, 5), TRANSPOSED),
    "transposed, odd size": Case((8,), 8, (4, 9), TRANSPOSED, (9, 19)),
    "transposed, stride 1": Case((16,), 8, (8, 9), same(3, transposed=True)),
    "transposed, cut": Case(
        (8,), 8, (6, 7), ConvSpec((3, 3), (2, 2), (-2, 3), transposed=True), (15, 8)
    ),
    "transposed, dilation": Case(
        (8,), 8, (4, 5), ConvSpec((4, 5), (3, 3), (1, 2), (2, 1), transposed=True)
    ),
    "transposed, dilation meets few": Case(
        (8,), 8, (5, 6), ConvSpec((3, 3), (2, 2), (2, 2), (2, 2), transposed=True)
    ),
    "transposed, gaps": Case((8,), 8, (4, 5), ConvSpec((1, 2), (3, 4), transposed=True), (12, 21)),
    "transposed, 3 taps and 2": Case(
        (8,), 16, (4, 5), ConvSpec((5, 5), (2, 2), (2, 2), transposed=True)
    ),
    "transposed, smaller than the stride": Case(
        (8,), 8, (1, 1), ConvSpec((3, 3), (4, 3), transposed=True), (1, 2)
    ),
    "transposed, stride 5": Case((8,), 8, (2, 3), ConvSpec((5, 7), (5, 6), transposed=True)),
    "transposed, one row": Case((8,), 8, (1, 3), TRANSPOSED, (1, 7)),
    "transposed, groups": Case(
        (16,), 16, (3, 5), ConvSpec((4, 4), (2, 2), (1, 1), group=2, transposed=True)
    ),
    "a wide window": Case(
        (8,), 32, (1, 40), ConvSpec((1, 3), pads=(0, 650), dilations=(1, 650)), (1, 40)
    ),
    "a window that just fits": Case(
        (8,), 32, (12, 70), ConvSpec((2, 3), pads=(2, 50), dilations=(8, 52)), (5, 33)
    ),
    "a plane that just fits": Case(
        (8,), 32, (12, 70), ConvSpec((2, 3), pads=(2, 50), dilations=(8, 57)), (5, 33)
    ),
    "a window that no block holds": Case((8,), 8, (5, 9), same(3, dilations=(300, 5)), (5, 9)),
}


def rounded(values, compute):
    """float64 -> what is multiplied, in float64."""
    if compute == "f16":
        return values.astype(np.float16).astype(np.float64)
    if compute == "bf16":
        return wide(to_bf16(values))
    bits = values.astype(np.float32).view(np.uint32)
    if compute == "tf32":
        bits = (bits + 0x1000) & 0xFFFFE000
    return bits.view(np.float32).astype(np.float64)


def pack(weight, spec):
    """(group, u, v, ci, co) with zeros behind the output channels, in float64."""
    group, (height, width) = spec.group, spec.kernel
    if spec.transposed:
        parts = weight.reshape(group, -1, *weight.shape[1:]).transpose(0, 3, 4, 1, 2)
    else:
        parts = weight.reshape(group, -1, *weight.shape[1:]).transpose(0, 3, 4, 2, 1)
    spare = -parts.shape[-1] % 8
    assert parts.shape[:3] == (group, height, width)
    return np.pad(parts, [(0, 0)] * 4 + [(0, spare)])


class Problem:
    """Random arrays for a case: types and layouts of images in turn."""

    def __init__(self, case, guarded, compute, types=("f32",), layouts=("nhwc",), seed=0):
        self.case, self.guarded, self.spec = case, guarded, replace(case.spec, compute=compute)
        self.rng = np.random.default_rng(seed)
        self.types, self.layouts = cycle(types), cycle(layouts)
        self.x = [self.image((1, c, *case.size)) for c in case.inputs]
        inputs, outputs = sum(case.inputs), case.outputs
        ends = (inputs, outputs) if self.spec.transposed else (outputs, inputs)
        shape = (ends[0], ends[1] // self.spec.group, *self.spec.kernel)
        self.weight = rounded(self.rng.standard_normal(shape), self.spec.weights_dtype)
        packed = pack(self.weight, self.spec)
        assert packed.size == self.spec.packed_size(inputs, outputs)
        self.packed = guarded(packed.shape, "nchw", self.spec.weights_dtype, packed)
        self.bias = guarded((outputs,), "nhwc", "f32", self.rng.standard_normal(outputs))
        self.y = self.image((1, outputs, *case.output_size()), empty=True)

    def image(self, shape, empty=False):
        values = None if empty else self.rng.standard_normal(shape)
        return self.guarded(shape, next(self.layouts), next(self.types), values)

    def operands(self):
        """Every one that a convolution may have."""
        images = {name: self.image(self.y.shape) for name in ("add0", "add1", "post", "mask")}
        return {"bias": self.bias, "slope": 0.1, "mask_slope": 0.2, **images}

    def work(self, **operands):
        given = dict(operands)
        for name in given.keys() & {"add0", "add1", "post", "mask"}:
            given[name] = ImageArgs.of(given[name])
        if "bias" in given:
            given["bias"] = TensorArgs.of(given["bias"])
        x = [ImageArgs.of(each) for each in self.x]
        packed = TensorArgs.of(self.packed)
        return conv(self.spec, x, packed, ImageArgs.of(self.y), **given)

    def run(self, run, **operands):
        """Run it; returns the kernel's name."""
        run(lambda scratch: self.work(**operands))
        return self.work(**operands).launches[0].kernel

    def expected(self, kernel, change=lambda values: values, **operands):
        """The reference's result; ``change`` is applied to what is multiplied."""
        # What does not run on tensor cores multiplies float32.
        compute = kernel.split("_")[1] if self.spec.compute in kernel else "f32"
        x = change(rounded(np.concatenate([wide(each) for each in self.x], axis=1), compute))
        weight = change(rounded(self.weight, compute))
        names = ("strides", "pads", "dilations", "group", "transposed")
        sums = reference.conv(
            x, weight, self.y.shape[2:], **{name: getattr(self.spec, name) for name in names}
        )
        values = {k: wide(v) if isinstance(v, np.ndarray) else v for k, v in operands.items()}
        return reference.finish(sums, **values)

    def check(self, kernel, **operands):
        """Each of n products and sums is rounded once, the result to y's type."""
        expected = self.expected(kernel, **operands)
        size = self.expected(kernel, np.abs)
        for name in {"bias", "add0", "add1", "post"} & operands.keys():
            each = np.abs(wide(operands[name]))
            size = size + (each[:, None, None] if name == "bias" else each)
        terms = 2 * sum(self.case.inputs) * prod(self.spec.kernel) + 8
        check_close(self.y, expected, size * max(1.0, abs(operands.get("slope") or 0.0)), terms)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("compute", ["f32", "f16", "bf16", "tf32"])
def test_the_kernel_equals_the_reference(case, compute, run, guarded):
    problem = Problem(case, guarded, compute, ("f32" if "32" in compute else compute,))
    kernel = problem.run(run, bias=problem.bias)
    problem.check(kernel, bias=problem.bias)


TYPES = {
    "floats": ("f32",),
    "halves": ("f16",),
    "bfloats": ("bf16",),
    "halves from floats": ("f32", "f16"),
    "all": ("f32", "bf16", "f16", "f16", "bf16"),
}
MIXED = ["many channels", "odd", "sources that are no vectors", "stride 2", "transposed", "groups"]


@pytest.mark.parametrize("types", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("compute", ["f32", "f16", "bf16", "tf32"])
@pytest.mark.parametrize("name", MIXED)
def test_every_image_has_its_own_type(name, compute, types, run, guarded):
    problem = Problem(CASES[name], guarded, compute, types)
    operands = problem.operands()
    problem.check(problem.run(run, **operands), **operands)


SLICE = Layout((0, 2, 3, 1), (1, 1, 1, 1), (0, 8, 0, 0), 0)  # of the channels of a wider image
NARROW_SLICE = Layout((0, 2, 3, 1), (1, 1, 1, 1), (0, 2, 0, 1), 2)  # pairs are aligned, no more
BACKWARDS = Layout((0, 2, 3, 1), (1, 1, -1, -2), (0, 0, 1, 0), 0)
LAYOUTS = {
    "planar": ("nchw",),
    "gaps": ("strided",),
    "slices": (SLICE,),
    "narrow slices": (NARROW_SLICE,),
    "backwards": (BACKWARDS,),
    "all": ("nhwc", "nchw", SLICE, "strided", NARROW_SLICE, BACKWARDS),
}


@pytest.mark.parametrize("layouts", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("compute", ["f32", "f16", "tf32"])
@pytest.mark.parametrize("name", MIXED)
def test_every_image_has_its_own_strides(name, compute, layouts, run, guarded):
    problem = Problem(CASES[name], guarded, compute, ("f16", "f32", "f16"), layouts)
    operands = problem.operands()
    problem.check(problem.run(run, **operands), **operands)


def test_gaps_behind_channels_are_no_part_of_a_vector(run, guarded):
    padded = Layout((0, 2, 3, 1), (1, 1, 1, 1), (0, 2, 0, 0), 0)
    for compute, outputs in (("f16", 10), ("f32", 6)):
        case = Case((6, 6), outputs, (5, 9))
        problem = Problem(case, guarded, compute, ("f16",), (padded,))
        operands = problem.operands()
        together = (compute == "f16") << 9  # of the type that is multiplied
        vectors = problem.work(**operands).launches[0].arguments.common.vectors
        assert vectors == 0b111110011 | together
        problem.check(problem.run(run, **operands), **operands)


@pytest.mark.parametrize("compute", ["f32", "f16"])
def test_a_group_reads_no_channels_of_others(compute, run, guarded):
    # 12 channels of a group end within a vector of 8 of them.
    problem = Problem(Case((24,), 16, (5, 9), same(3, group=2)), guarded, compute, ("f16",))
    problem.x[0][:, 12:] = np.inf
    run(lambda scratch: problem.work())
    assert np.isfinite(wide(problem.y[:, :8])).all()
    assert not np.isfinite(wide(problem.y[:, 8:])).any()


LARGE = {
    "one chunk": Case((16,), 16, (16, 32)),
    "chunks": Case((24, 8), 64, (8, 32)),
    "1x1": Case((40,), 64, (8, 32), same(1)),
    "5x5": Case((19,), 16, (16, 32), same(5)),
    "stride 2": Case((24,), 64, (16, 64), same(3, strides=(2, 2))),
    "stride 2, 4x4": Case((24,), 16, (32, 64), ConvSpec((4, 4), (2, 2), (1, 1))),
    "transposed": Case((24,), 64, (8, 32), TRANSPOSED),
    "transposed, one chunk": Case((8,), 16, (16, 32), TRANSPOSED),
}


@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("compute", ["f32", "f16"])
def test_blocks_of_many_threads(case, compute, run, guarded, monkeypatch):
    # Small images get small blocks, unless the device is small.
    monkeypatch.setattr("edgeadapt.kernels.cuda.conv_tiles.ENOUGH_BLOCKS", 1)
    problem = Problem(case, guarded, compute, ("f16", "f32"))
    assert problem.work().launches[0].block[0] >= 128
    operands = problem.operands()
    problem.check(problem.run(run, **operands), **operands)


@pytest.mark.parametrize("name", ["bias", "add0", "add1", "slope", "post", "mask"])
@pytest.mark.parametrize("case", ["a tile and a pixel", "odd", "stride 5"])
@pytest.mark.parametrize("compute", ["f32", "f16"])
def test_each_operand_alone(compute, case, name, run, guarded):
    problem = Problem(CASES[case], guarded, compute, ("f16", "f32"))
    operands = problem.operands()
    chosen = {k: v for k, v in operands.items() if k == name or (name, k) == ("mask", "mask_slope")}
    if name == "slope":
        chosen["slope"] = 1.5  # not the larger of v and slope * v
    problem.check(problem.run(run, **chosen), **chosen)


@pytest.mark.parametrize("operand", ["add0", "add1", "post", "mask"])
@pytest.mark.parametrize("case", ["odd", "transposed, odd size", "many channels", "stride 5"])
@pytest.mark.parametrize("compute", ["f32", "f16"])
def test_y_may_be_the_memory_of_an_operand(compute, case, operand, run, guarded):
    problem = Problem(CASES[case], guarded, compute, ("f16",))
    operands = problem.operands()
    kernel = problem.run(run, **operands)
    expected = problem.y.copy()
    problem.y[...] = operands[operand]
    assert problem.run(run, **{**operands, operand: problem.y}) == kernel
    np.testing.assert_array_equal(problem.y, expected)


@given(data=st.data())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_convolution(data, run, device):
    draw = data.draw
    pair = st.tuples(st.integers(1, 4), st.integers(1, 4))
    group = draw(st.sampled_from([1, 1, 1, 2, 3]))
    spec = ConvSpec(
        draw(pair),
        draw(pair),
        draw(st.tuples(st.integers(-3, 4), st.integers(-3, 4))),
        draw(pair),
        group,
        draw(st.booleans()),
    )
    channels = st.integers(1, 12)
    inputs = [draw(channels) for _ in range(draw(st.integers(1, 4)))]
    inputs[-1] += -sum(inputs) % group
    small = st.tuples(st.integers(1, 9), st.integers(1, 20))
    case = Case(tuple(inputs), group * draw(st.integers(1, 36)), draw(small), spec, draw(small))
    types = draw(st.lists(st.sampled_from(["f32", "f16", "bf16"]), min_size=1, max_size=4))
    compute = draw(st.sampled_from(["f32", "f16", "bf16", "tf32"]))
    problem = Problem(
        case, device.array, compute, types, draw(st.sampled_from(list(LAYOUTS.values())))
    )
    operands = problem.operands()
    problem.check(problem.run(run, **operands), **operands)
