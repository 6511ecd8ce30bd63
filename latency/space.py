"""Search space of a network: its base ONNX model and everything that can be narrowed in it."""

import hashlib
import json
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from latency.channels import ChannelStructure, find_channels
from latency.errors import UnsupportedGraphError, WidthError
from latency.graph import Graph, load_graph, make_graph
from latency.propagation import OUTPUT
from latency.structure import ChannelGroup, IntArray, KeptChannels, LayerView, ParameterAxis

PRECISION_KEY = "trimms.precision"
"""Metadata of an ONNX file: the number format it was converted to; without it a network is fp32."""

STRUCTURE_KEY = "trimms.structure_hash"
"""Metadata of a converted network: structure hash of the fp32 network that it was made from."""


class SearchSpace:
    """A base network and the width vectors it can take.

    A width vector holds, for every group, how many of its slots are kept. The structure is found anew on
    loading, so that the ONNX file alone is the space.

    Attributes:
        structure: the network's channel structure.
        full_widths: widths of the unpruned network, [n_groups].
        structure_hash: hash of the graph and its shapes, not of weight values: plans, profiles and LPNets
            name the network they belong to by it. A network in another number format has the fp32 network's.
        precision: number format of weights and activations, "fp32" for all that were not converted.
    """

    def __init__(self, structure: ChannelStructure) -> None:
        self.structure = structure
        self.full_widths: IntArray = np.array([g.n_channels for g in structure.groups], dtype=np.int64)
        metadata = {item.key: item.value for item in structure.graph.model.metadata_props}
        self.precision = metadata.get(PRECISION_KEY, "fp32")
        converted_from = metadata.get(STRUCTURE_KEY) if self.precision != "fp32" else None
        self.structure_hash = converted_from or _structure_hash(structure.graph)

    @classmethod
    def load(cls, path: Path) -> "SearchSpace":
        """Search space of the ONNX file at `path`.

        Raises:
            ModelFileError: the file cannot be read or its shapes are not static.
        """
        return cls(find_channels(load_graph(Path(path))))

    @classmethod
    def from_model(cls, model: onnx.ModelProto) -> "SearchSpace":
        """Search space of an ONNX model with static shapes."""
        return cls(find_channels(make_graph(model)))

    @property
    def model(self) -> onnx.ModelProto:
        """The base model."""
        return self.structure.graph.model

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """Channel groups, in the order of the width vector."""
        return self.structure.groups

    @property
    def layers(self) -> tuple[LayerView, ...]:
        """Conv and linear layers, in graph order."""
        return self.structure.layers

    @property
    def kept(self) -> tuple[KeptChannels, ...]:
        """Channels that are never pruned, and why."""
        return self.structure.kept

    def require_understood(self) -> None:
        """Refuse a network with operators that are not understood where channels meet them.

        Raises:
            UnsupportedGraphError: there is one; the message names it.
        """
        unknown = self.structure.unknown_operators
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise UnsupportedGraphError(
                f"operator {unknown[0]}{more} is not understood where channels meet it. Write it with other "
                "operators, or give --keep-unknown to keep all channels that it touches."
            )

    @property
    def parameter_axes(self) -> tuple[ParameterAxis, ...]:
        """Axes of parameters that hold prunable channels."""
        return self.structure.parameter_axes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the network's first input, batch size first."""
        return self.structure.graph.shapes[self.structure.graph.inputs[0]]

    def macs(self, widths: npt.ArrayLike) -> int:
        """Multiply-accumulates of one inference of the whole batch at the given widths, [n_groups]."""
        canonical = self.canonical(widths)
        return sum(layer.macs(canonical) for layer in self.layers)

    @property
    def prunable_channels_share(self) -> float:
        """Share of the layers' output channels that can be removed, the network's own outputs left out."""
        free = sum(
            layer.out_channels.at(self.full_widths) - layer.out_channels.constant for layer in self.layers
        )
        kept = sum(row.n_channels for row in self.kept if row.reason != OUTPUT)
        return free / (free + kept) if free else 0.0

    @property
    def prunable_macs_share(self) -> float:
        """Share of the multiply-accumulates that a removable channel or layer takes part in."""
        total = sum(layer.macs(self.full_widths) for layer in self.layers)
        fixed = sum(layer.fixed_macs for layer in self.layers)
        return 1.0 - fixed / total if total else 0.0

    @cached_property
    def zero_keeps_layers(self) -> frozenset[int]:
        """Groups that may all be at width 0 together with every layer still there.

        Such are the channels that a shortcut without parameters fills with zeros: without them the stage is as wide as
        the one before it.
        """
        found: list[int] = []
        for group in self.groups:
            widths = self.full_widths.copy()
            widths[[*found, group.index]] = 0
            if group.zero_allowed and not group.removes and self.is_alive(widths):
                canonical = self.canonical(widths)
                if all(layer.macs(canonical) for layer in self.layers):
                    found.append(group.index)
        return frozenset(found)

    def canonical(self, widths: npt.ArrayLike) -> IntArray:
        """The same network's widths with every group that vanishes with another set to 0, [n_groups].

        Raises:
            WidthError: wrong length, a width out of range, or a network that computes nothing.
        """
        vector = self.checked(widths)
        removal = self.structure.removal.at(np.flatnonzero(vector == 0).tolist())
        if removal.refusal is not None:
            names = ", ".join(self.groups[index].name for index in sorted(removal.zero_groups))
            raise WidthError(f"groups at width 0 ({names}) leave no network: {removal.refusal}; widen one.")
        vector[list(removal.zero_groups)] = 0
        return vector

    def is_alive(self, widths: npt.ArrayLike) -> bool:
        """Whether the widths leave a network that computes its outputs."""
        vector = self.checked(widths)
        return self.structure.removal.at(np.flatnonzero(vector == 0).tolist()).refusal is None

    def checked(self, widths: npt.ArrayLike) -> IntArray:
        """A copy of the widths as an integer vector, [n_groups].

        Raises:
            WidthError: wrong length, not whole numbers, or out of range.
        """
        vector = np.array(widths)
        if vector.shape != self.full_widths.shape:
            raise WidthError(
                f"expected {len(self.groups)} widths, one for each group; got shape {vector.shape}."
            )
        if not np.isfinite(vector).all() or (vector != np.round(vector)).any():
            raise WidthError(f"widths are whole numbers of channels, not {vector.tolist()}.")
        vector = vector.astype(np.int64)
        wrong = np.flatnonzero((vector < 0) | (vector > self.full_widths))
        if wrong.size:
            group = self.groups[int(wrong[0])]
            raise WidthError(
                f"group '{group.name}' has {group.n_channels} channels; width {vector[wrong[0]]} is not in "
                f"0 … {group.n_channels}."
            )
        return vector


def _structure_hash(graph: Graph) -> str:
    """SHA-256 over operators, attributes, tensor names and shapes, and the values of integer constants."""
    digest = hashlib.sha256()
    for node in graph.nodes:
        attributes = sorted(
            (item.name, item.SerializeToString(deterministic=True).hex()) for item in node.attribute
        )
        record = [node.domain, node.op_type, list(node.input), list(node.output), attributes]
        digest.update(json.dumps(record).encode())
    for name, value in sorted(graph.constants.items()):
        digest.update(json.dumps([name, list(value.shape), str(value.dtype)]).encode())
        if value.dtype.kind in "iu":
            digest.update(value.tobytes())
    for name in (*graph.inputs, *graph.outputs):
        digest.update(json.dumps([name, list(graph.shapes[name])]).encode())
    return digest.hexdigest()
