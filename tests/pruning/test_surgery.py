from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from latency.candidate import candidate_model
from latency.session import make_session
from latency.space import SearchSpace
from pruning.errors import PlanError
from pruning.plan import Plan, make_plan
from pruning.surgery import RemovedConv2d, apply_changes_, load_slim, slim
from pruning.trace import trace


def positions(*kept: list[int]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(group, dtype=np.int64) for group in kept)


def onnx_scores(space: SearchSpace, kept: tuple[np.ndarray, ...], images: Tensor) -> np.ndarray:
    session = make_session(candidate_model(space, kept))
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]


@pytest.mark.parametrize(
    "kept",
    [
        positions([0, 2, 3, 7], [1, 5, 11]),
        positions(list(range(8)), [0]),
        positions([6], []),
    ],
    ids=["narrow", "one inner channel", "removed branch"],
)
def test_the_slim_module_computes_what_the_candidate_computes(
    residual_net: nn.Module, residual_space: SearchSpace, kept: tuple[np.ndarray, ...]
) -> None:
    images = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    network, _ = slim(residual_net, residual_space, make_plan(residual_space, kept))

    with torch.no_grad():
        scores = network(images).numpy()
    np.testing.assert_allclose(scores, onnx_scores(residual_space, kept, images), rtol=1e-4, atol=1e-5)


def test_sizes_and_attributes_follow_the_plan(residual_net: nn.Module, residual_space: SearchSpace) -> None:
    network, _ = slim(residual_net, residual_space, make_plan(residual_space, positions([0, 1, 2], [4, 5])))

    assert (network.stem.out_channels, network.inner.in_channels, network.inner.out_channels) == (3, 3, 2)
    assert (network.depthwise.groups, network.depthwise.in_channels) == (3, 3)
    assert tuple(network.depthwise.weight.shape) == (3, 1, 3, 3)
    assert network.head.in_features == 3
    assert network.stem_norm.num_features == 3


def test_the_original_module_stays_as_it_was(residual_net: nn.Module, residual_space: SearchSpace) -> None:
    before = {name: value.clone() for name, value in residual_net.state_dict().items()}

    slim(residual_net, residual_space, make_plan(residual_space, positions([0], [])))

    after = residual_net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("inner", [[3, 4, 9], []], ids=["narrow", "removed"])
def test_a_slim_network_is_rebuilt_from_its_files(
    make_residual_net: Callable[[], nn.Module],
    residual_space: SearchSpace,
    tmp_path: Path,
    inner: list[int],
) -> None:
    plan = make_plan(residual_space, positions([1, 2, 5], inner), budget_ms=1.5)
    network, plan = slim(make_residual_net(), residual_space, plan)
    plan.write(tmp_path / "plan.json")
    save_file(network.state_dict(), tmp_path / "pruned.safetensors")
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))

    rebuilt = load_slim(make_residual_net, tmp_path / "plan.json", tmp_path / "pruned.safetensors")

    with torch.no_grad():
        assert torch.equal(rebuilt(images), network.eval()(images))


def test_a_removed_convolution_gives_zeros_of_the_convolutions_shape() -> None:
    conv = nn.Conv2d(4, 6, 5, stride=2, padding=2, dilation=2)
    images = torch.randn(2, 4, 19, 23)

    zeros = RemovedConv2d(conv, 6)(images)

    assert zeros.shape == conv(images).shape
    assert not zeros.any()


class _OptionA(nn.Module):
    """Shortcut that pads the channel axis by a number fixed in code."""

    def forward(self, images: Tensor) -> Tensor:
        return F.pad(images, (0, 0, 0, 0, 2, 2))


class _PaddedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 8, 3, padding=1)
        self.shortcut = _OptionA()
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        stream = torch.relu(self.first(images))
        return self.head(torch.relu(self.second(stream) + self.shortcut(stream))).mean(dim=(2, 3))


def test_channels_padded_in_code_are_narrowed_by_selection() -> None:
    torch.manual_seed(0)
    network = _PaddedNet().eval()
    space = trace(network, (1, 3, 6, 6))
    images = torch.randn(1, 3, 6, 6)
    widths = {group.name: group.n_channels for group in space.groups}
    assert widths == {"first": 4, "second": 4}
    kept = positions([0, 2], [1, 3])

    slimmed, _ = slim(network, space, make_plan(space, kept))

    with torch.no_grad():
        scores = slimmed(images).numpy()
    np.testing.assert_allclose(scores, onnx_scores(space, kept, images), rtol=1e-4, atol=1e-5)
    assert slimmed.second.out_channels == 4


