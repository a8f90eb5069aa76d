from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.pad import pad, pad_grad
from edgeadapt.kernels.cuda.tensors import TensorArgs
from edgeadapt.kernels.reference import pad as reference
from support.cuda_close import check_close
from support.strided import random_layout, to_bf16, wide

# Shape, pads at the beginning of every axis and at the end of every axis.
CUTS = [
    ((1,), (0, 3)),
    ((5, 37), (-2, 1, 3, -20)),
    ((1, 2, 3, 21), (0, 1, 2, 17, 0, 0, 1, 5)),
    ((2, 3, 4, 5), (1, -1, -2, 3, -1, 4, 2, -4)),
    ((2, 1, 3, 2, 3, 4), (0, 1, -1, 0, 2, -2, 1, 0, 0, 1, -3, 3)),
    ((2, 3), (-1, 4, 2, -3)),  # all that is left of x lies outside
    ((4, 8), (0, 1, 0, -1)),  # as long as before, but moved
]
BORDERS = [
    ((1, 2, 1, 1), (0,) * 8),
    ((3,), (2, 2)),
    ((1, 2, 5, 33), (0, 0, 2, 1, 0, 0, 4, 3)),
    ((1, 8, 3, 4), (0, 0, 1, 2, 0, 0, 2, 3)),
    ((1, 1, 2, 40), (0, 0, 1, 39, 0, 0, 1, 20)),
    ((3, 4, 2, 3), (2, 0, 1, 0, 1, 3, 0, 2)),
]
TYPES = ("f32", "f16", "bf16", "bool")


def padded(shape, pads) -> tuple[int, ...]:
    rank = len(shape)
    return tuple(n + a + b for n, a, b in zip(shape, pads[:rank], pads[rank:], strict=True))


def layouts(how: str, rng: np.random.Generator, rank: int):
    return how if how != "any" else random_layout(rng, rank)


