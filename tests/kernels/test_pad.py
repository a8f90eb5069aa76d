from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.pad import pad, pad_grad
from edgeadapt.kernels.reference import pad as reference
from edgeadapt.kernels.tensors import TensorArgs
from support.guarded import PATTERN, Guards
from support.pictures import from_bf16, to_bf16

# Shape, pads at the beginning of every axis and at the end of every axis.
CUTS = [
    ((1,), (0, 3)),
    ((5, 37), (-2, 1, 3, -20)),
    ((1, 2, 3, 21), (0, 1, 2, 17, 0, 0, 1, 5)),
    ((2, 3, 4, 5), (1, -1, -2, 3, -1, 4, 2, -4)),
    ((2, 1, 3, 2, 3, 4), (0, 1, -1, 0, 2, -2, 1, 0, 0, 1, -3, 3)),
    ((2, 3), (-1, 4, 2, -3)),  # all that is left of x lies outside
]
BORDERS = [
    ((1, 2, 1, 1), (0,) * 8),
    ((3,), (2, 2)),
    ((1, 2, 5, 33), (0, 0, 2, 1, 0, 0, 4, 3)),
    ((1, 1, 2, 40), (0, 0, 1, 39, 0, 0, 1, 20)),
    ((3, 4, 2, 3), (2, 0, 1, 0, 1, 3, 0, 2)),
]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def padded(shape, pads) -> tuple[int, ...]:
    rank = len(shape)
    return tuple(n + a + b for n, a, b in zip(shape, pads[:rank], pads[rank:], strict=True))


def place(guards: Guards, how: str, shape, dtype) -> tuple[np.ndarray, np.ndarray]:
    """An array of NaN, and what lies between its elements: nothing, or if it is to be "scattered",
    with its axes in another order and the first of them backwards, as many elements as it has."""
    if how == "contiguous":
        return guards.empty(shape, dtype), np.empty(0, np.uint8)
    order = np.roll(np.arange(len(shape)), 1)
    turned = [shape[axis] for axis in order]
    memory = guards.empty((2 * turned[0], *turned[1:]), dtype, offset=1)
    return memory[::-2].transpose(np.argsort(order)), memory[::2]


def random(rng, shape, dtype) -> np.ndarray:
    values = rng.standard_normal(shape)
    return {"f32": np.float32, "bf16": to_bf16, "bool": lambda x: x > 0}[dtype](values)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "bool"])
@pytest.mark.parametrize("how", ["contiguous", "scattered"])
@pytest.mark.parametrize(
    ("mode", "cases"), [("constant", CUTS + BORDERS), ("reflect", BORDERS), ("edge", CUTS[:4])]
)
def test_pad(call, guards, rng, mode, cases, how, dtype):
    for shape, pads in cases:
        values = random(rng, shape, dtype)
        x, _ = place(guards, how, shape, values.dtype)
        x[...] = values
        y, between = place(guards, how, padded(shape, pads), values.dtype)
        value = 0.7 if mode == "constant" else 0.0
        call("pad", pad(TensorArgs.of(x), TensorArgs.of(y), pads=pads, mode=mode, value=value))
        filling = {"f32": 0.7, "bf16": int(to_bf16(np.float32([0.7]))[0]), "bool": True}[dtype]
        expected = reference.pad(values, pads=pads, mode=mode, value=filling)
        np.testing.assert_array_equal(y.view(np.uint8) if dtype == "bool" else y, expected)
        assert set(between.tobytes()) <= {PATTERN}


