"""Magnitudes of the parameters that make, scale and read each slot's channel: what simple criteria are made of."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from latency.space import SearchSpace
from latency.structure import FIXED, IntArray
from pruning.errors import SettingError

Part = tuple[IntArray, Tensor]
"""Slot of each index along an axis, and a value for each of them, both [size of the axis]."""


def sum_by_slot(parts: Iterable[Part], n_slots: int) -> tuple[Tensor, Tensor]:
    """Sums of the values that belong to each slot, and how many those are, both [n_slots]."""
    total, count = torch.zeros(n_slots, dtype=torch.float64), torch.zeros(n_slots, dtype=torch.float64)
    for slots, values in parts:
        free = torch.from_numpy(np.flatnonzero(slots != FIXED))
        index = torch.from_numpy(slots)[free]
        total.index_add_(0, index, values.detach().double().cpu()[free])
        count.index_add_(0, index, torch.ones(len(index), dtype=torch.float64))
    return total, count


def filter_magnitudes(space: SearchSpace, parameters: Mapping[str, Tensor]) -> Tensor:
    """Mean absolute weight of the filters that make each slot's channels, over all layers that do, [n_slots]."""
    return _mean(_weight_parts(space, parameters, "out"), space)


def reading_magnitudes(space: SearchSpace, parameters: Mapping[str, Tensor]) -> Tensor:
    """Mean absolute weight that reads each slot's channels, over all layers that do, [n_slots]."""
    return _mean(_weight_parts(space, parameters, "in"), space)


def norm_scales(space: SearchSpace, network: nn.Module, method: str) -> Tensor:
    """Mean |γ| of the BatchNorms that scale each slot's channels, [n_slots].

    Args:
        space: the search space.
        network: the network.
        method: name of the method that needs it, for the refusal.

    Raises:
        SettingError: a group has no BatchNorm.
    """
    scales = norm_parameters(network, "weight")
    parts = [
        (axis.slots, scales[axis.parameter].abs())
        for axis in space.parameter_axes
        if axis.role == "out" and axis.parameter in scales
    ]
    total, count = sum_by_slot(parts, int(space.full_widths.sum()))
    for group in space.groups:
        if not bool(count[group.offset : group.offset + group.n_channels].all()):
            raise SettingError(
                f"--method {method} judges channels by their BatchNorm's scale, and group '{group.name}' has none; "
                "take another method, such as l1 or wgates."
            )
    return total / count


def norm_parameters(network: nn.Module, kind: str) -> dict[str, Tensor]:
    """The BatchNorms' parameters of a kind, "weight" or "bias", by name."""
    norms = {
        f"{path}.{kind}": getattr(module, kind)
        for path, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    return {name: value for name, value in norms.items() if value is not None}


def _weight_parts(space: SearchSpace, parameters: Mapping[str, Tensor], role: str) -> list[Part]:
    return [
        (axis.slots, parameters[axis.parameter].abs().movedim(axis.axis, 0).flatten(1).mean(dim=1))
        for axis in space.parameter_axes
        if axis.role == role and axis.parameter in parameters and parameters[axis.parameter].ndim > 1
    ]


def _mean(parts: Iterable[Part], space: SearchSpace) -> Tensor:
    total, count = sum_by_slot(parts, int(space.full_widths.sum()))
    return total / count.clamp(min=1.0)
