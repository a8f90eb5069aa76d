from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.pool import avg_pool, avg_pool_grad, max_pool, max_pool_grad
from edgeadapt.kernels.cuda.tensors import ImageArgs
from edgeadapt.kernels.reference import pool as reference
from support.cuda_close import check_close
from support.strided import wide

WINDOWS = {
    "2x2": {"kernel": (2, 2), "strides": (2, 2), "pads": (0, 0)},
    "same": {"kernel": (3, 3), "strides": (1, 1), "pads": (1, 1)},
    "overlapping": {"kernel": (3, 5), "strides": (2, 2), "pads": (1, 2)},
    "flat": {"kernel": (1, 4), "strides": (1, 3), "pads": (0, 1)},
    "apart": {"kernel": (2, 2), "strides": (3, 4), "pads": (0, 0)},
    "one": {"kernel": (1, 1), "strides": (1, 1), "pads": (0, 0)},
    "odd first": {"kernel": (2, 3), "strides": (2, 2), "pads": (1, 0)},
}
MAXIMA = {name: {"dilations": (1, 1)} | window for name, window in WINDOWS.items()}
MAXIMA["dilated"] = {"kernel": (3, 2), "strides": (1, 2), "pads": (1, 1), "dilations": (2, 3)}
TYPES = ("f32", "f16", "bf16")
COMBINATIONS = list(itertools.product(TYPES, TYPES, (None, *TYPES)))  # of x, y and add
# (C, H, W) and the layouts of x, y and what is added: a thread takes 1, 4 or 8 channels.
CASES = [
    ((2, 3, 5), ("nchw", "nchw", "nchw")),
    ((1, 2, 68), ("nhwc", "nhwc", "nhwc")),
    ((3, 6, 13), ("nhwc", "nhwc", "nhwc")),
    ((4, 7, 5), ("nhwc", "nhwc", "nhwc")),
    ((8, 5, 9), ("nhwc", "nhwc", "nhwc")),
    ((4, 6, 5), ("strided", "nhwc", "nchw")),
    ((8, 5, 6), ("nchw", "strided", "strided")),
]


