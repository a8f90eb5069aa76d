"""What is said where no GPU can be opened: one line, about the one thing that is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeadapt.errors import BackendError
from edgeadapt.runtime.cuda import pycuda_import
from edgeadapt.runtime.cuda.pycuda_device import open_device
from support.tree import ROOT


class Broken:
    """Finds a module that cannot be imported."""

    def __init__(self, module: str, error: ImportError) -> None:
        self.module, self.error = module, error

    def find_spec(self, name, path=None, target=None):
        if name == self.module:
            raise self.error


def break_import(monkeypatch, module: str, error: ImportError) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(module, error), *sys.meta_path])


def said() -> str:
    with pytest.raises(BackendError) as caught:
        open_device()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_pycuda_is_not_installed(fake, monkeypatch):
    error = ModuleNotFoundError("No module named 'pycuda'", name="pycuda")
    break_import(monkeypatch, "pycuda.driver", error)
    monkeypatch.setattr(pycuda_import, "has_driver", lambda: True)
    assert said() == (
        "PyCUDA is not installed. Hint: `pip install pycuda` (it is compiled: needs nvcc and a C++ "
        "compiler, see docs/dependencies.md)."
    )


def test_there_is_neither_a_driver_nor_pycuda(fake, monkeypatch):
    error = ModuleNotFoundError("No module named 'pycuda'", name="pycuda")
    break_import(monkeypatch, "pycuda.driver", error)
    asked = []

    def missing(name):
        asked.append(name)
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pycuda_import.ctypes, "CDLL", missing)
    text = said()
    assert asked == ["libcuda.so.1"]
    assert text.startswith("there is no NVIDIA driver here (libcuda.so.1), and PyCUDA is not")
    assert "pip install" not in text


def test_cuda_bindings_is_not_installed(fake, monkeypatch):
    error = ModuleNotFoundError("No module named 'cuda.bindings'", name="cuda.bindings")
    break_import(monkeypatch, "cuda.bindings.driver", error)
    assert said() == "cuda-bindings is not installed. Hint: `pip install cuda-bindings`."


def test_something_that_pycuda_needs_is_not_installed(fake, monkeypatch):
    error = ModuleNotFoundError("No module named 'pytools'", name="pytools")
    break_import(monkeypatch, "pycuda.driver", error)
    assert said().startswith("PyCUDA cannot be loaded (No module named 'pytools'). Hint: build it")


def test_there_is_no_driver(fake, monkeypatch):
    text = "libcuda.so.1: cannot open shared object file: No such file or directory"
    break_import(monkeypatch, "pycuda.driver", ImportError(text))
    assert said() == f"there is no NVIDIA driver ({text}). Hint: install NVIDIA's driver."


def test_pycuda_was_built_for_a_newer_driver(fake, monkeypatch):
    text = "_driver.so: undefined symbol: cuCtxCreate_v4"
    break_import(monkeypatch, "pycuda.driver", ImportError(text))
    assert said().startswith("the NVIDIA driver is older than the CUDA that PyCUDA was built with")


def test_cuda_bindings_is_broken(fake, monkeypatch):
    break_import(monkeypatch, "cuda.bindings.driver", ImportError("wrong ELF class"))
    assert said().startswith("cuda-bindings cannot be loaded (wrong ELF class). Hint: `pip install")


def test_there_is_no_gpu(fake):
    fake.fails["cuInit"] = "no CUDA-capable device is detected"
    assert said() == (
        "CUDA cannot use a GPU here (cuInit failed: no CUDA-capable device is detected). Hint: "
        "look at nvidia-smi and $CUDA_VISIBLE_DEVICES; a container must be given its GPU."
    )


def test_there_is_no_second_gpu(fake):
    with pytest.raises(BackendError, match="invalid device ordinal"):
        open_device(1)
    assert open_device(0).info.name == "Fake"


def test_the_driver_is_too_old(fake):
    fake.version = 11040
    assert said() == ("the NVIDIA driver knows CUDA 11.4, 12.0 is needed. Hint: update the driver.")


def test_pycuda_was_built_with_a_newer_cuda(fake):
    fake.version = 12060
    assert said().startswith("the NVIDIA driver knows CUDA 12.6, PyCUDA was built with 13.0. Hint")


def test_cuda_bindings_is_newer_than_the_driver(fake):
    fake.version, fake.built = 12060, (12, 6, 0)
    fake.fails["cuDriverGetVersion"] = "CUDA_ERROR_NOT_FOUND"
    assert said() == (
        "cuda-bindings 13.5.0 does not work with this driver, which knows CUDA 12.6 "
        "(cuDriverGetVersion failed: CUDA_ERROR_NOT_FOUND). "
        'Hint: `pip install "cuda-bindings==12.*"`.'
    )


def test_a_function_that_cuda_bindings_finds_no_driver_for(fake, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(fake.bindings, "cuDriverGetVersion", refuse)
    assert "(cuDriverGetVersion failed: Failed to dlopen libcuda.so.1)" in said()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("cuDevicePrimaryCtxRetain", "CUDA cannot use a GPU here (cuDevicePrimaryCtxRetain failed"),
        ("cuStreamCreate", "CUDA: cannot make a stream (cuStreamCreate failed: odd)"),
        ("cuStreamBeginCapture", "CUDA: cannot record a graph (cuStreamBeginCapture failed: odd)"),
    ],
)
def test_what_opening_needs_besides(fake, call, says):
    fake.fails[call] = "odd"
    assert said().startswith(says)
    open_device().close()  # nothing is left behind
    assert +fake.live == {"context": 1}


def test_nothing_is_imported_before_a_gpu_is_asked_for():
    code = (
        "import sys, edgeadapt.runtime.cuda.pycuda_device\n"
        "print(sorted({'pycuda', 'cuda', 'cudnn'} & {n.split('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


FORK = """
import gc, os, sys, threading
from pathlib import Path
from support.fake_cuda import FakeCuda
from edgeadapt.errors import BackendError
from edgeadapt.runtime.cuda import pycuda_context, pycuda_device
from edgeadapt.runtime.session import Session
import numpy as np, pytest

