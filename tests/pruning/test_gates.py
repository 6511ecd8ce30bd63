from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from latency.candidate import candidate_model
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


def gated(network: nn.Module, space: SearchSpace, scores: Tensor, minimum: tuple[int, int]) -> GatedNetwork:
    return GatedNetwork(network, space, FreeGates(scores), minimum).eval()


def test_open_gates_change_nothing(residual_net: nn.Module, residual_space: SearchSpace) -> None:
    images = torch.randn(2, 3, 8, 8)

    scores = gated(residual_net, residual_space, torch.ones(20), (1, 0))(images)

    assert torch.equal(scores, residual_net(images))


def test_closed_gates_equal_the_candidate_without_the_channels(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    images = torch.randn(1, 3, 8, 8)
    values = torch.randn(20, generator=torch.Generator().manual_seed(3))
    network = gated(residual_net, residual_space, values, (1, 0))
    kept = [np.flatnonzero(part > 0) for part in np.split(values.numpy(), [8])]
    session = make_session(candidate_model(residual_space, kept))

    (expected,) = session.run(None, {"input": images.numpy()})

    np.testing.assert_allclose(network(images).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_removable_group_with_all_gates_closed_is_bypassed(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    images = torch.randn(1, 3, 8, 8)
    values = torch.cat([torch.ones(8), -torch.ones(12)])
    network = gated(residual_net, residual_space, values, (1, 0))
    kept = [np.arange(8), np.arange(0)]
    session = make_session(candidate_model(residual_space, kept))

    (expected,) = session.run(None, {"input": images.numpy()})

    np.testing.assert_allclose(network(images).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert network.widths.tolist() == [8, 0]


def test_a_group_that_may_not_vanish_keeps_its_best_channels_open(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    values = torch.cat([torch.linspace(-9, -1, 8), torch.ones(12)])
    network = gated(residual_net, residual_space, values, (2, 0))

    gates = network.gate_values()

    assert gates[:8].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


def test_the_task_loss_reaches_gates_and_weights(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    network = gated(residual_net, residual_space, torch.randn(20), (1, 0))

    network(torch.randn(2, 3, 8, 8)).square().sum().backward()

    assert network.gates.values.grad is not None
    assert (network.gates.values.grad != 0).sum() > 10
    assert residual_net.stem.weight.grad is not None


def test_the_gradient_of_a_gate_is_the_losss_slope_along_the_channel(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    """Scaling a channel for its readers by 1 ± h changes the loss as the gate's gradient says."""
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    residual_net.double()
    values = torch.ones(20, dtype=torch.float64)
    network = gated(residual_net, residual_space, values, (1, 0))
    network(images).square().sum().backward()
    slope = network.gates.values.grad[10].item()  # third channel of `inner`, read by `outer` alone

    def loss(factor: float) -> float:
        weight = residual_net.outer.weight.detach().clone()
        weight[:, 2] *= factor
        state = {"outer.weight": weight}
        with torch.no_grad():
            return float(torch.func.functional_call(residual_net, state, (images,)).square().sum())

    step = 1e-6
    np.testing.assert_allclose(slope, (loss(1 + step) - loss(1 - step)) / (2 * step), rtol=1e-5)