def output_size(shape, window: dict[str, Any], ceil: bool = False) -> tuple[int, int]:
    sides = []
    for axis, side in enumerate(shape[-2:]):
        reach = window.get("dilations", (1, 1))[axis] * (window["kernel"][axis] - 1) + 1
        room = side + 2 * window["pads"][axis] - reach
        step = window["strides"][axis]
        sides.append((-(-room // step) if ceil else room // step) + 1)
    return sides[0], sides[1]


@pytest.mark.parametrize("kind", ["avg_pool", "avg_pool_grad"])
@pytest.mark.parametrize("name", WINDOWS)
def test_averages(run, guarded, rng, kind, name):
    window, function = WINDOWS[name], {"avg_pool": avg_pool, "avg_pool_grad": avg_pool_grad}[kind]
    for number, (size, layouts) in enumerate(CASES, list(WINDOWS).index(name)):
        x_type, y_type, add_type = COMBINATIONS[5 * number % len(COMBINATIONS)]
        before = (1, *size)
        after = (*before[:2], *output_size(size, window))
        before, after = (before, after) if kind == "avg_pool" else (after, before)
        if 0 in (*before, *after):
            continue
        x = guarded(before, layouts[0], x_type, rng.standard_normal(before))
        y = guarded(after, layouts[1], y_type)
        add = add_type and guarded(after, layouts[2], add_type, rng.standard_normal(after))
        sum_of = None if add is None else ImageArgs.of(add)
        work = function(ImageArgs.of(x), ImageArgs.of(y), **window, add=sum_of)
        run(lambda scratch, work=work: work)
        expected, magnitude = (
            getattr(reference, kind)(values, **window, size=after[2:])
            for values in (wide(x), abs(wide(x)))
        )
        if add is not None:
            expected, magnitude = expected + wide(add), magnitude + abs(wide(add))
        check_close(y, expected, magnitude, 20)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("name", WINDOWS)
def test_the_gradient_of_an_average_is_its_adjoint(run, guarded, rng, name, layout):
    window, before = WINDOWS[name], (1, 4, 7, 11)
    after = (1, 4, *output_size(before, window))
    x = guarded(before, layout, "f32", rng.standard_normal(before))
    grad_y = guarded(after, layout, "f32", rng.standard_normal(after))
    y, grad_x = guarded(after, layout), guarded(before, layout)
    run(lambda s: avg_pool(ImageArgs.of(x), ImageArgs.of(y), **window, scratch=s))
    run(lambda s: avg_pool_grad(ImageArgs.of(grad_y), ImageArgs.of(grad_x), **window, scratch=s))
    there, back = np.vdot(wide(y), wide(grad_y)), np.vdot(wide(x), wide(grad_x))
    assert abs(there - back) <= 1e-6 * np.linalg.norm(y) * np.linalg.norm(grad_y)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("name", MAXIMA)
def test_maxima(run, guarded, rng, name, ceil):
    window = MAXIMA[name]
    for number, (size, layouts) in enumerate(CASES, list(MAXIMA).index(name)):
        x_type, y_type, grad_type = COMBINATIONS[5 * number % len(COMBINATIONS)]
        before, after = (1, *size), (1, size[0], *output_size(size, window, ceil))
        if 0 in after:
            continue
        # Few different values, all negative: many are equal, and a padding of 0 would win.
        x = guarded(before, layouts[0], x_type, rng.integers(-9, -1, before))
        y = guarded(after, layouts[1], y_type)
        work = max_pool(ImageArgs.of(x), ImageArgs.of(y), **window)
        run(lambda scratch, work=work: work)
        np.testing.assert_array_equal(
            wide(y), reference.max_pool(wide(x), **window, size=after[2:])
        )
        cotangent = rng.standard_normal(after)
        grad_y = guarded(after, layouts[2], grad_type or "f32", cotangent)
        grad_x = guarded(before, layouts[1], y_type)
        work = max_pool_grad(*map(ImageArgs.of, (grad_y, x, grad_x)), **window)
        run(lambda scratch, work=work: work)
        expected, magnitude = (
            reference.max_pool_grad(values, wide(x), **window)
            for values in (wide(grad_y), abs(wide(grad_y)))
        )
        check_close(grad_x, expected, magnitude, 16)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_a_window_without_a_pixel_is_minus_infinity_and_gives_nothing(run, guarded, layout):
    window: dict[str, Any] = {"kernel": (1, 1), "strides": (1, 1), "pads": (0, 2)}
    x, y = guarded((1, 8, 1, 1), layout, fill=3.0), guarded((1, 8, 1, 5), layout)
    run(lambda s: max_pool(ImageArgs.of(x), ImageArgs.of(y), **window, scratch=s))
    for channel in range(8):
        np.testing.assert_array_equal(y[0, channel, 0], [-np.inf, -np.inf, 3, -np.inf, -np.inf])
    grad_y, grad_x = guarded((1, 8, 1, 5), layout, fill=np.arange(5.0)), guarded(x.shape, layout)
    run(lambda s: max_pool_grad(*map(ImageArgs.of, (grad_y, x, grad_x)), **window, scratch=s))
    assert (grad_x == 2).all()


@pytest.mark.parametrize("low", [-np.inf, 1.0])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_not_a_number_wins(run, guarded, rng, dtype, low):
    """And gets the gradient: of several in a window the last one, as in PyTorch."""
    window: dict[str, Any] = {"kernel": (2, 2), "strides": (2, 2)}
    numbers = rng.random((1, 4, 6, 10)) < 0.4
    x = guarded(numbers.shape, "nhwc", dtype, np.where(numbers, np.nan, low))
    y = guarded((1, 4, 3, 5), "nhwc", dtype)
    run(lambda s: max_pool(ImageArgs.of(x), ImageArgs.of(y), **window, scratch=s))
    blocks = numbers.reshape(1, 4, 3, 2, 5, 2).transpose(0, 1, 2, 4, 3, 5).reshape(1, 4, 3, 5, 4)
    np.testing.assert_array_equal(np.isnan(wide(y)), blocks.any(-1))

    grad_y = guarded(y.shape, "nhwc", "f32", 1 + rng.random(y.shape))
    grad_x = guarded(x.shape, "nhwc")
    run(lambda s: max_pool_grad(*map(ImageArgs.of, (grad_y, x, grad_x)), **window, scratch=s))
    last = 3 - blocks[..., ::-1].argmax(-1)
    place = np.where(blocks.any(-1), last, 0)  # equal numbers: the first
    expected = np.where(np.arange(4) == place[..., None], grad_y[..., None], 0)
    found = grad_x.reshape(1, 4, 3, 2, 5, 2).transpose(0, 1, 2, 4, 3, 5).reshape(1, 4, 3, 5, 4)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_add_may_be_where_y_is(run, guarded, rng, dtype):
    window, shape = WINDOWS["same"], (1, 8, 4, 5)
    for function, text in (
        (avg_pool, reference.avg_pool),
        (avg_pool_grad, reference.avg_pool_grad),
    ):
        x = guarded(shape, "nhwc", dtype, rng.standard_normal(shape))
        y = guarded(shape, "nhwc", dtype, rng.standard_normal(shape))
        expected = wide(y) + text(wide(x), **window, size=shape[2:])
        magnitude = abs(wide(y)) + text(abs(wide(x)), **window, size=shape[2:])
        work = function(ImageArgs.of(x), ImageArgs.of(y), add=ImageArgs.of(y), **window)
        run(lambda scratch, work=work: work)
        check_close(y, expected, magnitude, 20)


def image(channels: int, height: int, width: int, dtype: str = "f32") -> ImageArgs:
    shape = (1, channels, height, width)
    return ImageArgs.at(64, shape, (0, height * width, width, 1), dtype)


def test_what_does_not_fit_is_refused():
    x, y = image(3, 4, 6), image(3, 2, 3)
    window: dict[str, Any] = {"kernel": (2, 2), "strides": (2, 2)}
    with pytest.raises(ArrayError, match="avg_pool: y must have 3 channels, got 2"):
        avg_pool(x, image(2, 2, 3), **window)
    with pytest.raises(ArrayError, match="avg_pool_grad: add must be 4x6, got 3 channels of 2x3"):
        avg_pool_grad(y, x, **window, add=y)
    with pytest.raises(ArrayError, match=r"max_pool: strides must be two positive .* \(0, 2\)"):
        max_pool(x, y, kernel=(2, 2), strides=(0, 2))
    with pytest.raises(ArrayError, match="max_pool_grad: y must be 4x6, got 3 channels of 2x3"):
        max_pool_grad(y, x, y, **window)
    with pytest.raises(ArrayError, match="max_pool_grad: x must be float32, float16 or bfloat16"):
        max_pool_grad(y, image(3, 4, 6, "bool"), x, **window)
