"""`edgeadapt bench peers --device cuda`: our engine and PyTorch on one GPU, as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from edgeadapt.benchmarks.cuda_peers import (
    OPERATIONS,
    TORCH,
    CudaPeer,
    TimedPeer,
    Timings,
    figures_of,
    is_rough,
    least_ms,
    medians,
    our_names,
    precision_of,
)
from edgeadapt.benchmarks.machine import GPU_COLUMNS, describe, describe_gpu
from edgeadapt.benchmarks.peers import (
    Agreement,
    Results,
    RuntimePeer,
    Work,
    agreement,
    first_results,
    is_torch,
)
from edgeadapt.benchmarks.tensorrt_peer import NAME as TENSORRT
from edgeadapt.benchmarks.tensorrt_peer import TensorrtPeer, tensorrt_names
from edgeadapt.bundle import RESTORE_GRAPH, Bundle
from edgeadapt.errors import BackendError, EdgeadaptError, one_line
from edgeadapt.image import padded_size, to_network
from edgeadapt.runtime.backend import usable_cores
from edgeadapt.runtime.cuda.device import Device, DeviceInfo
from edgeadapt.runtime.report import console, print_table
from edgeadapt.runtime.tensorrt.library import find_library
from edgeadapt.runtime.tensorrt.target import check_target
from edgeadapt.testing import noise

Row = dict[str, Any]
Opener = Callable[[], Device]
MIB = 2**20
# One image: in it a pixel whose sign a rounding turns is one of thousands.
_SEED = 0
_ERRORS = ("loss_error", "gradients_error", "worst_tensor_error", "image_error")
_SHARED = ("bundle", "height", "width", "scope", "steps", "repeats")
_VERSIONS = ("torch_cuda", "cudnn", "python", "edgeadapt", "numpy", "onnxruntime", "torch")
COLUMNS = ["operation", "peer", *_SHARED, "median_ms", "ratio", "peak_mib", "cpu_ms"]
COLUMNS += ["roofline_ms", "roofline_of", *_ERRORS, *GPU_COLUMNS, "cpu", "commit", "date"]
COLUMNS += _VERSIONS


def measure(
    bundle: Bundle,
    works: Sequence[Work],
    steps: int,
    repeats: int,
    ways: Sequence[str],
    opener: Opener | None = None,
) -> list[Row]:
    """Rows of all sizes. Without a factory, our engine alone is measured, against the native one.

    Of the ``ways`` of PyTorch, see `torch_variants`, one that fails or disagrees is left out, which
    is said.

    Raises:
        BackendError: if there is no GPU, or an image does not fit.
        EdgeadaptError: if our engine does not agree with the reference.
    """
    opener = opener or _gpu
    opener().close()  # refuses at once
    rows = []
    for work in works:
        rows += _measure(bundle, work, steps, repeats, ways, opener)
    return rows


def show(rows: Sequence[Row]) -> None:
    """Print them as a table."""
    print_table(
        ["peer", "operation", "size", "ms", "ratio", "peak MiB", "roofline ms", "gradients off by"],
        [
            [
                row["peer"],
                row["operation"],
                f"{row['width']}x{row['height']}",
                f"{row['median_ms']:.3f}",
                _number(row["ratio"], ".2f"),
                _number(row["peak_mib"], ".0f"),
                _number(row["roofline_ms"], ".3f"),
                f"{row['gradients_error']:.1e}",
            ]
            for row in rows
        ],
    )
    first = rows[0]
    console().print(
        f"Medians of {first['repeats']}, {first['gpu']}. step: one of the {first['steps']} of an "
        f"adaptation. ratio: time over that of {first['peer']}."
    )


def _measure(
    bundle: Bundle, work: Work, steps: int, repeats: int, ways: Sequence[str], opener: Opener
) -> list[Row]:
    picture = noise(_SEED, work.height, work.width)
    reference, expected = _reference(bundle, work, picture)
    with ExitStack() as stack:
        peers: dict[str, TimedPeer] = {}
        agreements: dict[str, Agreement] = {}
        infos = []
        for name in our_names():
            device = opener()
            stack.callback(device.close)
            infos.append(device.info)
            peer = CudaPeer(bundle, picture, work.scope, steps, precision_of(name), device)
            agreements[name] = _checked(name, peer, reference, expected)
            peers[name] = peer
        for name in tensorrt_names() if _tensorrt(infos[0]) else []:
            device = opener()
            stack.callback(device.close)
            with _left_out_if_it_fails(name):
                library = find_library()
                precision = precision_of(name)
                peer = TensorrtPeer(bundle, picture, work.scope, steps, precision, device, library)
                agreements[name] = _checked(name, peer, reference, expected)
                peers[name] = peer
        for name in ways if work.factory else []:
            with _left_out_if_it_fails(name):
                other = _torch_peer(name, bundle, picture, work, steps)
                agreements[name] = _checked(name, other, reference, expected)
                peers[name] = other
        timings = medians(peers, repeats)
    shared = dict(zip(_SHARED, _values(bundle, work, steps, repeats), strict=True))
    machine = {**describe_gpu(), **_versions(bool(work.factory)), **describe()}
    machine["gpu"] = machine["gpu"] or infos[0].name
    least = _least(bundle, work, figures_of(infos[0]))
    return [
        {
            **dict.fromkeys(COLUMNS),
            **{"operation": operation, "peer": name, **shared},
            **_times(timings, name, operation, next(iter(peers))),
            "peak_mib": round(peer.peak_bytes / MIB, 1),
            "cpu_ms": _cpu_ms(peer, operation),
            **least.get((precision_of(name), operation), {}),
            **{f"{key}_error": value for key, value in asdict(agreements[name]).items()},
            **machine,
        }
        for operation in OPERATIONS
        for name, peer in peers.items()
        if (name, operation) in timings
    ]


@contextmanager
def _left_out_if_it_fails(name: str) -> Iterator[None]:
    try:
        yield
    except (EdgeadaptError, RuntimeError) as error:
        _say_left_out(name, error)


def _say_left_out(name: str, error: Exception) -> None:
    text = f"{name} is left out: {one_line(error)}"
    console(stderr=True).print(text, markup=False, soft_wrap=True)


def _tensorrt(info: DeviceInfo) -> bool:
    """Whether TensorRT is installed and builds engines for the GPU; says why it does not."""
    try:
        library = find_library()
    except BackendError:
        return False
    try:
        check_target(library, info.capability, info)
    except BackendError as error:
        _say_left_out(TENSORRT, error)
        return False
    return True


def _reference(bundle: Bundle, work: Work, picture: Any) -> tuple[str, Results]:
    """PyTorch's float32 in its usual layout, else the native engine."""
    if work.factory:
        name = TORCH
        return name, first_results(_torch_peer(name, bundle, picture, work, 1))
    image = to_network(picture, bundle.manifest.image.size_multiple)
    peer = RuntimePeer(bundle, "native", image, work.scope, work.threads or usable_cores())
    return "native", first_results(peer)


