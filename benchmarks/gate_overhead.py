"""What a step of the search costs beside a plain training step: the gates, the latency term, their gradients.

    python benchmarks/gate_overhead.py --run runs/cifar10-resnet56 --run runs/imagenette-mobilenet_v2

Each --run is a run directory that `trimms run` has traced, profiled and fitted. Both steps are a fine-tuning step with
distillation on the same batches, with all the software that trains; they alternate in one process, and each search
step is divided by the mean of the plain steps before and after it.
"""

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from environment import write_results
from torch import nn
from tqdm import tqdm

from latency.measure import median_interval, neighbour_ratios
from pruning.budget import Choice, FloatArray, cut_with_shift
from pruning.criteria.gate_search import BudgetObjective
from pruning.criteria.wgates import WGates
from pruning.data import Batch
from pruning.gates import GatedNetwork
from pruning.objective import BudgetSchedule, HeldBudget
from pruning.precision import choose_precision
from pruning.run import RunDirectory
from pruning.stages import Workbench
from pruning.training import TrainingConfig, TrainingLoop, make_optimiser

N_WARM = 2
EPOCHS = 3
"""Epochs of the search that the steps are taken from."""


def search_objective(bench: Workbench, network: nn.Module) -> BudgetObjective:
    """A gated network at half its latency's budget, with its latency term."""
    gates = WGates(network, bench.space)
    gated = GatedNetwork(network, bench.space, gates, bench.predictor.manifest.grid)
    dense_ms = bench.predictor.manifest.reference_ms
    lpnet = bench.lpnet.eval().requires_grad_(False)
    grid, predict_ms = bench.predictor.manifest.grid, bench.predictor.predict_ms

    def cut(scores: FloatArray, target_ms: float) -> tuple[Choice, float]:
        return cut_with_shift(scores, bench.space, grid, predict_ms, target_ms)

    term = HeldBudget(lpnet, cut, BudgetSchedule(dense_ms, dense_ms / 2), epochs=EPOCHS)
    return BudgetObjective(gated, gates, term, gate_lr=0.0)


def loops(bench: Workbench, config: TrainingConfig) -> tuple[TrainingLoop, TrainingLoop]:
    """A plain training and a search of the same network, in the number format that is fastest here."""
    network = bench.dense_network()
    images, _ = next(iter(bench.task.train_batches(0, config.batch_size)))
    precision, _ = choose_precision(network, images)
    teacher = copy.deepcopy(network).eval()
    objective = search_objective(bench, copy.deepcopy(network))
    for each in (network, teacher, objective.gated):
        precision.lay_out_(each)
    plain, gated = (
        TrainingLoop(
            net.train(), bench.task, config, teacher, term, make_optimiser(net, config, term), precision
        )
        for net, term in ((network, None), (objective.gated, objective))
    )
    return plain, gated


def step_seconds(loop: TrainingLoop, batch: Batch, progress: float) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    loop.step(batch.images, batch.labels, progress)
    return time.perf_counter() - start


def row_of(bench: Workbench, config: TrainingConfig, n_steps: int) -> dict[str, Any]:
    """Seconds of both steps, and their ratio with its 95 % interval."""
    plain, gated = loops(bench, config)
    batches = _endless(bench, config)
    for _ in range(N_WARM):
        for loop in (plain, gated):
            step_seconds(loop, next(batches), 0.0)
    plain_s, gated_s = [step_seconds(plain, next(batches), 0.0)], []
    in_search = EPOCHS * bench.task.steps_per_epoch(config.batch_size)
    for step in tqdm(range(n_steps), bench.settings.model, unit="pair", leave=False):
        progress = min(0.5 + step / in_search, 1.0)
        gated_s.append(step_seconds(gated, next(batches), progress))
        plain_s.append(step_seconds(plain, next(batches), progress))
    ratios = neighbour_ratios(gated_s, plain_s)
    quartiles = np.quantile(ratios, [0.25, 0.75])
    return {
        "model": Path(bench.settings.model).name,
        "batch_size": config.batch_size,
        "precision": plain.precision.name,
        "threads": torch.get_num_threads(),
        "n_pairs": n_steps,
        "plain_step_s": float(np.median(plain_s)),
        "search_step_s": float(np.median(gated_s)),
        "ratio": float(np.median(ratios)),
        "ratio_of_means": float(np.mean(gated_s) / np.mean(plain_s)),
        "ratio_ci": median_interval(ratios),
        "ratio_quartiles": quartiles.tolist(),
    }


def _endless(bench: Workbench, config: TrainingConfig) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from bench.task.train_batches(epoch, config.batch_size)
        epoch += 1


@click.command(help=__doc__)
@click.option(
    "--run",
    "runs",
    multiple=True,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Run directory.",
)
@click.option("--batch-size", type=int, default=64, show_default=True)
@click.option("--steps", type=int, default=40, show_default=True, help="Steps of each kind.")
@click.option("--no-results", is_flag=True, help="Print the figures, but leave benchmarks/results as it is.")
def main(runs: tuple[Path, ...], batch_size: int, steps: int, no_results: bool) -> None:
    """See the module's docstring."""
    config = TrainingConfig(epochs=1, batch_size=batch_size, learning_rate=1e-4)
    rows = []
    for run in runs:
        rows.append(row_of(Workbench(RunDirectory(run)), config, steps))
        row = rows[-1]
        low, high = row["ratio_ci"]
        click.echo(
            f"{row['model']}: plain {row['plain_step_s']:.3f} s, search {row['search_step_s']:.3f} s a step, "
            f"{row['ratio']:.3f} × (95 %: {low:.3f} to {high:.3f}), {row['precision']}"
        )
    if not no_results:
        click.echo(f"written: {write_results('gate_overhead', rows)}")


if __name__ == "__main__":
    main()
