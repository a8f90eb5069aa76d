"""Rules of CONTRIBUTING.md that a machine can hold and no linter does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from support.tree import PYPROJECT, ROOT, package_files, tracked_files

MODULES = sorted(file for file in package_files().values() if file.suffix == ".py")
DOCUMENTS = [file for file in tracked_files() if file.suffix == ".md"]


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def is_text(file: Path) -> bool:
    return b"\0" not in file.read_bytes()[:4096]


@pytest.mark.parametrize("file", [f for f in tracked_files() if f.suffix == ".py"], ids=name)
def test_a_file_is_short_enough_to_read(file):
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{name(file)} has {lines} lines: what are its two subjects?"


@pytest.mark.parametrize("file", MODULES, ids=name)
def test_a_module_does_not_call_a_gradient_dx(file):
    # To people who work with images that is a horizontal difference.
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assert not {found for found in names if re.fullmatch(r"d[xywb]|d(out|inp|loss)", found)}


@pytest.mark.parametrize("file", MODULES, ids=name)
def test_a_module_defers_its_annotations(file):
    # Python 3.10 must read annotations of later versions.
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    defines = any(isinstance(n, ast.FunctionDef | ast.ClassDef | ast.AnnAssign) for n in tree.body)
    assert "__future__" in imports or not defines


def test_no_file_knows_the_machine_it_was_written_on():
    # In two parts, so that this file is not found.
    places = "|".join(("ho" + "me", "ro" + "ot", "wo" + "rk", "Us" + "ers", "mn" + "t"))
    hosts = "|".join((r"py" + r"pi\.org", r"python" + r"hosted\.org", r"download\.py" + r"torch"))
    pattern = re.compile(rf"(?<![\w.~*-])/(?:{places})/|{hosts}")
    found = [
        f"{name(file)}: {line.strip()[:80]}"
        for file in tracked_files()
        if is_text(file)
        for line in file.read_text(encoding="utf-8").splitlines()
        if pattern.search(line)
    ]
    assert found == []


def test_the_lines_of_documents_fit_a_screen():
    # Tables cannot be broken.
    found = [
        f"{name(file)}:{number}"
        for file in DOCUMENTS
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120 and not line.startswith("|")
    ]
    assert found == []


def test_documents_refer_to_files_that_exist():
    for file in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", file.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (file.parent / target).exists(), f"{name(file)} refers to {target}"


def test_every_dependency_says_what_it_is_for():
    project = PYPROJECT["project"]
    page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    mentioned = set(re.findall(r"[\w-]+", page))
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *(t for extra in extras.values() for t in extra)]:
        package = re.match(r"[\w-]+", text)
        assert package is not None
        if package[0] == project["name"]:  # one extra that includes another
            continue
        assert package[0] in mentioned, f"docs/dependencies.md does not say why {package[0]}"


def test_the_makefile_installs_a_torch_that_the_package_accepts():
    (pinned,) = re.findall(r"^TORCH \?= torch==(\S+)$", (ROOT / "Makefile").read_text(), re.M)
    for extra in ("export", "train"):
        (wanted,) = [
            text.removeprefix("torch==").removesuffix("*")
            for text in PYPROJECT["project"]["optional-dependencies"][extra]
            if text.startswith("torch==")
        ]
        assert pinned.startswith(wanted)


def test_every_field_of_a_manifest_is_documented():
    import dataclasses

    from edgeadapt import bundle

    page = (ROOT / "docs/bundle.md").read_text(encoding="utf-8")
    kinds = (bundle.Manifest, bundle.Model, bundle.ImageContract, bundle.Adaptation)
    for kind in (*kinds, bundle.Parameter, bundle.Scope):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in page, f"{kind.__name__}.{field.name}"
