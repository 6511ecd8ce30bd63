"""A small gated training, as one process or as one of several: `python -m tests.pruning.train_together BASE FOLDER`."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import pruning.training
from latency.grid import Grid
from latency.space import SearchSpace
from pruning.budget import Choice, FloatArray
from pruning.checkpoint import Checkpoint, save_checkpoint
from pruning.criteria.base import SearchJob, SearchOptions
from pruning.criteria.gate_search import BudgetObjective, limit_gradients_
from pruning.criteria.wgates import WGates
from pruning.data import load_data
from pruning.distributed import own_share, process_group
from pruning.gates import GatedNetwork
from pruning.objective import BudgetSchedule, HeldBudget
from pruning.precision import Precision
from pruning.training import TrainingConfig, train
from tests.priced import priced

CONFIG = TrainingConfig(epochs=2, batch_size=96, learning_rate=0.02)


class Net(nn.Module):
    """Two convolutions with BatchNorm, of which the first can be narrowed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.second, self.last_norm = nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12, momentum=None)
        self.head = nn.Linear(12, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.first(images)))
        return self.head(torch.relu(self.last_norm(self.second(features))).mean(dim=(2, 3)))


def made(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Net()


def _cut(scores: FloatArray, target_ms: float) -> tuple[Choice, float]:
    """Every channel costs 0.1 ms: the best of each of the two groups, a first one always."""
    n_open = round(target_ms / 0.1)
    threshold = np.sort(scores)[::-1][n_open - 1]
    parts = np.split(scores, [8])
    kept = tuple(np.flatnonzero(part >= min(threshold, part.max())) for part in parts)
    return Choice(kept, tuple(map(len, kept)), target_ms), -float(threshold)


def _measured_target_ms(network: nn.Module, space: SearchSpace, grid: Grid, folder: Path) -> float:
    """What a search is to end at; every process that measures says so in a file of its own, and finds another value."""
    index = own_share().index

    def measure(scores: FloatArray) -> float:
        (folder / f"measured-{index}").touch()
        return 1.2 + 0.1 * index

    device = priced(space, [0.1, 0.1], grid)
    task, state = load_data("digits", (3, 8, 8)), folder / "search.safetensors"
    job = SearchJob(
        network, network, task, device, 1.5, SearchOptions(), checkpoint=state, measured_target=measure
    )
    return job.target_ms(np.zeros(job.n_slots))


def train_small(base: Path, folder: Path) -> None:
    """Train, and leave weights, statistics and figures in `folder`, a file for each process.

    Args:
        base: the traced network.
        folder: for the files.
    """
    torch.set_num_threads(1)
    # Which format is fastest is not what is compared here.
    pruning.training.choose_precision = lambda network, images: (Precision(), {})
    index = own_share().index
    network = made(seed=index)  # the first process's weights are what counts
    space = SearchSpace.load(base)
    grid = Grid(tuple(tuple(range(1, width + 1)) for width in space.full_widths))
    gates = WGates(network, space)
    gated = GatedNetwork(network, space, gates, grid)
    limit_gradients_(gates)
    schedule = BudgetSchedule(2.0, _measured_target_ms(network, space, grid, folder))
    term = HeldBudget(lambda widths: 0.1 * widths.sum(dim=1), _cut, schedule, CONFIG.epochs)
    history = train(
        gated,
        load_data("digits", (3, 8, 8)),
        CONFIG,
        teacher=made(seed=7),
        objective=BudgetObjective(gated, gates, term, gate_lr=0.02),
        checkpoint=folder / "state.safetensors",
    )
    record = {
        "losses": [row.train_loss for row in history.rows],
        "accuracies": [row.test_accuracy for row in history.rows],
        "target_ms": schedule.budget_ms,
    }
    save_checkpoint(folder / f"trained-{index}.safetensors", Checkpoint(gated.state_dict(), record))


if __name__ == "__main__":
    with process_group():
        train_small(Path(sys.argv[1]), Path(sys.argv[2]))
