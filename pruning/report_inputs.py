"""Gathers what a run left in its directory into the report."""

from pathlib import Path
from typing import Any

import numpy as np

from pruning.plan import Plan
from pruning.report import (
    CurveRow,
    LatencySamples,
    PredictionPoint,
    PredictionQuality,
    ReportInputs,
    WidthRow,
    write_report,
)
from pruning.stages import Workbench
from pruning.training import EpochRow
from pruning.verify import Verification


def write_run_report(bench: Workbench, verification: Verification, command: str) -> Path:
    """Write the run's `report.html`; returns its path."""
    run = bench.run
    path = run.file("report.html")
    measurement = verification.measurement
    inputs = ReportInputs(
        certificate=verification.certificate,
        model=bench.settings.model,
        data=bench.settings.data,
        command=command,
        widths=_widths(bench),
        kept=bench.space.kept,
        search=_curve(run.result("prune", "run `trimms prune` first")["history"]),
        finetune=_curve(run.result("finetune", "run `trimms finetune` first")["history"]),
        predictions=_predictions(bench),
        quality=_quality(bench),
        samples=LatencySamples(measurement.reference_samples_ms, measurement.candidate_samples_ms),
    )
    write_report(path, inputs)
    return path


def _widths(bench: Workbench) -> tuple[WidthRow, ...]:
    plan = Plan.read(bench.run.file("plan.json"))
    return tuple(
        WidthRow(group.name, group.n_channels, len(plan.kept[group.name]), group.removes)
        for group in bench.space.groups
    )


def _curve(history: list[dict[str, Any]]) -> tuple[CurveRow, ...]:
    rows = [EpochRow(**row) for row in history]
    return tuple(CurveRow(row.epoch, row.train_loss, row.test_accuracy, row.latency_ms) for row in rows)


def _predictions(bench: Workbench) -> tuple[PredictionPoint, ...]:
    held_out = bench.profile.arrays("held_out")
    if not len(held_out.latency_ms):
        return ()
    predicted_ms = bench.predictor.predict_ms(held_out.widths)
    pairs = zip(np.asarray(predicted_ms).tolist(), held_out.latency_ms.tolist(), strict=True)
    return tuple(PredictionPoint(predicted, measured) for predicted, measured in pairs)


def _quality(bench: Workbench) -> PredictionQuality | None:
    manifest = bench.predictor.manifest
    own, baseline = manifest.metrics.get(manifest.kind), manifest.metrics.get("macs")
    if own is None or baseline is None:
        return None
    return PredictionQuality(
        n_train=manifest.n_train,
        mape=own.mape,
        within_5=own.within_5,
        baseline_mape=baseline.mape,
        noise_floor_mape=manifest.noise_floor_mape,
    )
