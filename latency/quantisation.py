"""INT8 networks: quantised by ONNX Runtime's tool in its QDQ format, so that their channels can still be told apart.

Weights are quantised per output channel, symmetrically (a removed weight is 0), activations per tensor. Which
operators are quantised and in what types follows what ONNX Runtime's CPU kernels are made for
(https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

A candidate cut out of a quantised network computes exactly what the gated one does, by ONNX's definition of the
operators. ONNX Runtime's kernels round on their way, so that where a branch is gone they may differ by one step.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from latency.errors import UnsupportedGraphError
from latency.folding import without_batch_norm
from latency.graph import Graph
from latency.session import Feed

# With 8-bit kernels, or without arithmetic. BatchNorm that is not behind a convolution has none.
_OPERATORS = (
    *("Add", "AveragePool", "Clip", "Concat", "Conv", "Gemm", "GlobalAveragePool", "LeakyRelu", "MatMul"),
    *("MaxPool", "Mul", "Relu", "Reshape", "Resize", "Sigmoid", "Softmax", "Split", "Squeeze", "Transpose"),
    "Unsqueeze",
)


def quantised(graph: Graph, feeds: Iterable[Feed], *, reduce_range: bool = False) -> onnx.ModelProto:
    """The network with 8-bit weights and activations in QDQ format.

    BatchNorm is folded into convolutions first. Nodes keep their names and their order.

    Args:
        graph: the fp32 network.
        feeds: inputs by name, that the activations' ranges are taken from.
        reduce_range: 7-bit weights: processors without VNNI add 8-bit products up with saturation.

    Raises:
        UnsupportedGraphError: ONNX Runtime's tool cannot quantise the network.
    """
    folded = without_batch_norm(graph)
    add_pre_process_metadata(folded)
    constants = {tensor.name for tensor in folded.graph.initializer}
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        path = Path(folder) / "quantised.onnx"
        try:
            quantize_static(
                folded,
                path,
                _Feeds(feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_OPERATORS),
                nodes_to_exclude=[n.name for n in folded.graph.node if not _has_own_weight(n, constants)],
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # the tool's own are not documented
            raise UnsupportedGraphError(
                f"ONNX Runtime cannot quantise this network ({type(error).__name__}: {error}); measure it in fp32."
            ) from error
        made = onnx.load(path)
    return in_order_of(made, [node.name for node in folded.graph.node])


def in_order_of(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The model, its nodes in the order of those names; others come just before who reads them first."""
    maker = {output: node for node in model.graph.node for output in node.output}
    by_name = {node.name: node for node in model.graph.node}
    ordered: dict[str, onnx.NodeProto] = {}

    def place(node: onnx.NodeProto) -> None:
        for name in node.input:
            if name in maker and maker[name].output[0] not in ordered:
                place(maker[name])
        ordered[node.output[0]] = node

    ends = [maker[value.name] for value in model.graph.output if value.name in maker]
    for node in (*(by_name[name] for name in names if name in by_name), *ends):
        if node.output[0] not in ordered:
            place(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered.values()]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


class _Feeds(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime comes without types
    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Hold back what the tool logs to the root logger: advice on preparing models, which was followed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _has_own_weight(node: onnx.NodeProto, constants: set[str]) -> bool:
    """Whether a layer's weight is an initialiser; nodes that are no layers have none to look for."""
    return node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] in constants
