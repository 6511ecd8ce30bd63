import numpy as np
import pytest
import torch
from layer_tables import LayerTable, LayerTables, measure_tables
from table_prices import TablePrices

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


def made_up_tables(space: SearchSpace) -> LayerTables:
    rng = np.random.default_rng(0)
    tables = []
    for layer in space.layers:
        n_in, n_out = layer.in_channels.at(space.full_widths), layer.out_channels.at(space.full_widths)
        in_widths = np.array(
            [n_in] if layer.kind == "depthwise" else sorted({1, n_in // 2, n_in}), dtype=float
        )
        out_widths = np.array(sorted({1, n_out // 2, n_out}), dtype=float)
        tables.append(
            LayerTable(in_widths, out_widths, rng.uniform(0.1, 1, (len(in_widths), len(out_widths))))
        )
    return LayerTables(space, tables)


def test_prices_for_gradients_are_those_for_numbers(residual_space: SearchSpace) -> None:
    tables = made_up_tables(residual_space)
    widths = np.array([[8, 12], [8, 7], [5, 3], [3, 0]])

    found = TablePrices(residual_space, tables)(torch.from_numpy(widths).float())

    np.testing.assert_allclose(found.numpy(), tables.predict_ms(widths), rtol=1e-5)


def test_prices_have_the_slope_of_the_table(residual_space: SearchSpace) -> None:
    prices = TablePrices(residual_space, made_up_tables(residual_space))
    widths = torch.tensor([[6.5, 8.5]], requires_grad=True)
    (slope,) = torch.autograd.grad(prices(widths)[0], widths)

    step = torch.tensor([[0.0, 0.2]])
    difference = prices(widths + step) - prices(widths - step)

    assert float(slope[0, 1]) == pytest.approx(float(difference.detach()[0]) / 0.4, rel=1e-3)
