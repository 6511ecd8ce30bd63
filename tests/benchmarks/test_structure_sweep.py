"""Some networks of the sweep, each of another family; the whole table takes most of an hour."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from networks import default_models
from structure_sweep import TOLERANCE, check, main

ROOT = Path(__file__).parents[2]

MODELS = (
    *("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"),
    *("regnet_y_400mf", "lraspp_mobilenet_v3_large"),
    f"{ROOT}/benchmarks/models/cifar_resnet.py:resnet20",
)


@pytest.mark.parametrize("model", MODELS)
def test_gated_slim_and_sliced_networks_agree(model: str) -> None:
    row = check(model, n_widths=2, seed=1)

    assert row.ok, row.reason
    assert row.max_rel_diff_masked_vs_slim is not None
    assert row.max_rel_diff_masked_vs_slim <= TOLERANCE
    assert row.max_rel_diff_onnx_vs_slim is not None
    assert row.max_rel_diff_onnx_vs_slim <= TOLERANCE
    assert row.smallest_rel_change is not None
    assert row.smallest_rel_change > 100 * TOLERANCE  # else nothing was cut that matters
    assert row.prunable_channels_share >= (0.85 if "shufflenet" in model else 0.95)


def test_a_network_that_fails_makes_the_command_fail(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Conv2d):\n"
        "    def forward(self, images):\n"
        "        return super().forward(images) if images.sum() > 0 else images\n\n\n"
        "def net():\n    return Net(3, 8, 3)\n"
    )

    done = CliRunner().invoke(main, ["--models", f"{net}:net", "--json", str(tmp_path / "rows.json")])

    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert done.exit_code == 1
    assert row["ok"] is False
    assert "control flow" in row["reason"]


def test_the_table_names_every_family() -> None:
    names = " ".join(default_models())

    for family in (
        "vgg",
        "resnext",
        "wide_resnet",
        "densenet",
        "inception_v3",
        "efficientnet_v2",
        "convnext",
        "swin",
    ):
        assert family in names
    assert sum(name.startswith("timm:") for name in default_models()) >= 20
