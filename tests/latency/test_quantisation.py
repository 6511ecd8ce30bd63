import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from latency.candidate import candidate_in_memory, candidate_model, first_channels, masked_model
from latency.errors import UnsupportedGraphError
from latency.graph import make_graph
from latency.number_formats import space_in
from latency.quantisation import quantised
from latency.session import Feed, make_session, random_feed
from latency.space import SearchSpace
from tests.latency.test_candidate import random_kept
from tests.nets import NETS, NetBuilder, max_relative_difference, run_onnx


def spaces(name: str) -> tuple[SearchSpace, SearchSpace]:
    """A network in fp32 and in int8."""
    fp32 = SearchSpace.from_model(NETS[name]().model)
    return fp32, space_in(fp32, "int8")


def run_as_written(model: onnx.ModelProto) -> list[NDArray[np.float32]]:
    """Outputs of the QDQ graph by ONNX's definition: no kernel of ONNX Runtime's that rounds on its way."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, random_feed(session))]


def constants_of(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def feeds(scale: float) -> list[Feed]:
    rng = np.random.default_rng(0)
    return [{"input": (scale * rng.standard_normal((1, 3, 8, 8))).astype(np.float32)}]


@pytest.mark.parametrize("name", NETS)
def test_a_quantised_candidate_computes_exactly_what_the_gated_quantised_network_computes(name: str) -> None:
    _, int8 = spaces(name)
    rng = np.random.default_rng(1)
    for zeros in (0.0, 0.5, 0.5):
        kept = random_kept(int8, rng, zeros=zeros)
        gated, cut = masked_model(int8, kept), candidate_model(int8, kept)
        assert max_relative_difference(run_as_written(gated), run_as_written(cut)) == 0
        onnx.checker.check_model(cut, full_check=True)


@pytest.mark.parametrize("name", NETS)
def test_a_quantised_network_has_the_channels_and_about_the_outputs_of_the_fp32_one(name: str) -> None:
    fp32, int8 = spaces(name)
    assert [group.name for group in int8.groups] == [group.name for group in fp32.groups]
    assert [group.removes for group in int8.groups] == [group.removes for group in fp32.groups]
    assert {layer.name for layer in int8.layers} == {layer.name for layer in fp32.layers}
    assert (int8.structure_hash, int8.precision) == (fp32.structure_hash, "int8")
    # Eight bits: a 256th of the range, some layers on top of each other.
    assert max_relative_difference(run_onnx(fp32.model), run_onnx(int8.model)) < 0.03


def test_batch_norm_behind_a_convolution_is_folded_and_weights_are_quantised_by_channel() -> None:
    _, int8 = spaces("residual")
    constants = constants_of(int8.model)
    assert "BatchNormalization" not in {node.op_type for node in int8.model.graph.node}
    assert constants["a.weight_quantized"].dtype == np.int8
    assert constants["a.weight_scale"].shape == (6,)
    assert not constants["a.weight_zero_point"].any()


def test_scales_and_biases_are_cut_with_their_channels() -> None:
    _, int8 = spaces("residual")
    kept = tuple(np.array(positions) for positions in ([0, 2, 7], [1, 5]))
    full, cut = constants_of(int8.model), constants_of(candidate_model(int8, kept))
    np.testing.assert_array_equal(cut["a.weight_scale"], full["a.weight_scale"][[1, 5]])
    np.testing.assert_array_equal(
        cut["a.weight_quantized"], full["a.weight_quantized"][np.ix_([1, 5], [0, 2, 7])]
    )
    bias = next(
        name for name in full if name.startswith("a.weight.folded_bias") and name.endswith("quantized")
    )
    np.testing.assert_array_equal(cut[bias], full[bias][[1, 5]])
    assert len(cut[f"{bias}_scale"]) == 2


def test_a_candidate_in_memory_runs_through_the_same_8_bit_kernels(tmp_path) -> None:
    net = NetBuilder((1, 8, 8, 8))
    data = net.conv_bn_relu("a", "input", 8, 64, kernel=3)
    fp32 = SearchSpace.from_model(net.model(net.head(net.conv_bn_relu("b", data, 64, 512), 512)))
    int8 = space_in(fp32, "int8")
    kept = first_channels([48, 400])
    model = candidate_in_memory(int8, kept)
    session = make_session(model)
    whole = make_session(candidate_model(int8, kept))
    feed = random_feed(session)
    np.testing.assert_array_equal(session.run(None, feed)[0], whole.run(None, feed)[0])
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    options.add_external_initializers(*model.ort_values())
    ort.InferenceSession(model.graph, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 2
    assert "Conv" not in kinds


def test_nodes_keep_their_order() -> None:
    """A topological order of its own would number groups otherwise than the fp32 network does."""
    fp32, int8 = spaces("two_block_residual")
    before = [node.name for node in fp32.structure.graph.nodes]
    after = [node.name for node in int8.structure.graph.nodes if node.name in before]
    assert after == [name for name in before if name in after]
    assert len([name for name in after if name.startswith("conv_")]) == 7


def test_the_ranges_of_activations_come_from_the_feeds() -> None:
    graph = SearchSpace.from_model(NETS["chain"]().model).structure.graph
    once, twice = (constants_of(quantised(graph, feeds(scale)))["input_scale"] for scale in (1.0, 2.0))
    assert float(twice) == pytest.approx(2 * float(once), rel=1e-5)


def test_a_reduced_range_leaves_7_bits_for_weights() -> None:
    graph = SearchSpace.from_model(NETS["chain"]().model).structure.graph
    widest = [
        np.abs(
            constants_of(quantised(graph, feeds(1), reduce_range=reduced))["a.weight_quantized"].astype(int)
        ).max()
        for reduced in (False, True)
    ]
    assert widest == [127, 64]


def test_a_shared_convolutions_weight_is_not_folded_into() -> None:
    net = NetBuilder()
    data = net.conv_bn_relu("stem", "input", 3, 8, kernel=3)
    data = net.conv_bn_relu("shared", net.conv_bn_relu("shared", data, 8, 8), 8, 8)
    model = net.model(net.head(data, 8))
    int8 = space_in(SearchSpace.from_model(model), "int8")
    assert [node.op_type for node in int8.model.graph.node].count("BatchNormalization") == 2
    assert max_relative_difference(run_onnx(model), run_onnx(int8.model)) < 0.03


def test_batch_norm_behind_something_else_stays() -> None:
    """DenseNet's first: behind a Concat of one input."""
    net = NetBuilder()
    stem = net.op("Concat", net.conv_bn_relu("stem", "input", 3, 8, kernel=3), axis=1)
    parameters = [net.weight(f"norm.{part}", 8, low=0.2) for part in ("weight", "bias", "mean", "var")]
    data = net.op("Relu", net.op("BatchNormalization", stem, *parameters))
    model = net.model(net.head(net.op("Concat", stem, net.conv("grow", data, 8, 4), axis=1), 12))
    int8 = space_in(SearchSpace.from_model(model), "int8")
    assert [node.op_type for node in int8.model.graph.node].count("BatchNormalization") == 1
    assert max_relative_difference(run_onnx(model), run_onnx(int8.model)) < 0.03


def test_what_the_tool_cannot_quantise_is_refused() -> None:
    graph = SearchSpace.from_model(NETS["chain"]().model).structure.graph
    with pytest.raises(UnsupportedGraphError, match=r"cannot quantise this network \(.*; measure it in fp32"):
        quantised(graph, [])


def test_quantising_leaves_the_fp32_graph_as_it_is() -> None:
    model = NETS["residual"]().model
    before = model.SerializeToString(deterministic=True)
    graph = make_graph(model)
    weights = {name: value.copy() for name, value in graph.constants.items()}
    quantised(graph, feeds(1))
    assert model.SerializeToString(deterministic=True) == before
    for name, value in weights.items():
        np.testing.assert_array_equal(graph.constants[name], value)
