"""Do two devices profile twice as fast as one? Two cores of this machine as two devices of one kind.

    python benchmarks/fleet.py
    python benchmarks/fleet.py --candidates 300 --rounds 4

A Dask scheduler and workers pinned to a core each, every one a process of its own, profile the same candidates: one
worker, then both, in turns. Unlike two boards, two cores share caches, memory and clock; how much that slows the
reference is reported, and how far it moves the ratios beside how far they move anyway. The scheduler and the client run
on the same two cores, where with boards they would run elsewhere: they get what time the workers leave, and the
scheduler looks after itself once a second instead of 50 times.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import psutil
from environment import write_results

from latency.device import DeviceSettings
from latency.fleet.address import FleetAddress
from latency.fleet.fleet_bench import fleet_bench
from latency.grid import Grid
from latency.profiles import ProfileSet
from latency.profiling import ProfilePlan, profile
from latency.space import SearchSpace
from latency.worker import Worker, WorkerSetup
from pruning.cli_options import parse_input_shape
from pruning.export import dense_model, write_onnx
from pruning.models import load_model
from pruning.trace import trace


@click.command(help=__doc__)
@click.option("--model", default="torchvision:mobilenet_v2", show_default=True)
@click.option("--input-size", default="1x3x224x224", show_default=True)
@click.option("--candidates", type=int, default=60, show_default=True)
@click.option(
    "--rounds", type=int, default=3, show_default=True, help="Profiles with one worker, and with two."
)
@click.option("--seed", type=int, default=0, show_default=True)
def main(model: str, input_size: str, candidates: int, rounds: int, seed: int) -> None:
    """See the module's docstring."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise click.UsageError("two devices need two cores; this process may use one.")
    shape = parse_input_shape(input_size)
    network = load_model(model)
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "base.onnx"
        write_onnx(dense_model(trace(network, shape), network), base)
        settings = DeviceSettings(batch_size=shape[0])
        with Worker(WorkerSetup(base, settings)) as worker:
            grid = Grid.from_step(SearchSpace.load(base).structure, worker.probe().step)
        plan = ProfilePlan(n_candidates=candidates, n_held_out=0, seed=seed, grid=grid)
        profiles: dict[int, list[ProfileSet]] = {1: [], 2: []}
        with (
            scheduler(folder) as address,
            ProcessPoolExecutor(1, get_context("spawn"), _yield_to_others) as client,
        ):
            client.submit(os.getpid).result()  # it is there, and idle
            for round_index in range(rounds):
                for n_workers in (1, 2):
                    out = folder / f"{n_workers}-{round_index}.jsonl"
                    with workers(address, cores[:n_workers]):
                        start, busy = time.perf_counter(), psutil.cpu_times()
                        bench = partial(fleet_bench, address)
                        found = client.submit(profile, base, out, settings, plan, open_bench=bench).result()
                        seconds, shares = time.perf_counter() - start, cpu_shares(busy, psutil.cpu_times())
                    profiles[n_workers].append(found)
                    about = {"model": model, "input_size": input_size, "round": round_index}
                    rows.append(about | figures(found, seconds, n_workers) | shares)
                    click.echo(line(rows[-1]))
    summary = compare(rows, profiles)
    click.echo(summary)
    click.echo(f"written: {write_results('fleet', rows, summary=summary)}")


def figures(found: ProfileSet, seconds: float, n_workers: int) -> dict[str, Any]:
    """One profile: how fast it went, and what its devices' references say."""
    ends = sorted(row.measured_at for row in found.rows)
    return {
        "n_workers": n_workers,
        "n_rows": len(found.rows),
        "n_failed": len(found.failed_rows),
        "seconds": seconds,
        # From the first row to the last: without connecting and starting processes.
        "rows_per_second": (len(ends) - 1) / (ends[-1] - ends[0]),
        "preempted_per_pair": sum(row.n_preempted for row in found.ok_rows)
        / sum(r.n_pairs for r in found.ok_rows),
        "mean_pairs": float(np.mean([row.n_pairs for row in found.ok_rows])),
        "reference_ms": float(np.median([row.reference_ms for row in found.ok_rows])),
        "devices": [
            {"device": device.device, "n_rows": device.n_rows, "reference_ms": device.reference_ms}
            for device in found.by_device
        ],
    }


