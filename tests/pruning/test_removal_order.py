"""The order of removal on a net whose losses and latencies are known."""

import copy

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from latency.grid import Grid
from latency.space import SearchSpace
from latency.structure import IntArray
from pruning.criteria.wgates import WGates
from pruning.data import ImageTask, load_data
from pruning.gates import GatedNetwork
from pruning.precision import Precision
from pruning.removal_order import Removal, RemovalPath, distillation_rise, removal_path, worth_along
from pruning.trace import trace
from pruning.training import TrainingConfig, train

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = Grid(((4, 8), (0, 6, 12)))


def predict_ms(widths: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """A channel of `stem` takes 0.1 ms, one of `inner` 0.05."""
    return np.asarray(widths) @ np.array([0.1, 0.05])


def test_the_cheapest_step_for_each_ms_goes_first(residual_space: SearchSpace) -> None:
    def loss(widths: IntArray) -> float:
        return float(0.03 * (8 - widths[0]) + 0.01 * (12 - widths[1]))

    path = removal_path(loss, residual_space, GRID, predict_ms, floor_ms=0.0)

    assert [removal.widths for removal in path.removals] == [(8, 6), (8, 0), (4, 0)]
    np.testing.assert_allclose([removal.price for removal in path.removals], [0.2, 0.2, 0.3])
    assert np.isinf(path.next_prices).all()


def test_what_can_be_spared_alone_is_judged_again_once_another_has_gone(residual_space: SearchSpace) -> None:
    """Either group can be narrowed for next to nothing, not both."""

    def loss(widths: IntArray) -> float:
        narrowed = int(widths[0] < 8) + int(widths[1] < 12)
        return {0: 0.0, 1: 0.01, 2: 5.0}[narrowed]

    path = removal_path(loss, residual_space, GRID, predict_ms, floor_ms=0.9)

    first, second = path.removals[:2]
    assert first.widths == (4, 12)  # the same loss, more saved
    assert second.widths == (4, 6)
    assert second.price == pytest.approx((5.0 - 0.01) / 0.3)


def test_it_ends_where_the_latency_is_low_enough(residual_space: SearchSpace) -> None:
    path = removal_path(lambda widths: float(-widths.sum()), residual_space, GRID, predict_ms, floor_ms=1.1)

    assert predict_ms([path.removals[-1].widths])[0] <= 1.1
    assert all(predict_ms([removal.widths])[0] > 1.1 for removal in path.removals[:-1])
    assert np.isfinite(path.next_prices).any()


def test_worth_follows_the_order(residual_space: SearchSpace) -> None:
    costs = torch.arange(20.0)
    removals = (Removal((8, 6), 0.5), Removal((4, 6), 0.2), Removal((4, 0), 2.0))

    worth = worth_along(RemovalPath(removals, np.array([4.0, np.inf])), costs, residual_space)

    stem, inner = worth[:8], worth[8:]
    assert inner[:6].max() < stem[:4].max() < inner[6:].min()  # the cheapest of each group first
    assert stem[4:].min() > inner.max()
    assert (stem.argsort() == torch.arange(8)).all()
    assert float(stem[7]) == pytest.approx(np.log(4.0))


def trained_gates() -> tuple[GatedNetwork, SearchSpace, ImageTask]:
    task = load_data("digits", (3, 16, 16))
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(12 * 9, 10)),
    )
    train(network, task, TrainingConfig(epochs=2), title=None)
    space = trace(network, (1, 3, 16, 16))
    return GatedNetwork(network.eval(), space, WGates(network, space), GRID), space, task


def test_the_loss_is_none_at_full_width_and_leaves_the_network_alone() -> None:
    gated, space, task = trained_gates()
    network = gated.network
    before = copy.deepcopy(network.state_dict())

    rise = distillation_rise(gated, torch.arange(28.0), space, task, n_images=200, temperature=3.0)
    whole, half, few = (rise(np.array(widths)) for widths in ((16, 12), (12, 9), (2, 1)))

    assert whole == pytest.approx(0.0, abs=1e-6)
    assert 0 < half < few
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training
    assert all(value.is_contiguous() for value in network.parameters())


def test_the_loss_is_the_same_in_either_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    gated, space, task = trained_gates()
    found = []
    for precision in (Precision(), Precision(channels_last=True)):
        monkeypatch.setattr("pruning.removal_order._layout", lambda _, precision=precision: precision)
        rise = distillation_rise(gated, torch.arange(28.0), space, task, n_images=200, temperature=3.0)
        found.append([rise(np.array(widths)) for widths in ((12, 9), (8, 6), (2, 1))])

    assert found[0] == pytest.approx(found[1], rel=1e-4)
