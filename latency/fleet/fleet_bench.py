"""A fleet as a bench: candidates go to whichever device of one kind is free, and to another one where it dies."""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import Any

from distributed import Client, Future, KilledWorker, wait

from latency.bench import row_of
from latency.device import DeviceFingerprint, DeviceSettings
from latency.errors import DeviceBusyError, FleetError, LatencyError, MeasurementError
from latency.fleet.address import FleetAddress
from latency.fleet.devices import FleetDevice, choose_kind, devices_in
from latency.fleet.remote import DeviceResult, JobPlugin, fingerprint_there, measure_there, probe_there
from latency.probe import ProbeResult
from latency.profile_rows import ProfileRow, RowKey
from latency.worker import CandidateResult, WorkerSetup

CONNECT_S = 10.0
"""How long to try to reach the scheduler."""

POLL_S = 2.0
"""How often to look which devices there are."""

# One candidate is being measured on each device, the next one is there already when it is done.
_IN_FLIGHT_EACH = 2
# Refusals of devices in a row, per device, that are the job's fault rather than a passing one.
_MOST_REFUSALS_EACH = 3
# What a task that had ended is called when its result died with the device.
_LOST_SINCE = ("lost", "pending")
_SCHEDULER_LOST = "The scheduler was lost; the rows so far are kept. Start it and give the command again."
_JOB = "trimms-job-"

Announce = Callable[[str], None]


