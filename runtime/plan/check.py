"""What holds for every program, after every stage: tests call `check`, a user never waits for it.

What each kind of operation wants of its operands is in `check_kinds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edgeadapt.runtime.plan.check_kinds import WANTS
from edgeadapt.runtime.plan.check_memory import Written
from edgeadapt.runtime.plan.ir import BYTES, Op, Program, Tensor
from edgeadapt.runtime.plan.kinds import KINDS, MAX_RANK
from edgeadapt.runtime.plan.shapes import reach

_STORAGES = ("arena", "image", "restored", "weights", "gradients", "constant")
_GIVEN = ("image", "weights", "constant")  # have values before the program runs


def check(program: Program) -> None:
    """Check every invariant of `ir` and `kinds`.

    Raises:
        ValueError: naming the tensor or operation and what is wrong with it.
    """
    for name, tensor in program.tensors.items():
        _want(name == tensor.name, f"{name}: the tensor there is called {tensor.name}")
        _check_tensor(program, tensor)
    for name in program.constants:
        _want(name in program.tensors, f"{name}: a constant without a tensor")
    written = Written(program)
    packed = {
        op.outputs.get("y", "")
        for op in program.ops
        if op.kind in ("pack_weights", "pack_together")
    }
    for position, op in enumerate(program.ops):
        try:
            _check_roles(program, op)
            operands = {
                role: program.tensors[name]
                for role, name in (*op.inputs.items(), *op.outputs.items())
            }
            _check_types(op, operands)
            weight = op.inputs.get("weight")
            WANTS[op.kind](op, operands, weight is not None and program.base(weight) in packed)
            _check_order(program, written, op)
        except ValueError as error:
            raise ValueError(f"operation {position}, {op.kind} ({op.origin}): {error}") from error
    for name in program.outputs:
        _want(name in program.tensors, f"output {name} is no tensor")
        given = program.tensors[name].storage in _GIVEN
        _want(given or written.has(name), f"output {name} is not written")
        _want(name not in written.stale, f"another value takes the place of output {name}")


def _want(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)


def _check_tensor(program: Program, tensor: Tensor) -> None:
    name = tensor.name
    _want(tensor.dtype in BYTES, f"{name}: unknown type {tensor.dtype!r}")
    _want(tensor.storage in _STORAGES, f"{name}: unknown storage {tensor.storage!r}")
    _want(all(type(n) is int and n >= 0 for n in tensor.shape), f"{name}: shape {tensor.shape}")
    placed = tensor.storage in ("weights", "gradients") and not tensor.view
    _want(tensor.offset == 0 or placed, f"{name}: an offset, but not within a flat array")
    _want(tensor.offset >= 0, f"{name}: offset {tensor.offset}")
    if tensor.channels_last and not tensor.view:
        image = len(tensor.shape) == 4 and tensor.shape[0] == 1 and tensor.storage == "arena"
        _want(image, f"{name}: {tensor.shape} in {tensor.storage} cannot be channels last")
    if tensor.view:
        _check_view(program, tensor)
    elif tensor.storage == "constant":
        _want(name in program.constants, f"{name}: a constant without values")
        shape = program.constants[name].shape
        _want(shape == tensor.shape, f"{name} is {tensor.shape}, its values are {shape}")


def _check_view(program: Program, tensor: Tensor) -> None:
    view, name = tensor.view, tensor.name
    assert view is not None
    base = program.tensors.get(view.base)
    if base is None or base.view is not None:
        raise ValueError(f"{name}: its base {view.base} is " + ("a view" if base else "missing"))
    own, bases = ((t.dtype, t.storage, t.channels_last) for t in (tensor, base))
    _want(own == bases, f"{name}: other type or storage than its base {base.name}")
    _want(len(view.strides) == len(tensor.shape), f"{name}: {view.strides} for {tensor.shape}")
    if tensor.size:
        first, last = reach(view.offset, tensor.shape, view.strides)
        inside = first >= 0 and last < base.size
        _want(inside, f"{name}: elements {first} to {last} of {base.name}, which has {base.size}")


def _check_roles(program: Program, op: Op) -> None:
    kind = KINDS.get(op.kind)
    if kind is None:
        raise ValueError("no such kind")
    for name in (*op.inputs.values(), *op.outputs.values()):
        _want(name in program.tensors, f"{name} is no tensor")
        rank = len(program.tensors[name].shape)
        _want(rank <= MAX_RANK, f"{name} has {rank} axes, {MAX_RANK} is the most")
    inputs = {*kind.required, *_numbered(kind.optional, len(op.inputs))}
    outputs = {*kind.outputs, *_numbered(kind.optional_outputs, len(op.outputs))}
    attributes = {*kind.attributes, *kind.optional_attributes}
    for what, have, required, allowed in (
        ("input", op.inputs, kind.required, inputs),
        ("output", op.outputs, kind.outputs, outputs),
        ("attribute", op.attributes, kind.attributes, attributes),
    ):
        for role in required:
            _want(role in have, f"{what} {role} is missing")
        for role in have:
            _want(role in allowed, f"has no {what} {role}")


def _numbered(roles: Iterable[str], count: int) -> Iterator[str]:
    """Roles that may be there; of numbered ones as many as there are operands."""
    for role in roles:
        if role.endswith("*"):
            yield from (f"{role[:-1]}{number}" for number in range(count))
        else:
            yield role


def _check_types(op: Op, operands: dict[str, Tensor]) -> None:
    if op.kind in ("pointwise", "concat"):
        return
    for tensor in operands.values():
        _want(tensor.dtype != "bool", f"{tensor.name} is bool")


def _check_order(program: Program, written: Written, op: Op) -> None:
    for name in op.inputs.values():
        given = program.tensors[name].storage in _GIVEN
        _want(given or written.has(name), f"{name} is read before all of it is written")
        _want(name not in written.stale, f"{name} is read after another value took its place")
    for role, name in op.outputs.items():
        storage = program.tensors[name].storage
        _want(
            storage not in _GIVEN or role.startswith("weight_new"),
            f"{name} is written, but is the session's",
        )
        written.write(op, role)
