"""Carries labels from the inputs of an ONNX graph to its outputs, one operator rule at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from latency.graph import Graph
from latency.labels import NO_LABEL, LabelTies, collapse, varying_axes
from latency.structure import IntArray, Role


@dataclass(frozen=True, slots=True)
class LabelledAxis:
    """One axis of a constant, and the label of each of its indices."""

    constant: str
    axis: int
    labels: IntArray
    role: Role


@dataclass(slots=True)
class Propagation:
    """The state that operator rules read and write.

    Attributes:
        graph: the graph under analysis.
        ties: labels and their ties.
        labels: labels of every tensor reached so far; constants have none.
        axes: labelled axes of constants, by (constant, axis).
        shared_layouts: label arrays that must stay rectangular, with the reason for tying them.
    """

    graph: Graph
    ties: LabelTies = field(default_factory=LabelTies)
    labels: dict[str, IntArray] = field(default_factory=dict)
    axes: dict[tuple[str, int], LabelledAxis] = field(default_factory=dict)
    shared_layouts: list[tuple[IntArray, str]] = field(default_factory=list)

    def is_constant(self, name: str) -> bool:
        """Whether `name` is an initialiser or a `Constant`."""
        return name in self.graph.constants

    def unlabelled(self, name: str) -> IntArray:
        """Label array of a tensor whose elements are never removed."""
        return np.full((1,) * len(self.graph.shapes[name]), NO_LABEL, dtype=np.int64)

    def of(self, name: str) -> IntArray:
        """Labels of a tensor, broadcastable to its shape; `NO_LABEL` for constants."""
        return self.unlabelled(name) if self.is_constant(name) else self.labels[name]

    def channel_vector(self, node: onnx.NodeProto, name: str, axis: int) -> IntArray:
        """Labels along one axis of a tensor, [size of the axis]; labels that vary elsewhere are tied."""
        labels = self.of(name)
        axis %= labels.ndim
        for other in varying_axes(labels):
            if other != axis:
                labels = self.ties.tie_along(
                    labels, other, f"{node.op_type} '{node.name}' reads all positions"
                )
        return np.broadcast_to(labels.ravel(), (self.graph.shapes[name][axis],)).copy()

    def bind(self, constant: str, axis: int, labels: IntArray, role: Role) -> IntArray:
        """Give one axis of a constant its labels; a constant used twice has its labels tied.

        Returns:
            The labels of the axis, [size of the axis].
        """
        known = self.axes.get((constant, axis))
        if known is None:
            self.axes[constant, axis] = LabelledAxis(constant, axis, labels, role)
            return labels
        self.ties.tie(known.labels, labels, f"'{constant}' is shared with channels that are never removed")
        return known.labels

    def bound(self, constant: str, axis: int) -> IntArray:
        """Labels of one axis of a constant; new ones at its first use. Such an axis makes channels."""
        known = self.axes.get((constant, axis))
        if known is not None:
            return known.labels
        return self.bind(constant, axis, self.ties.fresh(self.graph.constants[constant].shape[axis]), "out")

    def pin_inputs(self, node: onnx.NodeProto, reason: str) -> None:
        """Pin every channel that the node reads; its outputs get no labels."""
        for name in node.input:
            if name and not self.is_constant(name):
                self.ties.pin(self.labels[name], reason)
        for name in node.output:
            if name:
                self.labels[name] = self.unlabelled(name)


Rule = Callable[[Propagation, onnx.NodeProto], None]


def propagate(graph: Graph, rules: Mapping[str, Rule]) -> Propagation:
    """Labels of every tensor of a graph. Operators without a rule pin the channels they touch."""
    state = Propagation(graph)
    for name in graph.inputs:
        state.labels[name] = state.unlabelled(name)
    for node in graph.nodes:
        _apply(state, node, rules)
    for name in graph.outputs:
        state.ties.pin(state.of(name), "it is an output of the network")
    _make_rectangular(state)
    return state


def _apply(state: Propagation, node: onnx.NodeProto, rules: Mapping[str, Rule]) -> None:
    inputs = [name for name in node.input if name]
    if all(state.is_constant(name) or not state.labels[name].any() for name in inputs):
        rule = rules.get(node.op_type)
        if rule is None or not getattr(rule, "makes_labels", False):
            for name in node.output:
                if name:
                    state.labels[name] = state.unlabelled(name)
            return
    rule = rules.get(node.op_type)
    if rule is None or node.domain not in ("", "ai.onnx"):
        operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        state.pin_inputs(node, f"operator {operator} ('{node.name}') is not understood")
        return
    rule(state, node)
    for name in node.output:
        if name and name in state.labels:
            state.labels[name] = collapse(state.labels[name])


def _make_rectangular(state: Propagation) -> None:
    """Tie labels until every shared layout varies along one axis only, so that it can be cut."""
    while True:
        classes = state.ties.classes()
        changed = False
        for labels, reason in state.shared_layouts:
            resolved = collapse(classes[labels])
            axes = varying_axes(resolved)
            if len(axes) > 1:
                state.ties.tie_along(resolved, axes[0], reason)
                changed = True
        if not changed:
            return
