"""Small networks that several test modules share, traced once."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from latency.space import SearchSpace
from pruning.trace import trace
from tests.known_network import KnownNetwork, make_known_network
from tests.object_store import s3_server
from tests.postgresql import postgresql_server


@pytest.fixture(scope="session")
def _n_threads() -> int:
    return torch.get_num_threads()


@pytest.fixture(scope="module")
def one_thread(_n_threads: int) -> Iterator[None]:
    """Small networks are faster, and repeatable, on one thread."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(_n_threads)


class SmallResidualNet(nn.Module):
    """Stem, one removable residual block, one depthwise convolution, classifier.

    Groups: `stem` (8 channels, the residual stream, tied to the depthwise convolution),
    `inner` (12 channels, removable). The 5 class scores are kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1, bias=True)
        self.inner_norm = nn.BatchNorm2d(12)
        self.outer = nn.Conv2d(12, 8, 1, bias=True)
        self.outer_norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        stream = torch.relu(self.stem_norm(self.stem(images)))
        branch = torch.relu(self.inner_norm(self.inner(stream)))
        stream = torch.relu(stream + self.outer_norm(self.outer(branch)))
        pooled = torch.relu(self.depthwise(stream)).mean(dim=(2, 3))
        return self.head(pooled)


def randomise_norms_(network: nn.Module, seed: int = 0) -> None:
    """Give BatchNorms statistics and parameters that hide no error."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.running_mean.shape
            module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(shape, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(shape, generator=generator) * 0.3)


@pytest.fixture
def make_residual_net() -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        network = SmallResidualNet().eval()
        randomise_norms_(network)
        return network

    return make


@pytest.fixture
def residual_net(make_residual_net: Callable[[], nn.Module]) -> nn.Module:
    return make_residual_net()


@pytest.fixture(scope="session")
def residual_space() -> SearchSpace:
    torch.manual_seed(0)
    network = SmallResidualNet().eval()
    randomise_norms_(network)
    return trace(network, (1, 3, 8, 8))


@pytest.fixture(scope="session")
def known_network(residual_space: SearchSpace, tmp_path_factory: pytest.TempPathFactory) -> KnownNetwork:
    """`residual_net` with a profile and an LPNet."""
    return make_known_network(residual_space, tmp_path_factory.mktemp("lpnet"))


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """URL of a PostgreSQL database; see `empty_database`."""
    with postgresql_server() as url:
        yield url


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """URL of an S3 server with a bucket `lab`."""
    with s3_server() as url:
        yield url
