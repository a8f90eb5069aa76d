"""The build, on one small kernel and one level where that will do."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeadapt.kernels import build as native
from edgeadapt.kernels.build import LEVELS, BuildError, Options, build
from edgeadapt.kernels.library import Library
from support.tree import ROOT

CSRC = ROOT / "kernels/csrc"
STEMS = sorted(p.stem for p in CSRC.glob("*.cpp") if p.stem not in ("library", "table", "team"))
PARTS = {"pack_weights": "conv", "winograd": "conv"}  # file -> the operation that it is a part of
LEVEL = next(iter(LEVELS.get(platform.machine(), ["baseline"])))


@pytest.mark.parametrize("stem", STEMS)
def test_every_kernel_file_has_a_launcher_a_reference_and_a_test(stem):
    name = PARTS.get(stem, stem)
    wanted = (f"kernels/{name}.py", f"kernels/reference/{name}.py", f"tests/kernels/test_{name}.py")
    assert [file for file in wanted if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("stem", [*STEMS, "table"])
def test_a_kernel_shares_no_symbol_with_another_level(stem, tmp_path):
    # The linker keeps one copy of an inline function or a template that two files have. If it is
    # that of a higher level, the lower one ends at an instruction that the CPU does not have.
    (tmp_path / "operations.h").write_text("")
    made = tmp_path / "kernel.o"
    command = [*native.find_compiler(Options()), *native.FLAGS, "-O1", "-DEA_LEVEL=some_level"]
    command += ["-I", str(tmp_path), "-c", str(CSRC / f"{stem}.cpp"), "-o", str(made)]
    subprocess.run(command, check=True)
    listing = subprocess.run(
        ["nm", "--extern-only", "--defined-only", "--format=posix", str(made)],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.split()[0] for line in listing.stdout.splitlines()}
    assert all(name.startswith("_ZN9edgeadapt10some_level") for name in names)
    offered = {f"{stem}_entries", f"{stem}_entry_count"} if stem in STEMS else {"operations"}
    assert {
        re.sub(r"^_ZN9edgeadapt10some_level\d+(\w+)E$", r"\1", name) for name in names
    } == offered


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the sources that a test may change, with one kernel."""
    folder = tmp_path / "kernels"
    (folder / "csrc").mkdir(parents=True)
    for file in CSRC.iterdir():
        if file.suffix == ".h" or file.stem in ("library", "table", "team", "update"):
            shutil.copy2(file, folder / "csrc")
    monkeypatch.setattr(native, "HERE", folder)
    return folder / "csrc"


def test_only_what_changed_is_compiled_again(sources, tmp_path):
    said: list[str] = []

    def compiled(**options: object) -> list[str]:
        said.clear()
        build(tmp_path, tmp_path / "objects", Options(levels=(LEVEL,), say=said.append, **options))
        return sorted(text.removeprefix("compiling ") for text in said)

    def touch(name: str) -> None:
        with (sources / name).open("a") as stream:
            stream.write("// changed\n")

    once, every = ["library", "team"], [f"table.{LEVEL}", f"update.{LEVEL}"]
    assert compiled() == sorted([*once, *every])
    assert compiled() == []
    touch("update.cpp")
    assert compiled() == [f"update.{LEVEL}"]
    touch("table.h")
    assert compiled() == ["library", f"table.{LEVEL}"]
    assert compiled(flags=("-DANOTHER",)) == sorted([*once, *every])
    (sources / "another.cpp").write_text(
        '#include "abi.h"\nnamespace edgeadapt { namespace EA_LEVEL {'
        'EA_ENTRIES(another, {"other", nullptr, nullptr, 8}); }}\n'
    )
    assert compiled(flags=("-DANOTHER",)) == [f"another.{LEVEL}", f"table.{LEVEL}"]
    assert Library(tmp_path / native.LIBRARY).names(LEVEL) == ("other", "sgd", "adam")


def test_another_build_leaves_the_file_alone_that_a_process_may_have_open(sources, tmp_path):
    place = tmp_path / "place"
    library = build(place, tmp_path / "objects", Options(levels=(LEVEL,)))
    opened = tmp_path / "opened"
    opened.hardlink_to(library)
    before = opened.read_bytes()
    build(place, tmp_path / "objects", Options(levels=(LEVEL,), flags=("-DANOTHER", "-O0")))
    assert not opened.samefile(library)
    assert opened.read_bytes() == before != library.read_bytes()
    assert list(place.iterdir()) == [library]


def test_what_the_compiler_refuses_is_shown_and_refused_again(sources, tmp_path):
    (sources / "update.cpp").write_text("int 5;\n")
    options = Options(levels=(LEVEL,))
    for _ in range(2):
        with pytest.raises(BuildError, match=r"(?s)-c .*update\.cpp .*error: "):
            build(tmp_path, tmp_path / "objects", options)
    assert not (tmp_path / native.LIBRARY).exists()


def test_the_library_needs_nothing_but_libc_and_shows_nothing_but_its_functions(sources, tmp_path):
    library = build(tmp_path, tmp_path / "objects", Options(levels=(LEVEL,)))
    headers = subprocess.run(["objdump", "-p", library], capture_output=True, text=True, check=True)
    needed = re.findall(r"NEEDED +(\S+)", headers.stdout)
    assert {name.partition(".")[0] for name in needed} <= {
        "libc",
        "libm",
        "libpthread",
        "ld-linux-",
    }
    shown = subprocess.run(
        ["nm", "-D", "--defined-only", "--format=posix", library],
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(line.startswith("ea_") for line in shown.stdout.splitlines())


def test_what_cannot_be_built_is_said(monkeypatch, tmp_path):
    def refusal(**options: object) -> str:
        with pytest.raises(BuildError) as caught:
            build(tmp_path, tmp_path, Options(**options))
        return str(caught.value)

    assert refusal(compiler="no-such-compiler") == (
        "no C++ compiler: found none of no-such-compiler"
    )
    assert refusal(levels=("mmx",)).startswith("no level 'mmx'; there are ")
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    assert refusal() == "no C++ compiler: found none of g++, c++, clang++"


def test_a_compiler_that_does_not_know_a_level_leaves_it_out(sources, tmp_path, monkeypatch):
    levels = {LEVEL: (), "future": ("-mno-such-instructions",)}
    monkeypatch.setitem(native.LEVELS, native._machine(), levels)
    said: list[str] = []
    library = build(tmp_path, tmp_path / "objects", Options(say=said.append))
    assert "is too old for future: left out" in said[0]
    assert Library(library).levels == (LEVEL,)


def test_the_command_line(sources, tmp_path, capsys):
    words = ["-o", str(tmp_path), "--objects", str(tmp_path / "objects"), "--levels", LEVEL]
    assert native.main([*words, "--only", "update", "--jobs", "1"]) == 0
    assert capsys.readouterr().err.endswith(f"{tmp_path / native.LIBRARY}\n")
    assert Path(tmp_path / native.LIBRARY).is_file()
    assert native.main([*words, "--compiler", "no-such-compiler"]) == 1
    assert "no C++ compiler" in capsys.readouterr().err
