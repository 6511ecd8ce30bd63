import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from latency.device import DeviceSettings, fingerprint
from latency.errors import ProfileError
from latency.grid import ChannelStep, Grid
from latency.measure import PairedMeasurement, Protocol
from latency.probe import ProbePoint, ProbeResult, Staircase
from latency.profile_rows import ProfileHeader, ProfileRow
from latency.profiles import (
    REFERENCE_ROWS,
    ProfileSet,
    parse_profile,
    read_profile,
)
from latency.visits import LEAST_REPEATABILITY

PROBE = ProbeResult(
    ChannelStep(16, 4), (Staircase("depthwise", 56, (ProbePoint(64, 1.0, 0.01, 0.3),), 4, 4),), 2.5
)
HEADER = ProfileHeader(
    fingerprint=fingerprint(DeviceSettings()),
    protocol=Protocol(),
    structure_hash="abc",
    group_names=("stem", "inner"),
    full_widths=(16, 32),
    grid=Grid(((16,), (0, 16, 32))),
    seed=7,
    probe=PROBE,
)


def _row(widths, ratio=0.5, *, split="train", pass_index=0, reference_ms=2.0, stderr=0.01) -> ProfileRow:
    return ProfileRow(
        widths,
        split,
        pass_index,
        "ok",
        ratio=ratio,
        ratio_stderr=stderr,
        candidate_ms=ratio * reference_ms,
        reference_ms=reference_ms,
        ratios=(ratio,),
    )


def _content(*records) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def test_a_measurement_becomes_a_row():
    found = PairedMeasurement(
        0.5, (0.49, 0.51), 1.0, 2.0, 1.1, 2.1, 3, 4, True, 0.05, (0.49, 0.5, 0.51), (1, 1, 1), (2,) * 4
    )
    row = ProfileRow.measured((16, 32), "train", 0, found, build_ms=3.0, measured_at=5.0)
    assert row.status == "ok"
    assert (row.ratio, row.candidate_p90_ms, row.n_pairs, row.n_preempted, row.converged) == (
        0.5,
        1.1,
        3,
        4,
        True,
    )
    assert row.ratio_stderr == found.ratio_stderr
    assert row.ratios == found.ratios
    assert (row.build_ms, row.measured_at) == (3.0, 5.0)


def test_header_and_rows_survive_the_file(tmp_path):
    rows = (_row((16, 32)), ProfileRow((16, 0), "held_out", 1, "failed", "no memory"))
    path = tmp_path / "profile.jsonl"
    path.write_bytes(_content(HEADER.to_json(), *(row.to_json() for row in rows)))
    read = read_profile(path)
    assert read.header == HEADER
    assert read.rows == rows
    assert read.digest == ProfileSet(HEADER, rows).digest


def test_a_failed_row_keeps_its_error_and_has_no_numbers():
    row = ProfileRow((16, 0), "train", 0, "failed", "no memory")
    assert math.isnan(row.ratio)
    assert "ratio" not in row.to_json()
    profile = ProfileSet(HEADER, (row, _row((16, 32))))
    assert profile.failed_rows == (row,)
    assert profile.arrays("train").widths.tolist() == [[16, 32]]


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf])
def test_a_successful_row_needs_a_latency(ratio):
    with pytest.raises(ProfileError, match="must be above 0"):
        _row((16, 32), ratio)


def test_latencies_are_ratios_times_the_fixed_reference():
    profile = ProfileSet(HEADER, (_row((16, 32), 0.5), _row((16, 16), 0.25)), fixed_reference_ms=8.0)
    arrays = profile.arrays("train")
    assert arrays.widths.tolist() == [[16, 32], [16, 16]]
    assert arrays.latency_ms.tolist() == [4.0, 2.0]
    assert arrays.relative_stderr.tolist() == [0.01, 0.01]
    assert arrays.widths.dtype == np.int64


