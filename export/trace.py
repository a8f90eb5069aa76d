"""One trace of a network: forward pass, adaptation loss and, by PyTorch's own autograd, every
gradient.

The image's height and width stay symbolic (``size_multiple`` times an unknown), so that one trace
serves every size. Restore graph, loss graph and the graph of every scope are cut from this trace
afterwards."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.traceback import preserve_node_meta

from edgeadapt.errors import EdgeadaptError, ExportError
from edgeadapt.export.guards import check_every_size
from edgeadapt.export.lines import RememberLines
from edgeadapt.export.opaque import DECOMPOSITIONS, KeepResizeWhole


@runtime_checkable
class Adaptable(Protocol):
    """What a module must offer to be exported; docs/architecture.md, "The network side"."""

    size_multiple: int

    def restore(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [-1, 1], RGB -> the same shape."""
        ...

    def adaptation_loss(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (terms,); the loss is their sum."""
        ...

    def parameter_groups(self) -> dict[str, list[str]]:
        """Group -> names of parameters; every parameter is in exactly one group."""
        ...


@dataclass(frozen=True)
class Trace:
    """A graph whose placeholders are image, parameters and buffers, and whose outputs have names.

    ``outputs`` maps "restored", "loss", "loss_terms" and every parameter the loss depends on (its
    gradient) to a node."""

    graph: fx.Graph
    inputs: dict[fx.Node, str]  # placeholder -> "image" or the name of a parameter or buffer
    outputs: dict[str, fx.Node]
    constants: dict[str, Tensor]  # buffers, and tensors made in the forward code
    terms: int


_GRAPH_VALUES = {"image", "loss", "loss_terms", "restored"}  # as docs/bundle.md has them


class _Step(nn.Module):
    """A module whose forward gives what one adaptation step needs, for `functional_call`."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.adaptation_loss(image), self.network.restore(image)


def check_adaptable(network: object) -> None:
    """Raise `ExportError` naming the first part of the contract that ``network`` does not keep."""
    if not isinstance(network, nn.Module) or not isinstance(network, Adaptable):
        missing = [
            name
            for name in ("size_multiple", "restore", "adaptation_loss", "parameter_groups")
            if not hasattr(network, name)
        ]
        raise ExportError(
            f"{type(network).__name__} cannot be exported: it has no "
            f"{', '.join(missing) or 'nn.Module base'}.",
            "docs/architecture.md lists what a network offers; examples/ has a small one.",
        )
    listed = sorted(name for names in network.parameter_groups().values() for name in names)
    actual = sorted(name for name, _ in network.named_parameters())
    if listed != actual:
        odd = sorted(set(listed) ^ set(actual)) or [a for a, b in pairwise(listed) if a == b]
        raise ExportError(
            f"parameter_groups: {odd[0]!r} must be a parameter of the network, in just one group."
        )
    taken = _GRAPH_VALUES & {name for name, _ in network.named_parameters()}
    if taken:
        raise ExportError(
            f"a parameter must not be called {min(taken)!r}: a value of the graphs has that name.",
            "rename the attribute of the network.",
        )


def trace(network: nn.Module) -> Trace:
    """Trace ``network`` (an `Adaptable`) in float32.

    Raises:
        ExportError: if the contract is not kept, an operation cannot be traced, or the code fixes
        the image size.
    """
    check_adaptable(network)
    step = _Step(copy.deepcopy(network).eval())  # the caller's stays in its mode
    state = {name: value.detach() for name, value in step.named_parameters()}
    buffers = dict(step.named_buffers())
    _check_state({**state, **buffers})
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    image = _symbolic_image(mode, int(network.size_multiple))  # type: ignore[arg-type]
    fakes = [
        mode.from_tensor(value, static_shapes=True)
        for value in (*state.values(), *buffers.values())
    ]
    joint = _Joint(step, list(state), list(buffers))
    try:
        with mode, preserve_node_meta():
            module = make_fx(joint, decomposition_table=DECOMPOSITIONS)(image, *fakes)
            module = _without_mutation(module, image, fakes)
        check_every_size(environment)
    except EdgeadaptError:
        raise
    except Exception as error:  # whatever PyTorch's tracer raises, the user gets one sentence
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"{type(network).__name__} cannot be traced: {type(error).__name__}: {reason}.",
            "restore and adaptation_loss must not branch on pixel values or leave PyTorch.",
        ) from error
    return _named(module, [*state, *buffers], buffers, joint.reached)


