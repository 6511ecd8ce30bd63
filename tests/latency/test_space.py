from pathlib import Path

import numpy as np
import onnx
import pytest

from latency.errors import WidthError
from latency.space import SearchSpace
from tests.nets import NETS, NetBuilder


def space(name: str = "residual") -> SearchSpace:
    return SearchSpace.from_model(NETS[name]().model)


@pytest.mark.parametrize("name", NETS)
def test_a_space_survives_a_file(name: str, tmp_path: Path) -> None:
    made = space(name)
    onnx.save(made.model, tmp_path / "base.onnx")
    loaded = SearchSpace.load(tmp_path / "base.onnx")
    assert loaded.groups == made.groups
    assert loaded.layers == made.layers
    assert loaded.structure_hash == made.structure_hash


def test_the_hash_ignores_weight_values() -> None:
    model = NETS["chain"]().model
    before = SearchSpace.from_model(model).structure_hash
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    assert SearchSpace.from_model(model).structure_hash == before


def test_the_hash_tells_networks_apart() -> None:
    assert len({space(name).structure_hash for name in NETS}) == len(NETS)


def test_the_hash_tells_input_sizes_apart() -> None:
    hashes = set()
    for size in (8, 9):
        net = NetBuilder((1, 3, size, size))
        hashes.add(
            SearchSpace.from_model(net.model(net.head(net.conv("a", "input", 3, 4), 4))).structure_hash
        )
    assert len(hashes) == 2


def test_macs_of_the_full_network_are_counted_by_hand() -> None:
    conv, fc = 64 * 9 * (3 * 8 + 8 * 6 + 6 * 8), 8 * 5
    assert space().macs([8, 6]) == conv + fc


def test_macs_of_narrower_and_removed_layers_are_counted_by_hand() -> None:
    assert space().macs([4, 3]) == 64 * 9 * (3 * 4 + 4 * 3 + 3 * 4) + 4 * 5
    assert space().macs([8, 0]) == 64 * 9 * 3 * 8 + 8 * 5


def test_canonical_widths_close_what_vanishes_with_another_group() -> None:
    assert space("two_block_residual").canonical([8, 0, 4, 6, 4]).tolist() == [8, 0, 0, 6, 4]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zero_padded_shortcut", {"b"}),
        ("residual", set()),  # its inner layer would be gone
        ("chain", set()),
    ],
)
def test_channels_beside_a_padded_shortcut_can_go_with_every_layer_still_there(
    name: str, expected: set[str]
) -> None:
    made = space(name)
    found = sorted(made.zero_keeps_layers)
    widths = made.full_widths.copy()
    widths[found] = 0

    assert {made.groups[index].name for index in found} == expected
    assert all(layer.macs(made.canonical(widths)) > 0 for layer in made.layers)


def test_canonical_leaves_the_given_vector_alone() -> None:
    widths = np.array([8, 0, 4, 6, 4])
    space("two_block_residual").canonical(widths)
    assert widths.tolist() == [8, 0, 4, 6, 4]


@pytest.mark.parametrize(("widths", "alive"), [([8, 6], True), ([8, 0], True), ([0, 6], False)])
def test_a_network_without_outputs_is_not_alive(widths: list[int], alive: bool) -> None:
    assert space().is_alive(widths) is alive


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([8], r"expected 2 widths, one for each group; got shape \(1,\)"),
        ([9, 6], "group 'stem' has 8 channels; width 9 is not in 0 … 8"),
        ([8, -1], "group 'a' has 6 channels; width -1 is not in"),
        ([8, 2.5], "widths are whole numbers of channels"),
        ([8, float("nan")], "widths are whole numbers of channels"),
        ([0, 6], r"groups at width 0 \(stem.*\) leave no network: .*; widen one"),
    ],
)
def test_widths_that_are_no_network_are_refused(widths: list[float], message: str) -> None:
    with pytest.raises(WidthError, match=message):
        space().canonical(widths)
