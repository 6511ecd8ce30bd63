"""A pair of networks measured several times, each in a process of its own, with pauses between.

One process is one draw of where memory lies, and some seconds are one mood of a shared machine: there the ratio of two
networks held at 2.4 % off its median (a standard deviation, MobileNetV2 at half its widths) however many pairs were
taken in a row, while as many pairs spread over a minute and a half stayed within 0.4 to 1 %.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from tqdm import tqdm

from latency.device import DeviceSettings
from latency.errors import MeasurementError
from latency.measure import PairedMeasurement, Protocol, device_lock, measure_pair, median_interval
from latency.processes import main_module_hidden, prepare_process
from latency.session import make_session


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """How often a pair is measured.

    Attributes:
        n_sessions: measurements, each in a new process.
        pause_s: seconds between two of them.
        protocol: how each is taken.
    """

    n_sessions: int
    pause_s: float
    protocol: Protocol


def measure_sessions(
    candidate: bytes, reference: bytes, settings: DeviceSettings, plan: SessionPlan, *, title: str
) -> PairedMeasurement:
    """The candidate's latency relative to the reference's, over several sessions.

    Args:
        candidate: bytes of an ONNX file.
        reference: bytes of another one.
        settings: provider, threads, batch size.
        plan: how often.
        title: what the progress bar calls it.

    Raises:
        MeasurementError: a measuring process died.
        DeviceBusyError: another measurement holds the device.
    """
    (measurement,) = measure_together([candidate], reference, settings, plan, title=title)
    return measurement


def measure_together(
    candidates: Sequence[bytes], reference: bytes, settings: DeviceSettings, plan: SessionPlan, *, title: str
) -> tuple[PairedMeasurement, ...]:
    """Latencies of several networks relative to one reference, comparable with each other.

    Each session visits every candidate once, each beside the reference in a process of its own, every other
    session in the opposite order, so that a slow mood of the machine falls on all of them alike.

    Args:
        candidates: bytes of ONNX files.
        reference: bytes of another one.
        settings: provider, threads, batch size.
        plan: how often.
        title: what the progress bar calls it.

    Returns:
        One measurement for each candidate, pooled over the sessions.

    Raises:
        MeasurementError: a measuring process died.
        DeviceBusyError: another measurement holds the device.
    """
    parts: list[list[PairedMeasurement]] = [[] for _ in candidates]
    with tqdm(total=plan.n_sessions * len(candidates), desc=title, unit="session", leave=False) as bar:
        for session in range(plan.n_sessions):
            if session:
                time.sleep(plan.pause_s)
            order = range(len(candidates))
            for index in reversed(order) if session % 2 else order:
                parts[index].append(_in_new_process(candidates[index], reference, settings, plan.protocol))
                bar.update()
    return tuple(pooled(sessions) for sessions in parts)


def _in_new_process(
    candidate: bytes, reference: bytes, settings: DeviceSettings, protocol: Protocol
) -> PairedMeasurement:
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), prepare_process) as pool, main_module_hidden():
            return pool.submit(_measure, candidate, reference, settings, protocol).result()
    except BrokenProcessPool as error:
        raise MeasurementError(
            "The measuring process died: out of memory, or a crash in ONNX Runtime; free some memory, then run the "
            "same command again."
        ) from error


def _measure(
    candidate: bytes, reference: bytes, settings: DeviceSettings, protocol: Protocol
) -> PairedMeasurement:
    with device_lock(settings):
        return measure_pair(make_session(candidate, settings), make_session(reference, settings), protocol)


def pooled(parts: Sequence[PairedMeasurement]) -> PairedMeasurement:
    """Several measurements of one pair of networks as one.

    The interval is at least as wide as the sessions' own medians are apart.
    """
    ratios = tuple(ratio for part in parts for ratio in part.ratios)
    low, high = median_interval(ratios)
    medians = [part.ratio for part in parts]
    return PairedMeasurement(
        ratio=float(np.median(ratios)),
        ratio_ci=(min(low, *medians), max(high, *medians)),
        candidate_ms=float(np.median([part.candidate_ms for part in parts])),
        reference_ms=float(np.median([part.reference_ms for part in parts])),
        candidate_p90_ms=float(np.median([part.candidate_p90_ms for part in parts])),
        reference_p90_ms=float(np.median([part.reference_p90_ms for part in parts])),
        n_pairs=len(ratios),
        n_preempted=sum(part.n_preempted for part in parts),
        converged=all(part.converged for part in parts),
        timed_s=sum(part.timed_s for part in parts),
        ratios=ratios,
        candidate_samples_ms=tuple(ms for part in parts for ms in part.candidate_samples_ms),
        reference_samples_ms=tuple(ms for part in parts for ms in part.reference_samples_ms),
    )
