from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda.tensors import TensorArgs
from edgeadapt.kernels.cuda.update import STATE_BYTES, adam, sgd, step_table
from edgeadapt.kernels.reference import update as reference
from edgeadapt.kernels.update import Segments, segments_of
from edgeadapt.runtime.optimizer import Adam, Sgd

# One element; a few; several blocks of 1024.
SIZES = [1, 37, 5001]
# Two or three roundings in float32, each half a unit of the largest number in play.
ULP = 2.0**-23


def step_sizes_for(size, rng):
    """Runs of random lengths; about a third of them are not adapted."""
    result = np.zeros(size, np.float32)
    begin = 0
    while begin < size:
        end = begin + int(rng.integers(1, size // 2 + 2))
        if begin == 0 or rng.random() < 0.7:
            result[begin:end] = rng.uniform(1e-3, 1e-1)
        begin = end
    return result


class Flat:
    """Weights, gradients and the table of step sizes in watched memory."""

    def __init__(self, guarded, rng, size, step_sizes=None):
        self.guarded = guarded
        self.step_sizes = step_sizes_for(size, rng) if step_sizes is None else step_sizes
        self.before, values = rng.standard_normal((2, size)).astype(np.float32)
        self.weights = guarded((size,), fill=self.before)
        self.gradients = guarded((size,), fill=values)
        self.table = step_table(segments_of(self.step_sizes), size)
        self.rows = guarded((self.table.rows.nbytes // 4,))
        self.rows.view(np.uint8)[...] = np.frombuffer(self.table.rows.tobytes(), np.uint8)

    def sgd(self):
        both = (TensorArgs.of(self.weights), TensorArgs.of(self.gradients))
        return sgd(*both, self.table, self.rows.ctypes.data)

    def state(self):
        size = (self.weights.size,)
        self.mean, self.square = self.guarded(size, fill=0.0), self.guarded(size, fill=0.0)
        self.steps = self.guarded((STATE_BYTES // 4,), fill=0.0)
        return self

    def adam(self):
        arrays = (self.weights, self.gradients, self.mean, self.square)
        return adam(
            *(TensorArgs.of(array) for array in arrays),
            self.steps.ctypes.data,
            self.table,
            self.rows.ctypes.data,
        )


@pytest.mark.parametrize("size", SIZES)
def test_sgd(run, guarded, rng, size):
    flat = Flat(guarded, rng, size)
    run(lambda scratch: flat.sgd())
    values = (flat.before, flat.gradients, flat.step_sizes)
    wanted = reference.sgd(*(np.float64(x) for x in values))
    largest = np.abs(flat.before).max()
    np.testing.assert_allclose(flat.weights, wanted, rtol=0, atol=2 * ULP * largest)
    unused = flat.step_sizes == 0
    assert (flat.weights[unused] == flat.before[unused]).all()


@pytest.mark.parametrize("size", SIZES)
def test_adam_takes_several_steps(run, guarded, rng, size):
    flat = Flat(guarded, rng, size).state()
    state = reference.AdamState(np.float64(flat.before), *np.zeros((2, size)))
    for step in (1, 2, 3):
        flat.gradients[...] = rng.standard_normal(size)
        run(lambda scratch: flat.adam())
        state = reference.adam(state, np.float64(flat.gradients), np.float64(flat.step_sizes), step)
        assert flat.steps.view(np.int64).tolist() == [step, 0]
    # A step is at most a few step sizes long, and is computed to a dozen roundings; the float32
    # 1 - beta2 is off by 2^-24 and v begins as just that.
    np.testing.assert_allclose(flat.weights, state.weights, rtol=0, atol=8 * ULP)
    np.testing.assert_allclose(flat.mean, state.mean, rtol=0, atol=8 * ULP)
    np.testing.assert_allclose(flat.square, state.square, rtol=0, atol=8 * ULP)


def test_the_optimizers_of_other_backends_give_the_same_bits(run, guarded, rng):
    size = 2049
    step_sizes = np.full(size, 0.03, np.float32)
    step_sizes[700:] = 0.001  # every element is in a segment: the others move state everywhere
    one, two = Flat(guarded, rng, size, step_sizes), Flat(guarded, rng, size, step_sizes).state()
    weights = (one.before.copy(), two.before.copy())
    others = (
        Sgd(weights[0], one.gradients, step_sizes),
        Adam(weights[1], two.gradients, step_sizes),
    )
    for step in range(12):
        one.gradients[...] = two.gradients[...] = rng.standard_normal(size) * 10.0 ** (step - 9)
        run(lambda scratch: one.sgd())
        run(lambda scratch: two.adam())
        for other in others:
            other.step()
        assert (one.weights == weights[0]).all()
        assert (two.weights == weights[1]).all()


def test_nothing_to_adapt_is_no_launch(guarded, rng):
    flat = Flat(guarded, rng, 5, np.zeros(5, np.float32)).state()
    assert flat.sgd().launches == flat.adam().launches == ()


def segments(begins, counts):
    return Segments(np.array(begins), np.array(counts), np.ones(len(begins)))


def test_empty_segments_do_no_harm(run, guarded, rng):
    flat = Flat(guarded, rng, 9)
    flat.table = step_table(segments([0, 3, 3, 9], [0, 0, 4, 0]), 9)
    flat.rows = guarded((flat.table.rows.nbytes // 4,))
    flat.rows.view(np.uint8)[...] = np.frombuffer(flat.table.rows.tobytes(), np.uint8)
    run(lambda scratch: flat.sgd())
    wanted = flat.before.copy()
    wanted[3:7] -= flat.gradients[3:7]
    assert (flat.weights == wanted).all()


def test_segments_that_are_refused():
    with pytest.raises(ArrayError, match="update: a segment reaches outside of 8 weights"):
        step_table(segments([4], [5]), 8)
    with pytest.raises(ArrayError, match="update: segments overlap"):
        step_table(segments([3, 0], [2, 4]), 8)


@pytest.mark.parametrize(
    ("text", "weights", "gradients"),
    [
        (r"weights must be contiguous float32 \(8,\), got type 3", ((8,), "f16"), ((8,), "f32")),
        (r"gradients must be contiguous float32 \(8,\), got", ((8,), "f32"), ((7,), "f32")),
        (r"weights must be contiguous float32 \(4,\), got", ((4, 2), "f32"), ((8,), "f32")),
        ("a segment ends at 8, there are 7 weights", ((7,), "f32"), ((7,), "f32")),
    ],
)
def test_arrays_that_are_refused(text, weights, gradients):
    table = step_table(segments([0], [8]), 8)
    both = [
        TensorArgs.at(256, shape, (1,) * len(shape), dtype) for shape, dtype in (weights, gradients)
    ]
    with pytest.raises(ArrayError, match=f"sgd: {text}"):
        sgd(*both, table, 512)
    with pytest.raises(ArrayError, match=f"adam: {text}"):
        adam(*both, both[1], both[1], 1024, table, 512)
