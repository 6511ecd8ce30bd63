import errno
import gc
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latency.device import DeviceSettings
from latency.errors import DeviceBusyError, EnvironmentFailure, InputError
from latency.measure import (
    Protocol,
    device_lock,
    measure_interleaved,
    measure_pair,
    median_interval,
    neighbour_ratios,
    ready,
)
from latency.session import make_session
from latency.timing import ManyThreadsClock, SingleThreadClock, TimedNet, clock_of, garbage_collection_off


@dataclass
class FakeMachine:
    """A clock, and networks that only move it: `ms` per inference, stretched by a drift and by preemptions.

    Attributes:
        preempted_runs: numbers of the runs during which the core is away for 10 ms.
        counts_switches: whether these show as involuntary switches, as where several threads compute, instead of
            as missing CPU time.
        drift_per_ms: growth of all times per millisecond that has passed.
    """

    preempted_runs: frozenset[int] | range = frozenset()
    counts_switches: bool = False
    drift_per_ms: float = 0.0
    noise: float = 0.0
    now_ns: int = 0
    busy_ns: int = 0
    switches: int = 0
    n_runs: int = 0
    log: list[str] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def wall_ns(self) -> int:
        return self.now_ns

    def cpu_ns(self) -> int | None:
        return None if self.counts_switches else self.busy_ns

    def involuntary_switches(self) -> int:
        return self.switches

    def net(self, name: str, ms: float):
        def run() -> None:
            stretch = (1 + self.drift_per_ms * self.now_ns * 1e-6) * (
                1 + self.noise * self.rng.standard_normal()
            )
            spent = int(ms * 1e6 * stretch)
            self.now_ns += spent
            self.busy_ns += spent
            if self.n_runs in self.preempted_runs:
                self.now_ns += 10_000_000
                self.switches += self.counts_switches
            self.n_runs += 1
            self.log.append(name)

        return run


def _measure(machine: FakeMachine, protocol: Protocol, candidate_ms: float = 1.0, reference_ms: float = 2.0):
    nets = [
        ready(machine.net(name, ms), machine, protocol)
        for name, ms in (("candidate", candidate_ms), ("reference", reference_ms))
    ]
    machine.log.clear()
    return measure_interleaved(nets[0], nets[1], protocol)


def test_samples_alternate_and_every_candidate_lies_between_two_references():
    machine = FakeMachine()
    found = _measure(machine, Protocol(min_pairs=6, max_pairs=8))
    assert machine.log == ["reference", "candidate"] * found.n_pairs + ["reference"]
    assert found.ratio == pytest.approx(0.5)
    assert found.converged
    assert found.timed_s == pytest.approx(1e-3 * (found.n_pairs * 1.0 + (found.n_pairs + 1) * 2.0))
    assert len(found.reference_samples_ms) == len(found.candidate_samples_ms) + 1 == found.n_pairs + 1


def test_a_drift_of_the_machine_does_not_move_the_ratio():
    found = _measure(FakeMachine(drift_per_ms=0.002), Protocol(min_pairs=48))
    assert found.reference_samples_ms[-1] > 1.25 * found.reference_samples_ms[0]
    assert found.ratio == pytest.approx(0.5, rel=0.002)


@pytest.mark.parametrize("counts_switches", [False, True], ids=["missing CPU time", "context switch"])
def test_preempted_samples_are_dropped_and_repeated(counts_switches):
    # Warm-up takes the first 20 runs; then every seventh run loses the core.
    machine = FakeMachine(preempted_runs=range(20, 10_000, 7), counts_switches=counts_switches)
    found = _measure(machine, Protocol(min_pairs=16))
    assert found.n_preempted >= 4
    assert len(machine.log) == 2 * found.n_pairs + 1 + found.n_preempted
    assert set(found.candidate_samples_ms) == {1.0}
    assert set(found.reference_samples_ms) == {2.0}
    assert found.converged


@pytest.mark.parametrize(("away_ns", "counts"), [(19_000, False), (30_000, True)], ids=["short", "long"])
def test_a_switch_counts_by_the_time_that_it_costs(away_ns, counts):
    machine = FakeMachine()

    def run() -> None:
        machine.now_ns += 1_000_000 + away_ns
        machine.busy_ns += 1_000_000
        machine.switches += 1

    assert TimedNet(run, machine, 1, preempted_share=0.02).sample().preempted is counts


