"""W-Gates with one part taken away, or replaced by the plainer thing: what does each part earn?"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import nn

from latency.grid import Grid
from latency.predictor import Predictor
from latency.space import SearchSpace
from latency.structure import IntArray
from pruning.search import SearchOptions
from pruning.stages import FinetuneOptions, Workbench

ChooseFilters = Callable[[SearchSpace, nn.Module, IntArray, int], tuple[IntArray, ...]]
"""Kept positions of each group from a network, the widths and a seed."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is different from the method as it is.

    Attributes:
        says: what the part is replaced by.
        bench: workbench whose prices or widths differ.
        search: changes how is searched.
        finetune: changes how is fine-tuned.
        choose: takes the widths that the method found, other filters, and all epochs for the fine-tuning.
    """

    says: str
    bench: type[Workbench] = Workbench
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


class NoDepthBench(Workbench):
    """No branch may vanish."""

    @cached_property
    def predictor(self) -> Predictor:
        """LPNet without width 0."""
        known = super().predictor
        kept = [tuple(width for width in widths if width) for widths in known.manifest.grid.allowed]
        return regridded(known, Grid(tuple(kept)))


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
    "no-depth": Ablation("no branch may vanish", bench=NoDepthBench),
    "any-width": Ablation("widths beside the device's grid", bench=AnyWidthBench),
    "no-distillation": Ablation(
        "labels alone, in the search and in the fine-tuning",
        search=lambda options: replace(options, distillation=0.0),
        finetune=lambda options: replace(options, distillation=0.0),
    ),
    "random-filters": Ablation("random filters at the method's widths", choose=random_filters),
    "l1-filters": Ablation("the largest filters at the method's widths", choose=largest_filters),
}
