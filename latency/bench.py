"""Where candidates are measured: on this device here, on many devices of one kind in `latency.fleet`."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from latency.device import DeviceFingerprint, fingerprint
from latency.probe import ProbeResult
from latency.profile_rows import ProfileRow, RowKey
from latency.worker import CandidateResult, Worker, WorkerSetup


class Bench(Protocol):
    """Devices that are ready to measure candidates of one network."""

    @property
    def fingerprint(self) -> DeviceFingerprint:
        """What the measurements belong to; it is the same for all devices of a bench."""

    def probe(self) -> ProbeResult:
        """The devices' channel step, see `latency.probe.probe_step`."""

    def rows(self, keys: Iterable[RowKey]) -> Iterator[ProfileRow]:
        """A row for every key, failures included, in the order in which they are done.

        Keys are taken no sooner than a device is about to be free for them.
        """


OpenBench = Callable[[WorkerSetup], AbstractContextManager[Bench]]


class LocalBench:
    """This device."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.fingerprint = fingerprint(worker.setup.settings)

    def probe(self) -> ProbeResult:
        """As `Bench.probe`."""
        return self._worker.probe()

    def rows(self, keys: Iterable[RowKey]) -> Iterator[ProfileRow]:
        """As `Bench.rows`, in the order of the keys."""
        for key in keys:
            yield row_of(key, self._worker.measure(key[0]))


@contextlib.contextmanager
def local_bench(setup: WorkerSetup) -> Iterator[LocalBench]:
    """This device as a bench.

    Raises:
        ProviderUnavailableError: the installed ONNX Runtime lacks the provider.
        InputError: more threads are asked for than there are cores.
    """
    with Worker(setup) as worker:
        yield LocalBench(worker)


def row_of(key: RowKey, result: CandidateResult, device: str = "") -> ProfileRow:
    """A profile's row of a measurement that has just ended."""
    widths, split, pass_index = key
    if result.measurement is None:
        return ProfileRow(widths, split, pass_index, "failed", result.error, device=device)
    return ProfileRow.measured(
        widths,
        split,
        pass_index,
        result.measurement,
        build_ms=result.build_ms,
        measured_at=time.time(),
        device=device,
    )
