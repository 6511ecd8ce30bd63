"""Costs of gates against what closing them really does to the distillation loss."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from latency.grid import Grid
from pruning.criteria.wgates import WGates
from pruning.data import ImageTask, load_data
from pruning.gates import GatedNetwork
from pruning.sensitivity import gate_costs
from pruning.trace import trace
from pruning.training import TrainingConfig, distillation_loss, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def task() -> ImageTask:
    return load_data("digits", (3, 16, 16))


@pytest.fixture(scope="module")
def gated(task: ImageTask) -> GatedNetwork:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(12 * 9, 10)),
    )
    train(network, task, TrainingConfig(epochs=3), title=None)
    space = trace(network, (1, 3, 16, 16))
    grid = Grid((tuple(range(1, 17)), tuple(range(1, 13))))
    return GatedNetwork(network.eval(), space, WGates(network, space), grid)


def true_costs(gated: GatedNetwork, task: ImageTask, n_slots: int, depth: float) -> torch.Tensor:
    """Rise of the distillation loss where one gate at a time closes by a share `depth`."""
    images = torch.cat([batch.images for batch in task.calibration_batches(1437)]).double()
    gated = copy.deepcopy(gated).double()  # small differences
    costs = []
    with torch.no_grad():
        wanted = gated.network(images)
        for slot in range(n_slots):
            gates = torch.ones(n_slots).double()
            gates[slot] = 1 - depth
            scores = functional_call(gated.network, gated.gated_parameters(gates), (images,))
            costs.append(distillation_loss(scores, wanted, 3.0))
    return torch.stack(costs)


def test_costs_are_the_curvature_of_the_distillation_loss(gated: GatedNetwork, task: ImageTask) -> None:
    costs = gate_costs(gated, 28, task, n_images=1437, batch_size=8)

    depth = 0.05
    measured = true_costs(gated, task, 28, depth) / depth**2
    correlation = np.corrcoef(costs.log(), measured.log())[0, 1]
    assert correlation > 0.95
    assert float((costs.sum() / measured.sum()).log().abs()) < 0.3


def test_costs_tell_which_gates_hurt_when_they_close(gated: GatedNetwork, task: ImageTask) -> None:
    costs = gate_costs(gated, 28, task, n_images=1437, batch_size=8).argsort().argsort()
    whole = true_costs(gated, task, 28, 1.0).argsort().argsort()

    assert np.corrcoef(costs, whole)[0, 1] > 0.8


def test_an_unread_channel_costs_nothing(gated: GatedNetwork, task: ImageTask) -> None:
    network = copy.deepcopy(gated.network)
    with torch.no_grad():
        network[3].weight[:, 5] = 0
    space = trace(network, (1, 3, 16, 16))
    grid = Grid((tuple(range(1, 17)), tuple(range(1, 13))))
    silent = GatedNetwork(network, space, WGates(network, space), grid)

    costs = gate_costs(silent, 28, task, n_images=64)

    assert costs[5] == 0
    assert (costs[torch.arange(28) != 5] >= 0).all()


def test_the_network_stays_as_it_was(gated: GatedNetwork, task: ImageTask) -> None:
    before = {name: value.clone() for name, value in gated.network.state_dict().items()}
    gated.train()
    gated.network[1].eval()

    gate_costs(gated, 28, task, n_images=64)

    assert gated.training
    assert [module.training for module in gated.network[:3]] == [True, False, True]
    gated.eval()
    assert all(torch.equal(value, before[name]) for name, value in gated.network.state_dict().items())
