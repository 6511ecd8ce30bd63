"""Channel structure of an ONNX graph: slots, groups, the parameters they own, the layers they widen."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx

from latency.graph import Graph
from latency.layer_rules import made_axis
from latency.layer_views import LAYERS, LayerViews, layer_name
from latency.operators import RULES
from latency.propagation import Propagation, propagate
from latency.removal import RemovalAnalysis
from latency.structure import FIXED, ChannelGroup, IntArray, KeptChannels, LayerView, ParameterAxis

SMALLEST_GROUP = 4
"""Slots below which a part of a layer's channels is no group: no device's step is finer than 4 channels."""


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
        unknown_operators: operators that are not understood where channels meet them, with their nodes.
    """

    graph: Graph
    groups: tuple[ChannelGroup, ...]
    parameter_axes: tuple[ParameterAxis, ...]
    layers: tuple[LayerView, ...]
    kept: tuple[KeptChannels, ...]
    tensor_slots: dict[str, IntArray]
    removal: RemovalAnalysis
    unknown_operators: tuple[str, ...] = ()


def find_channels(graph: Graph) -> ChannelStructure:
    """Channel structure of a graph. Time grows linearly with its size."""
    state = propagate(graph, RULES)
    classes = state.ties.classes()
    reasons = dict(state.ties.pin_reasons(classes))
    while True:
        numbering = _Numbering(state, classes, reasons)
        contents = {name: numbering.contents(labels) for name, labels in state.labels.items()}
        removal = RemovalAnalysis(graph, contents, numbering.producers)
        stuck = numbering.stuck_classes(removal) or numbering.split_off_classes()
        if not stuck:
            break
        reasons.update(stuck)
    groups = _groups(numbering, removal)
    slots = {name: numbering.slot_of_label[labels] for name, labels in state.labels.items()}
    views = LayerViews(graph, slots, numbering.group_of_slot, numbering.sizes)
    return ChannelStructure(
        graph=graph,
        groups=groups,
        parameter_axes=numbering.parameter_axes(),
        layers=views.make(_removed_by(groups, removal)),
        kept=_kept(state, numbering, classes, reasons),
        tensor_slots=slots,
        removal=removal,
        unknown_operators=tuple(state.unknown),
    )


class _Numbering:
    """Slots and groups made from label classes.

    Attributes:
        layers: index, node and made labels of every layer.
        members: classes of each group's slots, in order.
        slot_of_label: slot of every label, [n_labels].
        group_of_slot: group of each slot, [n_slots].
        sizes: number of slots of each group, [n_groups].
        producers: for every group, indices of the nodes that make its channels.
        first_layers: for every group, its first layer and the channels it makes there.
    """

    def __init__(self, state: Propagation, classes: IntArray, reasons: dict[int, str]) -> None:
        self._state = state
        self._classes = classes
        self.layers = [
            (index, node, self._made_labels(node))
            for index, node in enumerate(state.graph.nodes)
            if node.op_type in LAYERS and node.output[0] not in state.graph.computed
        ]
        self.members = self._find_members(reasons)
        self.sizes: IntArray = np.array([len(group) for group in self.members], dtype=np.int64)
        self.group_of_slot: IntArray = np.repeat(np.arange(len(self.members)), self.sizes)
        slot_of_class = np.full(len(classes), FIXED, dtype=np.int64)
        if self.members:
            slot_of_class[np.concatenate(self.members)] = np.arange(self.sizes.sum())
        self.slot_of_label: IntArray = slot_of_class[classes]
        self.producers: list[set[int]] = [set() for _ in self.members]
        self.first_layers: dict[int, tuple[onnx.NodeProto, int]] = {}
        self._find_producers()

    def _made_labels(self, node: onnx.NodeProto) -> IntArray:
        """Labels of the channels that a layer makes; none where its weight is no stored matrix or kernel."""
        graph, weight = self._state.graph, node.input[1]
        if not graph.is_constant(weight) or len(graph.shapes[weight]) < 2:
            return np.zeros(0, dtype=np.int64)
        axis = graph.source_axis(weight, made_axis(node, graph))
        known = self._state.axes.get((graph.source(weight), axis))
        return known.labels if known is not None else np.zeros(0, dtype=np.int64)

    def _find_members(self, reasons: Iterable[int]) -> list[IntArray]:
        """Classes of each group's slots: those that own the same axes equally often are interchangeable."""
        signatures = self._signatures()
        taken = np.zeros(len(self._classes), dtype=bool)
        taken[[0, *reasons]] = True
        members: dict[int, list[IntArray]] = {}
        for _, _, labels in self.layers:
            values = self._classes[labels]
            values = values[np.sort(np.unique(values, return_index=True)[1])]
            values = values[~taken[values]]
            taken[values] = True
            own, first = np.unique(signatures[values], return_index=True)
            for signature in own[np.argsort(first)].tolist():
                members.setdefault(signature, []).append(values[signatures[values] == signature])
        return [np.concatenate(parts) for parts in members.values()]

    def _signatures(self) -> IntArray:
        """A number for each class, equal for those that lie on the same axes equally often, [n_labels]."""
        signatures = np.zeros(len(self._classes), dtype=np.int64)
        n_signatures = 1
        for axis in self._state.axes.values():
            values, counts = np.unique(self._classes[axis.labels], return_counts=True)
            pairs = signatures[values] * (counts.max() + 1) + counts
            found, inverse = np.unique(pairs, return_inverse=True)
            signatures[values] = n_signatures + inverse
            n_signatures += len(found)
        return signatures

    def _find_producers(self) -> None:
        for index, node, labels in self.layers:
            made = self.slot_of_label[labels]
            groups, counts = np.unique(self.group_of_slot[made[made != FIXED]], return_counts=True)
            for group, count in zip(groups.tolist(), counts.tolist(), strict=True):
                self.producers[group].add(index)
                self.first_layers.setdefault(group, (node, count))

    def contents(self, labels: IntArray) -> frozenset[int | None]:
        """Groups that a tensor's channels belong to; None among them where some are never removed."""
        slots = np.unique(self.slot_of_label[labels])
        groups: set[int | None] = set(self.group_of_slot[slots[slots != FIXED]].tolist())
        return frozenset(groups | {None}) if slots.size and slots[0] == FIXED else frozenset(groups)

    def stuck_classes(self, removal: RemovalAnalysis) -> dict[int, str]:
        """Reason to pin each group of a single slot that cannot be removed: it leaves no choice."""
        stuck = {}
        for group in np.flatnonzero(self.sizes == 1).tolist():
            refusal = removal.at([group]).refusal
            if refusal is not None:
                what = "its channels can only be removed all at once"
                stuck[int(self.members[group][0])] = f"{what}, and without them {refusal}"
        return stuck

    def split_off_classes(self) -> dict[int, str]:
        """Reason to pin each group of a few channels among many others of a layer.

        Channel shuffles leave such remainders. They would widen the width vector, not the choice.
        """
        few = {}
        for group in np.flatnonzero(self.sizes < SMALLEST_GROUP).tolist():
            node, n_made = self.first_layers[group]
            if n_made < self._made_labels(node).size:
                reason = f"only {self.sizes[group]} channels of '{layer_name(self._state.graph, node)}' are tied alike"
                few.update(dict.fromkeys(self.members[group].tolist(), reason))
        return few

    def parameter_axes(self) -> tuple[ParameterAxis, ...]:
        """Axes of constants that hold any slot."""
        axes = [(axis, self.slot_of_label[axis.labels]) for axis in self._state.axes.values()]
        return tuple(
            ParameterAxis(axis.constant, axis.axis, slots, axis.role)
            for axis, slots in axes
            if (slots != FIXED).any()
        )


