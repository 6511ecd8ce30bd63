import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from latency.device import DeviceSettings
from latency.errors import InputError, MeasurementError, ProfileError
from latency.grid import ChannelStep, Grid
from latency.measure import PairedMeasurement, Protocol
from latency.number_formats import metadata_of
from latency.probe import ProbeResult
from latency.profile_rows import ProfileHeader, ProfileRow
from latency.profiles import read_profile
from latency.profiling import (
    ProfilePlan,
    measuring_order,
    passes_needed,
    profile,
    within_time,
)
from latency.sampling import SplitWidths
from latency.worker import CandidateResult

# Groups of the network: the residual stream (8 channels) and a removable branch (12).
GRID = Grid((tuple(range(1, 9)), tuple(range(13))))
QUICK = Protocol(min_pairs=6, max_pairs=6, warmup_runs=2, min_sample_ms=0.01)
PLAN = ProfilePlan(n_candidates=9, n_held_out=3, protocol=QUICK, grid=GRID)


@pytest.fixture(autouse=True)
def _own_lock(tmp_path, monkeypatch):
    """A lock of the test's own: whatever else is measured on this machine meanwhile does not matter."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def space_path(residual_space, tmp_path) -> Path:
    path = tmp_path / "base.onnx"
    onnx.save(residual_space.model, path)
    return path


class FakeWorker:
    """Measures at once: the ratio is the share of channels. Widths with an odd stem fail, if asked to."""

    n_measured = 0
    n_probed = 0
    failing = staticmethod(lambda widths: False)

    def __init__(self, setup) -> None:
        self.setup = setup

    def __enter__(self):
        return self

    def __exit__(self, *details) -> None:
        pass

    def probe(self) -> ProbeResult:
        type(self).n_probed += 1
        return ProbeResult(ChannelStep(4, 4), (), 1.0)

    def measure(self, widths) -> CandidateResult:
        type(self).n_measured += 1
        if self.failing(widths):
            return CandidateResult(None, "no memory")
        ratio = sum(widths) / 20
        return CandidateResult(
            PairedMeasurement(
                ratio,
                (ratio, ratio),
                ratio * 2,
                2.0,
                ratio * 2,
                2.0,
                6,
                0,
                True,
                0.02,
                (ratio,) * 6,
                (1.0,) * 6,
                (2.0,) * 7,
            )
        )


class Sink:
    """Keeps what it is given; Ctrl-C comes after so many rows, if at all."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.headers: list[ProfileHeader] = []
        self.rows: list[ProfileRow] = []

    def start(self, header: ProfileHeader, rows: Sequence[ProfileRow]) -> None:
        self.headers.append(header)
        self.rows.extend(rows)

    def append(self, row: ProfileRow) -> None:
        self.rows.append(row)
        if len(self.rows) == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture
def fake_worker(monkeypatch) -> type[FakeWorker]:
    worker = type("Worker", (FakeWorker,), {})
    monkeypatch.setattr("latency.bench.Worker", worker)
    return worker


def _profile(space_path: Path, out: Path, plan: ProfilePlan = PLAN, **options):
    return profile(space_path, out, plan=plan, show_progress=False, **options)


def test_candidates_are_measured_in_the_number_format_of_the_settings(space_path, tmp_path):
    plan = ProfilePlan(2, 0, passes=1, protocol=QUICK, grid=GRID)
    fp32 = _profile(space_path, tmp_path / "fp32.jsonl", plan)
    int8 = _profile(space_path, tmp_path / "int8.jsonl", plan, settings=DeviceSettings(precision="int8"))
    assert not int8.failed_rows
    assert [row.widths for row in int8.rows] == [row.widths for row in fp32.rows]
    assert int8.header.settings.precision == "int8"
    assert int8.header.structure_hash == fp32.header.structure_hash
    assert metadata_of(space_path.with_name("base.int8.onnx"))["trimms.precision"] == "int8"


