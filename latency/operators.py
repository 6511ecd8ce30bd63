"""One rule per ONNX operator: how labels pass through it, what it ties, and what it pins.

To add an operator, write a rule and put it into `RULES`. A rule sets the labels of the node's outputs,
binds the axes of its constants, and ties or pins what must live or die together. An operator without a
rule pins the channels it touches, and the report names it.
"""

from collections.abc import Mapping

import numpy as np
import onnx

from latency import layer_rules, layout_rules
from latency.graph import attribute
from latency.labels import varying_axes
from latency.layer_rules import binds_views, makes_labels
from latency.layout_rules import pad_amounts, slice_ranges
from latency.propagation import Propagation, Rule, adopt, aligned, along_axis, same
from latency.structure import IntArray

__all__ = ["RULES", "pad_amounts", "slice_ranges"]


def _elementwise(state: Propagation, node: onnx.NodeProto) -> None:
    """Operands broadcast against each other: equal positions are tied."""
    output = node.output[0]
    n_dims = len(state.graph.shapes[output])
    operands = [name for name in node.input if name]
    dynamic = {name: aligned(state.of(name), n_dims) for name in operands if not state.is_fixed(name)}
    varying = {axis for labels in dynamic.values() for axis in varying_axes(labels)}
    tied = [labels for name, labels in dynamic.items() if not _broadcasts(state, node, name, labels, varying)]
    result = next((labels for labels in tied if labels.any()), state.unlabelled(output))
    for labels in tied:
        state.ties.tie(result, labels, f"{node.op_type} '{node.name}' combines it with fixed channels")
    spread = [*np.broadcast_arrays(result, *tied)]
    for labels in spread[1:]:
        spread[0] = np.where(spread[0] == 0, labels, spread[0])
    state.labels[output] = spread[0]
    for name in operands:
        if state.is_fixed(name):
            adopt(state, name, spread[0])


def _broadcasts(
    state: Propagation, node: onnx.NodeProto, name: str, labels: IntArray, varying: set[int]
) -> bool:
    """Whether an operand is spread over all channels: then it ties nothing, and a channel that is, is pinned."""
    full = state.graph.shapes[node.output[0]]
    shape = (1,) * (len(full) - len(state.graph.shapes[name])) + state.graph.shapes[name]
    if varying_axes(labels) or not all(shape[axis] == 1 for axis in varying):
        return False
    if varying:
        state.ties.pin(labels, f"{node.op_type} '{node.name}' broadcasts it over channels")
    return bool(varying) or not labels.any()


def _pool(state: Propagation, node: onnx.NodeProto) -> None:
    """Acts within each channel."""
    if state.positions_mixed(node, node.input[0]):
        state.pin_inputs(node, f"{node.op_type} '{node.name}' mixes channels laid out as positions")
        return
    labels = state.channel_vector(node, node.input[0], 1)
    n_dims = len(state.graph.shapes[node.input[0]])
    for name in node.output:
        if name:
            state.labels[name] = labels.reshape(1, -1, *(1,) * (n_dims - 2))


def _reduce(state: Propagation, node: onnx.NodeProto) -> None:
    """Sums or averages over axes; over all channels it mixes them, which pins them."""
    n_dims = len(state.graph.shapes[node.input[0]])
    axes = attribute(node, "axes", None)
    if axes is None and len(node.input) > 1 and node.input[1]:
        axes = state.graph.constants[node.input[1]].tolist()
    if axes is None and attribute(node, "noop_with_empty_axes", 0):
        axes = []
    axes = range(n_dims) if axes is None else [axis % n_dims for axis in axes]
    along_axis(state, node, list(axes), "reduces over channels")
    output = node.output[0]
    if output in state.opaque:
        return
    labels = state.labels[output][tuple(slice(0, 1) if a in axes else slice(None) for a in range(n_dims))]
    if not attribute(node, "keepdims", 1):
        labels = labels.reshape([labels.shape[axis] for axis in range(n_dims) if axis not in axes])
    state.labels[output] = labels


def _softmax(state: Propagation, node: onnx.NodeProto) -> None:
    n_dims = len(state.graph.shapes[node.input[0]])
    along_axis(state, node, [attribute(node, "axis", -1) % n_dims], "normalises over channels")


def _layer_norm(state: Propagation, node: onnx.NodeProto) -> None:
    n_dims = len(state.graph.shapes[node.input[0]])
    first = attribute(node, "axis", -1) % n_dims
    along_axis(state, node, list(range(first, n_dims)), "normalises over channels")


def _local_response_norm(state: Propagation, node: onnx.NodeProto) -> None:
    along_axis(state, node, [1], "normalises over neighbouring channels")


_UNARY = (
    "Abs", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not", "QuantizeLinear",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh",
    "ThresholdedRelu",
)  # fmt: skip
_BINARY = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min",
    "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where",
)  # fmt: skip
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum",
    "ReduceSumSquare",
)  # fmt: skip

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_UNARY, same),
    **dict.fromkeys(_BINARY, _elementwise),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "BatchNormalization": layer_rules.normalization,
    "Concat": layout_rules.concat,
    "Conv": makes_labels(layer_rules.conv),
    "ConvTranspose": makes_labels(layer_rules.conv_transpose),
    "DequantizeLinear": binds_views(layer_rules.dequantize),
    "DepthToSpace": layout_rules.depth_to_space,
    "Expand": layout_rules.expand,
    "Flatten": layout_rules.reshape,
    "Gather": layout_rules.gather,
    "Gemm": makes_labels(layer_rules.gemm),
    "InstanceNormalization": layer_rules.normalization,
    "LRN": _local_response_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax,
    "MatMul": makes_labels(layer_rules.matmul),
    "Pad": layout_rules.pad,
    "Reshape": layout_rules.reshape,
    "Resize": layout_rules.resize,
    "Slice": layout_rules.slice_,
    "Softmax": _softmax,
    "SpaceToDepth": layout_rules.space_to_depth,
    "Split": layout_rules.split,
    "Squeeze": layout_rules.squeeze,
    "Tile": layout_rules.tile,
    "Transpose": layout_rules.transpose,
    "Unsqueeze": layout_rules.squeeze,
}
"""Rule of each operator that is understood."""
