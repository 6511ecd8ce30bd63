"""In which order channels leave a trained network, cheapest first, with each step measured on the loss.

The curvature at the trained network (`pruning.sensitivity`) ranks the channels of one group well. What a whole branch
is worth it does not know: far from where it is taken, and blind to what has gone before; of three blocks in a row any
one can be spared, not all three. So the order between groups is found by removing: in each round the step, of one
group to a narrower width on the grid, that raises the distillation loss least for each millisecond it saves is taken,
and all further ones are judged with it gone. BatchNorm runs on the batch's own statistics, as after recalibration.

A step's price rarely falls when others go first, so that only those are measured again whose last known price is the
lowest ("lazy greedy": Minoux, Accelerated greedy algorithms for maximizing submodular set functions, 1978). Losses of
this kind are not submodular to the letter; the method's use here and its constants are ours.
"""

import contextlib
import copy
import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from latency.grid import Grid
from latency.space import SearchSpace
from latency.structure import IntArray
from pruning.budget import FloatArray, Predict
from pruning.data import ImageTask
from pruning.gates import GatedNetwork
from pruning.models import class_scores
from pruning.precision import Precision
from pruning.remembered import Loss
from pruning.training import distillation_loss

STEPS_PER_GROUP = 8
"""A wide group is narrowed in about so many steps, not in every one that the grid has."""

_LEAST_RISE = 1e-5
"""Rise of the loss that a step costs at least: what is below is noise, and its logarithm has to exist."""

_LEAST_APART = 0.01
"""Difference in worth between two steps at least; within a step it is less."""


@dataclass(frozen=True, slots=True)
class Removal:
    """A step that was taken.

    Attributes:
        widths: what is left of each group, [n_groups]; where a branch goes, several groups change.
        price: rise of the loss per ms saved.
    """

    widths: tuple[int, ...]
    price: float


@dataclass(frozen=True, slots=True)
class RemovalPath:
    """Steps from the whole network down.

    Attributes:
        removals: in the order they were taken.
        next_prices: price of each group's next step as last known, [n_groups]; infinite where there is none.
    """

    removals: tuple[Removal, ...]
    next_prices: FloatArray


def removal_path(
    loss: Loss, space: SearchSpace, grid: Grid, predict_ms: Predict, floor_ms: float
) -> RemovalPath:
    """Take the cheapest step again and again until the predicted latency is at most `floor_ms`, or none is left.

    Args:
        loss: what to keep low: its rise at width vectors, the best channels of each group kept.
        space: the search space.
        grid: allowed widths.
        predict_ms: latency of width vectors.
        floor_ms: latency to end at.
    """
    state = _State(space.full_widths.copy(), 0.0, float(predict_ms([space.full_widths])[0]))
    prices = np.full(len(space.groups), math.inf)
    queue: list[tuple[float, int]] = []

    def judge(group: int) -> "_Step | None":
        step = _step(group, state, loss, space, grid, predict_ms)
        prices[group] = math.inf if step is None else step.price
        return step

    for group in range(len(space.groups)):
        if judge(group) is not None:
            heapq.heappush(queue, (prices[group], group))
    taken: list[Removal] = []
    while queue and state.ms > floor_ms:
        _, group = heapq.heappop(queue)
        step = judge(group)
        if step is None:
            continue
        if queue and step.price > queue[0][0]:
            heapq.heappush(queue, (step.price, group))
            continue
        state = step.state
        taken.append(Removal(tuple(map(int, state.widths)), step.price))
        if judge(group) is not None:
            heapq.heappush(queue, (prices[group], group))
    return RemovalPath(tuple(taken), prices)


def worth_along(path: RemovalPath, costs: Tensor, space: SearchSpace) -> Tensor:
    """How much each slot deserves to stay, [n_slots]: the logarithm of the price at which it left.

    A price counts as the highest so far, and a little more, so that what left earlier is worth less. What never left
    is worth what its group's next step was last known to cost, and more than all that left. Within a step the costs
    decide.

    Args:
        path: the order in which steps were taken.
        costs: cost of closing each slot alone, [n_slots]; ranks those of one group.
        space: the search space.
    """
    order = _dearest_first(costs, space)
    worth = torch.zeros(len(costs), dtype=torch.float64)
    left, level = [len(slots) for slots in order], -math.inf
    for removal in path.removals:
        level = max(level + _LEAST_APART, math.log(removal.price))
        for slots, before, after in zip(order, left, removal.widths, strict=True):
            worth[slots[after:before]] = level
        left = list(removal.widths)
    level = level + _LEAST_APART if path.removals else 0.0
    for slots, n_left, price in zip(order, left, path.next_prices, strict=True):
        worth[slots[:n_left]] = max(level, math.log(price)) if math.isfinite(price) else level
    for slots in order:
        worth[slots] -= torch.linspace(0.0, _LEAST_APART / 2, len(slots), dtype=torch.float64)
    return worth


