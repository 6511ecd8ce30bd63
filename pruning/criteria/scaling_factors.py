"""Scaling factors at four granularities: width and depth pruned together under one objective.

Haider, Taj: "Comprehensive Online Network Pruning via Learnable Scaling Factors", arXiv 2010.02623: learnable
factors gate neurons, filters, layers and blocks, and one objective prunes all of them while the network trains.
The paper's equations are not public where we looked; these are ours:

- each slot has a factor f (a filter's, or a neuron's where linear layers make it), each group one l (the layer),
  each set of groups that vanish together one b (the block; a group that vanishes with no other is its own);
- the probability that a slot stays is p = σ(f) σ(l) σ(b), and its gate 1[p > ½], backward as p itself;
- loss = task + latency term + Σ over granularities of 0.05 · mean σ;
- factors start where the worth of their gates puts them (`pruning.criteria.gate_search`), divided into what the block,
  the layer in the block, and the slot in the layer differ by; all but the least worthy start open.

A layer's or block's factor moves all of its gates at once: where it falls the branch is gone.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from latency.space import SearchSpace
from pruning.criteria.base import Method, SearchJob, SearchResult
from pruning.criteria.gate_search import SearchedGates, search_with_gates

SPARSITY_WEIGHT = 0.05
"""Strength of each granularity's penalty; the latency term does the most of it (ours)."""

HALF = 1.35
"""Logit at which three equal factors multiply to ½."""

_HEAD_START = 0.9
"""Logits above `HALF` at which each of the three factors of a slot of mean worth starts: p = 0.74."""


class _StraightThrough(torch.autograd.Function):
    """1[s > 0], backward the identity."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, scores: Tensor) -> Tensor:
        return (scores > 0).to(scores.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        return gradients[0]


class ScalingFactors(SearchedGates):
    """Factors of every slot, group and block of a network.

    Args:
        space: the network's search space.
    """

    group_of_slot: Tensor
    block_of_group: Tensor
    is_neuron: Tensor

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        n_groups = len(space.groups)
        blocks = blocks_of(space)
        groups = torch.tensor([group.index for group in space.groups for _ in range(group.n_channels)])
        self.register_buffer("group_of_slot", groups, persistent=False)
        self.register_buffer("block_of_group", torch.tensor(blocks), persistent=False)
        self.register_buffer("is_neuron", _neurons(space)[groups], persistent=False)
        start = HALF + _HEAD_START
        self.slot = nn.Parameter(torch.full((len(groups),), start))
        self.layer = nn.Parameter(torch.full((n_groups,), start))
        self.block = nn.Parameter(torch.full((max(blocks) + 1,), start))

    @torch.no_grad()
    def start_from(self, worth: Tensor, parameters: Mapping[str, Tensor]) -> None:
        """Divide the worth among the three factors; see `SearchedGates.start_from`."""
        del parameters
        level = ((worth - worth.mean()) / worth.std().clamp(min=1e-8)).to(self.slot.dtype)
        # On the CPU, where sums are the same to the last bit in every process, and when a search is resumed.
        groups, blocks = self.group_of_slot.cpu(), self.block_of_group.cpu()
        by_group = _means(level, groups, len(self.layer))
        by_block = _means(by_group, blocks, len(self.block))
        start = HALF + _HEAD_START
        self.slot.copy_(start + level - by_group[groups])
        self.layer.copy_(start + by_group - by_block[blocks])
        self.block.copy_(start + by_block)

    def levelled(self) -> tuple[nn.Parameter, ...]:
        """The layers' and blocks' factors."""
        return self.layer, self.block

    def keep_probabilities(self) -> Tensor:
        """P = σ(f) σ(l) σ(b), [n_slots]."""
        of_group = self.layer.sigmoid() * self.block.sigmoid()[self.block_of_group]
        return self.slot.sigmoid() * of_group[self.group_of_slot]

    def scores(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """P − ½ of all slots, [n_slots]."""
        del parameters
        return self.keep_probabilities() - 0.5

    def open(self, scores: Tensor) -> Tensor:
        """Binary gates, [n_slots]."""
        gates: Tensor = _StraightThrough.apply(scores)
        return gates

    def penalty(self) -> Tensor:
        """The sparsity terms of filters, neurons, layers and blocks, []."""
        slots = self.slot.sigmoid()
        parts = [slots[~self.is_neuron], slots[self.is_neuron], self.layer.sigmoid(), self.block.sigmoid()]
        return SPARSITY_WEIGHT * torch.stack([part.mean() for part in parts if len(part)]).sum()


class ScalingFactorsMethod(Method):
    """Learnable factors of filters, neurons, layers and blocks."""

    name = "scaling-factors"
    summary = "learnable factors of filters, neurons, layers and blocks, trained with the network"
    leaves_rate_high = True

    def search(self, job: SearchJob) -> SearchResult:
        """Scores of the trained factors; see `Method.search`."""
        return search_with_gates(job, ScalingFactors(job.space))

    def search_epochs(self, epochs: int) -> int:
        """All of them."""
        return epochs


def blocks_of(space: SearchSpace) -> list[int]:
    """Block of each group, [n_groups]: groups that vanish with each other share one, numbered from 0."""
    first = [
        min([group.index, *group.implied_zero]) if group.removes else group.index for group in space.groups
    ]
    numbers = {index: number for number, index in enumerate(dict.fromkeys(first))}
    return [numbers[index] for index in first]


def _neurons(space: SearchSpace) -> Tensor:
    """Whether linear layers alone make a group's channels, [n_groups]."""
    kinds: list[set[str]] = [set() for _ in space.groups]
    for layer in space.layers:
        for group, _ in layer.out_channels.terms:
            kinds[group].add(layer.kind)
    return torch.tensor([kind == {"linear"} for kind in kinds])


def _means(values: Tensor, places: Tensor, n: int) -> Tensor:
    total = values.new_zeros(n).index_add(0, places, values)
    return total / values.new_zeros(n).index_add(0, places, torch.ones_like(values))
