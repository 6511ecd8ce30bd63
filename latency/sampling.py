"""Width vectors to profile: on the grid, and spread over what a pruner visits on its way.

A pruner starts at the full network, shrinks all groups more or less together, follows trends along the
depth, removes whole branches, and ends wherever the budget sends it. A predictor trained on independent
random widths alone has seen none of that, since their sums all lie close to one half.
"""

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latency.errors import InputError
from latency.grid import Grid
from latency.structure import ChannelGroup, IntArray

FloatArray = npt.NDArray[np.float64]

# Random vectors in a row that bring nothing new before the space counts as exhausted.
_PATIENCE = 500
# Share of networks with whole branches removed, where the space allows any.
_DEPTH_SHARE = 0.5
# One network in this many may be held out, see `split_widths`.
_HELD_OUT_ONE_IN = 3


class WidthSpace(typing.Protocol):
    """What sampling needs to know of a search space."""

    @property
    def groups(self) -> Sequence[ChannelGroup]:
        """Channel groups in the order of the width vector."""

    @property
    def full_widths(self) -> IntArray:
        """Widths of the unpruned network, [n_groups]."""

    def canonical(self, widths: npt.ArrayLike) -> IntArray:
        """The widths with every group that vanishes with another set to 0."""

    def is_alive(self, widths: npt.ArrayLike) -> bool:
        """Whether the widths leave a network that computes its outputs."""


@dataclass(frozen=True, slots=True)
class SplitWidths:
    """Disjoint lists of width vectors, each [n_groups]."""

    train: tuple[IntArray, ...]
    held_out: tuple[IntArray, ...]


def sample_widths(space: WidthSpace, grid: Grid, n: int, seed: int) -> list[IntArray]:
    """Up to `n` different width vectors, fewer only where the space has no more.

    The full and the smallest network come first. A longer list starts with the shorter one.

    Args:
        space: groups, and which of their widths live.
        grid: allowed widths of every group.
        n: how many vectors.
        seed: seed of the choice.

    Returns:
        Canonical vectors on the grid (0 for groups that vanish with another), [n_groups] each.
    """
    if n < 0:
        raise InputError(f"The number of networks to sample must be at least 0, got {n}.")
    stream = stream_widths(space, grid, seed)
    return [widths for widths, _ in zip(stream, range(n), strict=False)]


def split_widths(space: WidthSpace, grid: Grid, *, n_train: int, n_held_out: int, seed: int) -> SplitWidths:
    """Networks to train on and networks to hold out, from one stream, never overlapping.

    Every vector's place in the stream says to which list it may belong, whatever the numbers asked for, so
    lists grow without a vector ever changing sides. The full and the smallest network are trained on.
    """
    train: list[IntArray] = []
    held_out: list[IntArray] = []
    for place, widths in enumerate(stream_widths(space, grid, seed)):
        if len(train) >= n_train and len(held_out) >= n_held_out:
            break
        chosen, limit = (held_out, n_held_out) if place % _HELD_OUT_ONE_IN == 2 else (train, n_train)
        if len(chosen) < limit:
            chosen.append(widths)
    return SplitWidths(tuple(train), tuple(held_out))


def with_rounds(sampled: SplitWidths, rounds: Sequence[Sequence[tuple[int, ...]]]) -> SplitWidths:
    """Sampled networks with those that active rounds chose to train on, which are then in no other place."""
    further = dict.fromkeys(widths for chosen in rounds for widths in chosen)
    train, held_out = (
        tuple(widths for widths in part if tuple(widths.tolist()) not in further)
        for part in (sampled.train, sampled.held_out)
    )
    return SplitWidths((*train, *(np.array(widths, dtype=np.int64) for widths in further)), held_out)


