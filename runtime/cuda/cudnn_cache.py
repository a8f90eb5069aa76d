"""What was found out about convolutions on a device, kept for the next process: a file for each.

A file holds all that its contents depend on, and a sum of them. One that is damaged, or of
something else, is as if it were not there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

from edgeadapt.errors import one_line
from edgeadapt.runtime.cuda.cudnn_conv import UIDS, Convolution
from edgeadapt.runtime.cuda.cudnn_graph import VERSION
from edgeadapt.runtime.cuda.device import DeviceInfo

OWN = ""  # instead of a plan's name


class CacheWarning(UserWarning):
    """Something remembered cannot be read or kept."""


@dataclass(frozen=True)
class Choice:
    """What computes a convolution: a plan of cuDNN, or ``plan`` is `OWN`."""

    plan: str
    own_seconds: float | None = None  # measured
    seconds: float | None = None  # measured, of the plan
    refused: str = ""  # cuDNN's words, where it takes no such convolution
    data: bytes | None = None  # the plan as `Cudnn.dump` gives it


def cache_key(info: DeviceInfo, cudnn: str, mode: str, what: Convolution) -> dict[str, str]:
    """All that a choice and a plan depend on."""
    return {
        "device": f"{info.name}, {info.architecture}, {info.multiprocessors} multiprocessors",
        "driver": ".".join(map(str, info.driver)),
        "libraries": ", ".join(f"{name} {number}" for name, number in info.libraries),
        "cudnn": cudnn,
        "edgeadapt": f"{version('edgeadapt')}, graphs {VERSION}, {' '.join(UIDS)}",
        "mode": mode,
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
        warn(f"{place} cannot be read ({one_line(error)})")
        return None
    try:
        found = json.loads(text)
        if found["key"] != dict(key) or found["sum"] != _sum(found["choice"]):
            raise ValueError("it is of something else, or was changed")
        return _choice(**found["choice"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        warn(f"{place} is not used ({one_line(error)})")
        return None


def keep_choice(folder: Path, key: Mapping[str, str], choice: Choice) -> None:
    """Remember a choice; who reads at the same time sees all of it, or nothing."""
    data = None if choice.data is None else base64.b64encode(choice.data).decode("ascii")
    fields = {**vars(choice), "data": data}
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
        warn(f"{place} cannot be written ({error}): convolutions are measured again next time")


def warn(text: str) -> None:
    """Say what is wrong with the cache; everything works without it."""
    warnings.warn(text, CacheWarning, stacklevel=4)


def _choice(plan: Any, own_seconds: Any, seconds: Any, refused: Any, data: Any) -> Choice:
    numbers = (own_seconds, seconds)
    if not all(isinstance(text, str) for text in (plan, refused, data or "")) or not all(
        number is None or (isinstance(number, float) and isfinite(number)) for number in numbers
    ):
        raise ValueError("what it holds is no choice")
    found = None if data is None else base64.b64decode(data, validate=True)
    return Choice(plan, own_seconds, seconds, refused, found)


def _place(folder: Path, key: Mapping[str, str]) -> Path:
    return folder / f"{_sum(dict(key))[:32]}.json"


def _sum(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
