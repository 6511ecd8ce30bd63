import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from pruning.criteria.taylor_knapsack import taylor_saliency
from pruning.trace import trace


@torch.no_grad()
def central_slopes(loss: Callable[[torch.Tensor], torch.Tensor], n: int) -> torch.Tensor:
    """Slope of a function of n factors at 1, along each of them."""
    steps = 1e-5 * torch.eye(n, dtype=torch.float64)
    return torch.stack([(loss(1 + step) - loss(1 - step)) / 2e-5 for step in steps])


def test_saliency_is_the_slope_of_the_loss_along_the_norms_parameters(make_job) -> None:
    """Of one batch; scaling γ and β of a channel by 1 + h is gating its output by that."""
    job = make_job()
    network = copy.deepcopy(job.network).double()
    (batch,) = job.task.calibration_batches(64, 64)

    def loss(factors: torch.Tensor) -> torch.Tensor:
        scaled = {}
        for name, part in (("stem_norm", factors[:12]), ("inner_norm", factors[12:28])):
            for kind in ("weight", "bias"):
                scaled[f"{name}.{kind}"] = getattr(getattr(network, name), kind) * part
        for kind in ("weight", "bias"):  # the other end of the residual stage
            scaled[f"outer_norm.{kind}"] = getattr(network.outer_norm, kind) * factors[:12]
        scores = torch.func.functional_call(network, scaled, (batch.images.double(),))
        return F.cross_entropy(scores, batch.labels)

    slopes = central_slopes(loss, 28)

    found = taylor_saliency(job.network, job.space, job.task, n_images=64, batch_size=64)

    torch.testing.assert_close(found[:28], slopes.abs(), rtol=1e-3, atol=1e-5)


def test_channels_without_a_norm_are_judged_by_what_makes_them(task) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 49, 10)
    ).eval()
    (batch,) = task.calibration_batches(32, 32)

    found = taylor_saliency(network, trace(network, (1, 3, 16, 16)), task, n_images=32, batch_size=32)

    network = network.double()
    features = network[0](batch.images.double())

    def loss(factors: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(network[1:](features * factors.view(1, 6, 1, 1)), batch.labels)

    torch.testing.assert_close(found, central_slopes(loss, 6).abs(), rtol=1e-3, atol=1e-5)


def test_saliencies_of_batches_of_opposite_slope_do_not_cancel(make_job) -> None:
    job = make_job()

    small = taylor_saliency(job.network, job.space, job.task, n_images=256, batch_size=32)
    whole = taylor_saliency(job.network, job.space, job.task, n_images=256, batch_size=256)

    assert (small >= whole - 1e-6).all()
    assert small.max() > 0
    assert (small > 1.5 * whole).sum() >= 3
