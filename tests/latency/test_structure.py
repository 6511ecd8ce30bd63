import pytest

from latency.structure import LayerView, LinearWidth


def layer(kind: str, per_group: int, in_channels: LinearWidth, out_channels: LinearWidth) -> LayerView:
    return LayerView(
        name="layer",
        kind=kind,  # type: ignore[arg-type]
        in_channels=in_channels,
        out_channels=out_channels,
        channels_per_conv_group=per_group,
        kernel_area=9,
        in_positions=64,
        out_positions=16,
        depends_on=(2,),
    )


def test_a_linear_width_adds_what_is_fixed_to_what_its_groups_keep() -> None:
    assert LinearWidth(4, ((0, 1), (2, 3))).at([5, 100, 2]) == 4 + 5 + 6


@pytest.mark.parametrize(
    ("kind", "per_group", "macs"),
    [("dense", 8, 16 * 9 * 6 * 4), ("depthwise", 1, 16 * 9 * 1 * 4), ("grouped", 2, 16 * 9 * 2 * 4)],
)
def test_macs_count_the_channels_each_filter_reads(kind: str, per_group: int, macs: int) -> None:
    view = layer(kind, per_group, LinearWidth(0, ((0, 1),)), LinearWidth(0, ((1, 1),)))
    assert view.macs([6, 4, 1]) == macs


@pytest.mark.parametrize("widths", [[6, 4, 0], [0, 4, 1], [6, 0, 1]])
def test_a_removed_layer_computes_nothing(widths: list[int]) -> None:
    view = layer("grouped", 2, LinearWidth(0, ((0, 1),)), LinearWidth(0, ((1, 1),)))
    assert view.macs(widths) == 0