def test_candidates_are_measured_for_real(space_path, tmp_path):
    found = _profile(space_path, tmp_path / "p.jsonl", ProfilePlan(4, 2, protocol=QUICK, grid=GRID))
    assert len(found.rows) == 2 * (4 + 2)
    assert not found.failed_rows
    assert found.rows[0].widths == (8, 12)
    assert found.reference_ms > 0
    assert found.noise_floor_mape is not None
    assert (found.arrays("train").latency_ms > 0).all()
    assert read_profile(tmp_path / "p.jsonl").digest == found.digest


def test_the_same_command_again_measures_nothing(space_path, tmp_path, fake_worker):
    first = _profile(space_path, tmp_path / "p.jsonl")
    content = (tmp_path / "p.jsonl").read_bytes()
    n_measured = fake_worker.n_measured
    again = _profile(space_path, tmp_path / "p.jsonl")
    assert again.digest == first.digest
    assert fake_worker.n_measured == n_measured == 2 * (9 + 3)
    assert (tmp_path / "p.jsonl").read_bytes() == content


def test_larger_numbers_measure_what_is_missing_and_leave_the_clock_alone(space_path, tmp_path, fake_worker):
    first = _profile(space_path, tmp_path / "p.jsonl")
    larger = ProfilePlan(n_candidates=20, n_held_out=5, protocol=QUICK, grid=GRID)
    second = _profile(space_path, tmp_path / "p.jsonl", larger)
    assert second.rows[: len(first.rows)] == first.rows
    assert len(second.arrays("train").widths) == 20
    assert len(second.arrays("held_out").widths) == 5
    assert second.reference_ms == first.reference_ms
    assert len(second.rows) == len({row.key for row in second.rows}) == 2 * (20 + 5)


def test_every_pass_comes_after_the_one_before() -> None:
    chosen = SplitWidths(train=(np.array([1, 1]),), held_out=(np.array([2, 2]), np.array([3, 3])))

    passes = [pass_index for _, _, pass_index in measuring_order(chosen, 4)]

    assert passes == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    with pytest.raises(InputError, match="measured at least once, got 0 passes"):
        ProfilePlan(passes=0)


def test_a_profile_for_some_minutes_ends_in_time_with_second_measurements_of_all_it_began() -> None:
    chosen = SplitWidths(
        train=tuple(np.array([n, 1]) for n in range(40)), held_out=tuple(np.array([n, 2]) for n in range(20))
    )
    keys = list(measuring_order(chosen))
    clock = iter(range(0, 10_000, 2))  # every network takes 2 s

    done = list(within_time(keys, (), seconds=60, now=lambda: next(clock)))

    assert 28 <= len(done) <= 32
    first = {widths for widths, _, pass_index in done if pass_index == 0}
    again = {widths for widths, _, pass_index in done if pass_index == 1}
    assert first == again != set()
    assert len(done) == len(set(done))


def test_second_measurements_of_an_earlier_call_are_owed_too() -> None:
    keys = [((n, 1), "train", 0) for n in range(50)] + [((n, 2), "held_out", 1) for n in range(10)]
    measured = [((n, 2), "held_out", 0) for n in range(10)]
    clock = iter(range(0, 10_000, 2))

    done = list(within_time(keys, measured, seconds=60, now=lambda: next(clock)))

    assert done[-10:] == keys[-10:]
    assert 28 <= len(done) <= 32


def test_minutes_are_more_than_none() -> None:
    with pytest.raises(InputError, match="takes more than 0 minutes, got -1"):
        ProfilePlan(minutes=-1)
    with pytest.raises(InputError, match="either minutes or a precision"):
        ProfilePlan(minutes=3, precision=0.01)


def test_a_precision_is_reached_by_visiting_all_again(space_path, tmp_path, fake_worker, monkeypatch):
    rng = np.random.default_rng(0)
    measure = FakeWorker.measure

    def noisy(worker, widths):
        found = measure(worker, widths).measurement
        return CandidateResult(replace(found, ratio=found.ratio * math.exp(0.01 * rng.standard_normal())))

    monkeypatch.setattr(FakeWorker, "measure", noisy)
    plan = replace(PLAN, n_candidates=20, n_held_out=6, precision=0.01)

    found = _profile(space_path, tmp_path / "p.jsonl", plan)

    n_passes = passes_needed(found.visit_stderr, 0.01)
    assert 3 <= n_passes <= 12  # about 6, from an estimate of the noise
    assert len(found.rows) == 26 * n_passes
    again = _profile(space_path, tmp_path / "p.jsonl", plan)
    assert again.rows == found.rows


