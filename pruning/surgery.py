"""Slims an `nn.Module` by a plan, and rebuilds a slim one from its files without tracing it again."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from latency.candidate import kept_along, kept_slots
from latency.graph import Graph, attribute
from latency.operators import pad_amounts, slice_ranges
from latency.space import SearchSpace
from latency.structure import FIXED
from pruning.errors import PlanError
from pruning.plan import ModuleChange, Plan
from pruning.splits import Range, Sizes, split_elsewhere_


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
    changes = _changes(slimmed, space, plan, mask)
    tensors: dict[str, Tensor] = {
        **dict(slimmed.named_parameters(remove_duplicate=False)),
        **dict(slimmed.named_buffers(remove_duplicate=False)),
    }
    removed = {change.path for change in changes if change.replaced_by is not None}
    cut: dict[str, Tensor] = {}
    for axis in space.parameter_axes:
        name = axis.parameter
        if name in tensors and name.rpartition(".")[0] not in removed:
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
        if change.splits or change.ranges:
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


def _changes(
    model: nn.Module, space: SearchSpace, plan: Plan, mask: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> tuple[ModuleChange, ...]:
    """New shapes and attributes of every module that the plan touches."""
    widths = plan.widths(space)
    gone = space.structure.removal.at(np.flatnonzero(widths == 0).tolist()).removed_nodes
    shapes: dict[str, dict[str, list[int]]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for axis in space.parameter_axes:
        path, _, leaf = axis.parameter.rpartition(".")
        if path not in modules or not hasattr(modules[path], leaf):
            continue  # a constant of the graph, not a parameter
        kept = np.where(axis.slots == FIXED, True, mask[axis.slots])
        shape = shapes.setdefault(path, {}).setdefault(leaf, list(getattr(modules[path], leaf).shape))
        shape[axis.axis] = int(kept.sum())
    graph = space.structure.graph
    removed_paths = {
        name.rpartition(".")[0]
        for index in gone
        for name in graph.nodes[index].input
        if name in graph.constants
    } & modules.keys()
    changes = [
        _narrowed(path, modules[path], {name: tuple(shape) for name, shape in tensors.items()})
        for path, tensors in shapes.items()
        if path not in removed_paths
    ]
    last = _last_of_branches(graph, gone)
    changes += [
        _removed(path, modules[path], shapes.get(path, {}), is_last=path in last)
        for path in sorted(removed_paths - {""})
    ]
    return (*changes, *_selections(space, mask, gone), *_splits(space, mask, gone))


def _last_of_branches(graph: Graph, gone: frozenset[int]) -> set[str]:
    """Modules of removed layers whose output reaches a node that stays, with no other such layer in between."""
    readers = graph.consumers()
    last = set()
    for index in gone:
        paths = {name.rpartition(".")[0] for name in graph.nodes[index].input if name in graph.constants}
        reached = [graph.nodes[index].output[0]]
        while paths and reached:
            for reader in readers.get(reached.pop(), []):
                node = graph.nodes[reader]
                if reader not in gone:
                    last |= paths
                elif node.op_type not in _LAYERS:
                    reached += node.output
    return last


_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _narrowed(path: str, module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> ModuleChange:
    weight = shapes.get("weight")
    attributes: dict[str, int] = {}
    if weight is not None:
        for kind, names in _SIZE_ATTRIBUTES:
            if isinstance(module, kind):
                attributes = {name: weight[axis] for name, axis in names.items()}
                break
    if isinstance(module, nn.Conv2d) and module.groups > 1 and weight is not None:
        # whole groups go unless the weight's reading axis was cut
        whole = weight[1] == module.weight.shape[1]
        groups = weight[0] * module.groups // module.out_channels if whole else module.groups
        attributes |= {"groups": groups, "in_channels": groups * weight[1]}
    changed = {name: shape for name, shape in shapes.items() if tuple(getattr(module, name).shape) != shape}
    return ModuleChange(path, attributes=attributes if changed else {}, shapes=changed)


_SIZE_ATTRIBUTES: tuple[tuple[type | tuple[type, ...], dict[str, int]], ...] = (
    (nn.Conv2d, {"out_channels": 0, "in_channels": 1}),
    (nn.Linear, {"out_features": 0, "in_features": 1}),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d), {"num_features": 0}),
    (nn.PReLU, {"num_parameters": 0}),
)
"""Attributes that repeat a weight's shape, and the axis each repeats."""