def _groups(numbering: _Numbering, removal: RemovalAnalysis) -> tuple[ChannelGroup, ...]:
    graph = removal.graph
    offsets = np.concatenate([[0], np.cumsum(numbering.sizes)])
    names: dict[str, int] = {}
    groups: list[ChannelGroup] = []
    for index, size in enumerate(numbering.sizes.tolist()):
        first, n_made = numbering.first_layers[index]
        name = layer_name(graph, first)
        names[name] = names.get(name, 0) + 1
        effect = removal.at([index])
        allowed = effect.refusal is None
        removed = sorted(effect.removed_nodes) if allowed else []
        groups.append(
            ChannelGroup(
                index=index,
                name=name if names[name] == 1 else f"{name}#{names[name]}",
                n_channels=size,
                offset=int(offsets[index]),
                channels_per_slot=n_made // size,
                zero_allowed=allowed,
                removes=tuple(layer_name(graph, graph.nodes[i]) for i in removed if _is_layer(graph, i)),
                implied_zero=tuple(sorted(effect.zero_groups - {index})) if allowed else (),
                presence=effect.presence if allowed else (),
            )
        )
    return tuple(groups)


def _is_layer(graph: Graph, index: int) -> bool:
    return graph.nodes[index].op_type in LAYERS


def _removed_by(groups: tuple[ChannelGroup, ...], removal: RemovalAnalysis) -> dict[int, list[int]]:
    """Groups whose width 0 removes each node, by the node's index."""
    removed_by: dict[int, list[int]] = {}
    for group in groups:
        for index in removal.at([group.index]).removed_nodes if group.zero_allowed else ():
            removed_by.setdefault(index, []).append(group.index)
    return removed_by


def _kept(
    state: Propagation, numbering: _Numbering, classes: IntArray, reasons: dict[int, str]
) -> tuple[KeptChannels, ...]:
    """Channels of every layer that are never removed, with the first reason found."""
    rows = []
    for _, node, labels in numbering.layers:
        fixed = classes[labels][numbering.slot_of_label[labels] == FIXED].tolist()
        if fixed:
            found = [reasons[value] for value in fixed if value in reasons]
            reason = found[0] if found else "nothing that is pruned reads them"
            rows.append(KeptChannels(layer_name(state.graph, node), len(fixed), reason))
        elif not labels.size and _has_weight(state.graph, node):
            reason = state.opaque.get(node.output[0], "it mixes positions, not channels")
            n_channels = state.graph.shapes[node.output[0]][1 if node.op_type.startswith("Conv") else -1]
            rows.append(KeptChannels(layer_name(state.graph, node), n_channels, reason))
    return tuple(rows)


def _has_weight(graph: Graph, node: onnx.NodeProto) -> bool:
    return node.op_type != "MatMul" or any(graph.is_parameter(name) for name in node.input)
