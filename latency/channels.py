"""Channel structure of an ONNX graph: slots, groups, the parameters they own, the layers they widen."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from latency.graph import Graph, attribute
from latency.operators import RULES
from latency.propagation import Propagation, propagate
from latency.removal import RemovalAnalysis
from latency.structure import (
    FIXED,
    ChannelGroup,
    IntArray,
    KeptChannels,
    LayerView,
    LinearWidth,
    ParameterAxis,
)

_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class ChannelStructure:
    """Everything that candidates, surgery, gates and the latency encoding need to know of a network.

    Attributes:
        graph: the graph it was found on.
        groups: channel groups, in the order of their first layers.
        parameter_axes: every axis of a constant that holds prunable channels.
        layers: Conv and linear layers, in graph order.
        kept: channels that are never pruned, and why.
        tensor_slots: slot of every element of each labelled tensor, broadcastable to its shape.
        removal: what disappears when groups reach width 0.
    """

    graph: Graph
    groups: tuple[ChannelGroup, ...]
    parameter_axes: tuple[ParameterAxis, ...]
    layers: tuple[LayerView, ...]
    kept: tuple[KeptChannels, ...]
    tensor_slots: dict[str, IntArray]
    removal: RemovalAnalysis


def find_channels(graph: Graph) -> ChannelStructure:
    """Channel structure of a graph. Time grows linearly with its size."""
    return _StructureBuilder(graph).build()


def layer_name(graph: Graph, node: onnx.NodeProto) -> str:
    """Name of the layer a node computes: its weight's name without `.weight`, else the node's name."""
    for name in node.input[1:2]:
        if name in graph.constants and name.endswith(".weight"):
            return name.removesuffix(".weight")
    return node.name or node.output[0]


class _StructureBuilder:
    """Turns propagated labels into groups; holds the tables that the steps share."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._state: Propagation = propagate(graph, RULES)
        self._classes = self._state.ties.classes()
        self._reasons = dict(self._state.ties.pin_reasons(self._classes))
        self._weighted = [
            (index, node)
            for index, node in enumerate(graph.nodes)
            if node.op_type in _WEIGHTED and node.input[1] in graph.constants
        ]
        self._members, self._slot_of_label = self._number_slots()
        self._group_of_slot = np.repeat(
            np.arange(len(self._members)), [len(members) for members in self._members]
        )
        self._sizes = np.array([len(members) for members in self._members], dtype=np.int64)

    def build(self) -> ChannelStructure:
        slots = {name: self._slot_of_label[labels] for name, labels in self._state.labels.items()}
        contents = {name: self._contents(array) for name, array in slots.items()}
        removal = RemovalAnalysis(self._graph, contents, self._producers())
        groups = self._groups(removal)
        axes = tuple(
            ParameterAxis(axis.constant, axis.axis, self._slot_of_label[axis.labels], axis.role)
            for axis in self._state.axes.values()
            if (self._slot_of_label[axis.labels] != FIXED).any()
        )
        return ChannelStructure(
            self._graph, groups, axes, self._layers(slots, groups, removal), self._kept(), slots, removal
        )

    def _number_slots(self) -> tuple[list[list[int]], IntArray]:
        """Classes of each group's slots in order, and the slot of every label."""
        signatures: dict[int, list[tuple[int, int]]] = {}
        for position, axis in enumerate(self._state.axes.values()):
            values, counts = np.unique(self._classes[axis.labels], return_counts=True)
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                signatures.setdefault(value, []).append((position, count))
        members: dict[tuple[tuple[int, int], ...], list[int]] = {}
        done = set(self._reasons)
        for _, node in self._weighted:
            for value in self._classes[self._made_labels(node)].tolist():
                if value not in done:
                    done.add(value)
                    members.setdefault(tuple(signatures[value]), []).append(value)
        slot_of_class = np.full(len(self._classes), FIXED, dtype=np.int64)
        ordered = list(members.values())
        flat = [value for group in ordered for value in group]
        slot_of_class[flat] = np.arange(len(flat))
        return ordered, slot_of_class[self._classes]

    def _made_labels(self, node: onnx.NodeProto) -> IntArray:
        axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
        known = self._state.axes.get((node.input[1], axis))
        return known.labels if known is not None else np.zeros(0, dtype=np.int64)

    def _contents(self, slots: IntArray) -> frozenset[int | None]:
        found = np.unique(slots)
        groups: set[int | None] = set(self._group_of_slot[found[found != FIXED]].tolist())
        if (found == FIXED).any():
            groups.add(None)
        return frozenset(groups)

    def _producers(self) -> list[set[int]]:
        nodes: list[set[int]] = [set() for _ in self._members]
        for index, node in self._weighted:
            made = self._slot_of_label[self._made_labels(node)]
            for group in np.unique(self._group_of_slot[made[made != FIXED]]):
                nodes[int(group)].add(index)
        return nodes

    def _groups(self, removal: RemovalAnalysis) -> tuple[ChannelGroup, ...]:
        groups: list[ChannelGroup] = []
        names: dict[str, int] = {}
        offsets = np.concatenate([[0], np.cumsum(self._sizes)])
        first = {}
        for _, node in self._weighted:
            made = self._slot_of_label[self._made_labels(node)]
            made = made[made != FIXED]
            for group, count in zip(*np.unique(self._group_of_slot[made], return_counts=True), strict=True):
                first.setdefault(int(group), (layer_name(self._graph, node), int(count)))
        for index in range(len(self._members)):
            name, n_made = first[index]
            names[name] = names.get(name, 0) + 1
            effect = removal.at([index])
            allowed = effect.refusal is None
            removed = effect.removed_nodes if allowed else frozenset()
            groups.append(
                ChannelGroup(
                    index=index,
                    name=name if names[name] == 1 else f"{name}#{names[name]}",
                    n_channels=int(self._sizes[index]),
                    offset=int(offsets[index]),
                    channels_per_slot=n_made // int(self._sizes[index]),
                    zero_allowed=allowed,
                    removes=tuple(layer_name(self._graph, n) for i, n in self._weighted if i in removed),
                    implied_zero=tuple(sorted(effect.zero_groups - {index})) if allowed else (),
                    presence=effect.presence if allowed else (),
                )
            )
        return tuple(groups)

    def _width(self, slots: IntArray) -> LinearWidth:
        counts = np.bincount(self._group_of_slot[slots[slots != FIXED]], minlength=len(self._members))
        terms = tuple(
            (int(group), int(counts[group] // self._sizes[group])) for group in np.flatnonzero(counts)
        )
        return LinearWidth(int((slots == FIXED).sum()), terms)

    def _layers(
        self, slots: dict[str, IntArray], groups: tuple[ChannelGroup, ...], removal: RemovalAnalysis
    ) -> tuple[LayerView, ...]:
        removed_by: dict[int, list[int]] = {}
        for group in groups:
            if group.zero_allowed:
                for node_index in removal.at([group.index]).removed_nodes:
                    removed_by.setdefault(node_index, []).append(group.index)
        return tuple(
            self._layer(node, slots, tuple(removed_by.get(index, ()))) for index, node in self._weighted
        )

    def _layer(
        self, node: onnx.NodeProto, slots: dict[str, IntArray], depends_on: tuple[int, ...]
    ) -> LayerView:
        data, weight, output = node.input[0], node.input[1], node.output[0]
        in_shape, out_shape = self._graph.shapes[data], self._graph.shapes[output]
        is_conv = node.op_type == "Conv"
        axis = 1 if is_conv else len(in_shape) - 1
        weight_shape = self._graph.constants[weight].shape
        n_conv_groups = attribute(node, "group", 1) if is_conv else 1
        kind: Literal["dense", "depthwise", "grouped", "linear"] = "linear"
        if is_conv:
            kind = "dense" if n_conv_groups == 1 else "depthwise" if weight_shape[1] == 1 else "grouped"
        return LayerView(
            name=layer_name(self._graph, node),
            kind=kind,
            in_channels=self._width(_along(slots[data], axis, in_shape[axis])),
            out_channels=self._width(_along(slots[output], axis, out_shape[axis])),
            channels_per_conv_group=weight_shape[1] if is_conv else in_shape[axis],
            kernel_area=int(np.prod(weight_shape[2:])) if is_conv else 1,
            in_positions=int(np.prod(in_shape)) // in_shape[axis],
            out_positions=int(np.prod(out_shape)) // out_shape[axis],
            depends_on=depends_on,
        )

    def _kept(self) -> tuple[KeptChannels, ...]:
        rows = []
        for _, node in self._weighted:
            values = self._classes[self._made_labels(node)]
            reasons = [self._reasons.get(int(value)) for value in values]
            pinned = [reason for reason in reasons if reason is not None]
            if pinned:
                rows.append(KeptChannels(layer_name(self._graph, node), len(pinned), pinned[0]))
        return tuple(rows)


def _along(slots: IntArray, axis: int, size: int) -> IntArray:
    """Slots along one axis, [size]; they do not vary along the others."""
    moved = np.moveaxis(slots, axis, 0)
    return np.broadcast_to(moved.reshape(moved.shape[0], -1)[:, 0], (size,))
