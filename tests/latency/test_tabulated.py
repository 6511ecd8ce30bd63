import numpy as np
import pytest
import torch

from latency import encoding, tabulated
from latency.encoding import CACHES_KIB
from latency.grid import ChannelStep, Grid
from latency.space import SearchSpace
from latency.tabulated import n_rows, tabulate
from tests.known_network import random_lpnet
from tests.nets import NETS

STEP = ChannelStep(dense=4, depthwise=2)


def grid_points(space: SearchSpace, grid: Grid, n: int) -> torch.Tensor:
    """Canonical widths on the grid, with and without removed groups, [n', n_groups]."""
    rng = np.random.default_rng(0)
    drawn = [[rng.choice(allowed) for allowed in grid.allowed] for _ in range(n)]
    drawn += [space.full_widths, [allowed[0] for allowed in grid.allowed]]
    return torch.tensor(np.array([space.canonical(row) for row in drawn if space.is_alive(row)])).float()


@pytest.mark.parametrize("caches_kib", [CACHES_KIB, (0.125, 0.5)], ids=["fits caches", "exceeds caches"])
@pytest.mark.parametrize("name", sorted(NETS))
def test_tables_say_what_lpnet_says_on_the_grid(
    name: str, caches_kib: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "CACHES_KIB", caches_kib)
    space = SearchSpace.from_model(NETS[name]().model)
    grid = Grid.from_step(space.structure, STEP)
    model = random_lpnet(space, grid)
    model.mlp[2].bias.fill_(0.3)
    widths = grid_points(space, grid, 100)
    tables = tabulate(model)
    found = tables.outputs(widths.numpy())
    for value, expected in zip(found, model.outputs(widths).values(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(tables.latency_ms(widths.numpy()), found.latency_ms)


def test_tables_that_are_not_worth_their_memory_are_refused(
    residual_space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_lpnet(residual_space, Grid.from_step(residual_space.structure, STEP))
    monkeypatch.setattr(tabulated, "MOST_ROWS", n_rows(model) - 1)
    with pytest.raises(ValueError, match=f"{n_rows(model)} rows, at most {n_rows(model) - 1}"):
        tabulate(model)
