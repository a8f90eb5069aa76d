"""ONNX Runtime with a GPU, as it were: the real library computes on the CPU, and this one records.

Memory "on the device" is memory of the CPU here. A session takes only addresses inside of it, and
only what was said to lie on the device, so that an array of the host's that is bound by mistake
fails as it would on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
ALIGNMENT = 256  # of a GPU's kernels that read vectors, at most


@dataclass
class Value:
    """A value on the device."""

    real: Any
    copies_in: int = 0
    copies_out: int = 0

    def data_ptr(self) -> int:
        return self.real.data_ptr()

    def update_inplace(self, array: np.ndarray) -> None:
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert list(array.shape) == list(self.real.shape())
        self.copies_in += 1
        self.real.update_inplace(array)

    def numpy(self) -> np.ndarray:
        self.copies_out += 1
        return self.real.numpy().copy()


class Binding:
    """Hands what lies on the device to a real binding."""

    def __init__(self, library: FakeOnnxRuntime, real: Any) -> None:
        self._library, self.real = library, real
        self.bound: dict[str, int] = {}
        self.waited: list[str] = []

    def bind_input(self, name: str, *place: Any) -> None:
        self.real.bind_input(name, *self._on_host(name, *place))

    def bind_output(self, name: str, *place: Any) -> None:
        self.real.bind_output(name, *self._on_host(name, *place))

    def synchronize_inputs(self) -> None:
        self.waited.append("inputs")

    def synchronize_outputs(self) -> None:
        self.waited.append("outputs")

    def _on_host(
        self, name: str, device: str, number: int, kind: Any, shape: Sequence[int], address: int
    ) -> tuple[Any, ...]:
        assert (device, number, kind) == ("cuda", 0, np.float32)
        size = 4 * int(np.prod(shape))
        inside = [
            value
            for value in self._library.values
            if value.data_ptr() <= address
            and address + size <= value.data_ptr() + 4 * int(np.prod(value.real.shape()))
        ]
        assert inside, f"{name} is not on the device"
        assert (address - inside[0].data_ptr()) % ALIGNMENT == 0
        self.bound[name] = address
        return "cpu", 0, kind, shape, address


class Session:
    """A real session on the CPU that says it has the providers it was asked for."""

    def __init__(self, library: FakeOnnxRuntime, source: Any, options: Any, providers: Any) -> None:
        self._library = library
        self.source, self.asked = source, providers
        self._real = onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        names = [name for name, _ in self.asked]
        return [name for name in names if name not in self._library.not_loading]

    def io_binding(self) -> Binding:
        self._library.bindings.append(Binding(self._library, self._real.io_binding()))
        return self._library.bindings[-1]

    def run_with_iobinding(self, binding: Binding, options: RunOptions) -> None:
        if self._library.failure:
            raise RuntimeError(self._library.failure)
        self._library.runs.append(dict(options.entries))
        assert binding.waited[-1:] == ["inputs"]
        self._real.run_with_iobinding(binding.real, options.real)


class RunOptions:
    """Of a real run, without what the CPU does not know."""

    def __init__(self) -> None:
        object.__setattr__(self, "real", onnxruntime.RunOptions())
        object.__setattr__(self, "entries", {})

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.real, name, value)

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


@dataclass
class FakeOnnxRuntime:
    """The module; ``folder`` is where it is installed."""

    folder: Path
    providers: list[str] = field(default_factory=lambda: list(GPU))
    not_loading: set[str] = field(default_factory=set)
    failure: str = ""  # of every run
    __version__: str = "1.31.1"
    sessions: list[Session] = field(default_factory=list)
    bindings: list[Binding] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    runs: list[dict[str, str]] = field(default_factory=list)
    SessionOptions = onnxruntime.SessionOptions
    RunOptions = RunOptions

    @property
    def __file__(self) -> str:
        return str(self.folder / "__init__.py")

    @property
    def OrtValue(self) -> FakeOnnxRuntime:  # noqa: N802  the library's name
        return self

    def ortvalue_from_shape_and_type(
        self, shape: list[int], kind: Any, device: str, number: int
    ) -> Value:
        assert (device, number) == ("cuda", 0)
        real = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cpu", 0)
        np.asarray(real.numpy())[...] = np.nan  # nothing is written there yet
        self.values.append(Value(real))
        return self.values[-1]

    def get_available_providers(self) -> list[str]:
        return self.providers

    def InferenceSession(  # noqa: N802  the library's name
        self, source: Any, options: Any, providers: Any
    ) -> Session:
        self.sessions.append(Session(self, source, options, providers))
        return self.sessions[-1]