def test_a_preempted_sample_is_repeated_by_the_same_network():
    machine = FakeMachine(preempted_runs=frozenset({21}))
    _measure(machine, Protocol(min_pairs=6))
    assert machine.log[:4] == ["reference", "candidate", "candidate", "reference"]


def test_samples_are_kept_once_too_many_were_dropped_and_the_result_says_so():
    machine = FakeMachine(preempted_runs=range(20, 10_000))
    found = _measure(machine, Protocol(min_pairs=8, max_pairs=8, max_preempted=5))
    assert found.n_pairs == 8
    assert found.n_preempted == 5 + 17
    assert not found.converged


def test_preempted_samples_are_not_repeated_for_ever():
    machine = FakeMachine(preempted_runs=range(20, 10_000))
    found = _measure(machine, Protocol(min_pairs=8, max_seconds=0.1))
    assert found.n_pairs == 8
    assert found.n_preempted < 40
    assert not found.converged


def test_pairs_are_added_until_the_interval_is_narrow_enough():
    few = _measure(FakeMachine(noise=0.002), Protocol())
    many = _measure(FakeMachine(noise=0.03), Protocol())
    assert few.n_pairs == 16
    assert 16 < many.n_pairs < 200
    for found in (few, many):
        low, high = found.ratio_ci
        assert found.converged
        assert (high - low) / 2 <= 0.01 * found.ratio
        assert low <= found.ratio <= high
        assert found.ratio_stderr == pytest.approx((high - low) / (2 * 1.96) / found.ratio)


def test_measuring_gives_up_at_the_most_pairs():
    found = _measure(FakeMachine(noise=0.2), Protocol(max_pairs=30))
    assert found.n_pairs == 30
    assert not found.converged


def test_measuring_gives_up_when_the_time_is_over():
    found = _measure(FakeMachine(noise=0.2), Protocol(max_seconds=0.1))
    assert found.n_pairs in (32, 36)
    assert not found.converged


def test_a_fast_network_runs_several_times_a_sample():
    machine = FakeMachine()
    found = _measure(machine, Protocol(min_pairs=6, max_pairs=6, min_sample_ms=0.3), candidate_ms=0.04)
    assert machine.log[:10] == ["reference", *["candidate"] * 8, "reference"]
    assert found.candidate_ms == pytest.approx(0.04)
    assert found.ratio == pytest.approx(0.02)


def test_the_warm_up_of_a_slow_network_is_short():
    machine = FakeMachine()
    ready(machine.net("slow", 100.0), machine, Protocol(warmup_runs=10, warmup_ms=50))
    assert len(machine.log) == 2


def test_the_interval_of_the_median_takes_the_order_statistics_of_the_binomial():
    # n = 16: the 4th and 13th enclose the median with probability 0.979, the 5th and 12th with 0.923 only.
    assert median_interval(range(1, 17)) == (4, 13)
    assert median_interval([3, 1, 2]) == (1, 3)


def test_the_interval_of_the_median_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    samples = rng.exponential(size=(2000, 25))
    intervals = [median_interval(list(sample)) for sample in samples]
    coverage = np.mean([low <= math.log(2) <= high for low, high in intervals])
    assert 0.94 < coverage < 0.99


@pytest.mark.parametrize("n", [199, 201, 1000, 5000])
def test_intervals_of_many_values_cover_as_often(n):
    low, high = median_interval(range(n))
    ranks = np.random.default_rng(0).binomial(n, 0.5, 20_000)  # of values below the median
    assert 0.94 < np.mean((ranks >= low + 1) & (ranks <= high)) < 0.975


def test_ratios_are_to_the_mean_of_both_neighbours():
    assert neighbour_ratios([3.0, 6.0], [1.0, 2.0, 4.0]) == [2.0, 2.0]


def test_a_protocol_too_short_for_an_interval_is_refused():
    with pytest.raises(InputError, match=r"6 ≤ min_pairs ≤ max_pairs .* min_pairs=3, max_pairs=200"):
        Protocol(min_pairs=3)
    with pytest.raises(InputError, match=r"relative precision must be above 0, got 0"):
        Protocol(relative_precision=0)


def test_a_protocol_survives_json():
    protocol = Protocol(min_pairs=32, relative_precision=0.005)
    assert Protocol.from_json(json.loads(json.dumps(protocol.to_json()))) == protocol