def check_pad(run, guarded, rng, case, mode, how, dtype) -> None:
    shape, pads = case
    values = rng.standard_normal(shape)
    x = guarded(
        shape, layouts(how, rng, len(shape)), dtype, values > 0 if dtype == "bool" else values
    )
    y = guarded(padded(shape, pads), layouts(how, rng, len(shape)), dtype)
    filling = {"f32": np.float32(0.7), "f16": np.float16(0.7), "bool": 1.0,
               "bf16": wide(to_bf16(np.float32([0.7])))[0]}[dtype]  # fmt: skip
    expected = reference.pad(wide(x), pads=pads, mode=mode, value=float(filling))
    at = {"pads": pads, "mode": mode, "value": 0.7}
    run(lambda scratch: pad(TensorArgs.of(x), TensorArgs.of(y), **at, scratch=scratch))
    np.testing.assert_array_equal(wide(y), expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("how", ["nhwc", "nchw", "any"])
@pytest.mark.parametrize(
    ("mode", "cases"), [("constant", CUTS + BORDERS), ("reflect", BORDERS), ("edge", CUTS[:5])]
)
def test_pad(run, guarded, rng, mode, cases, how, dtype):
    for case in cases:
        check_pad(run, guarded, rng, case, mode, how, dtype)


@pytest.mark.parametrize("how", ["nhwc", "nchw", "any"])
@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_pad_grad(run, guarded, rng, mode, how):
    for number, (shape, pads) in enumerate(BORDERS * 2):
        large = padded(shape, pads)
        types = TYPES[number % 3], TYPES[number // 3 % 3]
        grad_y = guarded(large, layouts(how, rng, len(shape)), types[0], rng.standard_normal(large))
        y = guarded(shape, layouts(how, rng, len(shape)), types[1])
        at = {"pads": pads, "mode": mode}
        work = pad_grad(TensorArgs.of(grad_y), TensorArgs.of(y), **at)
        run(lambda scratch, work=work: work)
        expected = reference.pad_grad(wide(grad_y), **at)
        magnitude = reference.pad_grad(abs(wide(grad_y)), **at)
        check_close(y, expected, magnitude, 520)  # at a corner of "edge" 13 * 40 numbers meet


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_the_gradient_is_the_adjoint(run, guarded, rng, mode):
    for shape, pads in BORDERS:
        large, at = padded(shape, pads), {"pads": pads, "mode": mode}
        x = guarded(shape, "nhwc", "f32", rng.standard_normal(shape))
        grad_y = guarded(large, "nhwc", "f32", rng.standard_normal(large))
        y, grad_x = guarded(large), guarded(shape)
        for work in (
            pad(TensorArgs.of(x), TensorArgs.of(y), **at),
            pad_grad(TensorArgs.of(grad_y), TensorArgs.of(grad_x), **at),
        ):
            run(lambda scratch, work=work: work)
        there, back = np.vdot(wide(y), wide(grad_y)), np.vdot(wide(x), wide(grad_x))
        assert abs(there - back) <= 1e-6 * np.linalg.norm(y) * np.linalg.norm(grad_y)


@pytest.mark.parametrize(
    ("channels", "layout", "dtype", "expected"),
    [
        (8, "nhwc", "f16", "pad_16"),
        (4, "nhwc", "f32", "pad_16"),
        (4, "nhwc", "bf16", "pad_8"),
        (6, "nhwc", "f16", "pad_4"),
        (6, "nhwc", "bool", "pad_2"),
        (3, "nhwc", "f16", "pad_2"),
        (3, "nhwc", "bool", "pad_1"),
        (8, "nchw", "f32", "pad_4"),
        (8, "strided", "f16", "pad_2"),
    ],
)
def test_what_lies_together_is_moved_together(guarded, channels, layout, dtype, expected):
    x = guarded((1, channels, 3, 4), layout, dtype)
    y = guarded((1, channels, 4, 7), layout, dtype)
    pads = (0, 0, 1, 1, 0, 0, 0, 2)
    (launch,) = pad(TensorArgs.of(x), TensorArgs.of(y), pads=pads).launches
    assert launch.kernel == expected
    many = int(expected[4:]) // x.itemsize
    assert launch.arguments.count == y.size // many


OTHER_NAN = float(np.uint32(0x7FFFFFFF).view(np.float32))  # all of its bits


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(
    "value", [np.nan, OTHER_NAN, np.inf, -1e9, 1 + 2.0**-8, 1 + 3 * 2.0**-9, -0.0]
)
def test_a_constant_is_rounded_as_a_number_of_the_type(run, guarded, dtype, value):
    x, y, expected = guarded((2,), dtype=dtype, fill=1.0), guarded((4,), dtype=dtype), value
    if dtype == "f16":
        expected = np.inf * np.sign(value) if abs(value) > 65519 else np.float16(value)
    if dtype == "bf16":
        expected = wide(to_bf16(np.float32([value])))[0]
    run(lambda s: pad(TensorArgs.of(x), TensorArgs.of(y), pads=(1, 1), value=value, scratch=s))
    np.testing.assert_array_equal(wide(y), [np.float32(expected), 1, 1, np.float32(expected)])
    np.testing.assert_array_equal(np.signbit(wide(y))[0], np.signbit(value))


def tensor(*shape: int, dtype: str = "f32") -> TensorArgs:
    return TensorArgs.at(64, shape, [1] * len(shape), dtype)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ArrayError, match=r"pad: x \(3, 4\) with pads .* cannot be y \(4, 4\)"):
        pad(tensor(3, 4), tensor(4, 4), pads=(0, 0, 1, 1))
    with pytest.raises(ArrayError, match=r"pad: x, y and half of pads .* got 2, 2 and 1"):
        pad(tensor(3, 4), tensor(3, 4), pads=(0, 0))
    with pytest.raises(ArrayError, match="pad: y must have x's type 0, got 2"):
        pad(tensor(3), tensor(4, dtype="bool"), pads=(0, 1))
    with pytest.raises(ArrayError, match="pad: mode must be one of constant, reflect, edge"):
        pad(tensor(3), tensor(4), pads=(0, 1), mode="wrap")
    with pytest.raises(ArrayError, match=r"pad: an axis of 3 can be mirrored by less .* \(0, 3\)"):
        pad(tensor(3), tensor(6), pads=(0, 3), mode="reflect")
    with pytest.raises(ArrayError, match=r"pad: a tensor must be below 2\*\*31 elements"):
        pad(tensor(2**16, 2**15), tensor(2**16, 2**15 + 1), pads=(0, 0, 0, 1))
    with pytest.raises(ArrayError, match="pad_grad: mode must be reflect or edge"):
        pad_grad(tensor(4), tensor(3), pads=(0, 1), mode="constant")
    with pytest.raises(ArrayError, match=r"pad_grad: pads must not be negative, got \(-1, 0\)"):
        pad_grad(tensor(2), tensor(3), pads=(-1, 0), mode="edge")
    with pytest.raises(ArrayError, match="pad_grad: grad_y and y must be float32, float16 or"):
        pad_grad(tensor(4, dtype="bool"), tensor(3), pads=(0, 1), mode="edge")
