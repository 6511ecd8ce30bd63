"""Does a measurement say the same twice? Interleaved ratios beside plain medians, minima and means.

    python benchmarks/repeatability.py
    python benchmarks/repeatability.py --model torchvision:resnet18 --input-size 1x3x64x64 --candidates 20

The candidates of a network are measured in two passes, one after the other: with the machine left alone, with a busy
process on every other core, and, left alone again, with as many visits to each candidate a pass as `--precision` takes
(see `latency.profiling`); else with the profiler's two. Each visit takes a candidate's samples once; every estimator
sees the same ones, and takes the median over the visits of a pass. Reported is the relative difference of the passes.
"""

import contextlib
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from environment import write_results
from tqdm import tqdm

from latency.device import DeviceSettings, usable_cores
from latency.errors import MeasurementError
from latency.grid import Grid
from latency.measure import PairedMeasurement
from latency.pace import pace_exponent
from latency.profiling import PROFILING_PROTOCOL, ProfilePlan, passes_needed
from latency.sampling import sample_widths
from latency.space import SearchSpace
from latency.visits import half_width, visit_stderr
from latency.worker import Worker, WorkerSetup
from pruning.cli_options import parse_input_shape, percent
from pruning.export import dense_model, write_onnx
from pruning.models import load_model
from pruning.trace import trace

PLAIN: Mapping[str, Callable[[PairedMeasurement], float]] = {
    "interleaved ratio": lambda found: found.ratio,
    "plain median": lambda found: float(np.median(found.candidate_samples_ms)),
    "plain minimum": lambda found: float(np.min(found.candidate_samples_ms)),
    "plain mean": lambda found: float(np.mean(found.candidate_samples_ms)),
}
"""Estimators that look at one visit alone."""

FloatArray = npt.NDArray[np.float64]
OURS = "interleaved ratio at the clock's pace"

Visits = list[list[PairedMeasurement]]
"""Measurements by visit and candidate, in order of time."""


@click.command(help=__doc__)
@click.option("--model", default="torchvision:mobilenet_v2", show_default=True)
@click.option("--input-size", default="1x3x224x224", show_default=True)
@click.option("--candidates", type=int, default=40, show_default=True)
@click.option("--precision", type=percent, default="0.5%", show_default=True, help="Half-width asked for.")
@click.option("--most-visits", type=int, default=16, show_default=True, help="Visits a pass at most for it.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(model: str, input_size: str, candidates: int, precision: float, most_visits: int, seed: int) -> None:
    """See the module's docstring."""
    shape = parse_input_shape(input_size)
    network = load_model(model)
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        base = Path(folder) / "base.onnx"
        write_onnx(dense_model(trace(network, shape), network), base)
        space = SearchSpace.load(base)
        with Worker(WorkerSetup(base, DeviceSettings(batch_size=shape[0]), PROFILING_PROTOCOL)) as worker:
            grid = Grid.from_step(space.structure, worker.probe().step)
            widths = [tuple(map(int, row)) for row in sample_widths(space, grid, candidates, seed)]

            def examine(condition: str, n_visits: int) -> list[dict[str, Any]]:
                visits = [
                    [_measured(worker, row) for row in tqdm(widths, condition, unit="net", leave=False)]
                    for _ in range(2 * n_visits)
                ]
                about = {"model": model, "input_size": input_size, "condition": condition}
                found = [about | row for row in compare(visits)]
                for row in found:
                    click.echo(line(row))
                return found

            rows += examine("quiet", ProfilePlan().passes)
            with _busy_cores():
                rows += examine("other cores busy", ProfilePlan().passes)
            needed = passes_needed(rows[0]["visit_stderr"], precision)
            rows += examine(f"quiet, for {precision:.2%}", min(needed, most_visits))
    click.echo(f"written: {write_results('repeatability', rows)}")


def line(row: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    covered = "" if row["covered"] is None else f", covered {row['covered']:.0%}"
    return (
        f"{row['condition']:18} {row['n_visits']:2} visit(s)  {row['estimator']:38} median "
        f"{row['median_difference']:.2%}, p95 {row['p95_difference']:.2%}{covered}"
    )


def compare(visits: Visits) -> list[dict[str, Any]]:
    """How far the passes lie apart, the first half of the visits and the second, by estimator."""
    n_visits = len(visits) // 2
    by_estimator = {
        name: np.array([[of(m) for m in visit] for visit in visits]) for name, of in PLAIN.items()
    }
    ratios = by_estimator["interleaved ratio"]
    reference_ms = np.array([[m.reference_ms for m in visit] for visit in visits])
    paces = np.log(reference_ms / np.median(reference_ms))
    settled, stderr, widths = _at_clocks_pace(ratios, paces)
    rows = []
    for name, values in {OURS: settled, **by_estimator}.items():
        first, second = (np.median(half, axis=0) for half in (values[:n_visits], values[n_visits:]))
        difference = np.abs(np.log(first / second))
        inside = difference <= math.sqrt(2) * widths
        rows.append(
            {
                "estimator": name,
                "n_candidates": values.shape[1],
                "n_visits": n_visits,
                "median_difference": float(np.median(difference)),
                "p95_difference": float(np.quantile(difference, 0.95)),
                "worst_difference": float(difference.max()),
                "covered": float(inside.mean()) if name == OURS else None,
                "visit_stderr": float(np.mean(stderr)),
                "half_width": float(np.mean(widths)),
                "mean_pairs": float(np.mean([m.n_pairs for visit in visits for m in visit])),
            }
        )
    return rows


def _at_clocks_pace(ratios: FloatArray, paces: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Ratios corrected to one pace, [n_visits, n]; a visit's standard error, a pass's 95 % half-width, [n] each.

    Exponent and errors of one half of the candidates come from the visits to the other half, the errors from those of
    one pass, as a profile's would.
    """
    n_visits, n = len(ratios) // 2, ratios.shape[1]
    settled, stderr, widths = ratios.copy(), np.empty(n), np.empty(n)
    for half in (np.arange(n) % 2 == 0, np.arange(n) % 2 == 1):
        exponent = pace_exponent(list(ratios[:, ~half].T), list(paces[:, ~half].T))
        settled[:, half] = ratios[:, half] ** (1 + exponent * paces[:, half])
        others = np.log(ratios[:, ~half] ** (1 + exponent * paces[:, ~half]))
        passes = [visits for each in (others[:n_visits], others[n_visits:]) for visits in each.T]
        stderr[half], widths[half] = visit_stderr(passes), half_width(passes, n_visits)
    return settled, stderr, widths


def _measured(worker: Worker, widths: tuple[int, ...]) -> PairedMeasurement:
    result = worker.measure(widths)
    if result.measurement is None:
        raise MeasurementError(f"widths {list(widths)} could not be measured: {result.error}")
    return result.measurement


@contextlib.contextmanager
def _busy_cores() -> Iterator[None]:
    """A busy process on every core but one."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_spin, daemon=True) for _ in range(max(1, usable_cores() - 1))]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _spin() -> None:
    """Work on more memory than a core's own caches hold."""
    values = np.random.default_rng(os.getpid()).standard_normal(1_000_000)
    while True:
        values = np.sqrt(np.abs(values)) + 0.1


if __name__ == "__main__":
    main()
