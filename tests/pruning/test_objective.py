import math

import pytest
import torch

from pruning.errors import SettingError
from pruning.objective import BudgetSchedule, LatencyHinge


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
