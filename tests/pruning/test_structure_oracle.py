"""The channel structure beside torch-pruning's dependency graph, which finds it in another way."""

import warnings

import numpy as np
import pytest
import torch
import torch_pruning
import torchvision
from torch import Tensor, nn
from torch.func import functional_call

from latency.candidate import candidate_model, kept_slots, masked_model
from latency.space import SearchSpace
from latency.structure import FIXED
from pruning.trace import trace
from tests.nets import max_relative_difference, run_onnx

pytestmark = pytest.mark.usefixtures("one_thread")

Place = tuple[str, int, int]
"""A parameter, an axis of it, and an index along the axis."""

QUICK = (
    *("alexnet", "vgg11_bn", "resnet18", "resnet34", "resnet50", "squeezenet1_0", "squeezenet1_1"),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet0_5", "mnasnet1_0"),
    *("googlenet", "inception_v3", "efficientnet_b0", "wide_resnet50_2"),
)
LONG = ("vgg16_bn", "densenet121", "densenet169", "efficientnet_b1", "efficientnet_v2_s")


def network(name: str) -> tuple[nn.Module, tuple[int, int, int, int]]:
    options = {"init_weights": True, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    size = 96 if name == "inception_v3" else 64
    return torchvision.models.get_model(name, weights=None, **options).eval(), (1, 3, size, size)


def dependency_graph(model: nn.Module, images: Tensor) -> torch_pruning.DependencyGraph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch_pruning.DependencyGraph().build_dependency(model, images)


def pruning_function(module: nn.Module) -> object:
    if isinstance(module, nn.Linear):
        return torch_pruning.prune_linear_out_channels
    is_depthwise = module.groups == module.in_channels > 1
    return (
        torch_pruning.prune_depthwise_conv_out_channels
        if is_depthwise
        else torch_pruning.prune_conv_out_channels
    )


def their_places(
    graph: torch_pruning.DependencyGraph, model: nn.Module, layer: str, channel: int
) -> set[Place]:
    """What torch-pruning removes together with one output channel of a layer."""
    module = model.get_submodule(layer)
    names = {child: name for name, child in model.named_modules()}
    places: set[Place] = set()
    for dependency, indices in graph.get_pruning_group(module, pruning_function(module), [channel]):
        target = dependency.target.module
        if not isinstance(target, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            continue
        is_depthwise = isinstance(target, nn.Conv2d) and target.groups == target.in_channels > 1
        makes = graph.is_out_channel_pruning_fn(dependency.handler)
        axis = 0 if makes or is_depthwise or isinstance(target, nn.BatchNorm2d) else 1
        places |= {(f"{names[target]}.weight", axis, int(index)) for index in indices}
    return places


def our_places(space: SearchSpace, weights: set[str]) -> dict[int, set[Place]]:
    """Indices of weights that each slot owns."""
    places: dict[int, set[Place]] = {}
    for axis in space.parameter_axes:
        if axis.parameter in weights:
            for index, slot in enumerate(axis.slots.tolist()):
                if slot != FIXED:
                    places.setdefault(slot, set()).add((axis.parameter, axis.axis, index))
    return places


def assert_same_groups(name: str) -> None:
    model, shape = network(name)
    space = trace(model, shape)
    graph = dependency_graph(model, torch.zeros(shape))
    kinds = nn.Conv2d | nn.Linear | nn.BatchNorm2d
    weights = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, kinds)}
    ours = our_places(space, weights)
    made = {(axis.parameter, axis.axis): axis.slots for axis in space.parameter_axes}
    rng = np.random.default_rng(0)
    n_compared = 0
    for path, module in model.named_modules():
        slots = made.get((f"{path}.weight", 0))
        if slots is None or not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        channel = int(rng.integers(len(slots)))
        assert their_places(graph, model, path, channel) == ours[int(slots[channel])], f"{path}, {channel}"
        n_compared += 1
    assert n_compared >= 7


@pytest.mark.parametrize("name", QUICK)
def test_groups_agree_with_torch_pruning(name: str) -> None:
    assert_same_groups(name)


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_groups_agree_with_torch_pruning_on_large_networks(name: str) -> None:
    assert_same_groups(name)


def masked_parameters(model: nn.Module, places: set[Place]) -> dict[str, Tensor]:
    """Parameters in which every weight that reads a removed channel is zero."""
    values = {name: value.detach().clone() for name, value in model.named_parameters()}
    for name, axis, index in places:
        if axis == 1:
            values[name].index_fill_(1, torch.tensor([index]), 0.0)
    return values


class GroupedNet(nn.Module):
    """A grouped convolution: four groups that read two channels each."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.grouped(torch.relu(self.a(images))))).mean(dim=(2, 3))


class NormalisedNet(nn.Module):
    """ConvNeXt's residual stream: LayerNorm over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(torch.relu(self.a(images)).permute(0, 2, 3, 1))).mean(dim=(1, 2))


def test_where_groups_of_convolutions_differ_torch_prunings_network_fails() -> None:
    """It removes one channel of a group that reads two; here a group is kept or removed whole."""
    torch.manual_seed(0)
    model = GroupedNet().eval()
    images = torch.randn(1, 3, 8, 8)
    space = trace(model, (1, 3, 8, 8))
    kept = (np.array([0, 2, 3]),)
    gated, cut = run_onnx(masked_model(space, kept)), run_onnx(candidate_model(space, kept))
    assert max_relative_difference(gated, cut) <= 1e-5
    assert kept_slots(space, kept).tolist() == [True, False, True, True]

    group = dependency_graph(model, images).get_pruning_group(
        model.a, torch_pruning.prune_conv_out_channels, [2]
    )
    group.prune()
    with pytest.raises(RuntimeError, match="channels"):
        model(images)


def test_where_normalisations_differ_torch_prunings_network_computes_something_else() -> None:
    """It removes channels that LayerNorm averages over; here they are kept, with the reason."""
    torch.manual_seed(0)
    model = NormalisedNet().eval()
    images = torch.randn(1, 3, 8, 8)
    space = trace(model, (1, 3, 8, 8))
    assert not space.groups
    assert "normalises over channels" in {row.layer: row.reason for row in space.kept}["a"]

    graph = dependency_graph(model, images)
    group = graph.get_pruning_group(model.a, torch_pruning.prune_conv_out_channels, [2])
    places = their_places(graph, model, "a", 2) | {("head.weight", 1, 2)}
    with torch.no_grad():
        gated = functional_call(model, masked_parameters(model, places), (images,)).numpy()
        group.prune()
        pruned = model(images).numpy()
    assert max_relative_difference([gated], [pruned]) > 1e-3
