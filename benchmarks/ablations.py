"""W-Gates with one part taken away, or replaced by the plainer thing: what does each part earn?"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from table_prices import TablePredictor, TablePrices, table_prices
from torch import Tensor, nn

from latency.grid import Grid
from latency.lpnet import LatencyModel
from latency.predictor import Predictor
from latency.space import SearchSpace
from latency.structure import IntArray
from pruning.criteria import METHODS
from pruning.criteria.base import SearchJob, SearchOptions, SearchResult
from pruning.criteria.gate_search import SearchedGates, search_with_gates
from pruning.criteria.wgates import INITIAL_BIAS, WGates, WGatesMethod, binary_gates
from pruning.prune_stage import PruneOptions
from pruning.stages import FinetuneOptions, Workbench

ChooseFilters = Callable[[SearchSpace, nn.Module, IntArray, int], tuple[IntArray, ...]]
"""Kept positions of each group from a network, the widths and a seed."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is different from the method as it is.

    Attributes:
        says: what the part is replaced by.
        bench: workbench whose prices or widths differ.
        prune: changes what the search may do and is charged for.
        search: changes how is searched.
        finetune: changes how is fine-tuned.
        choose: takes the widths that the method found, other filters, and all epochs for the fine-tuning.
    """

    says: str
    bench: type[Workbench] = Workbench
    prune: Callable[[PruneOptions], PruneOptions] = lambda how: how
    search: Callable[[SearchOptions], SearchOptions] = lambda options: options
    finetune: Callable[[FinetuneOptions], FinetuneOptions] = lambda options: options
    choose: ChooseFilters | None = None


def regridded(predictor: Predictor, grid: Grid) -> Predictor:
    """The predictor with other allowed widths."""
    changed = copy.copy(predictor)
    changed.manifest = replace(predictor.manifest, grid=grid)
    return changed


class AnyWidthBench(Workbench):
    """Every width is allowed, on the device's grid or not."""

    @cached_property
    def predictor(self) -> Predictor:
        """LPNet with all widths allowed."""
        known = super().predictor
        groups = [range(0 if widths[0] == 0 else 1, widths[-1] + 1) for widths in known.manifest.grid.allowed]
        return regridded(known, Grid(tuple(map(tuple, groups))))


class TablePricedBench(Workbench):
    """Priced by the usual table for each layer, measured alone, instead of LPNet."""

    @cached_property
    def tables(self) -> TablePrices:
        """The tables, measured once."""
        return table_prices(self.space, self.run.file("tables.json"), self.profile)

    @cached_property
    def lpnet(self) -> LatencyModel:
        """The tables' sum, for gradients."""
        return self.tables

    @cached_property
    def predictor(self) -> Predictor:
        """The tables' sum, for numbers."""
        return TablePredictor(super().predictor, self.tables)


