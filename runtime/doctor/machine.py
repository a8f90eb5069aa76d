"""What the checks look at, put together once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgeadapt.runtime.doctor import jetson
from edgeadapt.runtime.doctor.libraries import Installed, held_document, read_libraries
from edgeadapt.runtime.doctor.system import System, numbers
from edgeadapt.runtime.doctor.target import Target


@dataclass
class Machine:
    """A system, and the GPU that it is judged by."""

    system: System
    target: Target | None
    bundle: str = ""
    read: list[dict[str, Any]] = field(default_factory=list)  # libraries that were looked into
    would_use: str = ""  # the backend; a check says it

    @property
    def gpu_here(self) -> bool:
        """Whether something may run on a GPU of this machine."""
        return self.target is not None and self.target.present

    @property
    def release(self) -> tuple[int, ...]:
        """Of Jetson Linux; () elsewhere."""
        found = jetson.parse_release(self.system.text("etc/nv_tegra_release"))
        return found or numbers(self.system.debian.get("nvidia-l4t-core", ""))[:3]

    def read_libraries(self, libraries: list[Installed]) -> Any:
        """What files hold; remembers it for the report."""
        found = read_libraries(self.system, libraries)
        for library, held in found:
            row = {"kind": library.kind, "path": str(library.path), **held_document(held)}
            self.read.append(row)
        return found
