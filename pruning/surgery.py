"""Slims an `nn.Module` by a plan, and rebuilds a slim one from its files without tracing it again."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from latency.candidate import kept_slots
from latency.space import SearchSpace
from latency.structure import FIXED
from pruning.errors import PlanError
from pruning.module_changes import module_changes
from pruning.plan import ModuleChange, Plan
from pruning.splits import split_elsewhere_


class RemovedConv2d(nn.Module):
    """Stands where a removed branch had a convolution: zeros of the shape the convolution would give.

    Args:
        conv: the convolution it replaces.
        n_channels: channels of the zeros.
    """

    def __init__(self, conv: nn.Conv2d, n_channels: int) -> None:
        super().__init__()
        self.out_channels = n_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding = conv.padding

    def forward(self, images: Tensor) -> Tensor:
        """Zeros, [n, out_channels, height', width'], from [n, any, height, width]."""
        return images.new_zeros(
            images.shape[0], self.out_channels, self._size(images, 0), self._size(images, 1)
        )

    def _size(self, images: Tensor, side: int) -> int:
        reach = self.dilation[side] * (self.kernel_size[side] - 1)
        same = reach if self.padding == "same" else 0
        padded = same if isinstance(self.padding, str) else 2 * self.padding[side]
        return (images.shape[2 + side] + padded - reach - 1) // self.stride[side] + 1


class RemovedLinear(nn.Module):
    """Stands where a removed branch had a linear layer: zeros."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.out_features = n_channels

    def forward(self, features: Tensor) -> Tensor:
        """Zeros, [..., out_features]."""
        return features.new_zeros(*features.shape[:-1], self.out_features)


class SelectChannels(nn.Module):
    """Runs a module that fixes a number of channels in code and keeps some of its output channels."""

    def __init__(self, module: nn.Module, positions: Iterable[int]) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("positions", torch.tensor(list(positions), dtype=torch.int64), persistent=False)
        self.positions: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """The kept channels of the module's output, [n, n_kept, …]."""
        output: Tensor = self.module(images)
        return output.index_select(1, self.positions)


def slim(model: nn.Module, space: SearchSpace, plan: Plan) -> tuple[nn.Module, Plan]:
    """A copy of `model` without the channels that the plan drops, and the plan with its module changes.

    Raises:
        PlanError: the plan belongs to another network, or a layer cannot be narrowed in place.
    """
    mask = kept_slots(space, plan.positions(space))
    slimmed = copy.deepcopy(model)
    changes = module_changes(slimmed, space, plan, mask)
    tensors: dict[str, Tensor] = {
        **dict(slimmed.named_parameters(remove_duplicate=False)),
        **dict(slimmed.named_buffers(remove_duplicate=False)),
    }
    narrowed = {f"{change.path}.{leaf}".lstrip(".") for change in changes for leaf in change.shapes}
    cut: dict[str, Tensor] = {}
    for axis in space.parameter_axes:
        name = axis.parameter
        if name in tensors and name in narrowed:
            kept = np.where(axis.slots == FIXED, True, mask[axis.slots])
            positions = torch.from_numpy(np.flatnonzero(kept)).to(tensors[name].device)
            cut[name] = cut.get(name, tensors[name]).detach().index_select(axis.axis, positions)
    apply_changes_(slimmed, changes)
    for name, value in cut.items():
        _set_tensor_(slimmed, name, value)
    return slimmed, replace(plan, modules=changes)


def load_slim(factory: Callable[[], nn.Module], plan: Path, weights: Path) -> nn.Module:
    """The slim network, rebuilt from its factory, `plan.json` and `pruned.safetensors`.

    Raises:
        PlanError: the files are damaged or do not belong to the factory's network.
    """
    model = factory()
    apply_changes_(model, Plan.read(plan).modules)
    try:
        model.load_state_dict(load_file(weights))
    except (RuntimeError, OSError, ValueError) as error:
        raise PlanError(f"'{weights}' does not fit the plan '{plan}': {error}") from error
    return model.eval()


def apply_changes_(model: nn.Module, changes: Iterable[ModuleChange]) -> None:
    """Give modules their new attributes and empty tensors of their new shapes, in place.

    Raises:
        PlanError: a module of the plan is not in the model.
    """
    for change in changes:
        try:
            module = model.get_submodule(change.path)
        except AttributeError as error:
            raise PlanError(
                f"the plan changes module '{change.path}', which {type(model).__name__} does not have; "
                "give the factory that the plan was made for."
            ) from error
        if change.replaced_by is not None:
            _set_module_(model, change.path, _replacement(module, change))
            continue
        for name, value in change.attributes.items():
            setattr(module, name, value)
        for name, shape in change.shapes.items():
            _set_tensor_(module, name, getattr(module, name).new_empty(shape))
        if change.splits or change.ranges or change.may_be_empty:
            split_elsewhere_(module, change.splits, change.ranges)
        if change.select is not None:
            _set_module_(model, change.path, SelectChannels(module, change.select))


def _replacement(module: nn.Module, change: ModuleChange) -> nn.Module:
    if change.replaced_by == "identity":
        return nn.Identity()
    n_channels = change.attributes["out_channels"]
    return RemovedConv2d(module, n_channels) if isinstance(module, nn.Conv2d) else RemovedLinear(n_channels)


def _set_module_(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _set_tensor_(model: nn.Module, name: str, value: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    old = getattr(module, leaf)
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, requires_grad=old.requires_grad)
    setattr(module, leaf, value)
