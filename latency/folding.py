"""BatchNorm folded into the convolution before it, as ONNX Runtime does when it loads a network."""

import numpy as np
import onnx
from onnx import numpy_helper

from latency.graph import Array, Graph, attribute
from latency.space import SearchSpace
from latency.structure import ChannelGroup


def folded_space(space: SearchSpace) -> SearchSpace:
    """The same groups in a network that has half the nodes to cut, and to optimise when a candidate is loaded.

    Its candidates run the same kernels as those of the network itself, and compute the same up to rounding. Where
    folding would tie channels otherwise, or the network is not in fp32, it is the network itself.
    """
    if space.precision != "fp32":
        return space
    folded = SearchSpace.from_model(without_batch_norm(space.structure.graph))
    same = [_identity(group) for group in folded.groups] == [_identity(group) for group in space.groups]
    return folded if same else space


def _identity(group: ChannelGroup) -> tuple[str, int, bool, tuple[int, ...]]:
    return group.name, group.n_channels, group.zero_allowed, group.implied_zero


def without_batch_norm(graph: Graph) -> onnx.ModelProto:
    """The network with every BatchNorm that alone reads a convolution folded into its weight and bias.

    Nodes keep their order, and every node has a name.
    """
    values = dict(graph.constants)
    nodes: dict[str, onnx.NodeProto] = {}
    readers = graph.consumers()
    for index, node in enumerate(graph.nodes):
        made = onnx.NodeProto.FromString(node.SerializeToString())
        made.name = node.name or f"{node.op_type}_{index}"
        behind = nodes.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if behind is not None and _can_fold(graph, behind, node, readers):
            made = _fold(behind, node, values)
            del nodes[node.input[0]]
        nodes[node.output[0]] = made
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes.values())
    read = dict.fromkeys(name for node in nodes.values() for name in node.input)
    model.graph.initializer.extend(
        numpy_helper.from_array(values[name], name) for name in read if name in values
    )
    return model


def _can_fold(
    graph: Graph, conv: onnx.NodeProto, norm: onnx.NodeProto, readers: dict[str, list[int]]
) -> bool:
    if conv.op_type != "Conv":
        return False
    weight, output = conv.input[1], conv.output[0]
    return (
        weight in graph.parameters
        and len(readers[weight]) == len(readers[output]) == 1
        and output not in graph.outputs
        and all(name in graph.constants for name in (*conv.input[2:], *norm.input[1:]))
    )


def _fold(conv: onnx.NodeProto, norm: onnx.NodeProto, values: dict[str, Array]) -> onnx.NodeProto:
    """The convolution that computes both: (w x + b - mean) · scale / √(var + ε) + shift."""
    scale, shift, mean, variance = (values[name].astype(np.float64) for name in norm.input[1:5])
    factor = scale / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    weight, bias = conv.input[1], f"{conv.input[1]}.folded_bias"
    before = values[conv.input[2]] if len(conv.input) > 2 and conv.input[2] else np.float64(0)
    values[bias] = ((before - mean) * factor + shift).astype(np.float32)
    shape = (-1, *(1,) * (values[weight].ndim - 1))
    values[weight] = (values[weight] * factor.reshape(shape)).astype(np.float32)
    made = onnx.NodeProto.FromString(conv.SerializeToString())
    del made.input[:], made.output[:]
    made.input.extend([conv.input[0], weight, bias])
    made.output.extend(norm.output[:1])
    return made
