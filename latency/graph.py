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


@dataclass(frozen=True, slots=True)
class Graph:
    """Read-only view of a model whose shapes are all static.

    Attributes:
        model: the ONNX model, shapes inferred.
        nodes: nodes in topological order that an output depends on, `Constant` nodes left out.
        constants: value of every initialiser and `Constant` node, by name.
        shapes: static shape of every tensor, by name.
        inputs: names of the inputs that are no initialisers.
        outputs: names of the outputs.
    """

    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

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
    return Graph(model, _needed_nodes(nodes, outputs), constants, shapes, inputs, outputs)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Value of a node's attribute, or `default` where it is absent."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


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
