"""Taylor saliency and a knapsack over predicted latency, after HALP. A baseline.

Shen, Yin, Molchanov, Mao, Liu, Alvarez: "Structural Pruning via Latency-Saliency Knapsack", arXiv 2210.06659. A
channel's saliency is the first-order change of the loss when it goes (Molchanov et al., arXiv 1906.10771),

    |Σ over its BatchNorms of γ ∂L/∂γ + β ∂L/∂β|

averaged over batches, and the channels are chosen by a knapsack whose weights are latencies. Ours:

- channels without a BatchNorm take Σ w ∂L/∂w over what makes them, which is the same derivative;
- the loss is the cross-entropy on unvaried training images, the network in evaluation mode;
- prices are LPNet's, of the whole network, instead of a table by layer: see `pruning.knapsack`;
- one cut, where the paper prunes in many small steps between training.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from latency.space import SearchSpace
from latency.structure import IntArray
from pruning.criteria.base import Cutter, Method, SearchJob, SearchResult, finite
from pruning.criteria.magnitudes import norm_parameters, sum_by_slot
from pruning.data import ImageTask
from pruning.knapsack import knapsack_cut
from pruning.models import class_scores

N_IMAGES, BATCH_SIZE = 2048, 64
"""Images that the saliency is averaged over, and how many a gradient is taken of (ours)."""


class TaylorKnapsack(Method):
    """First-order saliency, cut by a knapsack."""

    name = "taylor-knapsack"
    summary = "first-order saliency, widths by a knapsack over LPNet's prices (HALP-like); no training"

    def search(self, job: SearchJob) -> SearchResult:
        """Saliencies of all slots; see `Method.search`."""
        return SearchResult.untrained(
            finite(taylor_saliency(job.network, job.space, job.task, title=job.title))
        )

    @property
    def cut(self) -> Cutter:
        """A knapsack: saliencies add up."""
        return knapsack_cut


def taylor_saliency(
    network: nn.Module,
    space: SearchSpace,
    task: ImageTask,
    *,
    n_images: int = N_IMAGES,
    batch_size: int = BATCH_SIZE,
    title: str | None = None,
) -> Tensor:
    """First-order change of the loss for each channel that goes, [n_slots], at least 0.

    Args:
        network: left as it is, in evaluation mode.
        space: its search space.
        task: the data; training images are used, not varied.
        n_images: how many of them.
        batch_size: images per gradient.
        title: shown beside a progress bar; None shows none.
    """
    network.eval()
    axes = _judged_axes(network, space)
    parameters = dict(network.named_parameters())
    judged = [parameters[name] for name, _, _ in axes]
    total, n_batches = torch.zeros(int(space.full_widths.sum()), dtype=torch.float64), 0
    device = next(network.parameters()).device
    batches = task.calibration_batches(n_images, batch_size)
    for images, labels in tqdm(batches, title, unit="step", leave=False, disable=title is None):
        loss = F.cross_entropy(class_scores(network(images.to(device))).float(), labels.to(device))
        gradients = torch.autograd.grad(loss, judged, materialize_grads=True)
        parts = [
            (slots, (value * gradient).movedim(axis, 0).reshape(len(slots), -1).sum(dim=1))
            for (_, axis, slots), value, gradient in zip(axes, judged, gradients, strict=True)
        ]
        total += sum_by_slot(parts, len(total))[0].abs()
        n_batches += 1
    return total / max(n_batches, 1)


def _judged_axes(network: nn.Module, space: SearchSpace) -> list[tuple[str, int, IntArray]]:
    """Parameters whose derivative tells a channel's saliency: name, axis, and slots along it, [size]."""
    norms = norm_parameters(network, "weight").keys() | norm_parameters(network, "bias").keys()
    names = {name for name, _ in network.named_parameters()}
    makers = [axis for axis in space.parameter_axes if axis.role == "out" and axis.parameter in names]
    normed = {int(slot) for axis in makers if axis.parameter in norms for slot in axis.slots}
    return [
        (axis.parameter, axis.axis, axis.slots)
        for axis in makers
        if axis.parameter in norms or normed.isdisjoint(axis.slots.tolist())
    ]
