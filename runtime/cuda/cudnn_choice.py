"""Which convolutions cuDNN computes on a device: measured once, and remembered with the plan.

Own kernels and cuDNN's plans are timed on the device, as parts of a recorded graph. What is fastest
is taken if it gives what the own kernel gives. $EDGEADAPT_CUDNN is "measure" (also where it is not
set), "rule" or "off". By rule cuDNN gets convolutions on tensor cores whose input and output both
have at least 32 channels, with the first of its plans that can be built.

What was chosen is kept in the user's cache: a plan as cuDNN gives it away, or that it takes no such
convolution. A plan that cannot be loaded is built again, and what cannot be built is measured anew.
Measuring ends after $EDGEADAPT_CUDNN_SECONDS, two minutes where it is not set, with the largest
convolutions first: the rest stays with own kernels until the next process goes on.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeadapt.errors import EdgeadaptError, one_line
from edgeadapt.kernels.cuda.library import cache_folder
from edgeadapt.runtime.cuda.cudnn_cache import (
    OWN,
    Choice,
    cache_key,
    keep_choice,
    read_choice,
    warn,
)
from edgeadapt.runtime.cuda.cudnn_conv import Convolution, convolution
from edgeadapt.runtime.cuda.cudnn_plans import BuiltPlan, Cudnn, CudnnError
from edgeadapt.runtime.plan.ir import Program

LEAST_CHANNELS = 32  # of those that cuDNN gets by rule
MODES = ("measure", "rule", "off")
SECONDS = 120.0  # of measuring and building, in one process

# Times cuDNN's plans and the own kernel, and compares what they give; the plan if one is chosen.
Measure = Callable[[Cudnn, Convolution], tuple[Choice, BuiltPlan | None]]


class UnmeasuredWarning(UserWarning):
    """Time was over before all convolutions were measured."""


@dataclass
class Engines:
    """Which plans there are for the convolutions of programs on one device."""

    cudnn: Cudnn
    measure: Measure
    mode: str = MODES[0]
    folder: Path | None = None  # of choices
    seconds: float = SECONDS
    _spent: float = 0.0
    _left: int = 0  # convolutions for which no time was left
    _plans: dict[Convolution, BuiltPlan | None] = field(default_factory=dict)

    def choose(self, program: Program) -> Program:
        """The same with ``algorithm`` "cudnn" on convolutions and weight gradients that cuDNN
        computes."""
        if self.mode not in MODES[:2]:
            return program
        found = (convolution(op, program) for op in program.ops)
        counts = Counter(what for what in found if what is not None)
        before = self._left
        for largest in sorted(counts, key=lambda what: -counts[what] * what.products):
            self.plan(largest)
        if self._left > before:
            warnings.warn(
                f"{self._left - before} of {len(counts)} convolutions stay with own kernels this "
                f"time: measuring the others for cuDNN took {self.seconds:.0f} s. The next process "
                "goes on; EDGEADAPT_CUDNN_SECONDS says for how long.",
                UnmeasuredWarning,
                stacklevel=2,
            )
        ops = [
            op.with_attributes(algorithm="cudnn")
            if (what := convolution(op, program)) is not None and self.plan(what) is not None
            else op
            for op in program.ops
        ]
        return replace(program, ops=tuple(ops))

    def plan(self, what: Convolution) -> BuiltPlan | None:
        """The plan that computes a convolution; None is an own kernel."""
        if what not in self._plans:
            begin = time.monotonic()
            try:
                self._plans[what] = self._find(what)
            except (CudnnError, EdgeadaptError):  # for this one, and this time; others may do
                self._plans[what] = None
            self._spent += time.monotonic() - begin
        return self._plans[what]

    def close(self) -> None:
        """Give back all plans and cuDNN; nothing of it is running or recorded any more."""
        self._plans.clear()
        self.cudnn.close()

    def _find(self, what: Convolution) -> BuiltPlan | None:
        if self.mode == "rule" and not by_rule(what):
            return None
        key = cache_key(self.cudnn.device.info, self.cudnn.version, self.mode, what)
        folder = self.folder or cache_folder() / "cudnn"
        choice = found = read_choice(folder, key)
        plan = None
        if choice is not None:
            if choice.plan == OWN:
                return None
            if (plan := self._loaded(choice)) is not None:
                return plan
            plan = self._built(what, choice)
        if choice is None or plan is None:
            if self._spent >= self.seconds:
                self._left += 1
                return None
            choice, plan = self._chosen(what)
        choice = replace(choice, data=None if plan is None else self.cudnn.dump(plan))
        # A plan that was measured is one of several of its graph, and keeps all of them in memory.
        alone = self._loaded(choice)
        if alone is None:
            choice = replace(choice, data=None)
        if choice != found:
            keep_choice(folder, key, choice)
        return alone or plan

    def _chosen(self, what: Convolution) -> tuple[Choice, BuiltPlan | None]:
        """What is best on this device now.

        Raises:
            BackendError: if the device has no memory for it, or failed.
        """
        try:
            if self.mode == "rule":
                first = next(self.cudnn.candidates(what), None)
                return Choice(OWN if first is None else first.name), first
            return self.measure(self.cudnn, what)
        except CudnnError as error:
            self.cudnn.device.synchronize()  # what has failed since is no refusal
            return Choice(OWN, refused=one_line(error)), None

    def _loaded(self, choice: Choice) -> BuiltPlan | None:
        """The plan that was remembered; None if it is to be built again."""
        if choice.data is None:
            return None
        try:
            return self.cudnn.load(choice.plan, choice.data)
        except CudnnError as error:
            warn(f"a plan of cuDNN cannot be loaded ({error}): it is built instead")
            return None

    def _built(self, what: Convolution, choice: Choice) -> BuiltPlan | None:
        """The plan of that name; None if there is none any more."""
        try:
            return self.cudnn.find(what, choice.plan)
        except CudnnError as error:
            warn(f"a plan of cuDNN cannot be built ({error}): another is looked for")
            return None


def by_rule(what: Convolution) -> bool:
    """Whether cuDNN computes it where nothing is measured."""
    return what.compute != "f32" and min(what.filter[:2]) >= LEAST_CHANNELS
