"""Rules of the layers with weights: they make channels, read them, or shift and scale them."""

import numpy as np
import onnx

from latency.graph import Graph, attribute
from latency.labels import NO_LABEL, varying_axes
from latency.propagation import Propagation, Rule, adopt, same
from latency.structure import IntArray


def makes_labels(rule: Rule) -> Rule:
    """Mark a rule that applies to inputs without labels too, because its weights make channels."""
    rule.makes_labels = True  # type: ignore[attr-defined]
    return rule


def binds_views(rule: Rule) -> Rule:
    """Mark a rule that applies to views of constants too, because they have parameters of their own."""
    rule.binds_views = True  # type: ignore[attr-defined]
    return rule


def made_axis(node: onnx.NodeProto, graph: Graph) -> int:
    """Axis of a layer's weight, `node.input[1]`, along which its output channels lie."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    if node.op_type == "ConvTranspose":
        return 0 if _groups_are_wholes(node, graph) else 1
    return 0 if node.op_type == "Conv" else 1


def narrows_all_groups(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether a convolution has several groups, all of which are narrowed alike instead of removed whole."""
    is_grouped = node.op_type in ("Conv", "ConvTranspose") and attribute(node, "group", 1) > 1
    return is_grouped and not _groups_are_wholes(node, graph)


def _groups_are_wholes(node: onnx.NodeProto, graph: Graph) -> bool:
    """Many narrow groups (depthwise, ResNeXt) are kept or removed whole, few wide ones are all narrowed."""
    n_groups, shape = attribute(node, "group", 1), graph.shapes[node.input[1]]
    n_read = shape[1] if node.op_type == "Conv" else shape[0] // n_groups
    return bool(1 < n_groups >= n_read)


def conv(state: Propagation, node: onnx.NodeProto) -> None:
    """New labels for the filters; grouped convolutions tie what they read to what they make."""
    data, weight = node.input[0], node.input[1]
    n_groups = attribute(node, "group", 1)
    if weight in state.graph.computed and n_groups == state.graph.shapes[weight][0]:
        _depthwise_computed(state, node)
        return
    if _is_computed(state, node):
        return
    read = _read_channels(state, node)
    made = state.bound(weight, 0)
    if n_groups == 1:
        state.bind(weight, 1, read, "in")
    elif _groups_are_wholes(node, state.graph):
        _tie_wholes(state, node, read, made)
    else:
        columns = _tied_alike(state, node, read)
        state.bind(weight, 1, columns, "in")
        _tied_alike(state, node, made)
    _finish(state, node, made, n_dims=len(state.graph.shapes[data]))


def _depthwise_computed(state: Propagation, node: onnx.NodeProto) -> None:
    """Depthwise convolution with a computed kernel (blurring): a channel's kernel is its own."""
    data, weight = node.input[0], node.input[1]
    read = _read_channels(state, node)
    if state.graph.shapes[data][1] != state.graph.shapes[weight][0]:
        state.pin_inputs(node, f"the weight of {node.op_type} '{node.name}' is computed, not stored")
        return
    adopt(state, weight, read.reshape(-1, *(1,) * (len(state.graph.shapes[weight]) - 1)))
    _finish(state, node, read, n_dims=len(state.graph.shapes[data]))


def conv_transpose(state: Propagation, node: onnx.NodeProto) -> None:
    """As for Conv, with the weight's first two axes swapped."""
    data, weight = node.input[0], node.input[1]
    if _is_computed(state, node):
        return
    read = _read_channels(state, node)
    n_groups = attribute(node, "group", 1)
    if n_groups > 1 and _groups_are_wholes(node, state.graph):
        rows = state.bound(weight, 0)
        _tie_wholes(state, node, read, rows)
        made = np.repeat(rows.reshape(n_groups, -1)[:, 0], state.graph.shapes[weight][1])
    else:
        state.bind(weight, 0, read, "in")
        _tied_alike(state, node, read)
        made = np.tile(state.bound(weight, 1), n_groups)
    _finish(state, node, made, n_dims=len(state.graph.shapes[data]))


def _is_computed(state: Propagation, node: onnx.NodeProto) -> bool:
    """Pin everything at a layer whose weight is no parameter: what made it would have to be cut too."""
    if state.is_constant(node.input[1]):
        return False
    state.pin_inputs(node, f"the weight of {node.op_type} '{node.name}' is computed, not stored")
    return True


