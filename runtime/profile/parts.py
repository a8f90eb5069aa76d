"""What a profile is made of: the parts of a run, the run as a whole, and a machine's peaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Group = Literal["forward", "input-gradient", "weight-gradient", "pointwise", "optimizer", "other"]
GROUPS: tuple[Group, ...] = get_args(Group)


def median_index(seconds: Sequence[float]) -> int:
    """Which of several times is the median one, the lower of two."""
    order = sorted(range(len(seconds)), key=seconds.__getitem__)
    return order[(len(order) - 1) // 2]


class Operand(NamedTuple):
    """A tensor that an operation reads or writes."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # "f32" "bf16" "f16" "bool"


@dataclass(frozen=True)
class Operation:
    """What is known of an operation before it runs.

    What was fused into one operation is one: its group, work and precision are those of its main
    part, a convolution's if there is one.
    """

    # Unique within a run; names the layer where it is known: "conv 32->16 3x3 @ 360x640 #12".
    name: str
    kind: str  # of the engine's plan; of ONNX Runtime: the ONNX operator
    # "forward", "input-gradient", "weight-gradient": convolutions and matrix products, by what
    # their result is. "pointwise": all that does a fixed amount for each element, in either
    # direction. "optimizer": the step. "other": bringing weights in order, copies to and from a
    # device.
    group: Group
    # Of a convolution and its gradients, multiplications and additions of the direct algorithm,
    # whatever algorithm runs; what is fused with it is not counted. None: not known.
    flops: int | None
    moved_bytes: int | None  # if each operand crosses to memory once; None: not known
    compute: str  # the precision whose peak it is held to: "fp32" "tf32" "fp16" "bf16"
    again: bool = False  # computes what was computed before, for lack of memory to keep it
    reads: tuple[Operand, ...] = ()  # () too where the engine does not say
    writes: tuple[Operand, ...] = ()  # each tensor is written by one operation


@dataclass(frozen=True)
class Part(Operation):
    """One operation of a program, as an engine ran it."""

    begin: float = 0.0  # seconds from the run's begin, in the median run: for a trace
    seconds: tuple[float, ...] = ()  # of each repetition, in the order of `Profile.whole`


@dataclass(frozen=True)
class Peaks:
    """What a machine can do at most, as measured on it."""

    flops_per_second: Mapping[str, float]  # by the precision that is computed in
    bytes_per_second: float  # read and written to equal parts, in arrays larger than any cache
    threads: int
    how: str  # in a few words, for people


@dataclass(frozen=True)
class Profile:
    """A step of adaptation or a restoration, taken apart."""

    backend: str  # as asked for: "native", "onnxruntime", "cuda"
    graph: str  # its file in the bundle
    height: int  # of what is computed: the image's, padded to the bundle's multiple
    width: int
    precision: str
    threads: int | None  # None: the engine's own choice
    parts: tuple[Part, ...]  # in the order in which they ran
    whole: tuple[float, ...]  # seconds of each run with profiling on
    # The same work with profiling off, taken in turn with the others: what profiling costs is the
    # difference of the medians.
    plain: tuple[float, ...]

    @property
    def median(self) -> int:
        """Which repetition is the median one by ``whole``, the lower of two."""
        return median_index(self.whole)

    @property
    def overhead(self) -> float:
        """What profiling adds to the median run, as a part of it: 0.01 is one percent."""
        return self.whole[self.median] / self.plain[median_index(self.plain)] - 1

    @property
    def covered(self) -> float:
        """The sum of the parts over the whole, in the median run."""
        return sum(part.seconds[self.median] for part in self.parts) / self.whole[self.median]
