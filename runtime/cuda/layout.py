"""Lets images lie channels last, as tensor cores and cuDNN want them.

The memory of (1, C, H, W) is C rows of H W pixels, planar, or H W rows of C channels. Views name
elements by their place in that memory, so each is translated: its first element, and how far one
goes along each of its axes, in channels and in pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

from edgeadapt.runtime.plan.ir import Program, Tensor, View


def to_channels_last(program: Program) -> Program:
    """Lay out images of the arena channels last where all their views can be told of it.

    A view that runs from one channel on into the next, such as a row of all elements, has no
    strides then: its base stays planar, as does what the session owns.
    """
    views: dict[str, list[Tensor]] = {}
    for tensor in program.tensors.values():
        views.setdefault(tensor.base, []).append(tensor)
    tensors = dict(program.tensors)
    for base, inside in views.items():
        if _is_image(program.tensors[base]):
            moved = _translated(program.tensors[base], inside)
            tensors |= {tensor.name: tensor for tensor in moved or ()}
    return replace(program, tensors=tensors)


def _is_image(tensor: Tensor) -> bool:
    """Whether it is an activation for which the two layouts differ."""
    shape = tensor.shape
    image = len(shape) == 4 and shape[0] == 1 and tensor.storage == "arena"
    return image and tensor.size > 0 and shape[1] > 1 and shape[2] * shape[3] > 1


def _translated(base: Tensor, inside: Iterable[Tensor]) -> list[Tensor] | None:
    """The base and its views channels last; None if one of them cannot be."""
    found = []
    for tensor in inside:
        view = _view(tensor, base) if tensor.view else None
        if tensor.view and view is None:
            return None
        found.append(replace(tensor, view=view, channels_last=True))
    return found


def _view(tensor: Tensor, base: Tensor) -> View | None:
    """Where a view of planar memory is in memory that is channels last; None if nowhere."""
    assert tensor.view is not None
    channels, pixels = base.shape[1], prod(base.shape[2:])
    at = _place(tensor.view.offset, pixels)
    if not tensor.size:
        return View(base.name, 0, tensor.view.strides)
    strides, low, high = [], list(at), list(at)
    for n, stride in zip(tensor.shape, tensor.view.strides, strict=True):
        if n == 1:  # nobody goes there: any number will do
            there = _place(stride, pixels)
            strides.append(there[1] * channels + there[0])
            continue
        there = _place(tensor.view.offset + stride, pixels)
        step = (there[0] - at[0], there[1] - at[1])
        strides.append(step[1] * channels + step[0])
        for axis in (0, 1):
            reach = (n - 1) * step[axis]
            low[axis] += min(reach, 0)
            high[axis] += max(reach, 0)
    # Within these bounds a place has one channel and one pixel, so that the steps are right for
    # every element and not for the first one only.
    inside = min(low) >= 0 and high[0] < channels and high[1] < pixels
    return View(base.name, at[1] * channels + at[0], tuple(strides)) if inside else None


def _place(index: int, pixels: int) -> tuple[int, int]:
    """Channel and pixel of an element of planar memory."""
    return divmod(index, pixels)
