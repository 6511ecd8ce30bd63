"""What closing a gate would cost the distillation loss, to second order.

Next to the trained network the loss against its own scores has no slope: what a channel is worth shows in the
curvature alone. For the distillation loss at temperature T, T² KL(p || q) with p = softmax(z / T), the curvature
at q = p is the Fisher information, so that closing gate g costs about

    ½ T² E[(∂ log p_y / ∂g)²],   y drawn from p

(the diagonal of the Gauss-Newton matrix, as in Theis et al., arXiv 1801.05787; to draw labels from the network,
not to take the given ones, and to soften them are ours). The expectation is taken over batches: since the
expected gradient is 0, the square of a batch's mean gradient times its size is an unbiased estimate.
"""

import math

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from tqdm import tqdm

from pruning.data import ImageTask
from pruning.gates import GatedNetwork
from pruning.models import class_scores


def gate_costs(
    gated: GatedNetwork,
    n_slots: int,
    task: ImageTask,
    *,
    n_images: int = 1024,
    batch_size: int = 32,
    temperature: float = 3.0,
    seed: int = 0,
    title: str | None = None,
) -> Tensor:
    """Estimated rise of the distillation loss for each gate that closes alone, [n_slots], at least 0.

    Args:
        gated: the network with its gates; in evaluation mode during the estimate, as it was afterwards.
        n_slots: number of gates.
        task: the data; training images are used.
        n_images: how many of them.
        batch_size: images per gradient.
        temperature: of the distillation.
        seed: seed of the drawn labels.
        title: shown beside a progress bar; None shows none.
    """
    device = next(gated.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    modes = {module: module.training for module in gated.modules()}
    gated.eval()
    total, n_batches = torch.zeros(n_slots), 0
    n_expected = math.ceil(min(n_images, task.n_train) / batch_size)
    batches = task.calibration_batches(n_images, batch_size)
    for batch in tqdm(batches, title, n_expected, unit="step", leave=False, disable=title is None):
        gates = torch.ones(n_slots, device=device, requires_grad=True)
        values = gated.gated_parameters(gates)
        scores = class_scores(functional_call(gated.network, values, (batch.images.to(device),)))
        scores = scores.float() / temperature
        drawn = torch.multinomial(scores.detach().softmax(dim=1).cpu(), 1, generator=generator)
        (gradient,) = torch.autograd.grad(F.cross_entropy(scores, drawn[:, 0].to(device)), gates)
        total += 0.5 * temperature**2 * len(drawn) * gradient.detach().cpu().square()
        n_batches += 1
    for module, training in modes.items():
        module.training = training
    return total / max(n_batches, 1)
