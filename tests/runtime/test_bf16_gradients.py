"""bfloat16's gradients against float64, for every parameter of `nano`.

The gradient of an L1 loss and of LeakyReLU is made of signs. A rounding to 8 bits turns those of
values near zero, and a turned sign is no rounding error of a gradient. So float64 is given the
signs that the engine found, and everything else must agree.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeadapt.bundle import open_bundle
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.backend import EngineOptions, Frame
from edgeadapt.runtime.native_backend import NativeBackend, _Work
from edgeadapt.runtime.plan.fuse import fuse
from edgeadapt.runtime.plan.ir import Program, numpy_dtype
from edgeadapt.runtime.plan.lifetimes import Piece, pieces
from edgeadapt.runtime.plan.memory import Memory
from edgeadapt.runtime.plan.read import read
from edgeadapt.testing import compare_gradients, photo
from support.interpret import Memory as Float64
from support.signs import follow, initialised

Array = npt.NDArray[Any]
# bfloat16 keeps 8 bits: a rounding is up to 2^-9 = 0.2 % of a value. Each layer adds one on the way
# forward and one on the way back; over the 60 layers of three scales they partly cancel.
BOUND = 1e-2


def test_every_gradient_is_within_a_hundredth(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle("nano")
    weights = initialised(bundle)
    gradients = np.full_like(weights, np.nan)
    graph = bundle.scope("all").graph
    image = picture(14 * bundle.manifest.image.size_multiple)
    at = Frame(image, np.empty_like(image))
    # Every tensor keeps a place of its own, so that signs can be read when all is done.
    monkeypatch.setattr("edgeadapt.runtime.plan.place.pieces", apart)
    engine = NativeBackend(bundle, weights, gradients, EngineOptions(2, "bf16"))
    engine.gradients("all", at)
    found = bundle.named(gradients)
    program = fuse(read(bundle, graph, *image.shape[2:]))
    expected = Float64(program, image, bundle.named(weights))
    held = Held(engine._placed[_Work(graph)].bound.memory)
    for op in program.ops:
        follow(op, program, expected, held, factor=1.0)
    errors = {
        name: compare_gradients(value, expected.read(GRADIENT_PREFIX + name)).relative_l2
        for name, value in found.items()
    }
    assert max(errors.values()) < BOUND, sorted(errors.items(), key=lambda item: -item[1])[:5]
    assert max(errors.values()) > BOUND / 100  # it was bfloat16 that computed


def apart(program: Program) -> list[Piece]:
    """Each name a piece of its own from the first operation to the last."""
    end = len(program.ops) - 1
    return [
        replace(piece, names=[name], begin=0, end=end)
        for piece in pieces(program)
        for name in piece.names
    ]


@dataclass(frozen=True)
class Held:
    """What the engine's memory holds, as float64."""

    memory: Memory

    def read(self, name: str) -> Array:
        """A tensor of the engine by its name."""
        tensor = self.memory.program.tensors[name]
        dtype = numpy_dtype(tensor.dtype)
        last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
        room = ctypes.c_char * ((last + 1) * dtype.itemsize)
        held = room.from_address(self.memory.address(name))
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        found = np.lib.stride_tricks.as_strided(np.frombuffer(held, dtype), tensor.shape, strides)
        if tensor.dtype == "bf16":
            found = (found.astype(np.uint32) << 16).view(np.float32)
        return found.astype(np.float64)


def picture(side: int) -> npt.NDArray[np.float32]:
    """A photo-like image (1, 3, side, side) in [-1, 1]."""
    pixels = photo(0, side, side).astype(np.float32) / 127.5 - 1
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
