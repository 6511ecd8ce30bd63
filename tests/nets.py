"""Tiny ONNX networks, one for each topology, that know their own channel structure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OUTPUT_REASON = "it is an output of the network"


@dataclass(frozen=True, slots=True)
class TinyNet:
    """A network and what the channel analysis must find in it.

    Attributes:
        model: the network.
        groups: group name → (slots, whether width 0 is allowed), in order.
        kept: layer → part of the reason for which its channels are never pruned.
        removes: group name → layers that disappear at width 0, for groups that remove any.
    """

    model: onnx.ModelProto
    groups: Mapping[str, tuple[int, bool]]
    kept: Mapping[str, str] = field(default_factory=lambda: {"fc": OUTPUT_REASON})
    removes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class NetBuilder:
    """Writes an ONNX graph with random weights, one call a layer; every call returns the output's name."""

    def __init__(self, input_shape: Sequence[int] = (1, 3, 8, 8)) -> None:
        self._rng = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, NDArray[Any]] = {}
        self._input = helper.make_tensor_value_info("input", TensorProto.FLOAT, list(input_shape))

    def op(self, op_type: str, *inputs: str, domain: str = "", n_outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; returns its output's name, or the list of them."""
        name = f"{op_type.lower()}_{len(self._nodes)}"
        outputs = [f"{name}_out{i}" for i in range(n_outputs)]
        self._nodes.append(helper.make_node(op_type, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0] if n_outputs == 1 else outputs

    def constant(self, name: str, value: Any) -> str:
        """Add an initialiser."""
        self._constants[name] = np.asarray(value)
        return name

    def weight(self, name: str, *shape: int, low: float = -1.0, high: float = 1.0) -> str:
        """Add a random initialiser; one that exists is shared."""
        if name not in self._constants:
            self._constants[name] = self._rng.uniform(low, high, shape).astype(np.float32)
        return name

    def conv(self, name: str, data: str, n_in: int, n_out: int, *, kernel: int = 1, **attributes: Any) -> str:
        """Convolution with a bias, same padding."""
        n_read = n_in // attributes.get("group", 1)
        weight = self.weight(f"{name}.weight", n_out, n_read, kernel, kernel)
        bias = self.weight(f"{name}.bias", n_out)
        return str(self.op("Conv", data, weight, bias, pads=[kernel // 2] * 4, **attributes))

    def conv_bn_relu(self, name: str, data: str, n_in: int, n_out: int, **options: Any) -> str:
        """Convolution, BatchNorm with random statistics, ReLU."""
        return str(self.op("Relu", self.conv_bn(name, data, n_in, n_out, **options)))

    def conv_bn(self, name: str, data: str, n_in: int, n_out: int, **options: Any) -> str:
        """Convolution and BatchNorm with random statistics."""
        made = self.conv(name, data, n_in, n_out, **options)
        parameters = [
            self.weight(f"{name}.bn.{part}", n_out, low=-0.5) for part in ("weight", "bias", "mean")
        ]
        parameters.append(self.weight(f"{name}.bn.var", n_out, low=0.5, high=1.5))
        return str(self.op("BatchNormalization", made, *parameters))

    def linear(self, name: str, data: str, n_in: int, n_out: int) -> str:
        """Fully connected layer with a bias."""
        weight, bias = self.weight(f"{name}.weight", n_out, n_in), self.weight(f"{name}.bias", n_out)
        return str(self.op("Gemm", data, weight, bias, transB=1))

    def head(self, data: str, n_in: int, name: str = "fc", n_out: int = 5) -> str:
        """Average pooling, flatten and a classifier."""
        return self.linear(name, self.op("Flatten", self.op("GlobalAveragePool", data)), n_in, n_out)

    def model(self, *outputs: str, opset: int = 20) -> onnx.ModelProto:
        """The network with the given outputs."""
        graph = helper.make_graph(
            self._nodes,
            "tiny",
            [self._input],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in self._constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model, data_prop=True)


def chain() -> TinyNet:
    net = NetBuilder()
    data = net.conv_bn_relu("a", "input", 3, 8, kernel=3)
    data = net.op(
        "MaxPool", net.conv_bn_relu("b", data, 8, 12, kernel=3), kernel_shape=[2, 2], strides=[2, 2]
    )
    return TinyNet(net.model(net.head(data, 12)), {"a": (8, False), "b": (12, False)})


def residual() -> TinyNet:
    net = NetBuilder()
    stem = net.conv_bn_relu("stem", "input", 3, 8, kernel=3)
    branch = net.conv_bn("b", net.conv_bn_relu("a", stem, 8, 6, kernel=3), 6, 8, kernel=3)
    output = net.head(net.op("Relu", net.op("Add", stem, branch)), 8)
    return TinyNet(net.model(output), {"stem": (8, False), "a": (6, True)}, removes={"a": ("a", "b")})


def two_block_residual() -> TinyNet:
    net = NetBuilder()
    data = net.conv_bn_relu("stem", "input", 3, 8, kernel=3)
    for block in ("1", "2"):
        branch = net.conv_bn_relu(f"{block}.a", data, 8, 6, kernel=3)
        branch = net.conv_bn_relu(f"{block}.b", branch, 6, 4, kernel=3)
        data = net.op("Relu", net.op("Add", net.conv_bn(f"{block}.c", branch, 4, 8), data))
    groups = {"stem": (8, False), "1.a": (6, True), "1.b": (4, True), "2.a": (6, True), "2.b": (4, True)}
    removes = {f"{b}.{layer}": (f"{b}.a", f"{b}.b", f"{b}.c") for b in "12" for layer in "ab"}
    return TinyNet(net.model(net.head(data, 8)), groups, removes=removes)


def depthwise() -> TinyNet:
    net = NetBuilder()
    stem = net.conv_bn_relu("stem", "input", 3, 8, kernel=3)
    branch = net.conv_bn_relu("expand", stem, 8, 12)
    branch = net.op(
        "Clip", net.conv_bn("dw", branch, 12, 12, kernel=3, group=12), "", net.constant("six", np.float32(6))
    )
    output = net.head(net.op("Add", stem, net.conv_bn("project", branch, 12, 8)), 8)
    removes = {"expand": ("expand", "dw", "project")}
    return TinyNet(net.model(output), {"stem": (8, False), "expand": (12, True)}, removes=removes)


def one_channel_conv() -> TinyNet:
    """A dense convolution of a single channel is no depthwise one: its output is not tied to its input."""
    net = NetBuilder((1, 1, 8, 8))
    data = net.conv_bn_relu("a", "input", 1, 4, kernel=3)
    data = net.conv_bn_relu("b", data, 4, 1, kernel=3)
    return TinyNet(
        net.model(net.head(net.conv("c", data, 1, 6), 6)),
        {"a": (4, False), "c": (6, False)},
        {"b": "its channels can only be removed all at once, and without them output", "fc": OUTPUT_REASON},
    )


def grouped_whole() -> TinyNet:
    """Four groups that read two channels each (ResNeXt): kept or removed as wholes."""
    net = NetBuilder()
    data = net.conv_bn_relu("a", "input", 3, 8, kernel=3)
    data = net.conv_bn_relu("grouped", data, 8, 16, kernel=3, group=4)
    return TinyNet(net.model(net.head(data, 16)), {"a": (4, False)})


def grouped_within() -> TinyNet:
    """Two groups that read four channels each: the same positions are kept in both."""
    net = NetBuilder()
    data = net.conv_bn_relu("a", "input", 3, 8, kernel=3)
    data = net.conv_bn_relu("grouped", data, 8, 12, kernel=3, group=2)
    return TinyNet(net.model(net.head(data, 12)), {"a": (4, False), "grouped": (6, False)})


def concat() -> TinyNet:
    net = NetBuilder()
    stem = net.conv_bn_relu("stem", "input", 3, 8, kernel=3)
    parts = [net.conv_bn_relu(name, stem, 8, n) for name, n in (("a", 4), ("b", 6))]
    data = net.conv_bn_relu("c", net.op("Concat", *parts, axis=1), 10, 6)
    groups = {"stem": (8, False), "a": (4, True), "b": (6, True), "c": (6, False)}
    return TinyNet(net.model(net.head(data, 6)), groups, removes={"a": ("a",), "b": ("b",)})


def dense_block() -> TinyNet:
    """DenseNet: BatchNorm acts on concatenated features of several groups."""
    net = NetBuilder()
    features = net.conv("stem", "input", 3, 8, kernel=3)
    for i, n_in in enumerate((8, 12)):
        parameters = [
            net.weight(f"norm{i}.{part}", n_in, low=0.2) for part in ("weight", "bias", "mean", "var")
        ]
        data = net.op("Relu", net.op("BatchNormalization", features, *parameters))
        features = net.op("Concat", features, net.conv(f"grow{i}", data, n_in, 4, kernel=3), axis=1)
    groups = {"stem": (8, False), "grow0": (4, True), "grow1": (4, True)}
    removes = {"grow0": ("grow0",), "grow1": ("grow1",)}
    return TinyNet(net.model(net.head(net.op("Relu", features), 16)), groups, removes=removes)


def shuffle() -> TinyNet:
    """ShuffleNet's unit: split, a branch on one half, concat, channel shuffle."""
    net = NetBuilder()
    stem = net.conv_bn_relu("stem", "input", 3, 8, kernel=3)
    left, right = net.op("Split", stem, net.constant("halves", [4, 4]), axis=1, n_outputs=2)
    right = net.conv_bn_relu("b", net.conv_bn_relu("a", right, 4, 6), 6, 4)
    data = net.op("Concat", left, right, axis=1)
    data = net.op("Reshape", data, net.constant("apart", [1, 2, 4, 8, 8]))
    data = net.op("Transpose", data, perm=[0, 2, 1, 3, 4])
    data = net.op("Reshape", data, net.constant("together", [1, 8, 8, 8]))
    data = net.conv_bn_relu("c", data, 8, 6)
    groups = {"stem": (4, False), "stem#2": (4, False), "a": (6, False), "c": (6, False)}
    return TinyNet(net.model(net.head(data, 6)), groups)


def zero_padded_shortcut() -> TinyNet:
    """Option A of CIFAR ResNets: the shortcut is subsampled and its channels are padded with zeros."""
    net = NetBuilder()
    stem = net.conv_bn_relu("stem", "input", 3, 8, kernel=3)
    branch = net.conv_bn_relu("a", stem, 8, 6, kernel=3, strides=[2, 2])
    branch = net.conv_bn("b", branch, 6, 16, kernel=3)
    names = ("starts", "ends", "axes", "steps")
    bounds = [
        net.constant(name, value)
        for name, value in zip(names, ([0, 0], [99, 99], [2, 3], [2, 2]), strict=True)
    ]
    shortcut = net.op("Slice", stem, *bounds)
    shortcut = net.op("Pad", shortcut, net.constant("pads", [0, 4, 0, 0, 0, 4, 0, 0]))
    output = net.head(net.op("Relu", net.op("Add", branch, shortcut)), 16)
    groups = {"stem": (8, False), "a": (6, True), "b": (8, True)}
    return TinyNet(net.model(output), groups, removes={"a": ("a", "b")})


def shared_weights() -> TinyNet:
    net = NetBuilder()
    data = net.conv_bn_relu("stem", "input", 3, 8, kernel=3)
    data = net.op("Relu", net.conv("shared", data, 8, 8, kernel=3))
    data = net.op("Relu", net.conv("shared", data, 8, 8, kernel=3))
    return TinyNet(net.model(net.head(data, 8)), {"stem": (8, False)})


def squeeze_excite() -> TinyNet:
    net = NetBuilder()
    stem = net.conv_bn_relu("stem", "input", 3, 8, kernel=3)
    squeezed = net.op("Relu", net.conv("se.down", net.op("GlobalAveragePool", stem), 8, 4))
    scale = net.op("Sigmoid", net.conv("se.up", squeezed, 4, 8))
    output = net.head(net.op("Mul", scale, stem), 8)
    return TinyNet(net.model(output), {"stem": (8, False), "se.down": (4, False)})


def flatten_linear() -> TinyNet:
    net = NetBuilder()
    data = net.conv_bn_relu("a", "input", 3, 6, kernel=3, strides=[2, 2])
    data = net.linear("fc1", net.op("Flatten", data), 96, 7)
    return TinyNet(
        net.model(net.linear("fc", net.op("Relu", data), 7, 5)), {"a": (6, False), "fc1": (7, False)}
    )


def several_outputs() -> TinyNet:
    net = NetBuilder()
    stem = net.conv_bn_relu("stem", "input", 3, 8, kernel=3)
    aux = net.head(net.conv_bn_relu("a", stem, 8, 6), 6, name="aux")
    output = net.head(net.conv_bn_relu("b", stem, 8, 4), 4)
    groups = {"stem": (8, False), "a": (6, False), "b": (4, False)}
    return TinyNet(net.model(output, aux), groups, kept={"aux": OUTPUT_REASON, "fc": OUTPUT_REASON})


def removable_branch() -> TinyNet:
    """A branch whose last layer is tied to nothing else but the sum, beside an identity."""
    net = NetBuilder()
    stem = net.conv_bn_relu("stem", "input", 3, 8, kernel=3)
    gate = net.op("Sigmoid", net.conv("gate", stem, 8, 8))
    branch = net.conv(
        "b", net.op("Mul", net.conv_bn_relu("a", stem, 8, 6), net.constant("half", np.float32(0.5))), 6, 8
    )
    output = net.head(net.op("Add", net.op("Mul", gate, branch), stem), 8)
    removes = {"a": ("gate", "a", "b")}
    return TinyNet(net.model(output), {"stem": (8, False), "a": (6, True)}, removes=removes)


def unknown_operator() -> TinyNet:
    """LpNormalization has no rule: the channels that reach it stay, those behind it are free."""
    net = NetBuilder()
    data = net.conv_bn_relu("a", "input", 3, 8, kernel=3)
    data = net.conv_bn_relu("b", net.op("LpNormalization", data, axis=1), 8, 6)
    kept = {"a": "operator LpNormalization ('lpnormalization_3') is not understood", "fc": OUTPUT_REASON}
    return TinyNet(net.model(net.head(data, 6)), {"b": (6, False)}, kept=kept)


NETS: Mapping[str, Callable[[], TinyNet]] = {
    function.__name__: function
    for function in (
        chain, concat, dense_block, depthwise, flatten_linear, grouped_whole, grouped_within,
        one_channel_conv, removable_branch, residual, several_outputs, shared_weights, shuffle, squeeze_excite,
        two_block_residual, unknown_operator, zero_padded_shortcut,
    )
}  # fmt: skip
"""Every tiny network, by name."""


def run_onnx(model: onnx.ModelProto, seed: int = 0) -> list[NDArray[np.float32]]:
    """Outputs of a model for a seeded random input."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    data = np.random.default_rng(seed).standard_normal(entry.shape).astype(np.float32)
    return [np.asarray(value) for value in session.run(None, {entry.name: data})]


def max_relative_difference(left: Sequence[NDArray[Any]], right: Sequence[NDArray[Any]]) -> float:
    """Largest difference of two networks' outputs, relative to the largest value of each output."""
    pairs = zip(left, right, strict=True)
    return max(float(np.abs(a - b).max()) / max(float(np.abs(a).max()), 1e-12) for a, b in pairs)
