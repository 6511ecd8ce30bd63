from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latency.candidate import candidate_model
from latency.grid import Grid
from latency.session import make_session
from latency.space import SearchSpace
from pruning.gates import GatedNetwork, Gates


class FreeGates(Gates):
    """Gates whose scores are parameters of their own."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(scores)

    def scores(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return self.values

    def open(self, scores: Tensor) -> Tensor:
        hard = (scores > 0).to(scores.dtype)
        return hard + scores - scores.detach()


ANY_WIDTH = Grid((tuple(range(1, 9)), tuple(range(13))))


def gated(network: nn.Module, space: SearchSpace, scores: Tensor, grid: Grid = ANY_WIDTH) -> GatedNetwork:
    return GatedNetwork(network, space, FreeGates(scores), grid).eval()


def test_open_gates_change_nothing(residual_net: nn.Module, residual_space: SearchSpace) -> None:
    images = torch.randn(2, 3, 8, 8)

    scores = gated(residual_net, residual_space, torch.ones(20))(images)

    assert torch.equal(scores, residual_net(images))


def test_closed_gates_equal_the_candidate_without_the_channels(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    images = torch.randn(1, 3, 8, 8)
    values = torch.randn(20, generator=torch.Generator().manual_seed(3))
    network = gated(residual_net, residual_space, values)
    kept = [np.flatnonzero(part > 0) for part in np.split(values.numpy(), [8])]
    session = make_session(candidate_model(residual_space, kept))

    (expected,) = session.run(None, {"input": images.numpy()})

    np.testing.assert_allclose(network(images).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_removable_group_with_all_gates_closed_is_bypassed(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    images = torch.randn(1, 3, 8, 8)
    values = torch.cat([torch.ones(8), -torch.ones(12)])
    network = gated(residual_net, residual_space, values)
    kept = [np.arange(8), np.arange(0)]
    session = make_session(candidate_model(residual_space, kept))

    (expected,) = session.run(None, {"input": images.numpy()})

    np.testing.assert_allclose(network(images).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert network.widths.tolist() == [8, 0]


@pytest.mark.parametrize(
    ("n_positive", "width"), [(0, 4), (3, 4), (5, 4), (6, 8), (8, 8)], ids=lambda value: str(value)
)
def test_as_many_channels_are_open_as_the_nearest_allowed_width(
    residual_net: nn.Module, residual_space: SearchSpace, n_positive: int, width: int
) -> None:
    stem = torch.arange(8) - (8 - n_positive) + 0.5  # the last n_positive are above 0
    network = gated(residual_net, residual_space, torch.cat([stem, torch.ones(12)]), Grid(((4, 8), (0, 12))))

    gates = network.gate_values()

    assert (gates[:8] > 0.5).tolist() == [False] * (8 - width) + [True] * width


def test_moving_a_score_past_the_threshold_lets_its_gradient_pass(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    values = torch.cat([-torch.ones(8), torch.ones(12)])
    network = gated(residual_net, residual_space, values, Grid(((8,), (0, 12))))

    network.gate_values().sum().backward()

    assert network.gates.values.grad.tolist() == [1.0] * 20


def test_the_task_loss_reaches_gates_and_weights(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    network = gated(residual_net, residual_space, torch.randn(20))

    network(torch.randn(2, 3, 8, 8)).square().sum().backward()

    assert network.gates.values.grad is not None
    assert (network.gates.values.grad != 0).sum() > 10
    assert residual_net.stem.weight.grad is not None


def slope(loss: Callable[[float], float]) -> float:
    """Central difference around 1."""
    return (loss(1 + 1e-6) - loss(1 - 1e-6)) / 2e-6


def loss_with(network: nn.Module, images: Tensor, **factors: Tensor) -> float:
    """Loss with some parameters multiplied by factors; their names have `__` for a dot."""
    parameters = dict(network.named_parameters())
    names = {name.replace("__", "."): factor for name, factor in factors.items()}
    state = {name: parameters[name] * factor for name, factor in names.items()}
    with torch.no_grad():
        return float(torch.func.functional_call(network, state, (images,)).square().sum())


def test_the_gradient_of_a_gate_is_the_losss_slope_along_the_channel(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    """Channel 2 of `stem` is read by `inner` and, through the depthwise convolution, by `head`."""
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    residual_net.double()
    network = gated(residual_net, residual_space, torch.ones(20, dtype=torch.float64))
    network(images).square().sum().backward()

    def loss(factor: float) -> float:
        column = torch.ones(8, dtype=torch.float64)
        column[2] = factor
        return loss_with(residual_net, images, inner__weight=column.view(1, 8, 1, 1), head__weight=column)

    np.testing.assert_allclose(network.gates.values.grad[2].item(), slope(loss), rtol=1e-5)


def test_a_group_that_is_gone_knows_what_bringing_it_back_would_do(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    """Its gates share the gradient of its presence, the factor of the branch's biases and norms."""
    images = torch.randn(2, 3, 8, 8)
    network = gated(residual_net, residual_space, torch.cat([torch.ones(8), -torch.ones(12)]))
    network(images).square().sum().backward()
    presence = torch.zeros((), requires_grad=True)
    parameters = dict(residual_net.named_parameters())
    state = {name: parameters[name].detach() * presence for name in residual_space.groups[1].presence}

    torch.func.functional_call(residual_net, state, (images,)).square().sum().backward()

    assert presence.grad is not None
    assert presence.grad.item() != 0
    torch.testing.assert_close(network.gates.values.grad[8:], (presence.grad / 12).expand(12))