def test_held_out_latencies_are_means_of_their_passes():
    rows = (
        _row((16, 32), 0.50, split="held_out"),
        _row((16, 16), 0.30, split="held_out"),
        _row((16, 32), 0.54, split="held_out", pass_index=1),
    )
    arrays = ProfileSet(HEADER, rows, fixed_reference_ms=1.0).arrays("held_out")
    assert arrays.latency_ms == pytest.approx([0.52, 0.30])
    assert arrays.relative_stderr == pytest.approx([0.01 / math.sqrt(2), 0.01])


def test_the_noise_floor_is_one_pass_against_the_mean_of_both():
    rows = (
        _row((16, 32), 0.99, split="held_out"),
        _row((16, 32), 1.01, split="held_out", pass_index=1),
        _row((16, 16), 0.5, split="held_out"),
        _row((16, 16), 0.5, split="held_out", pass_index=1),
        _row((16, 0), 0.4, split="held_out"),
    )
    assert ProfileSet(HEADER, rows).noise_floor_mape == pytest.approx(0.005)
    assert ProfileSet(HEADER, rows[:1]).noise_floor_mape is None


def test_repeatability_is_that_of_networks_about_as_fast() -> None:
    def twice(widths: tuple[int, ...], ratio: float, apart: float) -> list[ProfileRow]:
        return [
            _row(widths, ratio * (1 + apart * index), split="held_out", pass_index=index) for index in (0, 1)
        ]

    rows = [*twice((1, 1), 0.2, 0.3), *twice((2, 2), 0.25, 0.3), *twice((7, 7), 0.9, 0.01)]
    rows += twice((8, 8), 1.0, 0.01)
    profile = ProfileSet(HEADER, tuple(rows), fixed_reference_ms=2.0)

    assert profile.repeatability(1.9) == pytest.approx(2.906 * 0.01, rel=0.02)
    assert profile.repeatability(0.45) > 0.5
    assert (
        ProfileSet(HEADER, tuple(rows[:1]), fixed_reference_ms=2.0).repeatability(1.0) == LEAST_REPEATABILITY
    )
    assert ProfileSet(HEADER, tuple(twice((8, 8), 1.0, 0.0))).repeatability(1.0) == LEAST_REPEATABILITY


def test_latencies_are_those_at_the_pace_of_the_clock() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for width in range(40):
        ratio = rng.uniform(0.3, 0.9)
        for pass_index in (0, 1):
            pace = rng.normal(0.0, 0.1)
            slowed = ratio ** (1 - 0.4 * pace) * np.exp(0.001 * rng.standard_normal())
            rows.append(
                _row(
                    (width, 1),
                    slowed,
                    split="held_out",
                    pass_index=pass_index,
                    reference_ms=2.0 * math.exp(pace),
                )
            )
    profile = ProfileSet(HEADER, tuple(rows), fixed_reference_ms=2.0)
    as_measured = np.mean([abs(a.ratio / b.ratio - 1) for a, b in zip(rows[::2], rows[1::2], strict=True)])

    assert profile.pace_exponent == pytest.approx(0.4, abs=0.03)
    assert profile.noise_floor_mape is not None
    assert profile.noise_floor_mape < 0.2 * as_measured
    expected_ms = 2.0 * np.mean(
        [row.ratio ** (1 + 0.4 * math.log(row.reference_ms / 2.0)) for row in rows[:2]]
    )
    assert profile.arrays("held_out").latency_ms[0] == pytest.approx(expected_ms, rel=2e-3)
    assert as_measured > 1.5 * LEAST_REPEATABILITY
    assert profile.repeatability(1.0) == LEAST_REPEATABILITY


def test_standard_errors_are_those_of_whole_visits() -> None:
    rng = np.random.default_rng(0)
    rows = [
        _row((width, 1), 0.5 * math.exp(0.02 * rng.standard_normal()), pass_index=pass_index, stderr=0.001)
        for width in range(200)
        for pass_index in (0, 1)
    ]
    profile = ProfileSet(HEADER, tuple(rows), fixed_reference_ms=2.0)

    assert profile.visit_stderr == pytest.approx(0.02, rel=0.25)
    np.testing.assert_allclose(profile.arrays("train").relative_stderr, profile.visit_stderr / math.sqrt(2))
    assert ProfileSet(HEADER, tuple(rows[:18])).visit_stderr is None


