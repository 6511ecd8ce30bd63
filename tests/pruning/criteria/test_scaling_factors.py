import pytest
import torch
from torch import nn

from latency.space import SearchSpace
from pruning.criteria.scaling_factors import SPARSITY_WEIGHT, ScalingFactors, blocks_of
from pruning.trace import trace
from tests import nets


def test_a_slot_stays_with_the_product_of_its_three_probabilities(residual_space: SearchSpace) -> None:
    factors = ScalingFactors(residual_space)
    with torch.no_grad():
        for parameter in factors.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))

    p = factors.keep_probabilities()

    sigma = torch.sigmoid
    inner = sigma(factors.slot[8:]) * sigma(factors.layer[1]) * sigma(factors.block[1])
    torch.testing.assert_close(p[8:], inner)
    assert torch.equal(factors.open(factors.scores({})), (p > 0.5).float())


@pytest.mark.parametrize("granularity", ["layer", "block"])
def test_one_factor_closes_a_whole_layer_or_block(residual_space: SearchSpace, granularity: str) -> None:
    factors = ScalingFactors(residual_space)
    assert (factors.open(factors.scores({})) == 1).all()
    with torch.no_grad():
        getattr(factors, granularity)[1] = -1.0

    gates = factors.open(factors.scores({}))

    assert gates.tolist() == [1.0] * 8 + [0.0] * 12


def test_the_gradient_reaches_all_granularities_of_a_closed_gate(residual_space: SearchSpace) -> None:
    factors = ScalingFactors(residual_space)
    with torch.no_grad():
        factors.block[1] = -2.0

    factors.open(factors.scores({}))[8:].sum().backward()

    assert factors.block.grad[1] > 0
    assert factors.layer.grad[1] > 0
    assert (factors.slot.grad[8:] > 0).all()
    assert (factors.slot.grad[:8] == 0).all()


def test_groups_that_vanish_together_share_a_block() -> None:
    space = SearchSpace.from_model(nets.two_block_residual().model)

    blocks = dict(zip([group.name for group in space.groups], blocks_of(space), strict=True))

    assert blocks["1.a"] == blocks["1.b"] != blocks["2.a"] == blocks["2.b"]
    assert len({blocks["stem"], blocks["1.a"], blocks["2.a"]}) == 3


def test_factors_start_ranked_by_worth(residual_space: SearchSpace) -> None:
    factors = ScalingFactors(residual_space)
    worth = torch.randn(20, generator=torch.Generator().manual_seed(3))
    worth[8:] -= 2.0

    factors.start_from(worth, {})

    scores = factors.scores({}).detach()
    assert torch.equal(scores[:8].argsort(), worth[:8].argsort())
    assert torch.equal(scores[8:].argsort(), worth[8:].argsort())
    assert scores[8:].mean() < scores[:8].mean()


def test_each_granularity_has_its_penalty() -> None:
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 6), nn.ReLU(), nn.Linear(6, 10))
    )
    factors = ScalingFactors(trace(network.eval(), (1, 3, 8, 8)))
    with torch.no_grad():
        for parameter, value in (
            (factors.slot[:8], -1.0),
            (factors.slot[8:], 0.0),
            (factors.layer, 1.0),
            (factors.block, 2.0),
        ):
            parameter.fill_(value)

    means = torch.sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    torch.testing.assert_close(factors.penalty(), SPARSITY_WEIGHT * means.sum())
