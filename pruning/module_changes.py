"""What surgery has to do to each `nn.Module` of a network so that it is the network that a plan describes.

Layers get new sizes. Layers of a removed branch give zeros, the last one of as many channels as what follows
reads, those before it of none. Where a module's own `forward` splits, slices or pads channels by numbers that
are fixed in code, the numbers change.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from torch import nn

from latency.candidate import kept_along
from latency.graph import Graph, attribute
from latency.operators import pad_amounts, slice_ranges
from latency.space import SearchSpace
from latency.structure import FIXED
from pruning.errors import PlanError
from pruning.plan import ModuleChange, Plan
from pruning.splits import Range, Sizes

Mask = npt.NDArray[np.bool_]


def module_changes(model: nn.Module, space: SearchSpace, plan: Plan, mask: Mask) -> tuple[ModuleChange, ...]:
    """Everything that surgery has to do.

    Args:
        model: the full network.
        space: its search space.
        plan: which channels stay.
        mask: whether each slot stays, [n_slots].

    Raises:
        PlanError: the network's own `forward`, outside any module, fixes channel counts.
    """
    gone = space.structure.removal.at(np.flatnonzero(plan.widths(space) == 0).tolist()).removed_nodes
    modules = dict(model.named_modules(remove_duplicate=False))
    shapes = _new_shapes(space, mask, modules)
    removed = _removed_modules(space.structure.graph, gone, modules)
    within_groups = {layer.name for layer in space.layers if layer.n_narrowed_groups}
    changes = [
        _narrowed(path, modules[path], tensors, keeps_groups=path in within_groups)
        for path, tensors in shapes.items()
        if path not in removed
    ]
    changes += [
        _removed(path, modules[path], kind, shapes.get(path, {}))
        for path, kind in removed.items()
        if kind is not None
    ]
    replaced = {change.path for change in changes if change.replaced_by is not None}
    splits = [change for change in _splits(space, mask, gone) if change.path not in replaced]
    return (*changes, *_selections(space, mask, gone), *splits)


def _new_shapes(
    space: SearchSpace, mask: Mask, modules: Mapping[str, nn.Module]
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of parameters and buffers that hold prunable channels, by module and name."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for axis in space.parameter_axes:
        path, _, leaf = axis.parameter.rpartition(".")
        if path not in modules or not hasattr(modules[path], leaf):
            continue  # a constant of the graph, not a parameter
        tensors = shapes.setdefault(path, {})
        shape = list(tensors.get(leaf, getattr(modules[path], leaf).shape))
        shape[axis.axis] = int(np.where(axis.slots == FIXED, True, mask[axis.slots]).sum())
        tensors[leaf] = tuple(shape)
    return shapes


def _removed_modules(
    graph: Graph, gone: frozenset[int], modules: Mapping[str, nn.Module]
) -> dict[str, str | None]:
    """What stands for the modules with weights in removed branches, see `ModuleChange.replaced_by`."""
    removed: dict[str, str | None] = {}
    for index in sorted(gone):
        node = graph.nodes[index]
        for path in sorted(_paths_of(graph, node) & modules.keys() - {""}):
            if _holds_all_its_weights(modules[path]):
                is_layer = isinstance(modules[path], nn.Conv2d | nn.Linear)
                # what convolves but is no layer, such as blur pooling, stays as it was
                other = None if node.op_type == "Conv" else "identity"
                removed[path] = "zeros" if is_layer else other
    return removed


def _holds_all_its_weights(module: nn.Module) -> bool:
    """Whether no module within it has weights: a block with a scale of its own is more than that scale."""
    return not any(True for child in module.children() for _ in child.parameters())


def _paths_of(graph: Graph, node: onnx.NodeProto) -> set[str]:
    """Modules whose parameters or buffers a node reads."""
    sources = (graph.source(name) for name in node.input if graph.is_constant(name))
    return {name.rpartition(".")[0] for name in sources}


def _narrowed(
    path: str, module: nn.Module, shapes: dict[str, tuple[int, ...]], *, keeps_groups: bool
) -> ModuleChange:
    weight = shapes.get("weight")
    attributes: dict[str, int] = {}
    if weight is not None:
        for kind, names in _SIZE_ATTRIBUTES:
            if isinstance(module, kind):
                attributes = {name: weight[axis] for name, axis in names.items()}
                break
    if isinstance(module, nn.Conv2d) and module.groups > 1 and weight is not None:
        # whole groups go unless all of them become narrower
        groups = module.groups if keeps_groups else weight[0] * module.groups // module.out_channels
        attributes |= {"groups": groups, "in_channels": groups * weight[1]}
    changed = {name: shape for name, shape in shapes.items() if tuple(getattr(module, name).shape) != shape}
    if not attributes:
        attributes = _own_sizes(module, changed)
    return ModuleChange(path, attributes=attributes if changed else {}, shapes=changed)


_SIZE_ATTRIBUTES: tuple[tuple[type | tuple[type, ...], dict[str, int]], ...] = (
    (nn.Conv2d, {"out_channels": 0, "in_channels": 1}),
    (nn.Linear, {"out_features": 0, "in_features": 1}),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d), {"num_features": 0}),
    (nn.PReLU, {"num_parameters": 0}),
)
"""Attributes that repeat a weight's shape, and the axis each repeats."""


