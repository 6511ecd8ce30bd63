"""The importance by hand, and the controller against its rule written down a second time."""

import numpy as np
import pytest
import torch

from pruning.criteria.dependency_aware import (
    DependencyAware,
    DynamicStrength,
    importance,
    remaining_widths,
    steering,
)
from pruning.training import TrainingConfig


def test_importance_is_the_scale_times_the_weights_that_read_it(residual_net, residual_space) -> None:
    found = importance(residual_space, residual_net)

    inner = residual_net.inner_norm.weight.abs() * residual_net.outer.weight.abs().mean(dim=(0, 2, 3))
    torch.testing.assert_close(found[8:].float(), inner.detach())


@pytest.mark.parametrize("seed", range(4))
def test_the_strength_follows_the_papers_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target, step, n = 0.5, 1e-5, 40
    sparsities = np.clip(np.cumsum(rng.normal(0.02, 0.04, size=n)), 0, 1)
    strength = DynamicStrength(target, 0.1, step=step, n_updates=n)

    found = []
    for sparsity in sparsities:
        strength.update_(float(sparsity))
        found.append(float(strength.strength))

    wanted, current, previous = [], 0.0, 0.1
    for t, sparsity in enumerate(sparsities):
        if sparsity < target and sparsity - previous < (target - sparsity) / (n - t):
            current += step
        if sparsity > target and sparsity > previous:
            current = max(0.0, current - step)
        wanted.append(current)
        previous = sparsity
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert max(found) > 0
    assert np.diff(found).min() < 0


def test_the_strength_stays_where_sparsity_grows_fast_enough() -> None:
    strength = DynamicStrength(0.5, 0.0, n_updates=10)

    for t in range(10):
        strength.update_(0.05 * (t + 1) + 0.01)

    assert float(strength.strength) == 0.0


def test_the_controllers_state_is_part_of_a_checkpoint() -> None:
    strength = DynamicStrength(0.5, 0.0, n_updates=10)
    strength.update_(0.01)
    resumed = DynamicStrength(0.5, 0.0, n_updates=10)

    resumed.load_state_dict(strength.state_dict())
    strength.update_(0.02)
    resumed.update_(0.02)

    assert float(resumed.strength) == float(strength.strength) == pytest.approx(2e-5)


def test_channels_below_a_fiftieth_of_the_largest_are_gone() -> None:
    importances = torch.tensor([1.0, 0.021, 0.02, 0.5, 0.0])

    assert remaining_widths(importances, torch.tensor([3, 2])).tolist() == [2, 1]


def test_the_papers_step_is_kept_where_there_is_time() -> None:
    paper = TrainingConfig(epochs=160, learning_rate=0.1, momentum=0.9)
    short = TrainingConfig(epochs=2, learning_rate=0.01, momentum=0.9)

    assert steering(paper, 160 * 782) == (160, 1e-5)
    n_updates, step = steering(short, 200)
    assert n_updates == 20  # often enough to steer, seldom enough to see what the last change did
    assert step == pytest.approx(8 * 0.1 / (20 * 200 * 0.01 * 0.5), rel=0.05)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("response", [50, 100, 300])
def test_a_network_whose_sparsity_grows_with_the_strength_ends_at_the_target(
    target: float, response: float
) -> None:
    strength = DynamicStrength(target, 0.0)
    sparsity = 0.0

    for _ in range(strength.n_updates):
        sparsity = min(1.0, sparsity + response * float(strength.strength))
        strength.update_(sparsity)

    assert sparsity == pytest.approx(target, abs=0.04)


@pytest.mark.usefixtures("one_thread")
def test_the_training_makes_as_much_sparse_as_the_budget_asks_for(make_job) -> None:
    job = make_job(epochs=4, budget_share=0.5, lr=0.03)

    history = DependencyAware().search(job).history

    assert history.rows[-1].latency_ms <= 0.55 * job.device.profile.reference_ms
