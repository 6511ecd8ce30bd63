from dataclasses import replace

import pytest

from latency.measure import PairedMeasurement
from pruning.verify import pooled

MEASUREMENT = PairedMeasurement(
    ratio=0.5,
    ratio_ci=(0.49, 0.51),
    candidate_ms=1.0,
    reference_ms=2.0,
    candidate_p90_ms=1.1,
    reference_p90_ms=2.2,
    n_pairs=20,
    n_preempted=1,
    converged=True,
    timed_s=0.06,
    ratios=tuple(0.49 + 0.001 * step for step in range(20)),
    candidate_samples_ms=(1.0,) * 20,
    reference_samples_ms=(2.0,) * 21,
)


def test_sessions_are_pooled_pair_by_pair() -> None:
    result = pooled([MEASUREMENT, MEASUREMENT])

    assert result.n_pairs == 40
    assert result.n_preempted == 2
    assert result.ratio == pytest.approx(0.4995)
    assert len(result.reference_samples_ms) == 42
    assert result.timed_s == pytest.approx(0.12)


def test_the_interval_covers_what_the_sessions_differ_by() -> None:
    slower = replace(MEASUREMENT, ratio=0.56, ratios=tuple(0.55 + 0.001 * step for step in range(20)))

    result = pooled([MEASUREMENT, slower, MEASUREMENT])

    low, high = result.ratio_ci
    assert low <= 0.5
    assert high >= 0.56


def test_one_session_that_did_not_converge_is_not_hidden() -> None:
    assert not pooled([MEASUREMENT, replace(MEASUREMENT, converged=False)]).converged
