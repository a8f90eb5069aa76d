"""Which convolutions cuDNN computes on a device: measured once, and remembered.

Own kernels and cuDNN's plans are timed on the device, as parts of a recorded graph. What is fastest
is taken if it gives what the own kernel gives. $EDGEADAPT_CUDNN is "measure" (also where it is not
set), "rule" or "off". By rule cuDNN gets convolutions on tensor cores whose input and output both
have at least 32 channels, with the first of its plans that can be built.

Each choice is a file in the user's cache. What else is found there is measured again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgeadapt.errors import EdgeadaptError, one_line
from edgeadapt.kernels.cuda.library import cache_folder
from edgeadapt.runtime.cuda.cudnn_conv import Convolution, convolution
from edgeadapt.runtime.cuda.cudnn_plans import BuiltPlan, Cudnn, CudnnError
from edgeadapt.runtime.cuda.device import DeviceInfo
from edgeadapt.runtime.plan.ir import Program

LEAST_CHANNELS = 32  # of those that cuDNN gets by rule
LEAST_GAIN = 0.97  # of the own kernel's time: what is nearly as fast stays with it
MODES = ("measure", "rule", "off")
OWN = ""  # instead of a plan's name


class CacheWarning(UserWarning):
    """A remembered choice cannot be read or kept."""


@dataclass(frozen=True)
class Choice:
    """What computes a convolution: a plan of cuDNN, or ``plan`` is `OWN`."""

    plan: str
    own_seconds: float | None = None  # measured
    seconds: float | None = None  # measured, of the plan


# Times cuDNN's plans and the own kernel, and compares what they give.
Measure = Callable[[Cudnn, Convolution], Choice]


@dataclass
class Engines:
    """Which plans there are for the convolutions of programs on one device."""

    cudnn: Cudnn
    measure: Measure
    mode: str = MODES[0]
    folder: Path | None = None  # of choices
    _plans: dict[Convolution, BuiltPlan | None] = field(default_factory=dict)

    def choose(self, program: Program) -> Program:
        """The same with ``algorithm`` "cudnn" on convolutions that cuDNN computes."""
        if self.mode not in MODES[:2]:
            return program
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
            try:
                self._plans[what] = self._find(what)
            except (CudnnError, EdgeadaptError):  # for this one; others may do
                self._plans[what] = None
        return self._plans[what]

    def close(self) -> None:
        """Give back all plans and cuDNN; nothing of it is running or recorded any more."""
        self._plans.clear()
        self.cudnn.close()

    def _find(self, what: Convolution) -> BuiltPlan | None:
        if self.mode == "rule":
            return next(self.cudnn.candidates(what), None) if by_rule(what) else None
        key = cache_key(self.cudnn.device.info, self.cudnn.version, what)
        folder = self.folder or cache_folder() / "cudnn"
        choice = read_choice(folder, key)
        if choice is not None and choice.plan != OWN:
            with suppress(CudnnError):
                return self.cudnn.find(what, choice.plan)
            choice = None
        if choice is None:
            choice = self.measure(self.cudnn, what)
            keep_choice(folder, key, choice)
        return None if choice.plan == OWN else self.cudnn.find(what, choice.plan)


def by_rule(what: Convolution) -> bool:
    """Whether cuDNN computes it where nothing is measured."""
    return what.compute != "f32" and min(what.filter[:2]) >= LEAST_CHANNELS


def cache_key(info: DeviceInfo, cudnn: str, what: Convolution) -> dict[str, str]:
    """All that a measurement depends on."""
    return {
        "device": f"{info.name}, {info.architecture}, {info.multiprocessors} multiprocessors",
        "driver": ".".join(map(str, info.driver)),
        "libraries": ", ".join(f"{name} {number}" for name, number in info.libraries),
        "cudnn": cudnn,
        "edgeadapt": version("edgeadapt"),
        "convolution": what.key,
    }


def read_choice(folder: Path, key: Mapping[str, str]) -> Choice | None:
    """What was remembered; None if nothing was. What is damaged is as if it were not there."""
    place = _place(folder, key)
    try:
        text = place.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _warn(f"{place} cannot be read ({error})")
        return None
    try:
        found = json.loads(text)
        if found["key"] != dict(key) or found["sum"] != _sum(found["choice"]):
            raise ValueError("it is of something else, or was changed")
        return _choice(**found["choice"])
    except (ValueError, TypeError, KeyError) as error:
        _warn(f"{place} is not used ({one_line(error)})")
        return None


def keep_choice(folder: Path, key: Mapping[str, str], choice: Choice) -> None:
    """Remember a choice; who reads at the same time sees all of it, or nothing."""
    fields = vars(choice)
    place = _place(folder, key)
    text = json.dumps({"key": dict(key), "choice": fields, "sum": _sum(fields)}, indent=1)
    new = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, delete=False) as file:
            new = Path(file.name)
            file.write(text)
        new.replace(place)
    except OSError as error:
        if new is not None:
            new.unlink(missing_ok=True)
        _warn(f"{place} cannot be written ({error}): convolutions are measured again next time")


def _choice(plan: Any, own_seconds: Any, seconds: Any) -> Choice:
    numbers = (own_seconds, seconds)
    if not isinstance(plan, str) or not all(n is None or isinstance(n, float) for n in numbers):
        raise ValueError("what it holds is no choice")
    return Choice(plan, own_seconds, seconds)


def _place(folder: Path, key: Mapping[str, str]) -> Path:
    return folder / f"{_sum(dict(key))[:32]}.json"


def _sum(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _warn(text: str) -> None:
    warnings.warn(text, CacheWarning, stacklevel=4)
