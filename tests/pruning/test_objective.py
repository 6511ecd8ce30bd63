import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from latency.space import SearchSpace
from pruning.budget import Choice, FloatArray
from pruning.errors import SettingError
from pruning.gates import GatedNetwork
from pruning.objective import (
    DECISIONS_PER_EPOCH,
    INERTIA,
    BudgetSchedule,
    HeldBudget,
    LatencyHinge,
    LogLatency,
)
from tests.pruning.test_gates import ANY_WIDTH, FreeGates


def test_the_target_falls_from_the_start_to_the_budget_and_stays() -> None:
    schedule = BudgetSchedule(start_ms=8.0, budget_ms=2.0, anneal=0.5)

    assert [schedule.target_ms(share) for share in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([8, 4, 2, 2])


def test_the_target_ends_at_the_budget_to_the_last_bit() -> None:
    # 49 · (1 / 49) is less than 1.
    assert [BudgetSchedule(49.0, 1.0, anneal=0.3).target_ms(share) for share in (0.3, 0.7, 1.0)] == [1.0] * 3


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(SettingError, match="anneal is a share"):
        BudgetSchedule(8.0, 2.0, anneal=0.0)


def gated_by(scores: list[float], residual_net: nn.Module, residual_space: SearchSpace) -> GatedNetwork:
    return GatedNetwork(residual_net, residual_space, FreeGates(torch.tensor(scores)), ANY_WIDTH)


def of_ones(scores: FloatArray, target_ms: float) -> tuple[Choice, float]:
    """Every channel costs 1 ms: the best within the target."""
    kept = np.sort(np.argsort(-scores, kind="stable")[: int(target_ms)])
    parts = kept[kept < 8], kept[kept >= 8] - 8
    return Choice(parts, tuple(map(len, parts)), float(len(kept))), -float(
        np.sort(scores)[::-1][int(target_ms) - 1]
    )


def held(start_ms: float = 20.0, budget_ms: float = 5.0, anneal: float = 0.5) -> HeldBudget:
    return HeldBudget(
        lambda widths: widths.sum(dim=1), of_ones, BudgetSchedule(start_ms, budget_ms, anneal), epochs=1
    )


def test_the_papers_term_pulls_alike_at_any_time(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    term = LogLatency(lambda widths: widths.sum(dim=1), weight=10.0)
    gated = gated_by([1.0] * 12 + [-1.0] * 8, residual_net, residual_space)
    gated.widths = torch.tensor([2.0, 3.0], requires_grad=True)

    early, late = term(gated, 0.0), term(gated, 1.0)
    late.backward()

    assert early.item() == late.item() == pytest.approx(10 * math.log(6.0))
    assert (gated.widths.grad > 0).all()


def test_a_hinge_pulls_every_width_as_far_as_the_target_is_exceeded(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    prices = torch.tensor([1.0, 3.0])
    hinge = LatencyHinge(lambda widths: widths @ prices, BudgetSchedule(10.0, 5.0), weight=8.0)
    gated = gated_by([1.0] * 20, residual_net, residual_space)

    gated.widths = torch.tensor([2.0, 1.0])
    assert hinge(gated, 1.0).item() == 0.0
    gated.widths = torch.tensor([4.0, 2.0], requires_grad=True)
    hinge(gated, 1.0).backward()

    torch.testing.assert_close(gated.widths.grad, 8 * 2 * math.log(2) * prices / 10.0)


def test_the_open_gates_are_the_best_within_the_target(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    term = held()
    gated = gated_by([20.0 - index for index in range(20)], residual_net, residual_space)
    counts = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        gated.gate_values()
        gated(torch.zeros(1, 3, 8, 8))
        assert term(gated, progress).item() == 0.0
        counts.append(gated.gate_values().sum().item())

    assert counts == [20, 10, 5, 5]
    assert gated.held_open.nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


def test_scores_move_along_the_latency_no_further(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    term = held()
    gated = gated_by([20.0 - index for index in range(20)], residual_net, residual_space)
    scores = gated.gates.values
    gated(torch.zeros(1, 3, 8, 8))
    loss = (gated.scores * torch.linspace(1.0, 3.0, 20)).sum()

    (loss + term(gated, 1.0)).backward()

    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.linspace(1.0, 3.0, 20) - 2.0)  # all cost alike: mean 0


@pytest.mark.parametrize("unit", [1.0, 0.1])
def test_what_is_open_stays_until_another_is_better_by_the_inertia(
    residual_net: nn.Module, residual_space: SearchSpace, unit: float
) -> None:
    term = held(start_ms=5.0)
    gated = gated_by([unit] * 5 + [0.0] * 15, residual_net, residual_space)

    def decide(better: float, progress: float) -> list[int]:
        with torch.no_grad():
            gated.gates.values[19] = unit * better
        gated(torch.zeros(1, 3, 8, 8))
        term(gated, progress)
        return gated.held_open.nonzero().flatten().tolist()

    assert decide(0.0, 0.0) == [0, 1, 2, 3, 4]
    spread = np.std([1.0] * 6 + [0.0] * 14)
    assert decide(1 + 0.8 * INERTIA * spread, 0.5) == [0, 1, 2, 3, 4]
    assert 19 in decide(1 + 1.2 * INERTIA * spread, 0.9)


def test_it_is_decided_anew_now_and_then(residual_net: nn.Module, residual_space: SearchSpace) -> None:
    term = held(start_ms=5.0)
    gated = gated_by([1.0] * 5 + [0.0] * 15, residual_net, residual_space)
    seen = []
    for step in range(100):
        with torch.no_grad():
            gated.gates.values.copy_(torch.randperm(20).float())
        gated(torch.zeros(1, 3, 8, 8))
        term(gated, step / 100)
        seen.append(gated.held_open.clone())

    changes = sum(not torch.equal(before, after) for before, after in pairwise(seen))
    assert 0.8 * DECISIONS_PER_EPOCH <= changes <= DECISIONS_PER_EPOCH
