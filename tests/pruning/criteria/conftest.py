"""A small trained network with made-up prices, shared by the tests of all methods."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pruning.criteria.base import SearchJob, SearchOptions
from pruning.data import ImageTask, load_data
from pruning.precision import Precision
from pruning.prices import PricedSpace
from pruning.trace import trace
from pruning.training import TrainingConfig, train
from tests.priced import grid_of_step, priced

MS_PER_CHANNEL = (0.02, 0.03, 0.01)


class BlockNet(nn.Module):
    """Groups: `stem` (12, the residual stream), `inner` (16, removable), `deep` (20)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(12)
        self.inner = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(16)
        self.outer = nn.Conv2d(16, 12, 3, padding=1, bias=False)
        self.outer_norm = nn.BatchNorm2d(12)
        self.deep = nn.Conv2d(12, 20, 3, stride=2, padding=1, bias=False)
        self.deep_norm = nn.BatchNorm2d(20)
        self.head = nn.Linear(20, 10)

    def forward(self, images: Tensor) -> Tensor:
        stream = torch.relu(self.stem_norm(self.stem(images)))
        branch = torch.relu(self.inner_norm(self.inner(stream)))
        stream = torch.relu(stream + self.outer_norm(self.outer(branch)))
        return self.head(torch.relu(self.deep_norm(self.deep(stream))).mean(dim=(2, 3)))


@pytest.fixture(scope="session")
def task() -> ImageTask:
    return load_data("digits", (3, 16, 16))


@pytest.fixture(autouse=True)
def _one_format() -> Iterator[None]:
    """The number format is chosen by timing, and so not always the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pruning.training.choose_precision", lambda *_: (Precision(), {}))
        yield


@pytest.fixture(scope="session")
def trained(task: ImageTask) -> nn.Module:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = BlockNet()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pruning.training.choose_precision", lambda *_: (Precision(), {}))
        train(network, task, TrainingConfig(epochs=3))
    return network.eval()


@pytest.fixture(scope="session")
def device(trained: nn.Module) -> PricedSpace:
    space = trace(trained, (1, 3, 16, 16))
    assert [group.name for group in space.groups] == ["stem", "inner", "deep"]
    return priced(space, MS_PER_CHANNEL, grid_of_step(space, 4))


@pytest.fixture
def make_job(trained: nn.Module, task: ImageTask, device: PricedSpace) -> Callable[..., SearchJob]:
    def make(
        *,
        budget_share: float = 0.6,
        epochs: int = 2,
        seed: int = 0,
        checkpoint: Path | None = None,
        **changed: object,
    ) -> SearchJob:
        options = SearchOptions(epochs=epochs, batch_size=128, **changed)
        return SearchJob(
            network=copy.deepcopy(trained),
            teacher=trained,
            task=task,
            device=device,
            budget_ms=budget_share * device.profile.reference_ms,
            options=options,
            seed=seed,
            checkpoint=checkpoint,
        )

    return make
