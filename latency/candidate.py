"""Candidates: the base ONNX model with fewer channels, cut out of its initialisers without torch."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from latency.channels import ChannelStructure
from latency.errors import WidthError
from latency.graph import Array, attribute
from latency.in_memory import InMemoryModel, in_memory
from latency.layer_rules import narrows_all_groups
from latency.layout_rules import pad_amounts, slice_ranges
from latency.removal import Removal
from latency.space import SearchSpace
from latency.structure import FIXED, IntArray

Mask = npt.NDArray[np.bool_]
Kept = Sequence[IntArray]
"""Ascending positions kept within each group, one array for each group."""


def first_channels(widths: Sequence[int] | IntArray) -> tuple[IntArray, ...]:
    """The first `widths[g]` positions of every group: what profiling keeps, as latency depends on widths."""
    return tuple(np.arange(int(width)) for width in widths)


def candidate_model(space: SearchSpace, kept: Kept) -> onnx.ModelProto:
    """The network in which each group keeps only the given positions.

    Args:
        space: the base network.
        kept: ascending positions kept within each group, one array for each group.

    Returns:
        An ONNX model with the base's inputs and outputs. Branches whose group keeps nothing are gone.

    Raises:
        WidthError: the kept positions are no ascending subset of a group, or leave no network.
    """
    model, initializers = _cut_model(space, kept)
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in initializers.items()
    )
    return model


def candidate_in_memory(space: SearchSpace, kept: Kept) -> InMemoryModel:
    """`candidate_model`, ready for `latency.session.make_session` in a fraction of the time.

    Raises:
        WidthError: the kept positions are no ascending subset of a group, or leave no network.
    """
    return in_memory(*_cut_model(space, kept))


def _cut_model(space: SearchSpace, kept: Kept) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The cut network without its initialisers, and those by name."""
    removal = _removal(space, kept)
    cut = _Cut(space, kept_slots(space, kept), removal.dead_tensors)
    graph = space.structure.graph
    nodes = [cut.node(node) for i, node in enumerate(graph.nodes) if i not in removal.removed_nodes]
    read = dict.fromkeys(name for node in nodes for name in node.input)
    model = onnx.ModelProto(ir_version=space.model.ir_version, producer_name="trimms")
    model.opset_import.extend(space.model.opset_import)
    model.graph.name = "candidate"
    model.graph.node.extend(nodes)
    model.graph.input.extend(value for value in space.model.graph.input if value.name in graph.inputs)
    model.graph.output.extend(space.model.graph.output)
    return model, {name: cut.constant(name) for name in read if cut.has_constant(name)}


def masked_model(space: SearchSpace, kept: Kept) -> onnx.ModelProto:
    """The full-size network whose removed channels are gated off: the definition a candidate must equal.

    Every weight that reads a removed channel is zero, and so are the biases and BatchNorm affine
    parameters of removed branches.
    """
    removal = _removal(space, kept)
    mask = kept_slots(space, kept)
    values = {name: value.copy() for name, value in space.structure.graph.constants.items()}
    for axis in space.parameter_axes:
        if axis.role == "in":
            np.moveaxis(values[axis.parameter], axis.axis, 0)[~_kept_along(axis.slots, mask)] = 0
    for name in removal.presence:
        values[name][...] = 0
    model = onnx.ModelProto()
    model.CopyFrom(space.model)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(space.structure.graph.nodes)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    return model


def kept_slots(space: SearchSpace, kept: Kept) -> Mask:
    """Whether each slot of the network is kept, [n_slots]; groups that vanish with others keep nothing."""
    zero_groups = _removal(space, kept).zero_groups
    mask = np.zeros(int(space.full_widths.sum()), dtype=bool)
    for group, positions in zip(space.groups, kept, strict=True):
        if group.index not in zero_groups:
            mask[group.offset + np.asarray(positions, dtype=np.int64)] = True
    return mask


