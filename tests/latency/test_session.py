from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from latency.device import DeviceSettings
from latency.errors import InputError, ModelFileError, ProviderUnavailableError
from latency.session import bound_run, make_session, random_feed, session_options


def _double(shape: list[int | str], element: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A network that adds its input to itself."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    ends = [helper.make_tensor_value_info(name, element, shape) for name in ("x", "y")]
    graph = helper.make_graph([node], "double", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_session_options_are_explicit():
    options = session_options(DeviceSettings(threads=2))
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


def test_sessions_are_made_from_models_bytes_and_files(tmp_path):
    model = _double([1, 3])
    onnx.save(model, tmp_path / "double.onnx")
    for source in (model, model.SerializeToString(), tmp_path / "double.onnx"):
        session = make_session(source)
        (doubled,) = session.run(None, {"x": np.ones((1, 3), np.float32)})
        assert doubled.tolist() == [[2, 2, 2]]
        assert session.get_providers() == ["CPUExecutionProvider"]


def test_a_missing_file_is_refused_by_name():
    with pytest.raises(ModelFileError, match=r"no ONNX file nowhere\.onnx"):
        make_session(Path("nowhere.onnx"))


def test_a_file_that_is_no_model_is_refused_by_name(tmp_path):
    path = tmp_path / "text.onnx"
    path.write_text("no model at all")
    with pytest.raises(ModelFileError, match=r"cannot read .*text\.onnx"):
        make_session(path)


def test_a_provider_that_is_not_installed_is_refused():
    with pytest.raises(ProviderUnavailableError, match="no QNNExecutionProvider"):
        make_session(_double([1, 3]), DeviceSettings.parse("qnn"))


def test_the_feed_fills_every_input_the_same_way_for_one_seed():
    session = make_session(_double([2, 3]))
    feed = random_feed(session, batch_size=2, seed=1)
    assert feed["x"].shape == (2, 3)
    assert feed["x"].dtype == np.float32
    assert np.array_equal(feed["x"], random_feed(session, batch_size=2, seed=1)["x"])
    assert not np.array_equal(feed["x"], random_feed(session, batch_size=2, seed=2)["x"])


def test_an_open_batch_axis_takes_the_batch_size():
    assert random_feed(make_session(_double(["n", 3])), batch_size=4)["x"].shape == (4, 3)


def test_integer_inputs_are_zeros():
    feed = random_feed(make_session(_double([1, 3], TensorProto.INT64)))
    assert feed["x"].dtype == np.int64
    assert not feed["x"].any()


def test_an_open_axis_other_than_the_batch_is_refused():
    with pytest.raises(InputError, match=r"axis 1 is open; only the batch axis may be"):
        random_feed(make_session(_double([1, "width"])))


def test_a_built_in_batch_size_other_than_the_settings_is_refused():
    with pytest.raises(InputError, match=r"a batch of 1, but the settings ask for a batch of 4"):
        random_feed(make_session(_double([1, 3])), batch_size=4)


def test_inputs_that_are_no_numbers_are_refused():
    ends = [helper.make_tensor_value_info(name, TensorProto.STRING, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(InputError, match=r"'x' is a tensor\(string\); allowed: tensor\(float\)"):
        random_feed(make_session(model))


def test_a_bound_run_runs_again_and_again():
    session = make_session(_double([1, 3]))
    run = bound_run(session, random_feed(session))
    for _ in range(3):
        run()
