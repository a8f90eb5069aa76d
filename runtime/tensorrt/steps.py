"""Adaptation steps through an engine of the adapt graph: the second way to take one on a device.

    copies of the weights -> engine -> copies of the gradients -> SGD or Adam

all of them, as often as there are steps, in one recorded graph. It is here to be measured against
the native engine's steps; sessions do not use it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgeadapt.bundle import Bundle
from edgeadapt.graphs import GRADIENT_PREFIX
from edgeadapt.kernels.cuda import update
from edgeadapt.kernels.cuda.launch import Launch
from edgeadapt.kernels.cuda.tensors import TensorArgs
from edgeadapt.kernels.update import Segments
from edgeadapt.runtime.cuda.calls import run
from edgeadapt.runtime.cuda.device import Device, Graph
from edgeadapt.runtime.cuda.optimizer import AdamState, kind_of
from edgeadapt.runtime.optimizer import BETA1, BETA2, EPSILON, Adam, Sgd
from edgeadapt.runtime.tensorrt.execution import BoundEngine, OpenEngine


class Memory(NamedTuple):
    """Addresses on the device: of the image, its restoration, and the flat arrays."""

    image: int
    restored: int
    weights: int
    gradients: int


class StepEngine:
    """Steps of one scope with ``optimizer``, whose step sizes stay as they are.

    ``engine`` is one of the scope's adapt graph with weights as inputs; it is closed with this.
    """

    def __init__(
        self,
        device: Device,
        engine: OpenEngine,
        bundle: Bundle,
        scope: str,
        memory: Memory,
        optimizer: Sgd | Adam,
    ) -> None:
        self._device, self._memory = device, memory
        self._graphs: dict[int, Graph] = {}
        offsets = bundle.offsets()
        self._parts = {name: offsets[name] for name in bundle.scope(scope).parameters}
        self._state = AdamState(device, optimizer.step_sizes.size)
        self._table = 0
        given = {"image": memory.image, "restored": memory.restored}
        self._bound = BoundEngine(device, engine, bundle, given)
        try:
            self._launches = self._update(optimizer)
            device.prepare({launch.kernel for launch in self._launches})
        except BaseException:
            self.close()
            raise

    @property
    def loss(self) -> int:
        """Where the loss of the last step is, before its update."""
        return self._bound.address("loss")

    def warm_up(self) -> None:
        """Evaluate loss and gradients once; what is recorded has to have run before."""
        self._bound.copy_weights(self._memory.weights)
        self._bound.call()
        self._copy_gradients()

    def graph(self, steps: int) -> Graph:
        """So many steps, recorded, after `warm_up`."""
        if steps not in self._graphs:

            def work() -> None:
                for _ in range(steps):
                    self.warm_up()
                    run(self._device, self._launches)

            self._graphs[steps] = self._device.capture(work)
        return self._graphs[steps]

    def close(self) -> None:
        """Give back what it holds; nothing of it is running."""
        while self._graphs:
            self._graphs.popitem()[1].close()
        self._bound.close()
        state = self._state
        for address in (state.mean, state.square, state.steps, self._table):
            if address:
                self._device.free(address)
        state.mean = state.square = state.steps = self._table = 0

    def _copy_gradients(self) -> None:
        for name, at in self._parts.items():
            source = self._bound.address(GRADIENT_PREFIX + name)
            to = self._memory.gradients + 4 * at.start
            self._device.copy(to, source, 4 * (at.stop - at.start))

    def _update(self, optimizer: Sgd | Adam) -> tuple[Launch, ...]:
        size = self._state.size
        begins = np.array([at.start for at in self._parts.values()], np.int64)
        counts = np.array([at.stop - at.start for at in self._parts.values()], np.int64)
        sizes = optimizer.step_sizes[begins].astype(np.float64)
        table = update.step_table(Segments(begins, counts, sizes), size)
        rows = table.rows.view(np.uint8)
        self._table = self._device.allocate(rows.nbytes)
        self._device.upload(self._table, rows)
        self._device.synchronize()  # the rows are read until then

        def flat(address: int) -> TensorArgs:
            return TensorArgs.at(address, (size,), (1,), "f32")

        arrays = flat(self._memory.weights), flat(self._memory.gradients)
        if kind_of(optimizer) == "sgd":
            return tuple(update.sgd(*arrays, table, self._table).launches)
        self._state.open()
        state = flat(self._state.mean), flat(self._state.square)
        work = update.adam(
            *arrays,
            *state,
            self._state.steps,
            table,
            self._table,
            betas=(BETA1, BETA2),
            epsilon=EPSILON,
        )
        return tuple(work.launches)
