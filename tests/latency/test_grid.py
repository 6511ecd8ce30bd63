import pytest

from latency.errors import ProfileError, WidthError
from latency.grid import ChannelStep, Grid, steps_by_group
from latency.space import SearchSpace
from tests.nets import NETS


def grid(name: str, dense: int, depthwise: int) -> Grid:
    return Grid.from_step(SearchSpace.from_model(NETS[name]().model).structure, ChannelStep(dense, depthwise))


def test_widths_are_multiples_of_the_step_and_the_full_width() -> None:
    assert grid("chain", 4, 4).allowed == ((4, 8), (4, 8, 12))
    assert grid("chain", 5, 5).allowed == ((5, 8), (5, 10, 12))


def test_zero_is_allowed_where_the_group_may_vanish() -> None:
    assert grid("residual", 4, 4).allowed == ((4, 8), (0, 4, 6))


def test_a_group_with_depthwise_layers_is_on_both_grids() -> None:
    assert grid("depthwise", 2, 3).allowed[1] == (0, 6, 12)


def test_slots_of_several_channels_reach_the_step_sooner() -> None:
    assert grid("grouped_whole", 4, 4).allowed == ((2, 4),)


def test_a_step_wider_than_the_group_leaves_the_full_width() -> None:
    assert grid("chain", 16, 16).allowed == ((8,), (12,))


def test_snap_down_never_exceeds_the_widths() -> None:
    found = grid("residual", 4, 4)
    assert found.snap_down([7, 5.9]).tolist() == [4, 4]
    assert found.snap_down([8, 3]).tolist() == [8, 0]
    assert found.snap_down([1, 0]).tolist() == [4, 0]


def test_nearest_takes_the_larger_of_two_equally_near() -> None:
    assert grid("residual", 4, 4).nearest([6, 2]).tolist() == [8, 4]


def test_contains_knows_its_widths() -> None:
    found = grid("residual", 4, 4)
    assert found.contains([4, 0])
    assert not found.contains([6, 4])


def test_a_grid_survives_json() -> None:
    found = grid("residual", 4, 4)
    assert Grid.from_json(found.to_json()) == found


@pytest.mark.parametrize("value", [[[4, 2]], [[]], [[2, 2]]])
def test_json_that_is_no_grid_is_refused(value: list[list[int]]) -> None:
    with pytest.raises(ProfileError, match="ascending widths"):
        Grid.from_json(value)


def test_a_wrong_number_of_widths_is_refused() -> None:
    with pytest.raises(WidthError, match=r"expected 2 widths, one for each group; got \(3,\)"):
        grid("residual", 4, 4).contains([4, 4, 4])


def test_a_step_below_one_is_refused() -> None:
    with pytest.raises(WidthError, match="positive, not dense=0, depthwise=8"):
        ChannelStep(0, 8)


def test_allowed_widths_are_listed_by_group_name() -> None:
    space = SearchSpace.from_model(NETS["residual"]().model)
    found = Grid.from_step(space.structure, ChannelStep(4, 4))
    assert steps_by_group(found, space.groups) == {"stem": (4, 8), "a": (0, 4, 6)}
