import dataclasses

import pytest
from fleet import compare, figures

from latency.device import DeviceSettings, fingerprint
from latency.grid import Grid
from latency.measure import Protocol
from latency.profile_rows import ProfileHeader, ProfileRow
from latency.profiles import ProfileSet

HEADER = ProfileHeader(
    fingerprint(DeviceSettings()), Protocol(), "hash", ("stem",), (16,), Grid((tuple(range(1, 17)),)), seed=0
)


def _profile(n_rows: int, per_second: float, ratio_factor: float, reference_ms: float) -> ProfileSet:
    row = ProfileRow((1,), "train", 0, "ok", ratio=1, candidate_ms=1, reference_ms=reference_ms, n_pairs=20)
    rows = [
        dataclasses.replace(
            row,
            widths=(index + 1,),
            ratio=(index + 1) * ratio_factor,
            measured_at=index / per_second,
            device=f"core {index % 2}",
        )
        for index in range(n_rows)
    ]
    return ProfileSet(HEADER, tuple(rows), fixed_reference_ms=reference_ms)


def test_speed_interference_and_shift_are_told_apart() -> None:
    one = [_profile(9, 2.0, 1.0, 5.0), _profile(9, 2.0, 1.01, 5.0)]
    two = [_profile(9, 3.8, 1.02, 5.5), _profile(9, 3.8, 1.02, 5.5)]
    rows = [figures(found, 10.0, 1) for found in one] + [figures(found, 6.0, 2) for found in two]

    summary = compare(rows, {1: one, 2: two})

    assert rows[0]["rows_per_second"] == pytest.approx(2.0)
    assert [device["n_rows"] for device in rows[0]["devices"]] == [5, 4]
    assert summary["speedup"] == pytest.approx(1.9)
    assert summary["speedup_with_start"] == pytest.approx(10 / 6)
    assert summary["reference_slowdown"] == pytest.approx(0.1)
    assert summary["ratio_shift"] == pytest.approx((0.02 + 0.02 / 2.02) / 2, abs=2e-4)
    assert summary["ratio_difference_one_worker_again"] == pytest.approx(0.01)
