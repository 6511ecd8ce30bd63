import math

import torch
from torch import nn

from latency.space import SearchSpace
from pruning.criteria.wgates import INITIAL_BIAS, WGates
from pruning.trace import trace


def parameters_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return dict(network.named_parameters())


def test_gates_start_open(residual_net: nn.Module, residual_space: SearchSpace) -> None:
    gates = WGates(residual_net, residual_space)

    scores = gates.scores(parameters_of(residual_net))

    assert (gates.open(scores) == 1).all()


def test_scores_are_standardised_within_each_group(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    scores = WGates(residual_net, residual_space).scores(parameters_of(residual_net))

    for part in (scores[:8], scores[8:]):
        torch.testing.assert_close(part.mean(), torch.tensor(INITIAL_BIAS))
        torch.testing.assert_close(part.std(correction=0), torch.tensor(1.0))


def test_scores_start_as_the_l1_norm_of_all_rows_that_make_a_channel(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    scores = WGates(residual_net, residual_space).scores(parameters_of(residual_net))

    made_by = (residual_net.stem, residual_net.outer, residual_net.depthwise)
    norms = sum(layer.weight.abs().flatten(1).sum(1) for layer in made_by)
    assert torch.equal(scores[:8].argsort(), norms.argsort())


def test_the_backward_pass_is_the_slope_of_the_arctangent(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    gates = WGates(residual_net, residual_space)
    scores = torch.tensor([-2.0, -0.1, 0.3, 5.0], requires_grad=True)

    gates.open(scores).sum().backward()

    expected = 1 / (math.pi * (1 + scores.detach() ** 2))
    torch.testing.assert_close(scores.grad, expected)


def test_a_closed_gate_can_reopen(residual_net: nn.Module, residual_space: SearchSpace) -> None:
    gates = WGates(residual_net, residual_space)
    with torch.no_grad():
        gates.bias[1] = -4.0
    optimiser = torch.optim.SGD(gates.parameters(), lr=2.0)
    assert not gates.open(gates.scores(parameters_of(residual_net)))[8:].any()

    for _ in range(100):
        optimiser.zero_grad()
        (-gates.open(gates.scores(parameters_of(residual_net)))[8:].sum()).backward()
        optimiser.step()

    assert gates.open(gates.scores(parameters_of(residual_net)))[8:].any()


def test_scores_depend_on_the_weights_differentiably(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    gates = WGates(residual_net, residual_space)

    gates.scores(parameters_of(residual_net))[0].backward()

    assert residual_net.stem.weight.grad is not None
    assert gates.weights[0].grad is not None


def started_scores(network: nn.Module, space: SearchSpace, worth: torch.Tensor) -> torch.Tensor:
    gates = WGates(network, space)
    gates.start_from(worth, parameters_of(network))
    return gates.scores(parameters_of(network)).detach()


def test_gates_start_at_the_standardised_worth(residual_net: nn.Module, residual_space: SearchSpace) -> None:
    n_slots = int(residual_space.full_widths.sum())
    worth = torch.randn(n_slots, generator=torch.Generator().manual_seed(3))
    worth[8:] -= 2.0  # the second group as a whole is worth less

    scores = started_scores(residual_net, residual_space, worth)

    torch.testing.assert_close(scores, (worth - worth.mean()) / worth.std() + INITIAL_BIAS)


def test_gates_start_at_a_worth_that_rows_are_too_short_to_explain() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 2, 1))
    worth = torch.randn(64, generator=torch.Generator().manual_seed(3))

    scores = started_scores(network, trace(network, (1, 3, 8, 8)), worth)

    torch.testing.assert_close(scores.argsort(), worth.argsort())


def test_what_the_worth_leaves_to_weights_still_moves_with_them() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 2, 1))
    gates = WGates(network, trace(network, (1, 3, 8, 8)))
    gates.start_from(torch.linspace(0, 1, 64), parameters_of(network))
    before = gates.scores(parameters_of(network)).detach()

    with torch.no_grad():
        network[0].weight[5] *= 3

    assert gates.scores(parameters_of(network)).detach().sub(before).abs().argmax() == 5
