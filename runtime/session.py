"""A bundle in use: restore an image, adapt the weights to one, go back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgeadapt.bundle import Bundle, ImageContract, open_bundle
from edgeadapt.errors import BackendError, BundleError, ConfigError
from edgeadapt.image import check_frame, padded_size
from edgeadapt.runtime import weights_file
from edgeadapt.runtime.backend import (
    Backend,
    EngineOptions,
    Evaluation,
    Frame,
    Precision,
    is_finite,
)
from edgeadapt.runtime.backends import open_backend
from edgeadapt.runtime.optimizer import F32, Optimizer, make_optimizer
from edgeadapt.shipped import shipped_names

U8 = npt.NDArray[np.uint8]

# The first and the last loss come from two graphs, which may add up their pixels in another order:
# float32 sums of a million terms in blocks agree to about 1e-6. A rise of less than this is not a
# rise.
_LOSS_SLACK = 1e-5


@dataclass(frozen=True, eq=False)
class Adaptation:
    """What one call of `Session.adapt` did."""

    # K + 1: before each step and after the last; fewer if it was cut short.
    losses: tuple[float, ...]
    # K: gradients and update, without the image's way in and out.
    step_seconds: tuple[float, ...]
    # With keep_steps, the image at the weights of each loss; else ().
    restored_steps: tuple[U8, ...]
    steps: int  # K that was asked for
    scope: str
    step_size: float | None  # that was asked for; None: the bundle's own
    reverted: str  # "" or why the weights went back to the bundle's


class Session:
    """Restores images with a bundle's network and adapts its weights to them.

    Not for several threads at once.

    Args:
        bundle: a folder that `edgeadapt export` wrote, "nano", "edge" or "default" for a network
            that ships, or an open `Bundle`.
        backend: "auto" or a name in `edgeadapt.runtime.backends.BACKENDS`.
        threads: number of CPU threads; None leaves it to the engine.
        precision: "fp32"; "bf16" or, on GPUs, "fp16": activations in 16 bits, weights and gradients
            in float32; on GPUs "tf32": products of 10 bits.
        memory_budget: bytes that the intermediate values of a step may take; what does not fit is
            computed again instead of kept. None: what is fastest.
        engine: for the backend tensorrt, a file that `edgeadapt build` wrote for this bundle,
            precision and size of images; None: one is built when it is needed, and kept.

    Raises:
        BundleError: if the bundle is not sound.
        BackendError: if the backend is unknown, not installed, or cannot do what is asked.
        ConfigError: if an option is out of range.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        backend: str = "auto",
        threads: int | None = None,
        precision: Precision = "fp32",
        memory_budget: int | None = None,
        engine: str | Path | None = None,
    ) -> None:
        self.bundle = _opened(bundle)
        self._original = self.bundle.weights()
        self._weights = self._original.copy()
        self._gradients = np.zeros_like(self._weights)
        self._pristine = True  # the weights are the bundle's own, bit for bit
        self._frame: Frame | None = None
        self._size = (0, 0)  # of the frame
        self._engine: Backend | None = open_backend(
            backend,
            self.bundle,
            self._weights,
            self._gradients,
            EngineOptions(
                threads, precision, memory_budget, None if engine is None else str(engine)
            ),
        )

    @property
    def image_contract(self) -> ImageContract:
        """What the network takes and gives."""
        return self.bundle.manifest.image

    @property
    def weights(self) -> F32:
        """The weights in use: a read-only flat float32 view, ordered as the parameter table."""
        view: F32 = self._weights.view()
        view.flags.writeable = False
        return view

    def restore(self, image: U8) -> U8:
        """Restore ``image``, uint8 (H, W, 3) RGB of any size, with the weights in use.

        Raises:
            ArrayError: if ``image`` is not such an array, or the network's output is not a number.
            BackendError: if the engine fails or the session is closed.
        """
        engine, frame = self._engine_or_raise(), self._load("restore", image)
        if self._pristine:
            engine.restore(frame)
        else:
            engine.restore_adapted(frame)
        return frame.get(*image.shape[:2])

    def adapt(
        self,
        image: U8,
        steps: int | None = None,
        scope: str = "all",
        step_size: float | None = None,
        keep_steps: bool = False,
    ) -> Adaptation:
        """Take gradient steps on the self-supervised loss of ``image``, from the weights in use.

        An optimizer's state starts fresh. If the loss or a gradient stops being finite, or the loss
        ends above its start, the weights go back to the bundle's and `Adaptation.reverted` says
        why.

        Args:
            image: uint8 (H, W, 3) RGB of any size.
            steps: number of steps K; None takes the number the network was trained for.
            scope: which parameters may change: the name of one of the bundle's scopes.
            step_size: of every parameter in the scope; None takes the bundle's, learned ones
                included.
            keep_steps: keep the restored image before each step and after the last.

        Raises:
            ArrayError, BundleError, ConfigError: if image, scope, or a number is not right; nothing
                has changed then.
            BackendError: if the engine fails or the session is closed. Whatever stops the steps
                half-way, Ctrl-C too, the weights are the bundle's then.
        """
        steps = _checked_steps(self.bundle.manifest.adaptation.steps if steps is None else steps)
        optimizer = make_optimizer(self.bundle, self._weights, self._gradients, scope, step_size)
        frame = self._load("adapt", image)
        self._gradients.fill(0.0)  # what another scope left must not reach this optimizer
        engine = self._engine_or_raise()
        trace = _Trace(engine, frame, image, keep_steps, plain=self._pristine)
        try:
            if steps:
                engine.prepare(scope, frame, optimizer)
            fault = self._take_steps(trace, optimizer, steps, scope, keep_steps)
        except BaseException:  # also Ctrl-C and want of memory: half an adaptation must not stay
            self.reset()
            raise
        if fault:
            self.reset()
        return Adaptation(
            tuple(trace.losses),
            tuple(trace.seconds),
            tuple(trace.images),
            steps=steps,
            scope=scope,
            step_size=step_size,
            reverted=fault,
        )

    def reset(self) -> None:
        """Go back to the bundle's weights."""
        np.copyto(self._weights, self._original)
        self._pristine = True
        if self._engine is not None:
            self._engine.weights_changed()

    def save_weights(self, path: str | Path) -> None:
        """Write the weights in use to a safetensors file, for example one for each camera.

        Raises:
            WeightsError: if the file cannot be written.
        """
        weights_file.save_weights(Path(path), self.bundle, self._weights)

    def load_weights(self, path: str | Path) -> None:
        """Use the weights of a file that `save_weights` wrote with the same bundle.

        Raises:
            WeightsError: if the file is damaged or belongs to other bundle weights; nothing has
                changed then.
        """
        np.copyto(self._weights, weights_file.load_weights(Path(path), self.bundle))
        self._pristine = False
        if self._engine is not None:
            self._engine.weights_changed()

    def close(self) -> None:
        """Free the engine and the image buffers; the session cannot be used any more."""
        engine, self._engine = self._engine, None
        self._frame = None
        if engine is not None:
            engine.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take_steps(
        self, trace: _Trace, optimizer: Optimizer, steps: int, scope: str, each: bool
    ) -> str:
        """Run the K steps and the last evaluation; return "" or why the weights are no good."""
        if steps:
            self._pristine = False
        found = trace.engine.adapt(scope, trace.frame, optimizer, steps, each)
        for number, evaluation in enumerate(found):
            trace.losses.append(evaluation.loss)
            last = number == steps
            what, array = ("a weight", self._weights) if last else ("a gradient", self._gradients)
            fault = _fault(evaluation, trace, what, array)
            if fault:
                return fault
            if not last:
                trace.seconds.append(evaluation.seconds)
            trace.keep()
        first, final = trace.losses[0], trace.losses[-1]
        if loss_rose(first, final):
            return f"the loss rose from {first:.6g} to {final:.6g}"
        return ""

    def _load(self, operation: str, image: U8) -> Frame:
        """Check ``image`` and put it into the frame of its padded size, kept for the next image."""
        check_frame(operation, image)
        multiple = self.image_contract.size_multiple
        size = padded_size(image.shape[0], image.shape[1], multiple)
        engine = self._engine_or_raise()
        if self._frame is None or self._size != size:
            self._frame = None  # frees the old one before the new one is made
            self._frame = engine.open_frame(*size)
            self._size = size
        self._frame.put(image, multiple)
        return self._frame

    def _engine_or_raise(self) -> Backend:
        if self._engine is None:
            raise BackendError("the session is closed.", "open another with edgeadapt.Session.")
        return self._engine


