"""The flat arrays of weights and gradients on the device, and their way from and to the session."""

from __future__ import annotations

import numpy as np

from edgeadapt.bundle import Bundle
from edgeadapt.runtime.cuda.device import Device
from edgeadapt.runtime.optimizer import F32


class Flat:
    """Copies of a session's arrays; ``stale`` if its weights are newer."""

    def __init__(self, device: Device, bundle: Bundle, weights: F32, gradients: F32) -> None:
        self._device, self._bundle = device, bundle
        self._session_weights, self._session_gradients = weights, gradients
        self.weights, self.gradients, self.original = (
            device.allocate(weights.nbytes) for _ in range(3)
        )
        # One more than there are arrays: what is uploaded must not be written meanwhile.
        self._new_weights, self._weights_host, self._gradients_host = (
            device.pinned(weights.shape, np.float32).array for _ in range(3)
        )
        self._parts: dict[str, list[slice]] = {}
        self.stale = True
        original = bundle.weights()
        device.upload(self.original, original)
        device.fill(self.gradients, 0, weights.nbytes)
        device.synchronize()

    def upload_weights(self) -> None:
        """Bring the session's weights to the device if it has changed them."""
        if self.stale:
            np.copyto(self._new_weights, self._session_weights)
            self._device.upload(self.weights, self._new_weights)
            self.stale = False

    def download_weights(self) -> None:
        """Begin to; `give_weights` ends it when the device is done."""
        self._device.download(self._weights_host, self.weights)

    def give_weights(self) -> None:
        """Write the session's weights."""
        np.copyto(self._session_weights, self._weights_host)

    def download_gradients(self) -> None:
        """Begin to; `give_gradients` ends it when the device is done."""
        self._device.download(self._gradients_host, self.gradients)

    def give_gradients(self, scope: str, factor: float) -> None:
        """Write the session's gradients of a scope's parameters, without ``factor``."""
        for part in self._parts_of(scope):
            np.multiply(
                self._gradients_host[part], np.float32(1 / factor), self._session_gradients[part]
            )

    def _parts_of(self, scope: str) -> list[slice]:
        """Where the parameters of a scope are; neighbours are one part."""
        if scope not in self._parts:
            offsets = self._bundle.offsets()
            parts: list[slice] = []
            for name in self._bundle.scope(scope).parameters:
                begin, end = offsets[name].start, offsets[name].stop
                if parts and parts[-1].stop == begin:
                    begin = parts.pop().start
                parts.append(slice(begin, end))
            self._parts[scope] = parts
        return self._parts[scope]
