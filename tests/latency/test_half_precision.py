import sys

import numpy as np
import pytest

from latency.candidate import candidate_model, masked_model
from latency.number_formats import space_in
from latency.space import SearchSpace
from tests.latency.test_candidate import random_kept
from tests.nets import NETS, max_relative_difference, run_onnx

# A few roundings to 11 bits: ONNX Runtime's CPU provider computes fp32 between casts.
TOLERANCE = 5e-3


@pytest.mark.parametrize("name", NETS)
def test_an_fp16_candidate_computes_what_the_gated_fp16_network_computes(name: str) -> None:
    fp32 = SearchSpace.from_model(NETS[name]().model)
    fp16 = space_in(fp32, "fp16")
    assert [group.name for group in fp16.groups] == [group.name for group in fp32.groups]
    assert max_relative_difference(run_onnx(fp32.model), run_onnx(fp16.model)) < TOLERANCE
    kept = random_kept(fp16, np.random.default_rng(1), zeros=0.5)
    gated, cut = run_onnx(masked_model(fp16, kept)), run_onnx(candidate_model(fp16, kept))
    assert max_relative_difference(gated, cut) < TOLERANCE


def test_weights_are_fp16_and_inputs_and_outputs_fp32() -> None:
    path = list(sys.path)
    fp16 = space_in(SearchSpace.from_model(NETS["residual"]().model), "fp16")
    graph = fp16.model.graph
    assert fp16.structure.graph.constants["a.weight"].dtype == np.float16
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {1}
    assert sys.path == path
