"""Rules of the operators that move elements: they join, cut, permute, repeat and pick channels."""

import math

import numpy as np
import onnx

from latency.graph import Graph, attribute
from latency.labels import varying_axes
from latency.propagation import Propagation, adopt, aligned, along_axis
from latency.structure import IntArray


def concat(state: Propagation, node: onnx.NodeProto) -> None:
    """Joins label vectors along the axis; ties the operands along the others."""
    shape = state.graph.shapes[node.output[0]]
    axis = attribute(node, "axis", 0) % len(shape)
    parts = [_widened(state.of(name), axis, state.graph.shapes[name][axis]) for name in node.input]
    other = np.broadcast_shapes(*[part.shape[:axis] + (1,) + part.shape[axis + 1 :] for part in parts])
    spread = [np.broadcast_to(part, other[:axis] + (part.shape[axis],) + other[axis + 1 :]) for part in parts]
    across = [index for index in range(len(shape)) if index != axis and other[index] > 1]
    if not across:
        state.labels[node.output[0]] = np.concatenate(spread, axis=axis)
        return
    # joined along positions: the channels of the operands are the same channels
    reason = f"Concat '{node.name}' joins it with channels that are never removed"
    first = next(np.take(part, [0], axis=axis) for part in spread if part.any())
    for part, name in zip(spread, node.input, strict=True):
        if state.is_fixed(name):
            adopt(state, name, first)
        else:
            state.ties.tie(part, first, reason)
    state.labels[node.output[0]] = first


def _widened(labels: IntArray, axis: int, size: int) -> IntArray:
    return np.broadcast_to(labels, labels.shape[:axis] + (size,) + labels.shape[axis + 1 :])


def split(state: Propagation, node: onnx.NodeProto) -> None:
    """Cuts label vectors along the axis."""
    labels = state.of(node.input[0])
    axis = attribute(node, "axis", 0) % labels.ndim
    sizes = [state.graph.shapes[name][axis] for name in node.output]
    cuts = np.cumsum(sizes)[:-1]
    pieces = np.split(labels, cuts, axis=axis) if labels.shape[axis] > 1 else [labels] * len(sizes)
    for name, piece in zip(node.output, pieces, strict=True):
        state.labels[name] = piece


def slice_(state: Propagation, node: onnx.NodeProto) -> None:
    """Cuts a range of positions; on the channel axis a range of channels."""
    labels = state.of(node.input[0])
    if any(name not in state.graph.constants for name in node.input[1:] if name):
        state.pin_inputs(node, f"Slice '{node.name}' depends on the data")
        return
    for axis, cut in slice_ranges(node, state.graph).items():
        if labels.shape[axis] > 1:
            labels = np.take(labels, np.arange(labels.shape[axis])[cut], axis=axis)
    state.labels[node.output[0]] = labels


def slice_ranges(node: onnx.NodeProto, graph: Graph) -> dict[int, slice]:
    """Ranges that a Slice node with constant bounds cuts, by axis."""
    starts, ends = (graph.constants[name].tolist() for name in node.input[1:3])
    names = [*node.input[3:], "", ""]
    n_dims = len(graph.shapes[node.input[0]])
    axes = graph.constants[names[0]].tolist() if names[0] else list(range(len(starts)))
    steps = graph.constants[names[1]].tolist() if names[1] else [1] * len(starts)
    ranges: dict[int, slice] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = graph.shapes[node.input[0]][axis % n_dims]
        stop = None if step < 0 and end < -size else end
        ranges[axis % n_dims] = slice(start, stop, step)
    return ranges


def transpose(state: Propagation, node: onnx.NodeProto) -> None:
    """Permutes the axes."""
    labels = state.of(node.input[0])
    permutation = attribute(node, "perm", list(reversed(range(labels.ndim))))
    state.labels[node.output[0]] = np.transpose(labels, permutation)


def reshape(state: Propagation, node: onnx.NodeProto) -> None:
    """Keeps the order of the elements; where it splits the channel axis the kept set stays rectangular."""
    source, target = node.input[0], node.output[0]
    labels = _reshaped(state.of(source), state.graph.shapes[source], state.graph.shapes[target])
    state.labels[target] = labels
    if len(varying_axes(labels)) > 1:
        reason = f"Reshape '{node.name}' splits it among channels that are never removed"
        state.shared_layouts.append((labels, reason))