def cpu_shares(before: Any, after: Any) -> dict[str, float]:
    """Share of all cores' time that nobody used, and that this machine's host gave to others.

    With one worker some half of two cores is idle; less says that something else ran on the machine.
    """
    spent = {
        name: getattr(after, name) - getattr(before, name) for name in ("user", "system", "idle", "steal")
    }
    return {f"cpu_{name}_share": spent[name] / sum(spent.values()) for name in ("idle", "steal")}


def compare(
    rows: Sequence[Mapping[str, Any]], profiles: Mapping[int, Sequence[ProfileSet]]
) -> dict[str, float]:
    """Two workers against one, medians over the rounds."""

    def median(n_workers: int, name: str) -> float:
        return float(np.median([row[name] for row in rows if row["n_workers"] == n_workers]))

    both = [(one, two) for one, two in zip(profiles[1], profiles[2], strict=True)]
    alone = list(zip(profiles[1], profiles[1][1:], strict=False))
    summary = {
        "speedup": median(2, "rows_per_second") / median(1, "rows_per_second"),
        "speedup_with_start": median(1, "seconds") / median(2, "seconds"),
        "reference_slowdown": median(2, "reference_ms") / median(1, "reference_ms") - 1,
        "ratio_shift": float(np.median([np.median(_differences(*pair)) for pair in both])),
        "ratio_difference": float(np.median([np.median(np.abs(_differences(*pair))) for pair in both])),
    }
    if alone:
        again = [np.median(np.abs(_differences(*pair))) for pair in alone]
        summary["ratio_difference_one_worker_again"] = float(np.median(again))
    return summary


def _differences(first: ProfileSet, second: ProfileSet) -> list[float]:
    """How far the second's ratios lie above the first's, relative, by candidate."""
    ratios = {row.key: row.ratio for row in first.ok_rows}
    return [row.ratio / ratios[row.key] - 1 for row in second.ok_rows if row.key in ratios]


def line(row: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    references = ", ".join(f"{device['reference_ms']:.3f}" for device in row["devices"])
    return (
        f"round {row['round']}, {row['n_workers']} worker(s): {row['n_rows']} rows in {row['seconds']:.1f} s, then "
        f"{row['rows_per_second']:.2f} rows/s, {row['mean_pairs']:.1f} pairs, reference {references} ms, idle "
        f"{row['cpu_idle_share']:.0%}, stolen {row['cpu_steal_share']:.0%}"
    )


@contextlib.contextmanager
def scheduler(folder: Path) -> Iterator[FleetAddress]:
    """A Dask scheduler on any free port."""
    file = folder / "scheduler.json"
    command = [
        "chrt",
        "--idle",
        "0",
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--no-dashboard",
    ]
    command += ["--port", "0", "--host", "127.0.0.1", "--scheduler-file", str(file)]
    calm = os.environ | {"DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s"}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=calm) as process:
        try:
            while not file.exists() or not file.read_text():
                if process.poll() is not None:
                    raise click.ClickException("the scheduler did not start")
                time.sleep(0.05)
            yield FleetAddress(json.loads(file.read_text())["address"])
        finally:
            process.terminate()


def _yield_to_others() -> None:
    """Run this process where a core would be idle otherwise."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


@contextlib.contextmanager
def workers(address: FleetAddress, cores: Sequence[int]) -> Iterator[None]:
    """A worker pinned to each core; all are ready."""
    with contextlib.ExitStack() as stack:
        processes = []
        for core in cores:
            command = [sys.executable, "-m", "pruning.cli", "worker", "--scheduler", address.scheduler]
            command += ["--device", f"core {core}", "--cores", str(core)]
            process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
            stack.callback(process.terminate)
            processes.append(process)
        for process in processes:
            assert process.stderr is not None
            said = process.stderr.readline()
            if "is ready" not in said:
                raise click.ClickException(f"a worker did not start: {said}")
        yield


if __name__ == "__main__":
    main()
