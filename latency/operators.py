"""One rule per ONNX operator: how labels pass through it, what it ties, and what it pins.

To add an operator, write a rule and put it into `RULES`. A rule sets the labels of the node's outputs,
binds the axes of its constants, and ties or pins what must live or die together. An operator without a
rule pins the channels it touches, and the report names it.
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx

from latency.graph import Graph, attribute
from latency.labels import NO_LABEL, varying_axes
from latency.propagation import Propagation, Rule
from latency.structure import IntArray


def _same(state: Propagation, node: onnx.NodeProto) -> None:
    """Element by element on the first input; further inputs are scalars."""
    for name in node.output:
        if name:
            state.labels[name] = state.of(node.input[0])


def _elementwise(state: Propagation, node: onnx.NodeProto) -> None:
    """Operands broadcast against each other: equal positions are tied."""
    output = node.output[0]
    n_dims = len(state.graph.shapes[output])
    operands = [name for name in node.input if name]
    result = np.full((1,) * n_dims, NO_LABEL, dtype=np.int64)
    dynamic = [name for name in operands if not state.is_constant(name)]
    for name in dynamic:
        result = _tie_operand(state, node, result, _aligned(state.of(name), n_dims), name)
    # operands seen before the first labelled one are tied in a second pass
    for name in dynamic:
        result = _tie_operand(state, node, result, _aligned(state.of(name), n_dims), name)
    state.labels[output] = result
    for name in operands:
        if state.is_constant(name):
            _adopt(state, name, result)


def _aligned(labels: IntArray, n_dims: int) -> IntArray:
    return labels.reshape((1,) * (n_dims - labels.ndim) + labels.shape)


def _tie_operand(
    state: Propagation, node: onnx.NodeProto, result: IntArray, labels: IntArray, name: str
) -> IntArray:
    shape = _aligned_shape(state.graph.shapes[name], result.ndim)
    full = state.graph.shapes[node.output[0]]
    spread = [axis for axis in varying_axes(result) if shape[axis] == 1 and full[axis] > 1]
    if spread:  # one channel is spread over many: it can only be removed with all of them
        state.ties.pin(labels, f"{node.op_type} '{node.name}' broadcasts it over channels")
        return result
    reason = f"{node.op_type} '{node.name}' combines it with channels that are never removed"
    if result.any():
        state.ties.tie(result, labels, reason)
    merged, other = np.broadcast_arrays(result, labels)
    return np.where(merged == NO_LABEL, other, merged)


def _aligned_shape(shape: tuple[int, ...], n_dims: int) -> tuple[int, ...]:
    return (1,) * (n_dims - len(shape)) + shape


def _adopt(state: Propagation, constant: str, labels: IntArray) -> None:
    """Bind the axes of a constant operand along which the result's labels vary."""
    shape = state.graph.constants[constant].shape
    offset = labels.ndim - len(shape)
    for axis in varying_axes(labels):
        if axis >= offset and shape[axis - offset] > 1:
            along = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
            vector = state.ties.tie_along(along, 1, f"'{constant}' is shared between channels").ravel()
            state.bind(constant, axis - offset, vector, "out")


def _conv(state: Propagation, node: onnx.NodeProto) -> None:
    """New labels for the filters; grouped convolutions tie what they read to what they make."""
    data, weight = node.input[0], node.input[1]
    if not state.is_constant(weight):
        state.pin_inputs(node, f"the weight of {node.op_type} '{node.name}' is computed, not stored")
        return
    n_conv_groups = attribute(node, "group", 1)
    read = state.channel_vector(node, data, 1)
    made = state.bound(weight, 0)
    per_group = state.graph.constants[weight].shape[1]
    if n_conv_groups == 1:
        state.bind(weight, 1, read, "in")
    elif n_conv_groups >= per_group:
        _tie_whole_conv_groups(state, node, read, made, n_conv_groups)
    else:
        _tie_across_conv_groups(state, node, read, made, n_conv_groups)
    if len(node.input) > 2 and node.input[2]:
        _bind_vector(state, node.input[2], made)
    state.labels[node.output[0]] = made.reshape(1, -1, *(1,) * (len(state.graph.shapes[data]) - 2))


def _bind_vector(state: Propagation, name: str, labels: IntArray) -> None:
    if state.is_constant(name):
        state.bind(name, 0, labels, "out")
    else:
        state.ties.tie(state.labels[name].ravel(), labels, "its bias is computed, not stored")


