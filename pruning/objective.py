"""Latency terms of a search: how the predicted latency of the network as it stands enters its training."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pruning.budget import Choice, FloatArray
from pruning.distributed import from_first
from pruning.errors import SettingError
from pruning.gates import GatedNetwork

TERMS = ("hold", "log")
"""Latency terms by name: `HeldBudget`, `LogLatency`."""

DECISIONS_PER_EPOCH = 20
"""How often in an epoch it is decided anew which gates are open (ours)."""

INERTIA = 0.2
"""By how much an open gate's score may fall below a closed one's before they change places, in standard deviations of
all scores (ours)."""

_ROUNDING = 1e-6
_LEAST_NORM = 1e-12

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
    anneal: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.anneal <= 1:
            raise SettingError(f"anneal is a share of the search in (0, 1]; got {self.anneal}.")

    def target_ms(self, progress: float) -> float:
        """Target in ms at a share of the search, in [0, 1]."""
        share = progress / self.anneal
        if share >= 1:
            return self.budget_ms
        start = max(self.start_ms, self.budget_ms)
        return float(start * (self.budget_ms / start) ** share)


class LatencyTerm(Protocol):
    """How the latency of a gated network's open gates enters its training."""

    @property
    def predict_ms(self) -> Price:
        """The predictor it rests on."""
        ...

    def __call__(self, gated: GatedNetwork, progress: float) -> Tensor:
        """What is added to the loss, [], after a forward pass at a share of the search."""
        ...


class HeldBudget:
    """The open gates are those of the cut itself, at a target that falls to where it ends, decided anew now and then.

    α·log(1 + LAT), the paper's term, holds no budget, and neither does a penalty on the excess: gates that the loss
    pulls open stay behind the target and rush past it later, blocks at a time, when little training is left. Here
    the best scores within the target are open, by the same rule that cuts at the end (`pruning.budget`), and what
    is trained in between is what would be cut. The loss's gradient on the scores loses its part along the
    latency's, so that, to first order, scores move at the same latency: those rise that bring the loss down by
    more than what else their milliseconds could. That is the multiplier which holds the budget, solved for in
    each step (gradient projection: Rosen, Journal of SIAM 8(1), 1960; its use here is ours).

    Decided in every step, blocks at the threshold come and go (2.3 changes a step were seen), and the network adapts
    to none of them. So it is decided now and then, and what is open needs a lower score to stay than to come back.

    Args:
        predict_ms: differentiable latency in ms, [n], of width vectors, [n, n_groups].
        cut: from scores, [n_slots], and a target in ms to the channels to keep and the shift that gives them, see
            `pruning.budget.cut_with_shift`.
        schedule: the target over time.
        epochs: epochs of the search.
    """

    def __init__(
        self,
        predict_ms: Price,
        cut: Callable[[FloatArray, float], tuple[Choice, float]],
        schedule: BudgetSchedule,
        epochs: int,
    ) -> None:
        self.predict_ms = predict_ms
        self.schedule = schedule
        self._cut, self._n_decisions = cut, epochs * DECISIONS_PER_EPOCH
        self._decision: int | None = None

    def __call__(self, gated: GatedNetwork, progress: float) -> Tensor:
        """Nothing, []; takes the latency's part from the scores' gradient, and decides anew when it is time."""
        price = self.predict_ms(gated.widths.cpu().unsqueeze(0)).sum()
        (pull,) = torch.autograd.grad(price, gated.scores, retain_graph=True)
        gated.scores.register_hook(partial(_without, direction=pull))  # type: ignore[no-untyped-call]
        # A resumed search decides at the start of its epoch, so an uninterrupted one has to as well.
        decision = math.floor(progress * self._n_decisions + _ROUNDING)
        if decision != self._decision:
            kept, shift = from_first(partial(self._decide, gated, self.schedule.target_ms(progress)))
            gated.hold([np.array(positions, dtype=np.int64) for positions in kept], shift)
            self._decision = decision
        return torch.zeros(())

    def _decide(self, gated: GatedNetwork, target_ms: float) -> tuple[list[list[int]], float]:
        """Positions of the gates to be open and the shift; the first process's, whose scores no rounding sets apart."""
        choice, shift = self._cut(settled_scores(gated).numpy(), target_ms)
        return [positions.tolist() for positions in choice.kept], shift


@dataclass(frozen=True, slots=True)
class LatencyHinge:
    """`weight · max(0, log(latency / target))²`: a pull in proportion to the excess, for gates that are no binary ones.

    The logarithm makes the pull the same at any scale of milliseconds (ours).

    Attributes:
        predict_ms: differentiable latency in ms, [n], of width vectors, [n, n_groups].
        schedule: the target over time.
        weight: strength of the pull; at 200 an excess of 2 % pulls with a slope of 8.
    """

    predict_ms: Price
    schedule: BudgetSchedule
    weight: float = 200.0

    def __call__(self, gated: GatedNetwork, progress: float) -> Tensor:
        """Penalty, [], after a forward pass at a share of the search."""
        latency_ms = self.predict_ms(gated.widths.cpu().unsqueeze(0))[0]
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

    def __call__(self, gated: GatedNetwork, progress: float) -> Tensor:
        """Penalty, []; the progress does not matter."""
        del progress
        return self.weight * torch.log1p(self.predict_ms(gated.widths.cpu().unsqueeze(0))[0])


def settled_scores(gated: GatedNetwork) -> Tensor:
    """Scores at the last forward pass, [n_slots], float64, on the CPU; `INERTIA` more of gates that are held open."""
    scores = gated.scores.detach().double()
    return (scores + INERTIA * scores.std(correction=0) * (gated.is_held & gated.held_open)).cpu()


def _without(gradient: Tensor, direction: Tensor) -> Tensor:
    """The gradient without its part along a direction."""
    along = (gradient * direction).sum() / direction.square().sum().clamp(min=_LEAST_NORM)
    return gradient - along * direction