class FreeGates(SearchedGates):
    """Gates with one free parameter each, not a function of the weights.

    A group's are one parameter, as W-Gates' ŵ is: the bound on a parameter's gradient is the same.

    Args:
        space: the search space.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self._sizes = [group.n_channels for group in space.groups]
        self.own = nn.ParameterList(torch.zeros(size) for size in self._sizes)
        self.bias = nn.Parameter(torch.full((len(self._sizes),), INITIAL_BIAS))

    @torch.no_grad()
    def start_from(self, worth: Tensor, parameters: Mapping[str, Tensor]) -> None:
        """Set the gates to the worth of their slots, standardised over all of them, as W-Gates start."""
        del parameters
        level = ((worth - worth.mean()) / worth.std().clamp(min=1e-8) + INITIAL_BIAS).to(self.bias)
        for index, part in enumerate(torch.split(level, self._sizes)):
            self.bias[index] = part.mean()
            self.own[index].copy_(part - part.mean())

    def levelled(self) -> tuple[nn.Parameter, ...]:
        """The groups' biases."""
        return (self.bias,)

    def scores(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Scores of all slots, [n_slots]."""
        del parameters
        return torch.cat([own + bias for own, bias in zip(self.own, self.bias, strict=True)])

    def open(self, scores: Tensor) -> Tensor:
        """Binary gates, [n_slots]."""
        return binary_gates(scores)


class FreeGatesMethod(WGatesMethod):
    """W-Gates' search with free gates."""

    name = "free-gates"
    summary = "gates with a free parameter each"

    def search(self, job: SearchJob) -> SearchResult:
        """The scores of all slots."""
        return search_with_gates(job, FreeGates(job.space))


class UntrainedGatesMethod(WGatesMethod):
    """W-Gates' search with gates that stay as they start, functions of weights that train."""

    name = "untrained-gates"
    summary = "gates from weights that are not trained themselves"

    def search(self, job: SearchJob) -> SearchResult:
        """The scores of all slots."""
        return search_with_gates(job, WGates(job.network, job.space), travel=0.0)


for _method in (FreeGatesMethod(), UntrainedGatesMethod()):
    METHODS[_method.name] = _method


def random_filters(
    space: SearchSpace, network: nn.Module, widths: IntArray, seed: int
) -> tuple[IntArray, ...]:
    """Positions drawn at random."""
    del network
    rng = np.random.default_rng(seed)
    pairs = zip(space.groups, widths, strict=True)
    return tuple(np.sort(rng.choice(group.n_channels, width, replace=False)) for group, width in pairs)


def largest_filters(
    space: SearchSpace, network: nn.Module, widths: IntArray, seed: int
) -> tuple[IntArray, ...]:
    """Positions of the largest mean absolute weight in all layers that make the channel."""
    del seed
    parameters = dict(network.named_parameters())
    sums, counts = (np.zeros(int(space.full_widths.sum())) for _ in range(2))
    for axis in space.parameter_axes:
        weight = parameters.get(axis.parameter)
        if axis.role != "out" or weight is None or weight.ndim < 2:
            continue
        sizes = weight.detach().abs().movedim(axis.axis, 0).flatten(1).mean(dim=1).double().numpy()
        inside = axis.slots >= 0
        np.add.at(sums, axis.slots[inside], sizes[inside])
        np.add.at(counts, axis.slots[inside], 1)
    means = sums / np.maximum(counts, 1)
    parts = [means[group.offset : group.offset + group.n_channels] for group in space.groups]
    chosen = zip(parts, widths, strict=True)
    return tuple(np.sort(np.argsort(-part, kind="stable")[:width]) for part, width in chosen)


ABLATIONS: Mapping[str, Ablation] = {
    "macs-objective": Ablation(
        "charged for multiply-accumulates, cut to the same measured latency",
        prune=lambda how: replace(how, objective="macs"),
    ),
    "free-gates": Ablation(
        "a free parameter for each gate", prune=lambda how: replace(how, method=FreeGatesMethod.name)
    ),
    "untrained-gates": Ablation(
        "gates that stay where they start", prune=lambda how: replace(how, method=UntrainedGatesMethod.name)
    ),
    "short-search": Ablation(
        "searched for one epoch, fine-tuned for the others", search=lambda options: replace(options, epochs=1)
    ),
    "no-search": Ablation(
        "cut where the gates start, fine-tuned in all epochs",
        search=lambda options: replace(options, epochs=0),
    ),
    "random-filters": Ablation("random filters at the method's widths", choose=random_filters),
    "l1-filters": Ablation("the largest filters at the method's widths", choose=largest_filters),
    "any-width": Ablation(
        "widths beside the device's grid, at the prices of an LPNet that was profiled on it",
        bench=AnyWidthBench,
    ),
    "no-depth": Ablation("no branch may vanish", prune=lambda how: replace(how, depth=False)),
    "no-distillation": Ablation(
        "labels alone, in search and fine-tuning; the gates still start where a distillation loss puts them",
        search=lambda options: replace(options, distillation=0.0),
        finetune=lambda options: replace(options, distillation=0.0),
    ),
    "layer-table": Ablation("a table for each layer instead of LPNet", bench=TablePricedBench),
}
