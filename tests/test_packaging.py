"""What ships: every file of the tree, nothing else, and on a device without PyTorch it imports."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from importlib.resources import files
from pathlib import Path

import pytest

from edgeadapt.kernels.build import LEVELS
from edgeadapt.kernels.cuda.build import ARCHITECTURES, CSRC, FATBIN, RECORD
from edgeadapt.kernels.cuda.library import Kernels
from edgeadapt.kernels.library import Library
from edgeadapt.shipped import SHIPPED
from support.cuda_compilers import PretendedNvcc
from support.tree import COMPILED, FOLDERS, PYPROJECT, ROOT, copy_tree, package_files, tracked_files

BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def build(kind: str, place: Path, **variables: str) -> Path:
    source, result = copy_tree(place / "source"), place / "result"
    result.mkdir()
    unset = dict.fromkeys(("CXX", "EDGEADAPT_LEVELS", "EDGEADAPT_CUDA_ARCHITECTURES"), "")
    environment = {**os.environ, **unset, "NVCC": "no-such-compiler", **variables}
    # A stranger's build shows warnings of setuptools; ours must have none of its deprecations.
    command = [sys.executable, "-W", "error::DeprecationWarning:setuptools", "-c", BUILD]
    done = subprocess.run(
        [*command, kind, str(result)],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    for variable, without in (
        ("CXX", "its native engine: no C++ compiler: found none of "),
        ("NVCC", "its CUDA kernels: no CUDA compiler: there is no "),
    ):
        missing = kind == "build_wheel" and environment[variable] == "no-such-compiler"
        assert (f"edgeadapt is installed WITHOUT {without}" in done.stderr) == missing
    return result / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Without a compiler: any machine can build it."""
    place = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build("build_wheel", place, CXX="no-such-compiler")) as archive:
        yield archive