def kept_along(structure: ChannelStructure, mask: Mask, tensor: str, axis: int) -> Mask:
    """Whether each index along an axis of a tensor is kept, [size of the axis].

    Args:
        structure: the network's channel structure.
        mask: whether each slot is kept, [n_slots].
        tensor: name of a tensor of the graph, a constant or a view of one.
        axis: axis of the tensor.
    """
    graph = structure.graph
    size = graph.shapes[tensor][axis]
    if graph.is_constant(tensor):
        place = (graph.source(tensor), graph.source_axis(tensor, axis))
        known = [a.slots for a in structure.parameter_axes if (a.parameter, a.axis) == place]
        return _kept_along(known[0], mask) if known else np.ones(size, dtype=bool)
    slots = structure.tensor_slots.get(tensor)
    if slots is None or slots.shape[axis] < size:  # the same slots all along it
        return np.ones(size, dtype=bool)
    along = np.moveaxis(slots, axis, 0).reshape(size, -1)
    return np.asarray(_kept_along(along, mask).any(axis=1))


def _removal(space: SearchSpace, kept: Kept) -> Removal:
    if len(kept) != len(space.groups):
        raise WidthError(f"expected kept positions of {len(space.groups)} groups, got {len(kept)}.")
    for group, positions in zip(space.groups, kept, strict=True):
        array = np.asarray(positions)
        ascending = array.ndim == 1 and bool((np.diff(array) > 0).all())
        if not ascending or (array.size and not 0 <= array[0] <= array[-1] < group.n_channels):
            raise WidthError(
                f"group '{group.name}' keeps {array.tolist()}: expected ascending positions in "
                f"0 … {group.n_channels - 1}, each once."
            )
    space.canonical([len(positions) for positions in kept])  # refuses what leaves no network
    return space.structure.removal.at([i for i, positions in enumerate(kept) if not len(positions)])


def _kept_along(slots: IntArray, mask: Mask) -> Mask:
    if not mask.size:
        return np.ones(slots.shape, dtype=bool)
    return np.where(slots == FIXED, True, mask[slots])


