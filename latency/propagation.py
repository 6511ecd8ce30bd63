"""Carries labels from the inputs of an ONNX graph to its outputs, one operator rule at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from latency.graph import RESHAPING, Graph, kept_axes
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
        opaque: why the output of a node has no labels, by the tensor's name.
        unknown: operators without a rule that channels meet, with the node: "CumSum ('node_cumsum')".
    """

    graph: Graph
    ties: LabelTies = field(default_factory=LabelTies)
    labels: dict[str, IntArray] = field(default_factory=dict)
    axes: dict[tuple[str, int | None], LabelledAxis] = field(default_factory=dict)
    shared_layouts: list[tuple[IntArray, str]] = field(default_factory=list)
    opaque: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    _makers: dict[str, onnx.NodeProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._makers.update((name, node) for node in self.graph.nodes for name in node.output)

    def maker(self, name: str) -> onnx.NodeProto:
        """The node that computes a tensor."""
        return self._makers[name]

    def is_fixed(self, name: str) -> bool:
        """Whether `name` is the same for every input: a constant, or computed from constants."""
        return self.graph.is_fixed(name)

    def is_constant(self, name: str) -> bool:
        """Whether `name` is a constant or a view of one."""
        return self.graph.is_constant(name)

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

    def bind(self, name: str, axis: int, labels: IntArray, role: Role) -> IntArray:
        """Give one axis of a constant, or of a view of one, its labels; used twice, the labels are tied.

        Returns:
            The labels of the axis, [size of the axis].
        """
        constant, source_axis = self.graph.source(name), self.graph.source_axis(name, axis)
        if source_axis is None:
            self.ties.pin(labels, f"'{constant}' has no axis for it")
            return labels
        known = self.axes.get((constant, source_axis))
        if known is None:
            self.axes[constant, source_axis] = LabelledAxis(constant, source_axis, labels, role)
            return labels
        self.ties.tie(known.labels, labels, f"'{constant}' is shared with channels that are never removed")
        return known.labels

    def bound(self, name: str, axis: int) -> IntArray:
        """Labels of one axis of a constant or view; new ones at its first use. Such an axis makes channels."""
        known = self.axes.get((self.graph.source(name), self.graph.source_axis(name, axis)))
        if known is not None:
            return known.labels
        return self.bind(name, axis, self.ties.fresh(self.graph.shapes[name][axis]), "out")

    def positions_mixed(self, node: onnx.NodeProto, name: str) -> bool:
        """Pin what lies along the positions that a convolution or pooling slides over; whether there is any."""
        along = [axis for axis in varying_axes(self.of(name)) if axis >= 2]
        if along:
            self.ties.pin(self.of(name), f"{node.op_type} '{node.name}' mixes channels laid out as positions")
        return bool(along)

    def pin_inputs(self, node: onnx.NodeProto, reason: str) -> None:
        """Pin every channel that the node reads; its outputs get no labels."""
        for name in node.input:
            if name and not self.is_constant(name):
                self.ties.pin(self.labels[name], reason)
        for name in node.output:
            if name:
                self.labels[name] = self.unlabelled(name)
                self.opaque[name] = reason


OUTPUT = "it is an output of the network"
"""Reason for which the channels of a network's outputs are never removed."""

ELEMENTWISE = frozenset(
    "Abs Add And Cast CastLike Ceil Celu Clip Cos Div Dropout Elu Equal Erf Exp Expand Floor Gelu Greater"
    " GreaterOrEqual HardSigmoid HardSwish Identity LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mul Neg"
    " Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Swish Tanh"
    " ThresholdedRelu Where".split()
)
"""Operators whose output at a place depends on the operands at that place only."""

Rule = Callable[[Propagation, onnx.NodeProto], None]


def same(state: Propagation, node: onnx.NodeProto) -> None:
    """Rule of operators that act on each element of the first input by itself."""
    for name in node.output:
        if name:
            state.labels[name] = state.of(node.input[0])


def along_axis(state: Propagation, node: onnx.NodeProto, axes: list[int], what: str) -> None:
    """Rule of operators that mix elements along `axes` and keep the others apart.

    Channels that lie along `axes` only are pinned; where they also lie along another axis, those that are
    mixed are tied and stay free as a whole. The outputs get the labels of the input.
    """
    labels = state.of(node.input[0])
    varying = varying_axes(labels)
    mixed = [axis for axis in varying if axis in axes]
    if mixed and len(mixed) == len(varying):
        state.pin_inputs(node, f"{node.op_type} '{node.name}' {what}")
        return
    for axis in mixed:
        state.ties.tie_along(labels, axis, f"{node.op_type} '{node.name}' {what}")
    for name in node.output:
        if name:
            state.labels[name] = labels


def aligned(labels: IntArray, n_dims: int) -> IntArray:
    """Labels with axes of length 1 put in front, as broadcasting does."""
    return labels.reshape((1,) * (n_dims - labels.ndim) + labels.shape)


def adopt(state: Propagation, name: str, labels: IntArray) -> None:
    """Give a constant operand the labels of the result along the axes that it has.

    A tensor that was computed from constants element by element passes them on to those.
    """
    shape = state.graph.shapes[name]
    labels = aligned(labels[(0,) * (labels.ndim - len(shape))], len(shape))
    own = [axis for axis in varying_axes(labels) if shape[axis] > 1]
    if not own:
        return
    if state.is_constant(name):
        for axis in own:
            along = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
            vector = state.ties.tie_along(along, 1, f"'{name}' is shared between channels").ravel()
            state.bind(name, axis, vector, "out")
        return
    if state.labels[name].any():
        state.ties.tie(state.labels[name], labels, f"'{name}' is shared with channels that are never removed")
        return
    node = state.maker(name)
    operands = [operand for operand in node.input if operand]
    if node.op_type in RESHAPING and kept_axes(state.graph.shapes[operands[0]], shape) is not None:
        sizes = iter([n for n, size in zip(labels.shape, shape, strict=True) if size > 1])
        before = [next(sizes) if size > 1 else 1 for size in state.graph.shapes[operands[0]]]
        state.labels[name] = labels
        adopt(state, operands[0], labels.reshape(before))
    elif node.op_type in ELEMENTWISE:
        state.labels[name] = labels
        for operand in operands:
            adopt(state, operand, labels)
    else:
        state.ties.pin(labels, f"{node.op_type} '{node.name}' computes '{name}', which is combined with it")


def propagate(graph: Graph, rules: Mapping[str, Rule]) -> Propagation:
    """Labels of every tensor of a graph. Operators without a rule pin the channels they touch."""
    state = Propagation(graph)
    for name in graph.inputs:
        state.labels[name] = state.unlabelled(name)
    for node in graph.nodes:
        _apply(state, node, rules)
    for name in graph.outputs:
        state.ties.pin(state.of(name), OUTPUT)
    _make_rectangular(state)
    return state


def _apply(state: Propagation, node: onnx.NodeProto, rules: Mapping[str, Rule]) -> None:
    if node.output[0] in state.graph.views:
        rule = rules.get(node.op_type)
        if rule is not None and getattr(rule, "binds_views", False):
            rule(state, node)
        return
    if node.output[0] in state.graph.computed:
        state.labels.update((name, state.unlabelled(name)) for name in node.output if name)
        return
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
        state.unknown.append(f"{operator} ('{node.name}'{_module_of(node)})")
        state.pin_inputs(node, f"operator {operator} ('{node.name}') is not understood")
        return
    rule(state, node)
    for name in node.output:
        if name and name in state.labels:
            state.labels[name] = collapse(state.labels[name])


def _module_of(node: onnx.NodeProto) -> str:
    paths = [item.value for item in node.metadata_props if item.key == "module" and item.value]
    return f" in module '{paths[0]}'" if paths else ""


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
