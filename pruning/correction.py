"""The closed loop: predict, cut, export, measure, correct, until the measured latency meets the budget."""

from collections.abc import Callable
from dataclasses import dataclass

from pruning.budget import Choice
from pruning.errors import BudgetError

LOWEST_SHARE = 0.97
"""A measured latency below this share of the budget leaves accuracy unused."""

SAFETY = 0.99
"""Share of the budget that is aimed at: two measurements of one net differ by up to about 1 %."""


@dataclass(frozen=True, slots=True)
class MeasuredChoice:
    """A choice of channels with its measured latency.

    Attributes:
        choice: the channels.
        measured_ms: measured latency.
        high_ms: upper end of its 95 % confidence interval.
    """

    choice: Choice
    measured_ms: float
    high_ms: float


def meet_budget(
    cut: Callable[[float], Choice],
    measure: Callable[[Choice], tuple[float, float]],
    budget_ms: float,
    max_exports: int = 6,
) -> tuple[MeasuredChoice, tuple[MeasuredChoice, ...]]:
    """The choice with the largest measured latency within the budget, and all that were tried.

    The ratio of measured to predicted latency corrects the target of the next cut, until the measured latency
    lies between `LOWEST_SHARE` of the budget and the budget, or the grid allows no better.

    Args:
        cut: channels to keep for a predicted latency in ms.
        measure: latency in ms of a choice, exported and run on the device, and its upper limit.
        budget_ms: latency to meet.
        max_exports: measurements at most.

    Where no interval lies within the budget the fastest choice is taken, if its median does by `SAFETY`.

    Raises:
        BudgetError: no choice was measured within the budget.
    """
    tried: list[MeasuredChoice] = []
    target_ms = budget_ms * SAFETY
    for _ in range(max_exports):
        choice = cut(target_ms)
        if any(choice.widths == earlier.choice.widths for earlier in tried):
            break
        measured_ms, high_ms = measure(choice)
        tried.append(MeasuredChoice(choice, measured_ms, high_ms))
        if high_ms <= budget_ms and measured_ms >= LOWEST_SHARE * budget_ms:
            break
        target_ms = _next_target(tried, budget_ms)
    within = [candidate for candidate in tried if candidate.high_ms <= budget_ms]
    if not within:
        fastest = min(tried, key=lambda candidate: candidate.measured_ms)
        if fastest.measured_ms > SAFETY * budget_ms:
            raise BudgetError(
                f"{len(tried)} cuts were measured and none is within {budget_ms:.4g} ms; the closest took "
                f"{fastest.measured_ms:.4g} ms. Ask for at least that, or profile this device again."
            )
        within = [fastest]  # a noisy machine, whose intervals are wider than what the budget leaves
    return max(within, key=lambda candidate: candidate.measured_ms), tuple(tried)


def _next_target(tried: list[MeasuredChoice], budget_ms: float) -> float:
    """Predicted latency at which the measured one should be just within the budget."""
    last = tried[-1]
    corrected = budget_ms * SAFETY * last.choice.predicted_ms / last.measured_ms
    above = [c.choice.predicted_ms for c in tried if c.high_ms > budget_ms]
    below = [c.choice.predicted_ms for c in tried if c.high_ms <= budget_ms]
    if above and below and not min(above) > corrected > max(below):
        return (min(above) + max(below)) / 2
    return corrected
