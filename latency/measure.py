"""Latency of a network as a ratio to a reference network, measured interleaved.

On a shared machine the clock drifts by 5 to 20 % within minutes, so milliseconds taken one net after the
other do not compare. Reference R and candidate C run alternately, R C R C … R; every C is divided by the mean
of its two neighbouring R; the result is the median of these ratios with its 95 % confidence interval by order
statistics. Pairs are added until the interval is narrow enough. Samples during which the scheduler took
the core away say nothing about the network: they are dropped and repeated.
"""

import contextlib
import dataclasses
import fcntl
import functools
import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from latency.device import DeviceSettings
from latency.errors import DeviceBusyError, EnvironmentFailure, InputError
from latency.session import bound_run, random_feed
from latency.timing import MS_PER_NS, Clock, TimedNet, clock_of, garbage_collection_off

# Half the width of a 95 % interval of a normal distribution, in standard errors.
_Z95 = 1.96
# Fewest values whose extremes enclose the median with 95 % confidence: 1 - 2 · 0.5⁶ = 0.969.
_FEWEST_PAIRS = 6
# Number of values up to which ranks are counted exactly.
_EXACT_RANKS = 200


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a pair of networks is measured.

    Attributes:
        warmup_runs: inferences of each network before the first sample, fewer if `warmup_ms` is over first.
        warmup_ms: time after which a warm-up of at least two inferences ends.
        min_pairs: samples of the candidate at least.
        max_pairs: samples of the candidate at most.
        max_seconds: time after which no sample is repeated and, once there are `min_pairs`, no pair added.
        relative_precision: wanted half-width of the ratio's 95 % confidence interval, relative to the ratio.
        min_sample_ms: a sample holds as many inferences as it takes to last this long.
        max_preempted: preempted samples that are dropped and repeated at most; further ones are kept, and the
            measurement then counts as not converged, as it does where these were kept for lack of time.
        preempted_share: share of a sample's wall-clock time without the core that makes it preempted; where several
            threads compute, any involuntary switch does.
    """

    warmup_runs: int = 10
    warmup_ms: float = 50.0
    min_pairs: int = 16
    max_pairs: int = 200
    max_seconds: float = 30.0
    relative_precision: float = 0.01
    min_sample_ms: float = 0.3
    max_preempted: int = 1000
    preempted_share: float = 0.02

    def __post_init__(self) -> None:
        if not _FEWEST_PAIRS <= self.min_pairs <= self.max_pairs:
            raise InputError(
                f"A protocol needs {_FEWEST_PAIRS} ≤ min_pairs ≤ max_pairs for a 95 % confidence interval, "
                f"got min_pairs={self.min_pairs}, max_pairs={self.max_pairs}."
            )
        if self.relative_precision <= 0:
            raise InputError(f"The relative precision must be above 0, got {self.relative_precision}.")

    def to_json(self) -> dict[str, Any]:
        """The protocol as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Protocol":
        """The protocol that `to_json` gave."""
        return cls(**record)


DEFAULT_PROTOCOL = Protocol()


@dataclass(frozen=True, slots=True)
class PairedMeasurement:
    """A candidate's latency as a ratio to the reference's.

    Attributes:
        ratio: median of `ratios`.
        ratio_ci: its 95 % confidence interval (low, high).
        candidate_ms: median of the candidate's samples, per inference.
        reference_ms: median of the reference's samples, per inference.
        candidate_p90_ms: their 90 % quantile.
        reference_p90_ms: their 90 % quantile.
        n_pairs: number of ratios.
        n_preempted: samples during which the core was taken away, dropped or kept.
        converged: whether the interval is as narrow as the protocol wants, from unpreempted samples alone.
        timed_s: time inside all samples, the dropped ones too, in seconds.
        ratios: candidate sample over the mean of its two neighbours, [n_pairs], in order of time.
        candidate_samples_ms: [n_pairs], per inference.
        reference_samples_ms: [n_pairs + 1], per inference.
    """

    ratio: float
    ratio_ci: tuple[float, float]
    candidate_ms: float
    reference_ms: float
    candidate_p90_ms: float
    reference_p90_ms: float
    n_pairs: int
    n_preempted: int
    converged: bool
    timed_s: float
    ratios: tuple[float, ...]
    candidate_samples_ms: tuple[float, ...]
    reference_samples_ms: tuple[float, ...]

    @property
    def ratio_stderr(self) -> float:
        """Standard error of the ratio relative to the ratio, from the confidence interval."""
        return (self.ratio_ci[1] - self.ratio_ci[0]) / (2 * _Z95 * self.ratio)


