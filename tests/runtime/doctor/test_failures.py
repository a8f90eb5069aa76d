"""Failures that people have met, each recorded as a machine that has it."""

from __future__ import annotations

import shutil

import pytest

from edgeadapt.runtime.doctor.findings import exit_code
from edgeadapt.runtime.doctor.target import NVIDIA_SMI
from support.gpu_code import library_for
from support.recorded_machine import bare, orin, orin6, others, server, the, thor

ORT = "site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so"
PYPI_ORT = library_for("89", "90a", "120a", "121a")  # what onnxruntime-gpu 1.31.1 for aarch64 has
LIB = "usr/lib/aarch64-linux-gnu"


@pytest.mark.parametrize("make", [orin, thor])
def test_onnxruntime_gpu_from_pypi_has_no_code_for_a_jetson(on, make):
    machine = on(make)
    machine.file(ORT, PYPI_ORT)
    found = machine.findings()
    number = "87" if make is orin else "110"
    the(found, "code of ONNX Runtime", f"nothing for sm_{number}", "sm_89, sm_90a, sm_120a",
        f"CMAKE_CUDA_ARCHITECTURES={number}")  # fmt: skip
    assert others(found, "code of ONNX Runtime") == []


def test_a_library_is_judged_by_a_device_that_is_not_there(on):
    machine = on(bare)
    machine.own_kernels("87")
    machine.file(ORT, PYPI_ORT)
    assert exit_code(machine.findings()) == 0
    the(machine.findings("orin-nano"), "code of ONNX Runtime", "Jetson Orin Nano 8GB")
    assert exit_code(machine.findings("h200")) == 1  # our own kernels lack it
    the(machine.findings("h200"), "kernels", "nothing for sm_90", "make fatbin")


def test_tensorrt_for_servers_has_no_code_for_orin_and_its_ptx_does_not_help(on):
    machine = on(orin)
    machine.remove(f"{LIB}/libnvinfer.so.10.16.2")
    machine.file(f"{LIB}/libnvinfer.so.10.13.3", library_for("75", "80", "86", "89", "ptx75"))
    found = machine.findings()
    the(found, "code of TensorRT", "libnvinfer.so.10.13.3", "nothing for sm_87", "10.16")
    assert others(found, "code of TensorRT") == []


def test_cudnn_of_pip_has_code_for_relatives_of_orin_only(on):
    wheel = library_for("75", "80", "86", "90a", "110f", "ptx120f")  # nvidia-cudnn-cu13 9.28
    for make, state in ((orin, "note"), (orin6, "problem")):
        machine = on(make)
        for name in ("libcudnn", "libcudnn_ops", "libcudnn_engines_precompiled"):
            machine.file(f"{LIB}/{name}.so.9.20.0", wheel)
        the(machine.findings(), "code of cuDNN", "sm_8x", "JetPack", state=state)
        shutil.rmtree(machine.root)


def test_one_file_of_a_library_without_code_is_enough(on):
    machine = on(orin)
    machine.file(f"{LIB}/libcudnn_ops.so.9.20.0", library_for("90"))
    the(machine.findings(), "code of cuDNN", "libcudnn_ops.so", "nothing for sm_87")


def test_the_driver_is_older_than_the_cuda_runtime(on):
    machine = on(server)
    machine.driver((12, 4), "the NVIDIA driver knows CUDA 12.4, PyCUDA was built with 13.0.",
                   "update the driver")  # fmt: skip
    found = machine.findings()
    the(found, "cuda", "runtime 13.0.48", "knows CUDA 12.4 only", "update the driver")
    the(found, "cuda engine", "PyCUDA was built with 13.0", "update the driver")


def test_the_driver_is_too_old_for_anything(on):
    machine = on(server)
    machine.remove("usr/local/cuda/lib64/libcudart.so.13.0.48")
    machine.driver((11, 4), "the NVIDIA driver knows CUDA 11.4, 12.0 is needed.", "update it.")
    the(machine.findings(), "driver", "knows CUDA 11.4", "CUDA 12.0")


def test_a_container_without_the_drivers_libraries(on):
    machine = on(server)
    reason = "there is no NVIDIA driver (libcuda.so.1: cannot open shared object file)."
    machine.driver(None, reason, "install NVIDIA's driver.")
    del machine.commands[NVIDIA_SMI]
    found = machine.findings()
    the(found, "driver", "libcuda cannot be used", "--gpus all", "--runtime nvidia")
    the(found, "cuda engine", "there is no NVIDIA driver")
    the(found, "backend", "auto takes native", "cuda: there is no NVIDIA driver", state="note")


def test_a_driver_without_a_gpu_is_not_used(on):
    machine = on(bare)
    machine.driver((13, 0))
    found = machine.findings()
    (said,) = [one for one in found if one.check == "backend"]
    assert said.found == "auto takes native"
    assert others(found, "kernels") == []


