"""Stages that run on the device: probe, profile, predict, verify. They need no torch."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from latency.bench import OpenBench, local_bench
from latency.device import DeviceSettings, fingerprint
from latency.fleet.address import FleetAddress
from latency.journal import RowSink
from latency.predictor import Predictor
from latency.probe import KINDS, ProbeResult, probe_step
from latency.probing import DeviceProbe, require_probed_here
from latency.profiles import ProfileSet, read_profile
from latency.profiling import ProfilePlan, passes_needed, profile
from latency.space import SearchSpace
from latency.structure import IntArray
from pruning.errors import SettingError
from pruning.files import write_atomically
from pruning.run import RunDirectory
from pruning.verify import OtherVerification, Verification, certify, verify, verify_others

NARROWEST_PROBE, WIDEST_PROBE = 96, 1024
"""Limits of the widths that are probed: below 96 channels a step of 32 cannot show."""

NOISY, PRECISE = 0.025, 0.02
"""Half-width of the 95 % interval of a network's latency from which a device counts as noisy, and a better one."""


def probe_stage(run: RunDirectory, settings: DeviceSettings, *, max_width: int) -> dict[str, Any]:
    """Measure single convolutions of every width to find the device's channel steps: `probe.json`.

    Where matplotlib is installed it draws them too: `probe.html`.

    Raises:
        SettingError: `max_width` is too small to show a step.
    """
    if not NARROWEST_PROBE <= max_width <= WIDEST_PROBE:
        raise SettingError(
            f"--max-width is from {NARROWEST_PROBE} to {WIDEST_PROBE} channels; got {max_width}."
        )
    with tqdm(total=len(KINDS) * max_width, desc="probing", unit="net") as bar:
        result = probe_step(
            settings,
            kinds=KINDS,
            widths=range(1, max_width + 1),
            progress=lambda done, _: _advance(bar, done),
        )
    probe = DeviceProbe(fingerprint(settings), result)
    write_atomically(run.file("probe.json"), (json.dumps(probe.to_json()) + "\n").encode())
    page = None
    if find_spec("matplotlib") and find_spec("jinja2"):
        from pruning.probe_page import write_probe_page

        page = str(write_probe_page(run.file("probe.html"), probe))
    return {
        "device": probe.fingerprint.describe(),
        "dense_step": result.step.dense,
        "depthwise_step": result.step.depthwise,
        "seconds": result.seconds,
        "staircases": [
            {"kind": curve.kind, "step": curve.step, "cliff": curve.cliff, "image_px": curve.image_px}
            for curve in result.staircases
        ],
        "probe": str(run.file("probe.json")),
        "page": page,
    }


def _advance(bar: "tqdm[Any]", done: int) -> None:
    bar.update(done - bar.n)


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """Which devices of which fleet are profiled.

    Attributes:
        address: the fleet's scheduler.
        device: name of one device of the kind; None where there is one kind only.
    """

    address: FleetAddress
    device: str | None = None


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """How the device is profiled.

    Attributes:
        provider: ONNX Runtime provider of the device.
        threads: threads of one inference.
        dtype: number format that the network runs in, see `latency.providers.PRECISIONS`.
        n_candidates: networks to measure for LPNet; at most so many where a time or an error ends it.
        n_held_out: networks to judge LPNet by.
        minutes: time to measure for; None is no limit.
        until_mape: error of LPNet to reach, 0.01 is 1 %; None is not to look. Needs torch.
        precision: half-width of the 95 % interval that each network's latency is to be known within, relative;
            None is to visit each twice.
        active: share of the networks that is chosen where LPNet's ensemble disagrees; None is none. Needs torch.
        fleet: devices to profile on; None is this one.
        registry: URL of the service whose registry gets the rows too, as they come; None is no service.
    """

    provider: str = "cpu"
    threads: int = 1
    dtype: str = "fp32"
    n_candidates: int = 300
    n_held_out: int = 60
    minutes: float | None = None
    until_mape: float | None = None
    precision: float | None = None
    active: float | None = None
    fleet: FleetOptions | None = None
    registry: str | None = None