def measure_pair(
    candidate: ort.InferenceSession,
    reference: ort.InferenceSession,
    protocol: Protocol = DEFAULT_PROTOCOL,
    *,
    batch_size: int | None = None,
) -> PairedMeasurement:
    """The candidate's latency relative to the reference's, measured interleaved.

    The caller holds the `device_lock`, so that nothing else of this kind runs meanwhile.

    Args:
        candidate: session of the network in question.
        reference: session of the network to compare with.
        protocol: warm-up, number of pairs, precision.
        batch_size: images per inference; the candidate's own (1 if open) if left out.

    Raises:
        InputError: a session's inputs cannot be made up, see `latency.session.random_feed`.
    """
    batch = batch_size or _built_in_batch(candidate)
    with garbage_collection_off():
        nets = [timed_net(session, protocol, batch) for session in (candidate, reference)]
        return measure_interleaved(nets[0], nets[1], protocol)


def timed_net(session: ort.InferenceSession, protocol: Protocol, batch_size: int) -> TimedNet:
    """The session's network on random inputs, after its warm-up.

    Raises:
        InputError: inputs cannot be made up, see `latency.session.random_feed`.
    """
    run = bound_run(session, random_feed(session, batch_size=batch_size))
    return ready(run, clock_of(session), protocol)


