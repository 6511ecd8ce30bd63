"""What does profiling cost? Time outside timed runs, memory, and the naive way on the same candidates.

    python benchmarks/profiling_cost.py
    python benchmarks/profiling_cost.py --candidates 100 --memory-candidates 0

The profiler measures candidates of a network in its own worker process. The naive way makes a candidate as most
people would: slim the `nn.Module`, export it with torch, open a session, take the median of as many runs as the
profiler timed on average. Both are done alternately, some candidates each. Memory is the resident set of the
profiler and its worker together, after the first 100 candidates and at the end.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch
from environment import write_results
from torch import nn
from tqdm import tqdm

from latency.candidate import first_channels
from latency.device import DeviceSettings
from latency.errors import MeasurementError
from latency.grid import Grid
from latency.measure import PairedMeasurement
from latency.profiling import PROFILING_PROTOCOL
from latency.sampling import sample_widths
from latency.session import bound_run, make_session, random_feed
from latency.space import SearchSpace
from latency.worker import Worker, WorkerSetup
from pruning.cli_options import parse_input_shape
from pruning.export import dense_model, write_onnx
from pruning.models import load_model
from pruning.plan import make_plan
from pruning.surgery import slim
from pruning.trace import trace

NAIVE_ROUNDS = 4
"""Candidates made the naive way, one after each quarter of the profiler's."""


@click.command(help=__doc__)
@click.option("--model", default="torchvision:mobilenet_v2", show_default=True)
@click.option("--input-size", default="1x3x224x224", show_default=True)
@click.option("--candidates", type=int, default=300, show_default=True, help="Networks to time profiling on.")
@click.option(
    "--memory-candidates", type=int, default=2000, show_default=True, help="Networks to watch memory on."
)
@click.option("--memory-input-size", default="1x3x64x64", show_default=True, help="Their input size.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(
    model: str, input_size: str, candidates: int, memory_candidates: int, memory_input_size: str, seed: int
) -> None:
    """See the module's docstring."""
    network = load_model(model)
    rows = [{"model": model, "input_size": input_size} | time_cost(network, input_size, candidates, seed)]
    if memory_candidates:
        found = memory_cost(network, memory_input_size, memory_candidates, seed)
        rows.append({"model": model, "input_size": memory_input_size} | found)
    for row in rows:
        click.echo(row)
    click.echo(f"written: {write_results('profiling_cost', rows)}")


def time_cost(network: nn.Module, input_size: str, n: int, seed: int) -> dict[str, Any]:
    """Where the profiler's time goes, and what the naive way takes."""
    shape = parse_input_shape(input_size)
    with TemporaryDirectory() as folder:
        base, space = _base(network, shape, Path(folder))
        settings = DeviceSettings(batch_size=shape[0])
        with Worker(WorkerSetup(base, settings, PROFILING_PROTOCOL)) as worker:
            start = time.perf_counter()
            grid = Grid.from_step(space.structure, worker.probe().step)
            probe_seconds = time.perf_counter() - start
            chosen = sample_widths(space, grid, n, seed)
            profiler_seconds, found, naive = 0.0, [], []
            for part in np.array_split(np.array(chosen), NAIVE_ROUNDS):
                start = time.perf_counter()
                found += [_measured(worker, widths) for widths in tqdm(part, "profiling", unit="net")]
                profiler_seconds += time.perf_counter() - start
                n_runs = 2 * int(np.mean([measurement.n_pairs for measurement in found]))
                naive.append(_naive_seconds(network, space, part[len(part) // 2], settings, n_runs))
    per_candidate = profiler_seconds / n
    return {
        "n_candidates": n,
        "probe_seconds": probe_seconds,
        "profiler_seconds": profiler_seconds,
        "share_in_timed_runs": sum(measurement.timed_s for measurement in found) / profiler_seconds,
        "mean_pairs": float(np.mean([measurement.n_pairs for measurement in found])),
        "converged_share": float(np.mean([measurement.converged for measurement in found])),
        "naive_seconds_per_candidate": float(np.median(naive)),
        "naive_over_profiler": float(np.median(naive)) / per_candidate,
    }


def memory_cost(network: nn.Module, input_size: str, n: int, seed: int) -> dict[str, Any]:
    """Resident memory of the profiler and its worker after 100 candidates and at the end."""
    shape = parse_input_shape(input_size)
    megabytes: list[float] = []
    with TemporaryDirectory() as folder:
        base, space = _base(network, shape, Path(folder))
        with Worker(WorkerSetup(base, DeviceSettings(batch_size=shape[0]), PROFILING_PROTOCOL)) as worker:
            grid = Grid.from_step(space.structure, worker.probe().step)
            for widths in tqdm(sample_widths(space, grid, n, seed), "memory", unit="net"):
                _measured(worker, widths)
                processes = [os.getpid(), worker.process_id or os.getpid()]
                megabytes.append(sum(_resident_mb(process) for process in processes))
    settled = megabytes[min(100, n - 1) :]
    return {
        "n_candidates": n,
        "resident_mb_after_100": float(np.median(settled[:50])),
        "resident_mb_at_end": float(np.median(settled[-50:])),
        "resident_mb_highest": max(settled),
        "growth_mb": float(np.median(settled[-50:]) - np.median(settled[:50])),
    }


def _base(network: nn.Module, shape: tuple[int, int, int, int], folder: Path) -> tuple[Path, SearchSpace]:
    base = folder / "base.onnx"
    write_onnx(dense_model(trace(network, shape), network), base)
    return base, SearchSpace.load(base)


def _measured(worker: Worker, widths: Sequence[int]) -> PairedMeasurement:
    result = worker.measure(tuple(int(width) for width in widths))
    if result.measurement is None:
        raise MeasurementError(f"widths {list(widths)} could not be measured: {result.error}")
    return result.measurement


def _naive_seconds(
    network: nn.Module, space: SearchSpace, widths: Sequence[int], settings: DeviceSettings, n_runs: int
) -> float:
    start = time.perf_counter()
    module, _ = slim(network, space, make_plan(space, first_channels(widths)))
    program = torch.onnx.export(module.eval(), (torch.zeros(space.input_shape),), dynamo=True, verbose=False)
    assert program is not None
    session = make_session(program.model_proto.SerializeToString(), settings)
    run = bound_run(session, random_feed(session, batch_size=settings.batch_size))
    for _ in range(10 + n_runs):
        run()
    return time.perf_counter() - start


def _resident_mb(process_id: int) -> float:
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
