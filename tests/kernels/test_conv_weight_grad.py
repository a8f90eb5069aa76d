from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.conv_weight_grad import conv_weight_grad
from edgeadapt.kernels.reference import conv_weight_grad as reference
from edgeadapt.kernels.tensors import PlaneArgs, TensorArgs

# Of the norm. A sum of n rounded numbers is off by about sqrt(n) / 2 units of 2^-24 of its parts;
# no chain of additions here is longer than a few hundred.
RTOL = 1e-6
SEED = 7


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
    "one pixel, 3x3": Case((2,), 3, (1, 1), (1, 1)),
    "kernel larger than the image": Case((3,), 2, (2, 3), (4, 3), (7, 5), pads=(4, 2)),
    "one vector and one pixel": Case((4,), 4, (3, 33), (3, 33)),
    "odd channels": Case((11,), 7, (13, 21), (13, 21)),
    "many channels": Case((19,), 26, (9, 34), (9, 34)),
    "several blocks": Case((6,), 5, (70, 90), (70, 90)),
    "several column blocks": Case((3,), 2, (9, 1101), (9, 1101)),
    "four sources": Case((3, 1, 8, 2), 6, (12, 18), (12, 18)),
    "1x1": Case((8,), 5, (17, 23), (17, 23), (1, 1), pads=(0, 0)),
    "1x1, stride 2": Case((8,), 5, (17, 23), (9, 12), (1, 1), (2, 2), (0, 0)),
    "3x3, stride 2": Case((5,), 9, (33, 47), (17, 24), strides=(2, 2)),
    "5x5": Case((4,), 3, (19, 40), (19, 40), (5, 5), pads=(2, 2)),
    "4x4, stride 2, bias of x": Case((7,), 12, (64, 44), (32, 22), (4, 4), (2, 2), bias_of="x"),
    "blocks, bias of x": Case(
        (2, 3), 4, (130, 1000), (65, 500), (2, 2), (2, 2), (0, 0), bias_of="x"
    ),
    "strides 3 and 1": Case((3,), 4, (20, 20), (7, 19), (2, 4), (3, 1), (1, 1)),
    "stride over the kernel": Case((3,), 4, (20, 50), (5, 10), (2, 2), (4, 5), (0, 0), bias_of="x"),
    "dilated": Case((4,), 4, (21, 30), (17, 26), dilations=(3, 2), pads=(1, 0)),
    "dilated, stride 2": Case((4,), 4, (21, 30), (10, 14), (3, 4), (2, 2), (2, 2), (3, 2)),
    "asymmetric pads": Case((4,), 3, (15, 15), (17, 13), pads=(3, 0)),
    "negative pads": Case((4,), 3, (15, 35), (9, 27), pads=(-2, -3), bias_of="x"),
    "grad_y beyond x": Case((2,), 3, (4, 5), (12, 19), pads=(2, 3), bias_of="x"),
    "groups": Case((6, 6), 9, (14, 18), (14, 18), group=3),
    "depthwise": Case((5, 11), 16, (14, 40), (14, 40), group=16),
    "depthwise, bias of x": Case((18,), 36, (11, 9), (6, 5), strides=(2, 2), group=18, bias_of="x"),
    # Rows of grad_y that are read where they are.
    "whole vectors": Case((5,), 6, (21, 64), (20, 64), (2, 3), pads=(0, 1)),
    "whole vectors, columns": Case((3,), 5, (9, 1024), (9, 1024), (2, 3), pads=(1, 1)),
    # Kernels of three rows, and enough channels: rows are transformed, four at a time.
    "3x3, even": Case((16,), 16, (48, 64), (48, 64)),
    "3x3, odd": Case((12,), 8, (49, 65), (49, 65), bias_of="x"),
    "3x3, columns": Case((5,), 4, (11, 1101), (11, 1101)),
    "3x3, wide pads": Case((6,), 4, (5, 6), (13, 14), pads=(5, 4)),
    "3x3, cut": Case((3, 4), 4, (25, 35), (18, 27), pads=(-2, -3)),
    "3x3, groups": Case((10, 6), 20, (22, 19), (22, 19), group=2),
    "3x5, dilated": Case((4,), 5, (17, 40), (17, 40), (3, 5), pads=(1, 4), dilations=(1, 2)),
}
IN_BFLOAT16 = ["one pixel, 3x3", "odd channels", "several blocks", "four sources", "3x3, stride 2"]
IN_BFLOAT16 += ["4x4, stride 2, bias of x", "dilated", "depthwise", "3x3, odd"]
IN_BFLOAT16 += ["whole vectors", "whole vectors, columns", "3x3, even"]