@pytest.mark.parametrize("types", [("f32", "f32"), ("bf16", "f32"), ("f32", "bf16")])
@pytest.mark.parametrize("how", ["contiguous", "scattered"])
@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_pad_grad(call, guards, rng, mode, how, types):
    kinds = {"f32": np.float32, "bf16": np.uint16}
    for shape, pads in BORDERS:
        values = random(rng, padded(shape, pads), types[0])
        grad_y, _ = place(guards, how, values.shape, values.dtype)
        grad_y[...] = values
        y, between = place(guards, how, shape, kinds[types[1]])
        call("pad_grad", pad_grad(TensorArgs.of(grad_y), TensorArgs.of(y), pads=pads, mode=mode))
        exact = np.float64(from_bf16(values) if types[0] == "bf16" else values)
        expected = reference.pad_grad(exact, pads=pads, mode=mode)
        magnitude = reference.pad_grad(abs(exact), pads=pads, mode=mode)
        result = from_bf16(y) if types[1] == "bf16" else y
        # At a corner of "edge" up to 13 * 40 numbers meet.
        allowed = 64 * 2.0**-24 * magnitude + (types[1] == "bf16") * 2.0**-8 * abs(expected)
        assert (abs(result - expected) <= allowed).all()
        assert set(between.tobytes()) <= {PATTERN}


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_the_gradient_is_the_adjoint(call, guards, rng, mode):
    for shape, pads in BORDERS:
        x, grad_y = guards.empty(shape), guards.empty(padded(shape, pads))
        y, grad_x = guards.empty(padded(shape, pads)), guards.empty(shape)
        x[...], grad_y[...] = rng.standard_normal(x.shape), rng.standard_normal(y.shape)
        call("pad", pad(TensorArgs.of(x), TensorArgs.of(y), pads=pads, mode=mode))
        arguments = pad_grad(TensorArgs.of(grad_y), TensorArgs.of(grad_x), pads=pads, mode=mode)
        call("pad_grad", arguments)
        there = np.vdot(np.float64(y), grad_y)
        back = np.vdot(np.float64(x), grad_x)
        assert abs(there - back) <= 1e-6 * np.linalg.norm(y) * np.linalg.norm(grad_y)


@pytest.mark.parametrize("kind", ["pad", "pad_grad"])
def test_any_number_of_threads_gives_the_same_bits(call, guards, rng, kind):
    shape, pads = (1, 3, 97, 301), (0, 0, 5, 9, 0, 0, 8, 3)
    small, large = guards.empty(shape), guards.empty(padded(shape, pads))
    small[...], large[...] = rng.standard_normal(small.shape), rng.standard_normal(large.shape)
    results = []
    for threads in (1, 2):
        y = guards.empty(large.shape if kind == "pad" else small.shape)
        function, x = (pad, small) if kind == "pad" else (pad_grad, large)
        call(kind, function(TensorArgs.of(x), TensorArgs.of(y), pads=pads, mode="reflect"), threads)
        results.append(y)
    assert not np.isnan(results[0]).any()
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(("mode", "name"), [("reflect", "reflect"), ("edge", "replicate")])
def test_the_references_are_pytorchs(rng, mode, name):
    for shape, (top, left, bottom, right) in [
        ((1, 2, 5, 7), (4, 2, 1, 6)),
        ((1, 1, 2, 3), (0, 1, 1, 2)),
    ]:
        pads = (0, 0, top, left, 0, 0, bottom, right)
        x = torch.from_numpy(rng.standard_normal(shape)).requires_grad_()
        y = F.pad(x, (left, right, top, bottom), mode=name)
        grad_y = rng.standard_normal(tuple(y.shape))
        (grad_x,) = torch.autograd.grad(y, x, torch.from_numpy(grad_y))
        values = reference.pad(x.detach().numpy(), pads=pads, mode=mode)
        np.testing.assert_array_equal(values, y.detach().numpy())
        values = reference.pad_grad(grad_y, pads=pads, mode=mode)
        np.testing.assert_allclose(values, grad_x.numpy(), rtol=0, atol=1e-12)


def test_the_reference_of_a_constant_is_pytorchs(rng):
    for shape, pads in CUTS:
        rank = len(shape)
        pairs = zip(pads[:rank][::-1], pads[rank:][::-1], strict=True)
        x = rng.standard_normal(shape)
        expected = F.pad(torch.from_numpy(x), [n for pair in pairs for n in pair], value=0.5)
        values = reference.pad(x, pads=pads, mode="constant", value=0.5)
        np.testing.assert_array_equal(values, expected.numpy())


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
    with pytest.raises(ArrayError, match="pad_grad: mode must be reflect or edge"):
        pad_grad(tensor(4), tensor(3), pads=(0, 1), mode="constant")
    with pytest.raises(ArrayError, match=r"pad_grad: pads must not be negative, got \(-1, 0\)"):
        pad_grad(tensor(2), tensor(3), pads=(-1, 0), mode="edge")
    with pytest.raises(ArrayError, match="pad_grad: grad_y and y must be float32 or bfloat16"):
        pad_grad(tensor(4, dtype="bool"), tensor(3), pads=(0, 1), mode="edge")
