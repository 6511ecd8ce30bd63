"""Measures the pruned network against the dense one; writes the certificate, or checks it. Needs no torch."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnxruntime

from latency.candidate import candidate_model, first_channels
from latency.device import DeviceFingerprint, DeviceSettings, fingerprint
from latency.errors import DeviceMismatchError, MeasurementError
from latency.measure import PairedMeasurement, Protocol, device_lock, measure_pair, median_interval
from latency.profiles import ProfileSet, read_profile
from latency.session import make_session
from latency.space import SearchSpace
from latency.structure import IntArray
from pruning.certificate import (
    CERTIFIED_FILES,
    Certificate,
    CertifiedSettings,
    InterleavedRun,
    LatencySpread,
    RuntimeRecord,
    changed_files,
    recorded_versions,
    utc_now,
)
from pruning.errors import InputError
from pruning.files import file_sha256
from pruning.run import RunDirectory

VERIFYING = Protocol(min_pairs=64, max_pairs=200, relative_precision=0.005)
"""Measurements that a certificate rests on: more pairs than profiling takes."""

SESSIONS = 3
"""Sessions of each network that a certificate rests on."""

FILES = (*CERTIFIED_FILES, "pruned.pt2")


@dataclass(frozen=True, slots=True)
class Verification:
    """A measurement of a finished run.

    Attributes:
        certificate: the run's certificate.
        measured_ms: latency measured just now, in ms of the device's profile.
        ci_ms: its 95 % confidence interval.
        repeatability: how far two measurements may lie apart beyond their own intervals, relative.
        agrees: whether it agrees with the certificate's latency within the intervals and that.
        within_budget: whether it is within the budget.
        measurement: the raw measurement.
    """

    certificate: Certificate
    measured_ms: float
    ci_ms: tuple[float, float]
    repeatability: float
    agrees: bool
    within_budget: bool
    measurement: PairedMeasurement


def measure_pruned(
    run: RunDirectory, profile: ProfileSet, protocol: Protocol = VERIFYING
) -> PairedMeasurement:
    """The pruned network's latency relative to the dense one's, both with their trained weights.

    Raises:
        DeviceMismatchError: this is not the device that was profiled.
        SettingError: the run has no pruned network yet.
    """
    pruned = run.require("pruned.onnx", "run `trimms finetune` first")
    settings = require_profiled_device(profile)
    return _measure_afresh(pruned.read_bytes(), run.file("base.onnx").read_bytes(), settings, protocol)


def measure_candidate(
    space: SearchSpace, widths: IntArray, profile: ProfileSet, protocol: Protocol = VERIFYING
) -> tuple[float, float]:
    """Latency of a candidate on the profiled device, in ms, and the upper end of its 95 % interval.

    Raises:
        DeviceMismatchError: this is not the device that was profiled.
    """
    settings = require_profiled_device(profile)
    candidate = candidate_model(space, first_channels(widths)).SerializeToString()
    measurement = _measure_afresh(candidate, space.model.SerializeToString(), settings, protocol)
    return measurement.ratio * profile.reference_ms, measurement.ratio_ci[1] * profile.reference_ms


def _measure_afresh(
    candidate: bytes, reference: bytes, settings: DeviceSettings, protocol: Protocol
) -> PairedMeasurement:
    """Measure in a process of its own, as the network will run: a process that has trained is no measure."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_measure_sessions, candidate, reference, settings, protocol).result()
    except BrokenProcessPool as error:
        raise MeasurementError(
            "the measuring process ended by itself. Is there enough memory? A script of your own has to measure "
            "below `if __name__ == '__main__':`, since measuring starts a process that imports it."
        ) from error


def _measure_sessions(
    candidate: bytes, reference: bytes, settings: DeviceSettings, protocol: Protocol
) -> PairedMeasurement:
    """All pairs of several sessions: where a session's memory lies moves its latency by a percent or two."""
    parts = []
    with device_lock(settings):
        for _ in range(SESSIONS):
            sessions = make_session(candidate, settings), make_session(reference, settings)
            parts.append(measure_pair(*sessions, protocol))
    return pooled(parts)


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


