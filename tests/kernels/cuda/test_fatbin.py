"""One file with all kernels for all GPUs: what is in it, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from edgeadapt.kernels.cuda import build as cuda
from edgeadapt.kernels.cuda.build import BuildError, Options
from support.cuda_compilers import NVCC, PretendedNvcc, needs_nvcc
from support.tree import ROOT

SOURCES = sorted(cuda.CSRC.glob("*.cu"))
MAGIC = bytes.fromhex("50ed55ba")  # what a fatbin begins with


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
    for name in ("NVCC", "CUDA_HOME", "CUDA_PATH", "EDGEADAPT_CUDA_ARCHITECTURES"):
        monkeypatch.delenv(name, raising=False)
    return PretendedNvcc(tmp_path)


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "shared.cuh").write_text('#include "deeper.cuh"\n')
    (folder / "deeper.cuh").write_text("")
    (folder / "one.cu").write_text('#include "shared.cuh"\n// copy 20 0 0 0\n// fill 18 64 8 0\n')
    (folder / "two.cu").write_text("// add 30 1024 0 0\n")
    return folder


@pytest.fixture
def make(tmp_path, nvcc, sources):
    said = []

    def run(**rest):
        options = Options(nvcc=str(nvcc.path), sources=sources, say=said.append, **rest)
        fatbin = cuda.build(tmp_path / "place", tmp_path / "objects", options)
        return fatbin, json.loads(fatbin.with_name(cuda.RECORD).read_text())

    run.said = said
    return run


def test_the_record_says_where_each_module_is_and_what_its_kernels_take(make, sources):
    fatbin, record = make()
    data = fatbin.read_bytes()
    assert record["architectures"] == list(cuda.ARCHITECTURES)
    assert (record["ptx"], record["nvcc"]) == ("compute_87", "13.0.88")
    assert sorted(record["modules"]) == ["one", "two"]
    for stem, module in record["modules"].items():
        assert module["offset"] % 16 == 0
        part = data[module["offset"] : module["offset"] + module["bytes"]]
        assert (sources / f"{stem}.cu").read_bytes() in part
    assert record["modules"]["one"]["kernels"]["fill"]["sm_110"] == {
        **{"registers": 18, "shared_bytes": 64},
        **{"stack_bytes": 8, "spill_bytes": 0},
    }
    assert cuda.summary(record).splitlines()[0] == (
        "sm_87: 3 kernels, up to 30 registers and 1024 bytes of shared memory, "
        "1 with arrays in memory, no spills"
    )


def test_only_what_changed_is_compiled_again(make, nvcc, sources):
    make()
    assert nvcc.compiled() == ["one.cu", "two.cu"]
    make()
    assert nvcc.compiled() == []
    (sources / "deeper.cuh").write_text("// another\n")
    make()
    assert nvcc.compiled() == ["one.cu"]
    make(architectures=("sm_90",))
    assert nvcc.compiled() == ["one.cu", "two.cu"]
    nvcc.write(version="13.1.0")
    make(architectures=("sm_90",))
    assert nvcc.compiled() == ["one.cu", "two.cu"]


def test_a_spill_is_refused_also_the_second_time_and_leaves_what_was_built(make, sources):
    fatbin, _ = make()
    before = fatbin.read_bytes()
    (sources / "two.cu").write_text("// add 255 0 16 16\n")
    for _ in range(2):
        with pytest.raises(BuildError, match=r"two\.cu: add spills 16 bytes on sm_87 \(255 reg"):
            make()
    assert fatbin.read_bytes() == before


def test_what_a_function_spills_counts_for_the_kernel_that_calls_it():
    said = """
ptxas info    : Compiling entry function 'outer' for 'sm_87'
ptxas info    : Function properties for outer
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 32 bytes cumulative stack size, 48 bytes smem
ptxas info    : Function properties for inner
    16 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
