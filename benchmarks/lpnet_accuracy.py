"""How well is latency predicted from how few measurements? LPNet beside the usual ways.

    python benchmarks/lpnet_accuracy.py                                # every case; an hour or two
    python benchmarks/lpnet_accuracy.py --cases mobilenet_v2
    python benchmarks/lpnet_accuracy.py --cases mobilenet_v2 --provider openvino
    python benchmarks/lpnet_accuracy.py --cases mobilenet_v2 --visits 5       # as `--precision` does on a noisy machine

For each case a profile set is measured with the default settings; then 200 held-out networks, and networks along a
pruner's way from the full width down (scores from the filters' norms), in two passes that are minutes apart, or as many
more, up to twenty-four, as it takes for a noise floor of 0.5 %: the error of every other pass against the mean of all.
Every method is fitted to the first n training candidates and judged by networks it has not seen. Profile sets are kept
in data/profiles/DEVICE/CASE; interrupted, the same command goes on where it was. Rows of other cases that the results
hold for this device stay, each with its commit.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from environment import RESULTS, ROOT, made_by, write_results
from layer_tables import measure_tables
from predictors import first_candidates, fit_all

from latency.device import DeviceSettings, fingerprint
from latency.errors import MeasurementError
from latency.fitting import FitResult, fit
from latency.grid import Grid
from latency.metrics import prediction_metrics
from latency.predictor import Predictor
from latency.profiles import ProfileSet
from latency.profiling import PROFILING_PROTOCOL, ProfilePlan, profile
from latency.space import SearchSpace
from latency.structure import IntArray
from latency.worker import Worker, WorkerSetup
from pruning.budget import cut_to_target
from pruning.export import dense_model, write_onnx
from pruning.models import load_model
from pruning.trace import trace

FloatArray = npt.NDArray[np.float64]

PASSES = (2, 4, 6, 8, 10, 12, 16, 20, 24)
"""Held-out networks are the yardstick. Pairs in a row share a shared machine's mood, passes minutes apart do not."""

FLOOR = 0.005
"""Noise floor from which no further passes are measured."""

MOST_VISITED = 300
"""Training networks that more than the profiler's two visits are paid to, where asked for."""

_VISITS_HELP = (
    f"Visits to each of the first {MOST_VISITED} training networks; more than two for a noisy machine."
)

PATH_TARGETS = tuple(np.linspace(0.95, 0.45, 20).tolist())
"""Shares of the dense latency that a pruner passes on its way."""


@dataclass(frozen=True, slots=True)
class Case:
    """A network under one setting.

    Attributes:
        model: the network, as on the command line.
        size_px: height and width of its input.
        threads: threads of one inference.
        n_train: numbers of training candidates, ascending.
    """

    model: str
    size_px: int
    threads: int
    n_train: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Judging:
    """What predictors are judged by.

    Attributes:
        n_networks: held-out networks.
        passes: passes over them after which the noise floor is looked at, ascending.
    """

    n_networks: int
    passes: tuple[int, ...]


CASES = {
    "mobilenet_v2": Case("torchvision:mobilenet_v2", 224, 1, (50, 100, 300, 1000)),
    "resnet34": Case("torchvision:resnet34", 224, 1, (50, 100, 300)),
    "resnet50": Case("torchvision:resnet50", 224, 1, (50, 100, 300)),
    "mobilenet_v2-2t": Case("torchvision:mobilenet_v2", 224, 2, (50, 100, 300)),
}


@click.command(help=__doc__)
@click.option("--cases", default=",".join(CASES), show_default=True, help="Comma-separated.")
@click.option("--held-out", type=int, default=200, show_default=True, help="Networks to judge by.")
@click.option("--most-train", type=int, default=1000, show_default=True, help="Training candidates at most.")
@click.option("--visits", type=int, default=ProfilePlan().passes, show_default=True, help=_VISITS_HELP)
@click.option("--most-passes", type=int, default=24, show_default=True, help="Over the held-out networks.")
@click.option("--provider", default="cpu", show_default=True, help="Another one has results of its own.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(
    cases: str, held_out: int, most_train: int, visits: int, most_passes: int, provider: str, seed: int
) -> None:
    """See the module's docstring."""
    judging = Judging(held_out, tuple(n for n in PASSES if n <= max(most_passes, PASSES[0])))
    results = "lpnet_accuracy" if provider == "cpu" else f"lpnet_accuracy-{provider}"
    device = DeviceSettings.parse(provider)
    for name in cases.split(","):
        case = CASES[name]
        few = replace(case, n_train=tuple(n for n in case.n_train if n <= most_train))
        settings = DeviceSettings.parse(provider, threads=case.threads, batch_size=1)
        found = examine(name, few, settings, judging, visits, seed)
        rows = other_cases(RESULTS / f"{results}.json", name, fingerprint(device).digest) + found
        click.echo(f"written: {write_results(results, rows, settings=device)}")