def require_profiled_device(profile: ProfileSet) -> DeviceSettings:
    """Settings of the profiled device, if it is this one.

    Raises:
        DeviceMismatchError: it is another one.
    """
    known: DeviceFingerprint = profile.header.fingerprint
    here = fingerprint(known.settings)
    if here.digest != known.digest:
        differences = "; ".join(known.differences(here))
        raise DeviceMismatchError(
            f"the run was profiled on another device ({differences}); milliseconds of one device say nothing "
            "about another: run `trimms profile` here with another --out."
        )
    return known.settings


def certify(run: RunDirectory, protocol: Protocol = VERIFYING) -> Verification:
    """Measure the run's pruned network and write `certificate.json`.

    Raises:
        SettingError: a stage before this one has not been run.
        DeviceMismatchError: this is not the device that was profiled.
    """
    profile = read_profile(run.file("profile.jsonl"))
    tuned = run.result("finetune", "run `trimms finetune` first")
    measurement = measure_pruned(run, profile, protocol)
    low, high = (bound * profile.reference_ms for bound in measurement.ratio_ci)
    header = profile.header
    certificate = Certificate(
        budget_ms=tuned["budget_ms"],
        dense_ms=profile.reference_ms,
        predicted_ms=tuned["predicted_ms"],
        measured_ms=measurement.ratio * profile.reference_ms,
        measured_ci_ms=(low, high),
        dense_accuracy=tuned["dense_accuracy"],
        accuracy=tuned["accuracy"],
        dense_macs=tuned["dense_macs"],
        macs=tuned["macs"],
        dense_params=tuned["dense_params"],
        params=tuned["params"],
        interleaved=_interleaved(measurement, profile),
        device=header.fingerprint.to_json(),
        device_digest=header.fingerprint.digest,
        runtime=RuntimeRecord(onnxruntime.__version__, dict(header.fingerprint.session_config)),
        settings=CertifiedSettings(
            provider=header.settings.provider,
            threads=header.settings.threads,
            batch_size=header.settings.batch_size,
            input_size=tuple(tuned["input_shape"]),
            mean=tuple(tuned["mean"]),
            std=tuple(tuned["std"]),
        ),
        seeds={"run": run.settings().seed, "profile": header.seed},
        versions=recorded_versions() | tuned["versions"],
        sha256={name: file_sha256(run.file(name)) for name in FILES if run.file(name).is_file()},
        created=utc_now(),
    )
    certificate.write(run.file("certificate.json"))
    return _verification(certificate, measurement, profile)


def verify(run: RunDirectory, protocol: Protocol = VERIFYING) -> Verification:
    """Measure a certified run again; the certificate stays as it is.

    Raises:
        InputError: the certificate is damaged, or a file is no longer the one it was written for.
        DeviceMismatchError: this is not the device that was profiled.
    """
    path: Path = run.require("certificate.json", "run `trimms finetune` first")
    certificate = Certificate.read(path)
    changed = changed_files(certificate, run.path)
    if changed:
        raise InputError(
            f"'{run.path}' no longer holds what was certified: {', '.join(changed)} changed or missing; "
            "run `trimms verify --renew` to certify the files as they are."
        )
    profile = read_profile(run.file("profile.jsonl"))
    return _verification(certificate, measure_pruned(run, profile, protocol), profile)


def _verification(
    certificate: Certificate, measurement: PairedMeasurement, profile: ProfileSet
) -> Verification:
    measured_ms = measurement.ratio * profile.reference_ms
    low, high = (bound * profile.reference_ms for bound in measurement.ratio_ci)
    certified_low, certified_high = certificate.measured_ci_ms
    repeatability = profile.repeatability(certificate.measured_ms)
    slack = repeatability * certificate.measured_ms
    return Verification(
        certificate=certificate,
        measured_ms=measured_ms,
        ci_ms=(low, high),
        repeatability=repeatability,
        agrees=low - slack <= certified_high and certified_low <= high + slack,
        within_budget=measured_ms <= certificate.budget_ms,
        measurement=measurement,
    )


def _interleaved(measurement: PairedMeasurement, profile: ProfileSet) -> InterleavedRun:
    return InterleavedRun(
        dense=LatencySpread(measurement.reference_ms, measurement.reference_p90_ms),
        pruned=LatencySpread(measurement.candidate_ms, measurement.candidate_p90_ms),
        n_pairs=measurement.n_pairs,
        reference_drift=measurement.reference_ms / profile.reference_ms - 1,
    )
