"""The import contracts of pyproject.toml catch what they are there to catch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.tree import copy_tree

PLANTS = {
    "torch in the runtime": ("runtime/backend.py", "import torch"),
    "torch in a function of the runtime": ("runtime/backend.py", "def f():\n    import torch.nn"),
    "torch in a kernel's reference": ("kernels/reference/__init__.py", "import torch"),
    "torch in core": ("core/files.py", "from torch import Tensor"),
    "the exporter in the runtime": ("runtime/backend.py", "import edgeadapt.export"),
    "the runtime in the exporter": ("export/planted.py", "import edgeadapt.runtime.backend"),
    "the trainer in the exporter": ("export/planted.py", "import edgeadapt.training"),
    "the runtime in core": ("core/files.py", "import edgeadapt.runtime.backend"),
    "a kernel in the exporter": ("export/planted.py", "import edgeadapt.kernels"),
    "the benchmarks in the runtime": ("runtime/backend.py", "import edgeadapt.benchmarks"),
    "a module no layer names": ("core/another.py", "from __future__ import annotations"),
}


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    subprocess.run([sys.executable, "tools/view.py"], cwd=tree, check=True)
    program = Path(sys.executable).parent / "lint-imports"
    return subprocess.run(
        [str(program), "--no-cache", "--no-logo"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / ".view")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tree_keeps_its_contracts(tmp_path):
    done = lint_imports(copy_tree(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "4 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(("file", "line"), PLANTS.values(), ids=PLANTS.keys())
def test_a_planted_import_is_found(tmp_path, file, line):
    with (copy_tree(tmp_path) / file).open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


def test_the_exporter_may_use_the_reference_of_a_kernel(tmp_path):
    (copy_tree(tmp_path) / "export/planted.py").write_text("import edgeadapt.kernels.reference\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 0, done.stdout
