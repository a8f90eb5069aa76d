"""Which line of the model a traced node comes from, for error messages that help."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.fx.traceback import set_stack_trace
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Frames in these folders are not the model's.
_FOREIGN = (str(Path(torch.__path__[0])), str(Path(__file__).resolve().parent))


class RememberLines(TorchFunctionMode):
    """While active, traced nodes get their line as ``meta["stack_trace"]``.

    Nodes of the backward pass get the line of the forward operation they differentiate. PyTorch's
    own record keeps frames called ``forward`` only, so it does not know the methods that matter
    here. Needs `torch.fx.traceback.preserve_node_meta`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: set[Any] = set()

    def __exit__(self, *details: Any) -> None:
        set_stack_trace([])
        super().__exit__(*details)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        line = _line_of_the_model()
        set_stack_trace([line])
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._mark(leaf.grad_fn, line)
        return result

    def _mark(self, function: Any, line: str) -> None:
        """Mark the part of the backward graph that was not there before this operation."""
        waiting = [function]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in self._known:
                self._known.add(node)
                node.register_prehook(lambda grads: set_stack_trace([line]))
                waiting += [parent for parent, _ in node.next_functions]


def _line_of_the_model() -> str:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_FOREIGN):
        frame = frame.f_back
    return (
        f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}" if frame else ""
    )
