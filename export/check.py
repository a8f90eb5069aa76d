"""`edgeadapt check`: is a bundle sound, and is it the network it was exported from?

Without PyTorch: hashes, tables, and every graph opens. With it: restored image, loss, every
gradient of every scope and a K-step trajectory against PyTorch's autograd in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from edgeadapt.bundle import LOSS_GRAPH, RESTORE_GRAPH, Bundle, Scope
from edgeadapt.errors import BundleError, one_line
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.testing import compare_gradients, photo, psnr

if TYPE_CHECKING:
    from edgeadapt.export.reference import Reference

F32 = npt.NDArray[np.float32]
Progress = Callable[[str], None]

GRADIENT_BOUND = 1e-5  # relative L2: float32 sums over an image err by a few 1e-7
LOSS_BOUND = 1e-5  # relative to the loss, or to this where the loss is smaller:
_SMALL_LOSS = 1e-3
RESTORED_BOUND = 1e-5  # absolute, of a range of 2: a fiftieth of half a grey level
WEIGHT_BOUND = 1e-6  # absolute, after K steps
# Share of the weights, at least one, that Adam may leave elsewhere: its steps are as long for a
# gradient that is only rounding as for any other.
ADAM_DOUBTFUL = 1e-3
PSNR_BOUND = 0.01  # dB, after K steps, where the PSNR is not above this:
_BEST_PSNR = 120.0  # dB: an error of a millionth of the range is float32's own, and 0 has no dB
SIZES = ((2, 3), (3, 1), (1, 1))  # in multiples of the bundle's size; odd and unequal on purpose
_NOTHING = 1e-9  # of the whole gradient: far below float32, far above float64's rounding
_TRIES = 12  # seeds to look through for an image without values at a kink


@dataclass(frozen=True)
class Finding:
    """One comparison: the worst ``value`` found against its ``bound``."""

    what: str
    value: float
    bound: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the value is finite and within the bound."""
        return bool(np.isfinite(self.value)) and self.value <= self.bound