class FleetBench:
    """The devices of one kind in a fleet; those that come later join in.

    Attributes:
        fingerprint: the devices' at the job's settings.
    """

    def __init__(
        self,
        client: Client,
        job: str,
        kind: str,
        settings: DeviceSettings,
        patience_s: float,
        announce: Announce,
    ) -> None:
        self._client = client
        self._job = job
        self._kind = kind
        self._patience_s = patience_s
        self._announce = announce
        self._n_devices = 1
        self._n_refusals = 0
        self._next_look = 0.0
        self._numbers = itertools.count()
        self.fingerprint: DeviceFingerprint = self._ask(fingerprint_there, settings)

    def probe(self) -> ProbeResult:
        """As `Bench.probe`, on one of the devices."""
        probed: ProbeResult = self._ask(probe_there, self._job)
        return probed

    def rows(self, keys: Iterable[RowKey]) -> Iterator[ProfileRow]:
        """As `Bench.rows`; each row names its device.

        Raises:
            FleetError: the scheduler was lost, or all devices for longer than the patience.
            LatencyError: as `latency.worker.Worker.measure`; what may pass is tried again first.
        """
        new, again = iter(keys), deque[RowKey]()
        in_flight: dict[Future[Any], RowKey] = {}
        self._look()
        try:
            while True:
                # One waits where there is no device, for `_first_done` to lose patience with.
                while len(in_flight) < max(1, _IN_FLIGHT_EACH * self._n_devices):
                    key = again.popleft() if again else next(new, None)
                    if key is None:
                        break
                    in_flight[self._submit(measure_there, self._job, key[0])] = key
                if not in_flight:
                    return
                for future in self._first_done(in_flight):
                    key = in_flight.pop(future)
                    row = self._row(key, future)
                    if row is None:
                        again.append(key)
                    else:
                        yield row
        finally:
            with contextlib.suppress(Exception):  # a lost scheduler has nothing to cancel
                self._client.cancel(list(in_flight))

    def _ask(self, task: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a task on whichever device."""
        future = self._submit(task, *arguments)
        self._first_done([future])
        if future.status != "finished":
            raise _failure(future)
        return _fetched(future, None)

    def _submit(self, task: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        name = f"{task.__name__}-{self._job}-{next(self._numbers)}"
        return self._client.submit(task, *arguments, key=name, pure=False, resources={self._kind: 1})

    def _row(self, key: RowKey, future: "Future[Any]") -> ProfileRow | None:
        """The row of a task that has ended, None where another device, or the same one later, may do better."""
        if future.status == "finished":
            try:
                found: DeviceResult = _fetched(future, self._patience_s)
            except TimeoutError:  # the device died with the result, and there is no other one
                return None
            self._n_refusals = 0
            return row_of(key, found.result, found.device)
        if future.status in _LOST_SINCE:
            return None
        failure = _failure(future)
        if isinstance(failure.__cause__, KilledWorker):
            return row_of(key, CandidateResult(None, str(failure)), str(failure.__cause__.last_worker.name))
        if not isinstance(failure, DeviceBusyError | MeasurementError):
            raise failure
        self._tolerate(failure)
        return None

    def _tolerate(self, error: LatencyError) -> None:
        """Raise the error where it has come too often in a row."""
        self._n_refusals += 1
        if self._n_refusals > _MOST_REFUSALS_EACH * self._n_devices:
            raise error
        self._announce(f"tried again: {error}")

    def _first_done(self, futures: Collection["Future[Any]"]) -> list["Future[Any]"]:
        """Tasks that have ended, in the order of submission, once there is one."""
        alone_since: float | None = None
        while True:
            # Cancelled are the tasks of a scheduler that was lost; they count as ended.
            with self._client.as_current(), contextlib.suppress(TimeoutError, CancelledError):
                wait(list(futures), timeout=POLL_S, return_when="FIRST_COMPLETED")
            if time.monotonic() >= self._next_look:
                self._look()
            done = [future for future in futures if future.done()]
            if done:
                return done
            if self._n_devices:
                alone_since = None
            elif alone_since is None:
                alone_since = time.monotonic()
                self._announce(f"no device is left; waiting {self._patience_s:g} s for one")
            elif time.monotonic() - alone_since > self._patience_s:
                raise FleetError(
                    f"No device was left for {self._patience_s:g} s. The rows so far are kept: start a worker with "
                    "`trimms worker` and give the same command again."
                )

    def _look(self) -> None:
        """Count the devices."""
        devices = devices_in(_scheduler_info(self._client))
        n_devices = sum(device.kind == self._kind for device in devices)
        if n_devices != self._n_devices:
            self._announce(f"{n_devices} device(s) measuring")
        self._n_devices = n_devices
        self._next_look = time.monotonic() + POLL_S


def _fetched(future: "Future[Any]", timeout_s: float | None) -> Any:
    """The result of a finished task, which passes through the scheduler.

    Raises:
        TimeoutError: it did not come in that time; the device that had it may be gone.
        FleetError: the scheduler was lost meanwhile.
    """
    try:
        return future.result(timeout=timeout_s)
    except TimeoutError:
        raise
    except (OSError, CancelledError) as error:
        raise FleetError(_SCHEDULER_LOST) from error


def _failure(future: "Future[Any]") -> LatencyError:
    """Why a task that has ended has no result."""
    if future.status != "error":
        return FleetError(_SCHEDULER_LOST)
    error = future.exception()
    if isinstance(error, LatencyError):
        return error
    if isinstance(error, KilledWorker):
        failure = MeasurementError(f"{error.allowed_failures + 1} devices were lost while they measured it.")
    else:
        failure = MeasurementError(f"A device failed: {type(error).__name__}: {error}.")
    failure.__cause__ = error
    return failure


@contextlib.contextmanager
def fleet_bench(
    address: FleetAddress,
    setup: WorkerSetup,
    *,
    device: str | None = None,
    patience_s: float = 60.0,
    announce: Announce = lambda line: None,
) -> Iterator[FleetBench]:
    """The fleet's devices of one kind as a bench.

    Args:
        address: the scheduler.
        setup: network, settings, protocol; the lock's part is each device's own.
        device: name of a device of the kind wanted; None where there is one kind only.
        patience_s: how long to wait where there is no device, at first and later.
        announce: called with a line when devices come and go.

    Raises:
        FleetError: the scheduler cannot be reached, or has no device.
        InputError: there are several kinds of devices, or none called so.
        ProviderUnavailableError: the devices lack the provider.
    """
    with _connected(address) as client:
        kind = choose_kind(_wait_for_devices(client, patience_s, announce), device)[0].kind
        job = _JOB + client.id
        bench = FleetBench(client, job, kind, setup.settings, patience_s, announce)
        _sweep(client)
        plugin = JobPlugin(kind, setup, setup.space_path.read_bytes(), bench.fingerprint.digest)
        client.register_plugin(plugin, name=job)
        try:
            yield bench
        finally:
            with contextlib.suppress(Exception):  # what is left then is swept away by the next job
                client.unregister_worker_plugin(job)


@contextlib.contextmanager
def _connected(address: FleetAddress) -> Iterator[Client]:
    try:
        client = Client(
            address.scheduler, security=address.security(), timeout=CONNECT_S, set_as_default=False
        )
    except (OSError, TimeoutError) as error:
        raise FleetError(
            f"The scheduler {address.scheduler} cannot be reached ({error}); start it with `dask scheduler`."
        ) from error
    with client:
        yield client


def _scheduler_info(client: Client) -> dict[str, Any]:
    try:
        return dict(client.scheduler_info(n_workers=-1))
    except (OSError, TimeoutError) as error:
        raise FleetError(f"The scheduler was lost ({error}); start it and give the command again.") from error


def _wait_for_devices(client: Client, patience_s: float, announce: Announce) -> list[FleetDevice]:
    deadline, told = time.monotonic() + patience_s, False
    while not (devices := devices_in(_scheduler_info(client))):
        if time.monotonic() > deadline:
            raise FleetError(f"No device came within {patience_s:g} s; start `trimms worker` on each.")
        if not told:
            announce(f"waiting up to {patience_s:g} s for a device")
        told = True
        time.sleep(0.2)
    return devices


def _sweep(client: Client) -> None:
    """End the jobs of clients that were killed."""
    for job in client.run_on_scheduler(_orphans):
        client.unregister_worker_plugin(job)


def _orphans(dask_scheduler: Any) -> list[str]:
    """Runs on the scheduler: jobs whose client is gone."""
    jobs = [name for name in dask_scheduler.worker_plugins if name.startswith(_JOB)]
    return [job for job in jobs if job.removeprefix(_JOB) not in dask_scheduler.clients]
