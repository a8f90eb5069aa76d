"""Where ONNX Runtime reads and writes: the session's own arrays, or copies of them on a device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from edgeadapt.bundle import Bundle
from edgeadapt.runtime.backend import Frame
from edgeadapt.runtime.optimizer import F32

_SLOT = 64  # floats: 256 bytes, what a GPU's own allocations are aligned to


class Place(NamedTuple):
    """What a binding wants to know, in its order."""

    device: str
    number: int
    type: type[np.float32]
    shape: tuple[int, ...]
    address: int


class Memory(Protocol):
    """The arguments of a bundle's graphs in memory that stays where it is."""

    def weight(self, name: str) -> Place:
        """A parameter."""

    def gradient(self, name: str) -> Place:
        """The gradient of a parameter."""

    def loss(self) -> Place:
        """The loss."""

    def image(self, frame: Frame) -> tuple[Place, Place]:
        """An image and its restoration, in place for as long as ``frame`` is there."""

    def send(self, frame: Frame, weights: bool) -> None:
        """Bring an image there, and the weights in use."""

    def fetch(self, frame: Frame, gradients: Iterable[str]) -> None:
        """Bring the restored image back, and gradients; nothing else is written to."""

    def loss_value(self) -> float:
        """The loss of the last run that wrote it."""


class HostMemory:
    """The session's arrays themselves."""

    def __init__(self, bundle: Bundle, weights: F32, gradients: F32) -> None:
        self._weights = bundle.named(weights)
        self._gradients = bundle.named(gradients)
        self._loss = np.zeros((), np.float32)

    def weight(self, name: str) -> Place:
        """See `Memory`."""
        return _host(self._weights[name])

    def gradient(self, name: str) -> Place:
        """See `Memory`."""
        return _host(self._gradients[name])

    def loss(self) -> Place:
        """See `Memory`."""
        return _host(self._loss)

    def image(self, frame: Frame) -> tuple[Place, Place]:
        """See `Memory`."""
        return _host(frame.image), _host(frame.restored)

    def send(self, frame: Frame, weights: bool) -> None:
        """Everything is there."""

    def fetch(self, frame: Frame, gradients: Iterable[str]) -> None:
        """Everything is there."""

    def loss_value(self) -> float:
        """See `Memory`."""
        return float(self._loss)


class DeviceMemory:
    """Copies that the library allocates on a device ("cuda", or "cpu" to try the same).

    All weights are one block and all gradients another, each parameter at an aligned place, so that
    a step costs one copy each way.
    """

    def __init__(
        self, bundle: Bundle, weights: F32, gradients: F32, library: Any, device: str
    ) -> None:
        self._library, self._device = library, device
        self._weights = bundle.named(weights)
        self._gradients = bundle.named(gradients)
        self._slots: dict[str, slice] = {}
        end = 0
        for name, view in self._weights.items():
            self._slots[name] = slice(end, end + view.size)
            end += -(-view.size // _SLOT) * _SLOT
        self._staged = np.zeros(end, np.float32)
        self._weight_block = self._allocate((end,))
        self._gradient_block = self._allocate((end,))
        self._loss = self._allocate(())
        self._images: WeakKeyDictionary[Frame, tuple[Any, Any]] = WeakKeyDictionary()

    def weight(self, name: str) -> Place:
        """See `Memory`."""
        return self._part(self._weight_block, name)

    def gradient(self, name: str) -> Place:
        """See `Memory`."""
        return self._part(self._gradient_block, name)

    def loss(self) -> Place:
        """See `Memory`."""
        return self._place((), self._loss.data_ptr())

    def image(self, frame: Frame) -> tuple[Place, Place]:
        """See `Memory`."""
        image, restored = self._image_of(frame)
        shape = frame.image.shape
        return self._place(shape, image.data_ptr()), self._place(shape, restored.data_ptr())

    def send(self, frame: Frame, weights: bool) -> None:
        """See `Memory`."""
        self._image_of(frame)[0].update_inplace(frame.image)
        if weights:
            for name, slot in self._slots.items():
                self._staged[slot] = self._weights[name].ravel()
            self._weight_block.update_inplace(self._staged)

    def fetch(self, frame: Frame, gradients: Iterable[str]) -> None:
        """See `Memory`."""
        np.copyto(frame.restored, self._image_of(frame)[1].numpy())
        names = list(gradients)
        if names:
            block = self._gradient_block.numpy()
            for name in names:
                view = self._gradients[name]
                np.copyto(view, block[self._slots[name]].reshape(view.shape))

    def loss_value(self) -> float:
        """See `Memory`."""
        return float(self._loss.numpy())

    def _image_of(self, frame: Frame) -> tuple[Any, Any]:
        if frame not in self._images:
            shape = frame.image.shape
            self._images[frame] = self._allocate(shape), self._allocate(shape)
        return self._images[frame]

    def _part(self, block: Any, name: str) -> Place:
        address = block.data_ptr() + self._slots[name].start * np.float32().itemsize
        return self._place(self._weights[name].shape, address)

    def _place(self, shape: tuple[int, ...], address: int) -> Place:
        return Place(self._device, 0, np.float32, shape, address)

    def _allocate(self, shape: tuple[int, ...]) -> Any:
        return self._library.OrtValue.ortvalue_from_shape_and_type(
            list(shape), np.float32, self._device, 0
        )


def _host(array: F32) -> Place:
    return Place("cpu", 0, np.float32, array.shape, array.ctypes.data)