class _Trace:
    """What is recorded while the steps run."""

    def __init__(
        self, engine: Backend, frame: Frame, image: U8, keep_steps: bool, plain: bool
    ) -> None:
        self.engine, self.frame = engine, frame
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.images: list[U8] = []
        self._size = image.shape[:2]
        self._keep_steps = keep_steps
        self._plain = plain  # the steps start from the bundle's own weights

    def keep(self) -> None:
        """Keep the restored image of the last evaluation, if images are kept."""
        if not self._keep_steps:
            return
        if self._plain and not self.images:
            # The step's graph rounds in its own way; the image before any step is plain inference
            # bit for bit.
            self.engine.restore(self.frame)
        self.images.append(self.frame.get(*self._size))


def loss_rose(first: float, last: float) -> bool:
    """Whether steps that led from loss ``first`` to ``last`` are taken back."""
    return last > first + _LOSS_SLACK * abs(first)


def _fault(found: Evaluation, trace: _Trace, what: str, array: F32) -> str:
    step = len(trace.seconds)
    if not math.isfinite(found.loss):
        return f"the loss is {found.loss} after {step} steps"
    if not found.settled:
        return ""
    if not is_finite(array):
        return f"{what} is not finite after {step} steps"
    if not trace.frame.is_finite():
        return f"the restored image is not finite after {step} steps"
    return ""


def _opened(bundle: object) -> Bundle:
    if isinstance(bundle, Bundle):
        return bundle
    if not isinstance(bundle, (str, Path)):
        raise BundleError(
            f"Session: bundle must be a path or a Bundle, got {bundle!r}.",
            f"give the folder that `edgeadapt export` wrote, {shipped_names()}.",
        )
    return open_bundle(bundle)


def _checked_steps(steps: object) -> int:
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 0:
        raise ConfigError(
            f"steps must be a whole number, at least 0, got {steps!r}.",
            "0 is plain inference; leave it out for the number the network was trained for.",
        )
    return int(steps)
