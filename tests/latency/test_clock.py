import math

import pytest

from latency.clock import Clock


def test_without_an_exponent_a_ratio_stays_as_it_was_measured() -> None:
    assert Clock(2.0).latency_ms(0.5, reference_ms=2.5) == 1.0


def test_the_reference_itself_is_left_alone() -> None:
    assert Clock(2.0, 0.4).latency_ms(1.0, reference_ms=2.5) == 2.0


def test_what_a_slow_machine_raised_is_brought_back() -> None:
    slow = 2.0 * math.e**0.1

    assert Clock(2.0, 0.4).latency_ms(0.5, reference_ms=slow) == pytest.approx(2.0 * 0.5**1.04)
