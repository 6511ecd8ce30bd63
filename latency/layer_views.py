"""The layers of a graph as the latency encoding and people see them: what they read, make and keep."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx

from latency.graph import QUANTISED_SUFFIX, Graph, attribute
from latency.layer_rules import narrows_all_groups
from latency.structure import FIXED, IntArray, LayerView, LinearWidth

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply and accumulate."""


def layer_name(graph: Graph, node: onnx.NodeProto) -> str:
    """Name of the layer a node computes.

    Its weight's name without `.weight`, quantised or not; where the weight is no parameter, the path of the
    module that the node was traced in; the node's name without either.
    """
    weight = graph.source(node.input[1]) if len(node.input) > 1 else ""
    if weight in graph.constants and graph.is_parameter(weight):
        return weight.removesuffix(QUANTISED_SUFFIX).removesuffix(".weight")
    paths = [item.value for item in node.metadata_props if item.key == "module" and item.value]
    return paths[0] if paths else node.name or node.output[0]


class LayerViews:
    """Makes the views of a graph's layers.

    Args:
        graph: the network.
        slots: slot of every element of each labelled tensor, broadcastable to its shape.
        group_of_slot: group of each slot, [n_slots].
        sizes: number of slots of each group, [n_groups].
    """

    def __init__(
        self, graph: Graph, slots: Mapping[str, IntArray], group_of_slot: IntArray, sizes: IntArray
    ) -> None:
        self._graph = graph
        self._slots = slots
        self._group_of_slot = group_of_slot
        self._sizes = sizes

    def make(self, removed_by: Mapping[int, Sequence[int]]) -> tuple[LayerView, ...]:
        """Views of all layers, in graph order.

        Args:
            removed_by: groups whose width 0 removes a node, by the node's index.
        """
        return tuple(
            self._view(node, tuple(removed_by.get(index, ())))
            for index, node in enumerate(self._graph.nodes)
            if node.op_type in LAYERS and node.output[0] not in self._graph.computed
        )

    def _view(self, node: onnx.NodeProto, depends_on: tuple[int, ...]) -> LayerView:
        graph = self._graph
        data, weight, output = node.input[0], node.input[1], node.output[0]
        in_shape, out_shape, weight_shape = graph.shapes[data], graph.shapes[output], graph.shapes[weight]
        is_conv = node.op_type in ("Conv", "ConvTranspose")
        axis = 1 if is_conv else len(in_shape) - 1
        n_groups = attribute(node, "group", 1) if is_conv else 1
        n_in, n_out = in_shape[axis], out_shape[1 if is_conv else len(out_shape) - 1]
        out_positions = int(np.prod(out_shape)) // n_out
        if node.op_type == "ConvTranspose":
            out_positions = int(np.prod(in_shape)) // n_in
        return LayerView(
            name=layer_name(graph, node),
            kind=_kind(is_conv, n_groups, n_in // n_groups),
            in_channels=self._width(data, axis),
            out_channels=self._width(output, 1 if is_conv else len(out_shape) - 1),
            channels_per_conv_group=n_in // n_groups,
            kernel_area=int(np.prod(weight_shape[2:])) if is_conv else 1,
            in_positions=int(np.prod(in_shape)) // n_in,
            out_positions=out_positions,
            depends_on=depends_on,
            n_narrowed_groups=n_groups if narrows_all_groups(node, graph) else 0,
        )

    def _width(self, tensor: str, axis: int) -> LinearWidth:
        size = self._graph.shapes[tensor][axis]
        slots = self._slots.get(tensor)
        if slots is None or slots.shape[axis] < size:  # the same slots all along it
            return LinearWidth(size, ())
        along = np.moveaxis(slots, axis, 0).reshape(size, -1)[:, 0]
        counts = np.bincount(self._group_of_slot[along[along != FIXED]], minlength=len(self._sizes))
        terms = tuple((int(g), int(counts[g] // self._sizes[g])) for g in np.flatnonzero(counts))
        return LinearWidth(int((along == FIXED).sum()), terms)


def _kind(is_conv: bool, n_groups: int, n_read: int) -> Literal["dense", "depthwise", "grouped", "linear"]:
    if not is_conv:
        return "linear"
    if n_groups == 1:
        return "dense"
    return "depthwise" if n_read == 1 else "grouped"
