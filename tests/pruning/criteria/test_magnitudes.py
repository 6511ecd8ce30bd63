import pytest
import torch
from torch import nn

from latency.space import SearchSpace
from pruning.criteria.bn_scale import BnScale
from pruning.criteria.l1 import L1
from pruning.criteria.magnitudes import filter_magnitudes, norm_scales, reading_magnitudes
from pruning.criteria.uniform import Uniform
from pruning.errors import SettingError
from pruning.trace import trace


def test_a_channel_is_as_large_as_the_mean_of_the_filters_that_make_it(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    found = filter_magnitudes(residual_space, dict(residual_net.named_parameters()))

    makers = (residual_net.stem, residual_net.outer, residual_net.depthwise)
    stem = torch.stack([layer.weight.abs().flatten(1).mean(1) for layer in makers]).mean(0)
    torch.testing.assert_close(found[:8].float(), stem)
    torch.testing.assert_close(found[8:].float(), residual_net.inner.weight.abs().mean(dim=(1, 2, 3)))


def test_a_channel_is_read_by_the_columns_of_the_layers_behind_it(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    found = reading_magnitudes(residual_space, dict(residual_net.named_parameters()))

    by_inner = residual_net.inner.weight.abs().mean(dim=(0, 2, 3))
    by_head = residual_net.head.weight.abs().mean(dim=0)
    torch.testing.assert_close(found[:8].float(), (by_inner + by_head) / 2)
    torch.testing.assert_close(found[8:].float(), residual_net.outer.weight.abs().mean(dim=(0, 2, 3)))


def test_norm_scales_are_the_mean_over_the_norms_of_a_residual_stage(
    residual_net: nn.Module, residual_space: SearchSpace
) -> None:
    found = norm_scales(residual_space, residual_net, "bn-scale").float()

    ends = (residual_net.stem_norm.weight.abs() + residual_net.outer_norm.weight.abs()) / 2
    torch.testing.assert_close(found, torch.cat([ends, residual_net.inner_norm.weight.abs()]))


def test_a_group_without_a_norm_is_refused_by_name() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    space = trace(network.eval(), (1, 3, 8, 8))

    with pytest.raises(SettingError, match=r"--method bn-scale .* group '0' has none"):
        norm_scales(space, network, "bn-scale")


def test_l1_compares_channels_with_those_of_their_group(make_job) -> None:
    job = make_job()
    with torch.no_grad():
        job.network.deep.weight.mul_(100.0)

    scores = L1().search(job).scores

    norms = job.network.deep.weight.abs().mean(dim=(1, 2, 3))
    torch.testing.assert_close(torch.from_numpy(scores[28:]).float(), (norms / norms.mean()).detach())


def test_uniform_keeps_the_same_share_of_every_group_by_one_threshold(make_job) -> None:
    job = make_job()
    scores = Uniform().search(job).scores

    shares = [(part > 0.5).mean() for part in (scores[:12], scores[12:28], scores[28:])]

    assert shares == [0.5, 0.5, 0.5]
    best = job.network.inner.weight.abs().mean(dim=(1, 2, 3)).argmax()
    assert scores[12:28].argmax() == int(best)


def test_bn_scale_ranks_over_all_groups(make_job) -> None:
    job = make_job()
    with torch.no_grad():
        job.network.deep_norm.weight[7] = -99.0

    assert BnScale().search(job).scores.argmax() == 28 + 7
