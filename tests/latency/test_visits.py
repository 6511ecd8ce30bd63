"""What visits say of a measurement's worth, on noise that is known."""

import math

import numpy as np
import pytest

from latency.visits import LEAST_REPEATABILITY, half_width, repeatability, visit_stderr


def test_a_mood_that_lasts_makes_averages_less_certain() -> None:
    rng = np.random.default_rng(0)
    alone = 0.01 * rng.standard_normal((400, 8))
    moods = np.repeat(0.01 * rng.standard_normal((400, 2)), 4, axis=1)

    assert visit_stderr(list(alone)) == pytest.approx(0.01, rel=0.2)
    assert visit_stderr(list(alone + moods)) == pytest.approx(0.01 * math.sqrt(1 + 4), rel=0.25)


@pytest.mark.parametrize("n_visits", [1, 2, 8])
@pytest.mark.parametrize("heavy_tails", [False, True])
def test_half_widths_cover_also_where_there_are_outliers(n_visits: int, heavy_tails: bool) -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        visits = rng.standard_t(3, (40, 16)) if heavy_tails else rng.standard_normal((40, 16))
        known, first, again = visits[:20, :8], visits[20:, :n_visits], visits[20:, 8 : 8 + n_visits]
        apart = np.abs(np.median(first, axis=1) - np.median(again, axis=1))
        half = half_width(list(known[:, : max(2, n_visits)]), n_visits)
        covered.append(np.mean(apart <= math.sqrt(2) * half))

    assert 0.92 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize(("mood_lasts", "expected"), [(1, 0.42), (40, 1.0)])
def test_several_visits_repeat_better_unless_they_share_a_mood(mood_lasts: int, expected: float) -> None:
    """The median of eight independent visits scatters by 0.42 of one (√(π / 16) of many), within a mood as one does."""
    rng = np.random.default_rng(0)
    visits = list(np.repeat(0.02 * rng.standard_normal((40_000 // mood_lasts, 2)), mood_lasts, axis=0))

    single, eight = (repeatability(visits, n_visits) for n_visits in (1, 8))

    assert single == pytest.approx(1.96 * 0.02 * math.sqrt(2), rel=0.1)
    assert eight / single == pytest.approx(expected, rel=0.1)


def test_of_a_few_networks_several_visits_count_as_one() -> None:
    visits = list(0.02 * np.random.default_rng(0).standard_normal((31, 2)))

    assert repeatability(visits, 8) == repeatability(visits, 1) > LEAST_REPEATABILITY


def test_no_device_repeats_better_than_memory_lets_it() -> None:
    assert repeatability([np.zeros(2)] * 40, 8) == LEAST_REPEATABILITY
