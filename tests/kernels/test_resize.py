from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.reference import resize as reference
from edgeadapt.kernels.resize import resize, resize_grad
from edgeadapt.kernels.tensors import PlaneArgs
from support.pictures import check_close, picture

ENLARGE = [("linear", 2), ("linear", 3), ("linear", 4), ("nearest", 2), ("nearest", 5)]
REDUCE = [("linear", 1 / 2), ("linear", 1 / 3), ("nearest", 1 / 2), ("nearest", 1 / 3)]
# (C, h, w) of the smaller side: one pixel, one row, one column, vectors with every kind of end.
SIZES = [(1, 1, 1), (2, 1, 9), (1, 6, 1), (3, 5, 16), (2, 3, 37)]
ROUNDINGS = 24  # up to 2 * 5 taps each way, a product each, and what is added


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def sides(mode: str, scale: float, small: tuple[int, int, int]) -> tuple[tuple, tuple]:
    """Shapes before and after; a reduction leaves odd rows and columns over."""
    channels, height, width = small
    factor = round(max(scale, 1 / scale))
    spare = factor - 1 if scale < 1 else 0
    large = (1, channels, height * factor + spare, width * factor + spare)
    if scale < 1 and mode == "nearest":
        height, width = (-(-side // factor) for side in large[2:])
    small = (1, channels, height, width)
    return (small, large) if scale >= 1 else (large, small)


@pytest.mark.parametrize("kind", ["resize", "resize_grad"])
@pytest.mark.parametrize(("mode", "scale"), ENLARGE + REDUCE)
def test_kernels(call, guards, rng, kind, mode, scale):
    for number, small in enumerate(SIZES):
        before, after = sides(mode, scale, small)
        x_type, y_type, add_type = [("f32", "f32", None), ("bf16", "f32", "bf16"),
                                    ("f32", "bf16", "f32")][number % 3]  # fmt: skip
        before, after = (before, after) if kind == "resize" else (after, before)
        x = picture(guards, rng.standard_normal(before), x_type)
        y = picture(guards, after, y_type)
        add = picture(guards, rng.standard_normal(after), add_type) if add_type else None
        function = resize if kind == "resize" else resize_grad
        call(kind, function(x.plane, y.plane, mode=mode, scale=scale, add=add and add.plane))
        text = getattr(reference, kind)
        expected, magnitude = (
            text(values, mode=mode, scale=scale, size=after[2:])
            for values in (x.values, abs(x.values))
        )
        if add:
            expected, magnitude = expected + add.values, magnitude + abs(add.values)
        check_close(y, expected, magnitude, ROUNDINGS)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kind", ["resize", "resize_grad"])
def test_add_may_be_where_y_is(call, guards, rng, kind, dtype):
    function, text = (resize, reference.resize)
    before, after = (1, 2, 5, 19), (1, 2, 10, 38)
    if kind == "resize_grad":
        function, text, before, after = resize_grad, reference.resize_grad, after, before
    x, y = (picture(guards, rng.standard_normal(shape), dtype) for shape in (before, after))
    at = {"mode": "linear", "scale": 2}
    expected = y.values + text(x.values, size=after[2:], **at)
    magnitude = abs(y.values) + text(abs(x.values), size=after[2:], **at)
    call(kind, function(x.plane, y.plane, add=y.plane, **at))
    check_close(y, expected, magnitude, ROUNDINGS)


@pytest.mark.parametrize("kind", ["resize", "resize_grad"])
def test_any_number_of_threads_gives_the_same_bits(call, guards, rng, kind):
    before, after = ((1, 3, 140, 150), (1, 3, 280, 300))  # three blocks of rows
    before, after = (before, after) if kind == "resize" else (after, before)
    function = resize if kind == "resize" else resize_grad
    x = picture(guards, rng.standard_normal(before))
    results = []
    for threads in (1, 2):
        y = picture(guards, after)
        call(kind, function(x.plane, y.plane, mode="linear", scale=2), threads)
        y.check()
        results.append(y.pixels)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(("mode", "scale"), ENLARGE + REDUCE)
def test_one_is_the_adjoint_of_the_other(call, guards, rng, mode, scale):
    before, after = sides(mode, scale, (2, 7, 21))
    x, grad_y = (picture(guards, rng.standard_normal(shape)) for shape in (before, after))
    y, grad_x = picture(guards, after), picture(guards, before)
    call("resize", resize(x.plane, y.plane, mode=mode, scale=scale))
    call("resize_grad", resize_grad(grad_y.plane, grad_x.plane, mode=mode, scale=scale))
    there, back = np.vdot(y.values, grad_y.values), np.vdot(x.values, grad_x.values)
    length = np.linalg.norm(y.values) * np.linalg.norm(grad_y.values)
    assert abs(there - back) <= 1e-6 * length


@pytest.mark.parametrize(("mode", "scale"), [*ENLARGE, ("linear", 1 / 2), ("nearest", 1 / 3)])
def test_the_reference_is_pytorchs(rng, mode, scale):
    for small in SIZES:
        before, after = sides("linear", scale, small)  # F.interpolate drops what is left over
        x = torch.from_numpy(rng.standard_normal(before)).requires_grad_()
        options = {"mode": "bilinear", "align_corners": False} if mode == "linear" else {}
        y = F.interpolate(x, scale_factor=scale, **options)
        assert tuple(y.shape) == after
        grad_y = rng.standard_normal(after)
        (grad_x,) = torch.autograd.grad(y, x, torch.from_numpy(grad_y))
        at = {"mode": mode, "scale": scale}
        values = reference.resize(x.detach().numpy(), size=after[2:], **at)
        np.testing.assert_allclose(values, y.detach().numpy(), rtol=0, atol=1e-12)
        values = reference.resize_grad(grad_y, size=before[2:], **at)
        np.testing.assert_allclose(values, grad_x.numpy(), rtol=0, atol=1e-12)


def image(channels: int, height: int, width: int, dtype: str = "f32") -> PlaneArgs:
    shape = (1, channels, height, width)
    return PlaneArgs.at(64, shape, (0, height * width, width, 1), dtype)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        ((3, 4, 5), (3, 8, 9), {}, r"3 channels of 4x5 resized by 2 \(linear\) cannot be .* 8x9"),
        ((3, 4, 5), (2, 8, 10), {}, "y must have 3 channels, got 2"),
        ((3, 4, 5, "bool"), (3, 8, 10), {}, "x must be float32 or bfloat16"),
        ((3, 4, 5), (3, 8, 10), {"mode": "cubic"}, "mode must be one of linear, nearest"),
        ((3, 4, 5), (3, 6, 7), {"scale": 1.5}, "scale must be n or 1 / n with a whole n, got 1.5"),
        ((3, 4, 5), (3, 8, 10), {"scale": 0.0}, "scale must be n or 1 / n with a whole n, got 0"),
        ((3, 4, 5), (3, 8, 10), {"add": image(3, 8, 9)}, "add must be 8x10, got .* 8x9"),
    ],
)
def test_what_does_not_fit_is_refused(x, y, options, message):
    with pytest.raises(ArrayError, match=f"resize: {message}"):
        resize(image(*x), image(*y), **({"mode": "linear", "scale": 2} | options))
