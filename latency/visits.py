"""How far visits to one network lie apart, and what a measurement of several visits is worth.

A visit is a measurement with a session of its own. Visits that follow each other share the mood of a machine, so all of
this rests on networks that were visited again minutes later.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

LEAST_REPEATABILITY = 0.01
"""Where a session's memory lies moves a network's latency by about this share, however quiet the device."""

# Median of |x|, x standard normal.
_MEDIAN_OF_NORMAL = 0.6745
# Medians over networks visited one after the other that it takes to say how far such medians lie apart.
_FEWEST_MEDIANS = 4


def visit_stderr(log_ms: Sequence[FloatArray]) -> float:
    """Standard error of one visit to a network, from how far its earlier and later visits lie apart.

    Visits that follow each other may share the machine's mood. What the means of the earlier n₁ and the later n₂ of a
    network's visits differ by, over √(1/n₁ + 1/n₂), is the standard error of one; where a mood lasts, it is larger than
    what neighbouring visits show, as averages over several then are less certain. The median over all networks counts,
    which outliers do not move.

    Args:
        log_ms: logarithms of each network's latencies in order of time, two or more each.
    """
    return float(np.median(_visits_apart(log_ms))) / _MEDIAN_OF_NORMAL


def half_width(log_ms: Sequence[FloatArray], n_visits: int) -> float:
    """Half of the 95 % interval of the middle of so many visits to a network, from other networks' visits.

    The median of three visits and more is as certain as the bulk of the visits says (√(π / 2n) of `visit_stderr`):
    outliers do not move it. The mean of one or two they do move, so there what 95 % of the visits lie apart by counts
    as it is, with the rank that covers 95 % of further ones whatever the distribution (as in split conformal
    prediction: Lei et al., Distribution-free predictive inference for regression, 2018; its use here is ours).

    Args:
        log_ms: as for `visit_stderr`.
        n_visits: how many visits.
    """
    if n_visits >= 3:
        return 1.96 * math.sqrt(math.pi / 2 / n_visits) * visit_stderr(log_ms)
    apart = np.sort(_visits_apart(log_ms))
    rank = min(len(apart), math.ceil(0.95 * (len(apart) + 1)))
    return float(apart[rank - 1]) / math.sqrt(n_visits)


def repeatability(log_ms: Sequence[FloatArray], n_visits: int) -> float:
    """How far two measurements of a network, minutes apart, differ, relative; 95 % are closer, if they are normal.

    1.96 / 0.6745 times the median difference of the first two visits to a network, and `LEAST_REPEATABILITY` at least.
    A median over several visits is off by more than their number lets expect, since they share a mood: by how much
    is told by what the median over as many *networks* as followed each other in time differs by between their
    first visits and their second (ours). Of fewer than `_FEWEST_MEDIANS` such medians a single visit counts.

    Args:
        log_ms: logarithms of each network's latencies in order of time, two or more each; the networks in the order of
            their first visits.
        n_visits: visits that each of the two measurements is the median of.
    """
    apart = np.array([visits[0] - visits[1] for visits in log_ms])
    size = n_visits if len(apart) >= _FEWEST_MEDIANS * n_visits else 1
    medians = np.median(np.lib.stride_tricks.sliding_window_view(apart, size), axis=1)
    return max(LEAST_REPEATABILITY, float(1.96 / _MEDIAN_OF_NORMAL * np.median(np.abs(medians))))


def _visits_apart(log_ms: Sequence[FloatArray]) -> FloatArray:
    """How far each network's earlier and later visits lie apart, as a standard error of one visit."""
    apart = []
    for visits in log_ms:
        early, late = visits[: len(visits) // 2], visits[len(visits) // 2 :]
        per_visit = math.sqrt(1 / len(early) + 1 / len(late))
        apart.append(abs(float(np.mean(early) - np.mean(late))) / per_visit)
    return np.array(apart)
