"""From scores to widths as a knapsack: the most worth that the predicted latency allows.

A group kept at width w is worth the sum of its w best scores and costs what the prediction says; one width is
chosen for each group. That is a multiple-choice knapsack, and solved exactly where costs add up. The latency of a
network does not: a layer costs its input channels times its output channels. So the target falls to the budget
in steps, and in each of them the costs are taken anew around the widths of the step before.

The idea is HALP's (Shen et al., "Structural Pruning via Latency-Saliency Knapsack", arXiv 2210.06659); choosing
widths on the grid, prices from a predictor of the whole network, and the steps are our own.
"""

from collections.abc import Sequence

import numpy as np

from latency.grid import Grid
from latency.space import SearchSpace
from latency.structure import IntArray
from pruning.budget import (
    Choice,
    FloatArray,
    Predict,
    choose,
    require_reachable,
    smallest_widths,
    spend_rest,
)

N_STEPS = 12
"""Steps in which the target falls: each asks for a few per cent, within which costs nearly add up."""

_MOST_REPAIRS = 12
_RESOLUTION = 2000


def best_choices(
    values: Sequence[FloatArray], costs: Sequence[FloatArray], capacity: float
) -> list[int] | None:
    """One choice of every item, with the largest total value whose total cost is within the capacity.

    Costs are rounded up to a 2000th of the capacity, within which the choice is optimal.

    Args:
        values: value of each choice, for every item, [n_choices].
        costs: its cost, at least 0.
        capacity: above 0.

    Returns:
        Index of each item's choice; None where nothing fits.
    """
    units = [np.ceil(cost * (_RESOLUTION / capacity) - 1e-9).astype(np.int64) for cost in costs]
    best = np.zeros(_RESOLUTION + 1)
    taken = np.zeros((len(values), _RESOLUTION + 1), dtype=np.int64)
    for item, (value, unit) in enumerate(zip(values, units, strict=True)):
        reached = np.full((len(value), _RESOLUTION + 1), -np.inf)
        for choice, (worth, n_units) in enumerate(zip(value, unit, strict=True)):
            if n_units <= _RESOLUTION:
                reached[choice, n_units:] = best[: _RESOLUTION + 1 - n_units] + worth
        taken[item], best = reached.argmax(axis=0), reached.max(axis=0)
    if best[-1] == -np.inf:
        return None
    chosen, left = [], _RESOLUTION
    for item in reversed(range(len(values))):
        chosen.append(int(taken[item, left]))
        left -= int(units[item][chosen[-1]])
    return chosen[::-1]


def knapsack_cut(
    scores: FloatArray, space: SearchSpace, grid: Grid, predict_ms: Predict, target_ms: float
) -> Choice:
    """The channels of largest total score whose predicted latency is at most `target_ms`; see the module.

    Args:
        scores: what each slot is worth, [n_slots], at least 0; a group's worth is the sum.
        space: the search space.
        grid: allowed widths.
        predict_ms: latency of width vectors.
        target_ms: latency to hold.

    Raises:
        BudgetError: not even the narrowest network is predicted within the target.
    """
    require_reachable(space, grid, predict_ms, target_ms)
    ranked = [np.sort(scores[g.offset : g.offset + g.n_channels])[::-1] for g in space.groups]
    worth = [np.concatenate([[0.0], np.cumsum(part)]) for part in ranked]
    widths = space.full_widths.copy()
    dense_ms = float(predict_ms([widths])[0])
    for step in range(1, N_STEPS + _MOST_REPAIRS + 1):
        wanted_ms = dense_ms * min(1.0, target_ms / dense_ms) ** min(step / N_STEPS, 1.0)
        widths = _best_within(widths, worth, space, grid, predict_ms, wanted_ms)
        if step >= N_STEPS and float(predict_ms([widths])[0]) <= target_ms:
            break
    if float(predict_ms([widths])[0]) > target_ms:
        widths = smallest_widths(space, grid)
    widths = spend_rest(widths, ranked, space, grid, predict_ms, target_ms)
    return choose(scores, space, widths, float(predict_ms([widths])[0]))


def _best_within(
    widths: IntArray,
    worth: Sequence[FloatArray],
    space: SearchSpace,
    grid: Grid,
    predict_ms: Predict,
    target_ms: float,
) -> IntArray:
    """The best widths, none wider than given, within a latency, if the costs of changes add up."""
    options = [_narrower(widths, group.index, space, grid) for group in space.groups]
    flat_ms = predict_ms([vector for vectors in options for vector in vectors])
    now_ms = float(predict_ms([widths])[0])
    ends = np.cumsum([len(vectors) for vectors in options])[:-1]
    costs = [part - part.min() for part in np.split(flat_ms, ends)]
    values = [np.array([_total(vector, worth) for vector in vectors]) for vectors in options]
    least_ms = now_ms - sum(now_ms - float(part.min()) for part in np.split(flat_ms, ends))
    capacity_ms = target_ms - least_ms
    chosen = best_choices(values, costs, capacity_ms) if capacity_ms > 0 else None
    if chosen is None:  # as far as one step goes
        chosen = [int(cost.argmin()) for cost in costs]
    picked = np.array(
        [vectors[i][g] for g, (vectors, i) in enumerate(zip(options, chosen, strict=True))], dtype=np.int64
    )
    if not space.is_alive(picked):
        picked = np.maximum(picked, smallest_widths(space, grid))
    return space.canonical(picked)


def _narrower(widths: IntArray, group: int, space: SearchSpace, grid: Grid) -> list[IntArray]:
    """Width vectors with one group at each allowed width up to its present one, what vanishes with it at 0."""
    vectors = []
    for width in grid.allowed[group]:
        if width <= widths[group]:
            vector = widths.copy()
            vector[group] = width
            if width == widths[group] or space.is_alive(vector):
                vectors.append(space.canonical(vector))
    return vectors


def _total(widths: IntArray, worth: Sequence[FloatArray]) -> float:
    return float(sum(part[width] for part, width in zip(worth, widths, strict=True)))
