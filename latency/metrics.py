"""How well predicted latencies agree with measured ones."""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from latency.errors import ProfileError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PredictionMetrics:
    """Agreement of predicted with measured latencies on one set of networks.

    Attributes:
        n: number of networks.
        mape: mean absolute error relative to the measured latency, 0.01 is 1 %.
        rmse: root mean square of the same relative errors.
        worst: largest absolute relative error.
        bias: mean relative error, positive where the prediction is too slow.
        within_5: share of networks predicted within ±5 % of the measured latency, in [0, 1].
        within_10: share within ±10 %, in [0, 1].
        spearman: rank correlation of predicted and measured latencies, in [-1, 1]; 0 where it is undefined
            (fewer than two networks, or all predictions equal).
    """

    n: int
    mape: float
    rmse: float
    worst: float
    bias: float
    within_5: float
    within_10: float
    spearman: float

    def to_json(self) -> dict[str, float]:
        """The metrics as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, float]) -> "PredictionMetrics":
        """Metrics written by `to_json`.

        Raises:
            ProfileError: a field is missing, unknown or no number.
        """
        try:
            shares = {name: float(value) for name, value in values.items() if name != "n"}
            return cls(int(values["n"]), **shares)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ProfileError(f"Prediction metrics are damaged ({error}): got {values!r}") from error


def prediction_metrics(predicted_ms: FloatArray, measured_ms: FloatArray) -> PredictionMetrics:
    """Agreement of predictions with measurements.

    Args:
        predicted_ms: predicted latency in ms, [n].
        measured_ms: measured latency in ms, [n], all above 0.

    Raises:
        ProfileError: no networks, lengths that differ, or values that are not finite and positive.
    """
    predicted = np.asarray(predicted_ms, dtype=np.float64)
    measured = np.asarray(measured_ms, dtype=np.float64)
    if predicted.ndim != 1 or predicted.shape != measured.shape or predicted.size == 0:
        raise ProfileError(
            "Metrics need as many predictions as measurements, at least one: "
            f"got shapes {predicted.shape} and {measured.shape}"
        )
    if not (np.isfinite(predicted).all() and np.isfinite(measured).all() and (measured > 0).all()):
        raise ProfileError("Metrics need finite predictions and measured latencies above 0 ms")
    error = predicted / measured - 1.0
    return PredictionMetrics(
        n=int(error.size),
        mape=float(np.abs(error).mean()),
        rmse=float(np.sqrt((error**2).mean())),
        worst=float(np.abs(error).max()),
        bias=float(error.mean()),
        within_5=float((np.abs(error) <= 0.05).mean()),
        within_10=float((np.abs(error) <= 0.10).mean()),
        spearman=spearman(predicted, measured),
    )


def spearman(a: FloatArray, b: FloatArray) -> float:
    """Rank correlation of two samples, [n] each, ties sharing their mean rank; 0 where it is undefined."""
    if a.size < 2:
        return 0.0
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    spread = float(ranks_a.std() * ranks_b.std())
    if spread == 0.0:
        return 0.0
    return float(((ranks_a - ranks_a.mean()) * (ranks_b - ranks_b.mean())).mean() / spread)


def _ranks(values: FloatArray) -> FloatArray:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: FloatArray = last - (counts - 1) / 2
    return mean_rank[index]