def ready(run: Callable[[], None], clock: Clock, protocol: Protocol) -> TimedNet:
    """The network after its warm-up, with the number of inferences that makes a sample long enough."""
    times_ms: list[float] = []
    while len(times_ms) < 2 or (len(times_ms) < protocol.warmup_runs and sum(times_ms) < protocol.warmup_ms):
        start = clock.wall_ns()
        run()
        times_ms.append((clock.wall_ns() - start) * MS_PER_NS)
    # The later half: the first runs allocate memory and fill caches.
    settled_ms = max(float(np.median(times_ms[len(times_ms) // 2 :])), 1e-4)
    n_inferences = max(1, math.ceil(protocol.min_sample_ms / settled_ms))
    return TimedNet(run, clock, n_inferences, protocol.preempted_share)


def measure_interleaved(candidate: TimedNet, reference: TimedNet, protocol: Protocol) -> PairedMeasurement:
    """The ratio of two networks that are already warm; see the module's text for the method."""
    deadline_ns = reference.clock.wall_ns() + protocol.max_seconds * 1e9
    tally = _Tally(protocol.max_preempted, deadline_ns)
    references = [tally.clean_sample(reference)]
    candidates: list[float] = []
    while True:
        candidates.append(tally.clean_sample(candidate))
        references.append(tally.clean_sample(reference))
        n_pairs = len(candidates)
        if n_pairs < protocol.min_pairs or (n_pairs % 4 and n_pairs < protocol.max_pairs):
            continue
        ratios = neighbour_ratios(candidates, references)
        narrow = _relative_half_width(ratios) <= protocol.relative_precision
        if narrow or n_pairs >= protocol.max_pairs or reference.clock.wall_ns() > deadline_ns:
            break
    return _summary(candidates, references, tally, converged=narrow and not tally.kept_preempted)


def neighbour_ratios(candidates: Sequence[float], references: Sequence[float]) -> list[float]:
    """Each candidate sample over the mean of the reference samples just before and just after it.

    Args:
        candidates: samples, [n].
        references: samples, [n + 1].
    """
    neighbours = itertools.pairwise(references)
    pairs = zip(candidates, neighbours, strict=True)
    return [sample / ((before + after) / 2) for sample, (before, after) in pairs]


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the median by order statistics: no assumption on the distribution.

    The k-th smallest and k-th largest of n values enclose the median with probability
    1 - 2 P(B < k), B ~ Binomial(n, 1/2); the largest k that reaches `confidence` is taken.
    """
    ordered = sorted(values)
    k = _median_rank(len(ordered), confidence)
    return ordered[k - 1], ordered[len(ordered) - k]


@functools.cache
def _median_rank(n: int, confidence: float) -> int:
    """Rank from either end, at least 1, whose values enclose the median of n with this confidence."""
    if n > _EXACT_RANKS:  # the normal distribution is as good there, and powers of two run out
        z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
        return math.floor((n - z * math.sqrt(n)) / 2)
    k, below = 0, 0.5**n
    while 1 - 2 * below >= confidence:
        k += 1
        below += math.comb(n, k) * 0.5**n
    return max(k, 1)


@contextlib.contextmanager
def device_lock(
    settings: DeviceSettings,
    *,
    wait_s: float = 60.0,
    folder: Path | None = None,
    part: str | None = None,
) -> Iterator[None]:
    """Hold the device, so that one measurement runs on it at a time; freed even by `kill -9`.

    Args:
        settings: say which hardware is measured.
        wait_s: how long to wait for another measurement.
        folder: where the lock file is, the temporary directory if left out.
        part: name of the part of the hardware to hold, such as "core-1"; all of it if left out. Different parts
            can be held at the same time.

    Raises:
        DeviceBusyError: the device was not free within `wait_s`.
    """
    # One file a user: in a shared /tmp another user's file may not even be opened.
    name = f"trimms-{os.getuid()}-{settings.hardware}"
    folder = folder or Path(tempfile.gettempdir())
    deadline = time.monotonic() + wait_s
    with contextlib.ExitStack() as held:
        try:
            if part is not None:
                held.enter_context(_locked(folder / f"{name}-{part}.lock", deadline))
            # Who waits holds the queue, so that a profiler between two candidates cannot overtake.
            with _locked(folder / f"{name}.queue", deadline):
                held.enter_context(_locked(folder / f"{name}.lock", deadline, shared=part is not None))
        except BlockingIOError:
            raise DeviceBusyError(
                f"Another measurement has held the {settings.hardware} for {wait_s:g} s. Two at a time would slow "
                f"each other down; try again when it has ended (lock {folder / name}.lock)."
            ) from None
        yield


@contextlib.contextmanager
def _locked(path: Path, deadline: float, *, shared: bool = False) -> Iterator[None]:
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
            except OSError as error:
                raise EnvironmentFailure(
                    f"Cannot lock {path}: {error.strerror}; let TMPDIR be a folder on a local disk."
                ) from error
        yield


class _Tally:
    """Takes samples and counts the preempted ones."""

    def __init__(self, max_dropped: int, deadline_ns: float) -> None:
        self.n_preempted = 0
        self.timed_s = 0.0
        self.kept_preempted = False
        self._max_dropped = max_dropped
        self._deadline_ns = deadline_ns

    def clean_sample(self, net: TimedNet) -> float:
        while True:
            sample = net.sample()
            self.timed_s += 1e-3 * sample.ms * net.n_inferences
            if not sample.preempted:
                return sample.ms
            self.n_preempted += 1
            if self.n_preempted > self._max_dropped or net.clock.wall_ns() > self._deadline_ns:
                self.kept_preempted = True
                return sample.ms


def _summary(
    candidates: list[float], references: list[float], tally: _Tally, *, converged: bool
) -> PairedMeasurement:
    ratios = neighbour_ratios(candidates, references)
    return PairedMeasurement(
        ratio=float(np.median(ratios)),
        ratio_ci=median_interval(ratios),
        candidate_ms=float(np.median(candidates)),
        reference_ms=float(np.median(references)),
        candidate_p90_ms=float(np.quantile(candidates, 0.9)),
        reference_p90_ms=float(np.quantile(references, 0.9)),
        n_pairs=len(ratios),
        n_preempted=tally.n_preempted,
        converged=converged,
        timed_s=tally.timed_s,
        ratios=tuple(ratios),
        candidate_samples_ms=tuple(candidates),
        reference_samples_ms=tuple(references),
    )


def _relative_half_width(ratios: list[float]) -> float:
    low, high = median_interval(ratios)
    return (high - low) / (2 * float(np.median(ratios)))


def _built_in_batch(session: ort.InferenceSession) -> int:
    shape = session.get_inputs()[0].shape
    return shape[0] if shape and isinstance(shape[0], int) else 1
