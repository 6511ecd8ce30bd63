"""The usual latency predictor: a table for each layer, measured alone, and the sum over the network.

After the lookup tables of hardware-aware architecture search (ProxylessNAS, FBNet). Each layer is measured as a
network of its own at a grid of input and output widths; between them the table is interpolated. What a layer costs
within a network (a warm or cold cache, a layout that is already there, an activation fused into it) no table knows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from scipy.interpolate import RegularGridInterpolator
from tqdm import tqdm

from latency.device import DeviceSettings
from latency.measure import Protocol, device_lock, measure_pair
from latency.session import make_session
from latency.space import SearchSpace
from latency.structure import IntArray, LayerView

FloatArray = npt.NDArray[np.float64]

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Widths of the table's grid, as shares of the full width."""

PROTOCOL = Protocol(min_pairs=8, max_pairs=32, max_seconds=2.0)


@dataclass(frozen=True)
class LayerTable:
    """Latency of one layer, alone, over its widths.

    Attributes:
        in_widths: ascending input widths, [n]; a single one where the layer reads what it makes (depthwise).
        out_widths: ascending output widths, [m].
        ms: latencies, [n, m].
    """

    in_widths: FloatArray
    out_widths: FloatArray
    ms: FloatArray

    def at(self, in_channels: int, out_channels: int) -> float:
        """Interpolated latency in ms."""
        if len(self.in_widths) == 1:
            return float(np.interp(out_channels, self.out_widths, self.ms[0]))
        surface = RegularGridInterpolator((self.in_widths, self.out_widths), self.ms)
        inside = [
            float(np.clip(value, axis[0], axis[-1]))
            for value, axis in ((in_channels, self.in_widths), (out_channels, self.out_widths))
        ]
        return float(surface(inside)[0])


class LayerTables:
    """Tables of all layers of a network.

    Attributes:
        tables: one for each layer, in graph order.
    """

    def __init__(self, space: SearchSpace, tables: Sequence[LayerTable]) -> None:
        self._space, self.tables = space, tuple(tables)

    def predict_ms(self, widths: IntArray) -> FloatArray:
        """Sums over the layers in ms, [n], of width vectors [n, n_groups]."""
        return np.array([self._sum_ms(self._space.canonical(row)) for row in widths])

    def _sum_ms(self, widths: IntArray) -> float:
        total_ms = 0.0
        for layer, table in zip(self._space.layers, self.tables, strict=True):
            if layer.macs(widths):
                total_ms += table.at(layer.in_channels.at(widths), layer.out_channels.at(widths))
        return total_ms


def measure_tables(space: SearchSpace, settings: DeviceSettings, dense_ms: float) -> LayerTables:
    """Measure every layer alone; layers that are alike are measured once.

    Args:
        space: the network.
        settings: the device.
        dense_ms: latency of the network by the device's clock, which all others are ratios to.
    """
    dense = make_session(space.model, settings)
    known: dict[tuple[object, ...], LayerTable] = {}
    tables = []
    with device_lock(settings):
        for layer in tqdm(space.layers, "layer tables", unit="layer"):
            full = layer.in_channels.at(space.full_widths), layer.out_channels.at(space.full_widths)
            shape = (layer.kind, layer.kernel_area, layer.in_positions, layer.out_positions)
            key = (*shape, layer.channels_per_conv_group, *full)
            if key not in known:
                known[key] = _measure(layer, *full, dense, settings, dense_ms)
            tables.append(known[key])
    return LayerTables(space, tables)


def _measure(
    layer: LayerView,
    full_in: int,
    full_out: int,
    dense: ort.InferenceSession,
    settings: DeviceSettings,
    dense_ms: float,
) -> LayerTable:
    anchor = make_session(_model(layer, full_in, full_out, settings.batch_size), settings)
    anchor_ms = dense_ms * measure_pair(anchor, dense, PROTOCOL).ratio
    out_widths = _table_widths(full_out)
    in_widths = (
        [full_in] if layer.kind in ("depthwise", "grouped") or full_in <= 4 else _table_widths(full_in)
    )
    ms = np.empty((len(in_widths), len(out_widths)))
    for i, n_in in enumerate(in_widths):
        for j, n_out in enumerate(out_widths):
            session = make_session(_model(layer, n_in, n_out, settings.batch_size), settings)
            ms[i, j] = anchor_ms * measure_pair(session, anchor, PROTOCOL).ratio
    return LayerTable(np.array(in_widths, dtype=np.float64), np.array(out_widths, dtype=np.float64), ms)


def _table_widths(full: int) -> list[int]:
    return sorted({max(1, round(full * share)) for share in SHARES})


def _model(layer: LayerView, n_in: int, n_out: int, batch_size: int) -> onnx.ModelProto:
    """The layer as a network; grouped ones keep the channels that a filter reads."""
    rng = np.random.default_rng(0)
    if layer.kind == "linear":
        shape, out_shape = [batch_size, n_in], [batch_size, n_out]
        weight = rng.standard_normal((n_out, n_in)) * 0.05
        node = helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)
    else:
        in_px, out_px = (math.isqrt(n // batch_size) for n in (layer.in_positions, layer.out_positions))
        kernel, stride = math.isqrt(layer.kernel_area), max(1, round(in_px / out_px))
        if layer.kind != "dense":
            n_in = n_out
        n_read = n_in if layer.kind == "dense" else layer.channels_per_conv_group
        n_out -= n_out % n_read if layer.kind == "grouped" else 0
        n_in = n_in if layer.kind == "dense" else n_out
        shape, out_shape = [batch_size, n_in, in_px, in_px], [batch_size, n_out, None, None]
        weight = rng.standard_normal((n_out, n_read, kernel, kernel)) * 0.05
        node = helper.make_node(
            "Conv",
            ["x", "weight", "bias"],
            ["y"],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
            group=n_in // n_read,
        )
    values = [("weight", weight), ("bias", rng.standard_normal(n_out))]
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", out_shape))
    ]
    graph = helper.make_graph([node], "layer", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
