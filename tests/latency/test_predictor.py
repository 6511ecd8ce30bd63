import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latency.device import DeviceFingerprint, DeviceSettings, fingerprint
from latency.errors import DeviceMismatchError, ProfileError, WidthError
from latency.grid import Grid
from latency.lpnet_files import (
    GRID_FILE,
    MANIFEST_FILE,
    ONNX_FILE,
    WEIGHTS_FILE,
    LPNetManifest,
    read_manifest,
    write_manifest,
)
from latency.metrics import prediction_metrics
from latency.predictor import Predictor
from tests.latency.test_grid_tables import sum_tables


def sum_model() -> bytes:
    """latency_ms = 0.25 · sum of the widths; layer_ms are the summands, the spread a hundredth per 4 ms."""
    nodes = [
        helper.make_node("Mul", ["widths", "ms_per_channel"], ["layer_ms"]),
        helper.make_node("ReduceSum", ["layer_ms", "last"], ["latency_ms"], keepdims=0),
        helper.make_node("Mul", ["latency_ms", "spread_per_ms"], ["spread"]),
    ]
    outputs = (("latency_ms", ["n"]), ("spread", ["n"]), ("layer_ms", ["n", 2]))
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info("widths", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [
            numpy_helper.from_array(np.full(2, 0.25, dtype=np.float32), "ms_per_channel"),
            numpy_helper.from_array(np.float32(0.0025), "spread_per_ms"),
            numpy_helper.from_array(np.array([1]), "last"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def device() -> DeviceFingerprint:
    return fingerprint(DeviceSettings())


@pytest.fixture
def manifest(device: DeviceFingerprint) -> LPNetManifest:
    measured = np.array([1.0, 2.0, 4.0])
    return LPNetManifest(
        kind="LPNet",
        structure_hash="ab" * 32,
        group_names=("stem", "branch"),
        grid=Grid(((16, 32), (0, 8, 16))),
        may_vanish=(False, True),
        layer_names=("stem", "expand", "reduce"),
        fingerprint=device,
        reference_ms=12.0,
        profile_digest="0123456789abcdef",
        n_train=200,
        seed=0,
        cv_rmse=0.03,
        model_error=0.03,
        largest_spread=0.01,
        metrics={"LPNet": prediction_metrics(measured * 1.01, measured)},
        noise_floor_mape=0.004,
        versions={"torch": "2.15.0"},
    )


@pytest.fixture
def directory(tmp_path: Path, manifest: LPNetManifest) -> Path:
    (tmp_path / ONNX_FILE).write_bytes(sum_model())
    (tmp_path / WEIGHTS_FILE).write_bytes(b"weights")
    write_manifest(manifest, tmp_path)
    return tmp_path


@pytest.fixture(params=["tables", "no tables"])
def either(request: pytest.FixtureRequest, directory: Path, manifest: LPNetManifest) -> Path:
    """The folder, with tables for the grid and without."""
    if request.param == "tables":
        (directory / GRID_FILE).write_bytes(sum_tables().to_onnx())
        write_manifest(manifest, directory)
    return directory


def test_a_batch_of_widths_gets_a_latency_each(either: Path) -> None:
    predictor = Predictor.load(either)
    for widths, expected_ms in (
        ([[32, 16], [16, 0], [20.5, 3.5]], [12, 4, 6]),
        ([[32, 16], [16, 0]], [12, 4]),
    ):
        latency_ms = predictor.predict_ms(widths)
        assert latency_ms.dtype == np.float64
        np.testing.assert_allclose(latency_ms, expected_ms)


def test_tables_answer_on_the_grid_and_the_model_between(directory: Path, manifest: LPNetManifest) -> None:
    tables = sum_tables()
    twice = dataclasses.replace(tables, tables=2 * tables.tables)
    (directory / GRID_FILE).write_bytes(twice.to_onnx())
    write_manifest(manifest, directory)
    predictor = Predictor.load(directory)
    for kind in (np.int8, np.int64, np.uint16, np.float32, np.float64):
        np.testing.assert_allclose(predictor.predict_ms(np.array([32, 16], kind)), [24])
    np.testing.assert_allclose(predictor.predict([16, 8]).layer_ms, [[8, 4, 0]])
    np.testing.assert_allclose(predictor.predict_ms([[31, 16]]), [11.75])


def test_a_single_vector_and_an_empty_batch_are_batches_too(either: Path) -> None:
    predictor = Predictor.load(either)
    np.testing.assert_allclose(predictor.predict_ms(np.array([32, 16])), [12.0])
    assert predictor.predict_ms(np.zeros((0, 2))).shape == (0,)


def test_a_prediction_says_how_sure_it_is_and_where_the_time_goes(directory: Path) -> None:
    found = Predictor.load(directory).predict([[32, 16], [16, 0]])
    np.testing.assert_allclose(found.latency_ms, [12.0, 4.0])
    np.testing.assert_allclose(found.layer_ms, [[8.0, 4.0], [4.0, 0.0]])
    # errors of 3 % and a spread of 1 % at 4 ms: 3.16 % in all
    assert found.low_ms[1] == pytest.approx(4.0 * np.exp(-1.96 * np.hypot(0.03, 0.01)))
    assert found.high_ms[1] == pytest.approx(4.0 * np.exp(1.96 * np.hypot(0.03, 0.01)))
    assert found.out_of_range.tolist() == [True, False]  # spreads of 3 % and 1 %; 1 % was the largest known


def test_a_model_that_knows_the_latency_alone_says_so(directory: Path, manifest: LPNetManifest) -> None:
    write_manifest(dataclasses.replace(manifest, kind="MlpOnWidths", largest_spread=None), directory)
    with pytest.raises(ProfileError, match="A MlpOnWidths predicts the latency alone; fit an LPNet"):
        Predictor.load(directory).predict([16, 8])


def test_the_manifest_survives_its_file(directory: Path, manifest: LPNetManifest) -> None:
    assert read_manifest(directory, needs=WEIGHTS_FILE) == manifest
    assert Predictor.load(directory).manifest.full_widths.tolist() == [32, 16]


def test_prediction_needs_no_torch_weights(directory: Path) -> None:
    (directory / WEIGHTS_FILE).unlink()
    assert Predictor.load(directory).predict_ms([16, 8]) == pytest.approx([6.0])


@pytest.mark.parametrize(
    ("widths", "match"),
    [
        ([[16, 8, 8]], r"Expected 2 widths .* got shape \(1, 3\)"),
        ([[[16, 8]]], r"got shape \(1, 1, 2\)"),
        ([[16, 8], [np.nan, 8]], "width of group 'stem' in row 1 is nan"),
        ([[16, np.inf]], "width of group 'branch' in row 0 is inf"),
        ([[33, 8]], "Group 'stem' has 32 channels; width 33 in row 0 is not in 16 … 32"),
        ([[-1, 8]], "Group 'stem' has 32 channels; width -1 in row 0 is not in 16 … 32"),
        ([[1e300, 8]], r"width 1e\+300 in row 0 is not in"),
        ([[16, 8], [16]], "Widths are numbers, 2 for each network"),
        ([[16, -1]], "Group 'branch' has 16 channels; width -1 in row 0 is not in 0 … 16"),
        ([[0, 8]], "Group 'stem' has 32 channels; width 0 in row 0"),
        ([["wide", 8]], "Widths are numbers, 2 for each network"),
    ],
)
def test_widths_of_no_network_are_refused(either: Path, widths: list[object], match: str) -> None:
    with pytest.raises(WidthError, match=match):
        Predictor.load(either).predict_ms(widths)


def test_another_network_is_refused(directory: Path) -> None:
    Predictor.load(directory, structure_hash="ab" * 32)
    with pytest.raises(
        ProfileError, match="another network: structure hash abababababab there, cdcdcdcdcdcd here"
    ):
        Predictor.load(directory, structure_hash="cd" * 32)


def test_another_device_is_refused_unless_allowed(directory: Path, device: DeviceFingerprint) -> None:
    other = dataclasses.replace(device, cpu_model="Another CPU")
    Predictor.load(directory, device=device)
    Predictor.load(directory, device=other, allow_other_device=True)
    with pytest.raises(DeviceMismatchError, match=r"measured on another device .*Another CPU"):
        Predictor.load(directory, device=other)


def truncate_onnx(directory: Path) -> None:
    path = directory / ONNX_FILE
    path.write_bytes(path.read_bytes()[:-20])


def lose_onnx(directory: Path) -> None:
    (directory / ONNX_FILE).unlink()


def lose_manifest(directory: Path) -> None:
    (directory / MANIFEST_FILE).unlink()


def truncate_manifest(directory: Path) -> None:
    path = directory / MANIFEST_FILE
    path.write_text(path.read_text()[:200])


def edit(directory: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = directory / MANIFEST_FILE
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def bind(directory: Path, name: str, content: bytes) -> None:
    """Another file that its manifest names."""
    manifest = read_manifest(directory, needs=ONNX_FILE)
    (directory / name).write_bytes(content)
    write_manifest(manifest, directory)


def one_group_more() -> bytes:
    tables = sum_tables()
    wider = {
        "steps": np.ones((3, 7), np.float32),
        "canonical": np.ones((0, 3), np.float32),
        "canonical_bias": np.ones((1, 3), np.float32),
    }
    return dataclasses.replace(tables, **wider).to_onnx()


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (truncate_onnx, "lpnet.onnx is damaged"),
        (lose_onnx, "lpnet.onnx is missing"),
        (lambda d: bind(d, ONNX_FILE, b"no model"), "lpnet.onnx does not load"),
        (lambda d: bind(d, GRID_FILE, b"no model"), r"lpnet-grid.onnx does not load \(it holds no tables: "),
        (lambda d: bind(d, GRID_FILE, one_group_more()), r"does not load \(it has 3 groups, the network 2\)"),
        (lose_manifest, "There is no LPNet in"),
        (truncate_manifest, "lpnet.json is damaged"),
        (lambda d: edit(d, lambda r: r.update(format="plan")), "its format is 'plan'"),
        (lambda d: edit(d, lambda r: r.update(version=99)), "format version 99"),
        (lambda d: edit(d, lambda r: r["manifest"].pop("grid")), "damaged .*grid"),
        (lambda d: edit(d, lambda r: r["manifest"].update(may_vanish=[True])), "differ in length"),
        (lambda d: edit(d, lambda r: r.update(manifest=None)), "damaged"),
    ],
)
def test_damaged_files_are_refused(directory: Path, damage: Callable[[Path], None], match: str) -> None:
    damage(directory)
    with pytest.raises(ProfileError, match=match):
        Predictor.load(directory)
