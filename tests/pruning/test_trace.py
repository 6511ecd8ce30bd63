from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from latency.candidate import candidate_model, first_channels
from latency.errors import ModelFileError, UnsupportedGraphError
from latency.space import SearchSpace
from pruning.errors import TraceError
from pruning.trace import save_base, trace
from tests.nets import max_relative_difference, run_onnx

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (1, 3, 8, 8)


class TinyResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.branch = nn.Sequential(
            nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1)
        )
        self.classifier = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.norm(self.stem(images)))
        features = functional.relu(features + self.branch(features))
        return self.classifier(features.mean(dim=(2, 3)))


class Halves(nn.Module):
    """Splits channels after an activation that overwrites its input."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(4, 6, 1)

    def forward(self, features: Tensor) -> Tensor:
        left, right = torch.split(self.activation(features), 4, dim=1)
        return torch.cat([self.conv(left), right], dim=1)


class TinyMixer(nn.Module):
    """Split, adaptive pooling to a size that does not divide the input, linear layers over the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.halves = Halves()
        self.pool = nn.AdaptiveAvgPool2d((3, 5))
        self.expand = nn.Linear(10, 12)
        self.project = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.halves(self.stem(images))).permute(0, 2, 3, 1)
        return self.project(functional.gelu(self.expand(features))).mean(dim=(1, 2))


class Overwriting(nn.Module):
    """Uses a tensor after an activation has overwritten it: run out of place it computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        return (self.activation(features) + features).mean(dim=(2, 3))


def randomise_(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return randomise_(TinyResNet())


@pytest.fixture(scope="module")
def space(net: nn.Module) -> SearchSpace:
    return trace(net, SHAPE)


def test_the_base_model_computes_what_the_module_computes(net: nn.Module, space: SearchSpace) -> None:
    images = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    net.eval()
    with torch.inference_mode():
        expected = net(torch.from_numpy(images)).numpy()
    assert max_relative_difference([expected], run_onnx(space.model)) <= 1e-5


def test_parameters_and_buffers_keep_their_names(net: nn.Module, space: SearchSpace) -> None:
    named = {name for name, _ in (*net.named_parameters(), *net.named_buffers())}
    assert {axis.parameter for axis in space.parameter_axes} <= named
    assert {layer.name for layer in space.layers} == {"stem", "branch.0", "branch.3", "classifier"}


def test_batch_norm_stays_apart(space: SearchSpace) -> None:
    operators = [node.op_type for node in space.model.graph.node]
    assert operators.count("BatchNormalization") == 2


def test_groups_are_found_on_the_exported_graph(space: SearchSpace) -> None:
    found = {group.name: (group.n_channels, group.zero_allowed) for group in space.groups}
    assert found == {"stem": (8, False), "branch.0": (6, True)}


@pytest.fixture(scope="module")
def mixer() -> tuple[nn.Module, SearchSpace]:
    torch.manual_seed(0)
    net = TinyMixer().eval()
    return net, trace(net, SHAPE)


def assert_computes_the_same(net: nn.Module, space: SearchSpace) -> None:
    images = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    with torch.inference_mode():
        expected = net(torch.from_numpy(images.copy())).numpy()
    assert max_relative_difference([expected], run_onnx(space.model)) <= 1e-5


def test_adaptive_pooling_of_any_size_is_exact_and_leaves_channels_free(
    mixer: tuple[nn.Module, SearchSpace],
) -> None:
    net, space = mixer
    assert_computes_the_same(net, space)
    assert not {node.op_type for node in space.model.graph.node} & {"Gather", "GatherND", "Where"}
    found = {group.name: group.n_channels for group in space.groups}
    assert found == {"stem": 4, "stem#2": 4, "halves.conv": 6, "expand": 12}


def test_linear_weights_that_are_read_transposed_keep_their_names(
    mixer: tuple[nn.Module, SearchSpace],
) -> None:
    _, space = mixer
    axes = {(axis.parameter, axis.axis): axis for axis in space.parameter_axes}
    assert axes["expand.weight", 0].role == "out"
    assert axes["project.weight", 1].role == "in"
    assert {layer.name for layer in space.layers} >= {"expand", "project"}


def test_a_split_knows_the_module_it_stands_in(mixer: tuple[nn.Module, SearchSpace]) -> None:
    _, space = mixer
    paths = [
        [item.value for item in node.metadata_props if item.key == "module"]
        for node in space.model.graph.node
        if node.op_type == "Split"
    ]
    assert paths == [["halves"]]


class Summing(nn.Module):
    """Adds up channels along their axis: every channel depends on those before it."""

    def forward(self, features: Tensor) -> Tensor:
        return features.cumsum(dim=1)


def summing_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 1), Summing(), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(6, 5),
    )


def test_an_operator_that_is_not_understood_is_refused_with_its_module() -> None:
    with pytest.raises(
        UnsupportedGraphError, match=r"operator CumSum \('.*' in module '1'\) is not understood"
    ):
        trace(summing_net(), SHAPE)


def test_on_demand_only_what_it_touches_is_kept() -> None:
    space = trace(summing_net(), SHAPE, keep_unknown=True)

    assert {group.name for group in space.groups} == {"2"}
    assert "operator CumSum" in {row.layer: row.reason for row in space.kept}["0"]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        return features.mean(dim=(2, 3)) if features.sum() > 0 else features.amax(dim=(2, 3))


def test_control_flow_that_depends_on_data_is_refused() -> None:
    with pytest.raises(
        TraceError, match=r"Branching cannot be traced at input 1x3x8x8: .*control flow"
    ) as caught:
        trace(Branching(), SHAPE)
    assert "\n" not in str(caught.value)


class Selecting(nn.Module):
    """As many rows as the data says."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images).flatten(1)
        return features[features > 0]


