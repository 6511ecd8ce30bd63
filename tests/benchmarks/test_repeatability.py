import math

import numpy as np
import pytest
from repeatability import OURS, Visits, compare

from latency.measure import PairedMeasurement


def visits(n_visits: int, *, exponent: float, noise: float, n: int = 200) -> Visits:
    """Measurements on a machine whose pace varies from one to the next, and the ratios with it."""
    rng = np.random.default_rng(0)
    settled = rng.uniform(0.2, 0.9, n)
    rows = []
    for _ in range(2 * n_visits):
        row = []
        for ratio in settled:
            pace = rng.normal(0.0, 0.1)
            measured = float(ratio ** (1 - exponent * pace) * math.exp(noise * rng.standard_normal()))
            reference_ms = 2.0 * math.exp(pace)
            candidate_ms = measured * reference_ms
            samples = (candidate_ms,) * 6
            row.append(
                PairedMeasurement(
                    ratio=measured,
                    ratio_ci=(measured, measured),
                    candidate_ms=candidate_ms,
                    reference_ms=reference_ms,
                    candidate_p90_ms=candidate_ms,
                    reference_p90_ms=reference_ms,
                    n_pairs=6,
                    n_preempted=0,
                    converged=True,
                    timed_s=0.1,
                    ratios=(measured,) * 6,
                    candidate_samples_ms=samples,
                    reference_samples_ms=(reference_ms,) * 7,
                )
            )
        rows.append(row)
    return rows


def test_each_estimators_passes_are_compared() -> None:
    rows = {row["estimator"]: row for row in compare(visits(2, exponent=0.4, noise=0.005))}

    ours, ratio, plain = rows[OURS], rows["interleaved ratio"], rows["plain median"]
    assert ours["median_difference"] == pytest.approx(0.6745 * 0.005, rel=0.2)
    assert ours["median_difference"] < 0.5 * ratio["median_difference"]
    assert ratio["median_difference"] < 0.5 * plain["median_difference"]
    assert 0.9 <= ours["covered"] <= 0.99
    assert ours["visit_stderr"] == pytest.approx(0.005, rel=0.2)
    assert ours["half_width"] == pytest.approx(1.96 * 0.005 / math.sqrt(2), rel=0.3)


def test_visits_narrow_the_difference() -> None:
    two, many = (compare(visits(n, exponent=0.0, noise=0.01))[0] for n in (2, 18))

    assert many["n_visits"] == 18
    assert many["median_difference"] == pytest.approx(two["median_difference"] * 1.2533 / 3, rel=0.25)
    assert many["covered"] >= 0.9
