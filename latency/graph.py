"""A static ONNX graph: nodes in order, constants as arrays, a known shape for every tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper, shape_inference

from latency.errors import ModelFileError

Array = npt.NDArray[Any]

DERIVED = "constant::"
"""Prefix of constants that tracing computed; every other initialiser is a parameter under its own name."""


@dataclass(frozen=True, slots=True)
class ConstantView:
    """A tensor that holds a constant's elements with its axes permuted, or with axes of length 1 more or fewer.

    A quantised constant scaled back is one too, its axes as they were.

    Attributes:
        constant: the constant it shows.
        axes: for each axis of the view the constant's axis that it shows, None for an axis of length 1.
    """

    constant: str
    axes: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """Read-only view of a model whose shapes are all static.

    Attributes:
        model: the ONNX model, shapes inferred.
        nodes: nodes in topological order that an output depends on, `Constant` nodes left out.
        constants: value of every initialiser and `Constant` node, by name.
        parameters: names of the initialisers that tracing did not compute.
        views: tensors that are views of a constant, such as the transposed weight of a linear layer.
        computed: tensors computed from constants alone, other than views.
        shapes: static shape of every tensor, by name.
        inputs: names of the inputs that are no initialisers.
        outputs: names of the outputs.
    """

    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, Array]
    parameters: frozenset[str]
    views: Mapping[str, ConstantView]
    computed: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is a constant or a view of one."""
        return name in self.constants or name in self.views

    def is_parameter(self, name: str) -> bool:
        """Whether a tensor is a stored parameter or a view of one, not a number that code computed."""
        return self.source(name) in self.parameters

    def is_fixed(self, name: str) -> bool:
        """Whether a tensor is the same for every input: a constant, or computed from constants."""
        return self.is_constant(name) or name in self.computed

    def source(self, name: str) -> str:
        """The constant that a view shows; any other tensor's own name."""
        return self.views[name].constant if name in self.views else name

    def source_axis(self, name: str, axis: int) -> int | None:
        """Axis of the constant that an axis of a constant or view shows; None where it shows none."""
        axis %= len(self.shapes[name])
        return self.views[name].axes[axis] if name in self.views else axis

    def consumers(self) -> dict[str, list[int]]:
        """Indices of the nodes that read each tensor."""
        readers: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in node.input:
                readers.setdefault(name, []).append(index)
        return readers


def load_graph(path: Path) -> Graph:
    """Graph of the ONNX file at `path`.

    Raises:
        ModelFileError: the file is missing, is no ONNX model, or has shapes that are not static.
    """
    if not path.is_file():
        raise ModelFileError(f"ONNX file '{path}' does not exist; give the path of an exported model.")
    try:
        model = onnx.load(path)
    except (DecodeError, OSError, ValueError) as error:
        raise ModelFileError(f"'{path}' cannot be read as ONNX ({error}); export the model again.") from error
    if not model.graph.node:
        raise ModelFileError(f"'{path}' holds no ONNX graph; the file is empty or damaged: export it again.")
    return make_graph(model)


def make_graph(model: onnx.ModelProto) -> Graph:
    """Graph of an ONNX model with static shapes.

    Raises:
        ModelFileError: shape inference fails, or a tensor's shape is not static.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    parameters = frozenset(name for name in constants if not name.startswith(DERIVED))
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant_value(node)
        else:
            nodes.append(node)
    shapes: dict[str, tuple[int, ...]] = _static_shapes(model, nodes)
    shapes.update({name: value.shape for name, value in constants.items()})
    inputs = tuple(value.name for value in model.graph.input if value.name not in constants)
    outputs = tuple(value.name for value in model.graph.output)
    needed = _needed_nodes(nodes, outputs)
    views = _views(needed, constants, shapes)
    computed = _computed(needed, {*constants, *views})
    return Graph(model, needed, constants, parameters, views, computed, shapes, inputs, outputs)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Value of a node's attribute, or `default` where it is absent."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


QUANTISED_SUFFIX = "_quantized"
"""What `onnxruntime.quantization` appends to a parameter's name."""

RESHAPING = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operators whose output may be a view of their first input."""


def _views(
    nodes: tuple[onnx.NodeProto, ...], constants: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, ConstantView]:
    views: dict[str, ConstantView] = {}
    for node in nodes:
        source = node.input[0] if node.input else ""
        if source not in constants and source not in views:
            continue
        known = views.get(source) or ConstantView(source, tuple(range(len(shapes[source]))))
        if node.op_type == "Transpose":
            order = attribute(node, "perm", list(reversed(range(len(known.axes)))))
        elif node.op_type == "DequantizeLinear":
            order = list(range(len(known.axes)))
        elif node.op_type in RESHAPING:
            order = kept_axes(shapes[source], shapes[node.output[0]])
        else:
            continue
        if order is not None:
            axes = tuple(None if axis is None else known.axes[axis] for axis in order)
            views[node.output[0]] = ConstantView(known.constant, axes)
    return views


def _computed(nodes: tuple[onnx.NodeProto, ...], constants: set[str]) -> frozenset[str]:
    found: set[str] = set()
    for node in nodes:
        names = [name for name in node.input if name]
        if names and all(name in constants or name in found for name in names):
            found.update(name for name in node.output if name not in constants)
    return frozenset(found)


def kept_axes(before: tuple[int, ...], after: tuple[int, ...]) -> list[int | None] | None:
    """Axis of `before` that each axis of `after` is; None if more changed than axes of length 1."""
    long_axes = [axis for axis, size in enumerate(before) if size != 1]
    if [before[axis] for axis in long_axes] != [size for size in after if size != 1]:
        return None
    remaining = iter(long_axes)
    return [next(remaining) if size != 1 else None for size in after]


def _needed_nodes(nodes: list[onnx.NodeProto], outputs: tuple[str, ...]) -> tuple[onnx.NodeProto, ...]:
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return tuple(reversed(kept))


def _constant_value(node: onnx.NodeProto) -> Array:
    for item in node.attribute:
        value = onnx.helper.get_attribute_value(item)
        if item.name == "value":
            return numpy_helper.to_array(value)
        if item.name in ("value_float", "value_floats"):
            return np.asarray(value, dtype=np.float32)
        if item.name in ("value_int", "value_ints"):
            return np.asarray(value, dtype=np.int64)
    raise ModelFileError(
        f"Constant node '{node.name}' holds no tensor, float or int; export the model again."
    )


def _static_shapes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> dict[str, tuple[int, ...]]:
    shapes = _known_shapes(model)
    wanted = {name for node in nodes for name in node.output if name}
    if not wanted <= shapes.keys():
        try:
            model = shape_inference.infer_shapes(model, data_prop=True)
        except shape_inference.InferenceError as error:
            raise ModelFileError(f"ONNX shape inference failed: {error}; export the model again.") from error
        shapes = _known_shapes(model)
    dynamic = sorted((wanted | {value.name for value in model.graph.input}) - shapes.keys())
    if dynamic:
        raise ModelFileError(
            f"tensor '{dynamic[0]}' has no static shape ({len(dynamic)} such tensors); "
            "export the model with fixed input sizes and without data-dependent shapes."
        )
    return shapes


def _known_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            continue
        dims = tensor.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes
