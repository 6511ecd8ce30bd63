import numpy as np
import onnx
import onnxruntime as ort
import pytest

from latency.device import DeviceSettings
from latency.measure import Protocol
from latency.probe import _MAKERS, GRID_KINDS, KINDS, probe_step
from latency.probe_formats import convolution_in
from latency.session import make_session, random_feed


@pytest.mark.parametrize("width", [50, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_an_8_bit_convolution_is_one_kernel_and_nothing_else(kind, width, tmp_path):
    made = convolution_in(_MAKERS[kind][0](width, 7, 2), "int8")
    onnx.checker.check_model(made, full_check=True)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, random_feed(session, batch_size=2))
    assert [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node] == ["QLinearConv"]
    assert found.dtype == np.uint8


def test_an_fp16_convolution_is_fp16_throughout():
    fp32 = _MAKERS["depthwise"][0](48, 7, 1)
    made = convolution_in(fp32, "fp16")
    onnx.checker.check_model(made, full_check=True)
    session = make_session(made)
    assert {entry.type for entry in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float16)"}
    feed = random_feed(session)
    (exact,) = make_session(fp32).run(None, {"x": feed["x"].astype(np.float32)})
    np.testing.assert_allclose(session.run(None, feed)[0], exact, atol=0.02)


def test_fp32_stays_as_it_is():
    model = _MAKERS["dense outputs"][0](48, 7, 1)
    assert convolution_in(model, "fp32") is model


def test_a_device_is_probed_in_int8():
    quick = Protocol(min_pairs=6, max_pairs=6, warmup_runs=2, min_sample_ms=0.01)
    result = probe_step(DeviceSettings(precision="int8"), widths=(48, 56, 64), protocol=quick)
    assert tuple(curve.kind for curve in result.staircases) == GRID_KINDS
    assert all(point.ms > 0 for curve in result.staircases for point in curve.points)