def _removed(path: str, module: nn.Module, shapes: dict[str, list[int]], *, is_last: bool) -> ModuleChange:
    if isinstance(module, nn.Conv2d | nn.Linear):
        weight = shapes.get("weight", list(module.weight.shape))
        # What stays reads the branch at its true width, be it 0; within the branch pooling and the like need one.
        n_channels = weight[0] if is_last else max(weight[0], 1)
        return ModuleChange(path, attributes={"out_channels": n_channels}, replaced_by="zeros")
    return ModuleChange(path, replaced_by="identity")


def _selections(
    space: SearchSpace, mask: np.ndarray[tuple[int], np.dtype[np.bool_]], gone: frozenset[int]
) -> list[ModuleChange]:
    """Output channels to keep of modules that pad the channel axis by a number fixed in code."""
    graph, slots = space.structure.graph, space.structure.tensor_slots
    changes = []
    for index, node in enumerate(graph.nodes):
        if node.op_type != "Pad" or index in gone or slots[node.output[0]].shape[1] == 1:
            continue
        before, after = pad_amounts(node, graph)
        made = slots[node.output[0]][0].reshape(-1)
        kept = np.where(made == FIXED, True, mask[made])
        if before[1] + after[1] == 0 or kept.all():
            continue
        inner = kept[before[1] : len(kept) - after[1]]
        hard_coded = np.concatenate([kept[: before[1]], inner[inner], kept[len(kept) - after[1] :]])
        path = next((item.value for item in node.metadata_props if item.key == "module"), "")
        if not path:
            raise PlanError(
                f"Pad '{node.name}' fixes channel counts in the network's own forward; move it into a module."
            )
        changes.append(ModuleChange(path, select=tuple(int(i) for i in np.flatnonzero(hard_coded))))
    return changes


def _splits(
    space: SearchSpace, mask: np.ndarray[tuple[int], np.dtype[np.bool_]], gone: frozenset[int]
) -> list[ModuleChange]:
    """Where modules split and slice the channel axis in code, where any of that changes."""
    graph = space.structure.graph
    sizes: dict[str, list[Sizes]] = {}
    ranges: dict[str, list[Range]] = {}
    for index, node in enumerate(graph.nodes):
        if node.op_type == "Split":
            sizes.setdefault(_module_of(node), []).append(_part_sizes(space, node, mask, index in gone))
        elif node.op_type == "Slice" and index not in gone:
            ranges.setdefault(_module_of(node), []).extend(_moved_ranges(space, node, mask))
    paths = [path for path, parts in sizes.items() if any(part is not None for part in parts)]
    paths += [path for path, moved in ranges.items() if moved]
    if not paths:
        return []
    if "?" in paths:
        raise PlanError("channels are split outside any known module; move that into a module of its own.")
    return [
        ModuleChange(path, splits=tuple(sizes.get(path, ())), ranges=tuple(ranges.get(path, ())))
        for path in dict.fromkeys([*sizes, *ranges])
        if path != "?" and (sizes.get(path) or ranges.get(path))
    ]


def _module_of(node: onnx.NodeProto) -> str:
    return next((item.value for item in node.metadata_props if item.key == "module"), "?")


def _part_sizes(
    space: SearchSpace,
    node: onnx.NodeProto,
    mask: np.ndarray[tuple[int], np.dtype[np.bool_]],
    is_gone: bool,
) -> Sizes:
    axis = attribute(node, "axis", 0)
    before = tuple(space.structure.graph.shapes[name][axis] for name in node.output)
    if is_gone:
        return (0,) * len(before)
    after = tuple(int(kept_along(space.structure, mask, name, axis).sum()) for name in node.output)
    return None if after == before else after


def _moved_ranges(
    space: SearchSpace, node: onnx.NodeProto, mask: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> list[Range]:
    graph = space.structure.graph
    if any(name not in graph.constants for name in node.input[1:] if name):
        return []
    cut = slice_ranges(node, graph).get(1)
    size = graph.shapes[node.input[0]][1]
    first, end, step = (cut or slice(None)).indices(size)
    kept = kept_along(space.structure, mask, node.input[0], 1)
    moved = int(kept[:first].sum()), int(kept[:end].sum())
    return [] if cut is None or step != 1 or moved == (first, end) else [(size, first, end, *moved)]
