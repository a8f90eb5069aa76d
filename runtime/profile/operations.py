"""What the operations of a plan's program are: what each is there for, its layer and its work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.runtime.plan.cost import flops, products, traffic
from edgeadapt.runtime.plan.ir import Op, Program, Tensor
from edgeadapt.runtime.plan.remat_build import original
from edgeadapt.runtime.profile.grouping import Step, group_products
from edgeadapt.runtime.profile.operands import operands_of
from edgeadapt.runtime.profile.parts import Group, Operation

_SOURCES = ("x0", "x1", "x2", "x3")
# Kinds that multiply -> what they multiply, and what of it may be made of weights.
_FACTORS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "conv": ((*_SOURCES, "weight"), ("weight",)),
    "conv_weight_grad": ((*_SOURCES, "grad_y"), ()),
    "matmul": (("a", "b"), ("a", "b")),
}
_OTHERS: Mapping[str, Group] = {
    "update_sgd": "optimizer",
    "update_together": "optimizer",
    "pack_weights": "other",
    "pack_together": "other",
}
_PRECISIONS = {"f32": "fp32", "tf32": "tf32", "bf16": "bf16", "f16": "fp16"}


def operations_of(program: Program) -> list[Operation]:
    """What `Operation` says of each operation of a program, in order."""
    groups, layers, again = _groups(program), _Layers(program), _again(program)
    operands = operands_of(program)
    return [
        Operation(
            f"{_title(op, program, layers.of(op))} #{position}",
            op.kind,
            groups[position],
            _work(op, program),
            traffic(op, program),
            _PRECISIONS[op.attributes.get("compute", "f32") if op.kind in _FACTORS else "f32"],
            again[position],
            *operands[position],
        )
        for position, op in enumerate(program.ops)
    ]


def _again(program: Program) -> list[bool]:
    """Whether each operation computes what one before it did. Not every one that the planner moved
    to a later place does: where nobody reads the first result, it computes it there alone."""
    seen: set[tuple[str, ...]] = set()
    found = []
    for op in program.ops:
        results = tuple(original(name) for name in op.outputs.values())
        found.append(results in seen)
        seen.add(results)
    return found


def _work(op: Op, program: Program) -> int:
    main = products(op, program)
    return flops(op, program) if main is None else main


def _groups(program: Program) -> list[Group]:
    """What each operation is there for; what is computed again counts as what it was before."""

    def bases(names: Iterable[str]) -> set[str]:
        return {original(program.base(name)) for name in names}

    def step(op: Op) -> Step:
        factors = (
            bases(op.inputs[role] for role in roles if role in op.inputs)
            for roles in _FACTORS.get(op.kind, ((), ()))
        )
        return Step(bases(op.inputs.values()), bases(op.outputs.values()), *factors)

    steps = [step(op) for op in program.ops]
    values = [name for name in program.outputs if not name.startswith(GRADIENT_PREFIX)]
    image = [t.name for t in program.tensors.values() if t.storage == "image"]
    groups = group_products(steps, bases(values), bases(image))
    return [
        group or _OTHERS.get(op.kind, "pointwise")
        for op, group in zip(program.ops, groups, strict=True)
    ]


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
        sources = [program.tensors[n].shape[1] for role, n in op.inputs.items() if role in _SOURCES]
        image = program.tensors[op.outputs["y"] if op.kind == "conv" else op.inputs["grad_y"]]
        stride = "" if set(found["strides"]) == {1} else "/" + "x".join(map(str, found["strides"]))
        words += ["transposed"] if found.get("transposed") else []
        words += [f"{sum(sources)}->{image.shape[1]}", "x".join(map(str, found["kernel"])) + stride]
        words += [f"@ {image.shape[2]}x{image.shape[3]}"]
    elif op.outputs:
        words.append(_size(program.tensors[next(iter(op.outputs.values()))]))
    return " ".join(word for word in words if word)


def _size(tensor: Tensor) -> str:
    """Channels @ height x width of an image, the number of elements of anything else."""
    shape = tensor.shape
    if len(shape) == 4 and shape[0] == 1:
        return f"{shape[1]} @ {shape[2]}x{shape[3]}"
    return f"{prod(shape)}"
