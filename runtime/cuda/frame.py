"""The image at work on the device: it comes and goes as bytes, and is converted there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeadapt.errors import ArrayError
from edgeadapt.kernels.cuda import image, reduce
from edgeadapt.kernels.cuda.launch import Work
from edgeadapt.kernels.cuda.tensors import ImageArgs, TensorArgs
from edgeadapt.runtime.backend import U8, Frame
from edgeadapt.runtime.cuda.calls import run
from edgeadapt.runtime.cuda.device import Device
from edgeadapt.runtime.plan.ir import contiguous

_WORD = 4  # bytes; rows of pixels begin at multiples of it


class Screen:
    """Device memory for an image and its restoration of one size, float32 (1, 3, H, W).

    Bytes go through page-locked memory; where the device can read that, through nothing else.
    """

    def __init__(self, device: Device, height: int, width: int) -> None:
        self._device, self.size = device, (height, width)
        self._owned: list[int] = []
        try:
            self.image, self.restored = (self._new(12 * height * width) for _ in range(2))
            nbytes = height * -(-3 * width // _WORD) * _WORD
            self._in, self._out = (device.pinned((nbytes,), np.uint8) for _ in range(2))
            self._mapped = self._in.address is not None and self._out.address is not None
            self._bytes_in = self._in.address or self._new(nbytes)
            self._bytes_out = self._out.address or self._new(nbytes)
            self._found = self._new(8)  # how many values are no numbers; or 0, or no number
            self._said = device.pinned((1,), np.int64)
            self._scratch = 0
            works = [self._image_in(1, 1), self._image_out(height, width), self._sum()]
            self._scratch = self._new(max(1, *(work.scratch_bytes for work in works)))
            device.prepare({launch.kernel for work in works for launch in work.launches})
        except BaseException:
            self.close()
            raise

    def put(self, picture: U8) -> None:
        """Convert a picture that is padded to this size; the device may not be done with it."""
        self._device.synchronize()  # it may still read what was interrupted before
        height, width = picture.shape[:2]
        pitch = _pitch(width)
        rows = self._in.array[: height * pitch].reshape(height, pitch)
        rows[:, : 3 * width] = np.ascontiguousarray(picture).reshape(height, 3 * width)
        if not self._mapped:
            self._device.upload(self._bytes_in, self._in.array[: height * pitch])
        run(self._device, self._image_in(height, width).launches)

    def get(self, height: int, width: int) -> U8:
        """The upper left of the restoration.

        Raises:
            ArrayError: if a value is not a number.
        """
        pitch = _pitch(width)
        run(self._device, self._image_out(height, width).launches)
        if not self._mapped:
            self._device.download(self._out.array[: height * pitch], self._bytes_out)
        self._device.download(self._said.array, self._found)
        self._device.synchronize()
        missing = int(self._said.array[0])
        if missing:
            raise ArrayError(
                f"from_network: {missing} of {3 * height * width} values are not numbers.",
                "the weights or the network are broken: Session.reset() goes back to the bundle's.",
            )
        rows = self._out.array[: height * pitch].reshape(height, pitch)
        return rows[:, : 3 * width].reshape(height, width, 3).copy()

    def is_finite(self) -> bool:
        """Whether every value of the restoration is: 0 times their sum is 0 then."""
        run(self._device, self._sum().launches)
        self._device.download(self._said.array, self._found)
        self._device.synchronize()
        return float(self._said.array.view(np.float32)[0]) == 0.0

    def close(self) -> None:
        """Give the memory back; all work on it is done."""
        for address in self._owned:
            self._device.free(address)
        self._owned.clear()

    def _image_in(self, height: int, width: int) -> Work:
        frame = image.FrameArgs(self._bytes_in, height, width, _pitch(width))
        return image.image_in(frame, self._planes(self.image))

    def _image_out(self, height: int, width: int) -> Work:
        """It needs most working memory for the largest picture."""
        frame = image.FrameArgs(self._bytes_out, height, width, _pitch(width))
        return image.image_out(
            self._planes(self.restored), frame, self._found, scratch=self._scratch
        )

    def _sum(self) -> Work:
        """0 if every value is finite, else not a number."""
        shape = (1, 3, *self.size)
        x = TensorArgs.at(self.restored, shape, contiguous(shape), "f32")
        y = TensorArgs.at(self._found, (1, 1, 1, 1), (1, 1, 1, 1), "f32")
        return reduce.reduce(
            x, y, "sum", (0, 1, 2, 3), before="abs", scale=0.0, scratch=self._scratch
        )

    def _new(self, nbytes: int) -> int:
        self._owned.append(self._device.allocate(nbytes))
        return self._owned[-1]

    def _planes(self, address: int) -> ImageArgs:
        shape = (1, 3, *self.size)
        return ImageArgs.at(address, shape, contiguous(shape), "f32")


@dataclass(frozen=True, eq=False)
class DeviceFrame(Frame):
    """A frame whose image and restoration are on the device: the arrays only say how large."""

    screen: Screen

    @classmethod
    def of(cls, screen: Screen) -> DeviceFrame:
        """The frame of a screen."""
        nothing = np.broadcast_to(np.float32(np.nan), (1, 3, *screen.size))
        return cls(nothing, nothing, screen)

    def put(self, image: U8, multiple: int) -> None:
        """See `Frame`."""
        self.screen.put(image)

    def get(self, height: int, width: int) -> U8:
        """See `Frame`."""
        return self.screen.get(height, width)

    def is_finite(self) -> bool:
        """See `Frame`."""
        return self.screen.is_finite()


def _pitch(width: int) -> int:
    """Bytes from a row of pixels to the next."""
    return -(-3 * width // _WORD) * _WORD
