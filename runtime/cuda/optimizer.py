"""SGD and Adam on the device: their state, and the launch that takes a step of all parameters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeadapt.kernels.cuda import update
from edgeadapt.kernels.cuda.segments import Table
from edgeadapt.kernels.cuda.tensors import TensorArgs
from edgeadapt.kernels.update import Segments
from edgeadapt.runtime.cuda.calls import Made
from edgeadapt.runtime.cuda.device import Device
from edgeadapt.runtime.cuda.memory import DeviceMemory
from edgeadapt.runtime.optimizer import BETA1, BETA2, EPSILON, F32, Adam, Optimizer, Sgd
from edgeadapt.runtime.plan.ir import Op, Program

KINDS = {Sgd: "sgd", Adam: "adam"}  # classes of optimizers that have kernels


def kind_of(optimizer: Optimizer) -> str:
    """What the kernel of an optimizer is called; "" if it has none."""
    return KINDS.get(type(optimizer), "")


class AdamState:
    """Adam's means and count on the device, zeros to begin with; made when first asked for."""

    def __init__(self, device: Device, size: int) -> None:
        self._device, self.size = device, size
        self.mean = self.square = self.steps = 0

    def open(self) -> None:
        """Allocate it, unless that is done."""
        if not self.steps:
            self.mean, self.square = (self._device.allocate(4 * self.size) for _ in range(2))
            self.steps = self._device.allocate(update.STATE_BYTES)
            self.clear()

    def clear(self) -> None:
        """Forget all steps."""
        if self.steps:
            for address in (self.mean, self.square):
                self._device.fill(address, 0, 4 * self.size)
            self._device.fill(self.steps, 0, update.STATE_BYTES)


class Update:
    """The step of one program: a launch, and the table of step sizes that it reads."""

    def __init__(self, device: Device, program: Program, state: AdamState) -> None:
        self._device, self._program, self._state = device, program, state
        self._table: Table | None = None
        self._address = 0
        self._factor, self._is_adam = 1.0, False

    def make(self, op: Op, memory: DeviceMemory, scratch: int) -> Made:
        """Of the operation `update_together`."""
        names = [op.inputs[f"weight{number}"] for number in range(len(op.outputs))]
        weights = [self._program.tensors[name] for name in names]
        begins, counts = (
            np.array(values, np.int64)
            for values in ([w.offset for w in weights], [w.size for w in weights])
        )
        zeros = np.zeros(len(weights))
        self._table = table = update.step_table(Segments(begins, counts, zeros), self._state.size)
        self._factor = op.attributes["gradient_factor"]
        self._is_adam = op.attributes["optimizer"] == "adam"
        self._address = memory.hold(table.rows)
        weights_args = self._flat(memory.bases["weights"])
        gradients_args = self._flat(memory.bases["gradients"])
        if not self._is_adam:
            return Made(update.sgd(weights_args, gradients_args, table, self._address).launches)
        self._state.open()
        return Made(
            update.adam(
                weights_args,
                gradients_args,
                self._flat(self._state.mean),
                self._flat(self._state.square),
                self._state.steps,
                table,
                self._address,
                betas=(BETA1, BETA2),
                epsilon=EPSILON * self._factor,
            ).launches
        )

    def set_step_sizes(self, step_sizes: F32) -> None:
        """Use these, of each element of the flat weights, from now on."""
        assert self._table is not None, "the program has no update"
        rows = self._table.rows
        # All elements of a parameter have the same. The factor goes into SGD's step size and into
        # Adam's epsilon: Adam divides it out of the rest.
        sizes: npt.NDArray[np.float64] = step_sizes[rows["begin"]].astype(np.float64)
        sizes = sizes if self._is_adam else sizes / self._factor
        if not np.array_equal(rows["step_size"], sizes):  # at first they are zeros, there as well
            rows["step_size"] = sizes
            self._device.upload(self._address, rows.view(np.uint8))

    def _flat(self, address: int) -> TensorArgs:
        return TensorArgs.at(address, (self._state.size,), (1,), "f32")
