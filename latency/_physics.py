"""The physics of LPNet: latency as a non-negative weighted sum of features.

With x_i the features and y_i the measured latency of network i, the fit minimises over w, b ≥ 0

    Σ_i v_i ((b + w·x_i) / y_i - 1)²  +  λ (|w - Mθ|² + (b - b₀)²).

Errors are relative, weighted by v_i = h_i / (s_i² + σ²): s_i is the measurement's relative standard error, σ the
model's own error, estimated from cross-validated errors, and h_i ≤ 1 Huber's weight for gross outliers (other
work on the machine).

The ridge draws to a model with a few prices θ ≥ 0 for the whole network (per multiply-accumulate of 3 × 3
convolutions, per activation written …), fitted first to the same networks: M, the `pools`, spreads each price over
the layers by the work they do. A few dozen networks suffice for θ; what single layers cost beyond it is
learned from the more of them the weaker the ridge, and λ is chosen by cross-validation.

Non-negative weights keep the prediction rising with every width, so that an optimiser finds no reward
for widening, and sane where no network was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from latency.structure import IntArray, LayerView

FloatArray = npt.NDArray[np.float64]
Folds = list[tuple[IntArray, IntArray]]

# Standard deviations from which an error counts as an outlier: far enough not to silence the networks that a
# sum describes badly.
_OUTLIER = 4.0
# Median of the square of a standard normal variable.
_MEDIAN_SQUARE = 0.4549
LEAST_ERROR = 2e-3
"""The model's own error is not taken to be below this, relative."""
# Ridge strength of the few shared prices: just enough to tell apart terms that hardly differ.
_POOLED_STRENGTH = 1e-4
# Rounds of estimating σ and h from cross-validated errors, and the ridge strength meanwhile.
_ROUNDS = 2
_TYPICAL_STRENGTH = 1.0


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
        members: coefficients without each of the folds, bias last, [n_folds, n_features + 1].
        out_of_fold_ms: prediction of each sample by the fit to the other folds, [n].
        error_weights: v_i, scaled to mean 1, [n].
        cv_rmse: cross-validated relative error, weighted by `error_weights`; 0.01 is 1 %.
    """

    weight: FloatArray
    bias: float
    strength: float
    members: FloatArray
    out_of_fold_ms: FloatArray
    error_weights: FloatArray
    cv_rmse: float

    def predict_ms(self, features: FloatArray) -> FloatArray:
        """Latency in ms, [n], of features [n, n_features]."""
        total: FloatArray = features @ self.weight + self.bias
        return total


def pools(terms: Sequence[tuple[int, str]], layers: Sequence[LayerView], full_widths: IntArray) -> FloatArray:
    """Which features share a price, and their shares by the work they stand for at full width.

    Args:
        terms: layer index and term of each feature, `latency.encoding.Encoding.feature_terms`.
        layers: the network's layers; a layer index beyond them is the network itself.
        full_widths: [n_groups].

    Returns:
        [n_features, n_pools]; every column sums to 1, every row has one value above 0.
    """
    work = np.zeros(len(terms))
    names = []
    for place, (index, term) in enumerate(terms):
        if index >= len(layers):
            work[place] = 1.0
            names.append(term)
            continue
        layer = layers[index]
        work[place], is_macs = _work(layer, term, full_widths)
        # A 1 × 1 convolution runs through other kernels than a larger one.
        kernel = ("1×1 " if layer.kernel_area == 1 else "k×k ") if is_macs else ""
        names.append(f"{kernel}{layer.kind} {term}")
    columns = {name: column for column, name in enumerate(dict.fromkeys(names))}
    shared = np.zeros((len(terms), len(columns)))
    shared[np.arange(len(terms)), [columns[name] for name in names]] = work
    normalised: FloatArray = shared / shared.sum(axis=0)
    return normalised


def _work(layer: LayerView, term: str, full_widths: IntArray) -> tuple[float, bool]:
    """Work behind a term at full width, and whether it is counted in multiply-accumulates."""
    if term == "presence":
        return 1.0, False
    if term == "input":
        return float(layer.in_positions * layer.in_channels.at(full_widths)), False
    if term == "output":
        return float(layer.out_positions * layer.out_channels.at(full_widths)), False
    return float(layer.macs(full_widths)), True


def fit_physics(samples: Samples, shares: FloatArray, folds: Folds, strengths: Sequence[float]) -> Physics:
    """The sum whose ridge strength has the lowest cross-validated error.

    Args:
        samples: measured networks.
        shares: which features share a price, [n_features, n_pools], see `pools`.
        folds: (rows to fit, rows to predict) for each fold.
        strengths: ridge strengths to choose from.
    """
    error_weights = np.ones(len(samples.latency_ms))
    for _ in range(_ROUNDS):
        members = _members(samples, shares, folds, error_weights, _TYPICAL_STRENGTH)
        predicted_ms = _out_of_fold_ms(samples, folds, members)
        error_weights = _error_weights(predicted_ms / samples.latency_ms - 1.0, samples.stderr)
    ensembles = [_members(samples, shares, folds, error_weights, value) for value in strengths]
    candidates = [_out_of_fold_ms(samples, folds, members) for members in ensembles]
    errors = [relative_rmse(ms, samples.latency_ms, error_weights) for ms in candidates]
    best = int(np.argmin(errors))
    coefficients = _solve(samples, shares, error_weights, strengths[best])
    return Physics(
        weight=coefficients[:-1],
        bias=float(coefficients[-1]),
        strength=strengths[best],
        members=ensembles[best],
        out_of_fold_ms=candidates[best],
        error_weights=error_weights,
        cv_rmse=errors[best],
    )


def relative_rmse(predicted_ms: FloatArray, measured_ms: FloatArray, error_weights: FloatArray) -> float:
    """Root of the weighted mean square of the relative errors."""
    return float(np.sqrt(np.average((predicted_ms / measured_ms - 1.0) ** 2, weights=error_weights)))


def _members(
    samples: Samples, shares: FloatArray, folds: Folds, error_weights: FloatArray, strength: float
) -> FloatArray:
    """Coefficients of the fit without each fold, [n_folds, n_features + 1]."""
    members = []
    for fitted, _ in folds:
        part = Samples(samples.features[fitted], samples.latency_ms[fitted], samples.stderr[fitted])
        members.append(_solve(part, shares, error_weights[fitted], strength))
    return np.array(members)


def _out_of_fold_ms(samples: Samples, folds: Folds, members: FloatArray) -> FloatArray:
    """Prediction of each sample by the fit to the other folds, [n]."""
    predicted = np.empty(len(samples.latency_ms))
    for (_, left_out), member in zip(folds, members, strict=True):
        predicted[left_out] = samples.features[left_out] @ member[:-1] + member[-1]
    return predicted


def _solve(samples: Samples, shares: FloatArray, error_weights: FloatArray, strength: float) -> FloatArray:
    """Weights and, last, the bias, [n_features + 1]."""
    root = np.sqrt(error_weights)
    ones = np.ones((len(root), 1))
    per_ms = (root / samples.latency_ms)[:, None]
    pooled = np.hstack([samples.features @ shares, ones]) * per_ms
    prices = _ridge(pooled, root, np.zeros(pooled.shape[1]), _POOLED_STRENGTH)
    prior = np.append(shares @ prices[:-1], prices[-1])
    return _ridge(np.hstack([samples.features, ones]) * per_ms, root, prior, strength)


def _ridge(rows: FloatArray, targets: FloatArray, prior: FloatArray, strength: float) -> FloatArray:
    """Non-negative coefficients with rows · coefficients ≈ targets, drawn towards the prior, [n_columns]."""
    n_columns = rows.shape[1]
    pull = np.sqrt(strength * float((rows**2).sum()) / n_columns)
    stacked = np.vstack([rows, pull * np.eye(n_columns)])
    coefficients, _ = nnls(stacked, np.concatenate([targets, pull * prior]), maxiter=30 * n_columns)
    return np.asarray(coefficients, dtype=np.float64)


def _error_weights(errors: FloatArray, stderr: FloatArray) -> FloatArray:
    """Inverse variance times Huber's weight of each sample, scaled to mean 1, [n]."""
    known = stderr**2
    own = float(np.median(errors**2)) / _MEDIAN_SQUARE - float(np.median(known))
    variance = known + max(own, LEAST_ERROR**2)
    outlying = np.abs(errors) / np.sqrt(variance)
    weights = np.minimum(1.0, _OUTLIER / np.maximum(outlying, 1e-12)) / variance
    scaled: FloatArray = weights / weights.mean()
    return scaled