def distillation_rise(
    gated: GatedNetwork,
    costs: Tensor,
    space: SearchSpace,
    task: ImageTask,
    *,
    n_images: int,
    temperature: float,
) -> Loss:
    """The distillation loss of the network at some widths against its own scores at full width.

    Args:
        gated: the network with its gates, left as it is.
        costs: cost of closing each slot alone, [n_slots]; the dearest of each group are kept.
        space: the search space.
        task: the data; training images are used, the same every time.
        n_images: how many of them.
        temperature: of the distillation.
    """
    network = _with_batch_statistics(gated.network)
    device = next(network.parameters()).device
    images = [batch.images.to(device) for batch in task.calibration_batches(n_images, 128)]
    layout = _layout(network)
    layout.lay_out_(network)
    images = [layout.images(batch) for batch in images]
    order = _dearest_first(costs, space)
    with torch.no_grad():
        wanted = [class_scores(network(batch)).float() for batch in images]

    @torch.no_grad()
    def rise(widths: IntArray) -> float:
        gates = torch.zeros(len(costs), device=device)
        for slots, width in zip(order, widths, strict=True):
            gates[slots[:width].to(device)] = 1.0
        gated_values = gated.gated_parameters(gates).items()
        values = {name: layout.images(value) if value.ndim == 4 else value for name, value in gated_values}
        total = 0.0
        for batch, scores in zip(images, wanted, strict=True):
            found = class_scores(functional_call(network, values, (batch,))).float()
            total += float(distillation_loss(found, scores, temperature)) * len(batch)
        return total / sum(map(len, images))

    return rise


@contextlib.contextmanager
def shown(loss: Loss, title: str | None) -> Iterator[Loss]:
    """The same, with a bar that counts the networks looked at."""
    with tqdm(desc=title, unit="net", leave=False, disable=title is None) as bar:

        def counted(widths: IntArray) -> float:
            bar.update()
            return loss(widths)

        yield counted


@dataclass(frozen=True, slots=True)
class _State:
    widths: IntArray
    rise: float
    ms: float


@dataclass(frozen=True, slots=True)
class _Step:
    state: _State
    price: float


def _step(
    group: int, state: _State, loss: Loss, space: SearchSpace, grid: Grid, predict_ms: Predict
) -> _Step | None:
    """The group's next step from a state, judged; None where there is none, or it saves nothing."""
    full, now = int(space.full_widths[group]), int(state.widths[group])
    narrower = [width for width in grid.allowed[group] if width < now]
    if not narrower:
        return None
    far_enough = [width for width in narrower if width <= now - full / STEPS_PER_GROUP]
    widths = state.widths.copy()
    widths[group] = max(far_enough, default=narrower[0])
    if not space.is_alive(widths):
        return None
    widths = space.canonical(widths)
    ms = float(predict_ms([widths])[0])
    if ms >= state.ms:
        return None
    rise = loss(widths)
    return _Step(_State(widths, rise, ms), max(rise - state.rise, _LEAST_RISE) / (state.ms - ms))


def _dearest_first(costs: Tensor, space: SearchSpace) -> list[Tensor]:
    """Slots of each group, dearest first."""
    return [
        group.offset
        + torch.argsort(
            costs[group.offset : group.offset + group.n_channels].cpu(), descending=True, stable=True
        )
        for group in space.groups
    ]


def _layout(network: nn.Module) -> Precision:
    """The memory layout to judge in: channels innermost halve the time of grouped convolutions on a CPU.

    Not timed as training's is: the same seed has to give the same order, to the last bit. Not in bf16, since small
    rises have to show.
    """
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return Precision(channels_last=any(convolution.groups > 1 for convolution in convolutions))


def _with_batch_statistics(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose BatchNorm layers use the batch's statistics."""
    twin = copy.deepcopy(network).eval()
    for module in twin.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return twin
