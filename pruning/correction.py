"""The closed loop: predict, cut, export, measure, correct, until the measured latency meets the budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from latency.profiles import ProfileSet
from pruning.budget import Choice
from pruning.errors import BudgetError

LOWEST_SHARE = 0.97
"""A measured latency below this share of the budget leaves accuracy unused."""

CLOSE = 0.985
"""Share of what is aimed at that is close enough to it, where that itself is hardly above `LOWEST_SHARE`."""

SAFETY = 0.99
"""Share of what is aimed at that is asked of the predictor, whose own error is about 1 %."""

N_SESSIONS = 8
"""Sessions that a certificate's measurement is the median over."""


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


class Attempt(Protocol):
    """A network that was measured."""

    @property
    def measured_ms(self) -> float:
        """Measured latency."""
        ...

    @property
    def high_ms(self) -> float:
        """Upper end of its 95 % confidence interval."""
        ...


AnyAttempt = TypeVar("AnyAttempt", bound=Attempt)


def repeatability(profile: ProfileSet, latency_ms: float) -> float:
    """How far two certificates of a network of about this latency lie apart on the profiled device, relative."""
    return profile.repeatability(latency_ms, N_SESSIONS)


def aim_below_ms(budget_ms: float, apart: float) -> float:
    """Latency to aim at, so that a network certified again is still within the budget, in ms.

    Args:
        budget_ms: latency to meet.
        apart: how far two certificates of one network lie apart on the device, relative; see `repeatability`.
    """
    return budget_ms / (1 + apart)


def enough_ms(budget_ms: float, aim_ms: float) -> float:
    """Measured latency from which on no slower network is looked for, in ms."""
    return min(LOWEST_SHARE * budget_ms, CLOSE * aim_ms)


def is_within(attempt: Attempt, budget_ms: float, aim_ms: float) -> bool:
    """Whether the median is within what is aimed at and the interval within the budget."""
    return attempt.measured_ms <= aim_ms and attempt.high_ms <= budget_ms


def slowest_within(tried: Sequence[AnyAttempt], budget_ms: float, aim_ms: float) -> AnyAttempt | None:
    """The slowest of those that are within; else the fastest, if its median is within the budget by `SAFETY`."""
    within = [attempt for attempt in tried if is_within(attempt, budget_ms, aim_ms)]
    if within:
        return max(within, key=lambda attempt: attempt.measured_ms)
    fastest = min(tried, key=lambda attempt: attempt.measured_ms, default=None)
    return fastest if fastest is not None and fastest.measured_ms <= SAFETY * budget_ms else None


def meet_budget(
    cut: Callable[[float], Choice],
    measure: Callable[[Choice], tuple[float, float]],
    budget_ms: float,
    *,
    aim_ms: float | None = None,
    start_ms: float | None = None,
    max_exports: int = 6,
) -> tuple[MeasuredChoice, tuple[MeasuredChoice, ...]]:
    """The choice with the largest measured latency within the budget, and all that were tried.

    The ratio of measured to predicted latency corrects the target of the next cut, until the measured latency
    lies between `enough_ms` and `aim_ms`, or the grid allows no better.

    Args:
        cut: channels to keep for a predicted latency in ms.
        measure: latency in ms of a choice, exported and run on the device, and its upper limit.
        budget_ms: latency to meet.
        aim_ms: latency to aim at, at most the budget; None is the budget.
        start_ms: predicted latency of the first cut; None is `SAFETY` of `aim_ms`.
        max_exports: measurements at most.

    Which of them is taken `slowest_within` says.

    Raises:
        BudgetError: no choice was measured within the budget.
    """
    aim_ms = budget_ms if aim_ms is None else aim_ms
    tried: list[MeasuredChoice] = []
    target_ms = aim_ms * SAFETY if start_ms is None else start_ms
    for _ in range(max_exports):
        choice = cut(target_ms)
        if any(choice.widths == earlier.choice.widths for earlier in tried):
            break
        tried.append(MeasuredChoice(choice, *measure(choice)))
        within = [is_within(attempt, budget_ms, aim_ms) for attempt in tried]
        if within[-1] and tried[-1].measured_ms >= enough_ms(budget_ms, aim_ms):
            break
        above = [c.choice.predicted_ms for c, inside in zip(tried, within, strict=True) if not inside]
        below = [c.choice.predicted_ms for c, inside in zip(tried, within, strict=True) if inside]
        target_ms = aim_ms * SAFETY * choice.predicted_ms / tried[-1].measured_ms
        if above and below and not min(above) > target_ms > max(below):
            target_ms = (min(above) + max(below)) / 2
    best = slowest_within(tried, budget_ms, aim_ms)
    if best is None:
        raise BudgetError(
            f"{len(tried)} cuts were measured and none is within {budget_ms:.4g} ms; the closest took "
            f"{min(c.measured_ms for c in tried):.4g} ms. Ask for at least that, or profile this device again."
        )
    return best, tuple(tried)
