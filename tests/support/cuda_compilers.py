"""Compilers of CUDA kernels for tests: the real one, where it is, and one that only pretends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeadapt.kernels.cuda.build import BuildError, find_nvcc

try:
    NVCC = " ".join(find_nvcc())
    _WHY = ""
except BuildError as error:
    NVCC, _WHY = "", str(error)
needs_nvcc = pytest.mark.skipif(not NVCC, reason=_WHY)

# A file says itself what a kernel takes: lines of `// KERNEL REGISTERS SHARED STACK SPILL`.
_PROGRAM = """#!{python}
import pathlib, re, sys
arguments = sys.argv[1:]
with open("{log}", "a") as log:
    log.write(" ".join(arguments) + "\\n")
if arguments == ["--version"]:
    sys.exit(print("Cuda compilation tools, release 13.0, V{version}"))
if arguments == ["--list-gpu-arch"]:
    sys.exit(print("{known}"))
source, made = pathlib.Path(arguments[-3]), pathlib.Path(arguments[-1])
text = source.read_text()
if "#error" in text:
    sys.exit("error: #error directive")
codes = [c for a in arguments for c in re.findall(r"sm_\\w+", a)]
for code in codes:
    for name, *numbers in re.findall(r"// (\\w+) (\\d+) (\\d+) (\\d+) (\\d+)", text):
        registers, shared, stack, spill = numbers
        print(f"ptxas info    : Compiling entry function '{{name}}' for '{{code}}'")
        print(f"ptxas info    : Function properties for {{name}}")
        print(f"    {{stack}} bytes stack frame, {{spill}} bytes spill stores, "
              "0 bytes spill loads")
        smem = f", {{shared}} bytes smem" if int(shared) else ""
        print(f"ptxas info    : Used {{registers}} registers, used 0 barriers{{smem}}, 8 bytes c")
sections = "".join(f"\\0.text.{{name}}\\0" for name in re.findall(r"// (\\w+)", text))
made.write_text(sections + " ".join(codes) + text)
"""


class PretendedNvcc:
    """Writes such a program into ``folder``; it knows the architectures in ``known``."""

    def __init__(self, folder: Path, known: tuple[int, ...] = (86, 87, 90, 110, 120)) -> None:
        self.path = folder / "nvcc"
        self._log, self._known = folder / "calls", known
        self.write()

    def write(self, version: str = "13.0.88") -> None:
        """Make it another version."""
        known = "\\n".join(f"compute_{one}" for one in self._known)
        text = _PROGRAM.format(python=sys.executable, log=self._log, known=known, version=version)
        self.path.write_text(text)
        self.path.chmod(0o755)

    def compiled(self) -> list[str]:
        """The names of the files that were compiled since the last call, in any order."""
        calls = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.unlink(missing_ok=True)
        return sorted(Path(call.split()[-3]).name for call in calls if ".cu " in call)
