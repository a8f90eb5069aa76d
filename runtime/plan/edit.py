"""A program while a pass rewrites it: who reads and who writes each tensor stays up to date."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edgeadapt.runtime.plan.ir import Op, Program, Tensor, View, contiguous
from edgeadapt.runtime.plan.shapes import is_contiguous

Key = tuple[int, ...]  # a place in the order of operations: (3,) before (3, 0) before (4,)


class Edit:
    """Operations by key, in whose order they run; `program` gives the result.

    Every method that asks about a tensor means its base: memory that views share.
    """

    def __init__(self, program: Program) -> None:
        self.tensors: dict[str, Tensor] = dict(program.tensors)
        self.ops: dict[Key, Op] = {}
        self.constants = dict(program.constants)
        self.outputs = program.outputs
        self._read: dict[str, dict[Key, None]] = {}
        self._written: dict[str, dict[Key, None]] = {}
        self._kept = {self.base(name) for name in program.outputs}
        self._views: dict[str, list[str]] = {}
        for tensor in program.tensors.values():
            if tensor.view:
                self._views.setdefault(tensor.base, []).append(tensor.name)
        for position, op in enumerate(program.ops):
            self.put((position,), op)

    def base(self, name: str) -> str:
        """The tensor whose memory ``name`` uses."""
        return self.tensors[name].base

    def put(self, key: Key, op: Op) -> None:
        """Set or replace the operation at ``key``."""
        if key in self.ops:
            self.drop(key)
        self.ops[key] = op
        for name in op.inputs.values():
            self._read.setdefault(self.base(name), {})[key] = None
        for name in op.outputs.values():
            self._written.setdefault(self.base(name), {})[key] = None

    def drop(self, key: Key) -> None:
        """Remove the operation at ``key``."""
        op = self.ops.pop(key)
        for name in op.inputs.values():
            self._read[self.base(name)].pop(key, None)
        for name in op.outputs.values():
            self._written[self.base(name)].pop(key, None)

    def keys(self, *kinds: str) -> Iterator[Key]:
        """Where operations of ``kinds`` are, in their order; what goes meanwhile is skipped."""
        for key in sorted(key for key, op in self.ops.items() if op.kind in kinds):
            if key in self.ops and self.ops[key].kind in kinds:
                yield key

    def readers(self, name: str) -> list[Key]:
        """Where the memory of ``name`` is read, in order."""
        return sorted(self._read.get(self.base(name), ()))

    def writers(self, name: str) -> list[Key]:
        """Where the memory of ``name`` is written, in order."""
        return sorted(self._written.get(self.base(name), ()))

    def is_output(self, name: str) -> bool:
        """Whether someone reads the memory of ``name`` after the program."""
        return self.base(name) in self._kept

    def sole_reader(self, name: str) -> Key | None:
        """The one operation that reads the memory of ``name``; None if there is not just one."""
        found = self._read.get(self.base(name), {})
        return next(iter(found)) if len(found) == 1 and not self.is_output(name) else None

    def producer(self, name: str) -> Key | None:
        """The one operation that writes all of the memory of ``name``; None for other tensors."""
        base = self.base(name)
        found = self._written.get(base, {})
        if len(found) != 1:
            return None
        key = next(iter(found))
        results = self.ops[key].outputs.values()
        return key if any(self.base(r) == base and self.is_whole(r) for r in results) else None

    def is_before(self, name: str, key: Key) -> bool:
        """Whether ``name`` has its value before the operation at ``key``."""
        return all(writer < key for writer in self._written.get(self.base(name), ()))

    def add(self, tensor: Tensor) -> str:
        """Add a tensor, under a name close to its own if that is taken; returns the name."""
        name, number = tensor.name, 1
        while name in self.tensors:
            number += 1
            name = f"{tensor.name}~{number}"
        self.tensors[name] = replace(tensor, name=name)
        if tensor.view:
            self._views.setdefault(tensor.base, []).append(name)
        return name

    def part(self, name: str, shape: tuple[int, ...], offset: int = 0, label: str = "") -> str:
        """A contiguous window of contiguous ``name``, ``offset`` elements into it."""
        whole = self.tensors[name]
        begin = (whole.view.offset if whole.view else 0) + offset
        view = View(whole.base, begin, contiguous(shape))
        return self.add(replace(whole, name=f"{name}{label}", shape=shape, view=view, offset=0))

    def move(self, name: str, into: str) -> None:
        """Let tensor ``name`` (a base) and all views of it lie in the memory of ``into``, a
        contiguous tensor of the same size."""
        place = self.tensors[into]
        begin = place.view.offset if place.view else 0
        inside = [name, *self._views.pop(name, ())]
        for tensor in [self.tensors[one] for one in inside]:
            offset = begin + (tensor.view.offset if tensor.view else 0)
            view = View(place.base, offset, tensor.strides)
            self.tensors[tensor.name] = replace(tensor, storage=place.storage, view=view, offset=0)
        self._views.setdefault(place.base, []).extend(inside)
        for index in (self._read, self._written):
            index.setdefault(place.base, {}).update(index.pop(name, {}))
        if name in self._kept:
            self._kept.add(place.base)

    def replace_everywhere(self, old: str, new: str) -> None:
        """Let every reader of the name ``old`` read ``new``; both have the same shape."""
        for key in self.readers(old):
            op = self.ops[key]
            changed = {role: new for role, name in op.inputs.items() if name == old}
            if changed:
                self.put(key, op.with_inputs(**changed))

    def is_whole(self, name: str) -> bool:
        """Whether ``name`` is all of its base, element by element, perhaps in another shape."""
        tensor = self.tensors[name]
        if tensor.view is None:
            return True
        same_size = tensor.size == self.tensors[tensor.base].size
        return same_size and tensor.view.offset == 0 and is_contiguous(tensor)

    def program(self) -> Program:
        """The program as it is now, without the tensors and constants that nobody names."""
        ops = tuple(self.ops[key] for key in sorted(self.ops))
        used = dict.fromkeys(self.outputs)
        for op in ops:
            used.update(dict.fromkeys((*op.inputs.values(), *op.outputs.values())))
        used.update(dict.fromkeys([self.base(name) for name in used]))
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in used}
        constants = {name: value for name, value in self.constants.items() if name in used}
        return Program(tensors, ops, self.outputs, constants)