def _tie_whole_conv_groups(
    state: Propagation, node: onnx.NodeProto, read: IntArray, made: IntArray, n_conv_groups: int
) -> None:
    """Many narrow groups (depthwise, ResNeXt): a group is kept or removed as a whole."""
    reason = f"grouped Conv '{node.name}' reads channels that are never removed"
    rows = made.reshape(n_conv_groups, -1)
    state.ties.tie(rows, rows[:, :1], reason)
    state.ties.tie(read.reshape(n_conv_groups, -1), rows[:, :1], reason)


def _tie_across_conv_groups(
    state: Propagation, node: onnx.NodeProto, read: IntArray, made: IntArray, n_conv_groups: int
) -> None:
    """Few wide groups: the same positions are kept in each, so that the groups stay equally wide."""
    reason = f"grouped Conv '{node.name}' reads channels that are never removed"
    columns = read.reshape(n_conv_groups, -1)
    state.ties.tie(columns, columns[:1], reason)
    state.bind(node.input[1], 1, columns[0], "in")
    rows = made.reshape(n_conv_groups, -1)
    state.ties.tie(rows, rows[:1], reason)


def _gemm(state: Propagation, node: onnx.NodeProto) -> None:
    """Fully connected layer: new labels for the rows of the weight."""
    data, weight = node.input[0], node.input[1]
    if not state.is_constant(weight) or attribute(node, "transA", 0):
        state.pin_inputs(node, f"Gemm '{node.name}' has no constant weight on its right")
        return
    out_axis, in_axis = (0, 1) if attribute(node, "transB", 0) else (1, 0)
    state.bind(weight, in_axis, state.channel_vector(node, data, 1), "in")
    made = state.bound(weight, out_axis)
    if len(node.input) > 2 and node.input[2]:
        bias = node.input[2]
        if state.is_constant(bias) and state.graph.constants[bias].ndim:
            axis = state.graph.constants[bias].ndim - 1
            if state.graph.constants[bias].shape[axis] > 1:
                state.bind(bias, axis, made, "out")
    state.labels[node.output[0]] = made.reshape(1, -1)


def _matmul(state: Propagation, node: onnx.NodeProto) -> None:
    """Product with a stored matrix: a linear layer. Of two computed tensors: everything is pinned."""
    data, weight = node.input
    if state.is_constant(data) or not state.is_constant(weight) or state.graph.constants[weight].ndim != 2:
        state.pin_inputs(node, f"MatMul '{node.name}' multiplies channels with each other")
        return
    state.bind(weight, 0, state.channel_vector(node, data, -1), "in")
    made = state.bound(weight, 1)
    n_dims = len(state.graph.shapes[node.output[0]])
    state.labels[node.output[0]] = made.reshape((1,) * (n_dims - 1) + (-1,))


def _batch_norm(state: Propagation, node: onnx.NodeProto) -> None:
    """Per-channel affine: scale, shift, mean and variance follow the channel."""
    labels = state.channel_vector(node, node.input[0], 1)
    for name in node.input[1:5]:
        _bind_vector(state, name, labels)
    state.labels[node.output[0]] = labels.reshape(1, -1, *(1,) * (len(state.graph.shapes[node.input[0]]) - 2))


def _pool(state: Propagation, node: onnx.NodeProto) -> None:
    """Acts within each channel."""
    labels = state.channel_vector(node, node.input[0], 1)
    n_dims = len(state.graph.shapes[node.input[0]])
    for name in node.output:
        if name:
            state.labels[name] = labels.reshape(1, -1, *(1,) * (n_dims - 2))


def _reduce(state: Propagation, node: onnx.NodeProto) -> None:
    """Sums or averages over axes; over channels it mixes them, which pins them."""
    labels = state.of(node.input[0])
    axes = attribute(node, "axes", None)
    if axes is None and len(node.input) > 1 and node.input[1]:
        axes = state.graph.constants[node.input[1]].tolist()
    axes = range(labels.ndim) if axes is None else [axis % labels.ndim for axis in axes]
    if set(axes) & set(varying_axes(labels)):
        state.pin_inputs(node, f"{node.op_type} '{node.name}' reduces over channels")
        return
    if not attribute(node, "keepdims", 1):
        labels = np.squeeze(labels, axis=tuple(axes))
    state.labels[node.output[0]] = labels