def files_of(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_files_of_the_tree_and_no_other(wheel):
    assert files_of(wheel) == set(package_files())
    assert {"edgeadapt/errors.py", "edgeadapt/py.typed"} <= files_of(wheel)  # is not empty
    weights = {f"edgeadapt/bundles/{name}.bundle/weights.safetensors" for name in SHIPPED}
    assert weights <= files_of(wheel)
    assert wheel.filename is not None
    assert wheel.filename.endswith("-py3-none-any.whl")


def test_with_a_compiler_the_wheel_holds_the_library_too_and_is_for_this_platform(tmp_path):
    name = "edgeadapt/kernels/_native.so"
    level = next(iter(LEVELS.get(platform.machine(), ["baseline"])))  # one will do
    file = build("build_wheel", tmp_path, EDGEADAPT_LEVELS=level)
    assert re.search(r"-py3-none-\w+_\w+\.whl$", file.name)
    with zipfile.ZipFile(file) as wheel:
        assert files_of(wheel) == {*package_files(), name}
        library = Library(Path(wheel.extract(name, tmp_path)))
    assert library.levels == (level,)
    assert "sgd" in library.names(level)


# Compiles nothing: notes what it was asked, and leaves the files that it was to make.
CROSS_COMPILER = """#!{python}
import pathlib, sys
arguments = sys.argv[1:]
with open("{log}", "a") as log:
    log.write(" ".join(arguments) + "\\n")
for flag in ("-MF", "-o"):
    if flag in arguments:
        pathlib.Path(arguments[arguments.index(flag) + 1]).write_text("made:")
"""


def test_a_wheel_for_another_processor_is_compiled_by_its_compiler_and_named_after_it(tmp_path):
    other = "x86_64" if platform.machine() == "aarch64" else "aarch64"
    compiler, log = tmp_path / f"{other}-linux-gnu-g++", tmp_path / "calls"
    compiler.write_text(CROSS_COMPILER.format(python=sys.executable, log=log))
    compiler.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    file = build("build_wheel", tmp_path, PATH=path, _PYTHON_HOST_PLATFORM=f"linux-{other}")
    assert file.name.endswith(f"-py3-none-linux_{other}.whl")
    with zipfile.ZipFile(file) as wheel:
        assert wheel.read("edgeadapt/kernels/_native.so") == b"made:"
    calls = log.read_text()
    for level in LEVELS[other]:
        assert f"-DEA_LEVEL={level} " in calls
    assert ("-mavx2" in calls) == (other == "x86_64")


def test_with_nvcc_the_wheel_holds_the_cuda_kernels_too_and_is_for_any_platform(tmp_path):
    nvcc = PretendedNvcc(tmp_path)  # the real one takes minutes
    file = build("build_wheel", tmp_path, CXX="no-such-compiler", NVCC=str(nvcc.path))
    assert file.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(file) as wheel:
        names = {f"edgeadapt/kernels/cuda/{name}" for name in (FATBIN, RECORD)}
        assert files_of(wheel) == {*package_files(), *names}
        for name in names:
            wheel.extract(name, tmp_path)
    kernels = Kernels(tmp_path / "edgeadapt/kernels/cuda")
    assert kernels.architectures == ARCHITECTURES
    assert nvcc.compiled() == sorted(source.name for source in CSRC.glob("*.cu"))


def test_who_wants_the_cuda_kernels_gets_no_wheel_without_them(tmp_path):
    with pytest.raises(RuntimeError, match="EDGEADAPT_REQUIRE_CUDA is set: no CUDA compiler"):
        build("build_wheel", tmp_path, CXX="no-such-compiler", EDGEADAPT_REQUIRE_CUDA="1")


def test_the_wheel_says_what_it_needs(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    metadata = HeaderParser().parsestr(wheel.read(name).decode())
    base = [text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text]
    assert len(base) == len(PYPROJECT["project"]["dependencies"])
    assert not any(text.startswith(("torch", "lightning")) for text in base)
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Version"] == (ROOT / "VERSION").read_text().strip()
    folder = name.removesuffix("METADATA")
    assert "edgeadapt = edgeadapt.cli:main" in wheel.read(folder + "entry_points.txt").decode()
    assert b"Apache License" in wheel.read(folder + "licenses/LICENSE")
    assert "Tag: py3-none-any" in wheel.read(folder + "WHEEL").decode()


def test_the_source_archive_holds_what_the_wheel_is_made_of(tmp_path):
    with tarfile.open(build("build_sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {file.relative_to(ROOT).as_posix() for file in package_files().values()}
    assert sources <= names
    assert {
        "pyproject.toml",
        "setup.py",
        "LICENSE",
        "README.md",
        "VERSION",
        "tools/view.py",
    } <= names
    assert not [name for name in names if name.endswith(COMPILED)]


def test_the_manifest_names_every_folder_and_file_at_the_top():
    tops = {file.relative_to(ROOT).parts[0] for file in tracked_files()} - {".gitignore", ".ci"}
    mentioned = set((ROOT / "MANIFEST.in").read_text().split())
    assert tops - mentioned == {"MANIFEST.in"}  # which comes by itself


def test_every_package_is_listed():
    found = {
        ".".join([package, *file.parent.relative_to(ROOT / folder).parts])
        for package, folder in FOLDERS.items()
        for file in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(found)


def test_the_installed_package_is_this_tree():
    # A forgotten reinstall would have us test yesterday's code.
    here = Path(str(files("edgeadapt"))).parent
    for name, source in package_files().items():
        package = max((p for p in FOLDERS if name.startswith(p.replace(".", "/") + "/")), key=len)
        installed = Path(str(files(package))) / name.removeprefix(package.replace(".", "/") + "/")
        assert installed.is_file(), f"{name} is not installed beside {here}: install again"
        assert installed.read_bytes() == source.read_bytes(), f"{name} is old: install again"


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_a_folder_of_the_tree_does_not_import_as_a_package(folder, monkeypatch):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (package,) = [name for name, value in FOLDERS.items() if value == folder]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: this folder is installed as")
    assert f"`{package}`" in last


def test_the_device_side_imports_without_torch(tmp_path):
    # Run away from the tree, with every import of what a device does not have refused.
    names = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in package_files()
        if name.endswith(".py")
        and not name.startswith(tuple(f"edgeadapt/{x}/" for x in ("training", "export")))
        and not name.startswith("edgeadapt/benchmarks/")
        and not name.endswith("__main__.py")
    ]
    program = f"""
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "lightning_fabric", "skimage"):
            raise ImportError(f"{{name}} is not on the device")

sys.meta_path.insert(0, Refuse())
for name in {names!r}:
    importlib.import_module(name)
print(len(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "edgeadapt.runtime" in names
    assert "edgeadapt.bundle" in names


def test_the_version_is_that_of_the_file():
    import edgeadapt

    assert edgeadapt.__version__ == (ROOT / "VERSION").read_text().strip()