def stream_widths(space: WidthSpace, grid: Grid, seed: int) -> Iterator[IntArray]:
    """Different width vectors without end, or until nothing new comes up any more."""
    if len(grid.allowed) != len(space.groups):
        raise InputError(f"The grid has {len(grid.allowed)} groups, the space {len(space.groups)}.")
    rng = np.random.default_rng(seed)
    seen: set[tuple[int, ...]] = set()
    misses = 0
    proposals = _proposals(space, grid, rng)
    while misses < _PATIENCE:
        proposed = next(proposals)
        if not space.is_alive(proposed):
            misses += 1
            continue
        widths = space.canonical(proposed)
        key = tuple(widths.tolist())
        misses = misses + 1 if key in seen else 0
        if key not in seen:
            seen.add(key)
            yield widths


def _proposals(space: WidthSpace, grid: Grid, rng: np.random.Generator) -> Iterator[IntArray]:
    allowed = [np.array([w for w in widths if w > 0]) for widths in grid.allowed]
    yield space.full_widths.copy()
    yield np.array([widths[0] for widths in allowed])
    # The ladder of uniform networks, wide to narrow, anchors the range of every group.
    for ratio in (0.75, 0.5, 0.25):
        yield _nearest(space.full_widths * ratio, allowed)
    names, shares = list(_RATIOS), np.array([share for _, share in _RATIOS.values()])
    removable = np.array([group.zero_allowed for group in space.groups], dtype=bool)
    while True:
        make_ratios, _ = _RATIOS[names[rng.choice(len(names), p=shares / shares.sum())]]
        widths = _nearest(space.full_widths * make_ratios(len(allowed), rng), allowed)
        yield np.where(_removed(removable, rng), 0, widths)


def _removed(removable: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which groups to remove, [n_groups]: often none, else each with a probability that varies by network."""
    probability = rng.uniform(0.0, 0.6) if rng.random() < _DEPTH_SHARE else 0.0
    return np.asarray(removable & (rng.random(removable.size) < probability))


def _nearest(widths: npt.NDArray[np.floating], allowed: Sequence[IntArray]) -> IntArray:
    return np.array([a[np.argmin(np.abs(a - w))] for w, a in zip(widths, allowed, strict=True)])


def _near_full(n_groups: int, rng: np.random.Generator) -> FloatArray:
    """Most groups whole, a few narrowed: the first steps of a pruner."""
    narrowed = rng.random(n_groups) < rng.uniform(0.05, 0.5)
    return np.where(narrowed, rng.uniform(0.3, 1.0, n_groups), 1.0)


def _near_uniform(n_groups: int, rng: np.random.Generator) -> FloatArray:
    """One ratio for all groups, with noise."""
    return rng.uniform(0.1, 1.0) + rng.normal(0.0, rng.uniform(0.0, 0.25), n_groups)


def _along_depth(n_groups: int, rng: np.random.Generator) -> FloatArray:
    """A ratio that bends along the depth, with noise: early layers are cheap in channels, dear in pixels."""
    knots = rng.uniform(0.1, 1.0, 3)
    depth = np.linspace(0.0, 2.0, n_groups)
    return np.interp(depth, [0.0, 1.0, 2.0], knots) + rng.normal(0.0, 0.1, n_groups)


def _independent(n_groups: int, rng: np.random.Generator) -> FloatArray:
    """Every group by itself."""
    return rng.uniform(0.0, 1.0, n_groups)


def _extremes(n_groups: int, rng: np.random.Generator) -> FloatArray:
    """Every group whole or as narrow as can be."""
    return (rng.random(n_groups) < rng.uniform(0.1, 0.9)).astype(np.float64)


_RATIOS: Mapping[str, tuple[Callable[[int, np.random.Generator], FloatArray], float]] = {
    "near full": (_near_full, 0.15),
    "near uniform": (_near_uniform, 0.35),
    "along the depth": (_along_depth, 0.2),
    "independent": (_independent, 0.25),
    "extremes": (_extremes, 0.05),
}
"""Ways to draw width ratios, and the share of each."""
