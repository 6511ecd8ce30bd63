import threading
import time
from types import SimpleNamespace

import pytest

from latency.device import DeviceSettings, fingerprint
from latency.errors import DeviceMismatchError, MeasurementError
from latency.fleet.devices import FleetDevice, own_version
from latency.fleet.remote import DEVICE, DevicePlugin, JobPlugin
from latency.measure import Protocol
from latency.worker import WorkerSetup

HERE = fingerprint(DeviceSettings())
DEVICE_HERE = FleetDevice("zero", HERE, own_version())
# Never precise enough: a measurement that lasts until it is stopped.
ENDLESS = Protocol(min_pairs=10**6, max_pairs=10**6, max_seconds=300)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """What a job looks at of a Dask worker."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "local").mkdir()
    return SimpleNamespace(
        plugins={DEVICE: DevicePlugin(DEVICE_HERE, None)}, local_directory=str(tmp_path / "local")
    )


def _job(space_path, kind=DEVICE_HERE.kind, digest=HERE.digest) -> JobPlugin:
    setup = WorkerSetup(space_path, DeviceSettings(), ENDLESS)
    return JobPlugin(kind, setup, space_path.read_bytes(), digest)


def test_a_job_leaves_devices_of_another_kind_alone(worker, space_path):
    job = _job(space_path, kind="another kind")
    job.setup(worker)
    assert list(space_path.parent.glob("local/*")) == []
    with pytest.raises(MeasurementError, match="no device of kind another kind"):
        job.measure((8, 12))


def test_a_device_that_differs_at_the_jobs_settings_is_refused(worker, space_path):
    job = _job(space_path, digest="0" * 16)
    job.setup(worker)
    with pytest.raises(DeviceMismatchError, match=rf"'zero' differs .* {HERE.digest} \(.*, not 0{{16}}"):
        job.measure((8, 12))


def test_a_candidate_under_which_the_job_ends_is_not_counted_as_failed(worker, space_path):
    job = _job(space_path)
    job.setup(worker)
    (network,) = space_path.parent.glob("local/*")
    assert network.read_bytes() == space_path.read_bytes()

    def end() -> None:
        deadline = time.monotonic() + 30
        while job._worker.process_id is None and time.monotonic() < deadline:
            time.sleep(0.01)
        job.teardown(worker)

    ender = threading.Thread(target=end)
    ender.start()
    with pytest.raises(MeasurementError, match="Device 'zero' stopped while it measured"):
        job.measure((8, 12))
    ender.join()
    assert not network.exists()