def profile_stage(
    run: RunDirectory,
    options: ProfileOptions,
    *,
    seed: int,
    announce: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure candidates of the run's network on this device, or a fleet; goes on where it was interrupted.

    Raises:
        LatencyError: as `latency.profiling.profile`; or the profile is complete, but the service does not hold it.
        SettingError: LPNet is to be fitted on the way, but torch is not installed.
    """
    _require_torch(options)
    base = run.require("base.onnx", "run `trimms trace` first, or copy the file here")
    batch_size = SearchSpace.load(base).input_shape[0]
    settings = DeviceSettings.parse(
        options.provider, threads=options.threads, batch_size=batch_size, precision=options.dtype
    )
    plan = ProfilePlan(
        n_candidates=options.n_candidates,
        n_held_out=options.n_held_out,
        minutes=options.minutes,
        seed=seed,
        precision=options.precision,
        probe=None if options.fleet else _known_probe(run, settings),
    )
    out, bench = run.file("profile.jsonl"), _bench(options.fleet, announce)
    with _sinks(options.registry, base, out, announce) as sinks:
        if options.until_mape is not None:
            from latency.adaptive import profile_until

            profile_until(
                base,
                out,
                settings,
                plan,
                mape=options.until_mape,
                open_bench=bench,
                announce=announce,
                sinks=sinks,
            )
        elif options.active is not None:
            from latency.active import profile_actively

            profile_actively(
                base,
                out,
                settings,
                plan,
                share=options.active,
                open_bench=bench,
                announce=announce,
                sinks=sinks,
            )
        else:
            profile(base, out, settings, plan, open_bench=bench, sinks=sinks)
    advice = noise_advice(read_profile(out))
    if advice is not None:
        announce(advice)
    return profile_summary(run)


def _require_torch(options: ProfileOptions) -> None:
    asked = {"--until-mape": options.until_mape, "--active": options.active}
    name = next((name for name, value in asked.items() if value is not None), None)
    if name is not None and find_spec("torch") is None:
        raise SettingError(
            f"{name} fits LPNet between measurements, which needs torch: profile without it here and run `trimms fit` "
            "where torch is, or install it with: pip install 'trimms[prune]'"
        )


@contextlib.contextmanager
def _sinks(
    registry: str | None, base: Path, out: Path, announce: Callable[[str], None]
) -> Iterator[tuple[RowSink, ...]]:
    """Where a profile's rows go besides its file."""
    if registry is None:
        yield ()
        return
    from latency.registry_sink import streaming

    with streaming(registry, base=base, profile=out, announce=announce) as sink:
        yield (sink,)


def _known_probe(run: RunDirectory, settings: DeviceSettings) -> ProbeResult | None:
    known = run.file("probe.json")
    return require_probed_here(DeviceProbe.read(known), settings, known) if known.is_file() else None


def _bench(fleet: FleetOptions | None, announce: Callable[[str], None]) -> OpenBench:
    if fleet is None:
        return local_bench
    from latency.fleet.fleet_bench import fleet_bench

    if fleet.address.danger is not None:
        announce(fleet.address.danger)
    return partial(fleet_bench, fleet.address, device=fleet.device, announce=announce)


def profile_summary(run: RunDirectory) -> dict[str, Any]:
    """What was measured, in a few figures."""
    measured = read_profile(run.file("profile.jsonl"))
    drift = measured.reference_drift
    return {
        "device": measured.header.fingerprint.describe(),
        "dense_ms": measured.reference_ms,
        "n_train": len(measured.arrays("train").latency_ms),
        "n_held_out": len(measured.arrays("held_out").latency_ms),
        "n_failed": len(measured.failed_rows),
        "noise_floor_mape": measured.noise_floor_mape,
        "visit_stderr": measured.visit_stderr,
        "half_width": measured.half_width,
        "pace_exponent": measured.pace_exponent,
        "reference_drift_low": drift.low,
        "reference_drift_high": drift.high,
        "devices": [asdict(device) for device in measured.by_device],
        "profile": str(run.file("profile.jsonl")),
    }


def noise_advice(measured: ProfileSet) -> str | None:
    """What to do where latencies are known less well than is usual; None where they are not."""
    half_width, stderr, seconds = measured.half_width, measured.visit_stderr, measured.visit_seconds
    if half_width is None or stderr is None or seconds is None or half_width <= NOISY:
        return None
    visits = passes_needed(stderr, PRECISE)
    if visits <= 1 + max(row.pass_index for row in measured.ok_rows):
        return None  # a few outliers are what is wide, which more visits would not be made for
    networks = {row.widths for row in measured.ok_rows}
    minutes = visits * len(networks) * seconds / 60
    return (
        f"This device is noisy: a network's latency is known within {half_width:.1%} (95 %). "
        f"`trimms profile --precision {PRECISE:.0%}` goes on from here to {visits} visits to each, some {minutes:.0f} "
        "minutes in all; LPNet's error falls with the noise."
    )


def predict_stage(run: RunDirectory, *, widths: str | None, scale: float | None) -> dict[str, Any]:
    """Predicted latency at given widths, or at one share of all of them, and where the time goes."""
    predictor = Predictor.load(run.require("lpnet", "run `trimms fit` first"))
    full = np.array(predictor.manifest.full_widths)
    vector = _widths(full, widths, scale)
    groups = zip(predictor.manifest.group_names, vector.tolist(), strict=True)
    found = predictor.predict(vector[None])
    names = (*predictor.manifest.layer_names, "(no single layer)")
    return {
        "predicted_ms": float(found.latency_ms[0]),
        "low_ms": float(found.low_ms[0]),
        "high_ms": float(found.high_ms[0]),
        "out_of_range": bool(found.out_of_range[0]),
        "dense_ms": predictor.manifest.reference_ms,
        "widths": dict(groups),
        "layer_ms": dict(zip(names, found.layer_ms[0].tolist(), strict=True)),
    }


def _widths(full: IntArray, widths: str | None, scale: float | None) -> IntArray:
    if (widths is None) == (scale is None):
        raise SettingError("give either --widths or --scale.")
    if scale is not None:
        if not 0 < scale <= 1:
            raise SettingError(f"--scale is a share in (0, 1]; got {scale}.")
        return np.maximum(np.round(full * scale), 1).astype(np.int64)
    try:
        return np.array([int(part) for part in (widths or "").split(",")], dtype=np.int64)
    except ValueError as error:
        raise SettingError(
            f"--widths '{widths}' is not a list of whole numbers, such as 48,64,128."
        ) from error


def verify_stage(run: RunDirectory, *, renew: bool) -> tuple[dict[str, Any], int]:
    """Measure the pruned network, again where it has a certificate; the result, and the exit code."""
    certifies = renew or not run.file("certificate.json").is_file()
    verification, others = certify(run) if certifies else verify(run), verify_others(run)
    result = verification_summary(verification, others)
    return result, 0 if result["within_budget"] and verification.agrees else 1


def verification_summary(
    verification: Verification, others: tuple[OtherVerification, ...] = ()
) -> dict[str, Any]:
    """What was measured, in a few figures; within the budget where it is so on all devices that were measured."""
    certificate, measurement = verification.certificate, verification.measurement
    return {
        "budget_ms": certificate.budget_ms,
        "measured_ms": verification.measured_ms,
        "measured_low_ms": verification.ci_ms[0],
        "measured_high_ms": verification.ci_ms[1],
        "certified_ms": certificate.measured_ms,
        "dense_ms": certificate.dense_ms,
        "within_budget": verification.within_budget and not any(other.missed for other in others),
        "also": [asdict(other) for other in others],
        "agrees": verification.agrees,
        "repeatability": verification.repeatability,
        "n_pairs": measurement.n_pairs,
        "reference_drift": measurement.reference_ms / certificate.dense_ms - 1,
        "accuracy": certificate.accuracy,
        "dense_accuracy": certificate.dense_accuracy,
    }
