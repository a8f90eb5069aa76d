"""The mean absolute error and its gradient in one pass."""

from __future__ import annotations

from edgeadapt.runtime.plan.edit import Edit, Key
from edgeadapt.runtime.plan.expressions import call, factor
from edgeadapt.runtime.plan.ir import Op, Program
from edgeadapt.runtime.plan.shapes import is_plane


def fuse_l1(program: Program) -> Program:
    """Make of a difference, the sum of its magnitudes and its scaled sign an `l1_loss`.

    Fires for scale * sum |a - b| over all elements, with or without the gradient constant *
    sign(a - b). Must not fire when the difference is read by anything else (it is needed then),
    when the sum leaves an axis or has a root, when the sign is scaled by a tensor, or when a or b
    is no plane.
    """
    edit = Edit(program)
    for key in edit.keys("pointwise"):
        if key in edit.ops and call(edit.ops[key])[0] == "sub":
            _fuse(edit, key)
    return edit.program()


def _fuse(edit: Edit, key: Key) -> None:
    difference = edit.ops[key]
    d = difference.outputs["y"]
    _, operands = call(difference)
    if edit.is_output(d) or not all(isinstance(name, str) for name in operands):
        return
    a, b = (str(name) for name in operands)
    value: tuple[Key, list[Key]] | None = None
    grad: tuple[Key, list[Key], float] | None = None
    for reader in edit.readers(d):
        found = _magnitude(edit, reader, d)
        sign = _scaled_sign(edit, reader, d)
        if found and value is None:
            value = found
        elif sign and grad is None:
            grad = sign
        else:
            return
    if value is None or not (is_plane(edit.tensors[a]) and is_plane(edit.tensors[b])):
        return
    last, gone = value
    total = edit.ops[last]
    outputs = {"value": total.outputs["y"]}
    at = {"value_scale": float(total.attributes["scale"]), "grad_scale": 0.0}
    place = last
    gone = [key, last, *gone]
    if grad:
        place = min(last, grad[0])
        outputs["grad"], at["grad_scale"] = edit.ops[grad[0]].outputs["y"], grad[2]
        gone += [grad[0], *grad[1]]
    origin = ", ".join(edit.ops[one].origin for one in sorted(gone))
    for one in gone:
        edit.drop(one)
    edit.put(place, Op("l1_loss", {"a": a, "b": b}, outputs, at, origin))


def _magnitude(edit: Edit, reader: Key, d: str) -> tuple[Key, list[Key]] | None:
    """The sum of magnitudes over all elements of ``d``, and operations on the way to it."""
    op, way = edit.ops[reader], []
    if call(op) == ("abs", (d,)):
        way, x = [reader], op.outputs["y"]
        following = edit.sole_reader(x)
        if following is None or edit.ops[following].inputs.get("x") != x:
            return None
        reader, op = following, edit.ops[following]
        before = None
    else:
        before = "abs"
    if op.kind != "reduce" or (not way and op.inputs["x"] != d):
        return None
    at = op.attributes
    every = sorted(at["axes"]) == list(range(len(edit.tensors[d].shape)))
    plain = at["how"] == "sum" and at["after"] is None
    fits = at["before"] == before or (before is None and at["before"] == "abs")
    return (reader, way) if every and plain and fits else None


def _scaled_sign(edit: Edit, reader: Key, d: str) -> tuple[Key, list[Key], float] | None:
    """The last of a chain that multiplies the sign of ``d`` by numbers, the rest of the chain, and
    the product of the numbers."""
    if call(edit.ops[reader]) != ("sign", (d,)):
        return None
    scale, way = 1.0, []
    while (following := edit.sole_reader(edit.ops[reader].outputs["y"])) is not None:
        number = factor(edit.ops[following], edit.ops[reader].outputs["y"])
        if number is None:
            break
        scale *= number
        way.append(reader)
        reader = following
    return reader, way, scale
