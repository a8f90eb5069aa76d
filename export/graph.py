"""A small builder for ONNX graphs: nodes are added once, equal nodes are one node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper

from edgeadapt.export.functions import DOMAIN

_DTYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float64: onnx.TensorProto.DOUBLE,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.int64: onnx.TensorProto.INT64,
    torch.int32: onnx.TensorProto.INT32,
    torch.bool: onnx.TensorProto.BOOL,
}


def onnx_dtype(dtype: torch.dtype) -> int:
    """The ONNX element type of a PyTorch dtype."""
    return int(_DTYPES[dtype])


@dataclass(frozen=True)
class Value:
    """A tensor, or a symbolic size, in the graph; ``meta`` is the tensor or SymInt that PyTorch
    traced.
    """

    name: str
    meta: Any

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return int(self.meta.dim())

    @property
    def dtype(self) -> torch.dtype:
        """PyTorch dtype."""
        dtype = self.meta.dtype
        assert isinstance(dtype, torch.dtype)
        return dtype


Number = int | float | bool | Value
Size = int | Value


class GraphBuilder:
    """Collects nodes, constants and local functions; every method returns the name of a value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.functions: dict[str, onnx.FunctionProto] = {}
        self._known: dict[tuple[Any, ...], str] = {}
        self._prefix = "v"

    def label(self, prefix: str) -> None:
        """Name the values that follow after the PyTorch node they come from."""
        self._prefix = prefix

    def op(self, kind: str, *inputs: str | Value, **attributes: Any) -> str:
        """Add a standard operator with one output, or find the equal one that is there already."""
        return self._add(kind, "", [_name(value) for value in inputs], attributes)

    def call(self, function: onnx.FunctionProto, *inputs: str | Value, **attributes: Any) -> str:
        """Add a call of a local function."""
        self.functions.setdefault(function.name, function)
        return self._add(function.name, DOMAIN, [_name(value) for value in inputs], attributes)

    def constant(self, array: npt.ArrayLike, dtype: Any = None) -> str:
        """Add a constant tensor."""
        value = np.asarray(array, dtype)
        key = ("constant", value.dtype.str, value.shape, value.tobytes())
        if key not in self._known:
            name = f"constant..{len(self.constants)}"  # two dots: no parameter has them
            self.constants[name] = numpy_helper.from_array(value, name)
            self._known[key] = name
        return self._known[key]

    def ints(self, *values: int) -> str:
        """Add a constant int64 vector."""
        return self.constant(values, np.int64)

    def sizes(self, values: Sequence[Size]) -> str:
        """An int64 vector of plain and symbolic sizes; symbolic ones are int64 vectors of one
        element.
        """
        if all(isinstance(value, int) for value in values):
            return self.ints(*(int(value) for value in values if isinstance(value, int)))
        parts = [self.ints(value) if isinstance(value, int) else value.name for value in values]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def scalar(self, value: Number, dtype: torch.dtype) -> str:
        """A number or a symbolic size as a scalar of ``dtype``; tensors are cast if need be."""
        if isinstance(value, Value):
            if isinstance(value.meta, torch.Tensor):
                return (
                    value.name
                    if value.dtype == dtype
                    else self.op("Cast", value, to=onnx_dtype(dtype))
                )
            return self.op("Cast", self.op("Squeeze", value), to=onnx_dtype(dtype))
        return self.constant(value, torch.empty((), dtype=dtype).numpy().dtype)

    def _add(self, kind: str, domain: str, inputs: list[str], attributes: dict[str, Any]) -> str:
        key = (kind, domain, tuple(inputs), repr(sorted(attributes.items())))
        if key not in self._known:
            name = f"{self._prefix}..{len(self.nodes)}"
            self.nodes.append(
                helper.make_node(kind, inputs, [name], name, None, domain, **attributes)
            )
            self._known[key] = name
        return self._known[key]


def _name(value: str | Value) -> str:
    return value.name if isinstance(value, Value) else value