def _reshaped(labels: IntArray, before: tuple[int, ...], after: tuple[int, ...]) -> IntArray:
    """Labels in a new shape, spread out only where axes with differing labels are merged or split."""
    full: list[int] = []
    target: list[int] = []
    for old, new in _blocks(before, after):
        varies = any(labels.shape[axis] > 1 for axis in old)
        full += [before[axis] if varies else 1 for axis in old]
        target += [after[axis] if varies else 1 for axis in new]
    return np.broadcast_to(labels, full).reshape(target)


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Shortest runs of axes of two shapes that hold the same elements, in order."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = list(range(i, min(i + 1, len(before)))), list(range(j, min(j + 1, len(after))))
        while (left := math.prod(before[a] for a in old)) != (right := math.prod(after[a] for a in new)):
            if left < right:
                old.append(i + len(old))
            else:
                new.append(j + len(new))
        i, j = i + len(old), j + len(new)
        blocks.append((old, new))
    return blocks


def squeeze(state: Propagation, node: onnx.NodeProto) -> None:
    """Adds or drops axes of length 1."""
    source, target = node.input[0], node.output[0]
    state.labels[target] = _reshaped(state.of(source), state.graph.shapes[source], state.graph.shapes[target])


def expand(state: Propagation, node: onnx.NodeProto) -> None:
    """Repeats along axes of length 1."""
    state.labels[node.output[0]] = aligned(state.of(node.input[0]), len(state.graph.shapes[node.output[0]]))


def tile(state: Propagation, node: onnx.NodeProto) -> None:
    """Repeats whole axes; repeated channels are kept or removed together."""
    labels = state.of(node.input[0])
    if node.input[1] not in state.graph.constants:
        state.pin_inputs(node, f"Tile '{node.name}' depends on the data")
        return
    repeats = state.graph.constants[node.input[1]].tolist()
    state.labels[node.output[0]] = np.tile(
        labels, [n if size > 1 else 1 for n, size in zip(repeats, labels.shape, strict=True)]
    )


def pad(state: Propagation, node: onnx.NodeProto) -> None:
    """Padding of the channel axis makes new channels (option A shortcuts of CIFAR ResNets)."""
    labels = state.of(node.input[0])
    before, after = pad_amounts(node, state.graph)
    padded = [axis for axis in range(labels.ndim) if before[axis] or after[axis]]
    channel_axes = [axis for axis in padded if labels.shape[axis] > 1]
    crops = [axis for axis in channel_axes if min(before[axis], after[axis]) < 0]
    if crops or (channel_axes and attribute(node, "mode", b"constant") != b"constant"):
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


def resize(state: Propagation, node: onnx.NodeProto) -> None:
    """Interpolates positions within each channel."""
    sizes = zip(state.graph.shapes[node.input[0]], state.graph.shapes[node.output[0]], strict=True)
    changed = [axis for axis, (before, after) in enumerate(sizes) if before != after]
    along_axis(state, node, changed, "interpolates over channels")


def gather(state: Propagation, node: onnx.NodeProto) -> None:
    """Picks positions, or channels by constant numbers."""
    labels, indices = state.of(node.input[0]), node.input[1]
    axis = attribute(node, "axis", 0) % labels.ndim
    if labels.shape[axis] == 1:
        n_index_dims = len(state.graph.shapes[indices])
        picked = np.take(labels, 0, axis=axis)
        for _ in range(n_index_dims):
            picked = np.expand_dims(picked, axis)
        state.labels[node.output[0]] = picked
        return
    picks = state.graph.constants.get(indices)
    if picks is not None and picks.ndim == 1:
        state.labels[node.output[0]] = np.take(labels, picks, axis=axis)
    elif picks is not None and picks.ndim == 0 and len(varying_axes(labels)) > 1:
        # queries, keys and values side by side: what lies at equal places in them is tied
        tied = state.ties.tie_along(labels, axis, f"Gather '{node.name}' picks among fixed channels")
        state.labels[node.output[0]] = np.squeeze(tied, axis=axis)
    else:
        state.pin_inputs(node, f"Gather '{node.name}' picks single channels, or channels by the data")


def depth_to_space(state: Propagation, node: onnx.NodeProto) -> None:
    """Pixel shuffle: the channels that become one channel's pixels are kept or removed together."""
    block = attribute(node, "blocksize", 1)
    labels = state.channel_vector(node, node.input[0], 1)
    depth_last = attribute(node, "mode", b"DCR") == b"DCR"
    shape = (block * block, -1) if depth_last else (-1, block * block)
    kept = state.ties.tie_along(labels.reshape(shape), 0 if depth_last else 1, "a pixel shuffle")
    state.labels[node.output[0]] = kept.reshape(1, -1, 1, 1)


def space_to_depth(state: Propagation, node: onnx.NodeProto) -> None:
    """Reverse of the pixel shuffle: every channel is repeated."""
    block = attribute(node, "blocksize", 1)
    labels = state.channel_vector(node, node.input[0], 1)
    state.labels[node.output[0]] = np.tile(labels, block * block).reshape(1, -1, 1, 1)
