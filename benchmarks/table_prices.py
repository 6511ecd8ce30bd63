"""`layer_tables` in LPNet's place: prices for the search, the sum of each layer's own table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from layer_tables import LayerTable, LayerTables, measure_tables
from torch import Tensor

from latency.lpnet import LatencyModel
from latency.predictor import Predictor
from latency.profiles import ProfileSet
from latency.space import SearchSpace
from pruning.files import write_atomically
from pruning.verify import require_profiled_device

FloatArray = npt.NDArray[np.float64]


class TablePrices(LatencyModel):
    """The sum of the layers' tables, interpolated bilinearly; a layer without channels costs nothing.

    Args:
        space: the search space.
        tables: its layers' tables.
    """

    def __init__(self, space: SearchSpace, tables: LayerTables) -> None:
        super().__init__()
        self.tables = tables
        self._n_groups = len(space.groups)
        self._layers = [
            (layer.in_channels, layer.out_channels, table, torch.from_numpy(table.ms).float())
            for layer, table in zip(space.layers, tables.tables, strict=True)
        ]

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Tables are kept as a file of their own."""
        raise NotImplementedError("the tables are read by table_prices")

    @property
    def n_groups(self) -> int:
        """Length of a width vector."""
        return self._n_groups

    def forward(self, widths: Tensor) -> Tensor:
        """Latency in ms, [n], of widths [n, n_groups]; differentiable between the tables' widths."""
        total = widths.new_zeros(len(widths))
        for in_channels, out_channels, table, ms in self._layers:
            n_in, n_out = (
                side.constant + sum(per_slot * widths[:, group] for group, per_slot in side.terms)
                for side in (in_channels, out_channels)
            )
            n_in, n_out = (torch.as_tensor(n).expand(len(widths)) for n in (n_in, n_out))
            present = ((n_in > 0) & (n_out > 0)).to(total)
            row = _place(n_in, table.in_widths) if len(table.in_widths) > 1 else (0, 0, 0.0)
            column = _place(n_out, table.out_widths)
            total = total + present * _bilinear(ms, row, column)
        return total


Place = tuple[Tensor | int, Tensor | int, Tensor | float]
"""Index below, index above, and how far between them."""


def _place(values: Tensor, axis: FloatArray) -> Place:
    """Where values, [n], lie on an ascending axis, those outside at its ends."""
    ticks = torch.from_numpy(axis).float()
    if len(ticks) == 1:
        return 0, 0, 0.0
    inside = values.clamp(ticks[0], ticks[-1])
    above = torch.searchsorted(ticks, inside.detach().contiguous()).clamp(1, len(ticks) - 1)
    below = above - 1
    return below, above, (inside - ticks[below]) / (ticks[above] - ticks[below])


def _bilinear(ms: Tensor, row: Place, column: Place) -> Tensor:
    (low, high, down), (left, right, across) = row, column
    upper = ms[low, left] * (1 - across) + ms[low, right] * across
    lower = ms[high, left] * (1 - across) + ms[high, right] * across
    return upper * (1 - down) + lower * down


class TablePredictor(Predictor):
    """The tables' sum under an LPNet's manifest: same network, device and grid.

    Args:
        known: the network's predictor.
        prices: the tables' sum.
    """

    def __init__(self, known: Predictor, prices: TablePrices) -> None:
        self.manifest = known.manifest
        self._prices = prices

    def predict_ms(self, widths: npt.ArrayLike) -> FloatArray:
        """Predicted latencies in ms, [n], of widths [n, n_groups]."""
        return self._prices.tables.predict_ms(np.atleast_2d(np.asarray(widths, dtype=np.int64)))


def table_prices(space: SearchSpace, path: Path, profile: ProfileSet) -> TablePrices:
    """The tables in a file, measured now where there is none.

    Raises:
        DeviceMismatchError: there is none, and this is not the device that was profiled.
    """
    if not path.is_file():
        measured = measure_tables(space, require_profiled_device(profile), profile.reference_ms)
        write_atomically(path, json.dumps([_record(table) for table in measured.tables]).encode())
    tables = [_from_record(record) for record in json.loads(path.read_text())]
    return TablePrices(space, LayerTables(space, tables))


def _record(table: LayerTable) -> dict[str, Sequence[object]]:
    return {name: getattr(table, name).tolist() for name in ("in_widths", "out_widths", "ms")}


def _from_record(record: Mapping[str, Sequence[object]]) -> LayerTable:
    return LayerTable(**{name: np.array(value, dtype=np.float64) for name, value in record.items()})