class _Cut:
    """Rewrites nodes and constants for one choice of slots."""

    def __init__(self, space: SearchSpace, mask: Mask, dead_tensors: frozenset[str]) -> None:
        self._structure = space.structure
        self._mask = mask
        self._dead = dead_tensors
        self._new: dict[str, Array] = {}
        self._axes: dict[str, list[tuple[int, IntArray]]] = {}
        for axis in space.parameter_axes:
            self._axes.setdefault(axis.parameter, []).append((axis.axis, axis.slots))

    def has_constant(self, name: str) -> bool:
        return name in self._new or name in self._structure.graph.constants

    def constant(self, name: str) -> Array:
        """Value of a constant with the removed channels cut out."""
        if name in self._new:
            return self._new[name]
        value = self._structure.graph.constants[name]
        for axis, slots in self._axes.get(name, ()):
            kept = _kept_along(slots, self._mask)
            n_kept = int(kept.sum())
            if kept[:n_kept].all():
                value = value[(slice(None),) * axis + (slice(n_kept),)]
            else:
                value = np.compress(kept, value, axis=axis)
        return value

    def node(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node without its dead operands and with its channel counts rewritten."""
        inputs = [name for name in node.input if name not in self._dead]
        if len(inputs) == 1 and len(node.input) > 1 and node.op_type in ("Add", "Concat", "Sum"):
            return onnx.NodeProto(op_type="Identity", name=node.name, input=inputs, output=node.output)
        made = onnx.NodeProto(op_type=node.op_type, name=node.name, domain=node.domain)
        made.input.extend(inputs)
        made.output.extend(node.output)
        made.attribute.extend(node.attribute)
        made.metadata_props.extend(node.metadata_props)
        rewrite = _REWRITES.get(node.op_type)
        if rewrite is not None:
            rewrite(self, node, made)
        return made

    def kept_along(self, tensor: str, axis: int) -> Mask:
        """Whether each index along an axis of a tensor is kept, [size of the axis]."""
        return kept_along(self._structure, self._mask, tensor, axis)

    def conv(self, node: onnx.NodeProto, made: onnx.NodeProto) -> None:
        """Fewer groups, where whole groups are removed."""
        n_groups = attribute(node, "group", 1)
        if n_groups > 1 and not narrows_all_groups(node, self._structure.graph):
            kept = self.kept_along(node.input[0], 1)
            for item in made.attribute:
                if item.name == "group":
                    item.i = int(kept.sum()) * n_groups // kept.size

    def gather(self, node: onnx.NodeProto, made: onnx.NodeProto) -> None:
        """Positions counted in kept channels."""
        axis = attribute(node, "axis", 0) % len(self._structure.graph.shapes[node.input[0]])
        kept = self.kept_along(node.input[0], axis)
        if not kept.all():
            indices = self._structure.graph.constants[node.input[1]] % kept.size
            position = np.cumsum(kept) - 1
            self._replace(made, 1, position[indices[kept[indices]]].tolist())

    def resize_to(self, node: onnx.NodeProto, made: onnx.NodeProto, position: int) -> None:
        """Put the output's new shape at an input position."""
        if len(node.input) > position and node.input[position]:
            n_dims = len(self._structure.graph.shapes[node.output[0]])
            sizes = [int(self.kept_along(node.output[0], axis).sum()) for axis in range(n_dims)]
            self._replace(made, position, sizes)

    def split(self, node: onnx.NodeProto, made: onnx.NodeProto) -> None:
        axis = attribute(node, "axis", 0) % len(self._structure.graph.shapes[node.input[0]])
        kept = [attribute_ for attribute_ in made.attribute if attribute_.name != "num_outputs"]
        del made.attribute[:], made.input[1:]
        made.attribute.extend(kept)
        made.input.append("")
        dead = [name in self._dead for name in node.output]
        counts = [int(self.kept_along(name, axis).sum()) for name in node.output]
        self._replace(made, 1, [0 if gone else n for n, gone in zip(counts, dead, strict=True)])

    def slice(self, node: onnx.NodeProto, made: onnx.NodeProto) -> None:
        """Bounds counted in kept channels."""
        shape = self._structure.graph.shapes[node.input[0]]
        starts, ends, axes, steps = [], [], [], []
        for axis, cut in slice_ranges(node, self._structure.graph).items():
            kept = self.kept_along(node.input[0], axis)
            start, stop, step = cut.indices(shape[axis])
            if step == 1 and not kept.all():
                start, stop = int(kept[:start].sum()), int(kept[:stop].sum())
            starts.append(start)
            ends.append(stop if stop >= 0 else -shape[axis] - 1)
            axes.append(axis)
            steps.append(step)
        del made.input[1:]
        made.input.extend([""] * 4)
        for position, values in enumerate((starts, ends, axes, steps), start=1):
            self._replace(made, position, values)

    def pad(self, node: onnx.NodeProto, made: onnx.NodeProto) -> None:
        """Channels added before and after, as far as they are kept."""
        before, after = pad_amounts(node, self._structure.graph)
        for axis in range(len(before)):
            kept = self.kept_along(node.output[0], axis)
            if not kept.all():
                before[axis] = int(kept[: before[axis]].sum())
                after[axis] = int(kept[len(kept) - after[axis] :].sum())
        del made.input[3:]
        self._replace(made, 1, [*before, *after])

    def _replace(self, made: onnx.NodeProto, position: int, values: list[int]) -> None:
        name = f"{made.output[0]}::{made.op_type}.{position}"
        self._new[name] = np.asarray(values, dtype=np.int64)
        made.input[position] = name


_Rewrite = Callable[[_Cut, onnx.NodeProto, onnx.NodeProto], None]

_REWRITES: Mapping[str, _Rewrite] = {
    "Conv": _Cut.conv,
    "ConvTranspose": _Cut.conv,
    "Expand": lambda cut, node, made: cut.resize_to(node, made, 1),
    "Gather": _Cut.gather,
    "Pad": _Cut.pad,
    "Reshape": lambda cut, node, made: cut.resize_to(node, made, 1),
    "Resize": lambda cut, node, made: cut.resize_to(node, made, 3),
    "Slice": _Cut.slice,
    "Split": _Cut.split,
}
"""Operators whose attributes or constant inputs hold channel counts."""
