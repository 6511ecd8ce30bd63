from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from pruning.accuracy import onnx_accuracy
from pruning.data import ImageTask, load_data
from pruning.training import accuracy


@pytest.fixture(scope="module")
def task() -> ImageTask:
    return load_data("digits", (3, 8, 8))


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_onnx_files_accuracy_is_the_networks(task: ImageTask, tmp_path: Path, batch_size: int) -> None:
    """360 test images do not divide by 7: the last batch is filled up, and the filling does not count."""
    torch.manual_seed(0)
    linear = nn.Linear(3 * 8 * 8, 10)
    path = tmp_path / "net.onnx"
    write_linear(linear, batch_size, path)

    found = onnx_accuracy(path, task)

    assert found == pytest.approx(accuracy(nn.Sequential(nn.Flatten(), linear), task))
    assert 0 < found < 1


def write_linear(linear: nn.Linear, batch_size: int, path: Path) -> None:
    helper = onnx.helper
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [batch_size, 3, 8, 8])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [batch_size, 10])],
        [
            onnx.numpy_helper.from_array(linear.weight.detach().numpy(), "weight"),
            onnx.numpy_helper.from_array(linear.bias.detach().numpy(), "bias"),
        ],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
