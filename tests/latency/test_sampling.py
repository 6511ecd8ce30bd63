from dataclasses import dataclass

import numpy as np
import pytest

from latency.errors import InputError
from latency.grid import Grid
from latency.sampling import sample_widths, split_widths
from latency.structure import ChannelGroup

FULL = (32, 64, 64, 128)


@dataclass(frozen=True)
class FakeSpace:
    """Four groups; 1 and 2 may vanish, 2 vanishes with 1, and not both 2 and 3 may be at their narrowest."""

    groups: tuple[ChannelGroup, ...]

    @property
    def full_widths(self):
        return np.array([group.n_channels for group in self.groups])

    def canonical(self, widths):
        vector = np.array(widths)
        if vector[1] == 0:
            vector[2] = 0
        return vector

    def is_alive(self, widths):
        return not (widths[2] == 16 and widths[3] == 16)


def _group(index: int, n_channels: int, *, zero_allowed: bool) -> ChannelGroup:
    return ChannelGroup(index, f"g{index}", n_channels, 0, 1, zero_allowed, (), (), ())


SPACE = FakeSpace(tuple(_group(i, n, zero_allowed=i in (1, 2)) for i, n in enumerate(FULL)))
GRID = Grid(
    tuple(
        (*((0,) if group.zero_allowed else ()), *range(16, group.n_channels + 1, 16))
        for group in SPACE.groups
    )
)


def _keys(vectors) -> list[tuple[int, ...]]:
    return [tuple(vector.tolist()) for vector in vectors]


def test_samples_are_different_canonical_alive_and_on_the_grid():
    sampled = sample_widths(SPACE, GRID, 100, seed=0)
    assert len(sampled) == len(set(_keys(sampled))) == 100
    for widths in sampled:
        assert GRID.contains(widths)
        assert SPACE.is_alive(widths)
        assert widths.tolist() == SPACE.canonical(widths).tolist()


def test_a_longer_list_starts_with_the_shorter_one():
    assert _keys(sample_widths(SPACE, GRID, 120, seed=3))[:50] == _keys(
        sample_widths(SPACE, GRID, 50, seed=3)
    )


def test_the_seed_decides():
    first, again, other = (_keys(sample_widths(SPACE, GRID, 40, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_full_network_comes_first():
    assert _keys(sample_widths(SPACE, GRID, 1, seed=0)) == [FULL]


def test_the_smallest_network_is_among_the_first_where_it_lives():
    grid = Grid(tuple((16, group.n_channels) for group in SPACE.groups))
    alive = FakeSpace(SPACE.groups[:2])
    assert _keys(_sample_first_two(alive, Grid(grid.allowed[:2]), 2)) == [FULL[:2], (16, 16)]


def _sample_first_two(space, grid, n):
    always_alive = type("Space", (), {})()
    always_alive.groups, always_alive.full_widths = space.groups, space.full_widths
    always_alive.canonical, always_alive.is_alive = np.array, lambda widths: True
    return sample_widths(always_alive, grid, n, seed=0)


def test_samples_cover_the_whole_range_near_full_narrow_and_removed():
    shares = np.array(sample_widths(SPACE, GRID, 200, seed=0)) / FULL
    assert (shares.mean(axis=1) > 0.85).sum() >= 10
    assert (shares.mean(axis=1) < 0.4).sum() >= 10
    removed = shares[:, 1] == 0
    assert 0.05 < removed.mean() < 0.5
    # Uniform networks: a pruner that shrinks everything alike passes there.
    assert ((shares.max(axis=1) - shares.min(axis=1)) < 0.26).sum() >= 10


def test_a_small_space_is_exhausted_and_not_searched_for_ever():
    grid = Grid(((32,), (0, 64), (0, 64), (128,)))
    assert sorted(_keys(sample_widths(SPACE, grid, 1000, seed=0))) == [
        (32, 0, 0, 128),
        (32, 64, 0, 128),
        (32, 64, 64, 128),
    ]


def test_training_and_held_out_networks_never_overlap_and_grow_apart():
    small = split_widths(SPACE, GRID, n_train=30, n_held_out=8, seed=0)
    large = split_widths(SPACE, GRID, n_train=60, n_held_out=30, seed=0)
    assert not set(_keys(large.train)) & set(_keys(large.held_out))
    assert _keys(large.train)[:30] == _keys(small.train)
    assert _keys(large.held_out)[:8] == _keys(small.held_out)
    assert FULL in _keys(small.train)


def test_one_split_grows_without_the_other():
    assert split_widths(SPACE, GRID, n_train=5, n_held_out=0, seed=0).held_out == ()
    both = split_widths(SPACE, GRID, n_train=5, n_held_out=9, seed=0)
    assert len(both.held_out) == 9
    assert _keys(both.train) == _keys(split_widths(SPACE, GRID, n_train=5, n_held_out=0, seed=0).train)


def test_a_grid_of_another_space_is_refused():
    with pytest.raises(InputError, match="The grid has 3 groups, the space 4"):
        sample_widths(SPACE, Grid(GRID.allowed[:3]), 1, seed=0)


def test_a_negative_number_is_refused():
    with pytest.raises(InputError, match="at least 0, got -1"):
        sample_widths(SPACE, GRID, -1, seed=0)
