from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from latency.errors import ModelFileError
from latency.graph import attribute, load_graph, make_graph
from tests.nets import NetBuilder, chain


def test_constant_nodes_become_constants() -> None:
    net = NetBuilder((1, 2))
    model = net.model(net.op("Add", "input", net.op("Constant", value_floats=[1.0, 2.0])))
    graph = make_graph(model)
    assert [node.op_type for node in graph.nodes] == ["Add"]
    assert graph.constants[graph.nodes[0].input[1]].tolist() == [1.0, 2.0]


def test_every_tensor_has_its_shape() -> None:
    graph = make_graph(chain().model)
    assert graph.shapes["input"] == (1, 3, 8, 8)
    assert graph.shapes[graph.outputs[0]] == (1, 5)
    assert all(name in graph.shapes for node in graph.nodes for name in (*node.input, *node.output) if name)


def test_nodes_that_no_output_reads_are_left_out() -> None:
    net = NetBuilder()
    output = net.head(net.conv("a", "input", 3, 4), 4)
    net.conv("unread", "input", 3, 4)
    assert "unread.weight" not in {
        name for node in make_graph(net.model(output)).nodes for name in node.input
    }


def test_attribute_falls_back_to_the_default() -> None:
    node = helper.make_node("Concat", ["a"], ["b"], axis=1)
    assert attribute(node, "axis", 0) == 1
    assert attribute(node, "other", 7) == 7


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"nowhere\.onnx' does not exist"):
        load_graph(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize("content", [b"no model", b""])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"damaged\.onnx"):
        load_graph(path)


def test_a_dynamic_shape_is_refused_with_the_tensor_and_what_to_do() -> None:
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    node = helper.make_node("Relu", ["images"], ["out"], name="relu")
    model = helper.make_model(helper.make_graph([node], "dynamic", [value], [output]))
    with pytest.raises(ModelFileError, match=r"'images' has no static shape.*fixed input sizes"):
        make_graph(model)


def test_a_shape_that_depends_on_the_data_is_refused() -> None:
    net = NetBuilder()
    model = net.model(net.op("NonZero", net.conv("a", "input", 3, 4)))
    with pytest.raises(ModelFileError, match=r"'nonzero_1_out0' has no static shape"):
        make_graph(model)


def test_shapes_survive_a_file(tmp_path: Path) -> None:
    onnx.save(chain().model, tmp_path / "chain.onnx")
    graph = load_graph(tmp_path / "chain.onnx")
    assert graph.inputs == ("input",)
    np.testing.assert_array_equal(graph.constants["a.bias"], make_graph(chain().model).constants["a.bias"])
