import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning.errors import ModelSpecError, WeightsError
from pruning.models import class_scores, load_model, require_fit
from pruning.weights import save_weights

_FACTORIES = """
from torch import nn
import neighbour_of_nets

def tiny(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def fixed():
    return tiny(5)

def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

def broken():
    net = tiny()
    nn.init.constant_(net[0].weight, float("nan"))
    return net

def failing():
    raise KeyError("no such block")

def text():
    return "net"
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "neighbour_of_nets.py").write_text("")
    path = tmp_path / "nets.py"
    path.write_text(_FACTORIES)
    return path


def test_a_torchvision_model_is_built_for_the_classes() -> None:
    model = load_model("torchvision:mobilenet_v2", n_classes=7)
    assert not model.training
    require_fit(model, (3, 32, 32), 7)


def test_a_torchvision_model_without_classes_keeps_its_default() -> None:
    require_fit(load_model("torchvision:squeezenet1_1"), (3, 64, 64), 1000)


def test_a_net_with_auxiliary_heads_is_built_without_them() -> None:
    model = load_model("torchvision:googlenet", n_classes=4).train()
    assert class_scores(model(torch.zeros(2, 3, 64, 64))).shape == (2, 4)


def test_a_factory_is_called_with_the_classes_where_it_takes_them(nets: Path) -> None:
    require_fit(load_model(f"{nets}:tiny", n_classes=7), (3, 8, 8), 7)
    require_fit(load_model(f"{nets}:tiny"), (3, 8, 8), 3)
    require_fit(load_model(f"{nets}:fixed", n_classes=7), (3, 8, 8), 5)


def test_a_factory_imports_its_neighbours_and_the_path_is_as_before(nets: Path) -> None:
    before = list(sys.path)
    load_model(f"{nets}:tiny")
    assert sys.path == before


def test_weights_are_loaded(nets: Path, tmp_path: Path) -> None:
    first = load_model(f"{nets}:tiny")
    save_weights(first, tmp_path / "w.safetensors")
    second = load_model(f"{nets}:tiny", tmp_path / "w.safetensors")
    assert torch.equal(first.state_dict()["0.weight"], second.state_dict()["0.weight"])


def test_weights_for_other_classes_are_refused(nets: Path, tmp_path: Path) -> None:
    save_weights(load_model(f"{nets}:tiny"), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"3\.weight is \[3, 4\] in the file and \[7, 4\] in the model"):
        load_model(f"{nets}:tiny", tmp_path / "w.safetensors", n_classes=7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "has no function 'absent'; it has: broken, dense, failing, fixed, text, tiny"),
        ("dense", r"\(Sequential\) has no 2-D convolution"),
        ("failing", "cannot be built: KeyError: 'no such block'"),
        ("text", "is a str; the factory has to return an nn.Module"),
    ],
)
def test_a_factory_that_gives_no_network_is_refused(name: str, message: str, nets: Path) -> None:
    with pytest.raises(ModelSpecError, match=message):
        load_model(f"{nets}:{name}")


def test_a_factory_that_gives_nan_weights_is_refused(nets: Path) -> None:
    with pytest.raises(WeightsError, match=r"nets\.py:broken' holds NaN or infinite values in 0\.weight"):
        load_model(f"{nets}:broken")


def test_close_names_are_offered() -> None:
    with pytest.raises(ModelSpecError, match=r"'torchvision:resnet_18' is unknown; did you mean .*resnet18"):
        load_model("torchvision:resnet_18")


def test_a_detector_is_no_known_classifier() -> None:
    with pytest.raises(ModelSpecError, match="unknown"):
        load_model("torchvision:fasterrcnn_resnet50_fpn")


@pytest.mark.parametrize("spec", ["resnet18", "torchvision:", ":x"])
def test_a_spec_that_is_not_understood_lists_the_forms(spec: str) -> None:
    with pytest.raises(ModelSpecError, match=r"torchvision:NAME, timm:NAME or path/to/file\.py:factory"):
        load_model(spec)


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelSpecError, match=r"none\.py' does not exist"):
        load_model(f"{tmp_path / 'none.py'}:net")


def test_a_model_file_that_fails_to_import_gives_its_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import a_module_that_is_not_there")
    with pytest.raises(ModelSpecError, match=r"cannot be imported: ModuleNotFoundError: No module named"):
        load_model(f"{tmp_path / 'bad.py'}:net")
    assert "trimms_model_bad" not in sys.modules


def test_a_file_that_is_no_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.txt").write_text("")
    with pytest.raises(ModelSpecError, match="is no Python file"):
        load_model(f"{tmp_path / 'net.txt'}:net")


def test_timm_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelSpecError, match="pip install timm"):
        load_model("timm:resnet18")


def test_a_model_for_other_classes_does_not_fit(nets: Path) -> None:
    with pytest.raises(ModelSpecError, match="gives 3 scores an image, the data has 10 classes"):
        require_fit(load_model(f"{nets}:tiny"), (3, 8, 8), 10)


def test_a_model_for_another_input_size_does_not_fit(nets: Path) -> None:
    with pytest.raises(ModelSpecError, match="does not take images of 1x8x8"):
        require_fit(load_model(f"{nets}:tiny"), (1, 8, 8), 3)


def test_a_model_that_gives_no_scores_does_not_fit() -> None:
    with pytest.raises(ModelSpecError, match=r"shape \[2, 4, 6, 6\] for 2 images"):
        require_fit(nn.Conv2d(3, 4, 3), (3, 8, 8), 4)


def test_the_trial_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    require_fit(model, (3, 8, 8), 4)
    assert model.training
    assert not model[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