def test_where_pairs_explain_what_visits_differ_by_noise_is_counted_once() -> None:
    """Each visit's own estimate scatters around the truth: the larger of the two would be too much on average."""
    rng = np.random.default_rng(0)
    rows = [
        _row(
            (width, 1),
            0.5 * math.exp(0.02 * rng.standard_normal()),
            pass_index=pass_index,
            stderr=0.02 * rng.uniform(0.6, 1.4),
        )
        for width in range(1, 201)
        for pass_index in (0, 1)
    ]
    stderr = ProfileSet(HEADER, tuple(rows)).arrays("train").relative_stderr
    assert np.sqrt(np.mean(stderr**2)) == pytest.approx(0.02 / math.sqrt(2), rel=0.08)
    assert stderr.max() > 1.1 * np.median(stderr)


def test_a_visit_whose_pairs_scatter_more_is_less_certain() -> None:
    rows = [_row((width, 1), stderr=0.01) for width in range(1, 30)] + [_row((30, 1), stderr=0.03)]
    stderr = ProfileSet(HEADER, tuple(rows)).arrays("train").relative_stderr
    assert stderr[:-1] == pytest.approx(0.01)
    assert stderr[-1] == pytest.approx(math.sqrt((0.03**2 + 0.01**2) / 2))


def test_a_profile_says_what_a_measurement_is_worth() -> None:
    rng = np.random.default_rng(0)
    noise = 0.02 * rng.standard_normal((400, 2))
    rows = [
        _row((width, 1), 0.5 * math.exp(noise[width, pass_index]), pass_index=pass_index)
        for width in range(400)
        for pass_index in (0, 1)
    ]
    profile = ProfileSet(HEADER, tuple(rows), fixed_reference_ms=2.0)

    assert profile.half_width == pytest.approx(1.96 * 0.02 / math.sqrt(2), rel=0.15)
    assert ProfileSet(HEADER, tuple(rows[:18])).half_width is None


def test_of_several_visits_the_median_counts() -> None:
    rows = [_row((8, 8), ratio, pass_index=index) for index, ratio in enumerate((0.5, 0.52, 0.9))]
    assert ProfileSet(HEADER, tuple(rows), fixed_reference_ms=2.0).arrays("train").latency_ms == [1.04]


def test_arrays_of_an_empty_split_have_their_shapes():
    arrays = ProfileSet(HEADER, ()).arrays("train")
    assert arrays.widths.shape == (0, 2)
    assert arrays.latency_ms.shape == (0,)


def test_the_reference_is_the_median_of_the_first_rows_only():
    rows = tuple(_row((16, 32), reference_ms=2.0) for _ in range(REFERENCE_ROWS))
    later = tuple(_row((16, 32), reference_ms=9.0) for _ in range(200))
    assert ProfileSet(HEADER, rows + later).reference_ms == 2.0


def test_without_a_measurement_there_is_no_reference():
    with pytest.raises(ProfileError, match=r"no successful measurement \(1 failed\)"):
        _ = ProfileSet(HEADER, (ProfileRow((16, 0), "train", 0, "failed", "x"),)).reference_ms


def test_a_drift_of_the_reference_is_reported():
    rows = tuple(_row((16, 32), reference_ms=2.0) for _ in range(60))
    slower = tuple(_row((16, 32), reference_ms=2.2) for _ in range(20))
    drift = ProfileSet(HEADER, rows + slower).reference_drift
    assert (drift.low, drift.high, drift.last) == pytest.approx((0.0, 0.1, 0.1))


