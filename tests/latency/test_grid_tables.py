import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from latency.errors import ProfileError
from latency.grid_tables import GridTables


def sum_tables() -> GridTables:
    """latency_ms = 0.25 · sum of the widths, 16 or 32 and 0, 8 or 16; a layer each, the second gone at width 0.

    Two members, 1 % above and below the sum. No MLP: its amplitude is 0.
    """
    # The row of zeros, the network's own, widths 0, 16 and 32, widths 0 (never looked up), 8 and 16.
    ms = np.array([0, 0, 0, 4, 8, 9, 2, 4])
    zero = np.zeros(8)
    values = {
        "tables": np.stack([ms, 1.01 * ms, 0.99 * ms, zero, [0, 1, 0, 0, 0, 0, 0, 0]], axis=1),
        "canonical": np.zeros((0, 2)),
        "canonical_bias": np.zeros((1, 2)),
        "steps": [[1 / 16, 0, 0, 0, -1 / 64, 0, 0], [0, 1 / 8, 0, 0, 0, -1 / 64, 0]],
        "steps_bias": [[-1e-3] * 4 + [1 / 128] * 2 + [1]],
        "places": [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, -1000, 0], [2, 5, 1]],
        "excess": np.zeros((5, 0)),
        "beyond": np.zeros((0, 5)),
        "disagreement": np.array([[0, 0], [1, -1], [-1, 1], [0, 0], [0, 0]]) / np.sqrt(8),
        "hidden": np.ones((5, 3)),
        "output": np.ones(3),
        "amplitude": [0],
    }
    return GridTables(**{name: np.array(value, dtype=np.float32) for name, value in values.items()})


WIDTHS = np.array([[32, 16], [16, 0], [16, 8]], dtype=np.float32)


def test_rows_of_the_tables_are_added_up() -> None:
    found = sum_tables().outputs(WIDTHS)
    np.testing.assert_allclose(found.latency_ms, [12, 4, 6])
    np.testing.assert_allclose(found.layer_ms, [[8, 4, 0], [4, 0, 0], [4, 2, 0]])
    np.testing.assert_allclose(found.spread, 0.01, rtol=1e-3)  # the jackknife of ± 1 %


def test_many_networks_are_priced_as_one_is() -> None:
    tables, widths = sum_tables(), np.tile(WIDTHS, (5000, 1))
    np.testing.assert_array_equal(tables.latency_ms(widths), np.tile(tables.latency_ms(WIDTHS), 5000))
    for many, few in zip(tables.outputs(widths), tables.outputs(WIDTHS), strict=True):
        np.testing.assert_array_equal(many[-3:], few)
    assert tables.latency_ms(WIDTHS[:0]).shape == (0,)


def test_tables_survive_their_file() -> None:
    found = GridTables.from_onnx(sum_tables().to_onnx())
    assert found is not None
    np.testing.assert_array_equal(found.latency_ms(WIDTHS), sum_tables().latency_ms(WIDTHS))


def test_a_graph_of_an_earlier_format_is_no_table() -> None:
    node = helper.make_node("Identity", ["widths"], ["latency_ms"])
    value = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("widths", "latency_ms")
    ]
    model = helper.make_model(helper.make_graph([node], "grid", value[:1], value[1:]))
    assert GridTables.from_onnx(model.SerializeToString()) is None


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (
            {"places": np.ones((3, 3), np.float32)},
            r"'places' is float32 of shape \(3, 3\), not float32 of \(7, 3\)",
        ),
        ({"tables": np.ones((8, 5))}, "'tables' is float64 of shape"),
        (
            {"amplitude": np.ones(2, np.float32)},
            r"'amplitude' is float32 of shape \(2,\), not float32 of \(1,\)",
        ),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(changed: dict[str, np.ndarray], match: str) -> None:
    with pytest.raises(ProfileError, match=match):
        dataclasses.replace(sum_tables(), **changed)


def test_what_holds_no_tables_is_refused() -> None:
    for content in (b"no model", onnx.ModelProto().SerializeToString()):
        with pytest.raises(ProfileError, match="it holds no tables"):
            GridTables.from_onnx(content)
