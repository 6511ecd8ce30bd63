import math

import pytest
import torch

from pruning.errors import SettingError
from pruning.objective import TERMS, AugmentedLagrangian, BudgetSchedule, LatencyHinge, LogLatency


def test_the_target_falls_from_the_start_to_the_budget_and_stays() -> None:
    schedule = BudgetSchedule(start_ms=8.0, budget_ms=2.0, anneal=0.5)

    assert [schedule.target_ms(share) for share in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([8, 4, 2, 2])


def test_the_pull_vanishes_once_the_target_is_held() -> None:
    hinge = LatencyHinge(lambda widths: widths.sum(dim=1), BudgetSchedule(10.0, 5.0), weight=8.0)

    assert hinge(torch.tensor([2.0, 3.0]), progress=1.0).item() == 0.0
    assert hinge(torch.tensor([4.0, 6.0]), progress=1.0).item() == pytest.approx(8 * 0.693147**2, rel=1e-5)


def test_the_pull_reaches_every_width() -> None:
    prices = torch.tensor([1.0, 3.0])
    hinge = LatencyHinge(lambda widths: widths @ prices, BudgetSchedule(10.0, 5.0), weight=1.0)
    widths = torch.tensor([4.0, 2.0], requires_grad=True)

    hinge(widths, progress=1.0).backward()

    torch.testing.assert_close(widths.grad, 2 * math.log(2) * prices / 10.0)  # d log(latency)² / d width


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(SettingError, match="anneal is a share"):
        BudgetSchedule(8.0, 2.0, anneal=0.0)


def test_the_papers_term_pulls_alike_at_any_time() -> None:
    term = LogLatency(lambda widths: widths.sum(dim=1), weight=10.0)

    assert term(torch.tensor([2.0, 3.0]), 0.0).item() == pytest.approx(10 * math.log(6.0))
    assert term(torch.tensor([2.0, 3.0]), 1.0).item() == pytest.approx(10 * math.log(6.0))


def test_a_multiplier_rises_until_the_budget_holds() -> None:
    """Minimises (w − 10)² · 0.01 under w ≤ 5: a hinge stays above 5, a multiplier does not."""

    def solve(term) -> float:
        width = torch.tensor([10.0], requires_grad=True)
        optimiser = torch.optim.SGD([width], lr=0.5)
        for _ in range(400):
            optimiser.zero_grad()
            (0.01 * (width[0] - 10) ** 2 + term(width, 1.0)).backward()
            optimiser.step()
        return width.item()

    schedule = BudgetSchedule(10.0, 5.0)
    by_hinge = solve(LatencyHinge(lambda widths: widths.sum(dim=1), schedule, weight=2.0))
    by_multiplier = solve(
        AugmentedLagrangian(lambda widths: widths.sum(dim=1), schedule, weight=2.0, rate=0.1)
    )

    assert by_hinge > 5.2
    assert by_multiplier == pytest.approx(5.0, abs=0.02)


def test_a_multiplier_is_kept_with_the_network_and_only_moves_in_training() -> None:
    term = AugmentedLagrangian(lambda widths: widths.sum(dim=1), BudgetSchedule(10.0, 5.0))

    term.eval()(torch.tensor([8.0]), 1.0)
    assert term.multiplier.item() == 0.0
    term.train()(torch.tensor([8.0]), 1.0)

    assert term.state_dict()["multiplier"].item() > 0


@pytest.mark.parametrize("name", sorted(TERMS))
def test_every_term_asks_for_less_where_the_budget_is_exceeded(name: str) -> None:
    term = TERMS[name](lambda widths: widths.sum(dim=1), BudgetSchedule(10.0, 5.0))
    widths = torch.tensor([8.0, 4.0], requires_grad=True)

    term(widths, 1.0).backward()

    assert (widths.grad > 0).all()
    assert term.predict_ms(torch.tensor([[1.0, 2.0]])).item() == 3.0
