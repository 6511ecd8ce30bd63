from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from latency.candidate import candidate_in_memory, candidate_model, first_channels, kept_slots, masked_model
from latency.errors import WidthError
from latency.session import make_session, random_feed
from latency.space import SearchSpace
from latency.structure import IntArray
from tests.nets import NETS, max_relative_difference, run_onnx

# The nets' sums are short: float32 rounding stays below 1e-6 of the largest output.
TOLERANCE = 1e-5


def space(name: str) -> SearchSpace:
    return SearchSpace.from_model(NETS[name]().model)


def random_kept(found: SearchSpace, rng: np.random.Generator, *, zeros: float) -> tuple[IntArray, ...]:
    """Random positions of random widths; groups that may vanish do so with probability `zeros`."""
    while True:
        widths = [
            0 if group.zero_allowed and rng.random() < zeros else int(rng.integers(1, group.n_channels + 1))
            for group in found.groups
        ]
        if found.is_alive(widths):
            return tuple(
                np.sort(rng.permutation(group.n_channels)[:width])
                for group, width in zip(found.groups, widths, strict=True)
            )


def weight_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def names_of(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    return [node.op_type for node in nodes]


@pytest.mark.parametrize("zeros", [0.0, 0.5])
@pytest.mark.parametrize("name", NETS)
def test_a_candidate_computes_what_the_gated_network_computes(name: str, zeros: float) -> None:
    found = space(name)
    rng = np.random.default_rng(1)
    for _ in range(3):
        kept = random_kept(found, rng, zeros=zeros)
        gated, cut = run_onnx(masked_model(found, kept)), run_onnx(candidate_model(found, kept))
        assert max_relative_difference(gated, cut) <= TOLERANCE


@pytest.mark.parametrize("name", NETS)
def test_gating_channels_off_changes_the_output(name: str) -> None:
    found = space(name)
    kept = first_channels([max(1, width // 2) for width in found.full_widths])
    changed = run_onnx(masked_model(found, kept))
    full = run_onnx(found.model)
    if any(len(positions) < group.n_channels for group, positions in zip(found.groups, kept, strict=True)):
        assert max_relative_difference(full, changed) > 1e-3


@pytest.mark.parametrize("name", NETS)
def test_the_full_candidate_is_the_base(name: str) -> None:
    found = space(name)
    full = candidate_model(found, first_channels(found.full_widths))
    assert max_relative_difference(run_onnx(found.model), run_onnx(full)) == 0


@pytest.mark.parametrize("name", NETS)
def test_a_candidate_has_consistent_shapes(name: str) -> None:
    found = space(name)
    kept = random_kept(found, np.random.default_rng(2), zeros=0.3)
    onnx.checker.check_model(candidate_model(found, kept), full_check=True)


@pytest.mark.parametrize("name", NETS)
def test_the_full_candidates_constants_have_the_shapes_of_the_base(name: str) -> None:
    found = space(name)  # scalars among them, such as a Clip's bounds
    shapes = {key: value.shape for key, value in found.structure.graph.constants.items()}
    full = first_channels(found.full_widths)
    held = onnx.load_from_string(candidate_in_memory(found, full).graph)
    for model in (candidate_model(found, full), held):
        found_shapes = weight_shapes(model)
        assert found_shapes == {key: shapes.get(key, found_shapes[key]) for key in found_shapes}


@pytest.mark.parametrize("name", NETS)
def test_a_candidate_in_memory_is_the_same_network(name: str) -> None:
    found = space(name)
    kept = random_kept(found, np.random.default_rng(3), zeros=0.3)
    held = candidate_in_memory(found, kept)
    feed = random_feed(make_session(held))
    expected = make_session(candidate_model(found, kept)).run(None, feed)
    for value, wanted in zip(make_session(held).run(None, feed), expected, strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_weights_are_cut_at_the_kept_positions() -> None:
    found = space("chain")
    kept = (np.array([1, 4, 7]), np.array([0, 2]))
    cut = {t.name: onnx.numpy_helper.to_array(t) for t in candidate_model(found, kept).graph.initializer}
    weights = found.structure.graph.constants
    np.testing.assert_array_equal(cut["b.weight"], weights["b.weight"][[0, 2]][:, [1, 4, 7]])
    np.testing.assert_array_equal(cut["b.bn.mean"], weights["b.bn.mean"][[0, 2]])
    np.testing.assert_array_equal(cut["fc.weight"], weights["fc.weight"][:, [0, 2]])


def test_a_depthwise_convolution_has_as_many_groups_as_channels() -> None:
    found = space("depthwise")
    model = candidate_model(found, first_channels([8, 5]))
    assert weight_shapes(model)["dw.weight"] == (5, 1, 3, 3)
    groups = [a.i for node in model.graph.node for a in node.attribute if a.name == "group"]
    assert groups == [5]


def test_a_removed_branch_leaves_no_node_and_no_weight() -> None:
    found = space("residual")
    model = candidate_model(found, first_channels([8, 0]))
    expected = [
        "Conv",
        "BatchNormalization",
        "Relu",
        "Identity",
        "Relu",
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    ]
    assert names_of(model.graph.node) == expected
    assert not [name for name in weight_shapes(model) if name.startswith(("a.", "b."))]


def test_a_removed_block_equals_the_network_without_it() -> None:
    found = space("two_block_residual")
    widths = dict(zip([group.name for group in found.groups], found.full_widths.tolist(), strict=True))
    without_second = candidate_model(found, first_channels([*{**widths, "2.a": 0}.values()]))
    assert not [name for name in weight_shapes(without_second) if name.startswith("2.")]
    assert {name for name in weight_shapes(without_second) if name.startswith("1.")}


def test_kept_slots_leaves_out_groups_that_vanish_with_others() -> None:
    found = space("two_block_residual")
    widths = found.full_widths.copy()
    widths[1] = 0
    mask = kept_slots(found, first_channels(widths))
    assert mask.tolist() == [True] * 8 + [False] * 10 + [True] * 10


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([[0]], "kept positions of 2 groups, got 1"),
        ([[0, 0], [0]], r"group 'a' keeps \[0, 0\].*0 … 7, each once"),
        ([[3, 1], [0]], r"ascending positions"),
        ([[8], [0]], r"group 'a' keeps \[8\]"),
        ([[-1], [0]], r"group 'a' keeps \[-1\]"),
        ([[], [0]], r"groups at width 0 \(a.*\) leave no network: output"),
    ],
)
def test_kept_positions_that_are_no_network_are_refused(kept: list[list[int]], message: str) -> None:
    with pytest.raises(WidthError, match=message):
        candidate_model(space("chain"), [np.array(positions, dtype=np.int64) for positions in kept])
