"""A convolution on random tensors on the device, by the own kernel and by cuDNN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import EdgeadaptError
from edgeadapt.kernels.cuda import conv, conv_weight_grad, pack_weights
from edgeadapt.kernels.cuda.launch import Work
from edgeadapt.kernels.cuda.tensors import ImageArgs, TensorArgs
from edgeadapt.runtime.cuda.cudnn_conv import OPERANDS, Convolution
from edgeadapt.runtime.cuda.cudnn_plans import BuiltPlan, Cudnn
from edgeadapt.runtime.cuda.cudnn_work import (
    CudnnWork,
    Gradients,
    convolution_work,
    weight_grad_work,
)
from edgeadapt.runtime.cuda.device import Device, byte_count
from edgeadapt.runtime.plan.ir import BYTES, Dtype, contiguous

Array = npt.NDArray[Any]
_PATTERN_ELEMENTS = 2**18


@dataclass(frozen=True)
class Trial:
    """Tensors of a convolution on the device, by role."""

    device: Device
    what: Convolution
    addresses: Mapping[str, int]  # "weight" is in cuDNN's order; of a weight gradient, the result
    own_weight: int
    own_scratch: int
    scratch: int  # of cuDNN's

    def own(self) -> Work:
        """The own kernel that computes it."""
        return _own(self.what, self.addresses, self.own_weight, self.own_scratch)

    def cudnn(self, library: Cudnn, plan: BuiltPlan) -> CudnnWork:
        """The same by a plan."""
        return _cudnn(library, self.what, plan, self.addresses, self.scratch)

    def clear(self) -> None:
        """Let results be NaN."""
        for role, nbytes in _results(self.what).items():
            self.device.fill(self.addresses[role], 0xFF, nbytes)

    def results(self) -> list[Array]:
        """As float32: y without the rest of its rows, or the gradients of weight and bias."""
        what, found = self.what, []
        for role, nbytes in _results(what).items():
            data = np.empty(nbytes, np.uint8)
            self.device.download(data, self.addresses[role])
            self.device.synchronize()
            if role == "y":
                image = what.image("y")
                flat, strides = _as_f32(data, image.dtype), [4 * s for s in image.strides]
                window = np.lib.stride_tricks.as_strided(flat, image.shape, strides)
                found.append(window.copy())
            else:
                found.append(data.view(np.float32))
        return found


@contextmanager
def trial(library: Cudnn, what: Convolution, plans: Sequence[BuiltPlan]) -> Iterator[Trial]:
    """Random tensors, for as long as they are in use."""
    device = library.device
    held: list[int] = []
    sent: list[Array] = []

    def allocate(nbytes: int) -> int:
        held.append(device.allocate(max(nbytes, 1)))
        return held[-1]

    def upload(array: Array) -> int:
        address = allocate(array.nbytes)
        sent.append(array)
        device.upload(address, array)
        return address

    try:
        addresses = {role: allocate(nbytes) for role, nbytes in _results(what).items()}
        for role in what.roles:
            if role not in ("weight", "y"):
                dtype: Dtype = "f32" if role == "bias" else what.image(role).dtype
                count = what.span_bytes(role) // BYTES[dtype]
                addresses[role] = upload(_random(count, dtype, len(sent)))
        own_weight = 0
        if what.kind != "wgrad":
            deviation = (what.filter[0] * what.filter[2] * what.filter[3]) ** -0.5
            weight = _random(prod(what.filter), "f32", len(sent)) * np.float32(deviation)
            flat = upload(weight)
            for order in ("krsc", "conv"):
                part = pack_weights.PackedWeight(
                    0, 0, what.filter, 1, what.kind == "dgrad", None, what.weights_dtype, order
                )
                table = pack_weights.pack_table([part])
                own_weight = allocate(part.nbytes)
                addresses.setdefault("weight", own_weight)
                work = pack_weights.pack_weights(flat, own_weight, table, upload(table.rows))
                for launch in work.launches:
                    device.launch(launch)
        own_scratch = allocate(_own(what, addresses, own_weight, 0).scratch_bytes)
        needed = [_cudnn(library, what, plan, addresses, 0).scratch_bytes for plan in plans]
        scratch = allocate(max(needed, default=0))
        device.synchronize()
        yield Trial(device, what, addresses, own_weight, own_scratch, scratch)
    finally:
        with suppress(EdgeadaptError):
            device.synchronize()
        for address in held:
            device.free(address)


def _results(what: Convolution) -> dict[str, int]:
    """Bytes of what is written, by role."""
    if what.kind != "wgrad":
        return {"y": what.span_bytes("y")}
    bias = {"bias": 4 * what.image(what.bias_of).shape[1]} if what.bias_of else {}
    return {"weight": what.span_bytes("weight"), **bias}


def _own(what: Convolution, at: Mapping[str, int], weight: int, scratch: int) -> Work:
    (top, left), (bottom, right) = what.pads
    pads, images = (
        (top, left, bottom, right),
        {role: _image(what, at, role) for role, _ in what.images},
    )
    if what.kind == "wgrad":
        gradients = _gradients(what, at)
        return conv_weight_grad.conv_weight_grad(
            [images["x"]],
            images["grad_y"],
            gradients.weight,
            gradients.bias,
            strides=what.strides,
            pads=pads,
            dilations=what.dilations,
            bias_of=what.bias_of or "grad_y",
            compute=what.compute,
            scratch=scratch,
        )
    spec = conv.ConvSpec(
        (what.filter[2], what.filter[3]),
        what.strides,
        pads,
        what.dilations,
        1,
        what.kind == "dgrad",
        what.compute,
    )
    x, y = images["x"], images["y"]
    size = spec.packed_size(x.channels, y.channels)
    weights = TensorArgs.at(weight, (size,), (1,), what.weights_dtype)
    bias = TensorArgs.at(at["bias"], (y.channels,), (1,), "f32") if what.bias else None
    operands: dict[str, Any] = {role: images[role] for role in OPERANDS if role in images}
    return conv.conv(
        spec,
        [x],
        weights,
        y,
        bias=bias,
        slope=what.slope,
        mask_slope=1.0 if what.mask_slope is None else what.mask_slope,
        scratch=scratch,
        **operands,
    )


def _cudnn(
    library: Cudnn, what: Convolution, plan: BuiltPlan, at: Mapping[str, int], scratch: int
) -> CudnnWork:
    if what.kind != "wgrad":
        return convolution_work(library, what, plan, at, scratch)
    return weight_grad_work(library, what, plan, at, _gradients(what, at), scratch)


def _gradients(what: Convolution, at: Mapping[str, int]) -> Gradients:
    weight = TensorArgs.at(at["weight"], what.filter, contiguous(what.filter), "f32")
    if not what.bias_of:
        return Gradients(weight)
    of = _image(what, at, what.bias_of)
    return Gradients(weight, TensorArgs.at(at["bias"], (of.channels,), (1,), "f32"), of)


def _image(what: Convolution, at: Mapping[str, int], role: str) -> ImageArgs:
    image = what.image(role)
    return ImageArgs.at(at[role], image.shape, image.strides, image.dtype)


def _random(count: int, dtype: Dtype, seed: int) -> Array:
    """Normal numbers, every eleventh of them 0: masks make a difference there."""
    short = np.random.default_rng(seed).standard_normal(min(count, _PATTERN_ELEMENTS), np.float32)
    short[::11] = 0
    if dtype == "f16":
        short = short.astype(np.float16)
    elif dtype == "bf16":
        short = (short.view(np.uint32) >> 16).astype(np.uint16)
    return np.resize(short, count)


def _as_f32(data: Array, dtype: Dtype) -> Array:
    if dtype == "bf16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype == "f16":
        return data.view(np.float16).astype(np.float32)
    assert data.nbytes == byte_count((data.nbytes // 4,), np.float32)
    return data.view(np.float32)
