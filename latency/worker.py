"""A process of its own that builds and measures candidates, replaced now and then, and when it dies.

ONNX Runtime keeps memory of closed sessions, and a bad candidate may take its process down; neither should
end hours of profiling.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from latency.candidate import candidate_in_memory, first_channels
from latency.device import DeviceSettings
from latency.errors import DeviceBusyError, MeasurementError, ModelFileError
from latency.folding import folded_space
from latency.measure import (
    DEFAULT_PROTOCOL,
    PairedMeasurement,
    Protocol,
    device_lock,
    measure_interleaved,
    timed_net,
)
from latency.probe import ProbeResult, probe_step
from latency.processes import main_module_hidden, prepare_process
from latency.session import make_session
from latency.space import SearchSpace
from latency.timing import TimedNet, garbage_collection_off

# Candidates after which the reference's session is made anew. Where its weights lie in memory is luck, and worth 1 %
# for MobileNetV2 between the means of processes with one session; visits repeat as well with every 4 as with every 1.
_CANDIDATES_PER_REFERENCE = 16
# The reference has run before; this brings its code and weights back into the caches.
_REWARMING_RUNS = 1


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker process is started with.

    Attributes:
        space_path: the base ONNX file, both the search space and the reference network.
        settings: provider, threads, batch size, number format; that of the file.
        protocol: how each candidate is measured.
        lock_wait_s: how long to wait for another measurement on the device.
        lock_part: the part of the device that is measured, see `latency.measure.device_lock`; None is all of it.
        tasks_per_process: candidates after which the process is replaced.
        timeout_s: time after which a candidate counts as hung.
    """

    space_path: Path
    settings: DeviceSettings
    protocol: Protocol = DEFAULT_PROTOCOL
    lock_wait_s: float = 60.0
    lock_part: str | None = None
    tasks_per_process: int = 200
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """A candidate's measurement, or why there is none.

    Attributes:
        measurement: None on failure.
        error: empty on success.
        build_ms: time to cut the model and make its session.
    """

    measurement: PairedMeasurement | None
    error: str = ""
    build_ms: float = 0.0


class Worker:
    """Measures candidates in a process of its own; a context manager.

    One candidate at a time. The process is started with the first call.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self.setup = setup
        self.process_id: int | None = None
        self._executor: ProcessPoolExecutor | None = None
        self._n_tasks = 0

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._kill()
        self._close()

    def measure(self, widths: tuple[int, ...]) -> CandidateResult:
        """The candidate's latency relative to the base network's; its failure is a result as well.

        Raises:
            DeviceBusyError: another measurement holds the device.
            LatencyError: the base network itself cannot be loaded or run.
        """
        executor = self._ready_executor()
        self._n_tasks += 1
        try:
            return executor.submit(measure_candidate, widths).result(timeout=self.setup.timeout_s)
        except BrokenProcessPool:
            self._close()
            return CandidateResult(
                None, "the measuring process died: out of memory, or a crash in ONNX Runtime"
            )
        except TimeoutError:
            self.abandon()
            return CandidateResult(None, f"no result within {self.setup.timeout_s:g} s")

    def probe(self) -> ProbeResult:
        """The device's channel step, see `latency.probe.probe_step`.

        Raises:
            MeasurementError: the process died.
        """
        try:
            probe = functools.partial(
                probe_step, lock_wait_s=self.setup.lock_wait_s, lock_part=self.setup.lock_part
            )
            future = self._ready_executor().submit(probe, self.setup.settings)
            return future.result(timeout=self.setup.timeout_s)
        except (BrokenProcessPool, TimeoutError) as error:
            self.abandon()
            raise MeasurementError("The process that probed the device died or hung; try again.") from error

    def abandon(self) -> None:
        """End the process at once, whatever it measures; another thread that waits for a result gets a failure."""
        self._kill()
        self._close()

    def _ready_executor(self) -> ProcessPoolExecutor:
        # Not `max_tasks_per_child`, which can deadlock (cpython #115634).
        if self._executor is not None and self._n_tasks >= self.setup.tasks_per_process:
            self._close()
        if self._executor is None:
            self._executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), prepare_process)
            self._n_tasks = 0
            try:
                with main_module_hidden():
                    future = self._executor.submit(open_bench, self.setup)
                self.process_id = future.result(timeout=self.setup.timeout_s)
            except (BrokenProcessPool, TimeoutError) as error:
                self._close()
                raise MeasurementError(
                    f"The measuring process died or hung while loading {self.setup.space_path}; "
                    "free some memory, then run the same command again."
                ) from error
        return self._executor

    def _kill(self) -> None:
        if self.process_id is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process_id, signal.SIGKILL)

    def _close(self) -> None:
        # `abandon` may come from another thread meanwhile.
        executor, self._executor, self.process_id = self._executor, None, None
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)


# From here on: what runs inside the process.


@dataclass(slots=True)
class _Bench:
    setup: WorkerSetup
    space: SearchSpace
    reference: TimedNet | None = None
    n_candidates: int = 0

    def warm_reference(self) -> TimedNet:
        """The reference, ready to be timed; with a session of its own for every few candidates."""
        if self.n_candidates % _CANDIDATES_PER_REFERENCE == 0:
            self.reference = None  # the old session goes before the new one comes
        self.n_candidates += 1
        if self.reference is None:
            self.reference = _reference(self.setup)
        for _ in range(_REWARMING_RUNS):
            self.reference.run()
        return self.reference


_bench: _Bench | None = None


def _reference(setup: WorkerSetup) -> TimedNet:
    session = make_session(setup.space_path, setup.settings)
    return timed_net(session, setup.protocol, setup.settings.batch_size)


def open_bench(setup: WorkerSetup) -> int:
    """Load the space and the reference network into this process; returns its id."""
    global _bench
    _reference(setup)  # a network that cannot be run is refused here, not once for every candidate
    space = SearchSpace.load(setup.space_path)
    if space.precision != setup.settings.precision:
        raise ModelFileError(
            f"{setup.space_path} is in {space.precision}, the device's setting is {setup.settings.precision}; give "
            "the file that `latency.number_formats.base_in` makes."
        )
    _bench = _Bench(setup, folded_space(space))
    return os.getpid()


def measure_candidate(widths: tuple[int, ...]) -> CandidateResult:
    """Build and measure one candidate in this process.

    Raises:
        DeviceBusyError: another measurement holds the device.
    """
    if _bench is None:
        raise MeasurementError("The measuring process was not opened.")
    setup = _bench.setup
    try:
        start = time.perf_counter()
        model = candidate_in_memory(_bench.space, first_channels(widths))
        session = make_session(model, setup.settings)
        build_ms = (time.perf_counter() - start) * 1e3
        lock = device_lock(setup.settings, wait_s=setup.lock_wait_s, part=setup.lock_part)
        with lock, garbage_collection_off():
            candidate = timed_net(session, setup.protocol, setup.settings.batch_size)
            measurement = measure_interleaved(candidate, _bench.warm_reference(), setup.protocol)
    except DeviceBusyError:
        raise
    except Exception as error:  # whatever it is, it is this candidate's, and is recorded with it
        return CandidateResult(None, f"{type(error).__name__}: {error}")
    return CandidateResult(measurement, build_ms=build_ms)