def other_cases(path: Path, measured: str, device: str) -> list[dict[str, Any]]:
    """Rows of the results so far, if they are this device's (its digest), without those of the case just measured."""
    if not path.is_file():
        return []
    found = json.loads(path.read_text())
    if found["environment"]["fingerprint"]["digest"] != device:
        return []
    return [row for row in found["rows"] if row["case"] != measured]


def examine(
    name: str, case: Case, settings: DeviceSettings, judging: Judging, visits: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of one case."""
    folder = ROOT / "data" / "profiles" / fingerprint(settings).digest / name
    base = traced(case, folder / "base.onnx")
    space = SearchSpace.load(base)
    plan = ProfilePlan(n_candidates=max(case.n_train), seed=seed)
    train = profile(base, folder / "profile.jsonl", settings, plan)
    if visits > plan.passes:
        again = replace(plan, n_candidates=min(max(case.n_train), MOST_VISITED), n_held_out=0, passes=visits)
        train = profile(base, folder / "profile.jsonl", settings, again)
    judged = _held_out(base, folder / "held_out.jsonl", settings, train, judging, seed)
    path_widths, path_ms = _optimiser_path(base, space, settings, train, judged.n_passes, seed)
    tables = measure_tables(space, settings, train.reference_ms)
    rows = []
    fit(train, space, seed=seed).save(folder / "lpnet")
    for n_train in case.n_train:
        few = first_candidates(train, n_train)
        start = time.perf_counter()
        fitted = fit(few, space, seed=seed)
        train_seconds = time.perf_counter() - start
        methods = {**fit_all(few, space, seed), "per-layer table sum": tables.predict_ms}
        for method, predict in methods.items():
            found = prediction_metrics(predict(judged.widths), judged.latency_ms)
            on_path = prediction_metrics(predict(path_widths), path_ms)
            rows.append(
                {
                    "case": name,
                    "commit": made_by()["commit"],
                    "device": train.header.fingerprint.describe(),
                    "model": case.model,
                    "setting": f"{case.size_px} px, batch 1, {case.threads} thread(s)",
                    "n_train": len(few.arrays("train").latency_ms),
                    "train_visits": _visits(few),
                    "method": method,
                    **found.to_json(),
                    "path_mape": on_path.mape,
                    "path_worst": on_path.worst,
                    "interval_covers": _covered(fitted, judged) if method == "LPNet" else None,
                    "noise_floor_mape": judged.noise_floor_mape,
                    "held_out_passes": judged.n_passes,
                    "dense_ms": train.reference_ms,
                    "profile_seconds": profile_seconds(few, train),
                    "train_seconds": train_seconds if method == "LPNet" else None,
                }
            )
            click.echo(
                f"{name:16} n {n_train:5}  {method:26} MAPE {found.mape:6.2%}  within 5 % {found.within_5:6.1%}  "
                f"Spearman {found.spearman:.4f}  path {on_path.mape:6.2%}  floor {judged.noise_floor_mape:.2%}"
            )
    return rows


def traced(case: Case, base: Path) -> Path:
    """The case's network as an ONNX file, made where it is missing: committed profiles come without."""
    if not base.is_file():
        network = load_model(case.model)
        write_onnx(dense_model(trace(network, (1, 3, case.size_px, case.size_px)), network), base)
    return base


def profile_seconds(few: ProfileSet, profile: ProfileSet) -> float:
    """What the visits to the training networks of one profile take, at the pace of another that holds them."""
    n_visits = sum(row.split == "train" for row in few.ok_rows)
    return n_visits * (profile.visit_seconds or math.nan)


def _visits(profile: ProfileSet) -> float:
    """Visits to a training network, on average."""
    rows = [row for row in profile.ok_rows if row.split == "train"]
    return len(rows) / len({row.widths for row in rows})


@dataclass(frozen=True, slots=True)
class Judged:
    """Held-out networks by the clock of the training profile.

    Attributes:
        widths: [n, n_groups].
        latency_ms: means of all passes, [n].
        relative_stderr: standard error of these, relative, from all networks' passes together.
        noise_floor_mape: error of every other pass against the mean of all.
        n_passes: measurements of each.
    """

    widths: IntArray
    latency_ms: FloatArray
    relative_stderr: float
    noise_floor_mape: float
    n_passes: int


def _held_out(
    base: Path, path: Path, settings: DeviceSettings, train: ProfileSet, judging: Judging, seed: int
) -> Judged:
    # One training candidate is the least a plan has; it is not used.
    plan = ProfilePlan(n_candidates=1, n_held_out=judging.n_networks, seed=seed + 1, grid=train.header.grid)
    for n_passes in judging.passes:
        found = profile(base, path, settings, replace(plan, passes=n_passes))
        judged = judged_networks(replace(found, fixed_reference_ms=train.reference_ms), train, n_passes)
        click.echo(f"{n_passes} passes over the held-out networks: noise floor {judged.noise_floor_mape:.2%}")
        if judged.noise_floor_mape <= FLOOR:
            break
    return judged


def judged_networks(found: ProfileSet, train: ProfileSet, n_passes: int) -> Judged:
    """Networks of a held-out profile that were measured in all passes and are not in the training profile."""
    seen = {row.widths for row in train.ok_rows}
    passes: dict[tuple[int, ...], list[float]] = {}
    for row in found.ok_rows:
        if row.split == "held_out" and row.widths not in seen:
            passes.setdefault(row.widths, []).append(found.clock.latency_ms(row.ratio, row.reference_ms))
    complete = {widths: all_ms[:n_passes] for widths, all_ms in passes.items() if len(all_ms) >= n_passes}
    measured_ms = np.array(list(complete.values()))
    latency_ms = measured_ms.mean(axis=1)
    floor = np.abs(measured_ms[:, ::2].mean(axis=1) / latency_ms - 1).mean()
    relative = measured_ms / latency_ms[:, None]
    stderr = math.sqrt(relative.var(axis=1, ddof=1).mean() / n_passes)
    return Judged(np.array(list(complete)), latency_ms, stderr, float(floor), n_passes)


def _optimiser_path(
    base: Path, space: SearchSpace, settings: DeviceSettings, train: ProfileSet, n_passes: int, seed: int
) -> tuple[IntArray, FloatArray]:
    """Widths that a pruner passes on its way down, measured."""
    model = fit(train, space, seed=seed).model
    scores = _norm_scores(space)
    grid: Grid = train.header.grid

    def predict_ms(widths: npt.ArrayLike) -> FloatArray:
        with torch.no_grad():
            return np.asarray(model(torch.from_numpy(np.asarray(widths)).float()), dtype=np.float64)

    chosen: dict[tuple[int, ...], None] = {}
    for share in PATH_TARGETS:
        cut = cut_to_target(scores, space, grid, predict_ms, share * train.reference_ms)
        chosen[cut.widths] = None
    with Worker(WorkerSetup(base, settings, PROFILING_PROTOCOL)) as worker:
        passes = [[_measured_ms(worker, train, widths) for widths in chosen] for _ in range(n_passes)]
    return np.array(list(chosen)), np.mean(passes, axis=0)


def _measured_ms(worker: Worker, train: ProfileSet, widths: Sequence[int]) -> float:
    result = worker.measure(tuple(widths))
    if result.measurement is None:
        raise MeasurementError(f"widths {list(widths)} could not be measured: {result.error}")
    return train.clock.latency_ms(result.measurement.ratio, result.measurement.reference_ms)


def _covered(fitted: FitResult, judged: Judged) -> float:
    """Share of the held-out networks that lie within LPNet's 95 % interval, widened by what they are known to."""
    with TemporaryDirectory() as folder:
        fitted.save(Path(folder))
        found = Predictor.load(Path(folder)).predict(judged.widths)
    half_width = np.hypot(np.log(found.high_ms / found.latency_ms), 1.96 * judged.relative_stderr)
    return float(np.mean(np.abs(np.log(judged.latency_ms / found.latency_ms)) <= half_width))


def _norm_scores(space: SearchSpace) -> FloatArray:
    """Standardised L1 norms of the filters that make each slot, [n_slots]."""
    n_slots = int(space.full_widths.sum())
    total = np.zeros(n_slots)
    for axis in space.parameter_axes:
        values = space.structure.graph.constants.get(axis.parameter)
        if axis.role == "out" and values is not None and values.ndim >= 2:
            norms = np.abs(np.moveaxis(values, axis.axis, 0)).reshape(len(axis.slots), -1).sum(axis=1)
            known = axis.slots >= 0
            np.add.at(total, axis.slots[known], norms[known])
    for group in space.groups:
        part = total[group.offset : group.offset + group.n_channels]
        part -= part.mean()
        part /= part.std() or 1.0
    return total


if __name__ == "__main__":
    main()
