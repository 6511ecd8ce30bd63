"""W-Gates: gates that are a learnable function of the filters' weights.

Li, Liu, Wu, Yao, Zhang, Zhang, Yin: "Weight-Dependent Gates for Network Pruning", arXiv 2007.02066
(ECCV-W 2020; IEEE TCSVT 32(10), 2022). In the paper's notation a layer's filters W, reshaped to
[C_out, C_in·k·k], give scores s = W ŵ with one learnable ŵ a layer, and binary gates
g = 1[arctan(s)/π + ½ > ½]; backward uses the smooth part, dg/ds = 1 / (π (1 + s²)). The paper's text is
not public in full; this reading of it, and the following, are ours:

- channels that are tied (residual stages, depthwise convolutions) share one gate, whose rows are
  concatenated from every layer that makes the channel;
- rows are |W|, so that ŵ = 1 is the L1 norm, where it starts;
- as many of a group's best gates are open as the device's grid allows (`pruning.gates.GatedNetwork`);
- the gates of a removable branch share the gradient of the branch's presence, so that a branch that is gone
  can come back;
- scores are standardised within a group (mean 0, standard deviation 1), times a learnable scale, plus a
  learnable bias. Raw scores of a layer's filters lie so close together that whole layers close at once;
- the paper's loss adds α·log(1 + LAT), which holds no budget: `--latency-term log` is that; by default the open
  gates are the best within a target that falls to the budget, and the multiplier of the latency is what holds it
  (`pruning.objective.HeldBudget`). LAT is LPNet's latency, or a straight line in multiply-accumulates
  (`--objective macs`), as the paper's later version switches to FLOPs;
- they start where removing a channel's cost in loss over its gain in latency puts them (`pruning.removal_order`,
  `WGates.start_from`), 2.5 standard deviations above the threshold, so that almost all gates start open. At a trained
  network the loss has no slope: started alike, the groups that save most close first, whatever they are worth;
- what ŵ does not explain of that worth is a constant offset of each channel. Magnitudes explain little: in MobileNetV2
  (Imagenette), ŵ fitted to all channels of a hidden layer but one says nothing about that one (R² -0.1; 0.05 with the
  ridge taken here), ranks by ŵ alone correlate by 0.4 to 0.7 with the worth, and the first cut to 0.7 of the latency
  by them had a distillation loss of 1.74, where the worth's own has 0.78.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from latency.space import SearchSpace
from latency.structure import ChannelGroup, IntArray
from pruning.criteria.base import Method, SearchJob, SearchResult
from pruning.criteria.gate_search import SearchedGates, search_with_gates

INITIAL_BIAS = 2.5
"""Standard deviations by which the scores start above the threshold: 99 % of the gates are open."""

Producer = tuple[str, int, Tensor | None]
"""Weight that makes a group's channels: name, axis, and rows of each channel, [n_channels, rows per channel]; None
where they are the weight's own rows in order."""

_LEAST_SPREAD = 0.1

_RIDGE = 1.0
"""Strength of the ridge, relative to the rows' mean squared length: where channels left out are predicted best, and
where ŵ, and with it the scores, change little as the weights train (ours)."""


