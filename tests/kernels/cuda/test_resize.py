from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda import lines
from edgeadapt.kernels.cuda.resize import resize, resize_grad
from edgeadapt.kernels.cuda.tensors import ImageArgs
from edgeadapt.kernels.reference import resize as reference
from support.cuda_close import check_close
from support.strided import Layout, wide

ENLARGE = [("linear", 1), ("linear", 2), ("linear", 3), ("linear", 4), ("nearest", 2),
           ("nearest", 3)]  # fmt: skip
REDUCE = [("linear", 1 / 2), ("linear", 1 / 3), ("linear", 1 / 4), ("nearest", 1 / 2),
          ("nearest", 1 / 3)]  # fmt: skip
TYPES = ("f32", "f16", "bf16")
COMBINATIONS = list(itertools.product(TYPES, TYPES, (None, *TYPES)))  # of x, y and add
# (C, h, w) of the smaller side, and the layouts of x, y and add: one pixel, a line that is no
# multiple of a block's, and so many channels that a thread takes 1, 4 or 8 of them.
CASES = [
    ((1, 1, 1), ("nhwc", "nhwc", "nhwc")),
    ((3, 5, 2), ("nchw", "nchw", "nchw")),
    ((3, 2, 37), ("nhwc", "nhwc", "nhwc")),
    ((4, 3, 5), ("nhwc", "nhwc", "nhwc")),
    ((12, 1, 7), ("nhwc", "nhwc", "nhwc")),
    ((8, 3, 2), ("nhwc", "nhwc", "nhwc")),
    ((16, 2, 9), ("nhwc", "nhwc", "nhwc")),
    ((8, 2, 3), ("strided", "nhwc", "nchw")),
    ((4, 3, 3), ("nhwc", "strided", "strided")),
]
ROUNDINGS = 3 * 4 * 4 + 4  # up to 7 x 7 taps, two weights and a sum each, and what is added


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
def test_kernels(run, guarded, rng, kind, mode, scale):
    first = (ENLARGE + REDUCE).index((mode, scale))
    for number, (small, layouts) in enumerate(CASES, first):
        x_type, y_type, add_type = COMBINATIONS[5 * number % len(COMBINATIONS)]
        before, after = sides(mode, scale, small)
        before, after = (before, after) if kind == "resize" else (after, before)
        x = guarded(before, layouts[0], x_type, rng.standard_normal(before))
        y = guarded(after, layouts[1], y_type)
        add = add_type and guarded(after, layouts[2], add_type, rng.standard_normal(after))
        function = resize if kind == "resize" else resize_grad
        sum_of = None if add is None else ImageArgs.of(add)
        at = {"mode": mode, "scale": scale}
        run(lambda s: function(ImageArgs.of(x), ImageArgs.of(y), **at, add=sum_of, scratch=s))  # noqa: B023
        expected, magnitude = (
            getattr(reference, kind)(values, **at, size=after[2:])
            for values in (wide(x), abs(wide(x)))
        )
        if add is not None:
            expected, magnitude = expected + wide(add), magnitude + abs(wide(add))
        check_close(y, expected, magnitude, ROUNDINGS)


NHWC = (0, 2, 3, 1)


def behind(channels: int = 0, offset: int = 0) -> Layout:
    """NHWC with room behind the channels of a pixel, or that begins after so many elements."""
    return Layout(NHWC, (1,) * 4, (0, channels, 0, 0), offset)


@pytest.mark.parametrize(
    ("channels", "layout", "dtype", "expected"),
    [
        (16, "nhwc", "f16", "resize_by_8"),
        (16, "nhwc", "f32", "resize_by_8"),
        (12, "nhwc", "bf16", "resize_by_4"),
        (6, "nhwc", "f16", "resize"),
        (16, "nchw", "f16", "resize"),
        (16, "strided", "f16", "resize"),
        (6, behind(channels=2), "f16", "resize"),
        (4, behind(channels=4), "f16", "resize_by_4"),
        (8, behind(channels=1), "f16", "resize"),
        (8, behind(offset=4), "f16", "resize_by_4"),
        (8, behind(offset=4), "f32", "resize_by_8"),
        (8, behind(offset=2), "f32", "resize"),
    ],
)
def test_as_many_channels_at_once_as_lie_together(
    run, guarded, rng, channels, layout, dtype, expected
):
    before = (1, channels, 2, 3)
    x = guarded(before, layout, dtype, rng.standard_normal(before))
    y = guarded((1, channels, 4, 6), layout, dtype)
    work = resize(ImageArgs.of(x), ImageArgs.of(y), mode="nearest", scale=2)
    assert [launch.kernel for launch in work.launches] == [expected]
    assert work.scratch_bytes == 0
    assert bool(work.launches[0].arguments.channels_last) == (layout != "nchw")
    run(lambda scratch: work)
    np.testing.assert_array_equal(wide(y), wide(x).repeat(2, 2).repeat(2, 3))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["resize", "resize_grad"])
