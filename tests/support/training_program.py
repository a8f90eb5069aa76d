"""A training step of a small residual network as a program, fused as the plan would have it.

Two scales share their weights, so gradients are running sums; each scale has stages at falling
sizes, each an opening convolution and residual blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeadapt.runtime.plan.ir import Program
from support.programs import Builder

SLOPE = 0.1
HALF = {"strides": (2, 2)}


@dataclass
class Saved:
    """One convolution of the forward pass, for its gradients."""

    weight: str
    x: str
    y: str
    leaky: bool
    residual: str | None
    at: dict[str, object]


class Step(Builder):
    """Builds forward and backward; ``widths`` are the channels of the stages."""

    def __init__(self, widths: tuple[int, ...], blocks: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.saved: list[Saved] = []
        self.sums: dict[str, str] = {}
        self.tensor("image", (1, 3, *size), storage="image")
        self.widths, self.blocks, self.size = widths, blocks, size
        for stage, width in enumerate(widths):
            before = widths[stage - 1] if stage else 3
            self.tensor(f"open{stage}", (width, before, 3, 3), storage="weights")
            for block in range(2 * blocks):
                self.tensor(f"w{stage}.{block}", (width, width, 3, 3), storage="weights")

    def layer(
        self, x: str, weight: str, y: str, leaky: bool, residual: str | None = None, stride: int = 1
    ) -> str:
        """y = LeakyReLU(conv(x)) or residual + conv(x)."""
        channels = self.tensors[weight].shape[0]
        height, width = (n // stride for n in self.tensors[x].shape[2:])
        self.tensor(y, (1, channels, height, width))
        at = {"strides": (stride, stride)}
        self.saved.append(Saved(weight, x, y, leaky, residual, dict(at)))
        added = {"add0": residual} if residual else {}
        return self.conv(x, weight, y, added, slope=SLOPE if leaky else None, **at)

    def forward(self, scale: int) -> str:
        """One scale; gives its last feature."""
        x = "image"
        for stage in range(len(self.widths)):
            name = f"s{scale}.{stage}"
            stride = 1 + (stage > 0 or scale > 0)
            x = self.layer(x, f"open{stage}", f"{name}.open", True, None, stride)
            for block in range(self.blocks):
                first, second = f"w{stage}.{2 * block}", f"w{stage}.{2 * block + 1}"
                hidden = self.layer(x, first, f"{name}.h{block}", True)
                x = self.layer(hidden, second, f"{name}.x{block + 1}", False, x)
        return x

    def loss(self, x: str, scale: int) -> str:
        """Mean absolute value; gives the gradient."""
        shape = self.tensors[x].shape
        self.constant(f"zero{scale}", np.zeros(shape))
        roles = {"value": self.tensor(f"loss{scale}", ()), "grad": self.tensor(f"g.{x}", shape)}
        self.op("l1_loss", {"a": x, "b": f"zero{scale}"}, roles, value_scale=1.0, grad_scale=0.1)
        return roles["grad"]

    def backward(self, grad: str) -> None:
        """All gradients of the scale that was last run forward, newest layer first."""
        waiting: dict[str, str] = {}
        for index, layer in enumerate(reversed(self.saved)):
            self._weight_grad(layer, grad)
            if layer.residual:
                waiting[layer.residual] = grad
            if layer.x == "image":
                break
            before = self.saved[-2 - index]
            extra = {"mask": layer.x} if before.leaky else {}
            if layer.x in waiting:
                extra["add0"] = waiting.pop(layer.x)
            shape = self.tensors[layer.x].shape
            y = self.tensor(f"g.{layer.x}", shape)
            at = {**layer.at, "transposed": True, "mask_slope": SLOPE}
            grad = self.conv(grad, layer.weight, y, extra, **at)
        self.saved.clear()

    def _weight_grad(self, layer: Saved, grad: str) -> None:
        count = sum(name.startswith(f"grad.{layer.weight}.") for name in self.tensors)
        name = f"grad.{layer.weight}.{count}"
        inputs = {"x0": layer.x, "grad_y": grad}
        if layer.weight in self.sums:
            inputs["sum_weight"] = self.sums[layer.weight]
            self.same_place(name, self.sums[layer.weight])
        else:
            self.tensor(name, self.tensors[layer.weight].shape, storage="gradients")
        self.sums[layer.weight] = name
        at = {"kernel": (3, 3), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
        roles = {"weight": name}
        self.op("conv_weight_grad", inputs, roles, bias_of="grad_y", **{**at, **layer.at})

    def update(self) -> list[str]:
        """All weights, one step further."""
        done = []
        for weight, grad in self.sums.items():
            new = self.same_place(f"{weight}.new", weight)
            roles = {"weight": weight, "grad": grad}
            self.op("update_sgd", roles, {"weight_new": new}, step_size=0.01)
            done.append(new)
        return done


def training_step(
    widths: tuple[int, ...] = (2, 4), blocks: int = 2, size: tuple[int, int] = (8, 8)
) -> Program:
    """Forward of the coarse and the fine scale, then their gradients in the opposite order."""
    step = Step(widths, blocks, size)
    grads, records = [], []
    for scale in (1, 0):
        grads.append(step.loss(step.forward(scale), scale))
        records.append(step.saved)
        step.saved = []
    for grad, record in zip(reversed(grads), reversed(records), strict=True):
        step.saved = record
        step.backward(grad)
    return step.program("loss0", "loss1", *step.update())


def random_weights(program: Program) -> dict[str, np.ndarray]:
    """A value for each weight, about 1 over the root of its inputs."""
    rng = np.random.default_rng(1)
    return {
        t.name: rng.standard_normal(t.shape) / (t.size / t.shape[0]) ** 0.5
        for t in program.tensors.values()
        if t.storage == "weights" and not t.name.endswith(".new")
    }
