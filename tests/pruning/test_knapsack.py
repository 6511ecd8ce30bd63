"""The knapsack against every combination there is."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from latency.grid import Grid
from latency.space import SearchSpace
from pruning.budget import cut_to_target
from pruning.errors import BudgetError
from pruning.knapsack import best_choices, knapsack_cut

GRID = Grid(((2, 4, 6, 8), (0, 4, 8, 12)))


def predict_ms(widths: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The groups meet in a layer whose time is the product of its widths, as in a real network."""
    stem, inner = np.asarray(widths, dtype=np.float64).T
    return 0.2 + 0.02 * stem + 0.01 * stem * inner


@pytest.mark.parametrize("seed", range(8))
def test_the_best_choice_of_every_item_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=n) for n in (3, 4, 2, 5)]
    costs = [rng.integers(0, 40, size=n).astype(float) for n in (3, 4, 2, 5)]
    fitting = [
        (sum(v[i] for v, i in zip(values, picked, strict=True)), picked)
        for picked in itertools.product(*(range(len(value)) for value in values))
        if sum(c[i] for c, i in zip(costs, picked, strict=True)) <= 50
    ]

    chosen = best_choices(values, costs, 50.0)

    if not fitting:
        assert chosen is None
    else:
        assert tuple(chosen) == max(fitting)[1]


def test_where_nothing_fits_there_is_no_choice() -> None:
    assert best_choices([np.ones(2), np.ones(1)], [np.array([3.0, 4.0]), np.array([8.0])], 10.0) is None


@pytest.mark.parametrize("target_ms", [0.5, 0.7, 0.9, 1.1])
def test_the_cut_is_nearly_worth_as_much_as_the_best_there_is(
    residual_space: SearchSpace, target_ms: float
) -> None:
    scores = np.abs(np.random.default_rng(3).normal(size=20))
    parts = [np.sort(part)[::-1] for part in np.split(scores, [8])]

    def worth(widths: tuple[int, ...]) -> float:
        return sum(float(part[:width].sum()) for part, width in zip(parts, widths, strict=True))

    best = max(
        worth(widths)
        for widths in itertools.product(*GRID.allowed)
        if predict_ms([widths])[0] <= target_ms and residual_space.is_alive(widths)
    )

    choice = knapsack_cut(scores, residual_space, GRID, predict_ms, target_ms)

    assert choice.predicted_ms <= target_ms
    assert GRID.contains(choice.widths)
    assert worth(choice.widths) >= 0.95 * best


def test_a_cheap_channel_stays_where_a_threshold_removes_it(residual_space: SearchSpace) -> None:
    """`stem`'s channels are worth a little more, and cost ten times as much."""
    scores = np.concatenate([np.full(8, 1.1), np.full(12, 1.0)])

    def price_ms(widths: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return np.asarray(widths) @ np.array([0.1, 0.01]) + 0.1

    by_price = knapsack_cut(scores, residual_space, GRID, price_ms, 0.65)
    by_threshold = cut_to_target(scores, residual_space, GRID, price_ms, 0.65)

    assert by_price.widths == (4, 12)
    assert by_threshold.widths[1] <= by_price.widths[1]


def test_a_target_below_the_smallest_network_is_refused(residual_space: SearchSpace) -> None:
    with pytest.raises(BudgetError, match=r"predicted at 0\.24 ms, above 0\.2 ms"):
        knapsack_cut(np.ones(20), residual_space, GRID, predict_ms, 0.2)