def test_shapes_that_depend_on_data_are_refused() -> None:
    with pytest.raises((TraceError, ModelFileError)) as caught:
        trace(Selecting(), SHAPE)
    assert "\n" not in str(caught.value)


def test_activations_stay_in_place_where_it_matters() -> None:
    torch.manual_seed(0)
    net = Overwriting().eval()
    assert_computes_the_same(net, trace(net, SHAPE))
    assert net.activation.inplace


def test_a_saved_base_holds_the_same_space(space: SearchSpace, tmp_path: Path) -> None:
    save_base(space, tmp_path / "base.onnx")
    loaded = SearchSpace.load(tmp_path / "base.onnx")
    assert loaded.structure_hash == space.structure_hash
    assert loaded.groups == space.groups


def test_the_same_architecture_gives_the_same_hash(space: SearchSpace) -> None:
    torch.manual_seed(7)
    assert trace(TinyResNet(), SHAPE).structure_hash == space.structure_hash


def test_the_base_file_names_no_path_of_the_machine(space: SearchSpace) -> None:
    content = space.model.SerializeToString()
    assert str(Path(__file__).parent).encode() not in content
    assert b"site-packages" not in content


def test_tracing_leaves_training_modes_alone(net: nn.Module) -> None:
    net.train()
    net.norm.eval()  # type: ignore[union-attr]
    modes = [module.training for module in net.modules()]
    trace(net, SHAPE)
    assert [module.training for module in net.modules()] == modes


def test_control_flow_that_depends_on_the_data_is_refused_in_one_line() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = self.conv(images)
            return features if features.sum() > 0 else -features

    with pytest.raises(
        TraceError, match=r"^Branching cannot be traced at input 1x3x8x8: .*control flow"
    ) as info:
        trace(Branching(), SHAPE)
    assert "\n" not in str(info.value)


def test_a_shape_that_depends_on_the_data_is_refused() -> None:
    class Selecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = self.conv(images)
            return features[features > 0]

    with pytest.raises((TraceError, ModelFileError), match=r"static shape|cannot be traced"):
        trace(Selecting(), SHAPE)


def test_an_input_size_that_does_not_fit_is_refused_with_the_size() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    with pytest.raises(TraceError, match=r"Sequential cannot be traced at input 1x3x9x9.*--input-size"):
        trace(net, (1, 3, 9, 9))


def test_a_candidate_of_a_traced_network_checks(space: SearchSpace) -> None:
    model = candidate_model(space, first_channels([5, 0]))
    onnx.checker.check_model(model, full_check=True)
    assert not [tensor.name for tensor in model.graph.initializer if tensor.name.startswith("branch")]
