import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from latency.encoding import BLOCKS, CACHES_KIB, TERMS, Encoding
from latency.grid import Grid
from latency.structure import ChannelGroup, LayerView, LinearWidth


def group(
    index: int, n_channels: int, *, zero_allowed: bool = False, implied_zero: tuple[int, ...] = ()
) -> ChannelGroup:
    return ChannelGroup(
        index=index,
        name=f"layer{index}",
        n_channels=n_channels,
        offset=0,
        channels_per_slot=1,
        zero_allowed=zero_allowed,
        removes=(),
        implied_zero=implied_zero,
        presence=(),
    )


def layer(
    name: str,
    in_channels: LinearWidth,
    out_channels: LinearWidth,
    *,
    kind: str = "dense",
    depends_on: tuple[int, ...] = (),
) -> LayerView:
    return LayerView(
        name=name,
        kind=kind,  # type: ignore[arg-type]
        in_channels=in_channels,
        out_channels=out_channels,
        channels_per_conv_group={"depthwise": 1, "grouped": 8}.get(kind, 0),
        kernel_area=9,
        in_positions=64,
        out_positions=16,
        depends_on=depends_on,
    )


def fixed(constant: int) -> LinearWidth:
    return LinearWidth(constant, ())


def of(*terms: tuple[int, int], constant: int = 0) -> LinearWidth:
    return LinearWidth(constant, terms)


# Groups: 0 the stem (odd full width), 1 a branch's middle, 2 its depthwise neighbour, which goes with it.
GROUPS = (
    group(0, 72),
    group(1, 128, zero_allowed=True, implied_zero=(2,)),
    group(2, 64, zero_allowed=True, implied_zero=(1,)),
)
GRID = Grid(allowed=((32, 48, 64, 72), (0, *range(16, 129, 16)), (0, *range(8, 65, 8))))
LAYERS = (
    layer("stem", fixed(3), of((0, 1))),
    layer("squeeze", of((0, 1)), of((1, 1)), depends_on=(2,)),
    layer("expand", of((1, 1)), of((2, 1))),
    layer("depthwise", of((2, 1)), of((2, 1)), kind="depthwise", depends_on=(1,)),
    layer("grouped", of((2, 1)), of((2, 2)), kind="grouped", depends_on=(1,)),
    layer("concat", of((0, 1), (2, 2), constant=4), of((0, 1))),
    layer("head", of((0, 1)), fixed(10), kind="linear"),
)


NAMES = (*(view.name for view in LAYERS), "network")
FULL = [72, 128, 64]


@pytest.fixture(scope="module")
def encoding() -> Encoding:
    return Encoding.from_space(LAYERS, GROUPS, GRID)


def features(encoding: Encoding, widths: Sequence[float]) -> dict[tuple[str, str], float]:
    values = encoding(torch.tensor([widths], dtype=torch.float32))[0].tolist()
    names = [(NAMES[index], term) for index, term in encoding.feature_terms()]
    return dict(zip(names, values, strict=True))


def expected(name: str, widths: Sequence[int], term: str) -> float:
    """The term spelled out from the definitions, at widths on the grid."""
    if name != "network":
        return expected_of_layer(LAYERS[NAMES.index(name)], widths, term)
    n_bytes = sum(4 * view.kernel_area * expected_of_layer(view, widths, "macs") for view in LAYERS)
    return max(0.0, n_bytes - 1024 * int(term.split()[1]))


def expected_of_layer(view: LayerView, widths: Sequence[int], term: str) -> float:
    c_in, c_out = view.in_channels.at(widths), view.out_channels.at(widths)
    if c_in == 0 or c_out == 0 or any(widths[g] == 0 for g in view.depends_on):
        return 0.0
    is_dense = view.kind in ("dense", "linear")
    read = c_in if is_dense else view.channels_per_conv_group
    name, _, size = term.partition(" ")
    if name == "blocks":
        return read * math.ceil(c_out / int(size))
    if name == "padded":
        return math.ceil(c_in / int(size)) * math.ceil(c_out / int(size)) if is_dense else 0.0
    return {"macs": read * c_out, "presence": 1.0, "output": c_out, "input": c_in}[name]


def random_grid_point(rng: np.random.Generator) -> list[int]:
    widths = [int(rng.choice(allowed)) for allowed in GRID.allowed]
    return [widths[0], 0, 0] if 0 in widths[1:] else widths


def test_every_feature_is_exact_on_the_grid(encoding: Encoding) -> None:
    rng = np.random.default_rng(1)
    points = [random_grid_point(rng) for _ in range(60)]
    for widths in [*points, FULL, [32, 16, 8], [72, 0, 0]]:
        for (name, term), value in features(encoding, widths).items():
            want = expected(name, widths, term) / expected(name, FULL, term)
            assert value == pytest.approx(want, abs=1e-6), (name, term, widths)