def test_garbage_is_not_collected_while_measuring():
    with garbage_collection_off():
        assert not gc.isenabled()
    assert gc.isenabled()


def _matmul(n: int) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((n, n), np.float32), "weight")
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, n]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "matmul", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_smaller_network_is_measured_as_faster():
    small, large = (make_session(_matmul(n)) for n in (64, 256))
    found = measure_pair(small, large, Protocol(min_pairs=8, max_pairs=8))
    assert 0 < found.ratio < 0.5
    assert found.candidate_ms < found.reference_ms
    assert found.n_pairs == 8


def test_a_batch_size_that_is_not_the_models_is_refused():
    session = make_session(_matmul(8))
    with pytest.raises(InputError, match="a batch of 64, but the settings ask for a batch of 2"):
        measure_pair(session, session, batch_size=2)


def test_the_clock_watches_the_thread_that_computes():
    assert isinstance(clock_of(make_session(_matmul(8), DeviceSettings(threads=1))), SingleThreadClock)


def test_clocks_run_forward():
    for clock in (SingleThreadClock(), ManyThreadsClock()):
        wall, switches = clock.wall_ns(), clock.involuntary_switches()
        assert clock.wall_ns() >= wall
        assert clock.involuntary_switches() >= switches
    assert ManyThreadsClock().cpu_ns() is None


def test_sleeping_shows_as_wall_time_without_cpu_time():
    net = ready(lambda: time.sleep(0.002), SingleThreadClock(), Protocol(warmup_ms=1))
    assert net.sample().preempted


_HOLD = """
import sys, time
from pathlib import Path
from latency.device import DeviceSettings
from latency.measure import device_lock
with device_lock(DeviceSettings(), folder=Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_device_is_refused_while_another_process_holds_it_and_free_when_that_is_killed(tmp_path):
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(DeviceBusyError, match=r"has held the cpu for 0\.1 s"),
            device_lock(DeviceSettings(), wait_s=0.1, folder=tmp_path),
        ):
            pass
        # Other hardware is not affected.
        with device_lock(DeviceSettings.parse("cuda"), wait_s=0, folder=tmp_path):
            pass
        holder.kill()
        with device_lock(DeviceSettings(), wait_s=10, folder=tmp_path):
            pass


def test_parts_of_a_device_are_held_side_by_side_but_never_with_all_of_it(tmp_path):
    def lock(part=None):
        return device_lock(DeviceSettings(), wait_s=0, folder=tmp_path, part=part)

    with lock("core-0"), lock("core-1"):
        for refused in (None, "core-0"):
            with pytest.raises(DeviceBusyError), lock(refused):
                pass
    with lock(), pytest.raises(DeviceBusyError), lock("core-0"):
        pass


def test_a_folder_without_locks_and_a_user_without_a_name_are_no_traceback(tmp_path, monkeypatch):
    def no_locks(file, kind):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def no_name():
        raise KeyError("getpwuid(): uid not found: 1000")

    monkeypatch.setattr("getpass.getuser", no_name)
    with device_lock(DeviceSettings(), folder=tmp_path):
        pass
    monkeypatch.setattr("fcntl.flock", no_locks)

    with (
        pytest.raises(EnvironmentFailure, match=r"Cannot lock .*: Function not .*; let TMPDIR be"),
        device_lock(DeviceSettings(), folder=tmp_path),
    ):
        pass


def test_the_device_lock_can_be_taken_again_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), device_lock(DeviceSettings(), folder=tmp_path):
        raise RuntimeError
    with device_lock(DeviceSettings(), wait_s=0, folder=tmp_path):
        pass


_MEASURE_ON_AND_ON = """
import sys, time
from pathlib import Path
from latency.device import DeviceSettings
from latency.measure import device_lock
print("started", flush=True)
while True:
    with device_lock(DeviceSettings(), folder=Path(sys.argv[1])):
        time.sleep(0.05)
"""


def test_one_measurement_after_the_other_does_not_keep_the_device_from_others(tmp_path):
    command = [sys.executable, "-c", _MEASURE_ON_AND_ON, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as profiler:
        assert profiler.stdout is not None
        profiler.stdout.readline()
        try:
            for _ in range(5):
                with device_lock(DeviceSettings(), wait_s=10, folder=tmp_path):
                    pass
        finally:
            profiler.kill()
