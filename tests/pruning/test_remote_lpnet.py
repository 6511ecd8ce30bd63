"""The search with an LPNet behind HTTP: the same gradients and the same plan as with its files."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from latency.client import ServiceClient, lpnet_at
from latency.errors import NotFoundError, ProfileError
from latency.profiles import ProfileSet, parse_profile
from latency.registry.registry import Registry
from latency.service.settings import ServiceSettings
from latency.space import SearchSpace
from pruning.budget import cut_to_target
from pruning.criteria import find_method
from pruning.criteria.base import SearchJob, SearchOptions
from pruning.data import ImageTask, load_data
from pruning.prune_stage import PruneOptions, priced_space
from pruning.remote_lpnet import RemoteLPNet, find_lpnet
from pruning.run import RunDirectory, RunSettings
from pruning.stages import Workbench
from tests.known_network import KnownNetwork
from tests.serving import running


@pytest.fixture(scope="module")
def url(known_network: KnownNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that holds the network's LPNet, and its profile between two others of the same device."""
    registry = Registry.in_folder(tmp_path_factory.mktemp("registry"))
    registry.lpnets.add(known_network.lpnet_folder)
    lines = known_network.profile.splitlines(keepends=True)
    for seed in (1, 0, 2):
        header = json.dumps(json.loads(lines[0]) | {"seed": seed}).encode() + b"\n"
        registry.profiles.upload(known_network.profile if not seed else header)
    with running(registry, ServiceSettings(run_jobs=False), with_tokens=False) as service:
        yield service.url
    registry.close()


@pytest.fixture
def profile(known_network: KnownNetwork) -> ProfileSet:
    found = parse_profile(known_network.profile, known_network.lpnet_folder)
    assert found is not None
    return found


@pytest.fixture
def task(tmp_path: Path) -> ImageTask:
    """Five classes of noise, each with a mean of its own."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 120), ("test", 20)):
        labels = rng.integers(0, 5, n)
        images = rng.integers(0, 100, (n, 8, 8, 3)) + 30 * labels[:, None, None, None]
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
    np.savez(tmp_path / "noise.npz", **arrays)
    return load_data(f"npz:{tmp_path / 'noise.npz'}", (3, 8, 8))


def test_values_and_gradients_are_those_of_the_local_lpnet(
    url: str, known_network: KnownNetwork, profile: ProfileSet
) -> None:
    remote = RemoteLPNet(find_lpnet(url, known_network.space, profile))
    weights = torch.tensor([1.0, -2.0, 0.5])
    results = []
    for lpnet in (known_network.lpnet, remote):
        widths = torch.tensor([[8.0, 12.0], [4.0, 0.0], [5.5, 3.25]], requires_grad=True)
        latency_ms = lpnet(widths)
        (gradient,) = torch.autograd.grad((weights * latency_ms).sum(), widths)
        results.append((latency_ms.detach(), gradient))
    for local, through_http in zip(*results, strict=True):
        torch.testing.assert_close(through_http, local, rtol=1e-6, atol=1e-8)


@pytest.fixture
def run(known_network: KnownNetwork, tmp_path: Path) -> RunDirectory:
    """A run directory with the network's base, profile and LPNet."""
    out = RunDirectory(tmp_path / "run")
    out.begin(RunSettings("net.py:net", "digits", (1, 3, 8, 8)))
    out.file("base.onnx").write_bytes(known_network.base)
    out.file("profile.jsonl").write_bytes(known_network.profile)
    shutil.copytree(known_network.lpnet_folder, out.file("lpnet"))
    return out


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("share_there", [None, 0.45], ids=["one device", "a second one that binds"])
def test_the_search_ends_at_the_same_plan(
    url: str,
    run: RunDirectory,
    profile: ProfileSet,
    task: ImageTask,
    make_residual_net: Callable[[], nn.Module],
    share_there: float | None,
) -> None:
    budget_ms = 0.6 * profile.reference_ms
    kept = []
    for where, there in ((None, str(run.path)), (url, _address(url))):
        also = () if share_there is None else ((there, share_there * profile.reference_ms),)
        device = priced_space(Workbench(run, lpnet_at=where), PruneOptions(also=also))
        options = SearchOptions(epochs=2, batch_size=20)
        networks = make_residual_net(), make_residual_net()
        found = find_method("wgates").search(SearchJob(*networks, task, device, budget_ms, options))
        predict_ms = device.predict_ms(budget_ms)
        choice = cut_to_target(found.scores, device.space, device.grid, predict_ms, budget_ms)
        for other in device.others:
            assert other.predictor.predict_ms([choice.widths])[0] <= other.budget_ms
        kept.append([positions.tolist() for positions in choice.kept])
    assert kept[0] == kept[1]
    assert kept[0] != [list(range(group.n_channels)) for group in device.space.groups]


def _address(url: str) -> str:
    with ServiceClient(url) as service:
        return f"{url}/v1/lpnets/{service.lpnets()[0]['id']}"


def test_the_second_device_is_measured_against_its_own_profile(
    url: str, run: RunDirectory, profile: ProfileSet
) -> None:
    found = lpnet_at(_address(url)).profile()
    assert (found.rows, found.reference_ms) == (profile.rows, profile.reference_ms)


def test_an_lpnet_of_another_network_is_refused(
    url: str, known_network: KnownNetwork, profile: ProfileSet
) -> None:
    other = SearchSpace(known_network.space.structure)
    other.structure_hash = "cd" * 32
    with pytest.raises(NotFoundError, match="no LPNet of network cdcdcdcdcdcd on device"):
        find_lpnet(url, other, profile)
    with pytest.raises(ProfileError, match="belongs to another network"):
        find_lpnet(str(known_network.lpnet_folder), other, profile)