"""
    assert cuda.parse_resources(said)["outer"]["sm_87"] == {
        **{"registers": 32, "shared_bytes": 48},
        **{"stack_bytes": 16, "spill_bytes": 16},
    }


def test_a_name_is_given_once(make, sources):
    (sources / "two.cu").write_text("// copy 20 0 0 0\n")
    with pytest.raises(BuildError, match="more than one file has a kernel copy"):
        make()


def test_what_the_compiler_refuses_is_shown_and_refused_again(make, sources):
    (sources / "two.cu").write_text("#error\n")
    for _ in range(2):
        with pytest.raises(BuildError, match=r"(?s)nvcc .*two\.cu .*error: #error directive"):
            make()


def test_an_older_compiler_leaves_out_what_it_does_not_know(make, tmp_path, nvcc):
    PretendedNvcc(tmp_path, known=(87, 90))
    _, record = make()
    assert record["architectures"] == ["sm_87", "sm_90"]
    assert f"{nvcc.path} is too old for sm_110, sm_120: left out" in make.said
    with pytest.raises(BuildError, match="does not know sm_110"):
        make(architectures=("sm_90", "sm_110"))
    PretendedNvcc(tmp_path, known=(50,))
    with pytest.raises(BuildError, match="does not know sm_87, sm_90, sm_110, sm_120"):
        make()


def test_a_variable_says_which_architectures(make, monkeypatch):
    monkeypatch.setenv("EDGEADAPT_CUDA_ARCHITECTURES", "sm_120,sm_90")
    _, record = make()
    assert record["architectures"] == ["sm_120", "sm_90"]
    assert record["ptx"] == "compute_90"
    monkeypatch.setenv("EDGEADAPT_CUDA_ARCHITECTURES", "none")
    with pytest.raises(BuildError, match="asks for none"):
        make()


def test_the_compiler_is_looked_for_where_installers_put_it(tmp_path, monkeypatch, nvcc):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(cuda.sysconfig, "get_path", lambda kind: str(tmp_path / "site"))
    usual = Path("/usr/local/cuda/bin/nvcc")
    if not usual.exists():
        with pytest.raises(BuildError, match="no CUDA compiler: nvcc is not on PATH"):
            cuda.find_nvcc()
    found = []
    for variable, place in (
        ("", tmp_path / "site/nvidia/cu13/bin"),
        ("CUDA_HOME", tmp_path / "home/bin"),
        ("PATH", tmp_path / "path"),
        ("NVCC", tmp_path / "elsewhere"),
    ):
        place.mkdir(parents=True)
        PretendedNvcc(place)
        value = {"CUDA_HOME": place.parent, "NVCC": place / "nvcc"}.get(variable, place)
        if variable:
            monkeypatch.setenv(variable, str(value))
        found.append(cuda.find_nvcc() == [str(place / "nvcc")])
    assert found == [True] * 4
    monkeypatch.setenv("NVCC", "no-such-compiler")
    with pytest.raises(BuildError, match="no CUDA compiler: there is no no-such-compiler"):
        cuda.find_nvcc()


def test_the_command_line_says_where_it_went_or_what_is_wrong(tmp_path, nvcc, capsys, monkeypatch):
    folder, objects = tmp_path / "out", tmp_path / "objects"
    given = ["-o", str(folder), "--objects", str(objects), "--nvcc", str(nvcc.path)]
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc/one.cu").write_text("// copy 20 0 0 0\n")
    monkeypatch.setattr(cuda, "Options", partial(Options, sources=tmp_path / "csrc"))
    assert cuda.main(given) == 0
    said = capsys.readouterr().err
    assert "sm_120: 1 kernels, up to 20 registers" in said
    assert said.endswith(f"{folder / cuda.FATBIN}\n")
    assert cuda.main([*given, "--architectures", "sm_1"]) == 1
    assert "does not know sm_1" in capsys.readouterr().err


@needs_nvcc
def test_a_real_spill_is_found(tmp_path):
    # 96 values that live at once, in a block whose threads get 64 registers each.
    (tmp_path / "greedy.cu").write_text(
        'extern "C" __global__ void __launch_bounds__(1024) greedy(const float* x, float* y) {\n'
        "  float v[96];\n#pragma unroll\n"
        "  for (int i = 0; i < 96; ++i) {\n    v[i] = x[i * 1024 + threadIdx.x];\n"
        '    asm volatile("" : "+f"(v[i]));\n  }\n#pragma unroll\n'
        "  for (int i = 0; i < 96; ++i)\n"
        "    y[i * 1024 + threadIdx.x] = v[i] * v[(i * 7 + 5) % 96];\n}\n"
    )
    options = Options(NVCC, ("sm_87",), sources=tmp_path, say=lambda text: None)
    with pytest.raises(BuildError, match=r"greedy\.cu: greedy spills \d+ bytes on sm_87 \(64 reg"):
        cuda.build(tmp_path, tmp_path / "objects", options)
    assert not (tmp_path / cuda.FATBIN).exists()


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_file_compiles_for_every_gpu_without_a_spill(source, tmp_path):
    # In the folder that an install from this tree compiles in, too: once is enough.
    options = Options(NVCC, cuda.ARCHITECTURES, only=(source.stem,), say=lambda text: None)
    fatbin = cuda.build(tmp_path, ROOT / "build/cuda", options)
    record = json.loads(fatbin.with_name(cuda.RECORD).read_text())
    (module,) = record["modules"].values()
    assert fatbin.read_bytes()[:4] == MAGIC
    assert module["kernels"]
    for taken in module["kernels"].values():
        assert sorted(taken) == sorted(cuda.ARCHITECTURES)
        assert all(one["registers"] > 0 and one["spill_bytes"] == 0 for one in taken.values())
        assert all(one["shared_bytes"] <= 48 * 1024 for one in taken.values())
