"""Single convolutions in other number formats, as they run inside a network: nothing is converted at their ends."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from latency.graph import Array


def convolution_in(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A network of one convolution in another number format, input and output included.

    Args:
        model: the convolution in fp32, from "x" to "y", with constant "weight" and "bias".
        precision: see `latency.device.DeviceSettings`.

    Returns:
        The convolution; in int8 with the channels last, as ONNX Runtime's 8-bit kernels keep them between layers.
    """
    return _CONVERSIONS[precision](model)


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in made.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    return made


def _quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """In QDQ format as `latency.quantisation` gives it; latency does not depend on the scales."""
    conv = onnx.NodeProto()
    conv.CopyFrom(model.graph.node[0])
    conv.input[:], conv.output[:] = ["x_real", "weight_real", "bias_real"], ["y_real"]
    nodes = [
        helper.make_node("Transpose", ["x"], ["x_channels_first"], perm=[0, 3, 1, 2]),
        helper.make_node("DequantizeLinear", ["x_channels_first", "scale", "zero"], ["x_real"]),
        *(_dequantised(name) for name in ("weight", "bias")),
        conv,
        helper.make_node("QuantizeLinear", ["y_real", "scale", "zero"], ["y_channels_first"]),
        helper.make_node("Transpose", ["y_channels_first"], ["y"], perm=[0, 2, 3, 1]),
    ]
    ends = [_channels_last(value) for value in (*model.graph.input, *model.graph.output)]
    constants = _quantised_constants(numpy_helper.to_array(model.graph.initializer[0]))
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "convolution", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _dequantised(name: str) -> onnx.NodeProto:
    names = [name, f"{name}_scale", f"{name}_zero"]
    return helper.make_node("DequantizeLinear", names, [f"{name}_real"], axis=0)


def _quantised_constants(weight: Array) -> Mapping[str, Array]:
    n_outputs = len(weight)
    scales = np.abs(weight).reshape(n_outputs, -1).max(axis=1) / np.float32(127)
    scale = np.float32(0.02)
    return {
        "scale": np.asarray(scale),
        "zero": np.asarray(128, dtype=np.uint8),
        "weight": np.round(weight / scales.reshape(-1, 1, 1, 1)).astype(np.int8),
        "weight_scale": scales,
        "weight_zero": np.zeros(n_outputs, dtype=np.int8),
        "bias": np.ones(n_outputs, dtype=np.int32),
        "bias_scale": scales * scale,
        "bias_zero": np.zeros(n_outputs, dtype=np.int32),
    }


def _channels_last(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    batch, channels, height, width = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return helper.make_tensor_value_info(value.name, TensorProto.UINT8, [batch, height, width, channels])


_CONVERSIONS: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "fp32": lambda model: model,
    "fp16": _halved,
    "int8": _quantised,
}
