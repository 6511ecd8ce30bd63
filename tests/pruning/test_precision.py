from collections.abc import Callable

import pytest
import torch
from torch import nn

from pruning.precision import FORMATS, Precision, choose_precision

FP32, FP32_LAST, BF16_LAST = FORMATS
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Precision]]:
    """Replaces the timing of steps by given seconds for each format; returns the formats in the order timed."""

    def replace(first: tuple[float, ...], later: tuple[float, ...]) -> list[Precision]:
        order: list[Precision] = []

        def seconds(trial: object, images: object, precision: Precision, clock: object) -> float:
            order.append(precision)
            times = first if order.count(precision) == 1 else later
            return times[FORMATS.index(precision)]

        monkeypatch.setattr("pruning.precision._step_seconds", seconds)
        return order

    return replace


@pytest.mark.parametrize(
    ("later", "chosen"),
    [
        ((1.0, 0.9, 0.5), BF16_LAST),
        ((1.0, 0.8, 0.9), FP32_LAST),
        ((1.0, 1.1, 1.2), FP32),
        # Not worth the rounding.
        ((1.0, 1.0, 0.97), FP32),
    ],
)
def test_the_fastest_format_is_chosen_where_it_is_worth_it(
    timed: Callable[..., list[Precision]], later: tuple[float, ...], chosen: Precision
) -> None:
    timed((2.0, 2.0, 2.0), later)
    precision, seconds = choose_precision(_net(), IMAGES)
    assert precision == chosen
    assert tuple(seconds.values()) == later
    assert list(seconds) == ["fp32", "fp32, channels last", "bf16, channels last"]


def test_the_first_step_decides_nothing_but_what_is_hopeless(timed: Callable[..., list[Precision]]) -> None:
    timed((1.0, 1.0, 3.0), (1.0, 1.0, 0.5))
    assert choose_precision(_net(), IMAGES)[0] == BF16_LAST


def test_a_hopeless_format_is_tried_once(timed: Callable[..., list[Precision]]) -> None:
    order = timed((1.0, 1.0, 13.0), (1.0, 0.9, 0.1))
    precision, seconds = choose_precision(_net(), IMAGES)
    assert precision == FP32_LAST
    assert order.count(BF16_LAST) == 1
    assert seconds["bf16, channels last"] == 13.0


def test_formats_take_turns(timed: Callable[..., list[Precision]]) -> None:
    order = timed((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    choose_precision(_net(), IMAGES)
    assert order == [*FORMATS] * 4


def test_long_steps_are_timed_once(timed: Callable[..., list[Precision]]) -> None:
    order = timed((6.0, 6.0, 6.0), (6.0, 6.0, 5.0))
    assert choose_precision(_net(), IMAGES)[0] == BF16_LAST
    assert order == [*FORMATS] * 2


def test_a_part_of_a_large_batch_is_timed() -> None:
    sizes = []
    network = _net()
    network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    choose_precision(network, IMAGES.repeat(20, 1, 1, 1))
    assert set(sizes) == {32}


def test_the_network_is_left_as_it_is() -> None:
    network = _net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    _, seconds = choose_precision(network, IMAGES)
    assert all(value > 0 for value in seconds.values())
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_weights_change_their_layout_and_keep_their_values() -> None:
    network = _net()
    weight = network.state_dict()["0.weight"].clone()
    FP32_LAST.lay_out_(network)
    assert network.state_dict()["0.weight"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(network.state_dict()["0.weight"], weight)
    FP32.lay_out_(network)
    assert network.state_dict()["0.weight"].is_contiguous()


def test_bf16_rounds_and_fp32_does_not() -> None:
    network, device = _net(), torch.device("cpu")
    with FP32.context(device):
        assert network(IMAGES).dtype == torch.float32
    with BF16_LAST.context(device):
        assert network(BF16_LAST.images(IMAGES)).dtype == torch.bfloat16


def test_a_format_comes_back_from_json() -> None:
    assert Precision(**BF16_LAST.to_json()) == BF16_LAST
