"""Gradients of parameters: of weight and bias in one pass, summed over all uses where they lie."""

from __future__ import annotations

from dataclasses import replace

from edgeadapt.runtime.plan.edit import Edit, Key
from edgeadapt.runtime.plan.expressions import sum_of
from edgeadapt.runtime.plan.ir import Op, Program
from edgeadapt.runtime.plan.shapes import is_contiguous


def fuse_bias(program: Program) -> Program:
    """Sum over pixels what a weight gradient reads anyway: the gradient of the bias beside it.

    Fires for a plain sum over all axes but the channels of the weight gradient's ``grad_y``, or of
    its only ``x`` (the bias of a transposed convolution). Must not fire for a mean, a sum of
    squares or over other axes, for a weight gradient that has a bias already, nor where one of the
    two is read before the other can be computed.
    """
    edit = Edit(program)
    sums: dict[str, list[Key]] = {}
    for key in edit.keys("reduce"):
        if _is_sum_of_pixels(edit, key):
            sums.setdefault(edit.ops[key].inputs["x"], []).append(key)
    for key in edit.keys("conv_weight_grad"):
        op = edit.ops[key]
        for role in ("grad_y", "x0"):
            waiting = sums.get(op.inputs[role], [])
            whole = role == "grad_y" or "x1" not in op.inputs
            if whole and waiting and _join(edit, key, waiting[0], role.rstrip("0")):
                waiting.pop(0)
                break
    return edit.program()


def accumulate(program: Program) -> Program:
    """Let the weight gradients that are summed add to one another where the sum lies.

    Scales that share weights give one gradient each; the first writes, the next add in place, in
    the order in which they run. Terms that are no weight gradients are added at the end. Must not
    be done for a term that is read elsewhere or an output itself, nor for less than two weight
    gradients: then there is nothing to add in place.
    """
    edit = Edit(program)
    for key in reversed(list(edit.keys("pointwise"))):
        if key in edit.ops and sum_of(edit.ops[key]):
            _accumulate(edit, key)
    return edit.program()


def _is_sum_of_pixels(edit: Edit, key: Key) -> bool:
    op = edit.ops[key]
    at, rank = op.attributes, len(edit.tensors[op.inputs["x"]].shape)
    plain = at["how"] == "sum" and at["before"] is None and at["after"] is None
    return plain and at["scale"] == 1 and rank == 4 and tuple(sorted(at["axes"])) == (0, 2, 3)


def _join(edit: Edit, key: Key, reduction: Key, bias_of: str) -> bool:
    """Let the weight gradient at ``key`` give the sum at ``reduction`` too, at either place."""
    op, total = edit.ops[key], edit.ops[reduction]
    result = total.outputs["y"]
    if "bias" in op.outputs or not is_contiguous(edit.tensors[result]):
        return False
    used = [*edit.readers(result), *edit.readers(op.outputs["weight"])]
    for place in (key, reduction):
        early = all(edit.is_before(name, place) for name in op.inputs.values())
        if early and all(place < reader for reader in used):
            break
    else:
        return False
    bias = edit.part(result, (edit.tensors[result].size,), label="#flat")
    edit.drop(key)
    edit.drop(reduction)
    origin = f"{op.origin}, {total.origin}"
    fused = replace(op, outputs={**op.outputs, "bias": bias}, origin=origin)
    edit.put(place, fused.with_attributes(bias_of=bias_of))
    return True


def _accumulate(edit: Edit, key: Key) -> None:
    """Rewrite the sum whose last addition is at ``key``."""
    root = edit.ops[key]
    total = root.outputs["y"]
    terms, inner = _terms(edit, key)
    once = [name for name in terms if terms.count(name) == 1]
    adding = sorted((maker, name) for name in once if (maker := _weight_gradient(edit, name)))
    if len(adding) < 2 or not is_contiguous(edit.tensors[total]) or edit.writers(total) != [key]:
        return
    others = [name for name in terms if name not in {name for _, name in adding}]
    for addition in (key, *inner):
        edit.drop(addition)
    whole = edit.tensors[total]
    place = total
    if others:
        place = edit.add(replace(whole, name=f"{total}#part", storage="arena", view=None, offset=0))
    previous: str | None = None
    for maker, name in adding:
        previous = _add_to(edit, maker, name, place, previous)
    _add_others(edit, key, root, place, others)


def _terms(edit: Edit, key: Key) -> tuple[list[str], list[Key]]:
    """What the addition at ``key`` sums in the end, and the additions on the way that go."""
    terms: list[str] = []
    inner: list[Key] = []
    for name in sum_of(edit.ops[key]) or ():
        maker = edit.producer(name)
        known = maker is not None and edit.is_whole(name) and edit.sole_reader(name) == key
        if maker is not None and known and sum_of(edit.ops[maker]):
            more, keys = _terms(edit, maker)
            terms += more
            inner += [maker, *keys]
        else:
            terms.append(name)
    return terms, inner


def _weight_gradient(edit: Edit, name: str) -> Key | None:
    """Where ``name`` is computed, if that is as (all of) a result of a weight gradient that
    nothing else needs and that is no running sum yet."""
    base = edit.base(name)
    written = edit.writers(base)
    if len(written) != 1 or edit.sole_reader(base) is None or not edit.is_whole(name):
        return None
    op = edit.ops[written[0]]
    if op.kind != "conv_weight_grad" or edit.tensors[base].storage != "arena":
        return None
    role = _role(edit, op, name)
    return written[0] if role and f"sum_{role}" not in op.inputs else None


def _role(edit: Edit, op: Op, name: str) -> str:
    """As which of its results ``op`` writes ``name``."""
    wanted = edit.base(name)
    return next((role for role, result in op.outputs.items() if edit.base(result) == wanted), "")


def _add_to(edit: Edit, key: Key, name: str, place: str, previous: str | None) -> str:
    """Let the weight gradient at ``key`` add its result ``name`` to ``previous``, in ``place``."""
    op = edit.ops[key]
    role = _role(edit, op, name)
    shape = edit.tensors[op.outputs[role]].shape
    result = edit.part(place, shape, label="#sum")
    fused = replace(op, outputs={**op.outputs, role: result})
    edit.put(key, fused.with_inputs(**{f"sum_{role}": previous}))
    return result


def _add_others(edit: Edit, key: Key, root: Op, place: str, others: list[str]) -> None:
    """Add the terms that are no weight gradients; the last addition has the result of ``root``."""
    running = place
    for number, name in enumerate(others):
        result = root.outputs["y"]
        if number + 1 < len(others):
            fresh = replace(edit.tensors[place], name=f"{place}#{number}")
            result = edit.add(fresh)
        inputs = {"x0": running, "x1": name}
        edit.put((*key, number), replace(root, inputs=inputs, outputs={"y": result}))
        running = result
