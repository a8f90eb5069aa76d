"""The host that CUDA kernels are tested on: its arithmetic, and the faults that it must find."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from edgeadapt.kernels.cuda.copy import copy, fill
from edgeadapt.kernels.cuda.launch import Launch, Work
from edgeadapt.kernels.cuda.tensors import DTYPES, TensorArgs
from support.cuda_host import SANITIZE, HostError, library_of, run_on_host
from support.strided import to_bf16, wide

HOST_ONLY = True  # its probes are not among the kernels that ship
FAULTS = (
    *("none", "no_barrier", "early_exit", "two_barriers", "behind_the_array"),
    *("behind_shared_memory", "unwritten_shared_memory", "half_a_warp"),
)
ends_the_process = pytest.mark.skipif(bool(SANITIZE), reason="a sanitizer ends the process")


class ProbeArgs(ctypes.Structure):
    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("kind", ctypes.c_int64),
    )


def probe(name, a, y, *, b=None, count=0, kind=0, blocks=1, threads=32):
    pointer = b.ctypes.data if b is not None else None
    arguments = ProbeArgs(a.ctypes.data, pointer, y.ctypes.data, count, kind)
    return Work((Launch(f"probe_{name}", (blocks, 1, 1), (threads, 1, 1), arguments),))


def elements_of_fragments(k):
    """Row and column of every element a thread holds of A, B and C, as the PTX ISA lists them for
    mma.m16n8k16 (16-bit types) and mma.m16n8k8 (tf32): index arrays (32, elements)."""
    lane = np.arange(32)[:, None]
    group, thread = lane // 4, lane % 4
    i = np.arange(8 if k == 16 else 4)
    if k == 16:
        a_row = np.where((i < 2) | ((i >= 4) & (i < 6)), group, group + 8)
        a_column = thread * 2 + (i & 1) + np.where(i < 4, 0, 8)
        j = np.arange(4)
        b_row = thread * 2 + (j & 1) + np.where(j < 2, 0, 8)
    else:
        a_row = np.where((i == 0) | (i == 2), group, group + 8)
        a_column = np.where(i < 2, thread, thread + 4)
        j = np.arange(2)
        b_row = np.where(j == 0, thread, thread + 4)
    c = np.arange(4)
    c_row = np.where(c < 2, group, group + 8)
    c_column = thread * 2 + (c & 1)
    return (a_row, a_column), (b_row, group + 0 * j), (c_row, c_column)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_products_of_matrices_have_the_layout_of_the_ptx_isa(run, guarded, rng, dtype):
    k = 8 if dtype == "f32" else 16
    left = rng.standard_normal((16, k)).astype(np.float32)
    right = rng.standard_normal((k, 8)).astype(np.float32)
    start = rng.standard_normal((16, 8)).astype(np.float32)
    if dtype == "f16":
        left_bits, right_bits = (m.astype(np.float16).view(np.uint16) for m in (left, right))
        left, right = (m.astype(np.float16).astype(np.float64) for m in (left, right))
    elif dtype == "bf16":
        left_bits, right_bits = to_bf16(left), to_bf16(right)
        left, right = wide(left_bits), wide(right_bits)
    else:  # the lower 13 bits of what is handed over do not count
        left_bits, right_bits = left.view(np.uint32), right.view(np.uint32)
        drop = np.uint32(0xFFFFE000)
        left, right = ((m.view(np.uint32) & drop).view(np.float32) for m in (left, right))
    of_a, of_b, of_c = elements_of_fragments(k)
    words = [np.ascontiguousarray(m).view(np.float32) for m in (left_bits[of_a], right_bits[of_b])]
    a, b = guarded((32, 4), fill=0), guarded((32, 2), fill=0)
    a[...], b[...] = words
    y = guarded((32, 4), fill=start[of_c])
    run(lambda scratch: probe("mma", a, y, b=b, kind=DTYPES[dtype]))
    expected = left.astype(np.float64) @ right.astype(np.float64) + start
    # k + 1 additions of float32, each at most half a unit of the largest partial sum.
    bound = (np.abs(left) @ np.abs(right) + np.abs(start)).max() * (k + 1) * 2.0**-24
    np.testing.assert_allclose(y, expected[of_c], rtol=0, atol=bound)


def test_every_float16_is_read_and_written_as_numpy_does(run, guarded):
    bits = np.arange(2**16, dtype=np.uint16)
    numbers = bits[np.isfinite(bits.view(np.float16)) | np.isinf(bits.view(np.float16))]
    x = guarded((len(numbers),), dtype="f16", fill=numbers.view(np.float16))
    y = guarded((len(numbers),))
    run(lambda scratch: copy(TensorArgs.of(x), TensorArgs.of(y)))
    np.testing.assert_array_equal(y.view(np.uint32), x.astype(np.float32).view(np.uint32))
    back = guarded((len(numbers),), dtype="f16")
    run(lambda scratch: copy(TensorArgs.of(y), TensorArgs.of(back)))
    np.testing.assert_array_equal(back.view(np.uint16), numbers)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_any_float_is_rounded_to_nearest_even(run, guarded, rng, dtype):
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint32)
    # Half of them near what float16 holds, and among those every second a tie.
    near = rng.standard_normal(20_000).astype(np.float32) * np.float32(2.0) ** rng.integers(-28, 17)
    ties = near.view(np.uint32) & np.uint32(0xFFFFF000)
    values = np.concatenate([bits, near.view(np.uint32), ties]).view(np.float32)
    values = values[~np.isnan(values)]
    x, y = guarded(values.shape, fill=values), guarded(values.shape, dtype=dtype)
    run(lambda scratch: copy(TensorArgs.of(x), TensorArgs.of(y)))
    with np.errstate(over="ignore"):
        expected = to_bf16(values) if dtype == "bf16" else values.astype(np.float16)
    np.testing.assert_array_equal(y.view(np.uint16), expected.view(np.uint16))


def test_tf32_is_rounded_to_nearest_and_ties_go_away_from_zero(run, guarded, rng):
    values = rng.standard_normal(300).astype(np.float32)
    values[:3] = [1 + 2.0**-11, -1 - 2.0**-11, 1 + 3 * 2.0**-11]
    x, y = guarded((300,), fill=values), guarded((300,))
    run(lambda scratch: probe("tf32", x, y, count=300, blocks=2, threads=256))
    scale = 2.0 ** (10 - np.floor(np.log2(np.abs(values.astype(np.float64)))))
    size = np.floor(np.abs(values.astype(np.float64)) * scale + 0.5) / scale
    np.testing.assert_array_equal(y, np.copysign(size, values))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("each", [2, 4, 8])
def test_several_elements_are_moved_at_once(run, guarded, rng, each, dtype):
    x = guarded((160,), dtype=dtype, fill=rng.standard_normal(160))
    y = guarded((160,), dtype=dtype)
    run(lambda scratch: probe(f"move_{each}", x, y, count=160, kind=DTYPES[dtype]))
    np.testing.assert_array_equal(y, x)


def test_several_elements_at_once_are_aligned(run, guarded):
    x, y = guarded((12,), fill=0.0), guarded((12,))
    with pytest.raises(HostError, match=r"finds untrue: aligned\(p, bytes\) at .*device.cu"):
        run(lambda scratch: probe("move_4", x[1:], y, count=8, kind=DTYPES["f32"]))


def test_warp_functions_and_sums(run, guarded, rng):
    values = rng.standard_normal(64).astype(np.float32)
    a, y, sums = guarded((64,), fill=values), guarded((5, 32)), guarded((64,))
    run(lambda scratch: probe("shuffles", a, y))
    lane = np.arange(32)
    sources = (
        *(np.full(32, 5), lane ^ 3),
        *(np.where(lane + 4 < 32, lane + 4, lane), np.where(lane % 8 >= 2, lane - 2, lane)),
    )
    for row, source in zip(y, sources, strict=False):
        np.testing.assert_array_equal(row, values[source])
    assert (y[4] == float(2**1 + 2**17)).all()
    run(lambda scratch: probe("sum", a, sums, threads=64))
    np.testing.assert_allclose(sums, 3 * values.sum(dtype=np.float64), rtol=0, atol=1e-5)
    assert len(set(sums.tolist())) == 1


def reverse(fault, a, y, **rest):
    kind = FAULTS.index(fault)
    return lambda scratch: probe("reverse", a, y, kind=kind, blocks=2, threads=128, **rest)


@pytest.fixture
def arrays(guarded, rng):
    return guarded((256,), fill=rng.standard_normal(256)), guarded((256,))


def test_a_kernel_with_barriers_runs(run, arrays):
    a, y = arrays
    run(reverse("none", a, y))
    np.testing.assert_array_equal(y.reshape(2, 128), a.reshape(2, 128)[:, ::-1])


def test_a_missing_barrier_is_found(run, arrays):
    with pytest.raises(AssertionError, match="depend on the order of threads or blocks"):
        run(reverse("no_barrier", *arrays))


def test_blocks_that_rely_on_their_order_are_found(run, guarded):
    y = guarded((5,), fill=0.0)
    with pytest.raises(AssertionError, match="depend on the order of threads or blocks"):
        run(lambda scratch: probe("chain", y, y, blocks=4, threads=1))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("early_exit", r"probe_reverse: block \(0, 0, 0\), .* waits in vain, 1 of 128 threads"),
        ("two_barriers", r"waits while thread \d+ waits at .*cuda_probe.cu:\d+, itself at"),
        ("half_a_warp", r"waits in vain, 64 of 128 threads have ended"),
    ],
)
def test_a_barrier_that_not_all_reach_is_an_error_and_the_next_launch_runs(
    run, arrays, fault, said
):
    with pytest.raises(HostError, match=said):
        run(reverse(fault, *arrays))
    run(reverse("none", *arrays))


def test_a_warp_function_needs_a_full_warp(run, arrays):
    with pytest.raises(HostError, match="calls a warp function without all 32 threads at"):
        run(lambda scratch: probe("shuffles", *arrays, threads=16))


def test_shared_memory_starts_as_nan_in_every_block(run, arrays):
    a, y = arrays
    run(reverse("unwritten_shared_memory", a, y))
    assert np.flatnonzero(np.isnan(y)).tolist() == [124, 252]


@ends_the_process
def test_a_write_behind_shared_memory_is_found(run, arrays):
    with pytest.raises(HostError, match="wrote outside of the shared memory 'values'"):
        run(reverse("behind_shared_memory", *arrays))


@ends_the_process
def test_a_write_behind_an_array_is_found(guards, device, arrays):
    with pytest.raises(AssertionError, match="written 0 bytes behind, 1 bytes behind"):
        device.run(reverse("behind_the_array", *arrays))
    guards.blocks.clear()  # which the fixture would find again


def test_a_write_between_pixels_is_found(run, guarded):
    y = guarded((1, 2, 3, 4), "strided")
    whole = TensorArgs.at(y.ctypes.data, (20,), (1,), "f32")
    with pytest.raises(AssertionError, match="fill wrote between the pixels of an array"):
        run(lambda scratch: fill(whole, 1.0))


def test_an_address_that_no_array_of_the_test_has_is_refused(run, arrays):
    elsewhere = np.zeros(256, np.float32)
    with pytest.raises(AssertionError, match="probe_reverse: y points to no array of this test"):
        run(reverse("none", arrays[0], elsewhere))


def test_what_a_gpu_would_not_launch_is_refused(arrays, monkeypatch, tmp_path):
    (launch,) = probe("mma", *arrays, threads=64).launches
    with pytest.raises(HostError, match="probe_mma: a block has up to 32 threads, got 64"):
        run_on_host(launch)
    arguments = TensorArgs.of(arrays[0])
    with pytest.raises(HostError, match="TensorArgs has 120 bytes, the kernel expects 40"):
        run_on_host(Launch("probe_mma", (1, 1, 1), (32, 1, 1), arguments))
    monkeypatch.setattr("support.cuda_host.SOURCES", tmp_path)  # or all would be compiled
    with pytest.raises(HostError, match=r"no \.cu file that compiles has a kernel 'absent'"):
        run_on_host(Launch("absent", (1, 1, 1), (32, 1, 1), arguments))


def test_scratch_memory_is_aligned_nan_and_of_the_size_asked_for(device, guarded):
    y = guarded((3,))
    seen = []

    def make(scratch):
        seen.append(scratch)
        if not scratch:
            return Work((), 12)
        copied = TensorArgs.at(scratch, (3,), (1,), "f32")
        return Work(copy(copied, TensorArgs.of(y)).launches, 12)

    device.run(make)
    assert seen[0] == 0
    assert seen[1] % 256 == 0
    assert np.isnan(y).all()


def test_who_asks_for_no_scratch_memory_gets_none(device):
    seen = []
    device.run(lambda scratch: seen.append(scratch) or Work(()))
    assert seen == [0, 0]


def test_a_file_that_does_not_compile_takes_only_its_own_kernels(monkeypatch, tmp_path):
    (tmp_path / "broken.cu").write_text("EA_KERNEL(broken, Args, 32) {}")
    (tmp_path / "good.cu").write_text("struct Args {};\nEA_KERNEL(good, Args, 32) {}")
    monkeypatch.setattr("support.cuda_host.SOURCES", tmp_path)
    monkeypatch.setattr("support.cuda_host.BUILD", tmp_path)
    assert list(library_of("good").kernels) == ["good"]
    with pytest.raises(HostError, match=r"(?s)broken\.cu does not compile: .*Args.*not declared"):
        library_of("broken")