def to_bf16(values):
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def make_inputs(case, types=("f32", "f32")):
    """Sources and grad_y as the kernel reads them; x and grad_y in float64."""
    rng = np.random.default_rng(SEED)
    sources = [rng.standard_normal((1, c, *case.size)).astype(np.float32) for c in case.channels]
    grad_y = rng.standard_normal((1, case.outputs, *case.grad_size)).astype(np.float32)
    if types[0] == "bf16":
        sources = [to_bf16(source) for source in sources]
    if types[1] == "bf16":
        grad_y = to_bf16(grad_y)
    wide = [from_bf16(a) if a.dtype == np.uint16 else a for a in (*sources, grad_y)]
    return (
        sources,
        grad_y,
        np.concatenate(wide[:-1], axis=1).astype(np.float64),
        np.float64(wide[-1]),
    )


def run(call, guards, case, sources, grad_y, before=None, threads=1):
    """The kernel's weight and bias; ``before`` is what they are added to."""
    weight = guards.empty(case.weight_shape, offset=1)
    bias = guards.empty(case.bias_shape, offset=3)
    if before is not None:
        weight[...], bias[...] = before
    arguments = conv_weight_grad(
        [PlaneArgs.of(source) for source in sources],
        PlaneArgs.of(grad_y),
        TensorArgs.of(weight),
        TensorArgs.of(bias),
        bias_of=case.bias_of,
        add_weight=before is not None,
        add_bias=before is not None,
        **case.geometry,
    )
    call("conv_weight_grad", arguments, threads)
    return weight, bias


def expected(case, x, grad_y):
    weight = reference.weight_gradient(x, grad_y, kernel=case.kernel, **case.geometry)
    return weight, reference.bias_gradient(x if case.bias_of == "x" else grad_y)


def assert_close(actual, wanted):
    for a, w in zip(actual, wanted, strict=True):
        assert np.isfinite(a).all()
        assert np.linalg.norm(a - w) <= RTOL * np.linalg.norm(w)


@pytest.mark.parametrize("name", CASES)
def test_float32(call, guards, name):
    case = CASES[name]
    sources, grad_y, x, grad = make_inputs(case)
    sources = [guards.copy(s, offset=i + 1) for i, s in enumerate(sources)]
    actual = run(call, guards, case, sources, guards.copy(grad_y, offset=5))
    assert_close(actual, expected(case, x, grad))


@pytest.mark.parametrize(
    "types", [("bf16", "bf16"), ("bf16", "f32"), ("f32", "bf16")], ids="-".join
)
@pytest.mark.parametrize("name", IN_BFLOAT16)
def test_bfloat16_is_summed_in_float32(call, guards, name, types):
    case = CASES[name]
    sources, grad_y, x, grad = make_inputs(case, types)
    sources = [guards.copy(s, offset=i + 1) for i, s in enumerate(sources)]
    actual = run(call, guards, case, sources, guards.copy(grad_y, offset=5))
    assert_close(actual, expected(case, x, grad))


@pytest.mark.parametrize("name", ["odd channels", "3x3, even", "blocks, bias of x"])
def test_results_are_added_to_what_is_there(call, guards, name):
    case = CASES[name]
    sources, grad_y, x, grad = make_inputs(case)
    sources, grad_y = [guards.copy(source) for source in sources], guards.copy(grad_y)
    rng = np.random.default_rng(SEED + 1)
    before = [
        rng.standard_normal(s).astype(np.float32) for s in (case.weight_shape, case.bias_shape)
    ]
    wanted = expected(case, x, grad)
    actual = run(call, guards, case, sources, grad_y, before)
    assert_close(actual, [b + w for b, w in zip(before, wanted, strict=True)])


@pytest.mark.parametrize("types", [("f32", "f32"), ("bf16", "bf16")], ids="-".join)
@pytest.mark.parametrize("name", ["four sources", "whole vectors"])
def test_images_that_lie_in_larger_ones(call, guards, name, types):
    case = replace(CASES[name], channels=(2, 5))
    sources, grad_y, x, grad = make_inputs(case, types)

    def embed(image):
        channels, height, width = image.shape[1:]
        # NaN around
        whole = guards.empty((1, channels + 3, height + 2, width + 7), image.dtype.name)
        part = whole[:, 2 : 2 + channels, 1 : 1 + height, 4 : 4 + width]
        part[...] = image
        return part

    actual = run(call, guards, case, [embed(s) for s in sources], embed(grad_y))
    assert_close(actual, expected(case, x, grad))


@pytest.mark.parametrize("name", ["many channels", "several blocks", "depthwise", "3x3, odd"])
def test_the_number_of_threads_changes_no_bit(call, guards, name):
    case = CASES[name]
    sources, grad_y, _, _ = make_inputs(case)
    sources, grad_y = [guards.copy(source) for source in sources], guards.copy(grad_y)
    first, *others = (run(call, guards, case, sources, grad_y, threads=t) for t in (1, 2, 3))
    for other in others:
        assert all((a == b).all() for a, b in zip(first, other, strict=True))


