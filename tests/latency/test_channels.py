import numpy as np
import pytest

from latency.channels import find_channels
from latency.graph import make_graph
from latency.space import SearchSpace
from latency.structure import FIXED
from tests.nets import NETS


def space(name: str) -> SearchSpace:
    return SearchSpace.from_model(NETS[name]().model)


@pytest.mark.parametrize("name", NETS)
def test_groups_are_what_the_topology_says(name: str) -> None:
    net = NETS[name]()
    groups = find_channels(make_graph(net.model)).groups
    assert {group.name: (group.n_channels, group.zero_allowed) for group in groups} == net.groups


@pytest.mark.parametrize("name", NETS)
def test_what_is_never_pruned_is_reported_with_the_reason(name: str) -> None:
    net = NETS[name]()
    kept = {row.layer: row.reason for row in space(name).kept}
    assert kept.keys() == net.kept.keys()
    assert all(net.kept[layer] in reason for layer, reason in kept.items())


@pytest.mark.parametrize("name", NETS)
def test_groups_name_the_layers_that_disappear_with_them(name: str) -> None:
    net = NETS[name]()
    assert {group.name: group.removes for group in space(name).groups if group.removes} == net.removes


@pytest.mark.parametrize("name", NETS)
def test_slots_are_numbered_group_after_group(name: str) -> None:
    groups = space(name).groups
    assert [group.offset for group in groups] == [
        sum(g.n_channels for g in groups[:i]) for i in range(len(groups))
    ]
    assert [group.index for group in groups] == list(range(len(groups)))


@pytest.mark.parametrize("name", NETS)
def test_every_slot_owns_the_parameters_that_make_and_read_it(name: str) -> None:
    found = space(name)
    for role in ("out", "in"):
        slots = np.concatenate([axis.slots for axis in found.parameter_axes if axis.role == role])
        assert set(slots[slots != FIXED].tolist()) == set(range(int(found.full_widths.sum())))


def test_a_depthwise_convolution_belongs_to_the_group_it_acts_on() -> None:
    (dw,) = [layer for layer in space("depthwise").layers if layer.name == "dw"]
    assert dw.kind == "depthwise"
    assert dw.in_channels == dw.out_channels
    assert dw.in_channels.terms == ((1, 1),)


def test_a_convolution_of_one_channel_is_dense() -> None:
    (layer,) = [layer for layer in space("one_channel_conv").layers if layer.name == "c"]
    assert layer.kind == "dense"
    assert layer.out_channels.terms != layer.in_channels.terms


def test_a_whole_convolution_group_is_one_slot() -> None:
    found = space("grouped_whole")
    (group,) = found.groups
    assert group.channels_per_slot == 2
    (axis,) = [axis for axis in found.parameter_axes if axis.parameter == "grouped.weight"]
    assert axis.slots.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_positions_within_convolution_groups_are_tied_across_them() -> None:
    axes = {(axis.parameter, axis.axis): axis.slots for axis in space("grouped_within").parameter_axes}
    assert axes["a.weight", 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert axes["grouped.weight", 1].tolist() == [0, 1, 2, 3]
    assert axes["grouped.weight", 0].tolist() == [*range(4, 10), *range(4, 10)]


def test_a_linear_layer_after_flatten_reads_every_position_of_a_channel() -> None:
    axes = {(axis.parameter, axis.axis): axis.slots for axis in space("flatten_linear").parameter_axes}
    assert axes["fc1.weight", 1].tolist() == [slot for slot in range(6) for _ in range(16)]


def test_a_concatenation_is_wide_as_its_parts() -> None:
    (layer,) = [layer for layer in space("concat").layers if layer.name == "c"]
    assert layer.in_channels.at([8, 3, 2, 6]) == 5


def test_a_layer_depends_on_the_groups_whose_absence_removes_it() -> None:
    layers = {layer.name: layer for layer in space("two_block_residual").layers}
    assert layers["1.a"].depends_on == layers["1.c"].depends_on == (1, 2)
    assert layers["2.b"].depends_on == (3, 4)
    assert layers["stem"].depends_on == ()


def test_groups_of_one_branch_disappear_together() -> None:
    groups = {group.name: group for group in space("two_block_residual").groups}
    assert groups["1.a"].implied_zero == (groups["1.b"].index,)
    assert groups["1.b"].implied_zero == (groups["1.a"].index,)


def test_channels_behind_an_unknown_operator_are_free_again() -> None:
    axes = {(axis.parameter, axis.axis) for axis in space("unknown_operator").parameter_axes}
    assert ("b.weight", 0) in axes
    assert ("a.weight", 0) not in axes
