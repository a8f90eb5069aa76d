"""Which convolutions of a plan cuDNN is offered where it is installed, and why others are not.

Nothing is asked of a GPU or of cuDNN: a device measures which of these it takes, and which of them
are faster than the own kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from edgeadapt.runtime.cuda.cudnn_conv import OPERANDS, Convolution, asked
from edgeadapt.runtime.plan.ir import Op, Program, Shape

_PASSES = {"fprop": "convolution", "dgrad": "gradient of input", "wgrad": "gradient of weight"}


@dataclass(frozen=True)
class Offer:
    """Operations of a plan that are the same to cuDNN."""

    operations: tuple[int, ...]  # positions in the plan
    what: str  # what it computes; a transposed convolution is the gradient of one in its input
    reads: Shape  # channels, rows and columns of its input, all sources together
    kernel: Shape  # outputs, inputs, rows and columns
    fused: str  # what follows the sums
    reason: str  # why cuDNN is not asked; empty if it is

    @property
    def offered(self) -> bool:
        """Whether cuDNN may compute it."""
        return not self.reason


def offers(program: Program) -> list[Offer]:
    """All convolutions and weight gradients, in the order in which the first of each kind runs."""
    found: dict[Any, list[int]] = {}
    first: dict[Any, Op] = {}
    for position, op in enumerate(program.ops):
        if op.kind in ("conv", "conv_weight_grad"):
            what = asked(op, program)
            key = what if isinstance(what, Convolution) else (_reads(op, program), op.kind, what)
            found.setdefault(key, []).append(position)
            first.setdefault(key, op)
    return [
        Offer(
            tuple(positions),
            _PASSES[_pass(first[key])],
            _reads(first[key], program),
            _kernel(first[key], program),
            _fused(first[key]),
            "" if isinstance(key, Convolution) else key[-1],
        )
        for key, positions in found.items()
    ]


def offers_document(program: Program) -> list[dict[str, Any]]:
    """For JSON."""
    return [{**vars(offer), "offered": offer.offered} for offer in offers(program)]


def offers_line(listed: Sequence[Offer]) -> str:
    """How many there are, in a sentence."""
    given = [offer for offer in listed if offer.offered]
    count, total = (sum(len(o.operations) for o in some) for some in (given, listed))
    return (
        f"cuDNN, where it is installed, is offered {count} of {total} convolutions and gradients "
        f"({len(given)} that differ); the device measures which of them it computes faster"
    )


def offers_table(listed: Sequence[Offer]) -> Table:
    """One row for all that are the same to cuDNN."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("times", "computes", "reads", "kernel", "fused", "cuDNN"):
        table.add_column(name, justify="right" if name == "times" else "left", overflow="fold")
    for offer in listed:
        shapes = ("x".join(map(str, shape)) for shape in (offer.reads, offer.kernel))
        who = f"own kernel: {offer.reason}" if offer.reason else "offered"
        cells = (f"{len(offer.operations)}", offer.what, *shapes, offer.fused, who)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _pass(op: Op) -> str:
    if op.kind == "conv_weight_grad":
        return "wgrad"
    return "dgrad" if op.attributes["transposed"] else "fprop"


def _reads(op: Op, program: Program) -> Shape:
    images = [
        program.tensors[op.inputs[role]] for role in ("x0", "x1", "x2", "x3") if role in op.inputs
    ]
    return (sum(image.shape[1] for image in images), *images[0].shape[2:])


def _kernel(op: Op, program: Program) -> Shape:
    outputs = op.inputs["grad_y"] if op.kind == "conv_weight_grad" else op.outputs["y"]
    inputs = _reads(op, program)[0] // op.attributes["group"]
    return (program.tensors[outputs].shape[1], inputs, *op.attributes["kernel"])


def _fused(op: Op) -> str:
    roles = [*op.outputs] if op.kind == "conv_weight_grad" else ["bias", *OPERANDS]
    words = [role for role in roles if role in ({**op.inputs, **op.outputs}) and role != "weight"]
    if op.attributes.get("slope") is not None:
        words.insert(sum(word in ("bias", "add0", "add1") for word in words), "leaky")
    return " ".join(words)