def test_a_bias_need_not_be_wanted(call, guards):
    case = CASES["odd channels"]
    sources, grad_y, x, grad = make_inputs(case)
    sources, grad_y = [guards.copy(source) for source in sources], guards.copy(grad_y)
    weight = guards.empty(case.weight_shape)
    planes = [PlaneArgs.of(source) for source in sources]
    call(
        "conv_weight_grad",
        conv_weight_grad(planes, PlaneArgs.of(grad_y), TensorArgs.of(weight), **case.geometry),
    )
    assert_close([weight], expected(case, x, grad)[:1])


def test_a_large_image_is_summed_precisely(call, guards):
    # All positive: sums grow to 2^18, which a single chain of additions would round to 1e-4.
    case = Case((4,), 4, (360, 640), (360, 640))
    sources, grad_y, x, grad = make_inputs(case)
    sources, grad_y, x, grad = [np.abs(sources[0])], np.abs(grad_y), np.abs(x), np.abs(grad)
    sources, grad_y = [guards.copy(source) for source in sources], guards.copy(grad_y)
    assert_close(run(call, guards, case, sources, grad_y), expected(case, x, grad))


@pytest.mark.parametrize("name", ["odd channels", "3x3, stride 2", "dilated, stride 2", "groups"])
def test_the_reference_is_the_gradient_of_torch(name):
    case = CASES[name]
    _, _, x, grad = make_inputs(case)
    weight = torch.zeros(case.weight_shape, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(case.outputs, dtype=torch.float64, requires_grad=True)
    geometry = {"stride": case.strides, "padding": case.pads, "dilation": case.dilations}
    y = torch.nn.functional.conv2d(torch.tensor(x), weight, bias, groups=case.group, **geometry)
    rows, columns = (min(a, b) for a, b in zip(y.shape[2:], case.grad_size, strict=True))
    y = torch.nn.functional.pad(y, (0, case.grad_size[1] - columns, 0, case.grad_size[0] - rows))
    y.backward(torch.tensor(grad))
    wanted = expected(case, x, grad)
    np.testing.assert_allclose(wanted[0], weight.grad.numpy(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(wanted[1], bias.grad.numpy(), rtol=1e-10, atol=1e-10)


def test_the_reference_is_the_gradient_of_a_transposed_convolution():
    # Its input and its output change places: what was grad_y is x here.
    case = CASES["4x4, stride 2, bias of x"]
    _, _, x, grad = make_inputs(case)
    weight = torch.zeros(case.weight_shape, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(case.bias_shape, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.conv_transpose2d(
        torch.tensor(grad), weight, bias, case.strides, case.pads
    )
    y.backward(torch.tensor(x))
    wanted = expected(case, x, grad)
    np.testing.assert_allclose(wanted[0], weight.grad.numpy(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(wanted[1], bias.grad.numpy(), rtol=1e-10, atol=1e-10)


def image(channels, height=4, width=5, dtype=np.float32):
    return PlaneArgs.of(np.zeros((1, channels, height, width), dtype))


def result(*shape, dtype=np.float32):
    return TensorArgs.of(np.zeros(shape, dtype))


IMAGE, WEIGHT = image(4), result(4, 4, 3, 3)
REFUSED = {
    "x must be 1 to 4 images, got 5": (([image(1)] * 5, IMAGE, WEIGHT), {}),
    "x must be float32 or bfloat16, got type 2": (([image(4, dtype=bool)], IMAGE, WEIGHT), {}),
    "grad_y must have pixels, got 4 channels of 0x5": (
        ([IMAGE], PlaneArgs(1, 0, 4, 0, 5), WEIGHT),
        {},
    ),
    r"the images x must have one size, got \[\(4, 5\), \(4, 6\)\]": (
        ([image(2), image(2, 4, 6)], IMAGE, WEIGHT),
        {},
    ),
    "group must divide the channels of x and grad_y, 4 and 4, got 3": (
        ([IMAGE], IMAGE, WEIGHT),
        {"group": 3},
    ),
    r"weight must be \(4, 2, ...\), got \(4, 4, 3, 3\)": (([IMAGE], IMAGE, WEIGHT), {"group": 2}),
    "weight must be contiguous float32, got type 1": (
        ([IMAGE], IMAGE, result(4, 4, 3, 3, dtype=np.uint16)),
        {},
    ),
    r"bias must be \(6\), got \(4,\)": (
        ([image(6)], IMAGE, result(4, 6, 3, 3), result(4)),
        {"bias_of": "x"},
    ),
    "bias_of must be 'grad_y' or 'x', got 'y'": (
        ([IMAGE], IMAGE, WEIGHT, result(4)),
        {"bias_of": "y"},
    ),
    r"strides and dilations must be positive, got \(0, 1\)": (
        ([IMAGE], IMAGE, WEIGHT),
        {"strides": (0, 1)},
    ),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text):
    arguments, options = REFUSED[text]
    with pytest.raises(ArrayError, match=f"conv_weight_grad: {text}"):
        conv_weight_grad(*arguments, **options)