class Graphs:
    """The graphs of a bundle, opened with ONNX Runtime on the CPU.

    Raises:
        BundleError: naming a graph that does not open.
    """

    def __init__(self, bundle: Bundle) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # As the runtime opens them: what is checked is what runs. With symbolic sizes the search
        # for buffers to reuse takes longer than all the rest of the opening.
        options.enable_mem_reuse = False
        options.enable_mem_pattern = False
        options.use_deterministic_compute = True
        self.sessions = {}
        for name in (RESTORE_GRAPH, LOSS_GRAPH, *(scope.graph for scope in bundle.manifest.scopes)):
            try:
                self.sessions[name] = onnxruntime.InferenceSession(
                    str(bundle.path / name), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # the library's errors share no base class
                reason = one_line(error, 200)
                raise BundleError(
                    f"{bundle.path / name}: ONNX Runtime cannot open it ({reason})."
                ) from error

    def run(
        self, graph: str, image: F32, weights: Mapping[str, F32] | None = None
    ) -> dict[str, Any]:
        """Evaluate a graph; ``weights`` None for the restore graph, which has its own."""
        session = self.sessions[graph]
        names = [output.name for output in session.get_outputs()]
        return dict(
            zip(names, session.run(names, {"image": image, **(weights or {})}), strict=True)
        )


def compare(
    bundle: Bundle,
    reference: Reference,
    progress: Progress = lambda stage: None,
    steps: int | None = None,
) -> list[Finding]:
    """Compare every graph of the bundle with the reference, whose weights are set to the bundle's.

    ``steps`` is the length of the trajectory; the bundle's K unless given.
    """
    graphs, weights = Graphs(bundle), bundle.named(bundle.weights())
    reference.load(weights)
    images: list[tuple[F32, int]] = []
    findings: list[Finding] = []
    multiple = bundle.manifest.image.size_multiple
    for rows, columns in SIZES:
        progress(f"comparing at {columns * multiple}x{rows * multiple}")
        images.append(smooth_image(reference, rows * multiple, columns * multiple))
        findings += _compare_at(bundle, graphs, reference, weights, *images[-1])
    for scope in bundle.manifest.scopes:
        progress(f"comparing a trajectory of scope {scope.name}")
        findings += _trajectory(bundle, graphs, reference, weights, images[0][0], scope, steps)
    return _worst(findings)


def smooth_image(reference: Reference, height: int, width: int) -> tuple[F32, int]:
    """An image in [-1, 1], (1, 3, height, width), with no value of the network within rounding of a
    kink.

    Returns it and the number of such values: 0, unless none of the images tried is without; then
    the best of them."""
    from edgeadapt.export.reference import count_kinks

    best: tuple[int, F32] | None = None
    for seed in range(_TRIES):
        # Noise keeps flat areas from being exactly equal to their reconstruction in any network.
        noise = np.random.default_rng([seed, height, width]).uniform(
            -0.05, 0.05, (3, height, width)
        )
        pixels = photo(seed, height, width).transpose(2, 0, 1) / 127.5 - 1 + noise
        image = np.ascontiguousarray(pixels[None], np.float32)
        kinks = count_kinks(reference, image)
        if best is None or kinks < best[0]:
            best = kinks, image
        if kinks == 0:
            break
    assert best is not None
    return best[1], best[0]


def _compare_at(
    bundle: Bundle,
    graphs: Graphs,
    reference: Reference,
    weights: dict[str, F32],
    image: F32,
    kinks: int,
) -> Iterator[Finding]:
    every = sorted({name for scope in bundle.manifest.scopes for name in scope.parameters})
    exact = reference.evaluate(image, every)
    at = f"at {image.shape[3]}x{image.shape[2]}"
    if kinks:
        at += f", {kinks} values within rounding of a kink"
    plain = graphs.run(RESTORE_GRAPH, image)
    yield Finding("restore: image", _largest(plain["restored"], exact.restored), RESTORED_BOUND, at)
    for graph in (LOSS_GRAPH, *(scope.graph for scope in bundle.manifest.scopes)):
        found = graphs.run(graph, image, weights)
        label = graph.removesuffix(".onnx")
        restored = _largest(found["restored"], exact.restored)
        yield Finding(f"{label}: image", restored, RESTORED_BOUND, at)
        yield Finding(f"{label}: loss", _loss_error(found["loss"], exact.loss), LOSS_BOUND, at)
        errors = _gradient_errors(found, exact.gradients)
        if errors:
            # numpy's maximum is NaN if one of them is; Python's goes past it.
            worst = list(errors)[int(np.argmax(list(errors.values())))]
            note = f"{at}: {worst}"
            yield Finding(f"{label}: {len(errors)} gradients", errors[worst], GRADIENT_BOUND, note)


def _gradient_errors(found: Mapping[str, Any], exact: Mapping[str, Any]) -> dict[str, float]:
    """Relative L2 error of every gradient among the outputs of a graph; NaN if it is not finite.

    A gradient that is zero by construction (of a bias in front of a normalisation, say) is rounding
    in float64 too: such a one is measured against all gradients together, or if all are zero, as
    they are at the minimum of a loss, absolutely.
    """
    whole = math.sqrt(sum(float(np.vdot(value, value)) for value in exact.values()))
    errors = {}
    for key in found:
        if key.startswith(GRADIENT_PREFIX):
            name = key.removeprefix(GRADIENT_PREFIX)
            if np.linalg.norm(exact[name]) > _NOTHING * whole:
                errors[name] = compare_gradients(found[key], exact[name]).relative_l2
            else:
                errors[name] = float(np.linalg.norm(found[key] - exact[name])) / (whole or 1.0)
    return errors


def _worst(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for each thing compared: the one furthest out; NaN is further out than all."""
    worst: dict[str, Finding] = {}
    for finding in findings:
        best = worst.setdefault(finding.what, finding)
        if np.isnan(finding.value) or finding.value > best.value:
            worst[finding.what] = finding
    return list(worst.values())


def _trajectory(
    bundle: Bundle,
    graphs: Graphs,
    reference: Reference,
    weights: Mapping[str, F32],
    image: F32,
    scope: Scope,
    steps: int | None,
) -> Iterator[Finding]:
    import torch

    from edgeadapt.export.reference import apply_step, count_kinks, make_optimizer

    adaptation = bundle.manifest.adaptation
    count = adaptation.steps if steps is None else steps
    reference.load(dict(weights))
    exact = make_optimizer(dict(reference.network.named_parameters()), adaptation, scope.parameters)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
    rounded = make_optimizer(tensors, adaptation, scope.parameters)
    losses, kinks = [], 0
    for _ in range(count):
        kinks += count_kinks(reference, image)
        step = reference.evaluate(image, scope.parameters)
        found = graphs.run(
            scope.graph, image, {name: value.numpy() for name, value in tensors.items()}
        )
        losses.append(_loss_error(found["loss"], step.loss))
        reference.step(exact, step.gradients)
        apply_step(
            rounded, tensors, {name: found[GRADIENT_PREFIX + name] for name in scope.parameters}
        )
    last = reference.evaluate(image, scope.parameters)
    found = graphs.run(LOSS_GRAPH, image, {name: value.numpy() for name, value in tensors.items()})
    losses.append(_loss_error(found["loss"], last.loss))
    label = f"{count} steps of scope {scope.name}"
    note = f"{kinks} values within rounding of a kink on the way" if kinks else ""
    yield Finding(f"{label}: losses", float(np.max(losses)), LOSS_BOUND, note)
    ends = reference.weights()
    moved = {name: tensors[name].numpy() for name in scope.parameters}
    drift = largest_drift(moved, ends, adaptation.optimizer)
    yield Finding(f"{label}: weights", drift, WEIGHT_BOUND, note)
    quality = abs(_quality(found["restored"], image) - _quality(last.restored, image))
    yield Finding(f"{label}: image, dB", quality, PSNR_BOUND, note)


def same_weights(bundle: Bundle, state: Mapping[str, Any]) -> str:
    """Name of the first parameter whose bits differ between the bundle and a PyTorch state dict, or
    "".
    """
    weights = bundle.named(bundle.weights())
    for name, value in weights.items():
        if name not in state or not np.array_equal(value, state[name].detach().cpu().numpy()):
            return name
    return ""


def largest_drift(
    found: Mapping[str, F32], exact: Mapping[str, npt.NDArray[Any]], optimizer: str
) -> float:
    """The largest distance of a weight from where it should be, without Adam's doubtful ones."""
    apart = [np.abs(value - exact[name]).reshape(-1) for name, value in found.items()]
    drifts = np.sort(np.concatenate([np.zeros(1), *apart]))  # NaN comes last
    if optimizer == "adam" and np.isfinite(drifts[-1]):
        drifts = drifts[: -math.ceil(ADAM_DOUBTFUL * (drifts.size - 1)) or None]
    return float(drifts[-1])


def _loss_error(found: Any, exact: float) -> float:
    return abs(float(found) - exact) / max(abs(exact), _SMALL_LOSS)


def _quality(restored: npt.NDArray[Any], image: F32) -> float:
    """PSNR in dB; a NaN stays one, since Python's minimum gives the first unless it is larger."""
    return min(psnr(restored, image, 2.0), _BEST_PSNR)


def _largest(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    return float(np.max(np.abs(actual.astype(np.float64) - expected), initial=0.0))


def failures(findings: Sequence[Finding]) -> list[Finding]:
    """The findings out of bounds."""
    return [finding for finding in findings if not finding.ok]