def _along_axis(state: Propagation, node: onnx.NodeProto, axes: list[int], what: str) -> None:
    """An operator that mixes elements along `axes` and keeps the others apart."""
    labels = state.of(node.input[0])
    if set(axes) & set(varying_axes(labels)):
        state.pin_inputs(node, f"{node.op_type} '{node.name}' {what}")
        return
    _same(state, node)


def _softmax(state: Propagation, node: onnx.NodeProto) -> None:
    n_dims = len(state.graph.shapes[node.input[0]])
    _along_axis(state, node, [attribute(node, "axis", -1) % n_dims], "normalises over channels")


def _layer_norm(state: Propagation, node: onnx.NodeProto) -> None:
    n_dims = len(state.graph.shapes[node.input[0]])
    first = attribute(node, "axis", -1) % n_dims
    _along_axis(state, node, list(range(first, n_dims)), "normalises over channels")


def _concat(state: Propagation, node: onnx.NodeProto) -> None:
    """Joins label vectors along the axis; ties the operands along the others."""
    shape = state.graph.shapes[node.output[0]]
    axis = attribute(node, "axis", 0) % len(shape)
    parts = [_widened(state.of(name), axis, state.graph.shapes[name][axis]) for name in node.input]
    other = np.broadcast_shapes(*[part.shape[:axis] + (1,) + part.shape[axis + 1 :] for part in parts])
    spread = [np.broadcast_to(part, other[:axis] + (part.shape[axis],) + other[axis + 1 :]) for part in parts]
    across = [index for index in range(len(shape)) if index != axis and other[index] > 1]
    if across:  # joined along positions: the channels of the operands are the same channels
        reason = f"Concat '{node.name}' joins it with channels that are never removed"
        first = next(np.take(part, [0], axis=axis) for part in spread if part.any())
        for part, name in zip(spread, node.input, strict=True):
            if not state.is_constant(name):
                state.ties.tie(part, first, reason)
            else:
                _adopt(state, name, first)
        state.labels[node.output[0]] = first
        return
    state.labels[node.output[0]] = np.concatenate(spread, axis=axis)


def _widened(labels: IntArray, axis: int, size: int) -> IntArray:
    return np.broadcast_to(labels, labels.shape[:axis] + (size,) + labels.shape[axis + 1 :])


def _split(state: Propagation, node: onnx.NodeProto) -> None:
    """Cuts label vectors along the axis."""
    labels = state.of(node.input[0])
    axis = attribute(node, "axis", 0) % labels.ndim
    sizes = [state.graph.shapes[name][axis] for name in node.output]
    cuts = np.cumsum(sizes)[:-1]
    pieces = np.split(labels, cuts, axis=axis) if labels.shape[axis] > 1 else [labels] * len(sizes)
    for name, piece in zip(node.output, pieces, strict=True):
        state.labels[name] = piece


def _slice(state: Propagation, node: onnx.NodeProto) -> None:
    """Cuts a range of positions; on the channel axis a range of channels."""
    labels = state.of(node.input[0])
    if any(not state.is_constant(name) for name in node.input[1:] if name):
        state.pin_inputs(node, f"Slice '{node.name}' depends on the data")
        return
    for axis, cut in slice_ranges(node, state.graph).items():
        if labels.shape[axis] > 1:
            labels = np.take(labels, np.arange(labels.shape[axis])[cut], axis=axis)
    state.labels[node.output[0]] = labels


def slice_ranges(node: onnx.NodeProto, graph: Graph) -> dict[int, slice]:
    """Ranges that a Slice node with constant bounds cuts, by axis."""
    constants = [graph.constants[name].tolist() if name else None for name in node.input[1:]]
    starts, ends = constants[0], constants[1]
    n_dims = len(graph.shapes[node.input[0]])
    axes = constants[2] if len(constants) > 2 and constants[2] is not None else list(range(len(starts)))
    steps = constants[3] if len(constants) > 3 and constants[3] is not None else [1] * len(starts)
    ranges: dict[int, slice] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = graph.shapes[node.input[0]][axis % n_dims]
        stop = None if step < 0 and end < -size else end
        ranges[axis % n_dims] = slice(start, stop, step)
    return ranges


def _transpose(state: Propagation, node: onnx.NodeProto) -> None:
    labels = state.of(node.input[0])
    permutation = attribute(node, "perm", list(reversed(range(labels.ndim))))
    state.labels[node.output[0]] = np.transpose(labels, permutation)


