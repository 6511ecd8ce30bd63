"""What the command line refuses before any work: one line that says what is allowed, exit code 2."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pruning.cli_method import METHOD_NAMES
from pruning.cli_options import parse_input_shape
from pruning.criteria import METHODS
from pruning.errors import SettingError
from tests.command_line import NET, invoke


def trace_arguments(out: Path, **changed: object) -> list[object]:
    options = {
        "model": "torchvision:resnet18",
        "data": "digits",
        "input-size": "1x3x32x32",
        "train-epochs": "1",
    }
    options |= {name.replace("_", "-"): value for name, value in changed.items()}
    pairs = [(f"--{name}", value) for name, value in options.items()]
    return ["trace", *(part for pair in pairs for part in pair), "--out", out]


def make_weights(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.safetensors"
    if kind == "corrupt":
        path.write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all")
    elif kind == "nan":
        from torchvision.models import resnet18

        state = resnet18(num_classes=10).state_dict()
        state["conv1.weight"][0, 0, 0, 0] = float("nan")
        save_file(state, path)
    elif kind == "other":
        save_file({"something.weight": torch.zeros(3)}, path)
    return path


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("missing", "does not exist"),
        ("corrupt", "corrupt.safetensors"),
        ("nan", "conv1.weight"),
        ("other", "something.weight"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_in_one_line(
    tmp_path: Path, weights: str, message: str
) -> None:
    done = invoke(*trace_arguments(tmp_path / "out", weights=make_weights(tmp_path, weights)))

    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "torchvision:resnet19"}, "resnet19"),
        ({"model": "resnet18"}, "is not understood"),
        ({"data": "folder:nowhere"}, "nowhere"),
        ({"data": "npz:nowhere.npz"}, "nowhere.npz"),
        ({"input_size": "3x32x32"}, "is not batch x channels x height x width"),
        ({"train_epochs": "0"}, "comes without trained weights"),
    ],
    ids=lambda value: str(value),
)
def test_what_is_not_understood_is_refused_in_one_line(
    tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    done = invoke(*trace_arguments(tmp_path / "out", **changed))

    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_model_that_is_no_cnn_is_refused(tmp_path: Path) -> None:
    net_file = tmp_path / "net.py"
    net_file.write_text(NET)

    done = invoke(*trace_arguments(tmp_path / "out", model=f"{net_file}:mlp", input_size="1x3x16x16"))

    assert done.exit_code == 2
    assert "convolution" in done.stderr


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    images, labels = np.zeros((20, 24, 24, 3), dtype=np.uint8), np.arange(20) % 4
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)

    done = invoke(*trace_arguments(tmp_path / "out", data=f"npz:{path}"))

    assert done.exit_code == 2
    assert "24" in done.stderr


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (["--budget-ms", "0"], "--budget-ms is a number above 0; got 0.0"),
        (["--budget-ms", "nan"], "--budget-ms is a number above 0; got nan"),
        (["--speedup", "0.5"], "--speedup is dense latency over budget, at least 1"),
        ([], "give either --budget-ms or --speedup"),
        (["--budget-ms", "1", "--speedup", "2"], "give either --budget-ms or --speedup"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(tmp_path: Path, budget: list[str], message: str) -> None:
    done = invoke(
        "run", "--model", "torchvision:resnet18", "--data", "digits", "--input-size", "1x3x32x32", *budget,
        "--out", tmp_path / "out",
    )  # fmt: skip

    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--method", "hope"], "--method 'hope' is not known; known are: wgates, scaling-factors, "),
        (["--objective", "joules"], "--objective is one of latency, macs, channels; got 'joules'"),
        (["--latency-term", "sum"], "--latency-term is one of hold, log; got 'sum'"),
        (["--search-epochs", "-1"], "--search-epochs is 0 or more; got -1"),
        (["--also", "runs/b"], "--also 'runs/b' is not a run directory, or an LPNet's address, and a number"),
        (["--also", "runs/b:0"], "--also runs/b: the budget is a number of ms above 0; got 0.0"),
    ],
    ids=lambda value: str(value),
)
def test_ways_to_prune_that_make_no_sense_are_refused(
    tmp_path: Path, option: list[str], message: str
) -> None:
    done = invoke(
        "run", "--model", "torchvision:resnet18", "--data", "digits", "--input-size", "1x3x32x32", "--speedup", "2",
        *option, "--out", tmp_path / "out",
    )  # fmt: skip

    assert done.exit_code == 2
    assert message in done.stderr


def test_the_help_names_every_method() -> None:
    own = [name for name, method in METHODS.items() if type(method).__module__.startswith("pruning.")]
    assert tuple(own) == METHOD_NAMES


def test_a_stage_out_of_order_names_the_one_to_run_first(tmp_path: Path) -> None:
    done = invoke("profile", "--out", tmp_path)

    assert done.exit_code == 2
    assert "run `trimms trace` first" in done.stderr


@pytest.mark.parametrize("text", ["", "224", "3x224x224", "1x3x0x4", "1x3xax4", "-1x3x4x4"])
def test_an_input_size_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="is not batch x channels x height x width"):
        parse_input_shape(text)
