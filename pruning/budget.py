"""From scores to widths: the channels to keep so that the predicted latency holds a target."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latency.grid import Grid
from latency.space import SearchSpace
from latency.structure import IntArray
from pruning.errors import BudgetError

FloatArray = npt.NDArray[np.float64]
Predict = Callable[[npt.ArrayLike], FloatArray]
"""Latency in ms, [n], of width vectors, [n, n_groups]."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Channels to keep, and the latency predicted for them.

    Attributes:
        kept: ascending kept positions of each group.
        widths: how many those are, [n_groups].
        predicted_ms: predicted latency.
    """

    kept: tuple[IntArray, ...]
    widths: tuple[int, ...]
    predicted_ms: float


def smallest_widths(space: SearchSpace, grid: Grid) -> IntArray:
    """Narrowest widths on the grid that leave a network, [n_groups]."""
    widths = grid.smallest()
    if space.is_alive(widths):
        return space.canonical(widths)
    for group in space.groups:  # bring back groups one by one, later ones first stay removed if they can
        if widths[group.index] == 0:
            widths[group.index] = grid.allowed[group.index][1]
    for group in space.groups:
        narrower = widths.copy()
        narrower[group.index] = grid.allowed[group.index][0]
        if space.is_alive(narrower):
            widths = narrower
    return space.canonical(widths)


def cut_to_target(
    scores: FloatArray, space: SearchSpace, grid: Grid, predict_ms: Predict, target_ms: float
) -> Choice:
    """The best-scored channels whose predicted latency is at most `target_ms`.

    See `cut_with_shift`.

    Raises:
        BudgetError: not even the narrowest network is predicted within the target.
    """
    return cut_with_shift(scores, space, grid, predict_ms, target_ms)[0]


def cut_with_shift(
    scores: FloatArray, space: SearchSpace, grid: Grid, predict_ms: Predict, target_ms: float
) -> tuple[Choice, float]:
    """The best-scored channels whose predicted latency is at most `target_ms`, and the shift that gives them.

    One shift is added to all scores and each group keeps the grid's width nearest to its count of positive
    scores; the largest shift within the target is found by bisection. What the target leaves over is
    then spent step by step on the group whose next channels score best.

    Args:
        scores: how much each slot deserves to stay, [n_slots]; comparable between groups.
        space: the search space.
        grid: allowed widths.
        predict_ms: latency of width vectors.
        target_ms: latency to hold.

    Raises:
        BudgetError: not even the narrowest network is predicted within the target.
    """
    smallest = require_reachable(space, grid, predict_ms, target_ms)
    ranked = [np.sort(scores[g.offset : g.offset + g.n_channels])[::-1] for g in space.groups]
    widths, shift = _bisect_shift(ranked, smallest, space, grid, predict_ms, target_ms)
    widths = spend_rest(widths, ranked, space, grid, predict_ms, target_ms)
    return choose(scores, space, widths, float(predict_ms([widths])[0])), shift


def require_reachable(space: SearchSpace, grid: Grid, predict_ms: Predict, target_ms: float) -> IntArray:
    """The narrowest widths, [n_groups], if they are predicted within the target.

    Raises:
        BudgetError: they are not.
    """
    smallest = smallest_widths(space, grid)
    least_ms = float(predict_ms([smallest])[0])
    if least_ms > target_ms:
        raise BudgetError(
            f"the smallest network of this space is predicted at {least_ms:.4g} ms, above {target_ms:.4g} ms; "
            "ask for at least that, or start from a smaller network."
        )
    return smallest


def choose(scores: FloatArray, space: SearchSpace, widths: IntArray, predicted_ms: float) -> Choice:
    """The best-scored channels at given widths."""
    kept = []
    for group, width in zip(space.groups, widths, strict=True):
        part = scores[group.offset : group.offset + group.n_channels]
        kept.append(np.sort(np.argsort(-part, kind="stable")[:width]))
    return Choice(tuple(kept), tuple(int(width) for width in widths), predicted_ms)


def _bisect_shift(
    ranked: Sequence[FloatArray],
    smallest: IntArray,
    space: SearchSpace,
    grid: Grid,
    predict_ms: Predict,
    target_ms: float,
) -> tuple[IntArray, float]:
    low = -float(max(part[0] for part in ranked)) - 1.0  # everything closed
    high = -float(min(part[-1] for part in ranked)) + 1.0  # everything open
    best, best_shift = smallest, low
    for _ in range(40):  # 2⁻⁴⁰ of the scores' range is below any difference that matters
        shift = (low + high) / 2
        widths = _shifted(ranked, shift, smallest, space, grid)
        if float(predict_ms([widths])[0]) <= target_ms:
            best, best_shift, low = widths, shift, shift
        else:
            high = shift
    return best, best_shift


def _shifted(
    ranked: Sequence[FloatArray], shift: float, smallest: IntArray, space: SearchSpace, grid: Grid
) -> IntArray:
    counts = np.array([int((part + shift > 0).sum()) for part in ranked])
    widths = grid.nearest(counts)
    if not space.is_alive(widths):
        widths = np.maximum(widths, smallest)
    return space.canonical(widths)


def spend_rest(
    widths: IntArray,
    ranked: Sequence[FloatArray],
    space: SearchSpace,
    grid: Grid,
    predict_ms: Predict,
    target_ms: float,
) -> IntArray:
    """Widths with what the target leaves over spent, step by step, on the group whose next channels score best.

    Args:
        widths: where to start, [n_groups], within the target.
        ranked: each group's scores in descending order.
        space: the search space.
        grid: allowed widths.
        predict_ms: latency of width vectors.
        target_ms: latency to hold.
    """
    while True:
        wider = [_one_step_wider(widths, group, space, grid) for group in range(len(space.groups))]
        options = [(g, w) for g, w in enumerate(wider) if w is not None and (w > widths).any()]
        if not options:
            return widths
        latencies_ms = predict_ms([w for _, w in options])
        fitting = [
            (float(ranked[g][widths[g] : w[g]].mean()), -latency_ms, w)
            for (g, w), latency_ms in zip(options, latencies_ms, strict=True)
            if latency_ms <= target_ms
        ]
        if not fitting:
            return widths
        widths = max(fitting, key=lambda option: option[:2])[2]


def _one_step_wider(widths: IntArray, group: int, space: SearchSpace, grid: Grid) -> IntArray | None:
    """Widths with one group at its next allowed width, and with it the groups it cannot be without."""
    above = [width for width in grid.allowed[group] if width > widths[group]]
    if not above:
        return None
    wider = widths.copy()
    wider[group] = above[0]
    for other in space.groups:  # a group that was removed comes back with those that vanish with it
        if wider[other.index] == 0 and group in other.implied_zero:
            wider[other.index] = grid.allowed[other.index][1]
    return space.canonical(wider) if space.is_alive(wider) else None
