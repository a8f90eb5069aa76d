"""cuDNN's frontend as tests have it: graphs are recorded, and computed by numpy in float64."""

from __future__ import annotations

import ctypes
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgeadapt.kernels.reference.conv import conv
from edgeadapt.kernels.reference.conv_weight_grad import weight_gradient

Type = Enum("Type", "FLOAT HALF BFLOAT16")
Mode = Enum("Mode", "A B FALLBACK")
Note = Enum("Note", "NONDETERMINISTIC TENSOR_CORE DOWN_CONVERT_INPUTS REDUCED_PRECISION_REDUCTION")
SIZES = {Type.FLOAT: 4, Type.HALF: 2, Type.BFLOAT16: 2}


class Node:
    """A tensor of a graph; ``compute`` gives its values from those of tensors with memory."""

    def __init__(self, compute: Any = None, **known: Any) -> None:
        self.compute, self.output = compute, False
        self.dim = self.stride = self.uid = self.data_type = None
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("set_"):
            raise AttributeError(name)

        def change(value: Any) -> Node:
            setattr(self, name[4:], value)
            return self

        return change


class Graph:
    """The methods of `cudnn.pygraph` that are used."""

    def __init__(self, fake: FakeCudnn, **types: Any) -> None:
        if types:  # none where a plan is loaded
            assert types["compute_data_type"] is types["intermediate_data_type"] is Type.FLOAT
        self.fake, self.inputs, self.nodes, self.built = fake, [], [], set()
        self.barred: set[int] = set()
        self.plans, self.ready = list(fake.plans), False

    def tensor(self, **known: Any) -> Node:
        self.inputs.append(Node(**known))
        return self.inputs[-1]

    def conv_fprop(self, image: Node, weight: Node, **at: Any) -> Node:
        assert image.dim[1] == weight.dim[1]
        for axis in (0, 1):
            reach = (weight.dim[2 + axis] - 1) * at["dilation"][axis] + 1
            whole = image.dim[2 + axis] + at["pre_padding"][axis] + at["post_padding"][axis]
            at.setdefault("size", []).append((whole - reach) // at["stride"][axis] + 1)
        return self._conv(image, weight, False, at)

    def conv_dgrad(self, loss: Node, filter: Node, **at: Any) -> Node:
        assert loss.dim[1] == filter.dim[0]
        return self._conv(loss, filter, True, at)

    def conv_wgrad(self, image: Node, loss: Node, **at: Any) -> Node:
        assert image.data_type is loss.data_type

        def compute(values: Any) -> Any:
            check_sizes(image, loss, y.dim[2:], at)
            return weight_gradient(
                values(image), values(loss), kernel=y.dim[2:], strides=at["stride"],
                pads=at["pre_padding"], dilations=at["dilation"],
            )  # fmt: skip

        y = self._node(compute)
        return y

    def identity(self, input: Node) -> Node:
        return self._node(lambda values: values(input))

    def _conv(self, x: Node, weight: Node, transposed: bool, at: Any) -> Node:
        def compute(values: Any) -> Any:
            check_sizes(*((y, x) if transposed else (x, y)), weight.dim[2:], at)
            return conv(
                values(x), values(weight), y.dim[2:], strides=at["stride"], pads=at["pre_padding"],
                dilations=at["dilation"], transposed=transposed,
            )  # fmt: skip

        y = self._node(compute)
        return y

    def _node(self, compute: Any) -> Node:
        self.nodes.append(Node(compute))
        return self.nodes[-1]

    def add(self, a: Node, b: Node) -> Node:
        return self._node(lambda values: values(a) + values(b))

    def leaky_relu(self, input: Node, negative_slope: float) -> Node:
        return self._node(
            lambda values: np.where(
                values(input) > 0, values(input), negative_slope * values(input)
            )
        )

    def leaky_relu_backward(self, loss: Node, input: Node, negative_slope: float) -> Node:
        return self._node(
            lambda values: values(loss) * np.where(values(input) > 0, 1.0, negative_slope)
        )

    def validate(self) -> None:
        self.fake.fail("validate")
        for node in self.nodes:
            assert node.output or node.data_type in (Type.FLOAT, None)

    def build_operation_graph(self) -> None:
        self.fake.fail("build_operation_graph")
        (self.y,) = [node for node in self.nodes if node.output]

    def create_execution_plans(self, modes: Any) -> None:
        assert modes == [Mode.A, Mode.B, Mode.FALLBACK]
        self.fake.fail("create_execution_plans")
        late = any(node.compute and node.output for node in self.nodes[1:])
        if self.fake.late_only and not late:
            raise FakeError("no engine writes float32")
        self.ready = True

    def deselect_numeric_notes(self, notes: Any) -> None:
        for index, (_, found) in enumerate(self.plans):
            if found in notes:
                self.barred.add(index)

    def get_execution_plan_count(self) -> int:
        assert self.ready
        return len(self.plans)

    def get_plan_name_at_index(self, index: int) -> str:
        return self.plans[index][0]

    def build_plan_at_index(self, index: int) -> None:
        if index in self.barred or self.plans[index][0] in self.fake.unbuilt:
            raise FakeError("this plan is not supported")
        if index not in self.built:
            self.fake.builds.append(self.plans[index][0])
        self.built.add(index)
        self.chosen = index

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        return self.fake.workspaces.get(self.plans[index][0], 0)

    def serialize(self) -> list[int]:
        self.fake.fail("serialize")
        self.fake.dumped.append((self, self.chosen))
        return list(f"{len(self.fake.dumped) - 1} {self.fake.backend_version()}".encode())

    def deserialize(self, data: list[int]) -> None:
        self.fake.fail("deserialize")
        number, version = map(int, bytes(data).split())
        if version != self.fake.backend_version():
            raise FakeError("a plan of another version")
        graph, index = self.fake.dumped[number]
        self.inputs, self.y, self.plans = graph.inputs, graph.y, [graph.plans[index]]
        self.built = {0}

    def execute_plan_at_index(self, pack: Any, workspace: int, index: int, handle: Any) -> None:
        assert handle is self.fake.handle
        assert index in self.built
        name = self.plans[index][0]
        self.fake.fail(name)
        assert bool(workspace) >= bool(self.get_workspace_size_plan_at_index(index))
        assert set(pack) == {node.uid for node in [*self.inputs, self.y]}
        self.fake.executed.append(name)
        self.fake.clock(name)

        def values(node: Node) -> Any:
            return node.compute(values) if node.compute else _read(pack[node.uid], node)

        result = values(self.y) * (1.5 if name in self.fake.wrong else 1.0)
        if name in self.fake.restless:
            result = result * (1 + 1e-6 * len(self.fake.executed))
        _write(pack[self.y.uid], self.y, result)


def check_sizes(large: Any, small: Any, kernel: Any, at: Any) -> None:
    """Whether a convolution leads from one image to the other."""
    assert min(at["pre_padding"] + at["post_padding"]) >= 0
    for axis in (0, 1):
        reach = (kernel[axis] - 1) * at["dilation"][axis] + 1
        pads = at["pre_padding"][axis] + at["post_padding"][axis]
        fits = (large.dim[2 + axis] + pads - reach) // at["stride"][axis] + 1
        assert fits == small.dim[2 + axis], "the sizes do not fit"


class FakeError(Exception):
    """cuDNN's."""


class FakeCudnn(SimpleNamespace):
    """The module ``cudnn``, and what goes wrong in it."""

    def __init__(self) -> None:
        super().__init__()
        self.data_type, self.heur_mode, self.numerical_note = Type, Mode, Note
        self.plans: list[tuple[str, Any]] = [("eng1", None), ("eng2", Note.NONDETERMINISTIC)]
        self.plans += [("eng3", Note.TENSOR_CORE)]
        self.workspaces: dict[str, int] = {}
        self.wrong, self.restless, self.unbuilt = set(), set(), set()
        self.failing: set[str] = set()
        self.number = 92800
        self.late_only = False  # no engine writes float32 but those that fuse
        self.builds: list[str] = []
        self.executed: list[str] = []
        self.dumped: list[tuple[Graph, int]] = []
        self.handle: Any = None
        self.stream: Any = None
        self.clock = lambda name: None
        self.__version__ = "1.28.0"

    def pygraph(self, handle: Any, **types: Any) -> Graph:
        assert handle is self.handle is not None
        return Graph(self, **types)

    def create_handle(self) -> Any:
        self.handle = object()
        return self.handle

    def destroy_handle(self, handle: Any) -> None:
        assert handle is self.handle
        self.handle = None

    def set_stream(self, handle: Any, stream: int) -> None:
        self.stream = stream

    def backend_version(self) -> int:
        return self.number

    def fail(self, where: str) -> None:
        if where in self.failing:
            raise FakeError(f"{where}: not supported")


def _memory(address: int, node: Node) -> Any:
    last = sum((n - 1) * s for n, s in zip(node.dim, node.stride, strict=True))
    size = SIZES[node.data_type]
    block = (ctypes.c_uint8 * ((last + 1) * size)).from_address(address)
    types = {Type.FLOAT: np.float32, Type.HALF: np.float16, Type.BFLOAT16: np.uint16}
    flat = np.frombuffer(block, types[node.data_type])
    strides = [stride * size for stride in node.stride]
    return np.lib.stride_tricks.as_strided(flat, node.dim, strides)


def _read(address: int, node: Node) -> Any:
    found = _memory(address, node)
    if node.data_type is Type.BFLOAT16:
        found = (found.astype(np.uint32) << 16).view(np.float32)
    return found.astype(np.float64)


def _write(address: int, node: Node, values: Any) -> None:
    if node.data_type is Type.BFLOAT16:
        bits = values.astype(np.float32).view(np.uint32)
        values = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    _memory(address, node)[...] = values
