import re

import pytest

from latency.removal import Removal
from latency.space import SearchSpace
from tests.nets import NETS


def at(name: str, *groups: str) -> Removal:
    space = SearchSpace.from_model(NETS[name]().model)
    by_name = {group.name: group.index for group in space.groups}
    return space.structure.removal.at([by_name[group] for group in groups])


def test_nothing_at_zero_removes_nothing() -> None:
    removal = at("residual")
    assert (removal.removed_nodes, removal.presence, removal.refusal) == (frozenset(), (), None)


def test_a_residual_branch_disappears_whole() -> None:
    space = SearchSpace.from_model(NETS["residual"]().model)
    left = [
        node.op_type
        for i, node in enumerate(space.structure.graph.nodes)
        if i not in at("residual", "a").removed_nodes
    ]
    assert left == [
        "Conv",
        "BatchNormalization",
        "Relu",
        "Add",
        "Relu",
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    ]


def test_presence_scales_what_would_be_added_to_zero() -> None:
    assert at("residual", "a").presence == ("b.bias", "b.bn.weight", "b.bn.bias")


def test_groups_that_only_the_branch_reads_are_implied() -> None:
    assert len(at("two_block_residual", "1.a").zero_groups) == 2


@pytest.mark.parametrize(
    ("name", "groups", "reason"),
    [
        ("chain", ["a"], "output 'gemm_9_out0' of the network would be empty"),
        ("concat", ["a", "b"], "of the network would be empty"),
        ("squeeze_excite", ["se.down"], "of the network would be empty"),
        ("shuffle", ["stem#2"], "Concat '.*' would lose channels that are tied to others"),
        ("dense_block", ["stem"], "of the network would be empty"),
    ],
)
def test_what_would_leave_no_network_is_refused_with_the_reason(
    name: str, groups: list[str], reason: str
) -> None:
    assert re.search(reason, at(name, *groups).refusal or "")
