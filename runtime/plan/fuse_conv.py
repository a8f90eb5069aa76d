"""What follows a convolution, done on its result before it is written."""

from __future__ import annotations

from dataclasses import replace

from edgeadapt.runtime.plan.edit import Edit, Key
from edgeadapt.runtime.plan.expressions import rectifier, rectifier_grad, sum_of
from edgeadapt.runtime.plan.ir import Op, Program
from edgeadapt.runtime.plan.shapes import is_plane


def fuse_epilogues(program: Program) -> Program:
    """Do the additions, the LeakyReLU and the derivative of one that follow a convolution in it.

    Fires for a pointwise operation that is the only reader of the convolution's result (for a
    LeakyReLU: apart from derivatives that only want the sign of its input, which its result has
    as well, since its slope is not negative; they read that instead). The other operand must exist
    before the convolution runs: of a sum of two, the one computed last takes it. Must not fire when
    the result is an output or is also read elsewhere, when the other operand comes later, is the
    convolution's own result or is no plane of the same type (a broadcast), nor out of the order
    bias, adds, LeakyReLU, post, mask.
    """
    edit = Edit(program)
    for key in edit.keys("conv"):
        while _fuse_next(edit, key) or _open_sum(edit, key):
            pass
    return edit.program()


def split_slices(program: Program) -> Program:
    """Compute the slices of channels, in which alone a convolution is read, in a convolution each.

    So the gradient of a concatenation comes as one tensor for each part: each has its own
    LeakyReLU's derivative fused and lives only as long as it is read. Fires when a slice has a sole
    reader that `fuse_epilogues` then fuses. Must not fire when the slices overlap or the whole is
    read as well, when no reader can be fused (then views cost nothing), for grouped convolutions,
    nor when something is fused already that the slices would have to share.
    """
    edit = Edit(program)
    for key in edit.keys("conv"):
        slices = _slices(edit, key)
        if slices and any(_pays(edit, key, name) for name in slices):
            _split(edit, key, slices)
    return edit.program()


def _fuse_next(edit: Edit, key: Key) -> bool:
    """Fuse the reader of the convolution at ``key``, if there is one that can be."""
    op = edit.ops[key]
    y = op.outputs["y"]
    if edit.is_output(y) or edit.producer(y) != key:
        return False
    fused = _with_rectifier(edit, op) or _with_sum(edit, key) or _with_mask(edit, key)
    if fused is None:
        return False
    edit.drop(fused)
    return True


def _with_rectifier(edit: Edit, op: Op) -> Key | None:
    y = op.outputs["y"]
    if op.attributes["slope"] is not None or {"post", "mask"} & op.inputs.keys():
        return None
    found: Key | None = None
    for reader in edit.readers(y):
        other = edit.ops[reader]
        grad = rectifier_grad(other)
        if grad and grad[1] == y and grad[0] != y:
            continue
        rectified = rectifier(other)
        if found is not None or rectified is None or rectified[0] != y:
            return None
        found = reader
    if found is None:
        return None
    follower = edit.ops[found]
    result = follower.outputs["y"]
    _, slope = rectifier(follower) or ("", 0.0)
    key = edit.writers(y)[0]
    edit.drop(found)
    edit.replace_everywhere(y, result)
    edit.put(found, follower)
    _put(edit, key, op.with_attributes(slope=slope), result, follower)
    return found


def _with_sum(edit: Edit, key: Key) -> Key | None:
    op = edit.ops[key]
    y = op.outputs["y"]
    reader = edit.sole_reader(y)
    terms = sum_of(edit.ops[reader]) if reader else None
    role = _free_role(op)
    if reader is None or terms is None or role is None or y not in terms:
        return None
    other = terms[1] if terms[0] == y else terms[0]
    if not _can_join(edit, key, y, other):
        return None
    follower = edit.ops[reader]
    _put(edit, key, op.with_inputs(**{role: other}), follower.outputs["y"], follower)
    return reader


def _with_mask(edit: Edit, key: Key) -> Key | None:
    op = edit.ops[key]
    y = op.outputs["y"]
    reader = edit.sole_reader(y)
    found = rectifier_grad(edit.ops[reader]) if reader else None
    if reader is None or found is None or "mask" in op.inputs or found[0] != y:
        return None
    _, mask, slope = found
    if not _can_join(edit, key, y, mask):
        return None
    follower = edit.ops[reader]
    fused = op.with_inputs(mask=mask).with_attributes(mask_slope=slope)
    _put(edit, key, fused, follower.outputs["y"], follower)
    return reader


