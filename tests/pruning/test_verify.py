"""What a measurement is worth in ms of the profiled device; the stage itself is tested through the command line."""

import math

import numpy as np
import pytest

from latency.device import DeviceSettings, fingerprint
from latency.grid import Grid
from latency.measure import PairedMeasurement, Protocol
from latency.profile_rows import ProfileHeader, ProfileRow
from latency.profiles import ProfileSet
from pruning.verify import clocked_ms

EXPONENT = 0.4


def measured(ratio: float, slower: float) -> PairedMeasurement:
    """A network at a ratio of the reference's 2 ms at the clock's pace, on a machine slower by a share."""
    reference_ms = 2.0 * (1 + slower)
    ratios = tuple((ratio * off) ** (1 - EXPONENT * math.log(1 + slower)) for off in (0.99, 1.0, 1.01))
    samples_ms = tuple(one * reference_ms for one in ratios)
    return PairedMeasurement(
        ratio=ratios[1],
        ratio_ci=(ratios[0], ratios[2]),
        candidate_ms=samples_ms[1],
        reference_ms=reference_ms,
        candidate_p90_ms=samples_ms[2],
        reference_p90_ms=reference_ms,
        n_pairs=3,
        n_preempted=0,
        converged=True,
        timed_s=0.0,
        ratios=ratios,
        candidate_samples_ms=samples_ms,
        reference_samples_ms=(reference_ms,) * 4,
    )


@pytest.fixture
def profile() -> ProfileSet:
    """Networks measured twice, on a machine whose pace moves their ratios."""
    rng = np.random.default_rng(0)
    rows = []
    for width, ratio in enumerate(rng.uniform(0.3, 0.9, 40)):
        for pass_index in (0, 1):
            found = measured(float(ratio), float(rng.uniform(-0.1, 0.2)))
            rows.append(
                ProfileRow.measured((width, 1), "train", pass_index, found, build_ms=1.0, measured_at=0.0)
            )
    header = ProfileHeader(
        fingerprint=fingerprint(DeviceSettings()),
        protocol=Protocol(),
        structure_hash="abc",
        group_names=("stem", "inner"),
        full_widths=(64, 32),
        grid=Grid(((16,), (0, 16, 32))),
        seed=7,
    )
    return ProfileSet(header, tuple(rows), fixed_reference_ms=2.0)


@pytest.mark.parametrize("slower", [-0.1, 0.0, 0.3])
def test_a_latency_is_the_same_however_slow_the_machine_is_just_now(
    profile: ProfileSet, slower: float
) -> None:
    found = measured(0.5, slower)

    latency_ms, (low_ms, high_ms) = clocked_ms(profile.clock, found)

    assert abs(found.ratio / 0.5 - 1) > 0.02 or slower == 0.0
    assert latency_ms == pytest.approx(1.0, rel=0.01)
    assert (low_ms, high_ms) == pytest.approx((0.99, 1.01), rel=0.01)
