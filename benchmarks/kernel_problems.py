"""Single kernels at the shapes of the deblurring network, on arrays that are held to the reference.

The shapes are those of the `edge` network (widths 16, 32, 64) at its finest scale for 256x256.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import EdgeadaptError
from edgeadapt.kernels.conv import ConvSpec, conv, pack_weights
from edgeadapt.kernels.conv_weight_grad import conv_weight_grad
from edgeadapt.kernels.library import Call, Kernel, open_library
from edgeadapt.kernels.reference import conv as conv_reference
from edgeadapt.kernels.reference import conv_weight_grad as weight_grad_reference
from edgeadapt.kernels.reference import resize as resize_reference
from edgeadapt.kernels.resize import resize, resize_grad
from edgeadapt.kernels.tensors import PlaneArgs, TensorArgs
from edgeadapt.runtime.backend import usable_cores

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]

# Relative L2: sums of up to some 65,000 products in float32; bfloat16 rounds what is multiplied.
BOUND, HALF_BOUND = 1e-5, 1e-2


@dataclass(frozen=True)
class Layer:
    """A convolution of the network; ``size`` is that of its input."""

    inputs: int
    outputs: int
    size: tuple[int, int]
    spec: ConvSpec

    @property
    def y_size(self) -> tuple[int, int]:
        """Of its output."""
        step = self.spec.strides[0]
        h, w = self.size
        return (h * step, w * step) if self.spec.transposed else (h // step, w // step)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """As PyTorch has it."""
        ends = (self.outputs, self.inputs)
        return (*(ends[::-1] if self.spec.transposed else ends), *self.spec.kernel)

    @property
    def operations(self) -> int:
        """Floating-point operations, two a multiplication."""
        seen = self.size if self.spec.transposed else self.y_size
        return 2 * prod(self.weight_shape) * prod(seen)


_SAME = ConvSpec((3, 3), pads=(1, 1))
LAYERS = {
    "16 to 16 at 256": Layer(16, 16, (256, 256), _SAME),
    "32 to 32 at 128": Layer(32, 32, (128, 128), _SAME),
    "64 to 64 at 64": Layer(64, 64, (64, 64), _SAME),
    "1x1, 32 to 16 at 256": Layer(32, 16, (256, 256), ConvSpec((1, 1))),
    "stride 2, 16 to 32 at 256": Layer(16, 32, (256, 256), ConvSpec((3, 3), (2, 2), (1, 1))),
    "up, 32 to 16 at 128": Layer(
        32, 16, (128, 128), ConvSpec((4, 4), (2, 2), (1, 1), transposed=True)
    ),
}
SQUARE = [name for name, layer in LAYERS.items() if layer.spec.winograd_fits()]
ONE_WAY = [name for name, layer in LAYERS.items() if not layer.spec.transposed]


class Problem:
    """A call of one kernel at this CPU's best level on every core, and what it should write.

    ``operations`` is 0 where memory, not arithmetic, is the limit. The arrays live as long as this.
    """

    def __init__(
        self,
        kernel: str,
        arguments: ctypes.Structure,
        arrays: Mapping[str, Array],
        expected: Callable[[], F64],
        operations: int = 0,
    ) -> None:
        self._arguments, self._arrays, self._expected = arguments, arrays, expected
        self.operations = operations
        self._library = open_library()
        threads = usable_cores()
        found: Kernel = self._library.kernel(self._library.levels[-1], kernel, type(arguments))
        if hasattr(arguments, "scratch"):
            self._scratch = _empty((found.scratch_bytes(arguments, threads) + 1,), np.uint8)
            arguments.scratch = self._scratch.ctypes.data
        self._calls = (Call * 1)(found.call(arguments))
        self._team = self._library.team(threads)

    def run(self) -> None:
        """Write the result."""
        self._library.run(self._calls, self._team)

    def check(self) -> None:
        """Run, and compare with the reference.

        Raises:
            EdgeadaptError: if they do not agree.
        """
        written = self._arrays["y"]
        written.fill(np.uint16(0x7FC0) if written.dtype == np.uint16 else np.nan)
        self.run()
        expected = self._expected()
        error = float(np.linalg.norm(_value(written) - expected) / np.linalg.norm(expected))
        half = any(array.dtype == np.uint16 for array in self._arrays.values())
        if not error <= (HALF_BOUND if half else BOUND):
            raise EdgeadaptError(
                f"the kernel is {error:.1e} from its reference; nothing was timed."
            )


def conv_problem(name: str, dtype: str, algorithm: str = "direct") -> Problem:
    """Convolution, bias and LeakyReLU; the weights are packed already."""
    layer = LAYERS[name]
    spec = ConvSpec(**{**vars(layer.spec), "compute": dtype, "algorithm": algorithm})
    rng = np.random.default_rng(0)
    x = _image(rng, layer.inputs, layer.size, dtype)
    weight = _aligned(rng.standard_normal(layer.weight_shape, np.float32) / 10)
    bias = _aligned(rng.standard_normal(layer.outputs, np.float32))
    packed = _empty((spec.packed_size(layer.inputs, layer.outputs),), np.float32)
    y = _empty((1, layer.outputs, *layer.y_size), x.dtype)
    pack, convolve = spec.kernels
    arrays = {"x": x, "weight": weight, "bias": bias, "packed": packed, "y": y}
    order = pack_weights(spec, TensorArgs.of(weight), TensorArgs.of(packed))
    Problem(pack, order, arrays, lambda: _value(y)).run()
    arguments = conv(
        spec,
        [PlaneArgs.of(x)],
        TensorArgs.of(packed),
        PlaneArgs.of(y),
        bias=TensorArgs.of(bias),
        slope=0.1,
    )

    def expected() -> F64:
        sums = conv_reference.conv(
            _value(x),
            _value(weight),
            layer.y_size,
            strides=spec.strides,
            pads=spec.pads,
            transposed=spec.transposed,
        )
        return conv_reference.finish(sums, bias=_value(bias), slope=0.1)

    return Problem(convolve, arguments, arrays, expected, layer.operations)


def weight_grad_problem(name: str, dtype: str) -> Problem:
    """The gradient of a convolution in its weight and bias."""
    layer = LAYERS[name]
    rng = np.random.default_rng(0)
    x = _image(rng, layer.inputs, layer.size, dtype)
    grad_y = _image(rng, layer.outputs, layer.y_size, dtype)
    y = _empty(layer.weight_shape, np.float32)
    bias = _empty((layer.outputs,), np.float32)
    strides, pads = layer.spec.strides, layer.spec.pads
    arguments = conv_weight_grad(
        [PlaneArgs.of(x)],
        PlaneArgs.of(grad_y),
        TensorArgs.of(y),
        TensorArgs.of(bias),
        strides=strides,
        pads=pads,
    )

    def expected() -> F64:
        return weight_grad_reference.weight_gradient(
            _value(x), _value(grad_y), kernel=layer.spec.kernel, strides=strides, pads=pads
        )

    arrays = {"x": x, "grad_y": grad_y, "y": y, "bias": bias}
    return Problem("conv_weight_grad", arguments, arrays, expected, layer.operations)


def resize_problem(kernel: str, channels: int, size: tuple[int, int], dtype: str) -> Problem:
    """Bilinear enlargement of ``size`` by two, or its adjoint."""
    large = (2 * size[0], 2 * size[1])
    forward = kernel == "resize"
    x = _image(np.random.default_rng(0), channels, size if forward else large, dtype)
    y = _empty((1, channels, *(large if forward else size)), x.dtype)
    make = resize if forward else resize_grad
    reference = resize_reference.resize if forward else resize_reference.resize_grad
    arguments = make(PlaneArgs.of(x), PlaneArgs.of(y), mode="linear", scale=2.0)
    target = large if forward else size

    def expected() -> F64:
        return reference(_value(x), mode="linear", scale=2.0, size=target)

    return Problem(kernel, arguments, {"x": x, "y": y}, expected)


def _image(rng: np.random.Generator, channels: int, size: tuple[int, int], dtype: str) -> Array:
    values = rng.standard_normal((1, channels, *size), np.float32)
    if dtype == "bf16":  # the upper half of a float32
        return _aligned((values.view(np.uint32) >> 16).astype(np.uint16))
    return _aligned(values)


def _value(array: Array) -> F64:
    """What an array of float32 or of bfloat16 bits means."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def _aligned(values: Array) -> Array:
    made = _empty(values.shape, values.dtype)
    made[...] = values
    return made


def _empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Begins at a cache line, as everything does in the engine."""
    size = prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)  # zeros: its pages are there before anything is timed
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + size].view(dtype).reshape(shape)