def _reshape(state: Propagation, node: onnx.NodeProto) -> None:
    """Keeps the order of the elements; where it splits the channel axis the kept set stays rectangular."""
    source, target = node.input[0], node.output[0]
    labels, shape = state.of(source), state.graph.shapes[target]
    if len(varying_axes(labels)) == 0:
        state.labels[target] = labels.reshape((1,) * len(shape)) if labels.size == 1 else labels
        return
    full = np.broadcast_to(labels, state.graph.shapes[source]).reshape(shape)
    state.labels[target] = full
    reason = f"Reshape '{node.name}' splits it among channels that are never removed"
    state.shared_layouts.append((full, reason))


def _expand(state: Propagation, node: onnx.NodeProto) -> None:
    n_dims = len(state.graph.shapes[node.output[0]])
    state.labels[node.output[0]] = _aligned(state.of(node.input[0]), n_dims)


def _pad(state: Propagation, node: onnx.NodeProto) -> None:
    """Padding of the channel axis makes new channels (option A shortcuts of CIFAR ResNets)."""
    labels = state.of(node.input[0])
    before, after = pad_amounts(node, state.graph)
    padded = [axis for axis in range(labels.ndim) if before[axis] or after[axis]]
    channel_axes = [axis for axis in padded if labels.shape[axis] > 1]
    if min((*before, *after)) < 0 or (channel_axes and attribute(node, "mode", b"constant") != b"constant"):
        state.pin_inputs(node, f"Pad '{node.name}' crops channels or fills them with other channels")
        return
    for axis in channel_axes:
        if labels.size != labels.shape[axis]:
            state.pin_inputs(node, f"Pad '{node.name}' pads channels that lie along two axes")
            return
        shape = [1] * labels.ndim
        shape[axis] = -1
        filled = (state.ties.fresh(before[axis]), labels.ravel(), state.ties.fresh(after[axis]))
        labels = np.concatenate(filled).reshape(shape)
    state.labels[node.output[0]] = labels


def pad_amounts(node: onnx.NodeProto, graph: Graph) -> tuple[list[int], list[int]]:
    """Elements that a Pad node adds before and after each axis."""
    n_dims = len(graph.shapes[node.input[0]])
    pads = graph.constants[node.input[1]].tolist()
    has_axes = len(node.input) > 3 and node.input[3]
    axes = graph.constants[node.input[3]].tolist() if has_axes else list(range(n_dims))
    before, after = [0] * n_dims, [0] * n_dims
    for position, axis in enumerate(axes):
        before[axis % n_dims] = pads[position]
        after[axis % n_dims] = pads[position + len(axes)]
    return before, after


def _resize(state: Propagation, node: onnx.NodeProto) -> None:
    """Interpolates positions within each channel."""
    sizes = zip(state.graph.shapes[node.input[0]], state.graph.shapes[node.output[0]], strict=True)
    changed = [axis for axis, (before, after) in enumerate(sizes) if before != after]
    _along_axis(state, node, changed, "interpolates over channels")


def _gather(state: Propagation, node: onnx.NodeProto) -> None:
    """Picks positions; picking channels pins them."""
    labels = state.of(node.input[0])
    axis = attribute(node, "axis", 0) % labels.ndim
    if axis in varying_axes(labels) or not state.is_constant(node.input[1]):
        state.pin_inputs(node, f"Gather '{node.name}' picks channels")
        return
    n_index_dims = state.graph.constants[node.input[1]].ndim
    kept = np.take(labels, 0, axis=axis)
    for _ in range(n_index_dims):
        kept = np.expand_dims(kept, axis)
    state.labels[node.output[0]] = kept


def _squeeze(state: Propagation, node: onnx.NodeProto) -> None:
    """Adds or drops axes of length 1."""
    labels, shape = state.of(node.input[0]), state.graph.shapes[node.output[0]]
    full = np.broadcast_to(labels, state.graph.shapes[node.input[0]])
    state.labels[node.output[0]] = full.reshape(shape) if math.prod(shape) else labels


def _makes_labels(rule: Rule) -> Rule:
    rule.makes_labels = True  # type: ignore[attr-defined]
    return rule


_UNARY = (
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu",
    "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_BINARY = ("Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum")
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool")
_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_UNARY, _same),
    **dict.fromkeys(_BINARY, _elementwise),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Conv": _makes_labels(_conv),
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "Gemm": _makes_labels(_gemm),
    "InstanceNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax,
    "MatMul": _makes_labels(_matmul),
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _squeeze,
}
"""Rule of each operator that is understood."""
