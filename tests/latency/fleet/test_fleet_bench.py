"""Profiling on real worker processes."""

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from distributed import Client, Future, Security
from distributed.comm import CommClosedError

from latency.device import DeviceSettings, fingerprint
from latency.errors import DeviceBusyError, FleetError, InputError, ProviderUnavailableError
from latency.fleet import fleet_bench as module
from latency.fleet.address import FleetAddress
from latency.fleet.fleet_bench import fleet_bench
from latency.fleet.remote import JobPlugin
from latency.grid import Grid
from latency.measure import Protocol, device_lock
from latency.profile_rows import ProfileHeader, ProfileRow
from latency.profiles import read_profile
from latency.profiling import PROFILING_PROTOCOL, ProfilePlan, profile
from latency.registry.registry import Registry
from latency.service.settings import ServiceSettings
from latency.worker import WorkerSetup
from pruning.cli import cli
from tests.serving import running

GRID = Grid((tuple(range(1, 9)), tuple(range(13))))
QUICK = Protocol(min_pairs=6, max_pairs=6, warmup_runs=2, min_sample_ms=0.01)
# About 50 ms a candidate, so that something can happen meanwhile.
SLOW = Protocol(min_pairs=6, max_pairs=6, warmup_runs=2, min_sample_ms=3.0)
PLAN = ProfilePlan(n_candidates=30, n_held_out=6, protocol=SLOW, grid=GRID)
N_ROWS = 2 * (30 + 6)


class After:
    """Calls something once so many rows are there, and rows of so many devices."""

    def __init__(self, n_rows: int, action: Callable[[], None], n_devices: int = 1) -> None:
        self.n_rows, self.action, self.n_devices = n_rows, action, n_devices
        self.rows: list[ProfileRow] = []
        self.n_rows_then: int | None = None

    def start(self, header: ProfileHeader, rows: Sequence[ProfileRow]) -> None:
        pass

    def append(self, row: ProfileRow) -> None:
        self.rows.append(row)
        enough = len(self.rows) >= self.n_rows and len({row.device for row in self.rows}) >= self.n_devices
        if enough and self.n_rows_then is None:
            self.n_rows_then = len(self.rows)
            self.action()


def _profile(fleet, space_path: Path, out: Path, *sinks: After, plan: ProfilePlan = PLAN, **options):
    bench = partial(fleet_bench, fleet.address, **options)
    return profile(space_path, out, plan=plan, show_progress=False, open_bench=bench, sinks=sinks)


def _assert_complete(found, n_rows: int = N_ROWS) -> None:
    keys = [row.key for row in found.rows]
    assert len(keys) == len(set(keys)) == n_rows
    assert found.failed_rows == ()


def _jobs(address: str) -> list[str]:
    with Client(address, set_as_default=False) as client:
        plugins = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.worker_plugins))
    return [name for name in plugins if name.startswith("trimms")]


def _refuse() -> None:
    raise KeyboardInterrupt


def test_all_devices_measure_and_every_candidate_is_measured_once(fleet, space_path, tmp_path):
    lines: list[str] = []

    found = _profile(fleet, space_path, tmp_path / "p.jsonl", announce=lines.append)

    _assert_complete(found)
    assert found.header.fingerprint.digest == fingerprint(DeviceSettings()).digest
    assert [device.device for device in found.by_device] == ["one", "zero"]
    assert sum(device.n_rows for device in found.by_device) == N_ROWS
    assert lines == ["2 device(s) measuring"]
    assert read_profile(tmp_path / "p.jsonl").digest == found.digest


def test_the_same_command_again_measures_nothing_and_larger_numbers_what_is_missing(
    fleet, space_path, tmp_path
):
    quick = ProfilePlan(6, 2, protocol=QUICK, grid=GRID)
    first = _profile(fleet, space_path, tmp_path / "p.jsonl", plan=quick)
    again = _profile(fleet, space_path, tmp_path / "p.jsonl", plan=quick)
    more = _profile(
        fleet, space_path, tmp_path / "p.jsonl", plan=ProfilePlan(9, 2, protocol=QUICK, grid=GRID)
    )

    assert again.rows == first.rows
    assert more.rows[: len(first.rows)] == first.rows
    _assert_complete(more, 2 * (9 + 2))


