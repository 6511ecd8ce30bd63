"""The latency term of the search: holds the predicted latency at a target that tightens over time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.errors import SettingError


@dataclass(frozen=True, slots=True)
class BudgetSchedule:
    """Target latency during the search: falls from `start_ms` to `budget_ms`, then stays.

    The logarithm of the target falls linearly, so that each step asks for the same relative saving.

    Attributes:
        start_ms: predicted latency of the unpruned network.
        budget_ms: predicted latency to end at.
        anneal: share of the search after which the target is the budget, in (0, 1].
    """

    start_ms: float
    budget_ms: float
    anneal: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.anneal <= 1:
            raise SettingError(f"anneal is a share of the search in (0, 1]; got {self.anneal}.")

    def target_ms(self, progress: float) -> float:
        """Target in ms at a share of the search, in [0, 1]."""
        share = min(progress / self.anneal, 1.0)
        start = max(self.start_ms, self.budget_ms)
        return float(start * (self.budget_ms / start) ** share)


@dataclass(frozen=True, slots=True)
class LatencyHinge:
    """`weight · max(0, log(latency / target))²`: a pull in proportion to the excess, none below the target.

    The paper's α·log(1 + LAT) holds no target, so that α must be searched for each budget; the hinge is ours.
    The logarithm makes the pull the same at any scale of milliseconds. The square keeps the gates from rushing
    past the target: a hinge of constant slope closes hundreds of gates at once when the groups of a deep
    network reach the threshold together.

    Attributes:
        predict_ms: differentiable latency in ms, [n], of width vectors, [n, n_groups].
        schedule: the target over time.
        weight: strength of the pull; at 200 an excess of 2 % pulls with a slope of 8.
    """

    predict_ms: Callable[[Tensor], Tensor]
    schedule: BudgetSchedule
    weight: float = 200.0

    def __call__(self, widths: Tensor, progress: float) -> Tensor:
        """Penalty, [], at group widths, [n_groups], and a share of the search."""
        latency_ms = self.predict_ms(widths.unsqueeze(0))[0]
        target_ms = self.schedule.target_ms(progress)
        return self.weight * torch.relu(torch.log(latency_ms / target_ms)).square()
