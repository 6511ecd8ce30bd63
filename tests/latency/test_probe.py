import json
import math

import numpy as np
import pytest

from latency.device import DeviceSettings
from latency.errors import DeviceBusyError
from latency.grid import ChannelStep
from latency.measure import Protocol, device_lock
from latency.probe import (
    REFERENCE_WIDTH,
    WIDTHS,
    ProbePoint,
    ProbeResult,
    Staircase,
    cliff_step,
    probe_step,
    staircase_step,
)


def _staircase(block: int, *, cliff: int = 1, overhead: float = 0.1, noise: float = 0.0) -> dict[int, float]:
    """Relative latencies of a device that works on blocks of channels, 1.5 times slower off the cliff's."""
    rng = np.random.default_rng(block)
    cost = {w: math.ceil(w / block) * block * (1.0 if w % cliff == 0 else 1.5) for w in WIDTHS}
    reference = cost[REFERENCE_WIDTH]
    return {
        w: (overhead + (1 - overhead) * c / reference) * (1 + noise * rng.standard_normal())
        for w, c in cost.items()
    }


@pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 32])
def test_the_step_of_a_staircase_is_its_block(block):
    assert staircase_step(_staircase(block)) == block


@pytest.mark.parametrize("block", [4, 8, 16, 32])
def test_noise_of_one_per_cent_does_not_hide_the_step(block):
    assert staircase_step(_staircase(block, noise=0.01)) == block


def test_a_second_coarser_staircase_does_not_hide_the_finer_one():
    fine = _staircase(16)
    both = {width: ratio + 0.2 * math.ceil(width / 64) for width, ratio in fine.items()}
    assert staircase_step(both) == 16


def test_a_cliff_is_told_from_the_stairs():
    assert cliff_step(_staircase(16, cliff=4)) == 4
    assert staircase_step(_staircase(16, cliff=4)) == 16
    assert cliff_step(_staircase(16)) == 1


def test_a_fast_path_without_stairs_makes_its_multiples_the_step():
    assert staircase_step(_staircase(1, cliff=4)) == 4


def _result() -> ProbeResult:
    points = [ProbePoint(width, ratio, 0.004, ratio * 0.5) for width, ratio in _staircase(8).items()]
    return ProbeResult(
        step=ChannelStep(dense=8, depthwise=8),
        staircases=(Staircase.from_points("depthwise", 56, points),),
        seconds=3.0,
    )


def test_a_probe_survives_json_with_all_its_points():
    result = _result()
    restored = ProbeResult.from_json(json.loads(json.dumps(result.to_json())))
    assert restored == result
    assert len(restored.staircases[0].points) == len(WIDTHS)
    assert restored.staircases[0].step == 8


@pytest.fixture
def _own_lock(tmp_path, monkeypatch):
    """A lock of the test's own: whatever else is measured on this machine meanwhile does not matter."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.usefixtures("_own_lock")
def test_this_device_is_probed_in_one_go():
    seen: list[tuple[int, int]] = []
    quick = Protocol(min_pairs=6, max_pairs=6, warmup_runs=2, min_sample_ms=0.01)
    result = probe_step(protocol=quick, progress=lambda done, total: seen.append((done, total)))
    assert [staircase.kind for staircase in result.staircases] == [
        "dense outputs",
        "dense inputs",
        "depthwise",
    ]
    assert seen[-1] == (3 * len(WIDTHS), 3 * len(WIDTHS))
    for staircase in result.staircases:
        assert tuple(point.width for point in staircase.points) == WIDTHS
        assert all(point.ratio > 0 and point.ms > 0 for point in staircase.points)
    # Twice the channels cost clearly more, whatever the device.
    outputs = {point.width: point.ratio for point in result.staircases[0].points}
    assert outputs[128] > 1.3 * outputs[64]
    assert result.step.dense == max(staircase.step for staircase in result.staircases[:2])


@pytest.mark.usefixtures("_own_lock")
def test_probing_waits_for_the_device():
    with (
        device_lock(DeviceSettings()),
        pytest.raises(DeviceBusyError, match=r"Another measurement has held the cpu"),
    ):
        probe_step(lock_wait_s=0.05)