def test_how_often_a_precision_takes() -> None:
    assert passes_needed(0.001, 0.01) == 1
    assert passes_needed(0.01, 0.01) == 7  # (1.96 · 1.2533)²
    assert passes_needed(0.5, 0.001) == 50
    with pytest.raises(InputError, match=r"a share above 0, such as 0.005; got -0.1"):
        ProfilePlan(precision=-0.1)


def test_the_device_is_probed_once_and_the_step_makes_the_grid(space_path, tmp_path, fake_worker):
    plan = ProfilePlan(n_candidates=2, n_held_out=1, protocol=QUICK)
    found = _profile(space_path, tmp_path / "p.jsonl", plan)
    assert found.header.grid.allowed == ((4, 8), (0, 4, 8, 12))
    assert found.header.probe is not None
    assert found.header.probe.step == ChannelStep(4, 4)
    _profile(space_path, tmp_path / "p.jsonl", plan)
    assert fake_worker.n_probed == 1


def test_a_space_smaller_than_asked_for_is_measured_as_far_as_it_goes(space_path, tmp_path, fake_worker):
    plan = ProfilePlan(n_candidates=50, n_held_out=50, protocol=QUICK, grid=Grid(((8,), (0, 6, 12))))
    found = _profile(space_path, tmp_path / "p.jsonl", plan)
    assert sorted({row.widths for row in found.rows}) == [(8, 0), (8, 6), (8, 12)]


def test_failures_are_rows_and_are_not_measured_again(space_path, tmp_path, fake_worker):
    fake_worker.failing = staticmethod(lambda widths: widths[0] % 2 == 1)
    found = _profile(space_path, tmp_path / "p.jsonl")
    assert found.failed_rows
    assert {row.error for row in found.failed_rows} == {"no memory"}
    assert len(found.rows) == 2 * (9 + 3)
    n_measured = fake_worker.n_measured
    _profile(space_path, tmp_path / "p.jsonl")
    assert fake_worker.n_measured == n_measured


def test_ten_failures_in_a_row_end_it(space_path, tmp_path, fake_worker):
    fake_worker.failing = staticmethod(lambda widths: True)
    with pytest.raises(MeasurementError, match=r"10 candidates in a row failed.*with: no memory"):
        _profile(space_path, tmp_path / "p.jsonl")
    assert len(read_profile(tmp_path / "p.jsonl").rows) == 10


