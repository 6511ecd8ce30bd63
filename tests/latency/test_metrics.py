import numpy as np
import pytest
from scipy.stats import spearmanr

from latency.errors import ProfileError
from latency.metrics import PredictionMetrics, prediction_metrics, spearman


def test_perfect_prediction_has_no_error_and_perfect_ranks() -> None:
    measured = np.array([1.0, 2.0, 4.0])
    metrics = prediction_metrics(measured, measured)
    assert metrics == PredictionMetrics(
        n=3, mape=0.0, rmse=0.0, worst=0.0, bias=0.0, within_5=1.0, within_10=1.0, spearman=pytest.approx(1.0)
    )


def test_errors_are_relative_to_the_measurement() -> None:
    metrics = prediction_metrics(np.array([1.04, 1.84, 3.6]), np.array([1.0, 2.0, 3.0]))
    assert metrics.mape == pytest.approx((0.04 + 0.08 + 0.2) / 3)
    assert metrics.rmse == pytest.approx(np.sqrt((0.04**2 + 0.08**2 + 0.2**2) / 3))
    assert metrics.worst == pytest.approx(0.2)
    assert metrics.bias == pytest.approx((0.04 - 0.08 + 0.2) / 3)
    assert metrics.within_5 == pytest.approx(1 / 3)
    assert metrics.within_10 == pytest.approx(2 / 3)


def test_rank_correlation_agrees_with_scipy_on_ties() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, 40).astype(float)
    b = a + rng.normal(0, 2, 40).round()
    assert spearman(a, b) == pytest.approx(float(spearmanr(a, b).statistic))


def test_rank_correlation_is_zero_where_it_is_undefined() -> None:
    assert spearman(np.array([1.0]), np.array([2.0])) == 0.0
    assert spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])) == 0.0


def test_metrics_survive_json() -> None:
    metrics = prediction_metrics(np.array([1.1, 2.0]), np.array([1.0, 2.0]))
    assert PredictionMetrics.from_json(metrics.to_json()) == metrics


def test_damaged_json_is_refused() -> None:
    with pytest.raises(ProfileError, match="damaged"):
        PredictionMetrics.from_json({"n": 3})


@pytest.mark.parametrize(
    ("predicted", "measured", "match"),
    [
        ([1.0], [1.0, 2.0], r"got shapes \(1,\) and \(2,\)"),
        ([], [], "at least one"),
        ([np.nan], [1.0], "finite"),
        ([1.0], [0.0], "above 0 ms"),
    ],
)
def test_unusable_samples_are_refused(predicted: list[float], measured: list[float], match: str) -> None:
    with pytest.raises(ProfileError, match=match):
        prediction_metrics(np.array(predicted), np.array(measured))
