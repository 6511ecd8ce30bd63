"""Latency terms of a search: what is added to the loss for the predicted latency of the network as it stands."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pruning.errors import SettingError

Price = Callable[[Tensor], Tensor]
"""Differentiable latency in ms, [n], of width vectors, [n, n_groups]."""


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


class LatencyTerm(Protocol):
    """What is added to the loss."""

    @property
    def predict_ms(self) -> Price:
        """The predictor it rests on."""
        ...

    def __call__(self, widths: Tensor, progress: float) -> Tensor:
        """Penalty, [], at group widths, [n_groups], and a share of the search."""
        ...


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

    predict_ms: Price
    schedule: BudgetSchedule
    weight: float = 200.0

    def __call__(self, widths: Tensor, progress: float) -> Tensor:
        """Penalty, [], at group widths, [n_groups], and a share of the search."""
        latency_ms = self.predict_ms(widths.unsqueeze(0))[0]
        target_ms = self.schedule.target_ms(progress)
        return self.weight * torch.relu(torch.log(latency_ms / target_ms)).square()


@dataclass(frozen=True, slots=True)
class LogLatency:
    """α·log(1 + LAT), the term of W-Gates (arXiv 2007.02066): the same pull all the time, towards no target.

    Attributes:
        predict_ms: differentiable latency in ms, [n], of width vectors, [n, n_groups].
        weight: α.
    """

    predict_ms: Price
    weight: float = 10.0

    def __call__(self, widths: Tensor, progress: float) -> Tensor:
        """Penalty, [], at group widths, [n_groups]; the progress does not matter."""
        del progress
        return self.weight * torch.log1p(self.predict_ms(widths.unsqueeze(0))[0])


class AugmentedLagrangian(nn.Module):
    """Holds c = log(latency / target) ≤ 0 by a multiplier μ that rises as long as it does not hold.

    The penalty is (max(0, μ + ρ c)² − μ²) / 2ρ (Rockafellar, for inequalities); after every step in training
    μ becomes max(0, μ + η ρ c). A hinge ends above its target by what the task pulls back; a multiplier does not.
    μ is a buffer, so that it is part of a training's checkpoint.

    Args:
        predict_ms: differentiable latency in ms, [n], of width vectors, [n, n_groups].
        schedule: the target over time.
        weight: ρ.
        rate: η.
    """

    multiplier: Tensor

    def __init__(
        self, predict_ms: Price, schedule: BudgetSchedule, weight: float = 100.0, rate: float = 0.02
    ) -> None:
        super().__init__()
        self._predict, self.schedule, self.weight, self.rate = (predict_ms,), schedule, weight, rate
        self.register_buffer("multiplier", torch.zeros(()))

    @property
    def predict_ms(self) -> Price:
        """The predictor; in a tuple, so that one that is a module does not become part of the state."""
        return self._predict[0]

    def forward(self, widths: Tensor, progress: float) -> Tensor:
        """Penalty, [], at group widths, [n_groups], and a share of the search."""
        latency_ms = self.predict_ms(widths.unsqueeze(0))[0]
        excess = torch.log(latency_ms / self.schedule.target_ms(progress))
        multiplier = self.multiplier.clone()
        if self.training:
            self.multiplier.add_(self.rate * self.weight * excess.detach()).clamp_(min=0.0)
        pull = torch.relu(multiplier + self.weight * excess)
        return (pull.square() - multiplier.square()) / (2 * self.weight)


TERMS: dict[str, Callable[[Price, BudgetSchedule], LatencyTerm]] = {
    "hinge": LatencyHinge,
    "lagrangian": AugmentedLagrangian,
    "log": lambda predict_ms, _: LogLatency(predict_ms),
}
"""Latency terms by name."""
