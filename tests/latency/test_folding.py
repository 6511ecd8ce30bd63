from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from latency.candidate import candidate_model
from latency.folding import folded_space
from latency.number_formats import space_in
from latency.space import SearchSpace
from tests.latency.test_candidate import TOLERANCE, random_kept, space
from tests.nets import NETS, NetBuilder, max_relative_difference, run_onnx


def norms_in(model: onnx.ModelProto) -> int:
    return [node.op_type for node in model.graph.node].count("BatchNormalization")


def kernels(model: onnx.ModelProto, path: Path) -> Counter[str]:
    """What ONNX Runtime makes of a network."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4  # such a file is for this machine alone, which it warns of
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("name", NETS)
def test_candidates_of_a_folded_network_compute_the_same_with_the_same_kernels(
    name: str, tmp_path: Path
) -> None:
    plain = space(name)
    folded = folded_space(plain)
    rng = np.random.default_rng(2)
    for _ in range(3):
        kept = random_kept(plain, rng, zeros=0.5)
        before, after = candidate_model(plain, kept), candidate_model(folded, kept)
        assert max_relative_difference(run_onnx(before), run_onnx(after)) <= TOLERANCE
        assert kernels(before, tmp_path / "before.onnx") == kernels(after, tmp_path / "after.onnx")


def test_no_batch_norm_behind_a_convolution_is_left() -> None:
    plain = space("residual")
    assert norms_in(plain.model) > norms_in(folded_space(plain).model) == 0
    assert [group.name for group in folded_space(plain).groups] == [group.name for group in plain.groups]


def test_a_weight_that_two_convolutions_share_is_not_folded_into() -> None:
    net = NetBuilder()
    data = net.conv_bn_relu("stem", "input", 3, 8, kernel=3)
    data = net.conv_bn_relu("shared", net.conv_bn_relu("shared", data, 8, 8), 8, 8)
    plain = SearchSpace.from_model(net.model(net.head(data, 8)))
    assert norms_in(folded_space(plain).model) == 2


def test_a_quantised_network_is_left_as_it_is() -> None:
    int8 = space_in(space("residual"), "int8")
    assert folded_space(int8) is int8
