import copy
import subprocess
import sys
from pathlib import Path

import torch
import torchvision

from pruning.models import load_model, require_fit
from pruning.weights import load_weights_, read_weights

ROOT = Path(__file__).parents[3]
FILE = ROOT / "benchmarks" / "models" / "imagenette_mobilenet_v2.py"
ROWS = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]


def _imagenet_weights(folder: Path) -> Path:
    """Weights of 1000 classes, whose classifier's biases are their numbers."""
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(weights=None)
    model.classifier[1].bias.data.copy_(torch.arange(1000))
    torch.save(model.state_dict(), folder / "imagenet.pth")
    return folder / "imagenet.pth"


def test_weights_of_imagenet_become_those_of_ten_classes(tmp_path: Path) -> None:
    path = _imagenet_weights(tmp_path)
    model = load_model(f"{FILE}:mobilenet_v2", path, n_classes=10)
    require_fit(model, (3, 32, 32), 10)
    assert model.classifier[1].bias.tolist() == ROWS
    assert torch.equal(model.classifier[1].weight, torch.load(path)["classifier.1.weight"][ROWS])


def test_weights_of_ten_classes_are_taken_as_they_are(tmp_path: Path) -> None:
    model = load_model(f"{FILE}:mobilenet_v2", n_classes=10)
    torch.save(model.state_dict(), tmp_path / "ten.pth")
    other = copy.deepcopy(load_model(f"{FILE}:mobilenet_v2"))
    load_weights_(other, tmp_path / "ten.pth")
    assert torch.equal(other.classifier[1].weight, model.classifier[1].weight)


def test_the_command_writes_the_ten_class_weights(tmp_path: Path) -> None:
    arguments = [str(FILE), str(_imagenet_weights(tmp_path)), str(tmp_path / "ten.safetensors")]
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    assert read_weights(tmp_path / "ten.safetensors")["classifier.1.bias"].tolist() == ROWS
