"""Make `.view/edgeadapt`, the package as one tree, for tools that do not follow the folder map.

Type checkers and import-linter look for a package in a folder of its name; ours lie under other
names (``[tool.setuptools.package-dir]``). The tree holds a relative link for every source file;
run this again after adding a file.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def make_view(root: Path) -> Path:
    """Replace ``root/.view`` by links to the files of the mapped folders; returns ``root/.view``.

    pyright passes over folders with a dot unless its configuration lies in there: its table of
    ``pyproject.toml`` is copied as ``pyrightconfig.json``.
    """
    tool = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    view = root / ".view"
    shutil.rmtree(view, ignore_errors=True)
    for package, folder in tool["setuptools"]["package-dir"].items():
        for file in (root / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                _link(view.joinpath(*package.split("."), file.relative_to(root / folder)), file)
    (view / "pyrightconfig.json").write_text(json.dumps(tool["pyright"]), encoding="utf-8")
    return view


def _link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(os.path.relpath(target, place.parent))


if __name__ == "__main__":
    make_view(Path(__file__).resolve().parent.parent)
