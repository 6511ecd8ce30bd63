"""Prices of one device, of several, and of multiply-accumulates."""

import dataclasses

import numpy as np
import pytest
import torch

from latency.grid import Grid
from latency.space import SearchSpace
from pruning.correction import aim_below_ms
from pruning.errors import SettingError
from pruning.prices import DeviceBudget, PricedSpace, counting_model
from tests.nets import NETS
from tests.priced import BASE_MS, grid_of_step, made_up_device, priced

GRID = Grid(((2, 4, 6, 8), (0, 4, 8, 12)))
OTHER_GRID = Grid(((4, 8), (0, 6, 12)))
PRICES, OTHER_PRICES = (0.1, 0.05), (0.01, 0.5)


@pytest.fixture(scope="module")
def two(residual_space: SearchSpace) -> PricedSpace:
    other = DeviceBudget("runs/b", **made_up_device(residual_space, OTHER_PRICES, OTHER_GRID), budget_ms=4.0)
    return priced(residual_space, PRICES, GRID, others=(other,))


def test_one_device_is_priced_by_its_own_predictor(residual_space: SearchSpace) -> None:
    device = priced(residual_space, PRICES, GRID)

    assert device.predict_ms(1.0)([[4, 8]]) == pytest.approx([BASE_MS + 0.8])
    assert device.grid == GRID


def test_without_depth_no_layer_is_removed(residual_space: SearchSpace) -> None:
    device = priced(residual_space, PRICES, GRID, depth=False)

    assert device.grid.allowed == ((2, 4, 6, 8), (4, 8, 12))


def test_without_depth_what_is_no_layer_may_go() -> None:
    space = SearchSpace.from_model(NETS["zero_padded_shortcut"]().model)
    device = priced(space, [0.1] * len(space.groups), grid_of_step(space, 4), depth=False)

    may_be_zero = [
        group.name for group, allowed in zip(space.groups, device.grid.allowed, strict=True) if 0 in allowed
    ]

    assert may_be_zero == ["b"]


def test_widths_are_those_that_every_device_allows(two: PricedSpace) -> None:
    assert two.grid.allowed == ((4, 8), (0, 12))


@pytest.mark.parametrize("widths", [(4, 0), (8, 12), (4, 12)])
def test_the_slowest_constraint_binds(two: PricedSpace, widths: tuple[int, int]) -> None:
    budget_ms = 1.5
    first_ms = BASE_MS + np.dot(widths, PRICES)
    other_ms = BASE_MS + np.dot(widths, OTHER_PRICES)
    shares = (first_ms / two.aim_ms(budget_ms), other_ms / aim_below_ms(4.0, 0.01))

    price_ms = two.predict_ms(budget_ms)([widths])[0]

    assert price_ms == pytest.approx(max(shares) * two.aim_ms(budget_ms), rel=1e-5)
    assert float(two.price(budget_ms)(torch.tensor([widths]).float())[0]) == pytest.approx(price_ms, rel=1e-5)


def test_only_the_binding_device_pulls(two: PricedSpace) -> None:
    widths = torch.tensor([[4.0, 12.0]], requires_grad=True)  # 6 ms of 4 on the other device

    two.price(1.5)(widths).sum().backward()

    assert widths.grad is not None
    ratio = float(widths.grad[0, 1] / widths.grad[0, 0])
    assert ratio == pytest.approx(OTHER_PRICES[1] / OTHER_PRICES[0])


@pytest.mark.parametrize("widths", [(8, 12), (4, 8), (6, 0), (2, 4)])
@pytest.mark.parametrize("objective", ["macs", "channels"])
def test_other_objectives_are_a_straight_line_in_what_they_count(
    residual_space: SearchSpace, objective: str, widths: tuple[int, int]
) -> None:
    device = priced(residual_space, PRICES, GRID, objective=objective)
    vectors = [residual_space.full_widths, [2, 0], widths]
    full_ms, least_ms, found_ms = device.predict_ms(1.0)(vectors)
    count = {"macs": residual_space.macs, "channels": sum}[objective]
    full, least, found = (count(vector) for vector in vectors)

    expected_ms = least_ms + (full_ms - least_ms) * (found - least) / (full - least)

    assert found_ms == pytest.approx(expected_ms, rel=1e-6)
    model_ms = counting_model(residual_space, device.profile, objective)(torch.tensor([widths]).float())
    assert float(model_ms[0]) == pytest.approx(found_ms, rel=1e-4)


def test_an_unknown_objective_is_refused(residual_space: SearchSpace) -> None:
    with pytest.raises(SettingError, match="--objective is one of latency, macs, channels; got 'joules'"):
        priced(residual_space, PRICES, GRID, objective="joules")


def test_a_device_profiled_for_another_network_is_refused(
    two: PricedSpace, residual_space: SearchSpace
) -> None:
    other = two.others[0]
    manifest = dataclasses.replace(other.predictor.manifest, structure_hash="cd" * 32)
    predictor = type(other.predictor)(other.lpnet, manifest)

    with pytest.raises(SettingError, match=r"'runs/b' was profiled for another network \(cdcdcdcdcdcd"):
        dataclasses.replace(two, others=(dataclasses.replace(other, predictor=predictor),))
