"""Products of csrc/matmul.cpp: sizes around its tiles, any layout."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.matmul import matmul
from edgeadapt.kernels.reference import matmul as reference
from edgeadapt.kernels.tensors import TensorArgs
from support.strided import Layout, fill, place, plain, random_layout, wide

# M, K, N: one, odd, around a tile, around a task, an inner dimension in several parts.
SIZES = [(1, 1, 1), (3, 5, 7), (8, 128, 32), (9, 129, 33), (97, 20, 130), (200, 3, 5), (5, 4000, 6)]
BATCHES = [((), ()), ((2, 3), (2, 3)), ((2, 1), (1, 3)), ((1, 2, 1, 2), (3, 2, 1, 1))]


def run(call, a, b, y, threads=1):
    call("matmul", matmul(TensorArgs.of(a), TensorArgs.of(b), TensorArgs.of(y)), threads)


def operands(guards, shapes, dtypes, layouts, rng):
    placed = [place(guards, *one) for one in zip(shapes, dtypes, layouts, strict=True)]
    for one, shape in zip(placed[:2], shapes, strict=False):
        fill(one.view, rng.standard_normal(shape))
    return placed


def assert_product(a, b, y):
    """Within what roundings of a sum of K products, 128 at a time, come to; and that of y."""
    exact = reference.matmul(wide(a), wide(b))
    bound = reference.matmul(np.abs(wide(a)), np.abs(wide(b)))
    roundings = min(a.shape[-1], 128) + a.shape[-1] / 128  # they go up and down: a random walk
    tolerance = bound * 2.0**-24 * 3 * roundings**0.5
    if y.dtype == np.uint16:
        tolerance += np.abs(exact) * 2.0**-8
    assert (np.abs(wide(y) - exact) <= tolerance).all()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("transposed", ["none", "a", "b", "both", "y"])
def test_a_product_equals_the_reference(sizes, transposed, call, guards):
    m, k, n = sizes
    rng = np.random.default_rng(m)
    swapped = Layout((1, 0), (1, 1), (0, 0))
    layouts = [plain(2)] * 3
    for index, name in enumerate("aby"):
        if transposed in (name, "both") and (transposed, name) != ("both", "y"):
            layouts[index] = swapped
    a, b, y = operands(guards, [(m, k), (k, n), (m, n)], ["f32"] * 3, layouts, rng)
    run(call, a.view, b.view, y.view, threads=2)
    assert_product(a.view, b.view, y.view)


@pytest.mark.parametrize("batches", BATCHES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_batches_in_any_layout_and_type_equal_the_reference(batches, seed, call, guards):
    rng = np.random.default_rng(seed)
    m, k, n = (int(size) for size in rng.integers(1, 40, 3))
    result = tuple(max(pair) for pair in zip(*batches, strict=True))
    shapes = [(*batches[0], m, k), (*batches[1], k, n), (*result, m, n)]
    dtypes = [str(dtype) for dtype in rng.choice(["f32", "bf16"], 3)]
    layouts = [random_layout(rng, len(shape)) for shape in shapes]
    a, b, y = operands(guards, shapes, dtypes, layouts, rng)
    run(call, a.view, b.view, y.view, threads=2)
    assert_product(a.view, b.view, y.view)
    assert y.surroundings_are_untouched()


def test_operands_may_repeat(call, guards):
    rng = np.random.default_rng(9)
    a = guards.copy(rng.standard_normal((3, 1, 5)).astype(np.float32))
    b = guards.copy(rng.standard_normal((5, 4)).astype(np.float32))
    y = guards.empty((3, 6, 4))
    run(call, np.broadcast_to(a, (3, 6, 5)), np.broadcast_to(b, (3, 5, 4)), y)
    np.testing.assert_allclose(y, np.broadcast_to(wide(a) @ wide(b), y.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(70, 50, 300), (20, 9000, 20)], ids=str)
def test_the_number_of_threads_changes_no_bit(sizes, call, guards):
    m, k, n = sizes
    rng = np.random.default_rng(10)
    a = guards.copy(rng.standard_normal((m, k)).astype(np.float32))
    b = guards.copy(rng.standard_normal((k, n)).astype(np.float32))
    results = [guards.empty((m, n)) for _ in range(3)]
    for threads, y in enumerate(results, 1):
        run(call, a, b, y, threads)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


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
    arrays = [TensorArgs.of(np.zeros(shape, np.float32)) for shape in (a, b, y)]
    with pytest.raises(ArrayError, match=text):
        matmul(*arrays)


def test_bool_is_refused():
    good = TensorArgs.of(np.zeros((2, 2), np.float32))
    with pytest.raises(ArrayError, match="b must be float32 or bfloat16, got bool"):
        matmul(good, TensorArgs.of(np.zeros((2, 2), bool)), good)
