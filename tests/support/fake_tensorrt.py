"""TensorRT as tests have it: an engine is its ONNX model, which ONNX Runtime computes on the CPU.

It is given as `edgeadapt.runtime.tensorrt.library.Library.module`, and works on a `HostDevice`:
what it is bound to is host memory. As the real one it wants every address at a multiple of 256,
all tensors bound and its own memory given before it runs, and it spoils that memory each time.
`Fake.complaints` has what it would not have liked.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

Array = npt.NDArray[Any]
SCRATCH_BYTES = 1000
Severity = IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
DataType = Enum("DataType", "FLOAT HALF BF16 INT64")
TYPES = {1: DataType.FLOAT, 7: DataType.INT64, 10: DataType.HALF, 16: DataType.BF16}
Flag = Enum("Flag", "TF32 REFIT")
Mode = Enum("Mode", "INPUT OUTPUT")
Place = Enum("Place", "HOST DEVICE")
Strategy = Enum("Strategy", "STATIC USER_MANAGED")
StronglyTyped = IntEnum("StronglyTyped", "STRONGLY_TYPED", start=1)
Architectures = Enum("Architectures", "NONE CURRENT SM75 SM86 SM120")


class Logger:
    """`ILogger`: what the library tells it, it must take."""

    INTERNAL_ERROR, ERROR = Severity.INTERNAL_ERROR, Severity.ERROR


class Fake:
    """The module. ``kind``: "10" and "11" are of TensorRT, "rtx" is TensorRT-RTX."""

    def __init__(self, kind: str = "10") -> None:
        self.kind = kind
        self.__version__ = {"10": "10.3.0.30", "11": "11.4.0.106", "rtx": "1.7.1.116"}[kind]
        self.complaints: list[str] = []
        self.built: list[Network] = []
        self.bound: list[dict[str, int]] = []  # of each run
        self.ran: list[str] = []  # "run" and "refit", in their order on the stream
        self.opened = 0  # contexts that live
        self.faults: set[str] = set()  # "parse", "build", "open", "bind", "run", "refit", "record"
        self.kernels_loaded: list[bytes] = []
        self.timings_given: list[bytes] = []
        self.ILogger = Logger
        self.NetworkDefinitionCreationFlag = StronglyTyped if kind != "11" else Enum("None", "")
        self.BuilderFlag, self.TensorLocation = Flag, Place
        self.ExecutionContextAllocationStrategy = Strategy
        self.float32 = DataType.FLOAT
        self.Weights = lambda dtype, address, count: (dtype, address, count)
        for name in ("Builder", "OnnxParser", "Runtime", "Refitter"):
            setattr(self, name, self._maker(globals()[name]))
        if kind == "rtx":
            self.ComputeCapability, self.IRuntimeCache = Architectures, object

    def _maker(self, kind: Any) -> Callable[..., Any]:
        return lambda *arguments: kind(self, *arguments)

    def fails(self, what: str, log: Any) -> bool:
        if what in self.faults:
            log.log(Severity.WARNING, "a warning")
            log.log(Severity.ERROR, f"cannot {what}")
        return what in self.faults


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        self.shape = tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
        self.dtype = TYPES[value.type.tensor_type.elem_type]


class Network:
    def __init__(self, flags: int) -> None:
        self.flags, self.model = flags, onnx.ModelProto()

    def read(self, model: bytes) -> None:
        self.model.ParseFromString(model)
        self.inputs = [Tensor(value) for value in self.model.graph.input]
        self.outputs = [Tensor(value) for value in self.model.graph.output]
        self.num_inputs, self.num_outputs = len(self.inputs), len(self.outputs)
        self.num_layers = len(self.model.graph.node)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]


class OnnxParser:
    def __init__(self, fake: Fake, network: Network, log: Any) -> None:
        self.fake, self.network, self.log = fake, network, log
        self.num_errors = 0

    def parse(self, model: bytes) -> bool:
        if self.fake.fails("parse", self.log):
            self.num_errors = 1
            return False
        self.network.read(model)
        return True

    def get_error(self, index: int) -> str:
        assert index == 0
        return "no\nsuch operator"


class Config:
    def __init__(self, fake: Fake) -> None:
        self.fake, self.flags = fake, {Flag.TF32}
        self.capabilities: dict[int, Any] = {}
        if fake.kind == "rtx":
            self.num_compute_capabilities = 0

    def set_flag(self, flag: Flag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Flag) -> None:
        self.flags.discard(flag)

    def set_compute_capability(self, capability: Any, index: int) -> None:
        self.capabilities[index] = capability

    def create_timing_cache(self, data: bytes) -> Any:
        assert self.fake.kind != "rtx", "deprecated there"
        self.fake.timings_given.append(data)
        return type("TimingCache", (), {"serialize": lambda _: b"times", "data": data})()

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return cache.data in (b"", b"times")


class Builder:
    def __init__(self, fake: Fake, log: Any) -> None:
        self.fake, self.log = fake, log

    def create_network(self, flags: int) -> Network:
        if flags != (0 if self.fake.kind == "11" else 2):
            self.fake.complaints.append("the network is not strongly typed")
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config(self.fake)

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        if self.fake.fails("build", self.log):
            return None
        self.fake.built.append(network)
        target = config.capabilities.get(0)
        said = {"refit": Flag.REFIT in config.flags, "tf32": Flag.TF32 in config.flags}
        said["target"] = "" if target is None else target.name
        return json.dumps(said).encode() + b"\0" + network.model.SerializeToString()


class Runtime:
    def __init__(self, fake: Fake, log: Any) -> None:
        self.fake, self.log = fake, log

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        return None if self.fake.fails("open", self.log) else Engine(self.fake, plan, self.log)


class Engine:
    def __init__(self, fake: Fake, plan: bytes, log: Any) -> None:
        self.fake, self.log = fake, log
        said, model = plan.split(b"\0", 1)
        self.said = json.loads(said)
        self.model = onnx.load_from_string(model)
        graph = self.model.graph
        self.tensors = {value.name: Tensor(value) for value in (*graph.input, *graph.output)}
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.num_io_tensors, self.device_memory_size_v2 = len(self.tensors), SCRATCH_BYTES
        self.session: Any = None

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name].dtype

    def create_execution_context(self, how: Any) -> Context:
        if self.fake.kind == "rtx":
            assert isinstance(how, RuntimeConfig)
            how = how.strategy
        assert how is Strategy.USER_MANAGED
        return Context(self.fake, self, self.log)

    def create_runtime_config(self) -> RuntimeConfig:
        assert self.fake.kind == "rtx"
        return RuntimeConfig(self.fake)

    def run(self, feeds: dict[str, Array]) -> list[Array]:
        if self.session is None:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            data = self.model.SerializeToString()
            self.session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
        return self.session.run(self.outputs, feeds)


class RuntimeConfig:
    def __init__(self, fake: Fake) -> None:
        self.fake, self.strategy = fake, Strategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.fake)

    def set_runtime_cache(self, cache: RuntimeCache) -> None:
        assert isinstance(cache, RuntimeCache)


class RuntimeCache:
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def deserialize(self, data: bytes) -> bool:
        self.fake.kernels_loaded.append(data)
        return data == b"kernels"

    def serialize(self) -> bytes:
        return b"kernels"


class Context:
    def __init__(self, fake: Fake, engine: Engine, log: Any) -> None:
        self.fake, self.engine, self.log = fake, engine, log
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        fake.opened += 1

    def __del__(self) -> None:
        self.fake.opened -= 1

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self.fake.fails("bind", self.log):
            return False
        if name not in self.engine.tensors or address % 256 or not address:
            self.fake.complaints.append(f"{name} at {address:#x}")
            return False
        self.addresses[name] = address
        return True

    def set_device_memory(self, address: int, nbytes: int) -> None:
        if address % 256 or nbytes < SCRATCH_BYTES:
            self.fake.complaints.append(f"{nbytes} bytes of memory at {address:#x}")
        self.scratch = (address, nbytes)

    def execute_async_v3(self, stream: int) -> bool:
        if self.fake.fails("run", self.log):
            return False
        if set(self.addresses) != set(self.engine.tensors) or not self.scratch[0]:
            self.fake.complaints.append("not all is bound")
            return False
        ctypes.memset(self.scratch[0], 0xA5, self.scratch[1])
        feeds = {name: self._at(name).copy() for name in self.engine.inputs}
        for name, value in zip(self.engine.outputs, self.engine.run(feeds), strict=True):
            self._at(name)[...] = value
        self.fake.bound.append(dict(self.addresses))
        self.fake.ran.append("run")
        return True

    def _at(self, name: str) -> Array:
        return array_at(self.addresses[name], self.engine.tensors[name].shape)


class Refitter:
    def __init__(self, fake: Fake, engine: Engine, log: Any) -> None:
        self.fake, self.engine, self.log = fake, engine, log
        self.given: dict[str, int] = {}
        if not engine.said["refit"]:
            fake.complaints.append("the engine was not built to be refitted")

    def set_named_weights(self, name: str, weights: Any, place: Place) -> bool:
        dtype, address, count = weights
        sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in self._weights()}
        right = dtype is DataType.FLOAT and place is Place.DEVICE and sizes.get(name) == count
        if right:
            self.given[name] = address
        return right

    def get_missing_weights(self) -> list[str]:
        return ["another"] if self.fake.fails("refit", self.log) else []

    def refit_cuda_engine_async(self, stream: int) -> bool:
        for tensor in self._weights():
            if tensor.name in self.given:
                value = array_at(self.given[tensor.name], tuple(tensor.dims)).copy()
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        self.engine.session = None
        self.fake.ran.append("refit")
        return True

    def _weights(self) -> list[onnx.TensorProto]:
        return [t for t in self.engine.model.graph.initializer if t.data_type == 1]


def array_at(address: int, shape: tuple[int, ...]) -> Array:
    """Float32 in memory, to read and to write."""
    count = int(np.prod(shape))
    block = (ctypes.c_float * count).from_address(address)
    return np.frombuffer(block, np.float32).reshape(shape)