def test_add_may_be_where_y_is(run, guarded, rng, kind, dtype):
    function, text = resize, reference.resize
    before, after = (1, 8, 3, 5), (1, 8, 6, 10)
    if kind == "resize_grad":
        function, text, before, after = resize_grad, reference.resize_grad, after, before
    x = guarded(before, "nhwc", dtype, rng.standard_normal(before))
    y = guarded(after, "nhwc", dtype, rng.standard_normal(after))
    at = {"mode": "linear", "scale": 2}
    expected = wide(y) + text(wide(x), size=after[2:], **at)
    magnitude = abs(wide(y)) + text(abs(wide(x)), size=after[2:], **at)
    both = ImageArgs.of(y)
    run(lambda scratch: function(ImageArgs.of(x), both, add=both, **at, scratch=scratch))
    check_close(y, expected, magnitude, ROUNDINGS)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize(("mode", "scale"), ENLARGE + REDUCE)
def test_one_is_the_adjoint_of_the_other(run, guarded, rng, mode, scale, layout):
    before, after = sides(mode, scale, (4, 3, 6))
    x = guarded(before, layout, "f32", rng.standard_normal(before))
    grad_y = guarded(after, layout, "f32", rng.standard_normal(after))
    y, grad_x = guarded(after, layout), guarded(before, layout)
    at = {"mode": mode, "scale": scale}
    run(lambda s: resize(ImageArgs.of(x), ImageArgs.of(y), **at, scratch=s))
    run(lambda s: resize_grad(ImageArgs.of(grad_y), ImageArgs.of(grad_x), **at, scratch=s))
    there, back = np.vdot(wide(y), wide(grad_y)), np.vdot(wide(x), wide(grad_x))
    assert abs(there - back) <= 1e-6 * np.linalg.norm(y) * np.linalg.norm(grad_y)


@pytest.mark.parametrize("scale", [2, 3, 1 / 2, 1 / 3])
def test_nothing_is_read_to_be_multiplied_by_zero(run, guarded, scale):
    """Infinity times 0 would be NaN."""
    before, after = sides("linear", scale, (1, 3, 3))
    x, y = guarded(before, fill=np.inf), guarded(after)
    at = {"mode": "linear", "scale": scale}
    run(lambda s: resize(ImageArgs.of(x), ImageArgs.of(y), **at, scratch=s))
    assert (y == np.inf).all()
    grad_x = guarded(before)
    run(lambda s: resize_grad(ImageArgs.of(y), ImageArgs.of(grad_x), **at, scratch=s))
    assert not np.isnan(grad_x).any()


def test_more_lines_than_a_grid_has_rows(run, guarded, rng, monkeypatch):
    shape = (1, 3, 50_000, 1)
    x = ImageArgs.at(64, shape, (50_000, 50_000, 1, 1), "f32")
    y = ImageArgs.at(64, (1, 3, 100_000, 2), (200_000, 200_000, 2, 1), "f32")
    (launch,) = resize(x, y, mode="linear", scale=2).launches
    assert (launch.grid, launch.block) == ((1, 37_500, 2), (64, 4, 1))

    monkeypatch.setattr(lines, "MAX_GRID", (2**31 - 1, 2, 65_535))
    x = guarded((1, 3, 9, 2), "nchw", "f32", rng.standard_normal((1, 3, 9, 2)))
    y = guarded((1, 3, 18, 4), "nchw")
    work = resize(ImageArgs.of(x), ImageArgs.of(y), mode="linear", scale=2)
    assert work.launches[0].grid == (1, 2, 7)
    run(lambda scratch: work)
    expected = reference.resize(wide(x), mode="linear", scale=2, size=(18, 4))
    check_close(y, expected, abs(expected) + 4, ROUNDINGS)


def image(channels: int, height: int, width: int, dtype: str = "f32") -> ImageArgs:
    shape = (1, channels, height, width)
    return ImageArgs.at(64, shape, (0, height * width, width, 1), dtype)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        ((3, 4, 5), (3, 8, 9), {}, r"3 channels of 4x5 resized by 2 \(linear\) cannot be .* 8x9"),
        ((3, 4, 5), (2, 8, 10), {}, "y must have 3 channels, got 2"),
        ((3, 4, 5, "bool"), (3, 8, 10), {}, "x must be float32, float16 or bfloat16, got type 2"),
        ((3, 4, 5), (3, 8, 10), {"mode": "cubic"}, "mode must be one of linear, nearest"),
        ((3, 4, 5), (3, 8, 10), {"scale": 1.5}, "scale must be n or 1 / n with a whole n, got 1.5"),
        ((3, 4, 5), (3, 8, 10), {"add": image(3, 8, 9)}, "add must be 8x10, got .* 8x9"),
        ((1, 1, 2**29), (1, 2, 2**30), {}, r"a side must be below 2\*\*30 pixels"),
    ],
)
def test_what_does_not_fit_is_refused(x, y, options, message):
    with pytest.raises(ArrayError, match=f"resize: {message}"):
        resize(image(*x), image(*y), **{"mode": "linear", "scale": 2, **options})


def test_the_adjoint_names_its_own_arguments():
    with pytest.raises(ArrayError, match="resize_grad: grad_y must be float32, float16"):
        resize_grad(image(3, 8, 10, "bool"), image(3, 4, 5), mode="linear", scale=2)
    with pytest.raises(ArrayError, match=r"resize_grad: .* of 4x5 resized by 2 .* cannot be .*8x9"):
        resize_grad(image(3, 8, 9), image(3, 4, 5), mode="linear", scale=2)
