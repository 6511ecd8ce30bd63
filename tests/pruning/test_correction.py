from collections.abc import Callable

import numpy as np
import pytest

from pruning.budget import Choice
from pruning.correction import CLOSE, LOWEST_SHARE, SAFETY, aim_below_ms, meet_budget
from pruning.errors import BudgetError


def cut_in_steps(step_ms: float) -> Callable[[float], Choice]:
    """A space whose predicted latencies are the multiples of `step_ms`."""

    def cut(target_ms: float) -> Choice:
        width = int(np.floor(target_ms / step_ms + 1e-9))
        return Choice((np.arange(width),), (width,), width * step_ms)

    return cut


def device(bias: float, noise: float = 0.002) -> Callable[[Choice], tuple[float, float]]:
    """A device on which everything takes `bias` times as long as predicted."""

    def measure(choice: Choice) -> tuple[float, float]:
        measured_ms = choice.predicted_ms * bias
        return measured_ms, measured_ms * (1 + noise)

    return measure


@pytest.mark.parametrize("bias", [0.8, 0.95, 1.0, 1.07, 1.3])
def test_the_measured_latency_meets_the_budget_whatever_the_predictors_bias(bias: float) -> None:
    best, tried = meet_budget(cut_in_steps(0.01), device(bias), budget_ms=5.0)

    assert LOWEST_SHARE * 5.0 <= best.measured_ms <= best.high_ms <= 5.0
    assert len(tried) <= 3


@pytest.mark.parametrize("bias", [0.8, 1.0, 1.3])
def test_below_a_budget_is_left_what_a_later_measurement_may_differ_by(bias: float) -> None:
    aim_ms = aim_below_ms(5.0, apart=0.1)

    best, _ = meet_budget(cut_in_steps(0.01), device(bias), budget_ms=5.0, aim_ms=aim_ms)

    assert CLOSE * aim_ms <= best.measured_ms <= aim_ms
    assert best.measured_ms * 1.1 <= 5.0


def test_above_the_aim_the_fastest_is_taken_as_long_as_it_is_within_the_budget() -> None:
    def cut(target_ms: float) -> Choice:
        return Choice((np.arange(3),), (3,), 4.9)

    best, tried = meet_budget(cut, device(1.0), budget_ms=5.0, aim_ms=4.5)

    assert best.measured_ms == 4.9
    assert len(tried) == 1


def test_a_coarse_grid_gives_the_largest_latency_it_has_within_the_budget() -> None:
    best, _ = meet_budget(cut_in_steps(1.2), device(1.02), budget_ms=5.0)

    assert best.choice.widths == (4,)


def test_an_optimistic_predictor_on_a_coarse_grid_is_corrected_downwards() -> None:
    best, tried = meet_budget(cut_in_steps(1.0), device(1.2), budget_ms=5.0)

    assert best.choice.widths == (4,)
    assert best.measured_ms == pytest.approx(4.8)
    assert len(tried) <= 3


def test_on_a_noisy_machine_the_fastest_median_is_taken() -> None:
    def measure(choice: Choice) -> tuple[float, float]:
        return choice.predicted_ms, 1.3 * choice.predicted_ms  # an interval wider than what is left

    best, tried = meet_budget(cut_in_steps(0.01), measure, budget_ms=5.0)

    assert best.high_ms > 5.0
    assert best.measured_ms == min(choice.measured_ms for choice in tried) <= SAFETY * 5.0


def test_a_budget_that_no_cut_meets_is_refused() -> None:
    def cut(target_ms: float) -> Choice:
        return Choice((np.arange(3),), (3,), 4.9)

    with pytest.raises(BudgetError, match=r"none is within 5 ms; the closest took 9\.8 ms"):
        meet_budget(cut, device(2.0), budget_ms=5.0)