def test_a_card_without_a_driver_is_only_noted(on):
    machine = on(bare)
    machine.file("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    found = machine.findings()
    the(found, "driver", "no driver", "install NVIDIA's driver", state="note")
    assert exit_code(found) == 0


def test_two_major_versions_of_cudnn(on):
    machine = on(orin6)
    machine.file("opt/cudnn/libcudnn.so.8.9.7", library_for("87"))
    machine.environ["LD_LIBRARY_PATH"] = "/opt/cudnn"
    the(machine.findings(), "cudnn", "cuDNN 8 and 9", "LD_LIBRARY_PATH")


def test_cudnn_of_two_cudas_in_one_folder(on):
    machine = on(server)
    machine.package("nvidia-cudnn-cu12", "9.20.0.46")
    machine.package("nvidia-cudnn-cu13", "9.20.0.46")
    the(machine.findings(), "cudnn", "nvidia-cudnn-cu12 and nvidia-cudnn-cu13", "pip uninstall")


def test_two_cuda_runtimes(on):
    machine = on(server)
    machine.file("site-packages/nvidia/cuda_runtime/lib/libcudart.so.12")
    found = machine.findings()
    the(found, "cuda", "2 major versions: 12, 13", "keep the one", state="note")
    assert others(found, "cuda") == []


def test_pycuda_is_not_installed_and_nvcc_is_not_found(on):
    machine = on(orin)
    shutil.rmtree(next(machine.site.glob("pycuda-*")))
    machine.environ["PATH"] = "/usr/bin"
    machine.driver((13, 2), "PyCUDA is not installed.", "`pip install pycuda` (needs nvcc).")
    found = machine.findings()
    the(found, "cuda engine", "PyCUDA is not installed", "pip install pycuda", "nvcc on PATH")
    the(found, "backend", "auto takes native, for cuda: PyCUDA is not", state="note")
    assert exit_code(found) == 1


def test_pycuda_was_built_for_another_cuda(on):
    machine = on(orin6)
    reason = "the NVIDIA driver is older than the CUDA that PyCUDA was built with (undefined "
    machine.driver((12, 6), reason + "symbol: cuCtxCreate_v4).", "build PyCUDA again.")
    the(machine.findings(), "cuda engine", "PyCUDA was built with", "build PyCUDA again")


def test_the_probe_crashes(on):
    machine = on(server)
    machine.commands = {NVIDIA_SMI: machine.commands[NVIDIA_SMI]}
    found = machine.findings()
    the(found, "cuda engine", "gave no answer", "--backend cuda")
    the(found, "driver", "gave no answer")


def test_cudnn_frontend_with_heavy_requirements(on):
    machine = on(orin)
    needs = ["nvidia-cutlass-dsl>=4.1", "apache-tvm-ffi>=0.1"]
    machine.package("nvidia-cudnn-frontend", "1.32.0", needs)
    found = machine.findings()
    the(found, "cudnn", "cudnn-frontend 1.32.0", "cutlass-dsl", "<1.29", state="note")
    assert exit_code(found) == 0


def test_cudnn_frontend_without_cudnn(on):
    machine = on(bare)
    machine.package("nvidia-cudnn-frontend", "1.28.0")
    the(machine.findings(), "cudnn", "without cuDNN's library", state="note")


def test_jetpack_6_with_wheels_for_servers(on):
    machine = on(orin6)
    machine.package("nvidia-cudnn-cu12", "9.28.0.42", tag="py3-none-manylinux_2_27_aarch64")
    machine.package("nvidia-cublas-cu12", "12.9.1.4", tag="py3-none-manylinux_2_27_aarch64")
    found = machine.findings()
    the(found, "jetpack", "SBSA", "pip uninstall nvidia-cudnn-cu12 nvidia-cublas-cu12")
    assert others(found, "jetpack") == []


def test_jetpack_7_runs_wheels_for_servers(on):
    machine = on(orin)
    machine.package("nvidia-cublas-cu13", "13.2.0.9", tag="py3-none-manylinux_2_27_aarch64")
    assert others(machine.findings()) == []


def test_a_jetpack_that_is_too_old(on):
    machine = on(orin6)
    machine.file("etc/nv_tegra_release", "# R35 (release), REVISION: 4.1, GCID: 1\n")
    the(machine.findings(), "jetpack", "Jetson Linux 35.4.1", "flash JetPack 6.1")


def test_tensorrt_from_pypi_is_a_stub(on):
    machine = on(orin6)
    machine.remove(f"{LIB}/libnvinfer.so.10.16.2")
    machine.package("tensorrt-cu13-bindings", "11.4.0.106")
    found = machine.findings()
    the(found, "tensorrt", "tensorrt-cu13-bindings 11.4.0.106", "without TensorRT's library")
    assert others(found, "tensorrt") == []


def test_bindings_of_another_tensorrt(on):
    machine = on(orin)
    machine.package("tensorrt-cu13-bindings", "11.4.0.106")
    the(machine.findings(), "tensorrt", "does not fit TensorRT 10.16.2", "==10.*")


def test_numpy_2_with_an_old_onnxruntime(on):
    machine = on(bare)
    machine.package("onnxruntime", "1.18.1")
    the(machine.findings(), "onnxruntime", "NumPy 1, there is 2.3.1", "onnxruntime>=1.20")
    machine.package("numpy", "1.26.4")
    assert others(machine.findings(), "kernels") == []


def test_onnxruntime_twice(on):
    machine = on(bare)
    machine.package("onnxruntime-gpu", "1.31.1")
    the(machine.findings(), "onnxruntime", "overwritten", "pip uninstall", state="note")


@pytest.mark.parametrize("compiler", [True, False])
def test_no_native_engine(on, compiler):
    machine = on(bare)
    machine.remove("site-packages/edgeadapt/kernels/_native.so")
    if not compiler:
        machine.remove("usr/bin/g++")
    found = machine.findings()
    said = the(found, "native engine", "was not built", "edgeadapt.kernels.build", state="note")
    assert ("install a C++ compiler" in said.fix) == (not compiler)
    the(found, "backend", "auto takes onnxruntime, for native: was not built", state="note")
    assert exit_code(found) == 0


def test_a_native_engine_of_another_processor(on):
    machine = on(bare)
    machine.remove("site-packages/edgeadapt/kernels/_native.so")
    machine.file("site-packages/edgeadapt/kernels/_native.so", library_for("87"))
    the(machine.findings(), "native engine", "cannot be opened", state="note")


def test_no_engine_at_all(on):
    machine = on(bare)
    machine.remove("site-packages/edgeadapt/kernels/_native.so")
    shutil.rmtree(next(machine.site.glob("onnxruntime-*")))
    the(machine.findings(), "backend", "none can run", "pip install onnxruntime")


def test_kernels_that_were_not_compiled_where_there_is_no_compiler(on):
    machine = on(orin)
    machine.remove("site-packages/edgeadapt/kernels/cuda/_kernels.fatbin")
    the(machine.findings(), "kernels", "nvcc does it at first use", state="note")
    machine.remove("usr/local/cuda/bin/nvcc")
    the(machine.findings(), "kernels", "there is no nvcc", "make fatbin")
    machine.package("nvidia-cuda-nvrtc", "13.2.51")
    the(machine.findings(), "kernels", "NVRTC does it at first use", state="note")


def test_kernels_that_are_older_than_their_sources(on):
    machine = on(orin)
    machine.remove("usr/local/cuda/bin/nvcc")
    machine.file("site-packages/edgeadapt/kernels/csrc/copy.cu", "// another kernel\n")
    the(machine.findings(), "kernels", "older than copy.cu", "make fatbin")
    machine.own_kernels("87")
    machine.file("site-packages/edgeadapt/kernels/csrc/new.cu", "// one more\n")
    the(machine.findings(), "kernels", "older than new.cu")
    machine.file("site-packages/edgeadapt/kernels/csrc/copy.cu", "// another kernel\n")
    the(machine.findings(), "kernels", "older than copy.cu, new.cu")


def test_kernels_that_are_cut_off(on):
    machine = on(orin)
    path = machine.kernels / "cuda/_kernels.fatbin"
    path.write_bytes(path.read_bytes()[:-20])
    the(machine.findings(), "kernels", "damaged", "make fatbin")


def test_kernels_for_other_gpus(on):
    machine = on(thor)
    machine.remove("usr/local/cuda/bin/nvcc")
    machine.own_kernels("87", "90")
    the(machine.findings(), "kernels", "nothing for sm_110", "EDGEADAPT_CUDA_ARCHITECTURES=sm_110")
    machine.own_kernels("87", "ptx87")  # in the language of CUDA 13.0
    the(machine.findings(), "kernels", "PTX only for sm_110", state="note")
    machine.driver((12, 8))
    the(machine.findings(), "kernels", "a driver that knows CUDA 13.0", "update the driver")


def test_a_bundle_that_was_changed(on, tiny):
    machine = on(bare)
    bundle = machine.root / "mine.bundle"
    shutil.copytree(tiny, bundle)
    (sound,) = [one for one in machine.findings(bundle=str(bundle)) if one.check == "bundle"]
    assert sound.state == "ok"
    with (bundle / "restore.onnx").open("ab") as file:
        file.write(b"\0")
    the(machine.findings(bundle=str(bundle)), "bundle", "restore.onnx", "SHA-256", "copy")
    the(machine.findings(bundle="nowhere.bundle"), "bundle", "nowhere.bundle")