def _read_channels(state: Propagation, node: onnx.NodeProto) -> IntArray:
    if state.positions_mixed(node, node.input[0]):
        return np.full(state.graph.shapes[node.input[0]][1], NO_LABEL, dtype=np.int64)
    return state.channel_vector(node, node.input[0], 1)


def _tie_wholes(state: Propagation, node: onnx.NodeProto, read: IntArray, made: IntArray) -> None:
    reason = f"grouped {node.op_type} '{node.name}' reads channels that are never removed"
    n_groups = attribute(node, "group", 1)
    rows = made.reshape(n_groups, -1)
    state.ties.tie(rows, rows[:, :1], reason)
    state.ties.tie(read.reshape(n_groups, -1), rows[:, :1], reason)


def _tied_alike(state: Propagation, node: onnx.NodeProto, labels: IntArray) -> IntArray:
    """Tie equal positions of all groups, so that the groups stay equally wide; returns the first group's."""
    reason = f"grouped {node.op_type} '{node.name}' reads channels that are never removed"
    columns: IntArray = labels.reshape(attribute(node, "group", 1), -1)
    state.ties.tie(columns, columns[:1], reason)
    return np.asarray(columns[0])


def _finish(state: Propagation, node: onnx.NodeProto, made: IntArray, *, n_dims: int) -> None:
    if len(node.input) > 2 and node.input[2]:
        _bind_vector(state, node.input[2], made)
    state.labels[node.output[0]] = made.reshape(1, -1, *(1,) * (n_dims - 2))


def _bind_vector(state: Propagation, name: str, labels: IntArray) -> None:
    if state.is_constant(name):
        state.bind(name, 0, labels, "out")
    else:
        state.ties.tie(state.labels[name].ravel(), labels, "its bias is computed, not stored")


def gemm(state: Propagation, node: onnx.NodeProto) -> None:
    """Fully connected layer: new labels for the rows of the weight."""
    data, weight = node.input[0], node.input[1]
    if _is_computed(state, node):
        return
    if attribute(node, "transA", 0):
        state.pin_inputs(node, f"Gemm '{node.name}' transposes what it reads")
        return
    made_on = made_axis(node, state.graph)
    state.bind(weight, 1 - made_on, state.channel_vector(node, data, 1), "in")
    made = state.bound(weight, made_on)
    if len(node.input) > 2 and node.input[2]:
        bias, shape = node.input[2], state.graph.shapes[node.input[2]]
        if not state.is_constant(bias):
            state.ties.pin(made, f"the bias of Gemm '{node.name}' is computed, not stored")
        elif shape and shape[-1] > 1:
            state.bind(bias, len(shape) - 1, made, "out")
    state.labels[node.output[0]] = made.reshape(1, -1)


def matmul(state: Propagation, node: onnx.NodeProto) -> None:
    """Product with a stored matrix: a linear layer, or a mixing of positions that leaves channels alone."""
    left, right = node.input
    weight, data = (right, left) if state.is_constant(right) else (left, right)
    if not state.is_constant(weight) or len(state.graph.shapes[weight]) != 2:
        state.pin_inputs(node, f"MatMul '{node.name}' multiplies channels with each other")
        return
    labels = state.of(data)
    summed = labels.ndim - (1 if weight == right else 2)
    varying = varying_axes(labels)
    if varying and summed not in varying:
        state.labels[node.output[0]] = labels
    elif weight == left or set(varying) - {summed}:
        state.pin_inputs(node, f"MatMul '{node.name}' mixes channels and positions")
    else:
        state.bind(weight, 0, state.channel_vector(node, data, -1), "in")
        made = state.bound(weight, 1)
        state.labels[node.output[0]] = made.reshape((1,) * (labels.ndim - 1) + (-1,))


def normalization(state: Propagation, node: onnx.NodeProto) -> None:
    """Statistics of each channel by itself: scale, shift, mean and variance follow the channel."""
    labels = state.channel_vector(node, node.input[0], 1)
    for name in node.input[1:5]:
        _bind_vector(state, name, labels)
    state.labels[node.output[0]] = labels.reshape(1, -1, *(1,) * (len(state.graph.shapes[node.input[0]]) - 2))


def dequantize(state: Propagation, node: onnx.NodeProto) -> None:
    """Scales back what was quantised; scales and zero points of a weight's channels follow the channels."""
    quantised, shapes = node.input[0], state.graph.shapes
    if not state.is_constant(quantised):
        same(state, node)
        return
    axis = attribute(node, "axis", 1)
    for name in node.input[1:]:
        if name and shapes[name] and shapes[name][0] > 1:
            state.bind(name, 0, state.bound(quantised, axis), "out")
