"""PruneNet: channels ranked over the whole network by the variance they explain, widths by a light optimisation.

Khetan, Karnin: "PruneNet: Channel Pruning via Global Importance", arXiv 2005.11282: from a trained network a
computationally light, data-driven step finds the width that each layer needs. The method's details are not public
where we looked, beyond that importance is a variance after filtering; this reading is ours:

- with z = Σ_i z_i what a layer makes of its input channels i, channel i explains Cov(z_i, z) of the variance of z, as
  a share of the layer's whole: shares of a layer sum to 1. With gates g_i on the channels it is the derivative
  of ½ Var(Σ g_i z_i) at g = 1. A channel that several layers read takes the mean;
- each slot gets a scale a in [0, 1] on the weights that read it, start 1. The network stays as it is, BatchNorm
  statistics included, while the scales are trained for at most one epoch on
  loss = distillation + latency term at the widths Σ a, whose target falls to the budget; scales that the loss does
  not hold go down, most of all where a channel saves much;
- importance is a, times the share relative to its group's mean to the power of 0.15: the scales say what each layer
  needs, the variance which of its channels. Over all layers the smallest go first. On ResNet-20 (CIFAR-10, half of the
  latency, no fine-tuning) a alone kept 28.2 % accuracy, with that power 29.7 %, a² times the share 22.2 %.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from latency.space import SearchSpace
from latency.structure import FIXED, ParameterAxis
from pruning.criteria.base import Method, SearchJob, SearchResult, finite
from pruning.criteria.gate_search import SearchedGates, train_gates
from pruning.data import ImageTask
from pruning.gates import GatedNetwork
from pruning.objective import BudgetSchedule, LatencyHinge

N_IMAGES, BATCH_SIZE = 1024, 64
"""Images that variances are taken over, and how many at a time (ours)."""

MOST_EPOCHS = 1
"""Epochs of the light optimisation at most (ours)."""

SHARE_POWER = 0.15
"""Power of the explained variance beside the trained scale (ours, see above)."""

SCALE_TRAVEL = 6.0
"""How far a scale could fall during the optimisation, however short (ours)."""

ANNEAL = 0.7
"""Share of the optimisation after which the target is the budget (ours)."""

_LEAST_SCALE = 1e-3


class Scales(SearchedGates):
    """A scale in [0, 1] for each slot.

    Args:
        n_slots: their number.
    """

    def __init__(self, n_slots: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.ones(n_slots))

    def start_from(self, worth: Tensor, parameters: Mapping[str, Tensor]) -> None:
        """All start at 1."""

    def levelled(self) -> tuple[nn.Parameter, ...]:
        """The scales: each falls at a bounded rate, whatever its gradient."""
        return (self.values,)

    def scores(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The scales before they are bounded, [n_slots]."""
        del parameters
        return self.values

    def open(self, scores: Tensor) -> Tensor:
        """The scales, [n_slots], in [0.001, 1]; backward as if they were not bounded, so that they can return."""
        return scores + (scores.clamp(_LEAST_SCALE, 1.0) - scores).detach()


class ScaledNetwork(GatedNetwork):
    """A gated network whose gates are scales, and which stays in evaluation mode: only the scales are trained."""

    def gate_values(self) -> Tensor:
        """Scale of every slot, [n_slots], on no grid."""
        return self.gates.open(self.gates.scores({}))

    def train(self, mode: bool = True) -> "ScaledNetwork":
        """Evaluation mode, whatever is asked for."""
        del mode
        super().train(False)
        return self