def _own_sizes(module: nn.Module, changed: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes that modules of other libraries keep of their first axis, such as timm's blur pooling."""
    sizes: dict[str, int] = {}
    for name, shape in changed.items():
        before = getattr(module, name).shape[0]
        own = (attribute for attribute in _SIZE_NAMES if getattr(module, attribute, None) == before)
        sizes |= dict.fromkeys(own, shape[0])
    return sizes


_SIZE_NAMES = ("channels", "num_channels", "num_features", "in_channels", "out_channels", "dim")


def _removed(
    path: str, module: nn.Module, replaced_by: str, shapes: Mapping[str, tuple[int, ...]]
) -> ModuleChange:
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return ModuleChange(path, replaced_by=replaced_by)
    weight = shapes.get("weight", tuple(module.weight.shape))
    return ModuleChange(path, attributes={"out_channels": weight[0]}, replaced_by=replaced_by)


def _selections(space: SearchSpace, mask: Mask, gone: frozenset[int]) -> list[ModuleChange]:
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


def _splits(space: SearchSpace, mask: Mask, gone: frozenset[int]) -> list[ModuleChange]:
    """Where modules split and slice the channel axis in code, where any of that changes, and pool what is gone."""
    graph = space.structure.graph
    sizes: dict[str, list[Sizes]] = {}
    ranges: dict[str, list[Range]] = {}
    empty: dict[str, None] = {}
    for index, node in enumerate(graph.nodes):
        if node.op_type == "Split":
            sizes.setdefault(_module_of(node), []).append(_part_sizes(space, node, mask))
        elif node.op_type == "Slice":
            ranges.setdefault(_module_of(node), []).extend(_moved_ranges(space, node, mask))
        elif index in gone and node.op_type in _SPATIAL:
            empty[_module_of(node)] = None
    changing = {path for path, parts in sizes.items() if any(part is not None for part in parts)}
    changing |= {path for path, moved in ranges.items() if any(row[:3] != row[3:] for row in moved)}
    if _NOWHERE in changing:
        raise PlanError("channels are split outside any known module; move that into a module of its own.")
    if not changing and not empty:
        return []
    # Each module that splits, since one counts its own calls only where those within it count theirs.
    return [
        ModuleChange(
            path,
            splits=tuple(sizes.get(path, ())),
            ranges=tuple(ranges.get(path, ())),
            may_be_empty=path in empty,
        )
        for path in dict.fromkeys([*sizes, *ranges, *empty])
        if path != _NOWHERE and (sizes.get(path) or ranges.get(path) or path in empty)
    ]


_NOWHERE = "?"
_SPATIAL = ("AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMean", "Resize")


def _module_of(node: onnx.NodeProto) -> str:
    return next((item.value for item in node.metadata_props if item.key == "module"), _NOWHERE)


def _part_sizes(space: SearchSpace, node: onnx.NodeProto, mask: Mask) -> Sizes:
    axis = attribute(node, "axis", 0)
    before = tuple(space.structure.graph.shapes[name][axis] for name in node.output)
    after = tuple(int(kept_along(space.structure, mask, name, axis).sum()) for name in node.output)
    return None if after == before else after


def _moved_ranges(space: SearchSpace, node: onnx.NodeProto, mask: Mask) -> list[Range]:
    graph = space.structure.graph
    if any(name not in graph.constants for name in node.input[1:] if name):
        return []
    cut = slice_ranges(node, graph).get(1)
    size = graph.shapes[node.input[0]][1]
    first, end, step = (cut or slice(None)).indices(size)
    kept = kept_along(space.structure, mask, node.input[0], 1)
    if cut is None or step != 1:
        return []
    return [(size, first, end, int(kept.sum()), int(kept[:first].sum()), int(kept[:end].sum()))]