fake = FakeCuda()
fake.install(pytest.MonkeyPatch())
device = pycuda_device.open_device()
address, buffer, graph = device.allocate(4), device.pinned((4,), np.uint8), device.capture(list)
inside, leave = threading.Event(), threading.Event()


def hold():  # what nobody can let go of in the child
    with pycuda_device.contexts._lock, device._context._lock:
        inside.set()
        leave.wait(30)


holder = threading.Thread(target=hold)
holder.start()
inside.wait()
child = os.fork()
leave.set()
if child == 0:
    fake.broken = "initialization error"  # as CUDA is then
    for use in (device.synchronize, graph.launch, pycuda_device.open_device):
        try:
            use()
        except BackendError as error:
            print("child:", error.message, flush=True)
    device.free(address)
    device.close()
    del device, buffer, graph
    gc.collect()
    with Session(Path(sys.argv[1]), backend="native") as session:
        print("child:", session.restore(np.zeros((9, 9, 3), np.uint8)).shape)
    print("child:", fake.complaints, sorted((+fake.live).items()))
    sys.exit(0)
_, status = os.waitpid(child, 0)
device.synchronize()
device.free(address)
print("parent:", status, fake.complaints, sorted((+fake.live).items()), flush=True)
"""


def test_a_fork_goes_on_with_another_backend(tiny: Path):
    path = os.environ.get("PYTHONPATH", "")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(tiny)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), path])},
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )
    refused = "child: CUDA cannot be used in a process that was forked from one that uses it."
    live = [(kind, 1) for kind in ("context", "executable", "memory", "pinned", "stream")]
    freed = [found for found in live if found[0] != "memory"]
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        *[refused] * 3,
        "child: (9, 9, 3)",
        f"child: [] {live}",
        f"parent: 0 [] {freed}",
    ]
