from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.kernels.cuda.build import BuildError, find_nvcc
from edgeadapt.runtime.doctor.fatbin import Held, read, read_file
from support.gpu_code import fatbin, library, library_for

KERNEL = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2.0f; }\n'
NAMES = st.lists(st.sampled_from(["75", "80", "87", "90a", "100f", "120", "ptx80", "ptx120a"]))


def codes(held: Held) -> Counter[str]:
    return Counter(held.sass) + Counter({f"ptx{name}": n for name, n in held.ptx.items()})


@given(st.lists(NAMES, max_size=4), st.sampled_from([0, 8, 24]))
def test_every_piece_is_counted(parts, gap):
    content = bytes(gap).join(fatbin(names) for names in parts)
    held = read(library(content))
    assert codes(held) == Counter(name for names in parts for name in names)
    assert held.complete
    assert held.language == ((9, 0) if held.ptx else (0, 0))


def test_a_fatbin_is_read_without_an_elf_file_around_it():
    held = read(fatbin(["87", "110"]) + bytes(8) + fatbin(["87"]))
    assert held.sass == {"87": 2, "110": 1}


def test_of_an_elf_file_only_the_sections_with_gpu_code_count():
    assert not read(library(fatbin(["87"]), ".rodata"))
    assert read(library(fatbin(["87"]), "__nv_relfatbin")).sass == {"87": 1}
    assert not read(library(fatbin(["87"]), ".nv_fatbin_and_more"))


def test_intermediate_code_for_the_linker_runs_nowhere():
    content = bytearray(fatbin(["90"]))
    content[16] = 8  # the kind
    held = read(bytes(content))
    assert not held
    assert held.complete


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_failing(content):
    for data in (content, fatbin([])[:4] + content, b"\x7fELF\x02\x01" + content):
        read(data)
        read(library(data))


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8), st.data())
def test_a_damaged_file_is_read_without_failing(faults, data):
    content = bytearray(library_for("75", "87", "ptx80"))
    for place, value in faults:
        content[place % len(content)] = value
    read(bytes(content[: data.draw(st.integers(0, len(content)))]))


@pytest.mark.parametrize("cut", [17, 40, 70, 95])
def test_a_fatbin_that_is_cut_off_is_not_complete(cut):
    assert not read(fatbin(["87", "90"])[:cut]).complete
    assert read(fatbin(["87", "90"])).complete


@pytest.mark.parametrize("place", [16 + 4, 16 + 8 + 1])  # bytes of the header, and of the code
def test_a_piece_of_impossible_size_ends_its_fatbin_and_no_more(place):
    content = bytearray(fatbin(["80", "87"]))
    content[place] = 32
    held = read(bytes(content) + fatbin(["90"]), deadline=time.monotonic() + 5)
    assert not held.complete
    assert held.sass["87"] == 0
    assert held.sass["90"] == 1


def test_what_no_time_is_left_for_is_not_read():
    held = read(fatbin(["87"] * 2000), deadline=time.monotonic() - 1)
    assert not held.complete
    assert 0 < held.sass["87"] < 2000


def test_an_empty_file_holds_nothing(tmp_path):
    (tmp_path / "empty").touch()
    assert read_file(tmp_path / "empty") == Held(complete=False)


def test_many_pieces_take_little_time(tmp_path):
    # As many as there are in the fullest of cuDNN's files; their size does not matter.
    content = library(b"".join(fatbin(["80", "87"]) for _ in range(8000)))
    (tmp_path / "packed").write_bytes(content)
    began = time.process_time()
    assert read_file(tmp_path / "packed").sass == {"80": 8000, "87": 8000}
    assert time.process_time() - began < 0.5


def test_files_that_nvcc_made(tmp_path):
    try:
        nvcc = find_nvcc()
    except BuildError as error:
        pytest.skip(str(error))
    (tmp_path / "twice.cu").write_text(KERNEL)
    known = subprocess.run([*nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    wanted = [one for one in ("87", "90a", "100f", "110") if f"compute_{one.rstrip('af')}\n"
              in known.stdout]  # fmt: skip
    codes_of = [f"-gencode=arch=compute_{one},code=sm_{one}" for one in wanted]
    codes_of.append("-gencode=arch=compute_87,code=compute_87")
    for compressed in ([], ["-Xfatbin=-compress-all"], ["--no-compress"]):
        command = [*nvcc, *codes_of, *compressed, "-fatbin", "twice.cu", "-o", "made.fatbin"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        held = read_file(tmp_path / "made.fatbin")
        assert held.sass == dict.fromkeys(wanted, 1)
        assert held.ptx == {"87": 1}
        assert held.complete
        assert held.language >= (8, 0)
    subprocess.run(
        [*nvcc, *codes_of, "-cudart=none", "-c", "twice.cu", "-o", "made.o"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    assert read_file(tmp_path / "made.o").sass == dict.fromkeys(wanted, 1)
    _compare_with_cuobjdump(tmp_path / "made.o")


def _compare_with_cuobjdump(path):
    """NVIDIA's own tool, where it is installed; it leaves the f of sm_100f out."""
    program = shutil.which("cuobjdump")
    if program is None:
        return
    said = subprocess.run([program, "--list-elf", path], capture_output=True, text=True, check=True)
    found = Counter(re.findall(r"\.sm_(\d+a?)", said.stdout))
    held = read_file(path)
    assert found == Counter({name.rstrip("f"): count for name, count in held.sass.items()})
