from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.conv_weight_grad import conv_weight_grad
from edgeadapt.kernels.cuda.tensors import ImageArgs, TensorArgs
from edgeadapt.kernels.reference import conv_weight_grad as reference
from support.strided import to_bf16, wide

# Of the norm. A sum of n rounded numbers is off by about sqrt(n) / 2 units of 2^-24 of its parts;
# no chain of additions here is longer than a few hundred.
RTOL = 1e-6


@dataclass(frozen=True)
class Case:
    """A convolution whose weight gradient is wanted."""

    channels: tuple[int, ...]  # of each source
    outputs: int
    size: tuple[int, int]  # of x
    grad_size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    group: int = 1
    bias_of: str = "grad_y"

    @property
    def geometry(self):
        return {
            "strides": self.strides,
            "pads": self.pads,
            "dilations": self.dilations,
            "group": self.group,
        }

    @property
    def weight_shape(self):
        return (self.outputs, sum(self.channels) // self.group, *self.kernel)

    @property
    def bias_shape(self):
        return (sum(self.channels) if self.bias_of == "x" else self.outputs,)


CASES = {
    "one pixel": Case((1,), 1, (1, 1), (1, 1), (1, 1), pads=(0, 0)),
    "one pixel, 3x3": Case((9,), 10, (1, 1), (1, 1)),
    "kernel larger than the image": Case((3,), 2, (2, 3), (4, 3), (7, 5), pads=(4, 2)),
    "narrow": Case((3,), 16, (19, 37), (19, 37)),
    "narrow results": Case((16,), 3, (19, 37), (19, 37)),
    "3x3": Case((16,), 16, (35, 71), (35, 71)),
    "3x3, 32": Case((32,), 32, (10, 34), (10, 34)),
    "3x3, odd channels": Case((11,), 9, (18, 21), (18, 21), bias_of="x"),
    "3x3, many channels": Case((40,), 50, (5, 18), (5, 18)),
    "3x3, 24 and 18": Case((24,), 18, (7, 33), (7, 33), bias_of="x"),
    "four sources": Case((3, 1, 8, 2), 16, (12, 18), (12, 18)),
    "two sources, 1x1": Case((16, 16), 16, (17, 23), (17, 23), (1, 1), pads=(0, 0)),
    "1x1, stride 2": Case((8,), 12, (17, 73), (9, 37), (1, 1), (2, 2), (0, 0)),
    "3x3, stride 2": Case((16,), 9, (33, 75), (17, 38), strides=(2, 2)),
    "5x5": Case((12,), 8, (19, 40), (19, 40), (5, 5), pads=(2, 2)),
    "5x5, wide": Case((32,), 32, (5, 9), (5, 9), (5, 5), pads=(2, 2)),
    "7x7, stride 3": Case((8,), 8, (21, 60), (7, 20), (7, 7), (3, 3), (2, 3), bias_of="x"),
    "11x2": Case((8,), 8, (21, 20), (21, 20), (11, 2), pads=(5, 1)),
    "4x4, stride 2, bias of x": Case((16,), 12, (64, 72), (32, 36), (4, 4), (2, 2), bias_of="x"),
    "2x2, stride 2, bias of x": Case(
        (2, 6), 8, (66, 130), (33, 65), (2, 2), (2, 2), (0, 0), bias_of="x"
    ),
    "strides 3 and 1": Case((9,), 8, (20, 20), (7, 19), (2, 4), (3, 1), (1, 1)),
    "stride over the kernel": Case((8,), 8, (20, 50), (5, 10), (2, 2), (4, 5), (0, 0), bias_of="x"),
    "large stride": Case((8,), 8, (81, 90), (2, 3), (2, 3), (40, 33), (0, 0), bias_of="x"),
    "dilated": Case((8,), 8, (21, 30), (17, 26), dilations=(3, 2), pads=(1, 0)),
    "dilated, stride 2": Case((8,), 12, (21, 30), (10, 14), (3, 4), (2, 2), (2, 2), (3, 2)),
    "widely dilated": Case((8,), 8, (50, 99), (50, 99), dilations=(20, 45), pads=(20, 45)),
    "more taps than warps": Case(
        (8,), 8, (10, 70), (8, 70), (2, 40), pads=(0, 20), dilations=(2, 3), bias_of="x"
    ),
    "asymmetric pads": Case((8,), 8, (15, 15), (17, 13), pads=(3, 0)),
    "negative pads": Case((8,), 8, (15, 35), (9, 27), pads=(-2, -3), bias_of="x"),
    "a first row that is not seen": Case((8,), 8, (15, 35), (12, 31), pads=(-2, -3), bias_of="x"),
    "rows between that are not seen": Case(
        (8,), 8, (11, 59), (4, 20), (2, 2), (3, 3), (0, 0), bias_of="x"
    ),
    "grad_y beyond x": Case((9,), 8, (4, 5), (12, 19), pads=(2, 3), bias_of="x"),
    "grad_y less than x": Case((9,), 8, (14, 35), (7, 5), pads=(1, 1), bias_of="x"),
    "tiles that end with grad_y": Case((8,), 8, (34, 66), (32, 64), pads=(0, 0), bias_of="x"),
    "groups": Case((18, 6), 36, (14, 18), (14, 18), group=3),
    "wide groups": Case((40,), 80, (4, 18), (4, 18), group=2, bias_of="x"),
    "depthwise": Case((5, 11), 16, (14, 40), (14, 40), group=16),
    "depthwise, bias of x": Case((6,), 12, (11, 9), (6, 5), strides=(2, 2), group=6, bias_of="x"),
}
# Types of x and of grad_y, and what may be multiplied in.
WAYS = {
    "f32": ("f32", "f32", "f32"),
    "f16": ("f16", "f16", "f32"),
    "bf16": ("bf16", "bf16", "f32"),
    "tf32": ("f32", "f32", "tf32"),
    "tf32 of f16 and f32": ("f16", "f32", "tf32"),
    "f32 of bf16 and f32": ("bf16", "f32", "f32"),
    "f16 of f32 and f16": ("f32", "f16", "f16"),
    "bf16 of f32 and bf16": ("f32", "bf16", "bf16"),
}
WIDE = [name for name, case in CASES.items() if min(case.weight_shape[:2]) >= 8]


def rounded(values, compute):
    """What is multiplied."""
    bits = np.float32(values).view(np.uint32)
    return {
        "f32": lambda: values,
        "tf32": lambda: ((bits + 0x1000) & 0xFFFFE000).view(np.float32).astype(np.float64),
        "f16": lambda: np.float64(np.float16(values)),
        "bf16": lambda: wide(to_bf16(values)),
    }[compute]()


class Run:
    """A case with random inputs, its launcher's arguments, and what it has to give."""

    def __init__(self, guarded, rng, case, way="f32", layouts=("nhwc", "nhwc")):
        x_type, grad_type, self.compute = WAYS[way]
        self.case = case
        self.x = [
            guarded(shape, layouts[0], x_type, rng.standard_normal(shape))
            for shape in ((1, c, *case.size) for c in case.channels)
        ]
        shape = (1, case.outputs, *case.grad_size)
        self.grad_y = guarded(shape, layouts[1], grad_type, rng.standard_normal(shape))
        self.weight, self.bias = guarded(case.weight_shape, "nchw"), guarded(case.bias_shape)

    def make(self, **options):
        def work(scratch):
            return conv_weight_grad(
                [ImageArgs.of(image) for image in self.x],
                ImageArgs.of(self.grad_y),
                TensorArgs.of(self.weight),
                TensorArgs.of(self.bias),
                bias_of=self.case.bias_of,
                compute=self.compute,
                scratch=scratch,
                **self.case.geometry,
                **options,
            )

        return work

    def expected(self):
        x, grad_y = np.concatenate([wide(image) for image in self.x], axis=1), wide(self.grad_y)
        narrow = min(self.case.weight_shape[:2]) < 8  # which CUDA cores do, without rounding
        compute = "f32" if narrow else self.compute
        # tf32 is rounded to where it is multiplied; types of 16 bits where they are read.
        early = compute if compute in ("f16", "bf16") else "f32"
        x, grad_y = rounded(x, early), rounded(grad_y, early)
        of = x if self.case.bias_of == "x" else grad_y
        if self.compute != "f32" and self.case.bias_of == "x":
            of = np.concatenate([wide(image) for image in self.x], axis=1) if narrow else of
        weight = reference.weight_gradient(
            rounded(x, compute), rounded(grad_y, compute), kernel=self.case.kernel,
            **self.case.geometry,
        )  # fmt: skip
        return weight, reference.bias_gradient(of)

    def check(self, added=(0.0, 0.0)):
        for actual, wanted, before in zip(
            (self.weight, self.bias), self.expected(), added, strict=True
        ):
            assert np.isfinite(actual).all()
            error = np.linalg.norm(actual - (wanted + before))
            assert error <= RTOL * np.linalg.norm(wanted + before)


@pytest.mark.parametrize("name", CASES)
def test_float32(run, guarded, rng, name):
    this = Run(guarded, rng, CASES[name])
    run(this.make())
    this.check()


@pytest.mark.parametrize("way", ["f16", "bf16", "tf32"])
@pytest.mark.parametrize("name", WIDE)
def test_tensor_cores(run, guarded, rng, name, way):
    this = Run(guarded, rng, CASES[name], way)
    assert way in this.make()(0).launches[0].kernel
    run(this.make())
    this.check()


@pytest.mark.parametrize("way", [way for way in WAYS if " of " in way])
@pytest.mark.parametrize("name", ["3x3, odd channels", "four sources", "4x4, stride 2, bias of x"])
def test_mixed_types(run, guarded, rng, name, way):
    this = Run(guarded, rng, CASES[name], way)
    run(this.make())
    this.check()


@pytest.mark.parametrize("layouts", [("nchw", "nhwc"), ("nhwc", "nchw"), ("strided", "strided")])
@pytest.mark.parametrize("way", ["f32", "f16", "tf32"])
@pytest.mark.parametrize("name", ["four sources", "3x3, stride 2"])
def test_layouts(run, guarded, rng, name, way, layouts):
    this = Run(guarded, rng, replace(CASES[name], size=(9, 19), grad_size=(8, 18)), way, layouts)
    run(this.make())
    this.check()


# Of an image of 32 channels, those that could be loaded eight at once but for one thing.
ALMOST_ALIGNED = {
    "it begins in between": (slice(8, 16), slice(3, 11)),
    "every other channel": (slice(0, 32, 2),),
    "backwards": (slice(23, 7, -1),),
    "a source ends before its memory": (slice(0, 11), slice(16, 21)),
}


@pytest.mark.parametrize("way", ["f32", "bf16"])
@pytest.mark.parametrize("why", ALMOST_ALIGNED)
def test_channels_that_cannot_be_loaded_at_once(run, guarded, rng, way, why):
    this = Run(guarded, rng, replace(CASES["3x3"], size=(5, 6), grad_size=(5, 6)), way)
    x_type, shape = WAYS[way][0], (1, 32, 5, 6)
    whole = guarded(shape, "nhwc", x_type, rng.standard_normal(shape))
    this.x = [whole[:, channels] for channels in ALMOST_ALIGNED[why]]
    run(this.make())
    this.check()


@pytest.mark.parametrize("way", ["f32", "f16"])
@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_any_number_of_chunks(run, guarded, rng, way, chunks):
    # 3 x 3 tiles of f16, 3 x 5 of f32: chunks of one and of several, which end within a row.
    this = Run(guarded, rng, CASES["3x3"], way)
    assert this.make(most_chunks=chunks)(0).launches[0].grid[1] == chunks
    run(this.make(most_chunks=chunks))
    this.check()


@pytest.mark.parametrize("bias_of", ["grad_y", "x"])
@pytest.mark.parametrize("name", ["narrow", "3x3, odd channels", "negative pads"])
def test_results_are_added_to_what_is_there(run, guarded, rng, name, bias_of):
    this = Run(guarded, rng, replace(CASES[name], bias_of=bias_of))
    before = [rng.standard_normal(a.shape).astype(np.float32) for a in (this.weight, this.bias)]
    this.weight[...], this.bias[...] = before
    run(this.make(add_weight=True, add_bias=True))
    this.check(before)


def test_one_result_is_added_and_the_other_not(run, guarded, rng):
    this = Run(guarded, rng, CASES["narrow"])
    this.weight[...] = 1.0
    run(this.make(add_weight=True))
    this.check((1.0, 0.0))


@pytest.mark.parametrize("name", ["3x3", "stride over the kernel"])
def test_a_bias_need_not_be_wanted(run, guarded, rng, name):
    this = Run(guarded, rng, CASES[name])

    def make(scratch):
        return conv_weight_grad(
            [ImageArgs.of(image) for image in this.x],
            ImageArgs.of(this.grad_y),
            TensorArgs.of(this.weight),
            bias_of=this.case.bias_of,
            scratch=scratch,
            **this.case.geometry,
        )

    run(make)
    this.bias[...] = this.expected()[1]
    this.check()
    assert len(make(0).launches) == 2


@pytest.mark.parametrize("name", ["3x3", "4x4, stride 2, bias of x", "1x1, stride 2"])
def test_a_bias_costs_no_launch_where_the_tiles_meet_all_pixels(guarded, rng, name):
    this = Run(guarded, rng, CASES[name])
    assert len(this.make()(0).launches) == 2


def at(channels, height, width, dtype="f16"):
    """An image somewhere: nothing is launched."""
    strides = (0, 1, width * channels, channels)
    return ImageArgs.at(256, (1, channels, height, width), strides, dtype)


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "blocks"),
    [
        ((16, 16), (720, 1280), 3, 256),  # one of 16 x 16 channels, all taps from one read
        ((32, 32), (720, 1280), 3, 200),
        ((64, 64), (180, 320), 3, 128),
        ((128, 128), (90, 160), 3, 128),
        ((16, 32), (720, 1280), 1, 256),
        ((3, 16), (720, 1280), 3, 256),
    ],
)
def test_how_the_work_is_cut(channels, size, kernel, blocks):
    shape = (*channels, kernel, kernel)
    weight = TensorArgs.at(256, shape, (channels[1] * kernel**2, kernel**2, kernel, 1), "f32")
    work = conv_weight_grad([at(channels[1], *size)], at(channels[0], *size), weight, pads=(1, 1))
    first, last = work.launches
    assert first.kernel.endswith("_3x3") == (kernel == 3 and min(channels) >= 8)
    assert first.grid[0] == -(-channels[0] // 32) * -(-channels[1] // 32)
    assert blocks <= first.grid[0] * first.grid[1] < 1.2 * blocks
    assert last.kernel == "conv_weight_grad_sum"


IMAGE, WEIGHT = at(4, 4, 5), TensorArgs.at(256, (4, 4, 3, 3), (36, 9, 3, 1), "f32")
REFUSED = {
    "x must be 1 to 4 images, got 5": (([at(1, 4, 5)] * 5, IMAGE, WEIGHT), {}),
    "x must be float32, float16 or bfloat16, got type 2": (
        ([at(4, 4, 5, "bool")], IMAGE, WEIGHT),
        {},
    ),
    "grad_y must have pixels, got 4 channels of 0x5": (([IMAGE], at(4, 0, 5), WEIGHT), {}),
    r"the images x must have one size, got \[\(4, 5\), \(4, 6\)\]": (
        ([at(2, 4, 5), at(2, 4, 6)], IMAGE, WEIGHT),
        {},
    ),
    "group must divide the channels of x and grad_y, 4 and 4, got 3": (
        ([IMAGE], IMAGE, WEIGHT),
        {"group": 3},
    ),
    r"weight must be \(4, 2, ...\), got \(4, 4, 3, 3\)": (([IMAGE], IMAGE, WEIGHT), {"group": 2}),
    "weight must be contiguous float32, got type 1": (
        ([IMAGE], IMAGE, TensorArgs.at(256, (4, 4, 3, 3), (36, 9, 3, 1), "bf16")),
        {},
    ),
    "weight must be contiguous float32, got type 0 with strides": (
        ([IMAGE], IMAGE, TensorArgs.at(256, (4, 4, 3, 3), (36, 1, 12, 4), "f32")),
        {},
    ),
    r"bias must be \(4\), got \(5,\)": (
        ([IMAGE], IMAGE, WEIGHT, TensorArgs.at(256, (5,), (1,), "f32")),
        {"bias_of": "x"},
    ),
    "bias_of must be 'grad_y' or 'x', got 'y'": (
        ([IMAGE], IMAGE, WEIGHT, TensorArgs.at(256, (4,), (1,), "f32")),
        {"bias_of": "y"},
    ),
    r"strides and dilations must be positive, got \(0, 1\)": (
        ([IMAGE], IMAGE, WEIGHT),
        {"strides": (0, 1)},
    ),
    "compute must be 'f32', 'tf32', 'f16' or 'bf16', got 'f8'": (
        ([IMAGE], IMAGE, WEIGHT),
        {"compute": "f8"},
    ),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text):
    arguments, options = REFUSED[text]
    with pytest.raises(ArrayError, match=f"conv_weight_grad: {text}"):
        conv_weight_grad(*arguments, **options)
