"""Runs graphs of 16 bits with every result rounded.

ONNX Runtime's CPU engine has few kernels in 16 bits: it computes in float32, and rounds only what
it cannot leave out. So a graph is brought back to float32 here with an explicit rounding behind
each operator that was to compute in 16 bits, which is what a GPU does: products in 16 bits, sums in
float32, one rounding at the end.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every value; also checks that each operator's arguments agree."""
    onnx.checker.check_model(model, full_check=True)
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    found = {t.name: t.data_type for t in graph.initializer}
    return found | {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same in float32, with a rounding behind each result of 16 bits."""
    kinds = types(model)
    nodes = []
    for node in model.graph.node:
        half = next((kinds[n] for n in node.output if n and kinds[n] in HALVES), None)
        if node.op_type == "Cast" and kinds[node.input[0]] in HALVES:
            nodes.append(helper.make_node("Identity", node.input, node.output))
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
        for index, name in enumerate(node.output):
            if not name or kinds[name] not in HALVES:
                continue
            if node.op_type != "Cast":
                copy.output[index] = f"{name}/exact"
                nodes.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=half))
            else:
                copy.output[index] = f"{name}/half"
            nodes.append(helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    return result


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output of a float32 graph, by ONNX Runtime on one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_mem_reuse = options.enable_mem_pattern = False  # they take most of the time
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))
