"""What disappears from a network when channel groups reach width 0.

Width 0 empties tensors. A layer that reads only empty tensors adds nothing: the branch it stands in ends
at the next Add or Concat, where the other operands pass through. In the network with closed gates the same
branch yields exactly zero once its biases and BatchNorm affine parameters are scaled by 0 (its *presence*),
which is how a removed branch and a bypassed one are the same function.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import onnx

from latency.graph import Graph

_KEEP_ZERO = frozenset(
    "Abs AveragePool BatchNormalization Cast CastLike Ceil Celu Clip Conv ConvTranspose DepthToSpace"
    " DequantizeLinear Dropout Elu Erf Expand Flatten Floor Gather Gelu Gemm GlobalAveragePool GlobalLpPool"
    " GlobalMaxPool HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu LpPool MatMul"
    " MaxPool Mish Neg PRelu Pad QuantizeLinear ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape"
    " Resize Round Selu Sign Sin Slice Softsign SpaceToDepth Split Sqrt Squeeze Swish Tanh Tile Transpose"
    " Unsqueeze".split()
)
"""Operators that map zero to zero, once biases are scaled by the presence; a quantised zero is the zero point."""

_DROPPING = ("Add", "Concat", "Sum")
"""Operators that pass the other operands through when one is gone."""

_SHIFTS: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),  # (0 - mean) · scale + shift
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "InstanceNormalization": (2,),
    "LayerNormalization": (2,),
}
"""Inputs through which an operator turns zero into something else."""

# A search tries many sets of closed groups; what few of them are, it asks for again and again.
_MEMORY = 4096


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


@dataclass(slots=True)
class _Spread:
    """State of one walk downstream of the emptied tensors."""

    states: dict[str, _State]
    presence: dict[str, None] = field(default_factory=dict)
    refusal: str | None = None


class RemovalAnalysis:
    """Follows empty tensors through a graph; each question costs as much as the part that disappears.

    Attributes:
        graph: the full network.

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
        self.graph = graph
        self._contents = contents
        self._producers = [frozenset(nodes) for nodes in producers]
        self._readers = graph.consumers()
        self._maker = {name: i for i, node in enumerate(graph.nodes) for name in node.output if name}
        self._tensors: dict[int, list[str]] = {}
        for name, groups in contents.items():
            for group in groups:
                if group is not None:
                    self._tensors.setdefault(group, []).append(name)
        self._made: dict[int, list[int]] = {}
        for maker_of, nodes in enumerate(self._producers):
            for index in nodes:
                self._made.setdefault(index, []).append(maker_of)
        self._known: dict[frozenset[int], Removal] = {}

    def at(self, zero_groups: Iterable[int]) -> Removal:
        """Consequences of `zero_groups` at width 0, with the groups this implies."""
        asked = frozenset(zero_groups)
        if asked not in self._known:
            if len(self._known) >= _MEMORY:
                self._known.clear()
            self._known[asked] = self._with_implied(asked)
        return self._known[asked]

    def _with_implied(self, asked: frozenset[int]) -> Removal:
        zero = asked
        while True:
            removal = self._follow(zero)
            reached = {group for node in removal.removed_nodes for group in self._made.get(node, ())}
            implied = {group for group in reached if self._producers[group] <= removal.removed_nodes}
            if implied <= zero:
                return removal
            zero = zero | implied

    def _follow(self, zero: frozenset[int]) -> Removal:
        touched = {name for group in zero for name in self._tensors.get(group, ())}
        spread = _Spread({name: _State.EMPTY for name in touched if self._contents[name] <= zero})
        self._walk(spread)
        dead_outputs = [name for name in self.graph.outputs if name in spread.states]
        if dead_outputs and spread.refusal is None:
            spread.refusal = f"output '{dead_outputs[0]}' of the network would be empty"
        return Removal(
            zero,
            self._unneeded(spread.states),
            frozenset(spread.states),
            tuple(spread.presence),
            spread.refusal,
        )

    def _walk(self, spread: _Spread) -> None:
        """Visit the readers of dead tensors in the graph's order, until nothing more dies."""
        queue = sorted({index for name in spread.states for index in self._readers.get(name, ())})
        seen = set(queue)
        while queue:
            node = self.graph.nodes[heapq.heappop(queue)]
            before = len(spread.states)
            refusal = self._pass_node(node, spread)
            spread.refusal = spread.refusal or refusal
            if len(spread.states) == before:
                continue
            for index in {i for name in node.output for i in self._readers.get(name, ())} - seen:
                seen.add(index)
                heapq.heappush(queue, index)

    def _pass_node(self, node: onnx.NodeProto, spread: _Spread) -> str | None:
        """Mark the outputs of a node that reads dead tensors; returns a reason where that cannot be."""
        inputs = [spread.states.get(name) for name in node.input if name and not self._is_constant(name)]
        if all(name in spread.states for name in node.output if name):
            return None  # empty by its own channels
        shifts = self._shifts(node)
        if node.op_type in _DROPPING and (shifts is None or None in inputs):
            return self._drop_operands(node, inputs, spread)
        keeps_zero = shifts is not None and self._keeps_zero(node, inputs)
        for name in node.output:
            if name:
                spread.states[name] = _State.ZERO if keeps_zero else _State.GONE
        if keeps_zero:
            spread.presence.update(dict.fromkeys(shifts or ()))
        return None

    def _is_constant(self, name: str) -> bool:
        return self.graph.is_constant(name)

    def _drop_operands(
        self, node: onnx.NodeProto, inputs: list[_State | None], spread: _Spread
    ) -> str | None:
        has_constant = any(self._is_constant(name) for name in node.input)
        if all(state is not None for state in inputs):
            alike = not has_constant and _State.GONE not in inputs
            spread.states[node.output[0]] = _State.ZERO if alike else _State.GONE
            return None
        if _State.GONE in inputs:
            return f"{node.op_type} '{node.name}' would lose an operand that is not zero"
        if node.op_type == "Concat" and _State.ZERO in inputs:
            return f"Concat '{node.name}' would lose channels that are tied to others"
        return None

    def _keeps_zero(self, node: onnx.NodeProto, inputs: list[_State | None]) -> bool:
        """Whether a node's output is zero where its dead inputs are empty or zero."""
        if node.op_type == "Mul":
            return _State.ZERO in inputs
        if node.op_type == "Div":
            return inputs[0] is _State.ZERO and node.input[0] != node.input[1]
        known = node.op_type in _KEEP_ZERO or node.op_type == "Add"
        return known and _State.GONE not in inputs and self._fixes_zero(node)

    def _fixes_zero(self, node: onnx.NodeProto) -> bool:
        """Whether the constants of a Clip or Pad leave zero where it is; true for every other operator."""
        values = [self.graph.constants.get(name) for name in node.input[1:]]
        if node.op_type == "Clip":
            low, high = (*values, None, None)[:2]
            return (low is None or float(low.item()) <= 0.0) and (high is None or float(high.item()) >= 0.0)
        if node.op_type == "Pad":
            return len(values) < 2 or values[1] is None or not np.any(values[1])
        return True

    def _shifts(self, node: onnx.NodeProto) -> list[str] | None:
        """Parameters through which a node adds something to zero; None where it adds what is no parameter."""
        if node.op_type == "Add":
            names = [name for name in node.input if self._is_constant(name)]
        else:
            names = [node.input[i] for i in _SHIFTS.get(node.op_type, ()) if i < len(node.input)]
        names = [name for name in names if name]
        if not all(self._is_shift(name) for name in names):
            return None
        return [self.graph.source(name) for name in names] if names or node.op_type != "Add" else None

    def _is_shift(self, name: str) -> bool:
        return self.graph.is_parameter(name) and bool(self.graph.shapes[name])

    def _unneeded(self, states: Mapping[str, _State]) -> frozenset[int]:
        """Nodes that are dead, or that nothing alive reads any more."""
        removed: set[int] = set()
        lost: Counter[str] = Counter()  # readings of each tensor that are no more
        stack = [self._maker[name] for name in states if name in self._maker]
        while stack:
            index = stack.pop()
            node = self.graph.nodes[index]
            if index in removed or not all(self._is_lost(name, states, lost) for name in node.output if name):
                continue
            removed.add(index)
            for name in set(node.input):
                lost[name] += 1
                if name in self._maker:
                    stack.append(self._maker[name])
        return frozenset(removed)

    def _is_lost(self, name: str, states: Mapping[str, _State], lost: Counter[str]) -> bool:
        if name in states:
            return True
        return name not in self.graph.outputs and lost[name] == len(set(self._readers.get(name, ())))
