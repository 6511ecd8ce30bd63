from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning.errors import WeightsError
from pruning.weights import load_weights_, read_weights, save_weights


def _net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), flat=nn.Flatten(), head=nn.Linear(4, 2))
    )


def _prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def _assert_same(model: nn.Module, other: nn.Module) -> None:
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_saved_weights_come_back(tmp_path: Path) -> None:
    net, other = _net(0), _net(1)
    save_weights(net, tmp_path / "w.safetensors")
    load_weights_(other, tmp_path / "w.safetensors")
    _assert_same(other, net)


def test_safetensors_are_recognised_without_their_suffix(tmp_path: Path) -> None:
    save_file(_net().state_dict(), tmp_path / "weights.bin")
    assert set(read_weights(tmp_path / "weights.bin")) == set(_net().state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "best_prec1": 91.7},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": _prefixed(state, "module.")},
        lambda state: {"state_dict": {"model": _prefixed(state, "model.")}},
        lambda state: _prefixed(state, "module._orig_mod."),
        lambda state: {k: v for k, v in state.items() if "num_batches_tracked" not in k},
    ],
    ids=["plain", "state_dict", "model", "model_state_dict", "nested", "two prefixes", "no counters"],
)
def test_usual_wrappers_are_unwrapped(wrap: Callable[[Mapping[str, Tensor]], Any], tmp_path: Path) -> None:
    net, other = _net(0), _net(1)
    torch.save(wrap(net.state_dict()), tmp_path / "w.pth")
    load_weights_(other, tmp_path / "w.pth")
    _assert_same(other, net)


def test_a_submodule_called_model_keeps_its_name(tmp_path: Path) -> None:
    net, other = nn.Module(), nn.Module()
    net.model, other.model = _net(0), _net(1)
    torch.save(_prefixed(net.state_dict(), "module."), tmp_path / "w.pth")
    load_weights_(other, tmp_path / "w.pth")
    _assert_same(other, net)


def test_missing_and_unexpected_keys_are_named_and_counted(tmp_path: Path) -> None:
    state = _net().state_dict()
    del state["conv.weight"], state["head.bias"]
    state |= {f"extra.{i}": torch.zeros(1) for i in range(6)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"lacks conv\.weight, head\.bias and has in excess extra\.0, .*and 2 more"
    ):
        load_weights_(_net(), tmp_path / "w.pth")


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    state = _net().state_dict() | {"head.weight": torch.zeros(10, 4), "head.bias": torch.zeros(10)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"head\.weight is \[10, 4\] in the file and \[2, 4\] in the model, head\.bias"
    ):
        load_weights_(_net(), tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused_by_name(value: float, tmp_path: Path) -> None:
    net = _net()
    net.get_submodule("norm").running_var[2] = value
    save_weights(net, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"NaN or infinite values in norm\.running_var;"):
        load_weights_(_net(), tmp_path / "w.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.pth' does not exist"):
        read_weights(tmp_path / "none.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"rubbish" * 50, b"\x80\x02}q", b"PK\x03\x04" + b"\0" * 99])
def test_a_corrupt_file_gives_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name) as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_truncated_torch_file_gives_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(_net().state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"w\.pth' is damaged") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_a_pickled_module_is_not_loaded(tmp_path: Path) -> None:
    torch.save(_net(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="save only the tensors"):
        read_weights(tmp_path / "w.pth")


def test_entries_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"no tensors: epoch \(int\)"):
        read_weights(tmp_path / "w.pth")


def test_something_else_than_named_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds a list instead of named tensors"):
        read_weights(tmp_path / "w.pth")
