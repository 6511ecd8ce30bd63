"""Shares of variance against those computed from each channel's own contribution."""

import pytest
import torch
from torch.nn import functional as F

from pruning.criteria.prunenet import PruneNet, explained_variance, frozen

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def test_a_channel_explains_its_covariance_with_the_whole_layer(make_job) -> None:
    job = make_job()
    network = job.network
    (batch,) = job.task.calibration_batches(64, 64)
    stream = torch.relu(network.stem_norm(network.stem(batch.images)))
    branch = torch.relu(network.inner_norm(network.inner(stream)))
    each = torch.stack(
        [F.conv2d(branch[:, i : i + 1], network.outer.weight[:, i : i + 1], padding=1) for i in range(16)]
    )
    each = each.double().movedim(2, -1).flatten(1, -2)  # [channel, place, output]
    centred = each - each.mean(dim=1, keepdim=True)
    whole = centred.sum(dim=0)
    covariances = (centred * whole).mean(dim=1).sum(dim=1)

    shares = explained_variance(network, job.space, job.task, n_images=64, batch_size=64)

    torch.testing.assert_close(
        shares[12:28], covariances / whole.square().mean(dim=0).sum(), rtol=1e-3, atol=1e-5
    )
    assert float(shares[12:28].sum()) == pytest.approx(1.0, abs=1e-4)


def test_a_channel_that_is_read_by_two_layers_takes_the_mean(make_job) -> None:
    """`inner` and `deep` read the stream; what each of them receives is explained in full."""
    job = make_job()
    with torch.no_grad():
        job.network.inner.weight[:, 3] = 0

    shares = explained_variance(job.network, job.space, job.task, n_images=64)

    assert float(shares[:12].sum()) == pytest.approx(1.0, abs=1e-4)
    assert 0 < float(shares[3]) < 0.6


def test_only_the_scales_are_trained(make_job) -> None:
    job = make_job(epochs=1)
    before = {name: value.clone() for name, value in job.network.state_dict().items()}

    PruneNet().search(job)

    assert all(torch.equal(value, before[name]) for name, value in job.network.state_dict().items())
    assert all(parameter.requires_grad for parameter in job.network.parameters())


def test_a_channel_that_nobody_reads_scores_lowest_of_its_group(make_job) -> None:
    job = make_job(epochs=1)
    with torch.no_grad():
        job.network.head.weight[:, 4] = 0

    scores = PruneNet().search(job).scores

    assert scores[28:].argmin() == 4


def test_a_frozen_network_is_trained_again_after_an_error(make_job) -> None:
    network = make_job().network

    def stop() -> None:
        with frozen(network):
            assert not any(parameter.requires_grad for parameter in network.parameters())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()

    assert all(parameter.requires_grad for parameter in network.parameters())
