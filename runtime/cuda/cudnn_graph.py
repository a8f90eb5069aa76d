"""The graph of cuDNN's frontend that computes a convolution and what follows its sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeadapt.runtime.cuda.cudnn_conv import UIDS, Convolution
from edgeadapt.runtime.plan.ir import Dtype, Shape

VERSION = 2  # of what `build` makes: plans of another are not taken from the cache
LATE = "identity"
_TYPES = {"f32": "FLOAT", "f16": "HALF", "bf16": "BFLOAT16"}


def variants(what: Convolution) -> tuple[str, ...]:
    """Graphs that compute the same: for each cuDNN has other engines.

    Its engines for a weight gradient alone round it to the type of what is multiplied (but for one,
    of Hopper's). Those that can fuse do not: `LATE` gives them a step that changes nothing.
    """
    return ("", LATE) if what.kind == "wgrad" else ("",)


def build(cudnn: Any, handle: Any, what: Convolution, variant: str = "") -> Any:
    """The frontend's graph, checked by cuDNN; sums and what follows them are float32.

    Raises:
        Exception: of the frontend's kinds, if cuDNN does not take it.
    """
    single = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(
        io_data_type=single,
        intermediate_data_type=single,
        compute_data_type=single,
        handle=handle,
    )
    tensors = {
        role: _tensor(cudnn, graph, what, role) for role in what.roles if role != what.result
    }
    found = {
        "pre_padding": list(what.pads[0]),
        "post_padding": list(what.pads[1]),
        "stride": list(what.strides),
        "dilation": list(what.dilations),
        "compute_data_type": single,
    }
    if what.kind == "wgrad":
        sums = graph.conv_wgrad(image=tensors["x"], loss=tensors["grad_y"], **found)
    elif what.kind == "dgrad":
        sums = graph.conv_dgrad(loss=tensors["x"], filter=tensors["weight"], **found)
    else:
        sums = graph.conv_fprop(image=tensors["x"], weight=tensors["weight"], **found)
    shape, strides, dtype = _place(what, what.result)
    sums.set_dim(list(shape)).set_stride(list(strides))
    result = _finished(graph, what, tensors, sums, single)
    if variant == LATE:
        sums.set_data_type(single)
        result = graph.identity(input=sums)
    result.set_output(True).set_uid(UIDS[what.result])
    result.set_dim(list(shape)).set_stride(list(strides))
    result.set_data_type(getattr(cudnn.data_type, _TYPES[dtype]))
    graph.validate()
    graph.build_operation_graph()
    return graph


def _finished(
    graph: Any, what: Convolution, tensors: Mapping[str, Any], sums: Any, single: Any
) -> Any:
    """What follows the sums, in the plan's order."""
    value = sums
    for role in ("bias", "add0", "add1", "slope", "post", "mask"):
        before = value
        if role == "slope" and what.slope is not None:
            value = graph.leaky_relu(input=value, negative_slope=what.slope)
        elif role == "mask" and "mask" in tensors:
            value = graph.leaky_relu_backward(
                loss=value, input=tensors["mask"], negative_slope=what.mask_slope
            )
        elif role in tensors:
            value = graph.add(a=value, b=tensors[role])
        if value is not before:
            before.set_data_type(single)
    return value


def _tensor(cudnn: Any, graph: Any, what: Convolution, role: str) -> Any:
    shape, strides, dtype = _place(what, role)
    return graph.tensor(
        dim=list(shape),
        stride=list(strides),
        data_type=getattr(cudnn.data_type, _TYPES[dtype]),
        uid=UIDS[role],
        name=role,
    )


def _place(what: Convolution, role: str) -> tuple[Shape, Shape, Dtype]:
    """Shape, strides and type of a tensor."""
    if role == "bias":
        channels = what.image("y").shape[1]
        return (1, channels, 1, 1), (channels, 1, channels, channels), "f32"
    if role == "weight":
        _, inner, rows, columns = what.filter
        return what.filter, (inner * rows * columns, 1, columns * inner, inner), what.weights_dtype
    image = what.image(role)
    return image.shape, image.strides, image.dtype
