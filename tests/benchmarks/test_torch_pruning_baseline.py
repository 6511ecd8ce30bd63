"""Torch-Pruning as the comparison runs it: networks on the grid, and the ratio that meets a budget."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch_pruning_baseline import (
    N_FINE,
    VARIANTS,
    TorchPruning,
    Tried,
    try_ratios,
    with_conv_shortcuts,
)

from pruning.correction import slowest_within
from pruning.data import load_data
from pruning.models import load_model
from tests.conftest import randomise_norms_

ROOT = Path(__file__).parents[2]


class Widths(nn.Module):
    """A stand-in for a pruned network: one layer of so many channels."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.layer = nn.Linear(1, n_channels)


def test_the_ratio_with_the_slowest_network_within_the_budget_is_taken() -> None:
    measured = []

    def make(ratio: float) -> nn.Module:
        return Widths(16 * round(8 * (1 - ratio)) or 128)  # all gone: the layer is left as it is

    def measure(network: nn.Module) -> tuple[float, float]:
        latency_ms = network.layer.out_features / 128
        measured.append(latency_ms)
        return latency_ms, latency_ms * 1.001

    tried = try_ratios(make, measure, budget_ms=0.6, aim_ms=0.59)
    best = slowest_within(tried, 0.6, 0.59)

    assert best is not None
    assert best.measured_ms == 0.5
    assert len(measured) == len(set(measured))


def test_where_every_ratio_is_too_slow_there_is_none() -> None:
    assert slowest_within([Tried(0.5, 0.7, 0.71)], 0.6, 0.59) is None
    assert slowest_within([Tried(0.5, 0.597, 0.61)], 0.6, 0.59) is None


@pytest.fixture(scope="module")
def cifar_net() -> nn.Module:
    torch.manual_seed(0)
    network = load_model(f"{ROOT}/benchmarks/models/cifar_resnet.py:resnet8", None, 10)
    randomise_norms_(network)
    return network


def test_shortcuts_as_convolutions_compute_the_same(cifar_net: nn.Module) -> None:
    images = torch.randn(2, 3, 32, 32)
    rewritten = with_conv_shortcuts(cifar_net)

    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) for m in rewritten.modules()) == 2
    with torch.no_grad():
        torch.testing.assert_close(rewritten(images), cifar_net(images))


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_torch_pruning_gives_a_narrower_network_on_the_grid(cifar_net: nn.Module, name: str) -> None:
    pruning = TorchPruning(cifar_net, VARIANTS[name], load_data("digits", (3, 32, 32)), round_to=16)

    pruned = pruning.at(0.4)

    widths = [m.out_channels for m in pruned.modules() if isinstance(m, nn.Conv2d)]
    assert sum(widths) < sum(m.out_channels for m in cifar_net.modules() if isinstance(m, nn.Conv2d))
    assert all(width % 16 == 0 for width in widths)
    assert pruned(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if not variant.is_global])
def test_no_layer_gets_wider_as_torch_prunings_ratio_rises(cifar_net: nn.Module, name: str) -> None:
    # Rounded to nothing, a layer would be left at its full width.
    pruning = TorchPruning(cifar_net, VARIANTS[name], load_data("digits", (3, 32, 32)), round_to=16)

    made = [pruning.at(ratio) for ratio in (0.3, 0.6, 0.8, 0.95)]

    widths = np.array(
        [[m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)] for network in made]
    )
    assert (np.diff(widths, axis=0) <= 0).all()
    assert set(widths[-1]) == {16}


def test_ratios_known_for_another_aim_are_not_measured_again() -> None:
    measured = []

    def make(ratio: float) -> nn.Module:
        return Widths(round(128 * (1 - ratio)))

    def measure(network: nn.Module) -> tuple[float, float]:
        measured.append(network.layer.out_features / 128)
        return measured[-1], measured[-1]

    first = try_ratios(make, measure, budget_ms=0.6, aim_ms=0.59)
    n_measured = len(measured)
    then = try_ratios(make, measure, budget_ms=0.6, aim_ms=0.55, tried=first)

    assert then[: len(first)] == first
    assert n_measured < len(measured) <= n_measured + N_FINE
    best = slowest_within(then, 0.6, 0.55)
    assert best is not None
    assert 0.97 * 0.55 <= best.measured_ms <= 0.55
