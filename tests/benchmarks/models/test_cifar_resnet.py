from pathlib import Path

import pytest
import torch

from pruning.models import load_model, require_fit
from pruning.weights import load_weights_

FILE = Path(__file__).parents[3] / "benchmarks" / "models" / "cifar_resnet.py"


@pytest.mark.parametrize(("name", "n_parameters"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_the_networks_have_the_published_size(name: str, n_parameters: int) -> None:
    model = load_model(f"{FILE}:{name}")
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters
    require_fit(model, (3, 32, 32), 10)


def test_a_shortcut_takes_every_other_pixel_and_pads_channels_on_both_sides() -> None:
    block = load_model(f"{FILE}:resnet20").layer2[0]
    images = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    padded = block.shortcut(images)
    assert padded.shape == (2, 32, 4, 4)
    assert torch.equal(padded[:, 8:24], images[:, :, ::2, ::2])
    assert not padded[:, :8].any()
    assert not padded[:, 24:].any()


def test_weights_of_the_published_layout_fit(tmp_path: Path) -> None:
    # Saved by DataParallel with a PyTorch that counted no batches.
    model, other = load_model(f"{FILE}:resnet20"), load_model(f"{FILE}:resnet20")
    state = {
        f"module.{name}": tensor for name, tensor in model.state_dict().items() if "num_batches" not in name
    }
    assert len(state) == 97
    torch.save({"state_dict": state, "best_prec1": 91.78}, tmp_path / "resnet20.th")
    load_weights_(other, tmp_path / "resnet20.th")
    assert torch.equal(other.linear.weight, model.linear.weight)
