"""The widths that are worth having on a device: multiples of its kernels' channel step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latency.channels import ChannelStructure
from latency.errors import ProfileError, WidthError
from latency.structure import ChannelGroup, IntArray


@dataclass(frozen=True, slots=True)
class ChannelStep:
    """Step of a device's latency staircase, in channels, as found by measuring.

    Attributes:
        dense: step in the channels of dense convolutions.
        depthwise: step in the channels of depthwise convolutions.
    """

    dense: int
    depthwise: int

    def __post_init__(self) -> None:
        if self.dense < 1 or self.depthwise < 1:
            raise WidthError(
                f"channel steps are positive, not dense={self.dense}, depthwise={self.depthwise}."
            )


@dataclass(frozen=True, slots=True)
class Grid:
    """Allowed widths of every group.

    Attributes:
        allowed: per group, ascending allowed widths: 0 where the group may vanish, multiples of the step,
            and the full width.
    """

    allowed: tuple[tuple[int, ...], ...]

    @classmethod
    def from_step(cls, structure: ChannelStructure, step: ChannelStep) -> "Grid":
        """Grid of a network on a device with the given step.

        A group's step is the smallest number of slots whose channels are a multiple of the device's step
        in every layer that they widen, so that a tensor made of several groups is on the grid too.
        """
        steps = _slot_steps(structure, step)
        return cls(tuple(_widths(group, slots) for group, slots in zip(structure.groups, steps, strict=True)))

    def snap_down(self, widths: npt.ArrayLike) -> IntArray:
        """Largest allowed widths that do not exceed `widths`, [n_groups]; the smallest where none is below."""
        pairs = zip(self._vector(widths), self.allowed, strict=True)
        return np.array([max([a for a in allowed if a <= w], default=allowed[0]) for w, allowed in pairs])

    def nearest(self, widths: npt.ArrayLike) -> IntArray:
        """Allowed widths nearest to `widths`, [n_groups]; the larger of two equally near."""
        pairs = zip(self._vector(widths), self.allowed, strict=True)
        return np.array([min(allowed, key=lambda a: (abs(a - w), -a)) for w, allowed in pairs])

    def contains(self, widths: npt.ArrayLike) -> bool:
        """Whether every width is allowed."""
        pairs = zip(self._vector(widths), self.allowed, strict=True)
        return all(w in allowed for w, allowed in pairs)

    def smallest(self) -> IntArray:
        """Smallest allowed width of every group, [n_groups]."""
        return np.array([allowed[0] for allowed in self.allowed], dtype=np.int64)

    def to_json(self) -> list[list[int]]:
        """The allowed widths as nested lists."""
        return [list(allowed) for allowed in self.allowed]

    @classmethod
    def from_json(cls, value: Sequence[Sequence[int]]) -> "Grid":
        """Grid from `to_json`'s nested lists.

        Raises:
            ProfileError: the lists are not ascending widths.
        """
        allowed = tuple(tuple(int(width) for width in widths) for widths in value)
        if not all(widths and list(widths) == sorted(set(widths)) for widths in allowed):
            raise ProfileError(f"a grid holds ascending widths for every group, not {value!r}.")
        return cls(allowed)

    def _vector(self, widths: npt.ArrayLike) -> npt.NDArray[Any]:
        vector = np.asarray(widths)
        if vector.shape != (len(self.allowed),):
            raise WidthError(f"expected {len(self.allowed)} widths, one for each group; got {vector.shape}.")
        return vector


def _slot_steps(structure: ChannelStructure, step: ChannelStep) -> list[int]:
    """Step of each group in slots."""
    steps = [1] * len(structure.groups)
    for layer in structure.layers:
        wanted = step.depthwise if layer.kind == "depthwise" else step.dense
        for side in (layer.out_channels, layer.in_channels) if layer.kind != "linear" else ():
            for group, per_slot in side.terms:
                steps[group] = math.lcm(steps[group], wanted // math.gcd(wanted, per_slot))
    return steps


def _widths(group: ChannelGroup, step: int) -> tuple[int, ...]:
    nonzero = [*range(step, group.n_channels, step), group.n_channels]
    return (0, *nonzero) if group.zero_allowed else tuple(nonzero)


def steps_by_group(grid: Grid, groups: Sequence[ChannelGroup]) -> Mapping[str, tuple[int, ...]]:
    """Allowed widths by group name, for people and files."""
    return {group.name: allowed for group, allowed in zip(groups, grid.allowed, strict=True)}
