"""The device on a real GPU: what fakes cannot show."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgeadapt.errors import BackendError
from edgeadapt.kernels.cuda.copy import copy, fill
from edgeadapt.kernels.cuda.launch import Launch
from edgeadapt.kernels.cuda.tensors import TensorArgs
from edgeadapt.runtime.cuda.pycuda_device import open_device
from support.tree import ROOT

pytestmark = pytest.mark.gpu

COUNT = 100_001
BYTES = 4 * COUNT


def vector(address: int) -> TensorArgs:
    return TensorArgs.at(address, (COUNT,), (1,), "f32")


def copying(x: int, y: int) -> Launch:
    (launch,) = copy(vector(x), vector(y)).launches
    return launch


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)


def test_what_is_uploaded_goes_through_a_kernel_and_comes_back(gpu, values):
    x, y, result = gpu.allocate(BYTES), gpu.allocate(BYTES), np.zeros(COUNT, np.float32)
    gpu.prepare(["copy"])
    gpu.upload(x, values)
    gpu.launch(copying(x, y))
    gpu.copy(x, y, BYTES)
    gpu.fill(x, 0, 8)
    gpu.download(result, x)
    gpu.synchronize()
    values[:2] = 0
    np.testing.assert_array_equal(result, values)


def test_a_graph_copies_and_computes_anew_with_each_launch(gpu, values):
    x, y = gpu.allocate(BYTES), gpu.allocate(BYTES)
    source, target = gpu.pinned((COUNT,), np.float32), gpu.pinned((COUNT,), np.float32)

    def work():
        gpu.upload(x, source.array)
        gpu.launch(copying(x, y))
        gpu.download(target.array, y)

    work()
    gpu.synchronize()
    target.array[...] = -1
    graph = gpu.capture(work)
    gpu.synchronize()
    assert (target.array == -1).all()
    for factor in (1, 2, 3):
        source.array[...] = factor * values
        graph.launch()
        gpu.synchronize()
        np.testing.assert_array_equal(target.array, factor * values)


def test_a_graph_takes_little_time_to_launch(gpu):
    x = gpu.allocate(BYTES)
    fills = [launch for k in range(200) for launch in fill(vector(x), float(k)).launches]
    for launch in fills:
        gpu.launch(launch)
    graph = gpu.capture(lambda: [gpu.launch(launch) for launch in fills] and None)
    graph.launch()
    gpu.synchronize()
    taken = []
    for _ in range(20):
        begun = time.thread_time()
        graph.launch()
        taken.append(time.thread_time() - begun)
        gpu.synchronize()
    assert sorted(taken)[10] < 2e-4


def test_moments(gpu):
    x = gpu.allocate(BYTES)
    before = gpu.mark()
    for _ in range(100):
        gpu.launch(fill(vector(x), 1.0).launches[0])
    assert 0 < gpu.mark().seconds_since(before) < 1


def test_mapped_memory_is_read_and_written_by_kernels(gpu, values):
    if not gpu.info.unified:
        pytest.skip(f"{gpu.info.name} has memory of its own")
    source, target = gpu.pinned((COUNT,), np.float32), gpu.pinned((COUNT,), np.float32)
    source.array[...] = values
    gpu.launch(copying(source.address, target.address))
    gpu.synchronize()
    np.testing.assert_array_equal(target.array, values)


def test_what_does_not_fit_is_refused(gpu):
    free = gpu.free_bytes()
    assert 0 < free <= gpu.info.memory_bytes
    with pytest.raises(BackendError, match="bytes of device memory were asked for"):
        gpu.allocate(gpu.info.memory_bytes + 1)
    before = gpu.free_bytes()
    gpu.free(gpu.allocate(1 << 26))
    assert abs(gpu.free_bytes() - before) < 1 << 26


def test_two_devices_in_two_threads(gpu, values):
    results, problems = {}, []

    def work(name):
        try:
            device = open_device()
            x, y = device.allocate(BYTES), device.allocate(BYTES)
            result = np.zeros(COUNT, np.float32)
            device.upload(x, values)
            device.launch(copying(x, y))
            graph = device.capture(lambda: device.launch(copying(x, y)))
            for _ in range(50):
                graph.launch()
            device.download(result, y)
            device.synchronize()
            device.close()
            results[name] = result
        except BaseException as error:  # noqa: BLE001
            problems.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    for result in results.values():
        np.testing.assert_array_equal(result, values)


GOES_ON = """
    with Session(Path(sys.argv[1]), backend="native") as session:
        print(session.restore(np.zeros((9, 9, 3), np.uint8)).shape)
"""
LOST = """
if True:
    device.launch(fill(TensorArgs.at(1 << 20, (4,), (1,), "f32"), 1.0).launches[0])
    for use in (device.synchronize, device.mark, open_device):
        try:
            use()
        except BackendError as error:
            print(error.message[: error.message.index("any more")])
    device.free(address)
    device.close()
"""
FORKED = """
child = os.fork()
if child:
    print(os.waitpid(child, 0)[1])
    device.synchronize()
else:
    for use in (device.synchronize, open_device):
        try:
            use()
        except BackendError as error:
            print(error.message, flush=True)
"""
BEGIN = """
import os, sys
from pathlib import Path
import numpy as np
from edgeadapt.errors import BackendError
from edgeadapt.kernels.cuda.copy import fill
from edgeadapt.kernels.cuda.tensors import TensorArgs
from edgeadapt.runtime.cuda.pycuda_device import open_device
from edgeadapt.runtime.session import Session
device = open_device()
address, buffer = device.allocate(64), device.pinned((4,), np.uint8)
"""


def said_by(code: str, bundle: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(bundle)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_lost_device_leaves_the_process_to_other_backends(gpu, tiny):
    lost = f"CUDA: {gpu.info.name} does not answer "
    assert said_by(BEGIN + LOST + GOES_ON, tiny) == [*[lost] * 3, "(9, 9, 3)"]


def test_a_fork_is_left_to_other_backends(gpu, tiny):
    refused = "CUDA cannot be used in a process that was forked from one that uses it."
    assert said_by(BEGIN + FORKED + GOES_ON, tiny) == [*[refused] * 2, "(9, 9, 3)", "0"]