def _torch_peer(name: str, bundle: Bundle, picture: Any, work: Work, steps: int) -> TimedPeer:
    from edgeadapt.benchmarks.torch_cuda import TorchCudaPeer

    image = to_network(picture, bundle.manifest.image.size_multiple)
    return TorchCudaPeer(name, bundle, image, work, steps)


def _checked(name: str, peer: TimedPeer, reference: str, expected: Results) -> Agreement:
    found = agreement(first_results(peer), expected)
    if not found.within_bounds(half=is_rough(name)):
        raise EdgeadaptError(
            f"{name} and {reference} do not agree ({found}); "
            + ("it is not timed." if is_torch(name) else "nothing was timed."),
            "`edgeadapt check` compares the bundle with PyTorch in float64.",
        )
    return found


def _values(bundle: Bundle, work: Work, steps: int, repeats: int) -> tuple[Any, ...]:
    stem = bundle.path.resolve().stem
    return (stem, work.height, work.width, work.scope, steps, repeats)


def _times(timings: Timings, name: str, operation: str, first: str) -> dict[str, float]:
    found, base = timings[name, operation], timings[first, operation]
    return {"median_ms": round(found, 4), "ratio": round(found / base, 3)}


def _cpu_ms(peer: TimedPeer, operation: str) -> float | None:
    """Of an adaptation, until it waits for the device; PyTorch's is in its time."""
    if not isinstance(peer, CudaPeer) or operation != "adapt":
        return None
    return round(1e3 * peer.cpu_seconds, 4)


def _least(bundle: Bundle, work: Work, figures: Any) -> Mapping[tuple[str, str], Row]:
    """The least times of our plans, for a GPU whose figures are known."""
    if figures is None:
        return {}
    size = padded_size(work.height, work.width, bundle.manifest.image.size_multiple)
    scope = bundle.scope(work.scope)
    found: dict[tuple[str, str], Row] = {}
    for precision in map(precision_of, our_names()):
        for operation, graph, updated in (
            ("step", scope.graph, scope.parameters),
            ("restore", RESTORE_GRAPH, ()),
        ):
            milliseconds = least_ms(bundle, graph, size, precision, figures, updated)
            found[precision, operation] = {
                "roofline_ms": round(milliseconds, 4),
                "roofline_of": figures.key,
            }
    return found


def _versions(with_torch: bool) -> Mapping[str, str]:
    if not with_torch:
        return {}
    from edgeadapt.benchmarks.torch_cuda import versions

    return versions()


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or not np.isfinite(value) else format(value, form)


def _gpu() -> Device:
    from edgeadapt.runtime.cuda.pycuda_device import open_device

    return open_device()