class _BinaryGate(torch.autograd.Function):
    """1[s > 0] with the derivative of arctan(s)/π + ½, which never vanishes: a closed gate can reopen."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, scores: Tensor) -> Tensor:
        ctx.save_for_backward(scores)
        return (scores > 0).to(scores.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        (scores,) = ctx.saved_tensors  # type: ignore[attr-defined]
        slope: Tensor = gradients[0] / (math.pi * (1 + scores * scores))
        return slope


def binary_gates(scores: Tensor) -> Tensor:
    """1 where a score is above 0, else 0, [n_slots]; backward with the slope of arctan(s)/π + ½."""
    gates: Tensor = _BinaryGate.apply(scores)
    return gates


class WGates(SearchedGates):
    """Weight-dependent gates of every group of a network.

    Args:
        network: the network whose parameters are gated.
        space: its search space.
    """

    def __init__(self, network: nn.Module, space: SearchSpace) -> None:
        super().__init__()
        parameters = dict(network.named_parameters())
        self._producers = [_producers(group, space, parameters) for group in space.groups]
        self.weights = nn.ParameterList(
            torch.ones(sum(_row_length(parameters[name], axis) for name, axis, _ in producers))
            for producers in self._producers
        )
        self._ranges = [(group.offset, group.offset + group.n_channels) for group in space.groups]
        counts = [group.n_channels for group in space.groups]
        groups = [group.index for group in space.groups for _ in range(group.n_channels)]
        self.register_buffer("_counts", torch.tensor(counts), persistent=False)
        self.register_buffer("_groups", torch.tensor(groups), persistent=False)
        self.register_buffer("offset", torch.zeros(len(groups)))
        self._counts: Tensor
        self._groups: Tensor
        self.offset: Tensor
        self.scale = nn.Parameter(torch.ones(len(space.groups)))
        self.bias = nn.Parameter(torch.full((len(space.groups),), INITIAL_BIAS))

    @torch.no_grad()
    def start_from(self, worth: Tensor, parameters: Mapping[str, Tensor]) -> None:
        """Set the gates' parameters so that the scores rank all slots by their worth.

        Each group's ŵ is the ridge regression of the worth of its channels on their rows, its scale the spread of
        what that explains, its bias the worth's mean, with all slots together standardised around `INITIAL_BIAS`.
        The offsets are what is left of the worth.

        Args:
            worth: how much each slot deserves to stay, [n_slots], comparable between groups.
            parameters: the network's parameters by name.
        """
        level = ((worth - worth.mean()) / worth.std().clamp(min=1e-8) + INITIAL_BIAS).to(self.bias)
        for index, (first, last) in enumerate(self._ranges):
            part = level[first:last]
            self.bias[index] = part.mean()
            if len(part) < 2:
                continue
            rows, weight = self._rows(self._producers[index], parameters), self.weights[index]
            weight.copy_(_ridge(rows, part - part.mean()))
            self.scale[index] = (rows @ weight).std(correction=0).clamp(min=_LEAST_SPREAD)
            weight.mul_(math.sqrt(len(weight)) / weight.norm().clamp(min=1e-8))
        self.offset.zero_()
        self.offset.copy_(level - self.scores(parameters))

    def levelled(self) -> tuple[nn.Parameter, ...]:
        """The groups' biases."""
        return (self.bias,)

    def scores(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Scores of all groups' slots, [n_slots]: standardised, with the groups' biases and the slots' offsets."""
        raw = torch.cat(
            [
                self._raw_scores(producers, weight, parameters)
                for producers, weight in zip(self._producers, self.weights, strict=True)
            ]
        )
        centred = raw - self._means(raw)[self._groups]
        variance = self._means(centred.square())
        spread = torch.where(variance > 0, variance, 1).sqrt()
        standardised = centred * (self.scale / (spread + 1e-8))[self._groups]
        return standardised + self.bias[self._groups] + self.offset

    def _means(self, values: Tensor) -> Tensor:
        """Mean over each group's slots, [n_groups], of values [n_slots]."""
        return torch.zeros_like(self.scale).index_add(0, self._groups, values) / self._counts

    def open(self, scores: Tensor) -> Tensor:
        """Binary gates, [n_slots]."""
        return binary_gates(scores)

    def _raw_scores(
        self, producers: list[Producer], weight: Tensor, parameters: Mapping[str, Tensor]
    ) -> Tensor:
        return self._rows(producers, parameters) @ weight

    def _rows(self, producers: list[Producer], parameters: Mapping[str, Tensor]) -> Tensor:
        """What the scores of a group's slots are computed from, [n_channels, row length]."""
        parts = []
        for name, axis, positions in producers:
            rows = parameters[name].abs().movedim(axis, 0).flatten(1).float()
            parts.append(rows if positions is None else rows[positions.to(rows.device)].mean(dim=1))
        return torch.cat(parts, dim=1)


class WGatesMethod(Method):
    """Gates from weights, trained with the network."""

    name = "wgates"
    summary = "gates computed from the filters' weights, trained with the network under the latency term"
    leaves_rate_high = True

    def search(self, job: SearchJob) -> SearchResult:
        """Scores of the trained gates; see `Method.search`."""
        return search_with_gates(job, WGates(job.network, job.space))

    def search_epochs(self, epochs: int) -> int:
        """All of them."""
        return epochs


def _ridge(rows: Tensor, targets: Tensor) -> Tensor:
    """Weights with which rows, [n, d], give targets, [n], up to their means; the smallest that almost do."""
    centred = (rows - rows.mean(dim=0)).double()
    products = centred @ centred.T
    products += _RIDGE * products.diagonal().mean().clamp(min=1e-12) * torch.eye(len(rows)).to(products)
    weights: Tensor = centred.T @ torch.linalg.solve(products, targets.double())
    return weights.to(rows)


def _producers(group: ChannelGroup, space: SearchSpace, parameters: Mapping[str, Tensor]) -> list[Producer]:
    """Weights that make a group's channels."""
    found = []
    for axis in space.parameter_axes:
        parameter = parameters.get(axis.parameter)
        if axis.role != "out" or parameter is None or parameter.ndim < 2:
            continue
        positions = _rows_of(group, axis.slots)
        if positions.size:
            in_order = (
                positions.size == len(axis.slots) and (positions[:, 0] == np.arange(len(positions))).all()
            )
            found.append((axis.parameter, axis.axis, None if in_order else torch.from_numpy(positions)))
    return found


def _rows_of(group: ChannelGroup, slots: IntArray) -> IntArray:
    inside = (slots >= group.offset) & (slots < group.offset + group.n_channels)
    rows = inside.nonzero()[0]
    order = slots[rows].argsort(kind="stable")
    return rows[order].reshape(group.n_channels, -1) if rows.size else rows


def _row_length(parameter: Tensor, axis: int) -> int:
    return parameter.numel() // parameter.shape[axis]
