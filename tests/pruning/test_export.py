from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from latency.device import DeviceSettings, fingerprint
from latency.space import SearchSpace
from pruning.data import load_data
from pruning.errors import TraceError
from pruning.export import (
    CALIBRATION_IMAGES,
    dense_model,
    deployed_model,
    require_same_outputs,
    trained_model,
    write_onnx,
    write_program,
)
from pruning.plan import make_plan
from pruning.surgery import slim
from pruning.trace import trace

KEPT = (np.array([0, 3, 5]), np.array([1, 2]))


def initialisers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_the_dense_model_holds_the_networks_present_weights(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    with torch.no_grad():
        residual_net.head.weight.fill_(0.25)

    model = dense_model(residual_space, residual_net)

    assert (initialisers(model)["head.weight"] == 0.25).all()
    assert require_same_outputs(residual_net, model) < 1e-5


def test_the_slim_model_holds_the_slim_networks_weights(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    network, _ = slim(residual_net, residual_space, make_plan(residual_space, KEPT))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)  # as if trained after the cut

    model = trained_model(residual_space, network, KEPT)

    assert require_same_outputs(network, model) < 1e-5


def test_weights_that_would_be_denormal_are_written_as_zero(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    with torch.no_grad():
        residual_net.stem.weight.fill_(1e-41)

    values = initialisers(dense_model(residual_space, residual_net))["stem.weight"]

    assert not values.any()


def test_a_network_that_computes_something_else_is_noticed(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    model = dense_model(residual_space, residual_net)
    with torch.no_grad():
        residual_net.head.bias.add_(1.0)

    with pytest.raises(TraceError, match="differ by"):
        require_same_outputs(residual_net, model)


def test_a_network_of_other_shapes_is_refused(residual_net: nn.Module, residual_space: SearchSpace) -> None:
    with pytest.raises(TraceError, match=r"has shape .* in the slim network and"):
        trained_model(residual_space, residual_net, KEPT)


def test_the_program_loads_without_the_networks_code(residual_net: nn.Module, tmp_path: Path) -> None:
    images = torch.randn(1, 3, 8, 8)

    write_program(residual_net, (1, 3, 8, 8), tmp_path / "net.pt2")

    program = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(program(images), residual_net(images))


def test_an_onnx_file_is_whole_or_not_there(
    residual_net: nn.Module, residual_space: SearchSpace, tmp_path: Path
) -> None:
    write_onnx(dense_model(residual_space, residual_net), tmp_path / "net.onnx")

    onnx.checker.check_model(onnx.load(tmp_path / "net.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_what_is_deployed_in_int8_is_calibrated_on_training_images() -> None:
    """The input's range is that of the training images, not of random numbers."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    task = load_data("digits", (3, 8, 8))
    model = dense_model(trace(network, (2, 3, 8, 8)), network)
    device = replace(fingerprint(DeviceSettings(precision="int8")), isa=("avx512_vnni",))

    made = deployed_model(model, task, device)

    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    (name,) = [entry.name for entry in made.graph.input]
    seen = np.concatenate([images.numpy() for images, _ in task.calibration_batches(CALIBRATION_IMAGES)])
    assert float(values[f"{name}_scale"]) == pytest.approx((seen.max() - seen.min()) / 255, rel=1e-4)
    assert max(np.abs(value.astype(int)).max() for value in values.values() if value.dtype == np.int8) == 127
