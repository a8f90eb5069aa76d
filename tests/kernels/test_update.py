from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.reference import update as reference
from edgeadapt.kernels.update import Segments, adam_arguments, segments_of, sgd_arguments

# One element; a few; several tasks of 8192 with a segment over the border and an odd end.
SIZES = [1, 37, 20001]
# Two or three roundings in float32, each half a unit of the largest number in play.
ULP = 2.0**-23


def step_sizes_for(size: int, rng: np.random.Generator) -> np.ndarray:
    """Runs of random lengths; about a third of them are not adapted."""
    result = np.zeros(size, np.float32)
    begin = 0
    while begin < size:
        end = begin + int(rng.integers(1, size // 2 + 2))
        if begin == 0 or rng.random() < 0.7:
            result[begin:end] = rng.uniform(1e-3, 1e-1)
        begin = end
    return result


def guarded(segments: Segments, guards) -> Segments:
    return Segments(*(guards.copy(array) for array in segments))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_sgd(call, guards, size, threads):
    rng = np.random.default_rng(size)
    step_sizes = step_sizes_for(size, rng)
    before, gradients = rng.standard_normal((2, size)).astype(np.float32)
    weights, segments = guards.copy(before, offset=1), guarded(segments_of(step_sizes), guards)
    call("sgd", sgd_arguments(weights, guards.copy(gradients, offset=3), segments), threads)
    expected = reference.sgd(*(np.float64(x) for x in (before, gradients, step_sizes)))
    np.testing.assert_allclose(weights, expected, rtol=0, atol=2 * ULP * np.abs(before).max())
    assert (weights[step_sizes == 0] == before[step_sizes == 0]).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_adam_takes_several_steps(call, guards, size, threads):
    rng = np.random.default_rng(size)
    step_sizes = step_sizes_for(size, rng)
    state = reference.AdamState(rng.standard_normal(size).astype(np.float32), *np.zeros((2, size)))
    weights, mean, square = (guards.copy(np.float32(part), offset=1) for part in state)
    gradients, steps = guards.empty((size,)), guards.copy(np.zeros(1, np.int64))
    segments = guarded(segments_of(step_sizes), guards)
    arguments = adam_arguments(weights, gradients, mean, square, steps, segments)
    for step in (1, 2, 3):
        gradients[...] = rng.standard_normal(size)
        call("adam", arguments, threads)
        state = reference.adam(state, np.float64(gradients), np.float64(step_sizes), step)
        assert steps[0] == step
    # A step is at most a few step sizes long, and is computed to a dozen roundings; the float32
    # 1 - beta2 is off by 2^-24 and v begins as just that.
    np.testing.assert_allclose(weights, state.weights, rtol=0, atol=8 * ULP)
    np.testing.assert_allclose(mean, state.mean, rtol=0, atol=8 * ULP)
    np.testing.assert_allclose(square, state.square, rtol=0, atol=8 * ULP)


def test_the_number_of_threads_changes_no_bit(call, guards):
    rng = np.random.default_rng(0)
    values, gradients = rng.standard_normal((2, 30011)).astype(np.float32)
    segments = guarded(segments_of(step_sizes_for(30011, rng)), guards)
    results = []
    for threads in (1, 2, 3):
        weights, mean, square = (guards.copy(x) for x in (values, values, np.abs(values)))
        steps = guards.copy(np.full(1, 4))
        arrays = (weights, guards.copy(gradients), mean, square, steps)
        call("adam", adam_arguments(*arrays, segments), threads)
        results.append(np.stack([weights, mean, square]))
    assert (results[0] == results[1]).all()
    assert (results[0] == results[2]).all()


def test_the_reference_is_torch():
    rng = np.random.default_rng(1)
    start, step_size = rng.standard_normal(9), 0.03
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.Adam([parameter], lr=step_size)
    state = reference.AdamState(start, np.zeros(9), np.zeros(9))
    for step in range(1, 6):
        gradients = rng.standard_normal(9)
        parameter.grad = torch.tensor(gradients)
        optimizer.step()
        state = reference.adam(state, gradients, np.full(9, step_size), step)
    np.testing.assert_allclose(state.weights, parameter.detach().numpy(), rtol=1e-12)


def test_segments_are_the_runs_of_equal_step_sizes():
    found = segments_of(np.float32([0, 2, 2, 3, 0, 0, 2]))
    assert found.begins.tolist() == [1, 3, 6]
    assert found.counts.tolist() == [2, 1, 1]
    assert found.step_sizes.tolist() == [2.0, 3.0, 2.0]
    assert segments_of(np.zeros(0, np.float32)).begins.size == 0
    assert segments_of(np.zeros(3, np.float32)).begins.size == 0


def segments(begins: list[int], counts: list[int]) -> Segments:
    return Segments(np.array(begins), np.array(counts), np.ones(len(begins)))


FLAT = np.zeros(8, np.float32)
REFUSED = {
    "weights must be contiguous float32": (FLAT.astype(np.float64), FLAT, segments([0], [8])),
    r"gradients must be contiguous float32 \(8,\)": (FLAT, FLAT[::2], segments([0], [8])),
    "a segment reaches outside of 8 weights": (FLAT, FLAT, segments([4], [5])),
    "segments overlap": (FLAT, FLAT, segments([3, 0], [2, 4])),
    r"counts must be contiguous int64 \(1,\)": (FLAT, FLAT, segments([0], [8, 1])),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text):
    with pytest.raises(ArrayError, match=f"sgd: {text}"):
        sgd_arguments(*REFUSED[text])
    with pytest.raises(ArrayError, match=r"adam: steps must be one int64, got float32 \(8,\)"):
        adam_arguments(FLAT, FLAT, FLAT, FLAT, FLAT, segments([0], [8]))
