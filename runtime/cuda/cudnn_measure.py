"""Times an own convolution and cuDNN's plans for it on the device, and compares what they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import EdgeadaptError
from edgeadapt.kernels.cuda import conv, pack_weights
from edgeadapt.kernels.cuda.launch import Work
from edgeadapt.kernels.cuda.tensors import ImageArgs, TensorArgs
from edgeadapt.runtime.cuda.cudnn_choice import LEAST_GAIN, OWN, Choice
from edgeadapt.runtime.cuda.cudnn_conv import OPERANDS, Convolution
from edgeadapt.runtime.cuda.cudnn_plans import BuiltPlan, Cudnn, CudnnError, span_bytes
from edgeadapt.runtime.cuda.device import Device, byte_count
from edgeadapt.runtime.plan.ir import BYTES, Dtype

Array = npt.NDArray[Any]
REPEATS, ROUNDS = 8, 3  # convolutions in a graph, and launches of it that are timed
# Relative distance, in the L2 norm, of results that come of the same sums in another order.
TOLERANCES: Mapping[str, float] = {"f32": 1e-5, "tf32": 2e-3, "f16": 2e-3, "bf16": 1.6e-2}
_PATTERN_ELEMENTS = 2**18


def measure(cudnn: Cudnn, what: Convolution) -> Choice:
    """The fastest that gives what the own kernel gives; the own one if cuDNN gains next to nothing.

    Raises:
        BackendError: if the device has no memory for it, or failed.
        CudnnError: if cuDNN does not take it.
    """
    plans = list(cudnn.candidates(what))
    with _memory(cudnn.device, what, plans) as at:
        own = at.own(what)

        def run_own() -> None:
            for launch in own.launches:
                cudnn.device.launch(launch)

        own_seconds = seconds_of(cudnn.device, run_own)
        wanted = at.result(what)
        timed = []
        for number, plan in enumerate(plans):
            call = cudnn.call(what, plan, at.addresses, at.workspace)
            with suppress(CudnnError, RuntimeError):
                timed.append((seconds_of(cudnn.device, partial(_run, cudnn, call)), number))
        for seconds, number in sorted(timed):
            if seconds > LEAST_GAIN * own_seconds:
                break
            cudnn.device.fill(at.addresses["y"], 0xFF, span_bytes(what, "y"))
            _run(cudnn, cudnn.call(what, plans[number], at.addresses, at.workspace))
            if close(at.result(what), wanted, what):
                return Choice(plans[number].name, own_seconds, seconds)
    return Choice(OWN, own_seconds)


def seconds_of(device: Device, work: Callable[[], None]) -> float:
    """Time of some work, of several in a row as one recorded graph; the shortest of some."""
    work()
    device.synchronize()

    def repeated() -> None:
        for _ in range(REPEATS):
            work()

    graph = device.capture(repeated)
    try:
        graph.launch()
        times = []
        for _ in range(ROUNDS):
            before = device.mark()
            graph.launch()
            times.append(device.mark().seconds_since(before))
        return min(times) / REPEATS
    finally:
        with suppress(EdgeadaptError):
            device.synchronize()
        graph.close()


def close(found: Array, wanted: Array, what: Convolution) -> bool:
    """Whether two results differ by no more than rounding does."""
    distance = float(np.linalg.norm(found - wanted))
    tolerance = max(TOLERANCES[what.compute], TOLERANCES[what.image("y").dtype])
    return bool(distance <= tolerance * float(np.linalg.norm(wanted)))  # false for NaN, too


def _run(cudnn: Cudnn, call: Any) -> None:
    try:
        cudnn.device.call(call)
    except EdgeadaptError:
        raise
    except Exception as error:  # of the frontend's kinds
        raise CudnnError(str(error)) from error


@dataclass(frozen=True)
class _Memory:
    """Tensors of a convolution on the device, by role; weights in both orders."""

    device: Device
    addresses: Mapping[str, int]  # "weight" is in cuDNN's order
    own_weight: int
    workspace: int

    def own(self, what: Convolution) -> Work:
        """The own kernel that computes it."""
        (top, left), (bottom, right) = what.pads
        spec = conv.ConvSpec(
            (what.filter[2], what.filter[3]),
            what.strides,
            (top, left, bottom, right),
            what.dilations,
            1,
            what.transposed,
            what.compute,
        )
        x, y = self._image(what, "x"), self._image(what, "y")
        size = spec.packed_size(x.channels, y.channels)
        weights = TensorArgs.at(self.own_weight, (size,), (1,), what.weights_dtype)
        bias = TensorArgs.at(self.addresses["bias"], (y.channels,), (1,), "f32")
        operands: dict[str, Any] = {
            r: self._image(what, r) for r in OPERANDS if r in dict(what.images)
        }
        return conv.conv(
            spec,
            [x],
            weights,
            y,
            bias=bias if what.bias else None,
            slope=what.slope,
            mask_slope=1.0 if what.mask_slope is None else what.mask_slope,
            **operands,
        )

    def result(self, what: Convolution) -> Array:
        """y as float32; the rest of its rows is left out."""
        image = what.image("y")
        data = np.empty(span_bytes(what, "y"), np.uint8)
        self.device.download(data, self.addresses["y"])
        self.device.synchronize()
        flat = _as_f32(data, image.dtype)
        strides = [4 * stride for stride in image.strides]
        return np.lib.stride_tricks.as_strided(flat, image.shape, strides).copy()

    def _image(self, what: Convolution, role: str) -> ImageArgs:
        image = what.image(role)
        return ImageArgs.at(self.addresses[role], image.shape, image.strides, image.dtype)


@contextmanager
def _memory(device: Device, what: Convolution, plans: list[BuiltPlan]) -> Iterator[_Memory]:
    """Random tensors, for as long as they are in use."""
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
        addresses = {}
        for role in what.roles:
            if role in ("weight", "y"):
                addresses[role] = allocate(span_bytes(what, role))
            else:
                dtype: Dtype = "f32" if role == "bias" else what.image(role).dtype
                count = span_bytes(what, role) // BYTES[dtype]
                addresses[role] = upload(_random(count, dtype, len(sent)))
        deviation = (what.filter[0] * what.filter[2] * what.filter[3]) ** -0.5
        weight = _random(prod(what.filter), "f32", len(sent)) * np.float32(deviation)
        flat = upload(weight)
        own_weight = 0
        for order in ("conv", "krsc"):
            dtype = what.weights_dtype
            part = pack_weights.PackedWeight(
                0, 0, what.filter, 1, what.transposed, None, dtype, order
            )
            table = pack_weights.pack_table([part])
            packed = addresses["weight"] if order == "krsc" else allocate(part.nbytes)
            own_weight = own_weight or packed
            work = pack_weights.pack_weights(flat, packed, table, upload(table.rows))
            for launch in work.launches:
                device.launch(launch)
        workspace = allocate(max([plan.workspace_bytes for plan in plans], default=0))
        device.synchronize()
        yield _Memory(device, {"bias": 0, **addresses}, own_weight, workspace)
    finally:
        with suppress(EdgeadaptError):
            device.synchronize()
        for address in held:
            device.free(address)


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