def test_terms_that_are_equal_on_the_grid_are_offered_once(encoding: Encoding) -> None:
    offered: dict[str, set[str]] = {name: set() for name in NAMES}
    for index, term in encoding.feature_terms():
        offered[NAMES[index]].add(term)
    # The outputs are multiples of 16, so blocks of 8 and 16 are the MACs again; 128 are one block of 128.
    assert offered["squeeze"] == {*TERMS[:4], "blocks 32", "blocks 64", "padded 16"}
    assert {"blocks 8", "blocks 128"}.isdisjoint(set.union(*offered.values()))
    assert "padded 8" in offered["concat"]  # reads 4 channels more than a multiple of 8


def test_weights_beyond_a_cache_are_offered_for_caches_smaller_than_the_network(encoding: Encoding) -> None:
    assert expected("network", FULL, "beyond 0") / 1024 == pytest.approx(1199.5, abs=1)
    offered = [term for index, term in encoding.feature_terms() if NAMES[index] == "network"]
    assert offered == [f"beyond {size} KiB" for size in CACHES_KIB if size <= 0.75 * 1199.5]


def test_terms_that_cannot_vary_are_left_out(encoding: Encoding) -> None:
    stem = [term for index, term in encoding.feature_terms() if NAMES[index] == "stem"]
    assert "presence" not in stem
    assert "input" not in stem


def test_features_are_one_at_full_width(encoding: Encoding) -> None:
    full = torch.tensor([FULL], dtype=torch.float32)
    torch.testing.assert_close(encoding(full), torch.ones(1, encoding.n_features))


@pytest.mark.parametrize("removed", [[1], [2], [1, 2]])
def test_a_removed_branch_takes_all_its_terms_with_it(encoding: Encoding, removed: list[int]) -> None:
    widths = [64.0, 96.0, 40.0]
    for index in removed:
        widths[index] = 0.0
    values = features(encoding, widths)
    assert values == features(encoding, [64.0, 0.0, 0.0])
    branch = ("squeeze", "expand", "depthwise", "grouped")
    assert all(value == 0.0 for (name, _), value in values.items() if name in branch)
    assert all(value > 0.0 for (name, _), value in values.items() if name not in (*branch, "network"))


def test_presence_falls_linearly_below_the_smallest_width(encoding: Encoding) -> None:
    values = [features(encoding, [64, width, 64])["squeeze", "presence"] for width in (0, 4, 8, 12, 16, 40)]
    assert values == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


def test_staircases_are_straight_between_neighbours_on_the_grid(encoding: Encoding) -> None:
    blocks = [
        features(encoding, [72, width, 64])["squeeze", "blocks 64"] for width in (64, 68, 72, 80, 96, 128)
    ]
    assert blocks == pytest.approx([0.5, 0.625, 0.75, 1, 1, 1])
    odd_end = [features(encoding, [width, 128, 64])["stem", "blocks 16"] for width in (64, 66, 68, 72)]
    assert odd_end == pytest.approx([4 / 5, 4.25 / 5, 4.5 / 5, 1])


def test_the_gradient_on_the_grid_is_the_slope_downwards(encoding: Encoding) -> None:
    names = [(NAMES[index], term) for index, term in encoding.feature_terms()]
    for width, slope in ((64.0, 0.0), (80.0, 0.5 / 16), (128.0, 0.0)):
        widths = torch.tensor([[72.0, width, 64.0]], requires_grad=True)
        encoding(widths)[0, names.index(("squeeze", "blocks 64"))].backward()
        assert widths.grad is not None
        assert widths.grad[0, 1].item() == pytest.approx(slope)


def test_gradients_agree_with_finite_differences(encoding: Encoding) -> None:
    torch.manual_seed(0)
    double = Encoding(encoding.state_dict()).double()
    low = torch.tensor([33.3, 17.7, 9.1], dtype=torch.float64)
    high = torch.tensor([71.0, 127.0, 63.0], dtype=torch.float64)
    inside = low + (high - low) * torch.rand(6, 3, dtype=torch.float64)
    vanishing = torch.tensor([[50.3, 5.2, 3.3], [20.1, 40.3, 2.2], [50.3, 10.4, 33.3]], dtype=torch.float64)
    points = torch.cat([inside, vanishing]).requires_grad_()
    assert torch.autograd.gradcheck(double, (points,), eps=1e-6, atol=1e-6)


def test_features_are_continuous_everywhere(encoding: Encoding) -> None:
    line = torch.linspace(0.0, 1.0, 4001, dtype=torch.float64)[:, None]
    full = torch.tensor([FULL], dtype=torch.float64)
    values = Encoding(encoding.state_dict()).double()(line * full)
    # The steepest feature climbs one block of two within 8 of 64 channels; a jump would be 0.1 or more.
    assert values.diff(dim=0).abs().max().item() < 0.01


def test_the_state_dict_alone_rebuilds_the_encoding(encoding: Encoding) -> None:
    widths = torch.tensor([[40.0, 33.0, 21.0]])
    rebuilt = Encoding(encoding.state_dict())
    assert rebuilt.feature_terms() == encoding.feature_terms()
    assert (rebuilt.n_groups, rebuilt.n_layers) == (3, len(LAYERS))
    torch.testing.assert_close(rebuilt(widths), encoding(widths), rtol=0, atol=0)


def test_block_sizes_are_those_the_kernels_have() -> None:
    assert BLOCKS == (8, 16, 32, 64, 128)
