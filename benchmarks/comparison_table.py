"""The comparison's rows, table and plot, from finished configurations measured together."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from configurations import USUAL_RATE, Outcome, finished
from contenders import Ground

from latency.sessions import SessionPlan, measure_together
from pruning.files import file_sha256, write_atomically
from pruning.verify import VERIFYING, clocked_ms, require_profiled_device

MEASURED_FILE = "measured.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """A finished configuration, measured together with all others of its workload on this device.

    Attributes:
        outcome: how the configuration ended.
        measured_ms: latency here; None where there is no network.
        ci_ms: its 95 % confidence interval.
    """

    outcome: Outcome
    measured_ms: float | None = None
    ci_ms: tuple[float, float] | None = None


def measure_all(ground: Ground, runs: Path, plan: SessionPlan = VERIFYING) -> tuple[Measured, ...]:
    """All finished configurations of a workload, their networks measured in one interleaved run.

    Networks made on other devices are measured here too. Nothing is measured again while the set of networks
    is the same.
    """
    found = list(finished(runs, ground.workload.name))
    folders = [folder for folder, outcome in found if outcome.has_network]
    known = _measured_together(ground, folders, plan) if folders else {}
    return tuple(Measured(outcome, *known.get(folder.name, (None, None))) for folder, outcome in found)


def _measured_together(
    ground: Ground, folders: Sequence[Path], plan: SessionPlan
) -> dict[str, tuple[float, tuple[float, float]]]:
    files = [folder / "pruned.onnx" for folder in folders]
    base, profile = ground.shared.run.file("base.onnx"), ground.shared.profile
    content = [profile.digest, str(profile.clock), *(file_sha256(file) for file in [base, *files])]
    digest = hashlib.sha256(" ".join(content).encode()).hexdigest()
    path = ground.folder / MEASURED_FILE
    record = json.loads(path.read_text()) if path.is_file() else {}
    if record.get("networks") != digest:
        measurements = measure_together(
            [file.read_bytes() for file in files],
            base.read_bytes(),
            require_profiled_device(profile),
            plan,
            title=f"{ground.workload.name}: {len(files)} networks",
        )
        rows = {
            folder.name: clocked_ms(profile.clock, measurement)
            for folder, measurement in zip(folders, measurements, strict=True)
        }
        record = {"networks": digest, "measured_ms": rows}
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    return {name: (ms, (low, high)) for name, (ms, (low, high)) in record["measured_ms"].items()}


def row_of(measured: Measured, device: str) -> dict[str, Any]:
    """One row of the results.

    Args:
        measured: what to tell.
        device: digest of this device: results with budgets of another one are shown, but not counted.
    """
    outcome = measured.outcome
    ms = measured.measured_ms
    return {
        "workload": outcome.workload,
        "method": outcome.method,
        "ablation": outcome.ablation,
        "budget_share": outcome.budget_share,
        "budget_ms": outcome.budget_ms,
        "dense_ms": outcome.dense_ms,
        "measured_ms": ms,
        "measured_ci_ms": measured.ci_ms,
        "predicted_ms": outcome.predicted_ms,
        "within_budget": None if ms is None else ms <= outcome.budget_ms,
        "smallest_ms": outcome.smallest_ms,
        "accuracy": outcome.accuracy,
        "dense_accuracy": outcome.dense_accuracy,
        "macs": outcome.macs,
        "params": outcome.params,
        "epochs": outcome.epochs,
        "learning_rate": outcome.learning_rate,
        "seed": outcome.seed,
        "wall_seconds": outcome.wall_seconds,
        "counted": outcome.device == device,
        "budget_of_device": outcome.device,
        "note": outcome.note,
        "made_by": dict(outcome.made_by),
    }


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table, the seeds of a configuration in one line: mean ± standard deviation."""
    columns = "workload, method, budget, epochs, lr, seeds, measured, predicted, accuracy, against dense, MACs, note"
    names = columns.split(", ")
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    together: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        method = f"{row['method']}, {row['ablation']}" if row["ablation"] else row["method"]
        kind = row["workload"], -row["budget_share"], not row["counted"], method, row["epochs"]
        together[*kind, row.get("learning_rate", USUAL_RATE)].append(row)
    for kind, seeds in sorted(together.items(), key=lambda item: item[0]):
        workload, share, uncounted, method, epochs, rate = kind
        notes = ["made for another device"] * uncounted + [row["note"] for row in seeds if row["note"]][:1]
        n_done = sum(row["measured_ms"] is not None for row in seeds)
        counts = [
            str(epochs),
            f"{rate:g}",
            str(n_done) if n_done == len(seeds) else f"{n_done} of {len(seeds)}",
        ]
        cells = [workload, method, f"{seeds[0]['budget_ms']:.3f} ms ({-share:g})", *counts, *_figures(seeds)]
        lines.append(f"| {' | '.join([*cells, '; '.join(notes)])} |")
    return "\n".join(lines)


def _figures(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    done = [row for row in seeds if row["measured_ms"] is not None]
    if not done:
        least = [row["smallest_ms"] for row in seeds if row["smallest_ms"] is not None]
        return [f"at least {min(least):.3f} ms" if least else "–", "–", "–", "–", "–"]
    over = " (over)" if not all(row["within_budget"] for row in done) else ""
    predicted = [row["predicted_ms"] for row in done if row["predicted_ms"] is not None]
    gains = [100 * (row["accuracy"] - row["dense_accuracy"]) for row in done]
    return [
        _mean([row["measured_ms"] for row in done], "{:.3f}") + f" ms{over}",
        f"{np.mean(predicted):.3f} ms" if predicted else "–",
        _mean([100 * row["accuracy"] for row in done], "{:.2f}") + " %",
        f"{np.mean(gains):+.2f}",
        f"{np.mean([row['macs'] for row in done]) / 1e6:.1f} M",
    ]


def _mean(values: Sequence[float], form: str) -> str:
    mean = form.format(float(np.mean(values)))
    return mean if len(values) == 1 else f"{mean} ± {form.format(float(np.std(values, ddof=1)))}"


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy over measured latency, one panel for each workload, the methods joined over their budgets; SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["measured_ms"] is not None and row["counted"] and not row["ablation"]]
    workloads = sorted({row["workload"] for row in shown})
    if not workloads:
        return
    figure = Figure(figsize=(5.5 * len(workloads), 4.5), layout="constrained")
    axes = figure.subplots(1, len(workloads), squeeze=False)[0]
    methods = sorted({row["method"] for row in shown})
    for panel, workload in zip(axes, workloads, strict=True):
        mine = [row for row in shown if row["workload"] == workload]
        for index, method in enumerate(methods):
            points = sorted((r["measured_ms"], 100 * r["accuracy"]) for r in mine if r["method"] == method)
            if points:
                marker, colour = "osD^vP*Xh<>d"[index % 12], f"C{index % 10}"
                panel.plot(*zip(*points, strict=True), marker=marker, color=colour, label=method)
        panel.plot([mine[0]["dense_ms"]], [100 * mine[0]["dense_accuracy"]], "k+", label="dense")
        for budget_ms in sorted({row["budget_ms"] for row in mine}):
            panel.axvline(budget_ms, color="0.8", linestyle=":", zorder=0)
        panel.set(title=workload, xlabel="measured latency, ms", ylabel="top-1 accuracy, %")
    axes[0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Text stays text, and equal rows give equal bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure.savefig(path, metadata={"Date": None})