def test_the_devices_of_a_fleet_are_compared_by_their_reference():
    times_ms = {"b": [2.0, 2.2, 2.1], "a": [4.0, 4.4, 4.2]}
    rows = [
        dataclasses.replace(_row((16, step), reference_ms=ms), device=device)
        for device, all_ms in times_ms.items()
        for step, ms in enumerate(all_ms, start=1 if device == "a" else 9)
    ]
    profile = ProfileSet(HEADER, tuple(rows), fixed_reference_ms=2.0)

    slow, fast = profile.by_device

    assert (slow.device, slow.n_rows, slow.reference_ms) == ("a", 3, 4.2)
    assert slow.offset == pytest.approx(1.1)
    assert slow.spread == pytest.approx((4.36 - 4.04) / 2 / 4.2)
    assert (fast.device, fast.offset) == ("b", pytest.approx(0.05))
    assert ProfileSet(HEADER, (_row((16, 32)),)).by_device == ()


def test_only_rows_of_a_fleet_name_their_device():
    row = _row((16, 32))
    assert "device" not in row.to_json()
    named = dataclasses.replace(row, device="pi-3")
    assert ProfileRow.from_json(named.to_json()) == named


def test_the_digest_depends_on_rows_header_and_clock():
    profile = ProfileSet(HEADER, (_row((16, 32)),), fixed_reference_ms=1.0)
    others = [
        dataclasses.replace(profile, rows=(_row((16, 32), 0.6),)),
        dataclasses.replace(profile, header=dataclasses.replace(HEADER, seed=8)),
        dataclasses.replace(profile, fixed_reference_ms=2.0),
    ]
    assert len({profile.digest, *(other.digest for other in others)}) == 4


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "profile.jsonl"
    path.write_bytes(_content(HEADER.to_json(), _row((16, 32)).to_json()) + b'{"kind": "row", "wid')
    assert len(read_profile(path).rows) == 1


def test_a_missing_file_and_an_empty_one_are_refused(tmp_path):
    with pytest.raises(ProfileError, match=r"There is no profile set .*gone\.jsonl"):
        read_profile(tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(ProfileError, match=r"empty\.jsonl is empty"):
        read_profile(tmp_path / "empty.jsonl")


_GOOD_ROW = _row((16, 32)).to_json()


@pytest.mark.parametrize(
    ("third_line", "reason"),
    [
        (b"\x00\x00\xff", "line 3: "),
        (b"[1, 2]", r"line 3: \[1, 2\] is no JSON object"),
        (json.dumps(_GOOD_ROW | {"widths": [16]}).encode(), "line 3: 1 widths, the header has 2 groups"),
        (json.dumps(_GOOD_ROW | {"split": "exam"}).encode(), "line 3: split 'exam'"),
        (json.dumps(_GOOD_ROW | {"ratio": -1}).encode(), r"line 3: ratio and latencies must be above 0"),
        (json.dumps({"kind": "row"}).encode(), "line 3: KeyError 'widths'"),
        (json.dumps(_GOOD_ROW).encode(), r"line 3: widths \[16, 32\] were there before"),
    ],
)
def test_a_damaged_line_is_named_with_its_number(third_line, reason):
    content = _content(HEADER.to_json(), _GOOD_ROW) + third_line + b"\n"
    with pytest.raises(ProfileError, match=rf"p\.jsonl, {reason}"):
        parse_profile(content, Path("p.jsonl"))


def test_a_file_of_another_kind_or_a_later_version_is_refused():
    with pytest.raises(ProfileError, match="line 1: this is no profile set: kind is 'song'"):
        parse_profile(_content({"kind": "song"}), Path("p.jsonl"))
    with pytest.raises(ProfileError, match="line 1: format version 99 is not known here"):
        parse_profile(_content(HEADER.to_json() | {"version": 99}), Path("p.jsonl"))


def test_a_header_whose_groups_do_not_agree_is_refused():
    with pytest.raises(ProfileError, match=r"group names \(1\) as full widths \(2\)"):
        dataclasses.replace(HEADER, group_names=("stem",))


def test_a_row_of_another_space_is_refused():
    with pytest.raises(ProfileError, match="A row has 3 widths, the profile 2 groups"):
        ProfileSet(HEADER, (_row((1, 2, 3)),))
