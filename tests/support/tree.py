"""The source tree that the tests lie in: its folders, its files, its configuration."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Of an editable install, which compiles into the tree.
COMPILED = ("_native.so", "_kernels.fatbin", "_kernels.json")
FOLDERS: dict[str, str] = PYPROJECT["tool"]["setuptools"]["package-dir"]  # package -> folder
IGNORED = shutil.ignore_patterns("__pycache__", *COMPILED)


def package_files() -> dict[str, Path]:
    """Path inside the installed package, "edgeadapt/bundle.py", -> source file, for every file."""
    return {
        f"{package.replace('.', '/')}/{file.relative_to(ROOT / folder).as_posix()}": file
        for package, folder in FOLDERS.items()
        for file in sorted((ROOT / folder).rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts and file.name not in COMPILED
    }


def tracked_files() -> list[Path]:
    """Every file under version control; without git, or outside a clone, those of the folders."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode == 0:
        files = [ROOT / name for name in listing.stdout.split("\0") if name]
        return [file for file in files if file.is_file()]
    folders = [*FOLDERS.values(), "tests", "docs", "examples", "tools"]
    top = [file for file in ROOT.iterdir() if file.is_file()]
    return top + [f for folder in folders for f in (ROOT / folder).rglob("*") if f.is_file()]


def copy_tree(place: Path) -> Path:
    """Copy to ``place`` what building the package and viewing it needs; returns ``place``."""
    for folder in (*FOLDERS.values(), "tools"):
        shutil.copytree(ROOT / folder, place / folder, ignore=IGNORED)
    for name in ("pyproject.toml", "setup.py", "VERSION", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, place / name)
    return place
