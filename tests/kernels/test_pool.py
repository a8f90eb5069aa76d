from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.pool import avg_pool, avg_pool_grad, max_pool, max_pool_grad
from edgeadapt.kernels.reference import pool as reference
from edgeadapt.kernels.tensors import PlaneArgs
from support.pictures import check_close, picture

WINDOWS = {
    "2x2": {"kernel": (2, 2), "strides": (2, 2), "pads": (0, 0)},
    "same": {"kernel": (3, 3), "strides": (1, 1), "pads": (1, 1)},
    "overlapping": {"kernel": (3, 5), "strides": (2, 2), "pads": (1, 2)},
    "flat": {"kernel": (1, 4), "strides": (1, 3), "pads": (0, 1)},
    "apart": {"kernel": (2, 2), "strides": (3, 4), "pads": (0, 0)},
    "one": {"kernel": (1, 1), "strides": (1, 1), "pads": (0, 0)},
    "odd first": {"kernel": (2, 3), "strides": (2, 2), "pads": (1, 0)},
}
TYPES = [("f32", "f32", None), ("bf16", "f32", "bf16"), ("f32", "bf16", "f32")]
# (C, H, W): the smallest that holds a window, vectors with every kind of end.
SIZES = [(2, 3, 5), (1, 2, 68), (3, 9, 33), (2, 12, 71)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


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
def test_averages(call, guards, rng, kind, name):
    window = WINDOWS[name]
    for number, size in enumerate(SIZES):
        before = (1, *size)
        after = (*before[:2], *output_size(size, window))
        before, after = (before, after) if kind == "avg_pool" else (after, before)
        if 0 in (*before, *after):
            continue
        x_type, y_type, add_type = TYPES[number % 3]
        x = picture(guards, rng.standard_normal(before), x_type)
        y = picture(guards, after, y_type)
        add = picture(guards, rng.standard_normal(after), add_type) if add_type else None
        function = avg_pool if kind == "avg_pool" else avg_pool_grad
        call(kind, function(x.plane, y.plane, **window, add=add and add.plane))
        expected, magnitude = (
            getattr(reference, kind)(values, **window, size=after[2:])
            for values in (x.values, abs(x.values))
        )
        if add:
            expected, magnitude = expected + add.values, magnitude + abs(add.values)
        check_close(y, expected, magnitude, 16)


@pytest.mark.parametrize("name", WINDOWS)
def test_the_gradient_of_an_average_is_its_adjoint(call, guards, rng, name):
    window, before = WINDOWS[name], (1, 2, 11, 37)
    after = (1, 2, *output_size(before, window))
    x, grad_y = (picture(guards, rng.standard_normal(shape)) for shape in (before, after))
    y, grad_x = picture(guards, after), picture(guards, before)
    call("avg_pool", avg_pool(x.plane, y.plane, **window))
    call("avg_pool_grad", avg_pool_grad(grad_y.plane, grad_x.plane, **window))
    there, back = np.vdot(y.values, grad_y.values), np.vdot(x.values, grad_x.values)
    assert abs(there - back) <= 1e-6 * np.linalg.norm(y.values) * np.linalg.norm(grad_y.values)


MAXIMA = {name: {"dilations": (1, 1)} | window for name, window in WINDOWS.items()}
MAXIMA["dilated"] = {"kernel": (3, 2), "strides": (1, 2), "pads": (1, 1), "dilations": (2, 3)}


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("name", MAXIMA)
def test_maxima(call, guards, rng, name, ceil):
    window = MAXIMA[name]
    for number, size in enumerate(SIZES):
        before, after = (1, *size), (1, size[0], *output_size(size, window, ceil))
        if 0 in after:
            continue
        x_type, y_type, _ = TYPES[number % 3]
        # Few different values, all negative: many are equal, and a padding of 0 would win.
        x = picture(guards, rng.integers(-9, -1, before).astype(np.float32), x_type)
        y = picture(guards, after, y_type)
        call("max_pool", max_pool(x.plane, y.plane, **window))
        y.check()
        np.testing.assert_array_equal(
            y.values, reference.max_pool(x.values, **window, size=after[2:])
        )
        grad_y = picture(guards, rng.standard_normal(after), x_type)
        grad_x = picture(guards, before, y_type)
        call("max_pool_grad", max_pool_grad(grad_y.plane, x.plane, grad_x.plane, **window))
        expected, magnitude = (
            reference.max_pool_grad(values, x.values, **window)
            for values in (grad_y.values, abs(grad_y.values))
        )
        check_close(grad_x, expected, magnitude, 16)


def test_a_window_without_a_pixel_is_minus_infinity_and_gives_nothing(call, guards):
    window = {"kernel": (1, 1), "strides": (1, 1), "pads": (0, 2), "dilations": (1, 1)}
    x, y = picture(guards, np.full((1, 1, 1, 1), 3.0)), picture(guards, (1, 1, 1, 5))
    call("max_pool", max_pool(x.plane, y.plane, **window))
    np.testing.assert_array_equal(y.pixels[0, 0, 0], [-np.inf, -np.inf, 3, -np.inf, -np.inf])
    grad_y, grad_x = picture(guards, np.arange(5.0).reshape(1, 1, 1, 5)), picture(guards, x.values)
    call("max_pool_grad", max_pool_grad(grad_y.plane, x.plane, grad_x.plane, **window))
    assert grad_x.pixels.item() == 2


@pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])
def test_nothing_behind_the_last_row_is_touched(call, guards, rng, kind):
    """AddressSanitizer sees it; otherwise only what is written."""
    for width in (1, 3, 7, 8, 15, 16, 31, 32, 33):
        x = guards.copy(rng.standard_normal((1, 1, 1, width)).astype(np.float32))
        y = guards.empty((1, 1, 1, -(-width // 2)))
        function = max_pool if kind == "max_pool" else avg_pool
        arguments = function(PlaneArgs.of(x), PlaneArgs.of(y), kernel=(1, 1), strides=(2, 2))
        call(kind, arguments)
        np.testing.assert_array_equal(y, x[..., ::2])


@pytest.mark.parametrize("column", [0, 3, 20, 43])
def test_what_is_not_a_number_wins(call, guards, column):
    values = np.ones((1, 1, 2, 44))
    values[0, 0, 1, column] = np.nan
    x, y = picture(guards, values), picture(guards, (1, 1, 1, 22))
    window = {"kernel": (2, 2), "strides": (2, 2)}
    call("max_pool", max_pool(x.plane, y.plane, **window))
    np.testing.assert_array_equal(np.isnan(y.pixels[0, 0, 0]), np.arange(22) == column // 2)


@pytest.mark.parametrize("kind", ["avg_pool", "avg_pool_grad", "max_pool", "max_pool_grad"])
def test_any_number_of_threads_gives_the_same_bits(call, guards, rng, kind):
    before, after = (1, 3, 300, 260), (1, 3, 150, 130)
    large = picture(guards, rng.standard_normal(before))
    small = picture(guards, rng.standard_normal(after))
    window, results = {"kernel": (2, 2), "strides": (2, 2)}, []
    for threads in (1, 2):
        y = picture(guards, before if kind.endswith("grad") else after)
        arguments = {
            "avg_pool": lambda y: avg_pool(large.plane, y, **window),
            "avg_pool_grad": lambda y: avg_pool_grad(small.plane, y, **window),
            "max_pool": lambda y: max_pool(large.plane, y, **window),
            "max_pool_grad": lambda y: max_pool_grad(small.plane, large.plane, y, **window),
        }[kind](y.plane)
        call(kind, arguments, threads)
        y.check()
        results.append(y.pixels)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("name", WINDOWS)
def test_the_references_are_pytorchs(rng, name):
    window = MAXIMA[name]
    kernel, strides, pads = window["kernel"], window["strides"], window["pads"]
    if any(2 * pad > side for pad, side in zip(pads, kernel, strict=True)):
        pytest.skip("PyTorch refuses padding above half of the window")
    for size in SIZES:
        after = output_size(size, window)
        if 0 in after:
            continue
        x = torch.from_numpy(rng.integers(-4, 4, (1, *size)).astype(np.float64)).requires_grad_()
        grad_y = rng.standard_normal((1, size[0], *after))
        at = {"kernel": kernel, "strides": strides, "pads": pads}

        y = F.avg_pool2d(x, kernel, strides, pads)
        (grad_x,) = torch.autograd.grad(y, x, torch.from_numpy(grad_y))
        values = reference.avg_pool(x.detach().numpy(), **at, size=after)
        np.testing.assert_allclose(values, y.detach().numpy(), rtol=0, atol=1e-12)
        values = reference.avg_pool_grad(grad_y, **at, size=size[1:])
        np.testing.assert_allclose(values, grad_x.numpy(), rtol=0, atol=1e-12)

        y = F.max_pool2d(x, kernel, strides, pads)
        (grad_x,) = torch.autograd.grad(y, x, torch.from_numpy(grad_y))
        values = reference.max_pool(x.detach().numpy(), **window, size=after)
        np.testing.assert_array_equal(values, y.detach().numpy())
        values = reference.max_pool_grad(grad_y, x.detach().numpy(), **window)
        np.testing.assert_allclose(values, grad_x.numpy(), rtol=0, atol=1e-12)


def image(channels: int, height: int, width: int, dtype: str = "f32") -> PlaneArgs:
    shape = (1, channels, height, width)
    return PlaneArgs.at(64, shape, (0, height * width, width, 1), dtype)


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
    with pytest.raises(ArrayError, match="max_pool_grad: x must be float32 or bfloat16"):
        max_pool_grad(y, image(3, 4, 6, "bool"), x, **window)
