"""Compiled CUDA kernels: what a GPU is offered, and what is compiled where it runs."""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType, SimpleNamespace

import pytest

from edgeadapt.errors import BackendError
from edgeadapt.kernels.cuda import build as cuda
from edgeadapt.kernels.cuda.build import BuildError, Options
from edgeadapt.kernels.cuda.library import (
    CSRC,
    Kernels,
    cache_folder,
    compile_with_nvrtc,
    has_kernel,
    open_kernels,
)
from support.cuda_compilers import NVCC, PretendedNvcc, needs_nvcc


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
    made = PretendedNvcc(tmp_path)
    monkeypatch.setenv("NVCC", str(made.path))
    monkeypatch.setenv("EDGEADAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEADAPT_CUDA_ARCHITECTURES", "")
    return made


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "one.cu").write_text('#include "shared.cuh"\n// copy 20 0 0 0\n// fill 18 64 8 0\n')
    (folder / "shared.cuh").write_text("")
    (folder / "two.cu").write_text("// add 30 1024 0 0\n")
    return folder


@pytest.fixture
def kernels(tmp_path, nvcc, sources):
    """With sm_90 and sm_120 built in, and PTX of the former; no compiler is there any more."""
    options = Options(architectures=("sm_90", "sm_120"), sources=sources, say=lambda text: None)
    cuda.build(tmp_path / "place", tmp_path / "objects", options)
    nvcc.compiled()
    nvcc.path.rename(tmp_path / "hidden")
    return Kernels(tmp_path / "place", sources)


@pytest.fixture
def found(tmp_path, nvcc):
    """Call it, and there is a compiler."""
    return lambda: (tmp_path / "hidden").rename(nvcc.path)


def offered(kernels, kernel, architecture):
    """All images as (module, architectures in it), and the error after the last."""
    result = []
    images = kernels.images(kernel, architecture)
    try:
        for module, image in images:
            assert has_kernel(image, kernel)
            known = ("sm_86", "sm_90", "sm_100", "sm_120")
            result.append((module, *(one for one in known if one.encode() in image)))
    except BackendError as error:
        return result, error
    return pytest.fail("the last image is followed by no error")


def test_a_gpu_that_was_compiled_for_takes_what_ships(kernels):
    assert kernels.architectures == ("sm_90", "sm_120")
    assert sorted(kernels.names()) == ["add", "copy", "fill"]
    assert kernels.resources("fill", "sm_120")["shared_bytes"] == 64
    shipped = [("one", "sm_90", "sm_120")]
    found, error = offered(kernels, "fill", "sm_90")
    assert found == shipped
    assert "no CUDA kernel 'fill' for sm_90: _kernels.fatbin holds sm_90, sm_120, and no CUDA" in (
        error.message
    )
    assert offered(kernels, "add", "sm_120")[0] == [("two", "sm_90", "sm_120")]


def test_another_gpu_takes_what_is_compiled_for_it_once(kernels, nvcc, found):
    found()
    first = next(kernels.images("fill", "sm_86"))
    assert nvcc.compiled() == ["one.cu"]
    assert next(kernels.images("copy", "sm_86")) == first
    assert nvcc.compiled() == []
    assert first[0] == "one"
    assert b"sm_86" in first[1]


def test_without_a_compiler_a_newer_gpu_takes_ptx_and_an_older_one_nothing(kernels):
    assert offered(kernels, "fill", "sm_100")[0] == [("one", "sm_90", "sm_120")]
    found, error = offered(kernels, "fill", "sm_86")
    assert found == []
    assert "nor is NVRTC there: pip install cuda-bindings" in error.message


def test_a_compiler_goes_before_ptx(kernels, found):
    found()
    assert offered(kernels, "add", "sm_100")[0] == [
        ("two", "sm_100"),
        ("two", "sm_90", "sm_120"),
    ]


def test_what_was_kept_and_is_refused_is_compiled_again(kernels, nvcc, found):
    found()
    next(kernels.images("add", "sm_86"))
    nvcc.compiled()
    assert offered(kernels, "add", "sm_86")[0] == [("two", "sm_86")] * 2
    assert nvcc.compiled() == ["two.cu"]


def test_what_ships_is_not_taken_if_its_source_has_changed(kernels, nvcc, found, sources):
    (sources / "shared.cuh").write_text("// a fix\n")
    found()
    assert offered(kernels, "fill", "sm_90")[0] == [("one", "sm_90")]
    assert nvcc.compiled() == ["one.cu"]
    assert offered(kernels, "add", "sm_90")[0][0] == ("two", "sm_90", "sm_120")


def test_where_nothing_ships_all_is_compiled(tmp_path, nvcc, sources):
    kernels = Kernels(tmp_path / "nothing", sources)
    assert kernels.architectures == ()
    assert next(kernels.images("add", "sm_86"))[0] == "two"
    assert nvcc.compiled() == ["two.cu"]
    _, error = offered(kernels, "absent", "sm_86")
    assert error.message.endswith("holds nothing, and no file of csrc/ has such a kernel")


