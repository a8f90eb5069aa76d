"""A program bound to device memory: its calls, and the graphs that were recorded of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.kernels.cuda.launch import Launch
from edgeadapt.runtime.cuda.calls import Call, Makers, bind, run
from edgeadapt.runtime.cuda.device import ALIGNMENT, Device, Event, Graph
from edgeadapt.runtime.cuda.memory import DeviceMemory
from edgeadapt.runtime.cuda.optimizer import AdamState, Update
from edgeadapt.runtime.cuda.plan import DevicePlan
from edgeadapt.runtime.optimizer import F32
from edgeadapt.runtime.plan.ir import Storage
from edgeadapt.runtime.plan.memory import hold_constants

Array = npt.NDArray[Any]


class Placed:
    """A plan's program in memory that begins at ``bases``.

    Constants and tables that its kernels read are in memory of its own.
    """

    def __init__(
        self,
        device: Device,
        plan: DevicePlan,
        bases: Mapping[Storage, int],
        makers: Makers,
        adam: AdamState,
    ) -> None:
        self._device, self.plan = device, plan
        self._owned: list[int] = []
        self._on_the_way: list[Array] = []  # to the device
        self._graphs: dict[int, Graph] = {}
        self._update = Update(device, plan.program, adam)
        try:
            constants = self._hold_all(hold_constants(plan.program))
            offsets = plan.placement.offsets
            self.memory = DeviceMemory(plan.program, bases, offsets, constants, self._hold)
            scratch = [bases["arena"] + offset for offset in plan.placement.scratch]
            every = {**makers, "update_together": self._update.make}
            self._made = bind(plan.program, every, self.memory, scratch)  # of each operation
            self._calls: list[Call] = [call for calls in self._made for call in calls]
            kernels = {call.kernel for call in self._calls if isinstance(call, Launch)}
            device.prepare(kernels)
            device.synchronize()
            self._on_the_way.clear()
        except BaseException:
            self.close()
            raise

    def graph(self, steps: int, losses: int = 0) -> Graph:
        """The program as often as ``steps``, each loss written to an element at ``losses``.

        0 is once, and the loss stays where it is. ``losses`` is the same each time.
        """
        if steps not in self._graphs:

            def work() -> None:
                for step in range(max(steps, 1)):
                    run(self._device, self._calls)
                    if steps:
                        loss = self.memory.address("loss")
                        self._device.copy(losses + 4 * step, loss, 4)

            self._graphs[steps] = self._device.capture(work)
        return self._graphs[steps]

    def run_marked(self) -> list[Event]:
        """The program once, without a graph; when each operation begins, and the last one ends."""
        marks = []
        for calls in self._made:
            marks.append(self._device.mark())
            run(self._device, calls)
        return [*marks, self._device.mark()]

    def use_step_sizes(self, step_sizes: F32) -> None:
        """Take steps of this size, for each element of the flat weights, from now on."""
        self._update.set_step_sizes(step_sizes)

    def close(self) -> None:
        """Give back what it holds; all work with it is done."""
        while self._graphs:
            self._graphs.popitem()[1].close()
        while self._owned:
            self._device.free(self._owned.pop())

    def _hold(self, array: Array) -> int:
        return self._hold_all({"": array})[""]

    def _hold_all(self, arrays: Mapping[str, Array]) -> dict[str, int]:
        """Copy arrays to the device, one behind the other; their addresses."""
        offsets, end = {}, 0
        for name, array in arrays.items():
            offsets[name] = end
            end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        if not end:
            return dict.fromkeys(offsets, 0)
        whole = np.zeros(end, np.uint8)
        for name, array in arrays.items():
            data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
            whole[offsets[name] : offsets[name] + data.size] = data
        self._owned.append(self._device.allocate(end))
        self._on_the_way.append(whole)
        self._device.upload(self._owned[-1], whole)
        return {name: self._owned[-1] + offset for name, offset in offsets.items()}