def _open_sum(edit: Edit, key: Key) -> bool:
    """Read the terms of a sum instead of a sum that only this convolution reads."""
    op = edit.ops[key]
    if "add0" not in op.inputs or "add1" in op.inputs:
        return False
    total = op.inputs["add0"]
    producer = edit.producer(total)
    if producer is None or edit.sole_reader(total) != key:
        return False
    if edit.ops[producer].outputs.get("y") != total:
        return False
    terms = sum_of(edit.ops[producer])
    if terms is None or list(op.inputs.values()).count(total) != 1:
        return False
    if not all(_can_join(edit, key, total, term) for term in terms):
        return False
    merged = op.with_inputs(add0=terms[0], add1=terms[1])
    edit.put(key, replace(merged, origin=f"{op.origin}, {edit.ops[producer].origin}"))
    edit.drop(producer)
    return True


def _free_role(op: Op) -> str | None:
    """The operand in which one more term can be added at the end of what ``op`` does so far."""
    if "mask" in op.inputs:
        return None
    before = ("add0", "add1") if op.attributes["slope"] is None and "post" not in op.inputs else ()
    return next((role for role in (*before, "post") if role not in op.inputs), None)


def _can_join(edit: Edit, key: Key, y: str, other: str) -> bool:
    """Whether ``other`` can be an operand, element by element, of what makes ``y`` at ``key``."""
    own, tensor = edit.tensors[y], edit.tensors[other]
    same = tensor.shape == own.shape and tensor.dtype != "bool"
    return same and is_plane(tensor) and edit.is_before(other, key)


def _put(edit: Edit, key: Key, op: Op, y: str, follower: Op) -> None:
    origin = f"{op.origin}, {follower.origin}"
    edit.put(key, replace(op, outputs={"y": y}, origin=origin))


def _slices(edit: Edit, key: Key) -> list[str]:
    """Slices of channels through which alone the result at ``key`` is read, in order; or none."""
    op = edit.ops[key]
    y = op.outputs["y"]
    fused = {"add0", "add1", "post", "mask"} & op.inputs.keys()
    if (
        op.attributes["group"] != 1
        or fused
        or "bias" in op.inputs
        or op.attributes["slope"] is not None
    ):
        return []
    if edit.is_output(y) or edit.producer(y) != key or edit.tensors[y].view:
        return []
    names: dict[int, str] = {}
    for reader in edit.readers(y):
        for name in edit.ops[reader].inputs.values():
            if edit.base(name) == y and names.setdefault(_first_channel(edit, name), name) != name:
                return []
    ordered = [names[first] for first in sorted(names)]
    end = 0
    for first, name in sorted(names.items()):
        if first < end:  # also -1, for what is no slice
            return []
        end = first + edit.tensors[name].shape[1]
    return ordered if len(ordered) > 1 or end < edit.tensors[y].shape[1] else []


def _first_channel(edit: Edit, name: str) -> int:
    """Where in its base a slice of channels begins; -1 for any other view."""
    tensor = edit.tensors[name]
    base = edit.tensors[tensor.base]
    if tensor.view is None or len(tensor.shape) != 4 or tensor.shape[2:] != base.shape[2:]:
        return -1
    axes = zip(tensor.shape, tensor.strides, base.strides, strict=True)
    if any(length > 1 and own != outer for length, own, outer in axes):
        return -1
    first, rest = divmod(tensor.view.offset, base.strides[1])
    return first if rest == 0 else -1


def _pays(edit: Edit, key: Key, name: str) -> bool:
    """Whether a convolution that makes only the slice ``name`` could fuse what reads it."""
    base = edit.base(name)
    readers = [
        edit.ops[reader]
        for reader in edit.readers(base)
        if name in edit.ops[reader].inputs.values()
    ]
    if len(readers) != 1:
        return False
    grad, terms = rectifier_grad(readers[0]), sum_of(readers[0])
    if grad:
        return grad[0] == name and edit.is_before(grad[1], key)
    if terms is None or terms[0] == terms[1]:
        return False
    other = terms[1] if terms[0] == name else terms[0]
    return edit.base(other) == base or edit.is_before(other, key)


def _split(edit: Edit, key: Key, slices: list[str]) -> None:
    """Let each slice be a tensor of its own, made by a convolution of its own."""
    op = edit.ops[key]
    y = edit.tensors[op.outputs["y"]]
    # Their order decides which one of two that are added can take the other: the one after.
    edit.drop(key)
    for number, name in enumerate(slices):
        part = edit.tensors[name]
        first = _first_channel(edit, name)
        skipped, _ = op.attributes["out_channels"] or (0, 0)
        fresh = edit.add(replace(y, name=f"{y.name}[{first}]", shape=part.shape))
        edit.replace_everywhere(name, fresh)
        _put_part(edit, (*key, number), op, fresh, (skipped + first, part.shape[1]))


def _put_part(edit: Edit, key: Key, op: Op, y: str, channels: tuple[int, int]) -> None:
    fused = op.with_attributes(out_channels=channels)
    edit.put(key, replace(fused, outputs={"y": y}))