def test_the_command_line_goes_on_with_it_shows_the_devices_and_fills_a_registry(fleet, space_path, tmp_path):
    begun = ProfilePlan(2, 1, protocol=PROFILING_PROTOCOL, grid=GRID)
    _profile(fleet, space_path, tmp_path / "profile.jsonl", plan=begun)
    options = ["--candidates", "12", "--held-out", "2", "--device", "one", "--out", str(tmp_path)]
    registry = Registry.in_folder(tmp_path / "registry")

    with running(registry, ServiceSettings(run_jobs=False), with_tokens=False) as service:
        options += ["--registry", service.url]
        done = CliRunner().invoke(cli, ["profile", "--scheduler", fleet.address.scheduler, *options])

    assert done.exit_code == 0, done.output
    found = read_profile(tmp_path / "profile.jsonl")
    _assert_complete(found, 2 * (12 + 2))
    (record,) = registry.profiles.all()
    assert registry.profiles.read(record.id).digest == found.digest
    n_uploads = sum(request["path"] == f"/v1/profiles/{record.id}/rows" for request in service.requests)
    assert n_uploads > len(found.rows) - 6  # each as it came, those of the first command together
    registry.close()
    assert "28/28" in done.stderr
    assert re.search(r"rows  reference [\d.]+ ms \([+-][\d.]+%, ± [\d.]+%\)  one", done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a priority")
def test_a_workers_housekeeping_makes_way_for_its_measuring_process(fleet, space_path, tmp_path):
    def policies() -> list[bool]:
        """Whether each of main thread, measuring process and others that the worker started runs when idle."""
        children = psutil.Process().children(recursive=True)
        return [
            os.sched_getscheduler(pid) == os.SCHED_IDLE for pid in (os.getpid(), *(c.pid for c in children))
        ]

    found: dict[str, list[bool]] = {}

    def look() -> None:
        with Client(fleet.address.scheduler, set_as_default=False) as client:
            found.update(client.run(policies))

    _profile(fleet, space_path, tmp_path / "p.jsonl", After(6, look, n_devices=2))

    assert len(found) == 2
    for main, *started in found.values():
        assert main
        assert started
        assert not any(started)


def test_ctrl_c_keeps_the_rows_and_ends_the_job_on_the_devices(fleet, space_path, tmp_path):
    stopping = After(5, _refuse)

    with pytest.raises(KeyboardInterrupt):
        _profile(fleet, space_path, tmp_path / "p.jsonl", stopping)

    assert read_profile(tmp_path / "p.jsonl").rows == tuple(stopping.rows)
    assert _jobs(fleet.address.scheduler) == []
    found = _profile(fleet, space_path, tmp_path / "p.jsonl")
    assert found.rows[:5] == tuple(stopping.rows)
    _assert_complete(found)


def test_a_job_whose_client_was_killed_is_ended_by_the_next_one(fleet, space_path):
    setup = WorkerSetup(space_path, DeviceSettings(), QUICK)
    with Client(fleet.address.scheduler, set_as_default=False) as client:
        client.register_plugin(JobPlugin("no kind", setup, b"", ""), name="trimms-job-of-the-dead")
    assert _jobs(fleet.address.scheduler) == ["trimms-job-of-the-dead"]

    with fleet_bench(fleet.address, setup):
        (own,) = _jobs(fleet.address.scheduler)

    assert own.startswith("trimms-job-Client")
    assert _jobs(fleet.address.scheduler) == []


def test_a_device_that_stays_busy_is_tried_again_and_then_named(fleet, space_path):
    setup = WorkerSetup(space_path, DeviceSettings(), QUICK, lock_wait_s=0.05)
    lines: list[str] = []
    with (
        device_lock(DeviceSettings(), folder=fleet.folder),
        fleet_bench(fleet.address, setup, announce=lines.append) as bench,
        pytest.raises(DeviceBusyError, match="Another measurement has held the cpu"),
    ):
        list(bench.rows([((8, 12), "train", 0)]))
    assert lines.count(lines[-1]) == 6  # three times for each of two devices
    assert lines[-1].startswith("tried again: Another measurement")


def test_what_a_device_cannot_do_is_said(fleet, space_path):
    setup = WorkerSetup(space_path, DeviceSettings.parse("qnn"), QUICK)
    with (
        pytest.raises(ProviderUnavailableError, match="here has no QNNExecutionProvider"),
        fleet_bench(fleet.address, setup),
    ):
        pass


def test_a_device_that_nobody_has_is_refused_with_those_there_are(fleet, space_path):
    setup = WorkerSetup(space_path, DeviceSettings(), QUICK)
    with (
        pytest.raises(InputError, match="called 'two'; there are: one, zero"),
        fleet_bench(fleet.address, setup, device="two"),
    ):
        pass


def test_a_killed_devices_candidates_go_to_another(fleet, space_path, tmp_path):
    killing = After(10, lambda: fleet.kill("one"), n_devices=2)

    found = _profile(fleet, space_path, tmp_path / "p.jsonl", killing)

    _assert_complete(found)
    # What had been measured before the kill may still have been on its way.
    assert {row.device for row in found.rows[killing.n_rows_then + 3 :]} == {"zero"}


def test_a_device_that_joins_measures_too(fleet, space_path, tmp_path):
    joining = After(3, lambda: fleet.restore("zero", "two"))

    found = _profile(fleet, space_path, tmp_path / "p.jsonl", joining)

    _assert_complete(found)
    assert "two" in {row.device for row in found.rows}


def test_without_any_device_left_it_ends_with_the_rows_kept(fleet, space_path, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 0.2)

    def kill_all() -> None:
        for name in list(fleet.workers):
            fleet.kill(name)

    lines: list[str] = []
    with pytest.raises(FleetError, match=r"No device was left for 0\.5 s.*give the same command again"):
        _profile(
            fleet,
            space_path,
            tmp_path / "p.jsonl",
            After(10, kill_all),
            patience_s=0.5,
            announce=lines.append,
        )
    assert 10 <= len(read_profile(tmp_path / "p.jsonl").rows) < N_ROWS
    assert "no device is left; waiting 0.5 s for one" in lines
    with pytest.raises(FleetError, match=r"No device came within 0\.5 s; start `trimms worker`"):
        _profile(fleet, space_path, tmp_path / "p.jsonl", patience_s=0.5)


def test_results_that_died_with_their_devices_are_measured_again(fleet, space_path, tmp_path, monkeypatch):
    first_done = module.FleetBench._first_done
    lost: list[str] = []

    def done_and_lost(bench, futures):
        done = first_done(bench, futures)
        if not lost and fleet.workers and len(futures) > 1:
            for name in list(fleet.workers):
                fleet.kill(name)
            deadline = time.monotonic() + 30
            while any(future.status == "finished" for future in done):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            lost.extend(future.status for future in done)
            fleet.restore("zero")
        return done

    monkeypatch.setattr(module.FleetBench, "_first_done", done_and_lost)

    found = _profile(fleet, space_path, tmp_path / "p.jsonl")

    assert set(lost) <= {"lost", "pending"}
    _assert_complete(found)


@pytest.mark.parametrize("error", [CommClosedError("Stream is closed"), CancelledError()])
def test_a_scheduler_that_is_lost_while_a_result_is_fetched_is_said(
    fleet, space_path, tmp_path, monkeypatch, error
):
    result = Future.result

    def lost_in_between(future, timeout=None):
        if future.key.startswith("measure_there"):
            raise error
        return result(future, timeout)

    monkeypatch.setattr(Future, "result", lost_in_between)
    with pytest.raises(FleetError, match=r"The scheduler was lost.*give the command again"):
        _profile(fleet, space_path, tmp_path / "p.jsonl")


def test_an_encrypted_fleet_measures_until_its_scheduler_is_lost_and_strangers_are_kept_out(
    start_fleet, space_path, tmp_path, monkeypatch
):
    pems = Security.temporary()
    files = {"tls_ca": pems.tls_ca_file, "tls_cert": pems.tls_client_cert, "tls_key": pems.tls_client_key}
    tls = {name: tmp_path / f"{name}.pem" for name in files}
    for name, text in files.items():
        tls[name].write_text(text)
    options = [
        f"--tls-ca-file={tls['tls_ca']}",
        f"--tls-cert={tls['tls_cert']}",
        f"--tls-key={tls['tls_key']}",
    ]
    with start_fleet("--protocol", "tls", *options, **tls) as fleet:
        assert fleet.address.encrypted
        fleet.start("zero")
        monkeypatch.setattr(module, "CONNECT_S", 1.0)
        stranger = FleetAddress(fleet.address.scheduler.replace("tls", "tcp"))
        setup = WorkerSetup(space_path, DeviceSettings(), QUICK)
        with pytest.raises(FleetError, match="cannot be reached"), fleet_bench(stranger, setup):
            pass
        losing = After(3, fleet.scheduler.kill)
        with pytest.raises(FleetError, match="The scheduler was lost"):
            _profile(fleet, space_path, tmp_path / "p.jsonl", losing)
        worker = fleet.workers.pop("zero")
        said = worker.communicate(timeout=30)[1]
    assert worker.returncode == 3
    assert "has ended, or was lost; start it and the worker again" in said
    assert 3 <= len(read_profile(tmp_path / "p.jsonl").rows) < N_ROWS


def test_a_scheduler_that_is_not_there_is_said(space_path, monkeypatch):
    monkeypatch.setattr(module, "CONNECT_S", 0.5)
    setup = WorkerSetup(space_path, DeviceSettings(), QUICK)
    with (
        pytest.raises(
            FleetError, match=r"tcp://127\.0\.0\.1:1 cannot be reached .*start it with `dask scheduler`"
        ),
        fleet_bench(FleetAddress("tcp://127.0.0.1:1"), setup),
    ):
        pass
