"""How fast this machine does each kind of work: measured on shapes of no network in particular."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.kernels.library import Call, Library, Team, open_library
from edgeadapt.runtime.plan.bind import Kernels, bind, packed_elements
from edgeadapt.runtime.plan.ir import Dtype, Op, Program, Shape, Storage, Tensor
from edgeadapt.runtime.plan.memory import Memory
from edgeadapt.runtime.profile.caches import missing_bytes
from edgeadapt.runtime.profile.work import Work, work_of

F64 = npt.NDArray[np.float64]
# Of each operation, in each round; the first brings its operands into the cache and is not counted.
# What disturbs the machine for a moment is not there in all rounds.
_RUNS, _ROUNDS = 3, 3
_ALIGNMENT = 256  # bytes
_FILL = 0x3F  # as every byte a float32 and a bfloat16 of 0.75: no sum is denormal
# What runs between two runs of an operation, as others do in a network: its 5 MB take the place of
# what was in the cores' own caches, and leave it in the last one.
_BETWEEN = (6, (256, 256))
# Channels in and out, and sizes of images: odd ones that no network of the package has. The largest
# images do not fit into a cache.
_CHANNELS = ((3, 12), (10, 6), (12, 20), (20, 20), (24, 44), (48, 40))
_SIZES = ((20, 24), (40, 48), (112, 144), (208, 272))
_LARGE = ((10, 12), (20, 20)), (800, 1100)


@dataclass(frozen=True)
class Rates:
    """Seconds that one unit of each amount takes, by class of operation."""

    seconds: Mapping[str, tuple[float, ...]]  # in the order of `work.AMOUNTS`
    operations: int  # that were measured
    spread: Mapping[str, tuple[float, float]]  # of model over measurement: 10th, 90th percentile

    def time(self, work: Work) -> float:
        """Seconds that some work takes; a class that was not measured has the rates of its like."""
        like = work.kind.partition(", of ")[0]
        near = [kind for kind in self.seconds if kind.partition(", of ")[0] == like]
        rates = self.seconds[work.kind if work.kind in self.seconds else near[0]]
        return sum(amount * rate for amount, rate in zip(work.amounts, rates, strict=True))


def calibrate(precision: str, threads: int, cache: int) -> Rates:
    """Measure some hundred operations of the native engine, and fit the rates of each class.

    ``cache`` is the size of the largest cache in bytes. Takes a few seconds.

    Raises:
        BackendError: if the native engine was not built.
    """
    library = open_library()
    team = library.team(threads)
    try:
        halves = (False, True) if precision == "bf16" else (False,)
        programs = [program for half in halves for program in _operations(half)]
        measured = _measure(programs, library, team, cache)
    finally:
        team.close()
    rates, spread = {}, {}
    for kind in dict.fromkeys(kind for kind, _, _ in measured):
        amounts = np.array([a for k, a, _ in measured if k == kind])
        seconds = np.array([s for k, _, s in measured if k == kind])
        rates[kind] = tuple(fit(amounts, seconds).tolist())
        ratios = amounts @ np.array(rates[kind]) / seconds
        low, high = np.percentile(ratios, [10, 90]).tolist()
        spread[kind] = (low, high)
    return Rates(rates, len(measured), spread)


def fit(amounts: F64, seconds: F64) -> F64:
    """Seconds for one unit of each amount, none negative, with the least relative errors.

    ``amounts`` is (operations, amounts). Least squares; what comes out negative is left out and the
    rest solved again.
    """
    scaled = amounts / seconds[:, None]
    size = np.abs(scaled).max(axis=0)
    used = [column for column in range(amounts.shape[1]) if size[column] > 0]
    found = np.zeros(amounts.shape[1])
    while used:
        matrix = scaled[:, used] / size[used]
        solved = np.linalg.lstsq(matrix, np.ones(len(seconds)), rcond=None)[0]
        if solved.min() >= 0:
            found[used] = solved / size[used]
            break
        used.pop(int(solved.argmin()))
    return found


def _measure(
    programs: Sequence[Program], library: Library, team: Team, cache: int
) -> list[tuple[str, tuple[float, ...], float]]:
    """Class, amounts and median seconds of each operation; every program is one."""
    kernels = Kernels(library, library.levels[-1])
    ask = kernels.scratch_bytes(team.threads)
    places = [_places(program) for program in programs]
    works, needed = [], []
    for program, (offsets, end) in zip(programs, places, strict=True):
        (op,) = program.ops
        (missing,) = missing_bytes(program, offsets, cache)
        works.append(work_of(op, program, kernels.vectors.lanes, missing))
        needed.append(end + ask(op, program))
    memory = _aligned(max(needed))
    bases: dict[Storage, int] = {"arena": memory.ctypes.data}
    channels, size = _BETWEEN
    between = _sum(channels, size, "f32")
    others, end = _places(between)
    apart = _aligned(end)
    apart[:] = _FILL
    spoiled: dict[Storage, int] = {"arena": apart.ctypes.data}
    spoil = bind(between, kernels, Memory(between, spoiled, others, {}), [0])
    nanoseconds: list[list[int]] = [[] for _ in programs]
    for _ in range(_ROUNDS):
        for index, (program, (offsets, end)) in enumerate(zip(programs, places, strict=True)):
            memory[: needed[index]] = _FILL
            scratch = [bases["arena"] + end]
            bound = bind(program, kernels, Memory(program, bases, offsets, {}), scratch)
            calls = (Call * (2 * _RUNS))(*[bound.calls[0], spoil.calls[0]] * _RUNS)
            taken = (ctypes.c_int64 * (2 * _RUNS))()
            library.run(calls, team, taken)
            nanoseconds[index] += list(taken)[2::2]
    return [
        (work.kind, work.amounts, 1e-9 * median(found))
        for work, found in zip(works, nanoseconds, strict=True)
    ]


def _aligned(nbytes: int) -> npt.NDArray[np.uint8]:
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + nbytes]


def _places(program: Program) -> tuple[dict[str, int], int]:
    offsets, end = {}, 0
    for name, tensor in program.tensors.items():
        offsets[name] = end
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _operations(half: bool) -> list[Program]:
    """Every class of work at several sizes, in 16 bits or in float32."""
    dtype: Dtype = "bf16" if half else "f32"
    made = [
        program
        for size in _SIZES
        for channels in _CHANNELS
        for program in _convolutions(*channels, size, dtype)
    ]
    large, size = _LARGE
    for channels in large:
        made += _convolutions(*channels, size, dtype)
    made += [_sum(8, size, dtype) for size in (*_SIZES, size)]
    made += [_packing(*channels) for channels in _CHANNELS if not half]
    return made


def _convolutions(inputs: int, outputs: int, size: Shape, dtype: Dtype) -> Iterator[Program]:
    """Convolutions and weight gradients of the kinds that restoration networks are made of."""
    compute = "bf16" if dtype == "bf16" else "f32"
    ends = (inputs, outputs, size, dtype)
    yield _conv(*ends, (3, 3), 1, False, "winograd", "f32", ("bias",))
    yield _conv(*ends, (3, 3), 1, True, "winograd", "f32", ("add0", "mask"))
    yield _conv(*ends, (1, 1), 1, False, "direct", compute, ("bias",))
    yield _conv(*ends, (3, 3), 1, False, "direct", compute, ("bias", "add0"))
    yield _conv(*ends, (3, 3), 1, True, "direct", compute, ("mask",))
    yield _conv(*ends, (4, 4), 2, False, "direct", compute, ("bias",))
    yield _conv(*ends, (4, 4), 2, True, "direct", compute, ("mask",))
    for kernel, stride in (((3, 3), 1), ((1, 1), 1), ((4, 4), 2), ((3, 3), 2)):
        yield _weight_grad(*ends, kernel, stride, compute)


def _conv(
    inputs: int,
    outputs: int,
    size: Shape,
    dtype: Dtype,
    kernel: Shape,
    stride: int,
    transposed: bool,
    algorithm: str,
    compute: str,
    roles: Sequence[str],
) -> Program:
    y_size = [n * stride if transposed else n // stride for n in size]
    attributes: dict[str, Any] = {
        **_window(kernel, stride),
        "transposed": transposed,
        "slope": None if "mask" in roles else 0.1,
        "mask_slope": 0.1 if "mask" in roles else None,
        "out_channels": (0, outputs),
        "algorithm": algorithm,
        "compute": compute,
    }
    tensors = {
        "x0": Tensor("x0", (1, inputs, *size), dtype),
        "y": Tensor("y", (1, outputs, *y_size), dtype),
    }
    for role in roles:
        image = role != "bias"
        shape = (1, outputs, *y_size) if image else (outputs,)
        tensors[role] = Tensor(role, shape, dtype if image else "f32")
    names = {role: role for role in ("x0", *roles)}
    op = Op("conv", names, {"y": "y"}, attributes)
    count = packed_elements(op, Program(tensors, (op,), ()))
    tensors["weight"] = Tensor("weight", (count,))
    return Program(tensors, (op.with_inputs(weight="weight"),), ())


def _weight_grad(
    inputs: int, outputs: int, size: Shape, dtype: Dtype, kernel: Shape, stride: int, compute: str
) -> Program:
    attributes = {**_window(kernel, stride), "bias_of": "grad_y", "compute": compute}
    tensors = {
        "x0": Tensor("x0", (1, inputs, *size), dtype),
        "grad_y": Tensor("grad_y", (1, outputs, *(n // stride for n in size)), dtype),
        "weight": Tensor("weight", (outputs, inputs, *kernel)),
        "bias": Tensor("bias", (outputs,)),
    }
    outs = {role: role for role in ("weight", "bias")}
    op = Op("conv_weight_grad", {"x0": "x0", "grad_y": "grad_y"}, outs, attributes)
    return Program(tensors, (op,), ())


def _window(kernel: Shape, stride: int) -> dict[str, Any]:
    pad = (kernel[0] - 1) // 2
    return {
        "kernel": kernel,
        "strides": (stride, stride),
        "pads": (pad,) * 4,
        "dilations": (1, 1),
        "group": 1,
    }


def _sum(channels: int, size: Shape, dtype: Dtype) -> Program:
    tensors = {name: Tensor(name, (1, channels, *size), dtype) for name in ("x0", "x1", "y")}
    expression = (("add", (("x", 0), ("x", 1))),)
    op = Op("pointwise", {"x0": "x0", "x1": "x1"}, {"y": "y"}, {"expression": expression})
    return Program(tensors, (op,), ())


def _packing(inputs: int, outputs: int) -> Program:
    attributes: dict[str, Any] = {
        **_window((3, 3), 1),
        "transposed": False,
        "out_channels": (0, outputs),
        "algorithm": "winograd",
        "compute": "f32",
    }
    shape = (outputs, inputs, 3, 3)
    tensors = {"weight": Tensor("weight", shape), "y": Tensor("y", (prod(shape[:2]) * 36,))}
    op = Op("pack_weights", {"weight": "weight"}, {"y": "y"}, attributes)
    return Program(tensors, (op,), ())
