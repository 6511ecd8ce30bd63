"""Group widths of a pruned ONNX network, found by comparing its weights' shapes with the base network's."""

from dataclasses import dataclass

import numpy as np
import onnx

from latency.candidate import candidate_model, first_channels
from latency.errors import LatencyError, ModelFileError
from latency.space import SearchSpace
from latency.structure import FIXED, IntArray

Shapes = dict[str, tuple[int, ...]]


def recovered_widths(space: SearchSpace, pruned: onnx.ModelProto) -> IntArray:
    """Widths of the pruned network, [n_groups].

    The size of every axis of a weight is a sum of widths; each sum with one width that is not known yet gives it. A
    group none of whose weights is left has width 0. The candidate of these widths must then have the same weights,
    shape by shape.

    Raises:
        ModelFileError: the network is no pruned version of the search space's.
    """
    found = _shapes(pruned)
    widths = _solved(space, _sums(space, found))
    try:
        expected = _shapes(candidate_model(space, first_channels(widths)))
    except LatencyError as error:
        raise ModelFileError(f"The network is no pruned version of this search space: {error}") from error
    _require_same(expected, found)
    return space.canonical(widths)


@dataclass(frozen=True, slots=True)
class _Sum:
    """n_channels = Σ per_slot · width over groups, read off an axis of a parameter."""

    parameter: str
    per_slot: dict[int, int]
    n_channels: int


def _sums(space: SearchSpace, found: Shapes) -> list[_Sum]:
    offsets = np.array([group.offset for group in space.groups])
    sums = []
    for axis in space.parameter_axes:
        shape = found.get(axis.parameter)
        if shape is None or axis.axis >= len(shape):
            continue
        free = axis.slots[axis.slots != FIXED]
        members = np.searchsorted(offsets, free, side="right") - 1
        counts = {int(group): int((members == group).sum()) for group in np.unique(members)}
        per_slot = {group: count // int(space.full_widths[group]) for group, count in counts.items()}
        if all(per_slot[group] * space.full_widths[group] == count for group, count in counts.items()):
            n_fixed = len(axis.slots) - len(free)
            sums.append(_Sum(axis.parameter, per_slot, shape[axis.axis] - n_fixed))
    return sums


def _solved(space: SearchSpace, sums: list[_Sum]) -> IntArray:
    """Widths that the sums say, 0 where they say nothing, [n_groups]."""
    known: dict[int, int] = {}
    n_before = -1
    while len(known) > n_before:
        n_before = len(known)
        for one in sums:
            unknown = [group for group in one.per_slot if group not in known]
            if len(unknown) != 1:
                continue
            rest = one.n_channels - sum(
                n * known[group] for group, n in one.per_slot.items() if group in known
            )
            width, odd = divmod(rest, one.per_slot[unknown[0]])
            if odd or not 0 <= width <= space.full_widths[unknown[0]]:
                raise ModelFileError(
                    f"The network is no pruned version of this search space: weight {one.parameter!r} would leave "
                    f"{rest / one.per_slot[unknown[0]]:g} of the {space.full_widths[unknown[0]]} channels of group "
                    f"'{space.groups[unknown[0]].name}'."
                )
            known[unknown[0]] = width
    return np.array([known.get(group.index, 0) for group in space.groups], dtype=np.int64)


def _shapes(model: onnx.ModelProto) -> Shapes:
    """Shapes of the weights that channels can be read off: constants of real numbers with axes."""
    tensors = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output:
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
