import numpy as np
import pytest
from layer_tables import LayerTable, measure_tables

from latency.device import DeviceSettings
from latency.space import SearchSpace


def test_a_table_is_interpolated() -> None:
    table = LayerTable(np.array([8.0, 16.0]), np.array([4.0, 8.0]), np.array([[1.0, 2.0], [3.0, 6.0]]))

    assert table.at(8, 4) == 1.0
    assert table.at(12, 6) == pytest.approx(3.0)
    assert table.at(4, 2) == 1.0  # below the table: its edge
    depthwise = LayerTable(np.array([8.0]), np.array([4.0, 8.0]), np.array([[1.0, 2.0]]))
    assert depthwise.at(6, 6) == pytest.approx(1.5)


def test_a_networks_latency_is_the_sum_of_the_layers_that_are_there(residual_space: SearchSpace) -> None:
    tables = measure_tables(residual_space, DeviceSettings(), dense_ms=1.0)

    full, without_branch = tables.predict_ms(np.array([[8, 12], [8, 0]]))

    assert 0 < without_branch < full
    assert len({layer.name for layer in residual_space.layers}) == 5