def test_an_interrupted_profile_keeps_its_rows_and_goes_on(space_path, tmp_path, fake_worker):
    stopping = Sink(stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        _profile(space_path, tmp_path / "p.jsonl", sinks=[stopping])
    assert read_profile(tmp_path / "p.jsonl").rows == tuple(stopping.rows)
    found = _profile(space_path, tmp_path / "p.jsonl")
    assert found.rows[:5] == tuple(stopping.rows)
    assert len(found.rows) == 2 * (9 + 3)
    assert fake_worker.n_measured == 2 * (9 + 3)


def test_a_further_sink_gets_every_row_and_those_of_earlier_calls_too(space_path, tmp_path, fake_worker):
    first = _profile(space_path, tmp_path / "p.jsonl", ProfilePlan(4, 1, protocol=QUICK, grid=GRID))
    sink = Sink()
    found = _profile(space_path, tmp_path / "p.jsonl", sinks=[sink])
    assert sink.headers == [found.header]
    assert tuple(sink.rows) == found.rows
    assert len(found.rows) > len(first.rows)


def test_another_seed_does_not_continue_the_profile(space_path, tmp_path, fake_worker):
    _profile(space_path, tmp_path / "p.jsonl")
    with pytest.raises(ProfileError, match="begun with another seed: 0 there, 1 here"):
        _profile(space_path, tmp_path / "p.jsonl", ProfilePlan(9, 3, seed=1, protocol=QUICK, grid=GRID))


def test_a_plan_without_candidates_is_refused():
    with pytest.raises(InputError, match="at least 1 candidate and 0 held-out ones, got 0 and 5"):
        ProfilePlan(n_candidates=0, n_held_out=5)


def test_the_bar_on_stderr_shows_what_is_left(space_path, tmp_path, fake_worker, capsys):
    profile(space_path, tmp_path / "p.jsonl", plan=PLAN)
    captured = capsys.readouterr()
    assert "24/24" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(("n_train", "n_held_out"), [(9, 3), (2, 5), (7, 0), (10, 3)])
def test_first_passes_are_mixed_and_second_passes_come_last(n_train, n_held_out):
    vectors = [np.array([i]) for i in range(n_train + n_held_out)]
    order = list(measuring_order(SplitWidths(tuple(vectors[:n_train]), tuple(vectors[n_train:]))))
    assert len(order) == len(set(order)) == 2 * (n_train + n_held_out)
    first, second = order[: n_train + n_held_out], order[n_train + n_held_out :]
    assert [split for _, split, _ in first].count("train") == n_train
    assert second == [(widths, split, 1) for widths, split, _ in first]


_PROFILE_100 = """
import signal
import sys
from pathlib import Path
from latency.grid import Grid
from latency.measure import Protocol
from latency.profiling import ProfilePlan, profile
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
slow = Protocol(min_pairs=6, max_pairs=6, warmup_runs=2, min_sample_ms=2.0)
grid = Grid((tuple(range(1, 9)), tuple(range(13))))
profile(Path(sys.argv[1]), Path(sys.argv[2]), plan=ProfilePlan(40, 10, protocol=slow, grid=grid))
"""
# So long that a signal arrives before the 100 measurements are over.
SLOW = Protocol(min_pairs=6, max_pairs=6, warmup_runs=2, min_sample_ms=2.0)


def _children(process_id: int) -> list[int]:
    return [
        int(child) for child in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the measuring process in /proc")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_killed_profile_goes_on_where_it_was_without_a_row_lost_or_doubled(space_path, tmp_path, sent):
    out = tmp_path / "p.jsonl"
    command = [sys.executable, "-c", _PROFILE_100, str(space_path), str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as profiler:
        deadline = time.monotonic() + 60
        while not out.exists() or out.read_bytes().count(b"\n") < 12:
            assert profiler.poll() is None, "the profile ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        children = _children(profiler.pid)
        # Ctrl-C reaches the whole process group of the terminal, the measuring process included.
        os.kill(profiler.pid, sent) if sent == signal.SIGKILL else os.killpg(profiler.pid, sent)
    before = read_profile(out)
    assert 11 <= len(before.rows) < 100
    for child in children:
        while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
            assert time.monotonic() < deadline, "the measuring process outlived the profile"
            time.sleep(0.02)

    found = _profile(space_path, out, ProfilePlan(40, 10, protocol=SLOW, grid=GRID))
    assert found.rows[: len(before.rows)] == before.rows
    keys = [row.key for row in found.rows]
    assert len(keys) == len(set(keys)) == 2 * (40 + 10)
    assert not found.failed_rows


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_twenty_kills_at_random_moments_lose_and_double_nothing(space_path, tmp_path):
    out = tmp_path / "p.jsonl"
    slower = replace(SLOW, min_sample_ms=10.0)  # so that the last kill finds it at work, too
    script = _PROFILE_100.replace("min_sample_ms=2.0", "min_sample_ms=10.0")
    command = [sys.executable, "-c", script, str(space_path), str(out)]
    rng = np.random.default_rng(0)
    known: tuple[ProfileRow, ...] = ()
    for _ in range(20):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as profiler:
            time.sleep(rng.uniform(0.2, 1.6))  # from before the imports are done to after some rows
            profiler.kill()
        if out.exists() and out.read_bytes().count(b"\n"):
            rows = read_profile(out).rows
            assert rows[: len(known)] == known
            known = rows
    found = _profile(space_path, out, ProfilePlan(40, 10, protocol=slower, grid=GRID))

    assert 0 < len(known) < len(found.rows)
    assert found.rows[: len(known)] == known
    keys = [row.key for row in found.rows]
    assert len(keys) == len(set(keys)) == 2 * (40 + 10)
    assert not found.failed_rows
