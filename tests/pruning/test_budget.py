import numpy as np
import numpy.typing as npt
import pytest

from latency.grid import Grid
from latency.space import SearchSpace
from pruning.budget import cut_to_target, smallest_widths
from pruning.errors import BudgetError

GRID = Grid(((2, 4, 6, 8), (0, 4, 8, 12)))
PRICES_MS = np.array([0.1, 0.05])
"""Latency of one channel of each group; the rest of the network costs 0.2 ms."""


def predict_ms(widths: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.asarray(widths) @ PRICES_MS + 0.2


def test_the_prediction_holds_the_target(residual_space: SearchSpace) -> None:
    scores = np.random.default_rng(0).normal(size=20)

    for target_ms in (0.4, 0.7, 0.9, 1.2, 1.6):
        choice = cut_to_target(scores, residual_space, GRID, predict_ms, target_ms)

        assert choice.predicted_ms <= target_ms
        assert GRID.contains(choice.widths)
        np.testing.assert_allclose(choice.predicted_ms, predict_ms([choice.widths])[0])


def test_nothing_that_still_fits_is_left_out(residual_space: SearchSpace) -> None:
    scores = np.random.default_rng(1).normal(size=20)

    choice = cut_to_target(scores, residual_space, GRID, predict_ms, 1.0)

    for group in range(2):
        wider = [width for width in GRID.allowed[group] if width > choice.widths[group]]
        if wider:
            widths = list(choice.widths)
            widths[group] = wider[0]
            assert predict_ms([widths])[0] > 1.0


def test_the_best_channels_of_a_group_stay(residual_space: SearchSpace) -> None:
    scores = np.concatenate([np.arange(8.0), np.arange(12.0)[::-1]])

    choice = cut_to_target(scores, residual_space, GRID, predict_ms, 0.8)

    stem, inner = choice.kept
    assert stem.tolist() == list(range(8))[8 - len(stem) :]
    assert inner.tolist() == list(range(len(inner)))


def test_groups_whose_channels_score_low_are_cut_first(residual_space: SearchSpace) -> None:
    stem_matters = np.concatenate([np.full(8, 3.0), np.full(12, -3.0)])
    inner_matters = -stem_matters

    first = cut_to_target(stem_matters, residual_space, GRID, predict_ms, 1.0)
    second = cut_to_target(inner_matters, residual_space, GRID, predict_ms, 1.0)

    assert first.widths == (8, 0)
    assert second.widths == (2, 12)


def test_a_target_below_the_smallest_network_is_refused(residual_space: SearchSpace) -> None:
    with pytest.raises(BudgetError, match=r"predicted at 0\.4 ms, above 0\.3 ms"):
        cut_to_target(np.zeros(20), residual_space, GRID, predict_ms, 0.3)


def test_the_smallest_network_has_no_removable_branch(residual_space: SearchSpace) -> None:
    assert smallest_widths(residual_space, GRID).tolist() == [2, 0]
