"""fp16 networks, converted by ONNX Runtime's tool; inputs and outputs stay fp32."""

import sys

import onnx

from latency.graph import Graph
from latency.quantisation import in_order_of


def halved(graph: Graph) -> onnx.ModelProto:
    """The network with fp16 weights and activations.

    What has no fp16 kernel anywhere stays in fp32 between casts; nodes keep their names and their order.

    Args:
        graph: the fp32 network.
    """
    path = list(sys.path)
    from onnxruntime.transformers.float16 import convert_float_to_float16

    sys.path[:] = (
        path  # the package appends its own folder, whose modules are called `metrics`, `constants` …
    )
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    names = [node.name for node in model.graph.node]
    return in_order_of(convert_float_to_float16(model, keep_io_types=True), names)