class PruneNet(Method):
    """Variance explained, and trained scales."""

    name = "prunenet"
    summary = "variance explained in what the next layer receives, widths by a light optimisation of scales"

    def search(self, job: SearchJob) -> SearchResult:
        """Logarithms of the importances of all slots; see `Method.search`."""
        shares = job.stored("shares", lambda: explained_variance(job.network, job.space, job.task))
        scales = Scales(job.n_slots)
        device = next(job.network.parameters()).device
        scaled = ScaledNetwork(job.network, job.space, scales, job.device.grid).to(device)
        with frozen(job.network):
            config = job.options.training(self.search_epochs(job.options.epochs), job.seed)
            history = train_gates(job, scaled, scales, _term(job), config, SCALE_TRAVEL)
        values = scaled.gate_values().detach().double().cpu()
        parts = torch.split(shares.clamp(min=1e-9), job.space.full_widths.tolist())
        relative = torch.cat([part / part.mean() for part in parts])
        scores = values.log() + SHARE_POWER * relative.log()
        return SearchResult(finite(scores).numpy(), history)

    def search_epochs(self, epochs: int) -> int:
        """One, if there is one."""
        return min(epochs, MOST_EPOCHS)


def _term(job: SearchJob) -> LatencyHinge:
    """Pulls the scales to the budget."""
    price = job.device.price(job.budget_ms)
    with torch.no_grad():
        dense_ms = float(price(torch.from_numpy(job.space.full_widths).float().unsqueeze(0))[0])
    return LatencyHinge(price, BudgetSchedule(dense_ms, job.device.aim_ms(job.budget_ms), ANNEAL))


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """A network whose parameters are not trained meanwhile."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def explained_variance(
    network: nn.Module,
    space: SearchSpace,
    task: ImageTask,
    *,
    n_images: int = N_IMAGES,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """Share of the variance of what reads each slot that the slot explains, [n_slots], mean over its readers.

    Args:
        network: left as it is, in evaluation mode.
        space: its search space.
        task: the data; training images are used, not varied.
        n_images: how many of them.
        batch_size: images that a variance is taken over.
    """
    network.eval()
    n_slots = int(space.full_widths.sum())
    total, count = torch.zeros(n_slots, dtype=torch.float64), torch.zeros(n_slots, dtype=torch.float64)
    modules = dict(network.named_modules())
    handles = []

    def watch(axis: ParameterAxis) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        known = torch.from_numpy(np.unique(axis.slots[axis.slots != FIXED]))
        n_running = 0  # a layer's shares are found by running the layer

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            nonlocal n_running
            if n_running:
                return
            n_running += 1
            total[known] += _shares(module, axis, inputs[0], n_slots)[known]
            count[known] += 1
            n_running -= 1

        return hook

    for axis in space.parameter_axes:
        path, _, kind = axis.parameter.rpartition(".")
        if axis.role == "in" and kind == "weight" and path in modules:
            handles.append(modules[path].register_forward_pre_hook(watch(axis)))
    device = next(network.parameters()).device
    for images, _ in task.calibration_batches(n_images, batch_size):
        network(images.to(device))
    for handle in handles:
        handle.remove()
    return total / count.clamp(min=1)


def _shares(module: nn.Module, axis: ParameterAxis, inputs: Tensor, n_slots: int) -> Tensor:
    """Cov(z_i, z) over Var z, summed over the outputs of a layer, of the slots that it reads, [n_slots]."""
    gates = torch.ones(n_slots + 1, device=inputs.device, requires_grad=True)  # the last for what is kept
    weight = module.get_parameter("weight")
    shape = [1] * weight.ndim
    shape[axis.axis] = -1
    with torch.enable_grad():
        factors = gates[torch.from_numpy(axis.slots).to(inputs.device)].view(shape)
        outputs = functional_call(module, {"weight": weight.detach() * factors}, (inputs.detach(),))
        channel_last = outputs.movedim(1, -1) if outputs.ndim == 4 else outputs
        half_variance = 0.5 * channel_last.flatten(0, -2).var(dim=0, correction=0).sum()
        (covariances,) = torch.autograd.grad(half_variance, gates)
    shares: Tensor = covariances / (2 * half_variance).clamp(min=1e-12)
    return shares[:-1].double().cpu()