class _ShuffledNet(nn.Module):
    """Splits its channels in two halves, the second of which goes through a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.MaxPool2d(2, 1), nn.ReLU())
        self.pool = nn.MaxPool2d(2, 1)
        self.last = nn.Conv2d(10, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        kept, worked_on = torch.relu(self.stem(images)).chunk(2, dim=1)
        joined = torch.cat([self.pool(kept), self.branch(worked_on)], dim=1)
        return self.head(torch.relu(self.last(joined)).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("first", "second", "branch"),
    [([0, 1, 2], [2], [0, 3]), ([0], [1, 2, 3], [1]), ([2, 3], [0], [])],
    ids=["more of the first", "more of the second", "no branch"],
)
def test_channels_split_in_code_are_split_where_they_now_lie(
    first: list[int], second: list[int], branch: list[int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = _ShuffledNet().eval()
    space = trace(network, (1, 3, 6, 6))
    chosen = {"stem": first, "stem#2": second, "branch.0": branch, "last": [0, 1, 4]}
    kept = positions(*[chosen[group.name] for group in space.groups])
    images = torch.randn(1, 3, 6, 6)

    slimmed, plan = slim(network, space, make_plan(space, kept))
    plan.write(tmp_path / "plan.json")
    save_file(slimmed.state_dict(), tmp_path / "pruned.safetensors")
    rebuilt = load_slim(_ShuffledNet, tmp_path / "plan.json", tmp_path / "pruned.safetensors")

    with torch.no_grad():
        scores = slimmed(images).numpy()
        assert torch.equal(rebuilt(images), slimmed(images))
    np.testing.assert_allclose(scores, onnx_scores(space, kept, images), rtol=1e-4, atol=1e-5)


class _PartlyResidual(nn.Module):
    """Adds the shortcut to its first channels only, as in ReXNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 10, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        made = self.conv(images)
        return torch.cat([made[:, 0:4] + images, made[:, 4:]], dim=1)


@pytest.mark.parametrize(
    ("stem", "rest"), [([0, 1], [0, 5]), ([1, 2, 3], [4]), ([0, 1, 2, 3], [0, 1])], ids=str
)
def test_channels_sliced_in_code_are_sliced_where_they_now_lie(
    stem: list[int], rest: list[int], tmp_path: Path
) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), _PartlyResidual(), nn.ReLU()),
            *(nn.Conv2d(10, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )

    network = make().eval()
    space = trace(network, (1, 3, 6, 6))
    chosen = {"0": stem, "2.conv": rest}
    kept = positions(*[chosen[group.name] for group in space.groups])
    images = torch.randn(1, 3, 6, 6)

    slimmed, plan = slim(network, space, make_plan(space, kept))
    plan.write(tmp_path / "plan.json")
    save_file(slimmed.state_dict(), tmp_path / "pruned.safetensors")
    rebuilt = load_slim(make, tmp_path / "plan.json", tmp_path / "pruned.safetensors")
    program = torch.export.export(slimmed, (images,)).module()

    with torch.no_grad():
        scores = slimmed(images).numpy()
        assert torch.equal(rebuilt(images), slimmed(images))
        np.testing.assert_allclose(program(images).numpy(), scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores, onnx_scores(space, kept, images), rtol=1e-4, atol=1e-5)


def test_a_plan_of_another_network_is_refused(residual_net: nn.Module, residual_space: SearchSpace) -> None:
    plan = Plan("0" * 64, {"stem": (0,)}, {"stem": 8})

    with pytest.raises(PlanError, match="belongs to network 000000000000"):
        slim(residual_net, residual_space, plan)


def test_a_plan_for_a_missing_module_is_refused(residual_net: nn.Module, residual_space: SearchSpace) -> None:
    _, plan = slim(residual_net, residual_space, make_plan(residual_space, positions([0], [0])))

    with pytest.raises(PlanError, match="changes module 'stem', which Sequential does not have"):
        apply_changes_(nn.Sequential(nn.Conv2d(3, 3, 1)), plan.modules)
