"""Does a measurement say the same twice? Interleaved ratios beside plain medians, minima and means.

    python benchmarks/repeatability.py
    python benchmarks/repeatability.py --model torchvision:resnet18 --input-size 1x3x64x64 --candidates 20

The candidates of a network are measured in two passes, one after the other, once with the machine left alone and
once with a busy process on every other core. Each pass takes a candidate's samples once; every estimator sees the
same ones. Reported is the relative difference of the two passes.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from environment import write_results

from latency.device import DeviceSettings, usable_cores
from latency.errors import MeasurementError
from latency.grid import Grid
from latency.measure import PairedMeasurement, Protocol
from latency.profiling import PROFILING_PROTOCOL
from latency.sampling import sample_widths
from latency.space import SearchSpace
from latency.worker import Worker, WorkerSetup
from pruning.cli_options import parse_input_shape
from pruning.export import dense_model, write_onnx
from pruning.models import load_model
from pruning.trace import trace

ESTIMATORS: Mapping[str, Callable[[PairedMeasurement], float]] = {
    "interleaved ratio": lambda found: found.ratio,
    "plain median": lambda found: float(np.median(found.candidate_samples_ms)),
    "plain minimum": lambda found: float(np.min(found.candidate_samples_ms)),
    "plain mean": lambda found: float(np.mean(found.candidate_samples_ms)),
}


@click.command(help=__doc__)
@click.option("--model", default="torchvision:mobilenet_v2", show_default=True)
@click.option("--input-size", default="1x3x224x224", show_default=True)
@click.option("--candidates", type=int, default=40, show_default=True)
@click.option("--precision", type=float, default=0.01, show_default=True, help="Half-width asked for.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(model: str, input_size: str, candidates: int, precision: float, seed: int) -> None:
    """See the module's docstring."""
    shape = parse_input_shape(input_size)
    protocol = PROFILING_PROTOCOL
    if precision != protocol.relative_precision:
        protocol = Protocol(max_pairs=2000, relative_precision=precision)
    network = load_model(model)
    space = trace(network, shape)
    with TemporaryDirectory() as folder:
        base = Path(folder) / "base.onnx"
        write_onnx(dense_model(space, network), base)
        space = SearchSpace.load(base)
        setup = WorkerSetup(base, DeviceSettings(batch_size=shape[0]), protocol)
        with Worker(setup) as worker:
            grid = Grid.from_step(space.structure, worker.probe().step)
            widths = [tuple(map(int, row)) for row in sample_widths(space, grid, candidates, seed)]
            rows = []
            for condition, load in (("quiet", contextlib.nullcontext), ("other cores busy", _busy_cores)):
                with load():
                    passes = [[_measured(worker, row) for row in widths] for _ in range(2)]
                rows += _rows(model, input_size, condition, precision, passes)
    for row in rows:
        click.echo(
            f"{row['condition']:17} {row['estimator']:18} median {row['median_difference']:.2%}, "
            f"p95 {row['p95_difference']:.2%}, covered {row['covered'] or 0:.0%}"
        )
    click.echo(f"written: {write_results('repeatability', rows)}")


def _measured(worker: Worker, widths: tuple[int, ...]) -> PairedMeasurement:
    result = worker.measure(widths)
    if result.measurement is None:
        raise MeasurementError(f"widths {list(widths)} could not be measured: {result.error}")
    return result.measurement


def _rows(
    model: str, input_size: str, condition: str, precision: float, passes: list[list[PairedMeasurement]]
) -> list[dict[str, Any]]:
    first, second = passes
    rows = []
    for name, estimate in ESTIMATORS.items():
        values = np.array([[estimate(a), estimate(b)] for a, b in zip(first, second, strict=True)])
        difference = np.abs(values[:, 0] / values[:, 1] - 1)
        rows.append(
            {
                "model": model,
                "input_size": input_size,
                "condition": condition,
                "precision": precision,
                "estimator": name,
                "n_candidates": len(values),
                "median_difference": float(np.median(difference)),
                "p95_difference": float(np.quantile(difference, 0.95)),
                "worst_difference": float(difference.max()),
                "covered": _covered(first, second) if name == "interleaved ratio" else None,
                "mean_pairs": float(np.mean([found.n_pairs for found in (*first, *second)])),
                "preempted_share": float(
                    np.mean([found.n_preempted / (2 * found.n_pairs + 1) for found in (*first, *second)])
                ),
                "converged_share": float(np.mean([found.converged for found in (*first, *second)])),
            }
        )
    return rows


def _covered(first: list[PairedMeasurement], second: list[PairedMeasurement]) -> float:
    """Share of candidates whose difference of passes lies within the interval of that difference."""
    inside = []
    for a, b in zip(first, second, strict=True):
        half = [(found.ratio_ci[1] - found.ratio_ci[0]) / 2 for found in (a, b)]
        inside.append(abs(a.ratio - b.ratio) <= np.hypot(*half))
    return float(np.mean(inside))


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
