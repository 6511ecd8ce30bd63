"""Timing a network so that a sample during which the scheduler took the core away is recognised."""

import contextlib
import gc
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import onnxruntime as ort

MS_PER_NS = 1e-6
# Below this the clocks' own reading time (about 1 µs) and timer interrupts look like preemption.
_PREEMPTED_FLOOR_NS = 20_000


class Clock(Protocol):
    """What is read before and after a sample."""

    def wall_ns(self) -> int:
        """Wall-clock time in nanoseconds."""

    def cpu_ns(self) -> int | None:
        """CPU time of the thread that computes, in nanoseconds; None where several threads do."""

    def involuntary_switches(self) -> int:
        """How often the scheduler took the core away so far."""


class SingleThreadClock:
    """Clock of a session that computes in the calling thread: preemption shows as wall without CPU time."""

    _who = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)

    def wall_ns(self) -> int:
        """Wall-clock time in nanoseconds."""
        return time.perf_counter_ns()

    def cpu_ns(self) -> int | None:
        """CPU time of the calling thread in nanoseconds."""
        return time.thread_time_ns()

    def involuntary_switches(self) -> int:
        """Involuntary context switches of the calling thread."""
        return resource.getrusage(self._who).ru_nivcsw


class ManyThreadsClock:
    """Clock of a session with a thread pool: preemption shows in the process's context switches only."""

    def wall_ns(self) -> int:
        """Wall-clock time in nanoseconds."""
        return time.perf_counter_ns()

    def cpu_ns(self) -> int | None:
        """None: the threads' CPU times do not add up to the wall clock's."""
        return None

    def involuntary_switches(self) -> int:
        """Involuntary context switches of the whole process."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed stretch of inferences: milliseconds per inference, and whether the core was taken away."""

    ms: float
    preempted: bool


@dataclass(frozen=True, slots=True)
class TimedNet:
    """A network ready to be timed.

    Attributes:
        run: runs one inference.
        clock: read around each sample.
        n_inferences: inferences a sample holds.
        preempted_share: see `latency.measure.Protocol`.
    """

    run: Callable[[], None]
    clock: Clock
    n_inferences: int
    preempted_share: float

    def sample(self) -> Sample:
        """Time the network once."""
        clock = self.clock
        switches, cpu = clock.involuntary_switches(), clock.cpu_ns()
        start = clock.wall_ns()
        for _ in range(self.n_inferences):
            self.run()
        wall = clock.wall_ns() - start
        cpu_after = clock.cpu_ns()
        if cpu is None or cpu_after is None:
            preempted = clock.involuntary_switches() > switches
        else:  # a switch that costs next to nothing, to a daemon that just looks around, does not count
            without_core = wall - (cpu_after - cpu)
            preempted = without_core > max(self.preempted_share * wall, _PREEMPTED_FLOOR_NS)
        return Sample(ms=wall * MS_PER_NS / self.n_inferences, preempted=preempted)


def clock_of(session: ort.InferenceSession) -> Clock:
    """The clock that sees the most of what happens to the session."""
    on_cpu = session.get_providers()[0] == "CPUExecutionProvider"
    one_thread = session.get_session_options().intra_op_num_threads == 1
    return SingleThreadClock() if on_cpu and one_thread else ManyThreadsClock()


@contextlib.contextmanager
def garbage_collection_off() -> Iterator[None]:
    """Keep Python's garbage collector from running within samples."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
