"""How latency ratios move with the machine's pace, learnt from networks that were measured again.

A ratio to a reference cancels what slows every network alike. On a shared machine some of it does not cancel: where
neighbours take the caches and the memory's bandwidth, small networks lose more than large ones, or less. How slow
the machine was shows in the reference's own latency at the time. With q the ratio of a network to the reference and
m = log(reference's latency then / by the device's clock), the simplest law that leaves the reference itself alone is

    log q(m) = (1 - g m) log q(0)

Profiles of MobileNetV2 and ResNet-56 on a busy machine gave g = 0.27 to 0.48. Corrected, two measurements differed by
a third less, and LPNet's error fell with them (2.1 to 1.8 %, 1.1 to 0.8 %); on ResNet-18 at 32 px, whose weights do not
fit the caches, g was not found different from 0.
The form and the estimate are ours. `latency.clock` applies it.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# Fewer say nothing about a slope.
_FEWEST_NETWORKS = 20
_N_FOLDS = 10
# Huber's limit in standard deviations, and rounds of reweighting.
_HUBER, _ROUNDS = 1.5, 20


def pace_exponent(ratios: Sequence[FloatArray], paces: Sequence[FloatArray]) -> float:
    """The exponent g, or 0 where correcting by it does not bring measurements closer by a standard error.

    Args:
        ratios: measured ratios of each network, [n_visits] with two or more visits each.
        paces: m of each measurement, shaped alike.
    """
    if len(ratios) < _FEWEST_NETWORKS:
        return 0.0
    logs = [np.log(visits) for visits in ratios]
    y = np.concatenate([log - log.mean() for log in logs])
    x = np.concatenate([log.mean() * (pace.mean() - pace) for log, pace in zip(logs, paces, strict=True)])
    network = np.repeat(np.arange(len(logs)), [len(log) for log in logs])
    fold = network % _N_FOLDS
    left_over = np.empty_like(y)
    for k in range(_N_FOLDS):
        left_over[fold == k] = y[fold == k] - _slope(x[fold != k], y[fold != k]) * x[fold == k]
    gain = np.bincount(network, np.abs(y) - np.abs(left_over))
    if gain.mean() < gain.std() / np.sqrt(len(gain)):
        return 0.0
    return _slope(x, y)


def _slope(x: FloatArray, y: FloatArray) -> float:
    """Slope of a line through the origin, outliers weighted down (Huber)."""
    weights = np.ones_like(x)
    slope = 0.0
    for _ in range(_ROUNDS):
        slope = float((weights * x * y).sum() / max((weights * x * x).sum(), 1e-30))
        errors = np.abs(y - slope * x)
        weights = np.minimum(1.0, _HUBER * 1.4826 * np.median(errors) / np.maximum(errors, 1e-12))
    return slope
