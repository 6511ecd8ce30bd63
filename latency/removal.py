"""What disappears from a network when channel groups reach width 0.

Width 0 empties tensors. A layer that reads only empty tensors adds nothing: the branch it stands in ends
at the next Add or Concat, where the other operands pass through. In the network with closed gates the same
branch yields exactly zero once its biases and BatchNorm affine parameters are scaled by 0 (its *presence*),
which is how a removed branch and a bypassed one are the same function.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx

from latency.graph import Graph

_KEEP_ZERO = frozenset(
    "Abs AveragePool BatchNormalization Ceil Celu Clip Conv Dropout Elu Erf Expand Flatten Floor Gather Gelu"
    " Gemm GlobalAveragePool GlobalMaxPool HardSwish Identity LeakyRelu LpPool MatMul MaxPool Mish Neg PRelu"
    " Pad ReduceMean ReduceSum Relu Reshape Resize Round Selu Sign Slice Softsign Split Sqrt Squeeze Swish"
    " Tanh Transpose Unsqueeze".split()
)
"""Operators that map zero to zero, once biases are scaled by the presence."""

_DROPPING = ("Add", "Concat", "Sum")
"""Operators that pass the other operands through when one is gone."""


class _State(Enum):
    EMPTY = "every channel removed"
    ZERO = "exactly zero"
    GONE = "computed from removed channels, not zero"


@dataclass(frozen=True, slots=True)
class Removal:
    """Consequences of a set of groups at width 0.

    Attributes:
        zero_groups: the groups at width 0, those implied included.
        removed_nodes: indices of the graph's nodes that disappear.
        dead_tensors: tensors that disappear.
        presence: parameters that must be scaled by 0 in the network with closed gates.
        refusal: why the groups cannot all reach 0; None where they can.
    """

    zero_groups: frozenset[int]
    removed_nodes: frozenset[int]
    dead_tensors: frozenset[str]
    presence: tuple[str, ...]
    refusal: str | None


class RemovalAnalysis:
    """Follows empty tensors through a graph.

    Args:
        graph: the full network.
        contents: for every labelled tensor, the groups its channels belong to; `None` among them stands
            for channels that are never removed.
        producers: for every group, indices of the nodes that make its channels.
    """

    def __init__(
        self,
        graph: Graph,
        contents: Mapping[str, frozenset[int | None]],
        producers: Sequence[Iterable[int]],
    ) -> None:
        self._graph = graph
        self._contents = contents
        self._producers = [frozenset(nodes) for nodes in producers]
        self._known: dict[frozenset[int], Removal] = {}

    def at(self, zero_groups: Iterable[int]) -> Removal:
        """Consequences of `zero_groups` at width 0, with the groups this implies."""
        asked = frozenset(zero_groups)
        if asked not in self._known:
            zero = asked
            while True:
                removal = self._follow(zero)
                implied = {
                    group for group, nodes in enumerate(self._producers) if nodes <= removal.removed_nodes
                }
                if implied <= zero:
                    break
                zero = zero | implied
            self._known[asked] = removal
        return self._known[asked]

    def _follow(self, zero: frozenset[int]) -> Removal:
        states = {name: _State.EMPTY for name, groups in self._contents.items() if groups and groups <= zero}
        presence: dict[str, None] = {}
        refusal: str | None = None
        for node in self._graph.nodes if states else ():
            if any(name in states for name in node.input):
                refusal = refusal or self._pass_node(node, states, presence)
        dead_outputs = [name for name in self._graph.outputs if name in states]
        if dead_outputs and refusal is None:
            refusal = f"output '{dead_outputs[0]}' of the network would be empty"
        removed = self._unneeded(states)
        return Removal(zero, removed, frozenset(states), tuple(presence), refusal)

    def _pass_node(
        self, node: onnx.NodeProto, states: dict[str, _State], presence: dict[str, None]
    ) -> str | None:
        """Mark the outputs of a node that reads dead tensors; returns a reason where that cannot be."""
        inputs = [states.get(name) for name in node.input if name and name not in self._graph.constants]
        if all(name in states for name in node.output if name):
            return None  # empty by its own channels
        if node.op_type in _DROPPING:
            return self._drop_operands(node, inputs, states)
        zeros = [state is not _State.GONE for state in inputs if state is not None]
        keeps_zero = node.op_type in _KEEP_ZERO and all(zeros) and self._clips_at_zero(node)
        if node.op_type in ("Mul", "Div"):
            keeps_zero = _State.ZERO in inputs if node.op_type == "Mul" else inputs[0] is _State.ZERO
        for name in node.output:
            if name:
                states[name] = _State.ZERO if keeps_zero else _State.GONE
        if keeps_zero:
            presence.update(dict.fromkeys(self._shifts(node)))
        return None

    def _drop_operands(
        self, node: onnx.NodeProto, inputs: list[_State | None], states: dict[str, _State]
    ) -> str | None:
        has_constant = any(name in self._graph.constants for name in node.input)
        if all(state is not None for state in inputs):
            alike = not has_constant and _State.GONE not in inputs
            states[node.output[0]] = _State.ZERO if alike else _State.GONE
            return None
        if _State.GONE in inputs:
            return f"{node.op_type} '{node.name}' would lose an operand that is not zero"
        if node.op_type == "Concat" and _State.ZERO in inputs:
            return f"Concat '{node.name}' would lose channels that are tied to others"
        return None

    def _clips_at_zero(self, node: onnx.NodeProto) -> bool:
        """Whether a Clip maps zero to zero; true for every other operator."""
        if node.op_type != "Clip":
            return True
        bounds = [self._graph.constants.get(name) for name in node.input[1:] if name]
        low = bounds[0] if bounds else None
        high = bounds[1] if len(bounds) > 1 else None
        return (low is None or float(low) <= 0.0) and (high is None or float(high) >= 0.0)

    def _shifts(self, node: onnx.NodeProto) -> list[str]:
        """Parameters through which a node adds something to zero."""
        if node.op_type == "BatchNormalization":
            return list(node.input[1:3])
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and node.input[2]:
            bias = self._graph.constants.get(node.input[2])
            return [node.input[2]] if bias is not None and np.any(bias) else []
        return []

    def _unneeded(self, states: Mapping[str, _State]) -> frozenset[int]:
        """Nodes that are dead, or that nothing alive reads any more."""
        if not states:
            return frozenset()
        needed = {name for name in self._graph.outputs if name not in states}
        removed = set()
        for index in range(len(self._graph.nodes) - 1, -1, -1):
            node = self._graph.nodes[index]
            if any(name in needed for name in node.output) and not all(
                name in states for name in node.output if name
            ):
                needed.update(name for name in node.input if name not in states)
            else:
                removed.add(index)
        return frozenset(removed)
