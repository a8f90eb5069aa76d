"""Products of csrc/matmul.cu: sizes around its tiles, any layout."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.matmul import matmul
from edgeadapt.kernels.cuda.tensors import TensorArgs
from edgeadapt.kernels.reference import matmul as reference
from support.strided import Layout, plain, random_layout, wide

# M, K, N: one, odd, a tile, one more than a tile, an inner dimension of many tiles.
SIZES = [(1, 1, 1), (3, 5, 7), (32, 32, 32), (33, 65, 34), (5, 900, 6)]
BATCHES = [((), ()), ((2, 3), (2, 3)), ((2, 1), (1, 3)), ((1, 2, 1, 2), (3, 2, 1, 1))]
OWN = {"float32": 2.0**-24, "float16": 2.0**-11, "uint16": 2.0**-8}  # rounding of the result


def describe(a, b, y, scratch=0):
    return matmul(TensorArgs.of(a), TensorArgs.of(b), TensorArgs.of(y), scratch=scratch)


def assert_product(a, b, y):
    """Within the roundings of a sum of 32 products, and of as many of those as there are."""
    exact = reference.matmul(wide(a), wide(b))
    bound = reference.matmul(np.abs(wide(a)), np.abs(wide(b)))
    roundings = min(a.shape[-1], 32) + -(-a.shape[-1] // 32)
    allowed = bound * 2.0**-24 * roundings + np.abs(exact) * OWN[y.dtype.name] + 2.0**-25
    assert (np.abs(wide(y) - exact) <= allowed).all()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("transposed", ["none", "a", "b", "ab", "y"])
def test_a_product_equals_the_reference(sizes, transposed, run, guarded, rng):
    m, k, n = sizes
    a, b, y = (
        guarded(
            shape,
            Layout((1, 0), (1, 1), (0, 0)) if name in transposed.replace("none", "") else plain(2),
            fill=None if name == "y" else rng.standard_normal(shape),
        )
        for name, shape in (("a", (m, k)), ("b", (k, n)), ("y", (m, n)))
    )
    run(lambda scratch: describe(a, b, y, scratch))
    assert_product(a, b, y)


@pytest.mark.parametrize("batches", BATCHES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_batches_in_any_layout_and_type_equal_the_reference(batches, seed, run, guarded):
    rng = np.random.default_rng(seed)
    m, k, n = (int(size) for size in rng.integers(1, 40, 3))
    result = tuple(max(pair) for pair in zip(*batches, strict=True))
    a, b, y = (
        guarded(
            shape,
            random_layout(rng, len(shape)),
            str(rng.choice(["f32", "f16", "bf16"])),
            values and rng.standard_normal(shape),
        )
        for shape, values in (
            ((*batches[0], m, k), True),
            ((*batches[1], k, n), True),
            ((*result, m, n), None),
        )
    )
    run(lambda scratch: describe(a, b, y, scratch))
    assert_product(a, b, y)


def test_operands_may_repeat(run, guarded, rng):
    a = guarded((3, 1, 5), fill=rng.standard_normal((3, 1, 5)))
    b = guarded((5, 4), fill=rng.standard_normal((5, 4)))
    y = guarded((3, 6, 4))
    wider = np.broadcast_to(a, (3, 6, 5)), np.broadcast_to(b, (3, 5, 4))
    run(lambda scratch: describe(*wider, y, scratch))
    assert_product(*wider, y)


@pytest.mark.parametrize(
    ("a", "b", "y", "text"),
    [
        ((2, 3), (4, 5), (2, 5), r"a and b must fit together, got \(2, 3\) and \(4, 5\)"),
        ((2, 2, 3), (3, 3, 5), (3, 2, 5), "a and b must fit together"),
        ((2, 3), (3, 5), (2, 4), r"y must be \(2, 5\), got \(2, 4\)"),
        ((2, 3), (1, 3, 5), (2, 5), "b must have elements and the rank of a, 2 or more"),
        ((3,), (3,), (1,), r"a must have elements and the rank of a, 2 or more, got shape \(3,\)"),
        ((2, 0), (0, 3), (2, 3), r"a must have elements .* got shape \(2, 0\)"),
    ],
)
def test_what_does_not_fit_is_refused(a, b, y, text):
    with pytest.raises(ArrayError, match=text):
        describe(*(np.zeros(shape, np.float32) for shape in (a, b, y)))


def test_bool_is_refused():
    good = np.zeros((2, 2), np.float32)
    with pytest.raises(ArrayError, match="b must be float32, float16 or bfloat16, got bool"):
        describe(good, good > 0, good)
