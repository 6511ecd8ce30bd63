"""Group widths of a pruned ONNX network, found by comparing its weights' shapes with the base network's."""

import numpy as np
import onnx

from latency.candidate import candidate_model, first_channels
from latency.errors import LatencyError, ModelFileError
from latency.space import SearchSpace
from latency.structure import FIXED, IntArray

Shapes = dict[str, tuple[int, ...]]


def recovered_widths(space: SearchSpace, pruned: onnx.ModelProto) -> IntArray:
    """Widths of the pruned network, [n_groups].

    A group's width is read off an axis of a weight that holds its channels alone; a group none of whose weights is left
    has width 0. The candidate of these widths must then have the same weights, shape by shape.

    Raises:
        ModelFileError: the network is no pruned version of the search space's.
    """
    found = _shapes(pruned)
    widths = np.zeros(len(space.groups), dtype=np.int64)
    for axis in space.parameter_axes:
        shape = found.get(axis.parameter)
        group = _only_group(space, axis.slots)
        if shape is None or axis.axis >= len(shape) or group is None:
            continue
        n_channels, n_full = shape[axis.axis], len(axis.slots)
        if not 0 <= n_channels <= n_full:
            raise ModelFileError(
                f"Weight {axis.parameter!r} has {n_channels} channels, in the base network {n_full}."
            )
        widths[group] = max(widths[group], n_channels * space.full_widths[group] // n_full)
    try:
        expected = _shapes(candidate_model(space, first_channels(widths)))
    except LatencyError as error:
        raise ModelFileError(f"The network is no pruned version of this search space: {error}") from error
    _require_same(expected, found)
    return space.canonical(widths)


def _only_group(space: SearchSpace, slots: IntArray) -> int | None:
    """The group that all slots belong to; None where there are several, or channels that are fixed."""
    if not slots.size or (slots == FIXED).any():
        return None
    first = int(slots.flat[0])
    for group in space.groups:
        if group.offset <= first < group.offset + group.n_channels:
            inside = (slots >= group.offset) & (slots < group.offset + group.n_channels)
            return group.index if inside.all() else None
    return None


def _shapes(model: onnx.ModelProto) -> Shapes:
    """Shapes of the weights that channels can be read off: constants of real numbers with axes."""
    tensors = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors += [(node.output[0], entry.t) for entry in node.attribute if entry.name == "value"]
    return {
        name: tuple(tensor.dims)
        for name, tensor in tensors
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims
    }


def _require_same(expected: Shapes, found: Shapes) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ModelFileError(
                f"The network is no pruned version of this search space: weight {name!r} is "
                f"{found.get(name, 'missing')}, for its widths it would be {expected.get(name, 'missing')}."
            )
