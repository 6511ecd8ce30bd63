"""What runs on a fleet's devices: the measuring process of a job, and the tasks that use it.

The measuring itself is that of `latency.worker`, in a process of its own and under the device's lock.
"""

import os
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from distributed import Worker as DaskWorker
from distributed import WorkerPlugin, get_worker

from latency.device import DeviceFingerprint, DeviceSettings, fingerprint
from latency.errors import DeviceMismatchError, MeasurementError
from latency.fleet.devices import FleetDevice
from latency.probe import ProbeResult
from latency.worker import CandidateResult, Worker, WorkerSetup

DEVICE = "trimms-device"
"""Name of the plugin by which a worker knows its device."""


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """A candidate's measurement, or its failure, and the name of the device."""

    device: str
    result: CandidateResult


class DevicePlugin(WorkerPlugin):
    """The device that a worker offers, for the jobs that come to it."""

    name = DEVICE

    def __init__(self, device: FleetDevice, lock_part: str | None) -> None:
        self.device = device
        self.lock_part = lock_part


class JobPlugin(WorkerPlugin):
    """One client's job: on each device of its kind the network's file and a measuring process.

    Dask brings it to the workers that are there and to those that join later, before their first task.
    """

    def __init__(self, kind: str, setup: WorkerSetup, network: bytes, digest: str) -> None:
        self.kind = kind
        self.digest = digest
        self._setup = setup
        self._network = network
        self._device = ""
        self._worker: Worker | None = None
        self._fingerprint: DeviceFingerprint | None = None
        self._ended = False

    def setup(self, worker: DaskWorker) -> None:
        """Put the network's file on the device; on another kind of device, nothing."""
        own = worker.plugins.get(DEVICE)
        if isinstance(own, DevicePlugin) and own.device.kind == self.kind:
            path = Path(worker.local_directory) / f"network-{id(self)}.onnx"
            path.write_bytes(self._network)
            self._device = own.device.name
            self._worker = Worker(replace(self._setup, space_path=path, lock_part=own.lock_part))
        self._network = b""

    def teardown(self, worker: DaskWorker) -> None:
        """End the measuring process, in the middle of a candidate too."""
        self._ended = True
        if self._worker is not None:
            self._worker.abandon()
            self._worker.setup.space_path.unlink(missing_ok=True)

    def measure(self, widths: tuple[int, ...]) -> DeviceResult:
        """As `Worker.measure`.

        Raises:
            MeasurementError: the job, or the worker, was ended meanwhile.
            LatencyError: as `Worker.measure`.
        """
        try:
            return DeviceResult(self._device, self._ready_worker().measure(widths))
        finally:
            if self._ended:  # the process was ended under the candidate, which is not to blame
                raise MeasurementError(f"Device '{self._device}' stopped while it measured.")

    def probe(self) -> ProbeResult:
        """As `Worker.probe`."""
        return self._ready_worker().probe()

    def _ready_worker(self) -> Worker:
        if self._worker is None:
            raise MeasurementError(f"The worker has no device of kind {self.kind}.")
        _yield_to_measurements()
        here = self._fingerprint = self._fingerprint or fingerprint(self._setup.settings)
        if here.digest != self.digest:
            raise DeviceMismatchError(
                f"Device '{self._device}' differs from the others at these settings: its fingerprint is "
                f"{here.digest} ({here.describe()}), not {self.digest}; stop its worker."
            )
        return self._worker


def _yield_to_measurements() -> None:
    """Let the main thread, which looks after Dask's connections, run when the measuring process does not.

    Tasks have a thread of their own; the measuring process is started by it, and so keeps its usual priority.
    """
    if sys.platform == "linux" and threading.current_thread() is not threading.main_thread():
        os.sched_setscheduler(os.getpid(), os.SCHED_IDLE, os.sched_param(0))


def fingerprint_there(settings: DeviceSettings) -> DeviceFingerprint:
    """Task: the device's fingerprint.

    Raises:
        ProviderUnavailableError: its ONNX Runtime lacks the provider.
        InputError: it has fewer cores than threads are asked for.
    """
    return fingerprint(settings)


def measure_there(job: str, widths: tuple[int, ...]) -> DeviceResult:
    """Task: measure a candidate."""
    return _job(job).measure(widths)


def probe_there(job: str) -> ProbeResult:
    """Task: find the device's channel step."""
    return _job(job).probe()


def _job(name: str) -> JobPlugin:
    plugin = get_worker().plugins.get(name)
    if not isinstance(plugin, JobPlugin):
        raise MeasurementError(f"The worker knows no job {name}.")
    return plugin