def test_a_kernel_that_does_not_exist_is_named(kernels):
    with pytest.raises(BackendError, match=r"no CUDA kernel 'absent' in _kernels\.fatbin\. Hint: "):
        next(kernels.images("absent", "sm_90"))


def test_damage_is_reported(tmp_path, kernels):
    fatbin, record = kernels.fatbin, tmp_path / "place" / cuda.RECORD
    fatbin.write_bytes(fatbin.read_bytes()[:-20])
    with pytest.raises(BackendError, match=r"_kernels\.fatbin is cut off"):
        next(kernels.images("add", "sm_90"))
    record.write_text("{")
    with pytest.raises(BackendError, match="what was recorded of the CUDA kernels cannot be read"):
        Kernels(tmp_path / "place")


def test_a_folder_that_cannot_be_written_costs_time_only(kernels, found, monkeypatch, tmp_path):
    found()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEADAPT_CACHE", str(tmp_path / "file/cache"))
    assert next(kernels.images("add", "sm_86"))[0] == "two"


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEADAPT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("EDGEADAPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "edgeadapt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/edgeadapt"


@pytest.fixture
def nvrtc(monkeypatch):
    """Stands for cuda.bindings.nvrtc, and keeps what it was asked."""
    made = SimpleNamespace(accepts=True, text=b"", options=[])

    def create(text, name, headers, contents, names):
        made.text = text
        return 0, name

    def compile_it(program, count, options):
        made.options = options[:count]
        return (0 if made.accepts else SimpleNamespace(name="NVRTC_ERROR_COMPILATION"),)

    def fill(text):  # as cuda-bindings does, which writes into a bytes object
        def write(program, buffer):
            assert len(buffer) == len(text)
            ctypes.memmove(ctypes.c_char_p(buffer), text, len(text))

        return lambda program: (0, len(text)), write

    made.nvrtcResult = SimpleNamespace(NVRTC_SUCCESS=0)
    made.nvrtcCreateProgram, made.nvrtcCompileProgram = create, compile_it
    made.nvrtcGetProgramLogSize, made.nvrtcGetProgramLog = fill(b"one.cu(3)")
    made.nvrtcGetCUBINSize, made.nvrtcGetCUBIN = fill(b"\0.text.add\0")
    made.nvrtcDestroyProgram = lambda program: (0,)
    package = ModuleType("cuda.bindings")
    package.nvrtc = made
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    return made


def test_nvrtc_compiles_where_nvcc_is_not(kernels, nvrtc, sources):
    assert next(kernels.images("add", "sm_86")) == ("two", b"\0.text.add\0")
    assert nvrtc.text == (sources / "two.cu").read_bytes()
    assert b"--gpu-architecture=sm_86" in nvrtc.options
    assert f"--include-path={sources}".encode() in nvrtc.options


def test_what_nvrtc_refuses_is_shown(kernels, nvrtc):
    nvrtc.accepts = False
    _, error = offered(kernels, "add", "sm_86")
    assert "NVRTC refuses two.cu for sm_86: NVRTC_ERROR_COMPILATION one.cu(3)" in error.message


def test_bindings_without_the_library_are_as_none(kernels, nvrtc, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("Failed to dlopen libnvrtc.so.13")

    monkeypatch.setattr(nvrtc, "nvrtcCreateProgram", refuse)
    with pytest.raises(BackendError, match="nor is NVRTC there"):
        next(kernels.images("add", "sm_86"))


def test_this_installation_opens_with_or_without_kernels():
    kernels = open_kernels()
    assert open_kernels() is kernels
    assert all(one.startswith("sm_") for one in kernels.architectures)


@needs_nvcc
def test_a_real_compiler_makes_a_module_with_the_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("NVCC", NVCC)
    monkeypatch.setenv("EDGEADAPT_CACHE", str(tmp_path))
    module, image = next(Kernels(tmp_path).images("copy", "sm_86"))
    assert (module, image[:4]) == ("copy", b"\x7fELF")
    assert has_kernel(image, "fill")
    assert not has_kernel(image, "cop")
    assert len(list(tmp_path.glob("copy-sm_86-*.cubin"))) == 1


def test_real_nvrtc_compiles_every_file_if_it_is_there():
    pytest.importorskip("cuda.bindings", reason="NVRTC comes with cuda-bindings, which is not here")
    try:
        image = compile_with_nvrtc(CSRC / "copy.cu", "sm_86")
    except BuildError as error:
        pytest.fail(str(error))
    if image is None:
        pytest.skip("cuda-bindings is here, libnvrtc is not")
    assert has_kernel(image, "copy")