class _Joint:
    """Forward and backward pass as one function of image, parameters and buffers.

    A call gives loss, terms, restored image and the gradient of each parameter that the loss
    depends on; ``reached`` then has the names of these.
    """

    def __init__(self, step: _Step, parameters: Sequence[str], buffers: Sequence[str]) -> None:
        self._step, self._parameters, self._buffers = step, parameters, buffers
        self.reached: list[str] = []

    def __call__(self, image: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        count = len(self._parameters)
        given = [value.requires_grad_() for value in values[:count]]
        state = zip((*self._parameters, *self._buffers), (*given, *values[count:]), strict=True)
        with RememberLines(), KeepResizeWhole():
            terms, restored = functional_call(self._step, dict(state), (image,))
        _check_outputs(image, terms, restored)
        if not terms.requires_grad:
            raise ExportError("adaptation_loss does not depend on any parameter.")
        loss = terms.sum()
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(loss, given, allow_unused=True)
        pairs = zip(self._parameters, gradients, strict=True)
        found = {name: gradient for name, gradient in pairs if gradient is not None}
        self.reached = list(found)
        return loss, terms, restored, *found.values()


def _check_state(state: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        if value.is_floating_point() and value.dtype != torch.float32:
            dtype = str(value.dtype).removeprefix("torch.")
            raise ExportError(
                f"{name.removeprefix('network.')} must be float32, got {dtype}.",
                "call .float() on the network before the export.",
            )


def _without_mutation(
    module: fx.GraphModule, image: Tensor, fakes: Sequence[Tensor]
) -> fx.GraphModule:
    """The same graph, with a new value for every in-place operation (nn.ReLU(inplace=True))."""
    module.graph.eliminate_dead_code()
    targets = [node.target for node in module.graph.nodes]
    if not any(isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable for op in targets):
        return module
    run = functionalize(fx.Interpreter(module).run, remove="mutations")
    again = make_fx(run)(image, *fakes)
    again.graph.eliminate_dead_code()
    return again


def _symbolic_image(mode: FakeTensorMode, multiple: int) -> Tensor:
    """A fake (1, 3, multiple * h, multiple * w): written as products, sizes divide without case
    distinctions.
    """
    static, dynamic = DimDynamic.STATIC, DimDynamic.DYNAMIC
    context: Any = StatelessSymbolicContext([static, static, dynamic, static, dynamic, static])
    # 10 and 13 are hints only: unequal, and not 1, so that nothing is taken for a broadcast or a
    # square.
    blocks = mode.from_tensor(
        torch.empty(1, 3, 10, multiple, 13, multiple), symbolic_context=context
    )
    return blocks.reshape(1, 3, blocks.shape[2] * multiple, blocks.shape[4] * multiple)


def _check_outputs(image: Tensor, terms: Tensor, restored: Tensor) -> None:
    if terms.dim() != 1:
        raise ExportError(
            f"adaptation_loss must return a tensor of shape (terms,), got {tuple(terms.shape)}.",
            "torch.stack the terms, also if there is only one.",
        )
    if not _symbolic(image):
        raise ExportError(
            "an operation in restore or adaptation_loss works for one image size only.",
            "a size turned into a Python number does that, and so do Fourier transforms and "
            "F.interpolate to a fixed size.",
        )
    if restored.dim() != 4 or not _symbolic(restored) or restored.shape != image.shape:
        raise ExportError(
            "restore must return the shape of the image for every size, "
            f"got {tuple(restored.shape)} for {tuple(image.shape)}.",
            "derive sizes from image.shape; do not turn them into Python numbers.",
        )


def _symbolic(image: Tensor) -> bool:
    """Whether height and width are still unknowns, and not the numbers of the example."""
    sizes: tuple[Any, ...] = image.shape[2:]
    return all(isinstance(size, torch.SymInt) and not size.node.expr.is_number for size in sizes)


def _named(
    module: fx.GraphModule, names: list[str], buffers: dict[str, Tensor], reached: list[str]
) -> Trace:
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    plain = [name.removeprefix("network.") for name in names]
    inputs = dict(zip(placeholders, ["image", *plain], strict=True))
    (result,) = next(node for node in module.graph.nodes if node.op == "output").args
    keys = ["loss", "loss_terms", "restored", *(name.removeprefix("network.") for name in reached)]
    constants = {name.removeprefix("network."): value for name, value in buffers.items()}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            constants[node.target] = getattr(module, node.target)
    outputs = dict(zip(keys, result, strict=True))
    return Trace(
        module.graph, inputs, outputs, constants, int(outputs["loss_terms"].meta["val"].shape[0])
    )
