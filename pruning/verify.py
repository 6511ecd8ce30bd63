"""Measures the pruned network against the dense one; writes the certificate, or checks it. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from latency.candidate import candidate_model, first_channels
from latency.clock import Clock
from latency.device import DeviceFingerprint, DeviceSettings, fingerprint
from latency.errors import DeviceMismatchError
from latency.measure import PairedMeasurement, Protocol
from latency.number_formats import base_in, metadata_of, space_in
from latency.profiles import ProfileSet, read_profile
from latency.sessions import SessionPlan, measure_sessions
from latency.space import PRECISION_KEY, SearchSpace
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
from pruning.correction import N_SESSIONS, repeatability
from pruning.errors import InputError, SettingError
from pruning.files import file_sha256
from pruning.plan import Plan
from pruning.run import RunDirectory

VERIFYING = SessionPlan(N_SESSIONS, 4.0, Protocol(min_pairs=32, max_pairs=100, relative_precision=0.005))
"""Measurements that a certificate rests on: eight sessions over three quarters of a minute."""

CHOOSING = SessionPlan(3, 0.0, Protocol(min_pairs=64, max_pairs=200, relative_precision=0.005))
"""Measurements that a cut is chosen by."""

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


@dataclass(frozen=True, slots=True)
class OtherVerification:
    """A measurement of a finished run on a further device or setting that it has a budget for.

    Attributes:
        name: run directory that the device was profiled in.
        budget_ms: latency to meet there.
        measured_ms: latency measured just now; None where this is not that device.
    """

    name: str
    budget_ms: float
    measured_ms: float | None

    @property
    def missed(self) -> bool:
        """Whether it was measured above its budget."""
        return self.measured_ms is not None and self.measured_ms > self.budget_ms


def verify_others(run: RunDirectory) -> tuple[OtherVerification, ...]:
    """Measure the run's pruned network on the further devices that it was pruned for, as far as they are here.

    Raises:
        ProfileError: a device's profile is gone or damaged.
        ServiceError: a device is that of a service's LPNet, and the service does not answer.
    """
    how = run.result("prune", "run `trimms prune` first").get("how", {})
    found = []
    for name, budget_ms in how.get("also", ()):
        profile = _profile_of(name)
        measured_ms = None
        if is_here(profile):
            measured_ms, _ = clocked_ms(profile.clock, measure_pruned(run, profile))
        found.append(OtherVerification(str(name), float(budget_ms), measured_ms))
    return tuple(found)


def _profile_of(name: str) -> ProfileSet:
    """What was measured on a further device, by its name in `PruneOptions.also`."""
    if "://" not in name:
        return read_profile(Path(name) / "profile.jsonl")
    from latency.client import lpnet_at

    return lpnet_at(name).profile()


def is_here(profile: ProfileSet) -> bool:
    """Whether this is the device that was profiled, so that its settings can be measured."""
    known = profile.header.fingerprint
    return fingerprint(known.settings).digest == known.digest


def measure_pruned(run: RunDirectory, profile: ProfileSet) -> PairedMeasurement:
    """The pruned network's latency relative to the dense one's, both with their trained weights.

    Both are in the number format that was profiled.

    Raises:
        DeviceMismatchError: this is not the device that was profiled.
        SettingError: the run has no pruned network yet, or has it in another number format.
    """
    path = run.require("pruned.onnx", "run `trimms finetune` first")
    settings = require_profiled_device(profile)
    precision = metadata_of(path).get(PRECISION_KEY, "fp32")
    if precision != settings.precision:
        raise SettingError(
            f"'{path}' is in {precision}, but {settings.precision} was profiled; run `trimms prune` and `trimms "
            "finetune` again, with a profile in that number format."
        )
    dense = base_in(run.file("base.onnx"), settings.precision)
    return measure_sessions(path.read_bytes(), dense.read_bytes(), settings, VERIFYING, title="measuring")


def measure_candidate(space: SearchSpace, widths: IntArray, profile: ProfileSet) -> tuple[float, float]:
    """Latency of a candidate on the profiled device, in ms, and the upper end of its 95 % interval.

    It is measured in the number format that was profiled.

    Raises:
        DeviceMismatchError: this is not the device that was profiled.
    """
    settings = require_profiled_device(profile)
    space = space_in(space, settings.precision)
    candidate = candidate_model(space, first_channels(widths)).SerializeToString()
    dense = space.model.SerializeToString()
    measurement = measure_sessions(candidate, dense, settings, CHOOSING, title="measuring the cut")
    measured_ms, (_, high_ms) = clocked_ms(profile.clock, measurement)
    return measured_ms, high_ms


def clocked_ms(clock: Clock, measurement: PairedMeasurement) -> tuple[float, tuple[float, float]]:
    """A measured latency in ms of a device, and its 95 % interval.

    They are at the pace of the device's clock, as what the predictor was fitted to: on a shared machine a network's
    ratio to the dense one moves with how slow both are.
    """
    low_ms, measured_ms, high_ms = (
        clock.latency_ms(ratio, measurement.reference_ms)
        for ratio in (measurement.ratio_ci[0], measurement.ratio, measurement.ratio_ci[1])
    )
    return measured_ms, (low_ms, high_ms)


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


def certify(run: RunDirectory) -> Verification:
    """Measure the run's pruned network and write `certificate.json`.

    Raises:
        SettingError: a stage before this one has not been run, or not since its files changed.
        DeviceMismatchError: this is not the device that was profiled.
    """
    profile = read_profile(run.require("profile.jsonl", "run `trimms profile` first"))
    tuned = run.result("finetune", "run `trimms finetune` first")
    _require_belonging(run, tuned)
    measurement = measure_pruned(run, profile)
    measured_ms, ci_ms = clocked_ms(profile.clock, measurement)
    header = profile.header
    certificate = Certificate(
        budget_ms=tuned["budget_ms"],
        dense_ms=profile.reference_ms,
        predicted_ms=tuned["predicted_ms"],
        measured_ms=measured_ms,
        measured_ci_ms=ci_ms,
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


def _require_belonging(run: RunDirectory, tuned: Mapping[str, Any]) -> None:
    """Refuse to certify files that the last fine-tuning has not made, or a plan that it was not made for."""
    advice = "run `trimms finetune` first"
    plan = Plan.read(run.require("plan.json", advice))
    # Results of versions before hold neither.
    other_plan = tuned.get("plan", plan.fingerprint) != plan.fingerprint
    changed = ["plan.json"] * other_plan + [*changed_files(tuned.get("sha256", {}), run.path)]
    if changed:
        raise SettingError(
            f"{', '.join(changed)} in '{run.path}' changed or missing since the fine-tuning, whose accuracy and budget "
            f"would be certified; {advice}."
        )


def verify(run: RunDirectory) -> Verification:
    """Measure a certified run again; the certificate stays as it is.

    Raises:
        InputError: the certificate is damaged, or a file is no longer the one it was written for.
        DeviceMismatchError: this is not the device that was profiled.
    """
    path: Path = run.require("certificate.json", "run `trimms verify` first, which writes it")
    certificate = Certificate.read(path)
    changed = changed_files(certificate.sha256, run.path)
    if changed:
        raise InputError(
            f"'{run.path}' no longer holds what was certified: {', '.join(changed)} changed or missing; "
            "bring them back, or run `trimms verify --renew`; where the network or its plan changed, `trimms finetune` "
            "before it."
        )
    profile = read_profile(run.file("profile.jsonl"))
    return _verification(certificate, measure_pruned(run, profile), profile)


def _verification(
    certificate: Certificate, measurement: PairedMeasurement, profile: ProfileSet
) -> Verification:
    measured_ms, (low, high) = clocked_ms(certificate.clock, measurement)
    certified_low, certified_high = certificate.measured_ci_ms
    apart = repeatability(profile, certificate.measured_ms)
    slack = apart * certificate.measured_ms
    return Verification(
        certificate=certificate,
        measured_ms=measured_ms,
        ci_ms=(low, high),
        repeatability=apart,
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
        pace_exponent=profile.pace_exponent,
    )
