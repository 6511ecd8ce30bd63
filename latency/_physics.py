"""The physics of LPNet: latency as a non-negative weighted sum of features, fitted by ridge regression.

Minimises, over w, b ≥ 0, with x the features and y the measured latency of each network,

    Σ_i v_i ((b + w·x_i) / y_i - 1)²  +  λ (|w|² + b²),

relative errors weighted by v_i = h_i / (s_i² + σ²): s_i is the measurement's relative standard error, σ the
model's own error, estimated from cross-validated errors, and h_i ≤ 1 Huber's weight for outliers (a burst of
other work on the machine). Non-negative weights keep the prediction rising with every width, so that an
optimiser finds no reward for widening; they also keep it sane where no network was measured.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from latency.structure import IntArray

FloatArray = npt.NDArray[np.float64]
Folds = list[tuple[IntArray, IntArray]]

# Standard deviations from which an error counts as an outlier; costs about 1 % of efficiency where there are
# none (Huber's estimate for normal errors).
_OUTLIER = 2.0
# Median of the square of a standard normal variable.
_MEDIAN_SQUARE = 0.4549
# The model's own error is not taken to be below this: 0.2 %.
_LEAST_ERROR = 2e-3
# Rounds of estimating σ and h from cross-validated errors.
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Samples:
    """Measured networks.

    Attributes:
        features: [n, n_features].
        latency_ms: measured latency, [n].
        stderr: its relative standard error, [n].
    """

    features: FloatArray
    latency_ms: FloatArray
    stderr: FloatArray


@dataclass(frozen=True, slots=True)
class Physics:
    """A fitted sum.

    Attributes:
        weight: ms of each feature at full width, [n_features], non-negative.
        bias: ms that do not change with the widths, non-negative.
        strength: ridge strength chosen by cross-validation, relative to the mean squared feature.
        out_of_fold_ms: prediction of each sample by the fit to the other folds, [n].
        error_weights: v_i, scaled to mean 1, [n].
        cv_rmse: cross-validated relative error, weighted by `error_weights`; 0.01 is 1 %.
    """

    weight: FloatArray
    bias: float
    strength: float
    out_of_fold_ms: FloatArray
    error_weights: FloatArray
    cv_rmse: float

    def predict_ms(self, features: FloatArray) -> FloatArray:
        """Latency in ms, [n], of features [n, n_features]."""
        total: FloatArray = features @ self.weight + self.bias
        return total


def fit_physics(samples: Samples, folds: Folds, strengths: tuple[float, ...]) -> Physics:
    """The sum whose ridge strength has the lowest cross-validated error.

    Args:
        samples: measured networks.
        folds: (rows to fit, rows to predict) for each fold.
        strengths: ridge strengths to choose from.
    """
    error_weights = np.ones(len(samples.latency_ms))
    for _ in range(_ROUNDS):
        candidates = [out_of_fold_ms(samples, folds, error_weights, strength) for strength in strengths]
        errors = [relative_rmse(ms, samples.latency_ms, error_weights) for ms in candidates]
        best = int(np.argmin(errors))
        last_weights = error_weights
        error_weights = _error_weights(candidates[best] / samples.latency_ms - 1.0, samples.stderr)
    coefficients = _solve(samples, last_weights, strengths[best])
    return Physics(
        weight=coefficients[:-1],
        bias=float(coefficients[-1]),
        strength=strengths[best],
        out_of_fold_ms=candidates[best],
        error_weights=last_weights,
        cv_rmse=errors[best],
    )


def out_of_fold_ms(samples: Samples, folds: Folds, error_weights: FloatArray, strength: float) -> FloatArray:
    """Prediction of each sample by the fit to the other folds, [n]."""
    predicted = np.empty(len(samples.latency_ms))
    for fitted, left_out in folds:
        part = Samples(samples.features[fitted], samples.latency_ms[fitted], samples.stderr[fitted])
        coefficients = _solve(part, error_weights[fitted], strength)
        predicted[left_out] = samples.features[left_out] @ coefficients[:-1] + coefficients[-1]
    return predicted


def relative_rmse(predicted_ms: FloatArray, measured_ms: FloatArray, error_weights: FloatArray) -> float:
    """Root of the weighted mean square of the relative errors."""
    return float(np.sqrt(np.average((predicted_ms / measured_ms - 1.0) ** 2, weights=error_weights)))


def _solve(samples: Samples, error_weights: FloatArray, strength: float) -> FloatArray:
    """Weights and, last, the bias, [n_features + 1]."""
    n, n_features = samples.features.shape
    root = np.sqrt(error_weights)
    rows = np.column_stack([samples.features, np.ones(n)]) / samples.latency_ms[:, None] * root[:, None]
    penalty = strength * float((rows**2).sum()) / (n_features + 1)
    stacked = np.vstack([rows, np.sqrt(penalty) * np.eye(n_features + 1)])
    coefficients, _ = nnls(stacked, np.concatenate([root, np.zeros(n_features + 1)]), maxiter=30 * n_features)
    return np.asarray(coefficients, dtype=np.float64)


def _error_weights(errors: FloatArray, stderr: FloatArray) -> FloatArray:
    """Inverse variance times Huber's weight of each sample, scaled to mean 1, [n]."""
    known = stderr**2
    own = float(np.median(errors**2)) / _MEDIAN_SQUARE - float(np.median(known))
    variance = known + max(own, _LEAST_ERROR**2)
    outlying = np.abs(errors) / np.sqrt(variance)
    weights = np.minimum(1.0, _OUTLIER / np.maximum(outlying, 1e-12)) / variance
    scaled: FloatArray = weights / weights.mean()
    return scaled
