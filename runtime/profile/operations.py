"""What the operations of a plan's program are: what each is there for, its layer and its work."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.plan.cost import flops, products, traffic
from edgeadapt.runtime.plan.ir import Op, Program, Tensor
from edgeadapt.runtime.plan.remat_build import is_repeated, original
from edgeadapt.runtime.profile.parts import Group, Operation

_PRODUCTS = ("conv", "conv_weight_grad", "matmul")
_UPDATES = ("update_sgd", "update_together")
_PACKS = ("pack_weights", "pack_together")
_PRECISIONS = {"f32": "fp32", "tf32": "tf32", "bf16": "bf16", "f16": "fp16"}


def operations_of(program: Program) -> list[Operation]:
    """What `Operation` says of each operation of a program, in order."""
    groups, layers = _Groups(program), _Layers(program)
    return [
        Operation(
            f"{_title(op, program, layers.of(op))} #{position}",
            op.kind,
            groups.of(position),
            _work(op, program),
            traffic(op, program),
            _PRECISIONS[op.attributes.get("compute", "f32") if op.kind in _PRODUCTS else "f32"],
            is_repeated(op),
        )
        for position, op in enumerate(program.ops)
    ]


def _work(op: Op, program: Program) -> int:
    main = products(op, program)
    return flops(op, program) if main is None else main


class _Groups:
    """What each operation is there for, by the structure of the program alone.

    Forward is what the loss or the restored image is made of. Of the backward pass, a convolution
    or matrix product with something made of weights alone gives the gradient of what it was applied
    to; a product of two images gives a weight's, unless another product follows from it, as in
    attention, where both factors are images.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        values = [name for name in program.outputs if not name.startswith(GRADIENT_PREFIX)]
        self._forward = self._ancestors(values)
        self._image = self._of_the_image()
        self._multiplied = self._ancestors(
            name for op in program.ops if op.kind in _PRODUCTS for name in op.inputs.values()
        )

    def of(self, position: int) -> Group:
        op = self._program.ops[position]
        if op.kind in _UPDATES:
            return "optimizer"
        if op.kind in _PACKS:
            return "other"
        if op.kind not in _PRODUCTS:
            return "pointwise"
        written = {self._base(name) for name in op.outputs.values()}
        if written & self._forward:
            return "forward"
        if op.kind == "conv_weight_grad":
            return "weight-gradient"
        factors = [op.inputs[role] for role in ("weight", "a", "b") if role in op.inputs]
        both = all(self._base(name) in self._image for name in factors)
        return "weight-gradient" if both and not written & self._multiplied else "input-gradient"

    def _base(self, name: str) -> str:
        """The tensor that holds it; what is computed again is what it was before."""
        return original(self._program.base(name))

    def _ancestors(self, names: Iterable[str]) -> set[str]:
        """Tensors that these are made of, themselves included."""
        found = {self._base(name) for name in names}
        for op in reversed(self._program.ops):
            if not found.isdisjoint(self._base(name) for name in op.outputs.values()):
                found |= {self._base(name) for name in op.inputs.values()}
        return found

    def _of_the_image(self) -> set[str]:
        """Tensors that change with the image."""
        tensors = self._program.tensors.values()
        found = {self._base(t.name) for t in tensors if t.storage == "image"}
        for op in self._program.ops:
            if not found.isdisjoint(self._base(name) for name in op.inputs.values()):
                found |= {self._base(name) for name in op.outputs.values()}
        return found


class _Layers:
    """Which parameter an operation belongs to."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._parameters = {
            tensor.offset: tensor.name
            for tensor in program.tensors.values()
            if tensor.storage == "weights" and tensor.view is None and "." in tensor.name
        }
        self._packed: dict[tuple[str, int], str] = {}
        for op in program.ops:
            if op.kind == "pack_weights":
                self._packed[op.outputs["y"], 0] = op.inputs["weight"]
            elif op.kind == "pack_together":
                for number, part in enumerate(op.attributes["parts"]):
                    self._packed[op.outputs["y"], part["offset"]] = op.inputs[f"weight{number}"]

    def of(self, op: Op) -> str:
        """Its layer, "encoder.0" for the parameter encoder.0.weight; empty if none is known."""
        operands = op.outputs if op.kind == "conv_weight_grad" else op.inputs
        if "weight" not in operands:
            return ""
        name = operands["weight"]
        view = self._program.tensors[name].view
        name = self._packed.get((self._program.base(name), view.offset if view else 0), name)
        tensor = self._program.tensors[self._program.base(name)]
        if tensor.storage not in ("weights", "gradients"):
            return ""
        parameter = self._parameters.get(tensor.offset, "").partition("..")[0]
        return parameter.rpartition(".")[0] if parameter.endswith(".weight") else parameter


def _title(op: Op, program: Program, layer: str) -> str:
    """What it does and at which size."""
    found = op.attributes
    words = [op.kind, layer]
    if op.kind in ("conv", "conv_weight_grad"):
        sources = [program.tensors[n].shape[1] for role, n in op.inputs.items() if _is_source(role)]
        image = program.tensors[op.outputs["y"] if op.kind == "conv" else op.inputs["grad_y"]]
        stride = "" if set(found["strides"]) == {1} else "/" + "x".join(map(str, found["strides"]))
        words += ["transposed"] if found.get("transposed") else []
        words += [f"{sum(sources)}->{image.shape[1]}", "x".join(map(str, found["kernel"])) + stride]
        words += [f"@ {image.shape[2]}x{image.shape[3]}"]
    elif op.outputs:
        words.append(_size(program.tensors[next(iter(op.outputs.values()))]))
    return " ".join(word for word in words if word)


def _is_source(role: str) -> bool:
    return role in ("x0", "x1", "x2", "x3")


def _size(tensor: Tensor) -> str:
    """Channels @ height x width of an image, the number of elements of anything else."""
    shape = tensor.shape
    if len(shape) == 4 and shape[0] == 1:
        return f"{shape[1]} @ {shape[2]}x{shape[3]}"
    return f"{prod(shape)}"
