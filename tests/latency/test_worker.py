import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import onnx
import pytest

from latency.device import DeviceSettings
from latency.errors import DeviceBusyError, ModelFileError
from latency.measure import Protocol, device_lock
from latency.worker import Worker, WorkerSetup

QUICK = Protocol(min_pairs=6, max_pairs=6, warmup_runs=2, min_sample_ms=0.01)
# Never precise enough: a measurement that lasts until it is stopped.
ENDLESS = Protocol(min_pairs=10**6, max_pairs=10**6, max_seconds=300)


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


def _is_running(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def _wait_until_gone(process_id: int) -> None:
    deadline = time.monotonic() + 20
    while _is_running(process_id):
        assert time.monotonic() < deadline, f"process {process_id} is still running"
        time.sleep(0.02)


def test_candidates_are_measured_failures_are_results_and_processes_are_replaced(space_path):
    with Worker(WorkerSetup(space_path, DeviceSettings(), QUICK, tasks_per_process=2)) as worker:
        full = worker.measure((8, 12))
        first_process = worker.process_id
        refused = worker.measure((8, 99))
        narrow = worker.measure((4, 0))
        assert worker.process_id not in (first_process, os.getpid())
        last_process = worker.process_id
    assert full.measurement is not None
    assert full.measurement.n_pairs == 6
    assert full.build_ms > 0
    assert refused.measurement is None
    assert refused.error.startswith("WidthError: group 'inner'")
    assert narrow.measurement is not None
    assert last_process is not None
    _wait_until_gone(last_process)


def test_a_network_in_another_number_format_than_the_settings_is_refused(space_path):
    with (
        Worker(WorkerSetup(space_path, DeviceSettings(precision="int8"), QUICK)) as worker,
        pytest.raises(ModelFileError, match=r"base\.onnx is in fp32, the device's setting is int8"),
    ):
        worker.measure((8, 12))


def test_a_process_that_dies_costs_its_candidate_only(space_path):
    with Worker(WorkerSetup(space_path, DeviceSettings(), ENDLESS)) as worker:

        def kill() -> None:
            while worker.process_id is None:
                time.sleep(0.01)
            os.kill(worker.process_id, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        result = worker.measure((8, 12))
        killer.join()
        assert result.measurement is None
        assert result.error.startswith("the measuring process died")
        worker.setup = WorkerSetup(space_path, DeviceSettings(), QUICK)
        assert worker.measure((8, 12)).measurement is not None


def test_a_candidate_that_hangs_is_given_up(space_path):
    with Worker(WorkerSetup(space_path, DeviceSettings(), QUICK)) as worker:
        worker.measure((8, 12))
        process_id = worker.process_id
        assert process_id is not None
        worker.setup = WorkerSetup(space_path, DeviceSettings(), QUICK, timeout_s=0.2)
        os.kill(process_id, signal.SIGSTOP)
        assert worker.measure((8, 12)).error == "no result within 0.2 s"
        _wait_until_gone(process_id)


def test_an_abandoned_candidate_ends_at_once(space_path):
    worker = Worker(WorkerSetup(space_path, DeviceSettings(), ENDLESS))

    def abandon() -> None:
        while worker.process_id is None:
            time.sleep(0.01)
        worker.abandon()

    killer = threading.Thread(target=abandon)
    killer.start()
    assert worker.measure((8, 12)).measurement is None
    killer.join()
    assert worker.process_id is None


def test_an_unreadable_base_network_is_an_error_of_its_own(tmp_path):
    with (
        Worker(WorkerSetup(tmp_path / "gone.onnx", DeviceSettings(), QUICK)) as worker,
        pytest.raises(ModelFileError, match=r"gone\.onnx"),
    ):
        worker.measure((8, 12))


def test_a_busy_device_is_no_failure_of_the_candidate(space_path):
    setup = WorkerSetup(space_path, DeviceSettings(), QUICK, lock_wait_s=0.05)
    with (
        device_lock(DeviceSettings()),
        Worker(setup) as worker,
        pytest.raises(DeviceBusyError, match="Another measurement has held the cpu"),
    ):
        worker.measure((8, 12))


# No guard against being imported again, as in a notebook or a first script.
_SCRIPT = """
import sys, time
from pathlib import Path
print("imported", flush=True)
from latency.device import DeviceSettings
from latency.worker import Worker, WorkerSetup
worker = Worker(WorkerSetup(Path(sys.argv[1]), DeviceSettings()))
worker.measure((8, 12))
print(worker.process_id, flush=True)
time.sleep(60)
"""


def test_the_process_does_not_import_the_callers_script_and_ends_when_the_caller_is_killed(
    space_path, tmp_path
):
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, str(script), str(space_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "imported\n"
        process_id = int(caller.stdout.readline())
        assert _is_running(process_id)
        caller.kill()
    _wait_until_gone(process_id)
