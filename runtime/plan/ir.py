"""The plan's one data structure: tensors of known sizes and the operations between them.

Every tensor is written by one operation (static single assignment). Sums over several operations
say so with an operand: the running sum is an input, the new one an output in the same place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]
Dtype = Literal["f32", "bf16", "bool", "f16"]
BYTES: Mapping[Dtype, int] = {"f32": 4, "bf16": 2, "bool": 1, "f16": 2}

# Where a tensor lies. "arena" is the plan's own memory; the others belong to the session and stay
# in place: the image and its restoration, the flat weights and gradients, constants of the graph.
Storage = Literal["arena", "image", "restored", "weights", "gradients", "constant"]


@dataclass(frozen=True)
class View:
    """A tensor that lies within another: element (i, j, ...) is at offset + i * s0 + j * s1 ..."""

    base: str  # never a view itself
    offset: int  # in elements of the base
    strides: Shape  # in elements; 0 repeats, negative goes backwards


@dataclass(frozen=True)
class Tensor:
    """A value: its shape, type and place. Without a view its elements lie one after another, last
    axis fastest; with ``channels_last`` pixel by pixel instead, (1, C, H, W) with C fastest."""

    name: str
    shape: Shape
    dtype: Dtype = "f32"
    storage: Storage = "arena"
    view: View | None = None
    # Within the flat array of its storage (weights, gradients), in elements.
    offset: int = 0
    channels_last: bool = False  # of a view: whether its base is

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def strides(self) -> Shape:
        """In elements."""
        if self.view:
            return self.view.strides
        return pixel_by_pixel(self.shape) if self.channels_last else contiguous(self.shape)

    @property
    def base(self) -> str:
        """The tensor whose memory this one uses: its own name unless it is a view."""
        return self.view.base if self.view else self.name

    @property
    def nbytes(self) -> int:
        """Bytes of memory of its own: none for a view."""
        return 0 if self.view else self.size * BYTES[self.dtype]


@dataclass(frozen=True)
class Op:
    """One operation; `edgeadapt.runtime.plan.kinds` says which there are and what they compute."""

    kind: str
    inputs: Mapping[str, str]  # role -> tensor
    outputs: Mapping[str, str]  # role -> tensor
    attributes: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""  # the ONNX nodes it came from, for people

    def with_inputs(self, **roles: str | None) -> Op:
        """The same with roles added, replaced or (None) removed."""
        merged = {**self.inputs, **roles}
        return replace(self, inputs={k: v for k, v in merged.items() if v is not None})

    def with_attributes(self, **attributes: Any) -> Op:
        """The same with attributes added or replaced."""
        return replace(self, attributes={**self.attributes, **attributes})


@dataclass(frozen=True)
class Program:
    """Operations in the order in which they run, and every tensor they name."""

    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]  # tensors that someone reads afterwards
    constants: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def base(self, name: str) -> str:
        """The tensor whose memory ``name`` uses."""
        return self.tensors[name].base

    def readers(self) -> dict[str, list[int]]:
        """Base tensor -> positions of the operations that read it, also through views."""
        found: dict[str, list[int]] = {}
        for position, op in enumerate(self.ops):
            for name in dict.fromkeys(self.base(n) for n in op.inputs.values()):
                found.setdefault(name, []).append(position)
        return found

    def writers(self) -> dict[str, list[int]]:
        """Base tensor -> positions of the operations that write it or a view of it."""
        found: dict[str, list[int]] = {}
        for position, op in enumerate(self.ops):
            for name in dict.fromkeys(self.base(n) for n in op.outputs.values()):
                found.setdefault(name, []).append(position)
        return found

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)


def contiguous(shape: Shape) -> Shape:
    """Strides in elements of a contiguous array, the last axis fastest."""
    return tuple(int(prod(shape[axis + 1 :])) for axis in range(len(shape)))


def pixel_by_pixel(shape: Shape) -> Shape:
    """Strides in elements of an image (1, C, H, W) whose channels are fastest."""
    _, channels, height, width = shape
    return (channels * height * width, 1, width * channels, channels)


def numpy_dtype(dtype: Dtype) -> np.dtype[Any]:
    """The type that holds a tensor's elements in numpy; bf16 as its bits."""
    types = {"f32": np.float32, "bf16": np.uint16, "bool": np.bool_, "f16": np.float16}
    return np.dtype(types[dtype])
